# SPDX-License-Identifier: GPL-2.0-or-later
#
# linux-rwp: the kernel targets.  Included by the top Makefile, and usable alone:
#
#   make -f linux-rwp/rules.mk kernel               rwp-vm, what QEMU's tests boot
#   make -f linux-rwp/rules.mk check-kernel         all tests, config (a)
#   make -f linux-rwp/rules.mk check-kernel-matrix  the other configurations
#   make -f linux-rwp/rules.mk bench-kernel         the table of costs
#   make -f linux-rwp/rules.mk kernel-deb           packages of a host kernel
#
# Objects and results go below $(RWP_BUILD)/kernel, downloads below $(RWP_CACHE).

RWP_TOP := $(patsubst %/linux-rwp/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))
RWP_BUILD ?= $(RWP_TOP)/build
RWP_CACHE ?= $(HOME)/.cache/qemu-rwp
RWP_LINUX := $(RWP_TOP)/linux-rwp
export RWP_BUILD RWP_CACHE

.PHONY: kernel check-kernel check-kernel-matrix bench-kernel kernel-deb

kernel:
	$(RWP_LINUX)/build-kernel rwp-vm

check-kernel:
	$(RWP_LINUX)/check

check-kernel-matrix:
	$(RWP_LINUX)/check-matrix

bench-kernel:
	$(RWP_LINUX)/bench

kernel-deb:
	$(RWP_LINUX)/build-deb
