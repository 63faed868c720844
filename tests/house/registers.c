/* Writes what is in the registers (all but the stack pointer) when a program begins, as 64-bit words, and exits. */
#ifdef __x86_64__
__asm__(".globl _start\n_start:\n"
        "push %rax; push %rbx; push %rcx; push %rdx; push %rsi; push %rdi; push %rbp; push %r8; push %r9; push %r10\n"
        "push %r11; push %r12; push %r13; push %r14; push %r15\n"
        "mov $1, %eax; mov $1, %edi; mov %rsp, %rsi; mov $120, %edx; syscall\n"
        "mov $60, %eax; xor %edi, %edi; syscall\n");
#else
__asm__(".globl _start\n_start:\n"
        "stp x0, x1, [sp, #-16]!; stp x2, x3, [sp, #-16]!; stp x4, x5, [sp, #-16]!; stp x6, x7, [sp, #-16]!\n"
        "stp x8, x9, [sp, #-16]!; stp x10, x11, [sp, #-16]!; stp x12, x13, [sp, #-16]!; stp x14, x15, [sp, #-16]!\n"
        "stp x16, x17, [sp, #-16]!; stp x18, x19, [sp, #-16]!; stp x20, x21, [sp, #-16]!; stp x22, x23, [sp, #-16]!\n"
        "stp x24, x25, [sp, #-16]!; stp x26, x27, [sp, #-16]!; stp x28, x29, [sp, #-16]!; stp x30, xzr, [sp, #-16]!\n"
        "mov x8, #64; mov x0, #1; mov x1, sp; mov x2, #256; svc #0\n"
        "mov x8, #93; mov x0, #0; svc #0\n");
#endif
