# SPDX-License-Identifier: GPL-2.0-or-later
#
# QEMU on a kernel that has userfaultfd RWP, in the harness machine. None of
# this is part of "make check": everything in the machine is emulated.
#
#   make check-vm                  on linux-rwp's kernel rwp-vm
#   make check-vm KERNEL=upstream  on the distribution's kernel, which has RWP
#   make soak                      30 minutes of everything at once
#
# KERNEL can also be what tests/vm/run takes. PART=... picks a part of
# check-vm, see tests/vm/check. SOAK_MINUTES is the length of the soak.

KERNEL ?= rwp-vm
SOAK_MINUTES ?= 30
VM_KERNEL = $(if $(filter upstream,$(KERNEL)),7.3,$(KERNEL))

# A named kernel of ours that was not built yet
VM_NEEDS = $(if $(filter rwp-vm,$(KERNEL)),\
             $(if $(wildcard $(B)/kernel/rwp-vm/bzImage),,kernel))

.PHONY: check-vm
check-vm: qemu $(VM_NEEDS)
	@tests/vm/check $(VM_KERNEL) $(PART)

.PHONY: soak
soak: qemu $(VM_NEEDS)
	@SOAK_MINUTES=$(SOAK_MINUTES) tests/vm/check $(VM_KERNEL) soak

define HELP_VM
make check-vm         QEMU's tests in a machine whose kernel has RWP: linux-rwp,
                      or with KERNEL=upstream the distribution's (PART=...)
make bench-vm         parts of make bench there, and trackers beside other
                      methods: costs and recall
make soak             everything at once there, for SOAK_MINUTES=30

endef
HELP_PARTS := $(HELP_PARTS)$(HELP_VM)
