# SPDX-License-Identifier: GPL-2.0-or-later
#
# make bench: see tests/bench/run. BENCHFLAGS are options for it.

BENCH := $(B)/bench

# With libnbd there is a peer for the store over NBD, too
LIBNBD := $(shell pkg-config --silence-errors --cflags --libs libnbd && \
    echo -DBARE_LIBNBD)

$(BENCH)/bare: tests/bench/bare.c tests/bench/bare-store.c \
    tests/bench/bare.h tests/bench/order.h
	@mkdir -p $(@D)
	$(CC) -O2 -g -Wall -Wextra -Werror -pthread -o $@ $(filter %.c,$^) \
	    $(LIBNBD)

# Firmware for a 32-bit processor without an operating system
$(BENCH)/guest.elf: tests/bench/guest.c tests/bench/order.h
	@mkdir -p $(@D)
	$(CC) -m32 -Os -Wall -Wextra -Werror -ffreestanding -fno-pic \
	    -fno-stack-protector -fno-toplevel-reorder -fcf-protection=none \
	    -fno-asynchronous-unwind-tables -mgeneral-regs-only \
	    -nostdlib -static -no-pie \
	    -Wl,-Ttext=0xffff0000,--build-id=none,-e,_start -o $@ $<

$(BENCH)/guest.bin: $(BENCH)/guest.elf
	objcopy -O binary -j .text $< $@

.PHONY: bench
bench: qemu $(BENCH)/bare $(BENCH)/guest.bin
	@$(PYTHON) tests/bench/run $(BENCHFLAGS)

# The trackers, and what there is without userfaultfd, on a kernel with RWP;
# KERNEL as in tests/vm/rules.mk
.PHONY: bench-vm
bench-vm: qemu $(VM_NEEDS)
	@mkdir -p $(B)/results
	@tests/vm/run --kernel $(VM_KERNEL) --memory 1500M --timeout 3600 \
	    --rw $(B)/results -- tests/bench/vm $(BENCHFLAGS)

.PHONY: clean-bench
clean-bench:
	rm -rf $(BENCH)

clean: clean-bench
