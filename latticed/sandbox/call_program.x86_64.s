# The instructions of call_program.py for x86_64; a test assembles them and compares.
# rbx: the call; r15: the data. Behind the instructions: the address of the data, and where in it the first call is.
        .intel_syntax noprefix
        mov     r15, [rip + behind]
        mov     ebx, [rip + behind + 8]
        add     rbx, r15
next:   mov     eax, [rbx + 4]          # six arguments: each from the place that the call names
        mov     rdi, [r15 + rax]
        mov     eax, [rbx + 8]
        mov     rsi, [r15 + rax]
        mov     eax, [rbx + 12]
        mov     rdx, [r15 + rax]
        mov     eax, [rbx + 16]
        mov     r10, [r15 + rax]
        mov     eax, [rbx + 20]
        mov     r8, [r15 + rax]
        mov     eax, [rbx + 24]
        mov     r9, [r15 + rax]
        mov     eax, [rbx]
        test    eax, eax
        js      look
        syscall
store:  mov     ecx, [rbx + 28]         # 32 bits of the result, to the place that the call names
        mov     [r15 + rcx], eax
        test    rax, rax                # the call to go on with: after an error, 0, more than 0
        js      error
        je      zero
        mov     ebx, [rbx + 44]
        jmp     go_on
zero:   mov     ebx, [rbx + 40]
go_on:  add     rbx, r15
        jmp     next
look:   movsxd  rax, dword ptr [rdi]    # no call: the result is the word at the first argument
        jmp     store
error:  neg     rax
        cmp     rax, 63
        ja      end
        mov     rcx, [rbx + 48]         # is its bit set among the errors that may be?
        bt      rcx, rax
        jae     end
        mov     ebx, [rbx + 36]
        jmp     go_on
end:    mov     [r15 + 8], rax          # the record: FAILED lies there already, then the step, then the errno
        mov     ecx, [rbx + 32]
        mov     [r15 + 4], ecx
        mov     eax, 1                  # write(STATUS, record, 16)
        mov     edi, 0x65
        mov     rsi, r15
        mov     edx, 16
        syscall
        mov     eax, 231                # exit_group(127)
        mov     edi, 127
        syscall
behind:
