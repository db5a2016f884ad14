# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build, test and show qemu-rwp. "make help" lists the targets.
#
# The parts plug in by a rules.mk each (see the include below): they add
# prerequisites to all, bench and clean, names of suites to SUITES, with what
# each needs, and lines to HELP_PARTS. A part may expect TOP, B, PYTHON, JOBS,
# PARALLEL and the targets configured, qemu and qemu-system.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := all

TOP := $(CURDIR)
B := build
PYTHON ?= python3
JOBS ?= $(shell nproc)

# -j of the caller wins; without it, all processors.
PARALLEL = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))

.PHONY: all
all: qemu

# -- set-up -----------------------------------------------------------------

# On a fresh machine each target sets up all that it needs. Without root the
# missing packages are named and nothing is touched.
$(B)/configured: configure
	@if [ -f $@ ]; then \
	    mapfile -t arguments < <(grep . $@); \
	elif [ "$$(id -u)" = 0 ] && grep -qs '^ID=debian$$' /etc/os-release; then \
	    arguments=(--install-deps); \
	else \
	    arguments=(); \
	fi; \
	./configure "$${arguments[@]}"

.PHONY: configured
configured: $(B)/configured

# Lay new files of ours into the tree and follow changes of the patch queue.
.PHONY: tree
tree: configured
	@$(PYTHON) scripts/tree update qemu

# -- QEMU -------------------------------------------------------------------

.PHONY: qemu
qemu: tree
	+@$(MAKE) -C $(B)/qemu $(PARALLEL)

# What runs a guest, without tools and tests: about half of it
.PHONY: qemu-system
qemu-system: tree
	+@$(MAKE) -C $(B)/qemu $(PARALLEL) qemu-system-x86_64

.PHONY: install
install: qemu
	+@$(MAKE) -C $(B)/qemu install

.PHONY: refresh-patches
refresh-patches: configured
	@$(PYTHON) scripts/tree refresh qemu

# -- the other parts --------------------------------------------------------

# A suite is a name that scripts/run-tests knows; a part may add its own. The
# suite "tree" reads the sources, no more.
SUITES := tree unit qtest upstream integration harness
check-tree: tree
$(patsubst %,check-%,$(filter-out tree,$(SUITES))): all
HELP_PARTS :=

-include linux-rwp/rules.mk libvirt/rules.mk tests/vm/rules.mk \
    tests/bench/rules.mk demo/rules.mk

# -- tests ------------------------------------------------------------------

.PHONY: check
check: all
	@$(PYTHON) scripts/run-tests --beside=integration,libvirt $(SUITES)

.PHONY: $(SUITES:%=check-%)
$(SUITES:%=check-%): check-%:
	@$(PYTHON) scripts/run-tests $(TESTFLAGS) $*

# -- housekeeping -----------------------------------------------------------

.PHONY: clean
clean:
	+@if [ -f $(B)/qemu/build.ninja ]; then \
	    $(MAKE) -C $(B)/qemu clean; \
	fi
	rm -rf $(B)/results

# The prepared tree may hold work that is nowhere else.
.PHONY: distclean
distclean:
	@for tree in $(wildcard $(B)/src/*/.git); do \
	    tree=$${tree%/.git}; \
	    if [ "$(FORCE)" != 1 ] && \
	        { [ -n "$$(git -C $$tree status --porcelain)" ] || \
	          [ "$$(git -C $$tree rev-parse HEAD)" != \
	            "$$(git -C $$tree rev-parse refs/rwp/exported)" ]; }; then \
	        echo "$$tree has edits that are not in the patch queue:" \
	             "export them, or make distclean FORCE=1" >&2; \
	        exit 1; \
	    fi; \
	done
	rm -rf $(B)

define HELP
make                  build everything
make install          install QEMU under the prefix given to ./configure
make demo             show it at work on a real Linux guest
make check            all tests: a line each, the counts at the end
make check-SUITE      one of them: $(SUITES)
                      (TESTFLAGS=--only=PATTERN picks programs)
make bench            measure against bare system calls
make refresh-patches  turn commits in build/src/qemu into qemu/patches
make clean            remove objects and results
make distclean        remove build/ (refused while it holds unsaved work)

endef

.PHONY: help
help:
	$(info $(HELP)$(HELP_PARTS))
	@:
