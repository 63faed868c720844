// The instructions of call_program.py for aarch64; a test assembles them and compares.
// x20: the call; x19: the data. Behind the instructions: the address of the data, and where in it the first call is.
        ldr     x19, behind
        ldr     w20, behind + 8
        add     x20, x20, x19
next:   ldr     w9, [x20, #4]           // six arguments: each from the place that the call names
        ldr     x0, [x19, x9]
        ldr     w9, [x20, #8]
        ldr     x1, [x19, x9]
        ldr     w9, [x20, #12]
        ldr     x2, [x19, x9]
        ldr     w9, [x20, #16]
        ldr     x3, [x19, x9]
        ldr     w9, [x20, #20]
        ldr     x4, [x19, x9]
        ldr     w9, [x20, #24]
        ldr     x5, [x19, x9]
        ldr     w8, [x20]
        tbnz    w8, #31, look
        svc     #0
store:  ldr     w9, [x20, #28]          // 32 bits of the result, to the place that the call names
        str     w0, [x19, x9]
        tbnz    x0, #63, error          // the call to go on with: after an error, 0, more than 0
        cbz     x0, zero
        ldr     w9, [x20, #44]
        b       go_on
zero:   ldr     w9, [x20, #40]
go_on:  add     x20, x19, x9
        b       next
look:   ldrsw   x0, [x0]                // no call: the result is the word at the first argument
        b       store
error:  neg     x0, x0
        cmp     x0, #63
        b.hi    end
        ldr     x9, [x20, #48]          // is its bit set among the errors that may be?
        lsr     x9, x9, x0
        tbz     w9, #0, end
        ldr     w9, [x20, #36]
        b       go_on
end:    str     x0, [x19, #8]           // the record: FAILED lies there already, then the step, then the errno
        ldr     w9, [x20, #32]
        str     w9, [x19, #4]
        mov     x0, #0x65               // write(STATUS, record, 16)
        mov     x1, x19
        mov     x2, #16
        mov     x8, #64
        svc     #0
        mov     x0, #127                // exit_group(127)
        mov     x8, #94
        svc     #0
behind:
