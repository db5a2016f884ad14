/*
 * A guest whose only job is to touch memory in a known pattern
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See guest-abi.h for what it does.  "make" in this directory turns it into
 * guest-image.h.
 *
 * It is entered in real mode, by the first CPU from the reset vector, by
 * the others at f000:0000 by a start-up IPI; that address is an alias of
 * the place it is linked for.  It goes to protected mode without paging
 * and stays there with interrupts off.  There is no stack: the pages in
 * use must be known exactly.
 *
 * In protected mode:
 *   %ebp  the CPU's block of the mailbox
 *   %ebx  completed rounds
 *   %esi  pages of this round that are left, minus one
 *   %edi  state of the pseudo-random sequence
 *   %eax  the page, then the address of the word
 */

#include "guest-abi.h"

#define FIELD(name) RWP_GUEST_##name(%ebp)

/* Intel SDM volume 3, "Advanced Programmable Interrupt Controller" */
#define LAPIC_ID        0xfee00020
#define LAPIC_ICR       0xfee00300
#define ICR_INIT_OTHERS 0x000c4500
#define ICR_SIPI_OTHERS 0x000c46f0      /* vector f0: start at f000:0000 */

#define SERIAL_DATA     0x3f8
#define SERIAL_STATUS   0x3fd
#define SERIAL_EMPTY    0x20

#define WAIT_LOOPS      100000

        /* %al to the serial port; changes %edx, and %ah */
        .macro  put_char
        mov     %al, %ah
        mov     $SERIAL_STATUS, %edx
1:      in      (%dx), %al
        test    $SERIAL_EMPTY, %al
        jz      1b
        mov     $SERIAL_DATA, %edx
        mov     %ah, %al
        out     %al, (%dx)
        .endm

        .macro  wait_a_moment
        mov     $WAIT_LOOPS, %ecx
1:      dec     %ecx
        jnz     1b
        .endm

        .text
        .code16
        .globl  _start
_start:
        cli
        data32 lgdt %cs:gdt_descriptor - _start
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        data32 ljmp $8, $protected

        .code32
protected:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     LAPIC_ID, %ebp
        shr     $24, %ebp
        imul    $RWP_GUEST_BLOCK, %ebp
        test    %ebp, %ebp
        jnz     alive

        /* The first CPU starts the others */
        movl    $ICR_INIT_OTHERS, LAPIC_ICR
        wait_a_moment
        movl    $ICR_SIPI_OTHERS, LAPIC_ICR
        wait_a_moment
        movl    $ICR_SIPI_OTHERS, LAPIC_ICR
        mov     $RWP_GUEST_SERIAL_READY, %al
        put_char

alive:
        add     $RWP_GUEST_MAILBOX, %ebp
        movl    $1, FIELD(ALIVE)

round:
        mov     FIELD(MODE), %eax
        mov     %eax, FIELD(ACK)
        test    %eax, %eax
        jnz     begin_round
        pause
        jmp     round

begin_round:
        mov     FIELD(ROUNDS), %ebx
        mov     FIELD(MASK), %esi
        mov     %ebx, %edi

        /*
         * A linear congruential sequence goes through all residues modulo
         * a power of two if the multiplier is 1 modulo 4 and the increment
         * odd (Hull and Dobell, 1962).  Another increment, another order.
         */
next_page:
        imul    $1664525, %edi, %edi
        lea     1(%edi, %ebx, 2), %edi
        mov     %edi, %eax
        and     FIELD(MASK), %eax
        cmp     FIELD(PAGES), %eax
        jae     page_done
        imul    $RWP_GUEST_HASH_1, %eax, %ecx
        xor     FIELD(SEED), %ecx
        imul    $RWP_GUEST_HASH_2, %ecx, %ecx
        shr     $24, %ecx
        cmp     FIELD(DENSITY), %ecx
        jae     page_done

        shl     $12, %eax
        add     FIELD(START), %eax
        add     FIELD(OFFSET), %eax
        cmpl    $RWP_GUEST_COUNT, FIELD(ACK)
        jae     compare
        mov     (%eax), %ecx
        cmpl    $RWP_GUEST_WRITE, FIELD(ACK)
        jne     page_done
        mov     %ecx, (%eax)
        jmp     page_done

compare:
        xor     %ecx, %ecx
        xor     %edx, %edx
        test    %ebx, %ebx
        jz      2f
        imul    $RWP_GUEST_HASH_1, %eax, %ecx
        add     %ebx, %ecx
        mov     %ecx, %edx
        not     %edx
2:      cmp     %ecx, (%eax)
        jne     bad
        add     $2048, %eax
        xchg    %ecx, %edx
        cmp     %ecx, (%eax)
        jne     bad
        sub     $2048, %eax

        cmpl    $RWP_GUEST_VERIFY, FIELD(ACK)
        je      page_done
        imul    $RWP_GUEST_HASH_1, %eax, %ecx
        lea     1(%ecx, %ebx), %ecx
        mov     %ecx, (%eax)
        not     %ecx
        mov     %ecx, 2048(%eax)

page_done:
        dec     %esi
        jns     next_page

        cmpl    $RWP_GUEST_VERIFY, FIELD(ACK)
        je      verified
        inc     %ebx
        mov     %ebx, FIELD(ROUNDS)
        test    $63, %bl
        jnz     round
        mov     $RWP_GUEST_SERIAL_ROUNDS, %al
        put_char
        jmp     round

verified:
        incl    FIELD(VERIFIED)
2:      pause
        cmpl    $RWP_GUEST_VERIFY, FIELD(MODE)
        je      2b
        jmp     round

        /* At %eax should be %ecx */
bad:
        mov     %eax, FIELD(BAD_ADDRESS)
        mov     %ecx, FIELD(BAD_EXPECTED)
        mov     (%eax), %edx
        mov     %edx, FIELD(BAD_FOUND)
        movl    $1, FIELD(BAD)
        mov     %eax, %ebx
        mov     $RWP_GUEST_SERIAL_BAD, %al
        put_char

        mov     $8, %esi
hex_digit:
        rol     $4, %ebx
        mov     %ebx, %eax
        and     $15, %al
        add     $'0', %al
        cmp     $'9', %al
        jbe     2f
        add     $('a' - '9' - 1), %al
2:      put_char
        dec     %esi
        jnz     hex_digit
stop:
        hlt
        jmp     stop

        /* Flat segments, marked as accessed: this is ROM */
        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
gdt_descriptor:
        .word   gdt_descriptor - gdt - 1
        .long   gdt
