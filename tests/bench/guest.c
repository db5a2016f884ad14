/*
 * A guest that measures what it costs to touch a page
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * It is the firmware: entered at the start of its image, which lies 64 KiB
 * below 4 GiB, it goes to protected mode, without paging, and then does
 * what the mailbox says.  Between commands the processor is halted, so that
 * an idle guest takes no time from what is measured; an NMI wakes it.
 *
 * Guest physical memory: the mailbox at 0x1000, the stack below 0x4000,
 * results from 1 MiB on, lists of accesses from 16 MiB on.
 * tests/bench/machine.py knows these and the layout of struct mailbox.
 */

#include "order.h"

#define RESULTS ((volatile uint32_t *)0x100000)
#define LIST ((volatile uint32_t *)0x1000000)
#define LIST_WRITE 0x80000000
#define MAILBOX ((volatile struct mailbox *)0x1000)

/*
 * Intel SDM volume 3, "Advanced Programmable Interrupt Controller": the
 * second local interrupt pin, and to deliver it as an NMI
 */
#define LAPIC_LINT1 ((volatile uint32_t *)0xfee00360)
#define LAPIC_NMI 0x400

#define CR0_WP 0x10000

enum {
    IDLE,
    TOUCH,      /* read a word of each page; ticks of each to RESULTS */
    WRITE,      /* write a word of each page; ticks of all */
    FILL,       /* fill all pages with pseudo-random words */
    REPLAY,     /* access pages as LIST says; a histogram to RESULTS */
};

struct mailbox {
    /* Written by the host, the command last */
    uint32_t command;
    uint32_t start;
    uint32_t pages;         /* a power of two; REPLAY: length of LIST */
    uint32_t seed;
    /* Written by the guest */
    uint32_t started;       /* commands */
    uint32_t done;
    uint32_t ticks_low;     /* of the last command as a whole */
    uint32_t ticks_high;
};

/* The first thing in the image: -fno-toplevel-reorder */
__asm__(
    ".text\n"
    ".code16\n"
    ".globl _start\n"
    "_start:\n"
    "    cli\n"
    "    data32 lgdt %cs:gdt_pointer - _start\n"
    "    mov %cr0, %eax\n"
    "    or $1, %al\n"
    "    mov %eax, %cr0\n"
    "    data32 ljmp $8, $flat\n"
    ".code32\n"
    "flat:\n"
    "    mov $16, %eax\n"
    "    mov %eax, %ds\n"
    "    mov %eax, %es\n"
    "    mov %eax, %ss\n"
    "    mov $0x4000, %esp\n"
    "    lidt idt_pointer\n"
    "    jmp serve\n"
    "nmi:\n"
    "    iret\n"
    ".balign 8\n"
    "gdt:\n"                    /* flat, and marked as accessed: it is ROM */
    "    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
    "gdt_pointer:\n"
    "    .word . - gdt - 1\n"
    "    .long gdt\n"
    ".balign 8\n"
    "idt:\n"                    /* vector 2 is the NMI */
    "    .quad 0, 0\n"
    "    .word nmi - _start, 8, 0x8e00, 0xffff\n"
    "idt_pointer:\n"
    "    .word idt_pointer - idt - 1\n"
    "    .long idt\n"
);

/* Forget translations, so that each touch pays for the same */
static void flush_tlb(void)
{
    uint32_t cr0;

    __asm__ volatile("mov %%cr0, %0" : "=r" (cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r" (cr0 ^ CR0_WP));
    __asm__ volatile("mov %0, %%cr0" : : "r" (cr0));
}

static volatile uint32_t *word(uint32_t page)
{
    return (uint32_t *)(MAILBOX->start + page * BENCH_PAGE);
}

static void touch(uint32_t pages, uint32_t seed)
{
    uint32_t page = seed & (pages - 1);

    for (uint32_t i = 0; i < pages; i++) {
        volatile uint32_t *address = word(page);
        uint32_t ticks = bench_ticks();

        (void)*address;
        RESULTS[i] = (uint32_t)bench_ticks() - ticks;
        page = bench_next(page, pages, seed);
    }
}

static void write_each(uint32_t pages, uint32_t seed)
{
    uint32_t page = seed & (pages - 1);

    for (uint32_t i = 0; i < pages; i++) {
        *word(page) = i + 1;
        page = bench_next(page, pages, seed);
    }
}

/* Marsaglia, "Xorshift RNGs", 2003: 32 bits */
static void fill(uint32_t pages, uint32_t seed)
{
    volatile uint32_t *address = word(0);
    volatile uint32_t *end = word(pages);
    uint32_t value = seed | 1;

    while (address < end) {
        value ^= value << 13;
        value ^= value >> 17;
        value ^= value << 5;
        *address++ = value;
    }
}

/*
 * Each entry of LIST is the number of a page, and whether to write to it.
 * RESULTS[n] is the number of accesses that took [2^n, 2^(n+1)) ticks, and
 * RESULTS[32] and [33] the sum of ticks.
 */
static void replay(uint32_t length)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < 34; i++) {
        RESULTS[i] = 0;
    }
    for (uint32_t i = 0; i < length; i++) {
        uint32_t entry = LIST[i];
        volatile uint32_t *address = word(entry & ~LIST_WRITE);
        uint32_t ticks = bench_ticks();

        if (entry & LIST_WRITE) {
            *address = i;
        } else {
            (void)*address;
        }
        ticks = (uint32_t)bench_ticks() - ticks;
        sum += ticks;
        RESULTS[31 - __builtin_clz(ticks | 1)]++;
    }
    RESULTS[32] = sum;
    RESULTS[33] = sum >> 32;
}

static void run(uint32_t command)
{
    uint32_t pages = MAILBOX->pages, seed = MAILBOX->seed;
    uint64_t ticks;

    flush_tlb();
    ticks = bench_ticks();
    if (command == TOUCH) {
        touch(pages, seed);
    } else if (command == WRITE) {
        write_each(pages, seed);
    } else if (command == FILL) {
        fill(pages, seed);
    } else if (command == REPLAY) {
        replay(pages);
    }
    ticks = bench_ticks() - ticks;
    MAILBOX->ticks_low = ticks;
    MAILBOX->ticks_high = ticks >> 32;
}

__attribute__((used, noreturn)) static void serve(void)
{
    *LAPIC_LINT1 = LAPIC_NMI;
    MAILBOX->done = 1;
    for (;;) {
        uint32_t command = MAILBOX->command;

        if (command == IDLE) {
            /* An NMI just before this is lost: the host sends another */
            __asm__ volatile("hlt" : : : "memory");
            continue;
        }
        MAILBOX->command = IDLE;
        MAILBOX->started++;
        run(command);
        MAILBOX->done++;
    }
}
