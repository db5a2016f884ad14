# SPDX-License-Identifier: GPL-2.0-or-later
#
# linux-rwp: the kernel targets.  Included by the top Makefile, and usable alone
# (make -f linux-rwp/rules.mk kernel).
#
# Objects and results go below $(RWP_BUILD)/kernel, downloads below $(RWP_CACHE).

RWP_TOP := $(patsubst %/linux-rwp/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))
RWP_BUILD ?= $(RWP_TOP)/build
RWP_CACHE ?= $(HOME)/.cache/qemu-rwp
RWP_LINUX := $(RWP_TOP)/linux-rwp
export RWP_BUILD RWP_CACHE

.PHONY: kernel check-kernel check-kernel-matrix check-kernel-series
.PHONY: stress-kernel bench-kernel kernel-deb

kernel:
	$(RWP_LINUX)/build-kernel rwp-vm

check-kernel:
	$(RWP_LINUX)/check

check-kernel-matrix:
	$(RWP_LINUX)/check-matrix

check-kernel-series:
	$(RWP_LINUX)/check-series

# SECONDS_OF_STRESS is how long
stress-kernel:
	$(RWP_LINUX)/stress $(SECONDS_OF_STRESS)

bench-kernel:
	$(RWP_LINUX)/bench

kernel-deb:
	$(RWP_LINUX)/build-deb

define HELP_KERNEL
make kernel           a Linux 6.12 with userfaultfd RWP, for the tests' machines
make check-kernel     build it with everything that sees mistakes, boot, test
make check-kernel-matrix, check-kernel-series, stress-kernel, bench-kernel,
     kernel-deb       see docs/linux-rwp.rst

endef
HELP_PARTS += $(HELP_KERNEL)
