/* From the reset of a processor to amx_main: real mode, protected mode, long mode with the first 64 MiB mapped as they are, AVX-512 and tiles
 * switched on. Only what that takes, in the order that the processor's manual asks for. */
    .section .text.start, "ax"
    .balign 4096
    .globl amx_start
    .code16
amx_start: /* where the ROM jumps to, with CS = this address / 16; all that is addressed by it lies within 64 KiB */
    cli
    lgdtl %cs:(gdt_limit - amx_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $protected

gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00af9a000000ffff /* none, 32-bit code, data, 64-bit code */
gdt_limit: .word . - gdt - 1
    .long gdt

    .code32
protected:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0x40620, %eax /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
    movl %eax, %cr4
    movl $tables, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx /* EFER: LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000033, %eax /* PG, NE, ET, MP, PE */
    movl %eax, %cr0
    ljmpl $24, $long_mode

    .code64
long_mode:
    xorl %ecx, %ecx /* XCR0: x87, SSE, AVX; AVX-512; tiles */
    xorl %edx, %edx
    movl $0x600e7, %eax
    xsetbv
    movl $0xc0000100, %ecx /* FS: thread-local storage, which the emulation of tiles has, ends at a pointer to its own end */
    movl $thread, %eax
    movq %rax, (%rax)
    wrmsr
    movl $stack, %esp
    call amx_main

    /* One piece of 32 bytes for each exception: tells amx_fault the vector and where the processor put what it knows. */
    .balign 32
    .globl amx_vectors
amx_vectors:
    .set vector, 0
    .rept 32
    .balign 32
    movl $vector, %edi
    movq %rsp, %rsi
    andq $-16, %rsp
    call amx_fault
    .set vector, vector + 1
    .endr

    .data
    .balign 4096
tables: .quad directories + 3
    .balign 4096
directories: .quad directory + 3
    .balign 4096
directory: /* pages of 2 MiB */
    .set page, 0
    .rept 32
    .quad page + 0x83
    .set page, page + 0x200000
    .endr
    .balign 4096

    .bss
    .balign 64
    .space 65536
thread: .space 64
    .space 65536
stack:
    .section .note.GNU-stack, "", @progbits
