/*
 * What the tests and the memory-touching guest have agreed on
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guest is firmware: it runs from ROM, without a stack, and touches
 * no guest memory but its mailbox and the pages that it is told to touch.
 * Both sides use one page of guest memory as the mailbox.  It has a block
 * for each CPU.  All fields are 32 bits, little endian, and start as 0.
 *
 * This file is read by the assembler, by the C compiler, and by
 * tests/integration: nothing but "#define NAME number" below.
 */
#ifndef RWP_GUEST_ABI_H
#define RWP_GUEST_ABI_H

#define RWP_GUEST_PAGE 4096

/* Guest physical address of the mailbox, and the size of a CPU's block */
#define RWP_GUEST_MAILBOX 0x1000
#define RWP_GUEST_BLOCK 64

/*
 * Written by the test.  Only the mode may be changed while it is not idle.
 *
 * A CPU works in rounds.  In a round it goes through the pages of its
 * region once, in pseudo-random order; between rounds it looks at the mode.
 */
#define RWP_GUEST_MODE 0
/* Address of the first page of the region */
#define RWP_GUEST_START 4
/* Number of pages of the region */
#define RWP_GUEST_PAGES 8
/* Lowest power of two that is at least the number of pages, minus one */
#define RWP_GUEST_MASK 12
/* Which pages of the region are left out, see below */
#define RWP_GUEST_SEED 16
#define RWP_GUEST_DENSITY 20
/* Where in a page the word is that is touched; below 2048, times of 4 */
#define RWP_GUEST_OFFSET 24

/* Written by the guest.  1: the CPU runs */
#define RWP_GUEST_ALIVE 28
/* The mode that is in effect */
#define RWP_GUEST_ACK 32
/* Completed rounds of all modes but VERIFY */
#define RWP_GUEST_ROUNDS 36
/* Completed rounds of VERIFY */
#define RWP_GUEST_VERIFIED 40
/* Not 0: a wrong word was found, and the CPU has stopped */
#define RWP_GUEST_BAD 44
/* Its address, what should have been there, and what was */
#define RWP_GUEST_BAD_ADDRESS 48
#define RWP_GUEST_BAD_EXPECTED 52
#define RWP_GUEST_BAD_FOUND 56

/* Modes.  IDLE: nothing but the mailbox is touched */
#define RWP_GUEST_IDLE 0
/* The word is read, or read and written back */
#define RWP_GUEST_READ 1
#define RWP_GUEST_WRITE 2
/*
 * The word, and one 2048 bytes behind it, are compared with what they must
 * be after ROUNDS rounds, and set to what they must be after one more.
 * After 0 rounds both are 0; after n rounds the first is
 * address * RWP_GUEST_HASH_1 + n, and the second its complement.
 */
#define RWP_GUEST_COUNT 3
/* Just compared, once; then the CPU waits for another mode */
#define RWP_GUEST_VERIFY 4

/*
 * Page i of the region is touched if
 *   (((i * RWP_GUEST_HASH_1) ^ SEED) * RWP_GUEST_HASH_2) >> 24 < DENSITY
 * in 32 bits, so with DENSITY 256 all are.
 */
#define RWP_GUEST_HASH_1 0x9e3779b1
#define RWP_GUEST_HASH_2 0x85ebca6b

/* On the first serial port: the first CPU runs; 64 rounds; a wrong word */
#define RWP_GUEST_SERIAL_READY 0x52
#define RWP_GUEST_SERIAL_ROUNDS 0x2e
#define RWP_GUEST_SERIAL_BAD 0x58

/*
 * The image is loaded at the start of the last 64 KiB below 4 GiB.  There
 * it must be reached from the reset vector by a jump.
 */
#define RWP_GUEST_ROM_SIZE 0x10000
#define RWP_GUEST_RESET_OFFSET 0xfff0

#endif
