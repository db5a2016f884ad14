# SPDX-License-Identifier: GPL-2.0-or-later
#
# make demo: memory-backend-rwp at work on a real Linux guest. The script
# fetches what the guest is made of. DEMOFLAGS go to it (demo/run --help).

.PHONY: demo
demo: qemu-system
	@$(PYTHON) demo/run $(DEMOFLAGS)
