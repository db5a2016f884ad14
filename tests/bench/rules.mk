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

# On a kernel with RWP, in a machine that is emulated; KERNEL as in
# tests/vm/rules.mk
VM_PARTS := first-touch touch sequential evict trackers

.PHONY: bench-vm
bench-vm: qemu $(VM_NEEDS) $(BENCH)/bare $(BENCH)/guest.bin
	@mkdir -p $(B)/results
	@tests/vm/run --kernel $(VM_KERNEL) --memory 1500M --timeout 3600 \
	    --rw $(B)/results -- env RWP_TEST_SCALE=16 tests/bench/run \
	    --dir /tmp --output $(B)/results/bench-vm.json --repeats 3 \
	    $(BENCHFLAGS) $(VM_PARTS)

.PHONY: clean-bench
clean-bench:
	rm -rf $(BENCH)

clean: clean-bench
