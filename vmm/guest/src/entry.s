# Ring 0, whole. `entry.rs` says what it is; AT&T syntax.

.section .stub, "awx"
stub_start:

# --- Linux 64-bit boot protocol: long mode, identity map, rsi = boot_params, interrupts off
.code64
.global wisp_entry64
wisp_entry64:
    cli
    cld
    mov %rsi, %r12
    lea banner(%rip), %rsi
    mov $(banner_end - banner), %ecx
    mov $0x3f8, %edx
    rep outsb
    mov ${linux}, %edi
    mov %r12, %rsi
    jmp to_ring3

# --- PVH: 32-bit protected mode, no paging, ebx = hvm_start_info, interrupts off
.code32
.global wisp_entry32
wisp_entry32:
    cli
    cld
    mov $banner, %esi
    mov $(banner_end - banner), %ecx
    mov $0x3f8, %edx
    rep outsb
    mov $0x620, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000033, %eax           # PG, NE, ET, MP, PE
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $pvh64
.code64
pvh64:
    mov ${pvh}, %edi
    mov %ebx, %esi

# --- common: our own tables, then ring 3 for good
to_ring3:
    mov $pml4, %eax
    mov %rax, %cr3
    mov $0x620, %eax                # OSXMMEXCPT, OSFXSR, PAE
    mov %rax, %cr4
    mov $0x80000033, %eax
    mov %rax, %cr0
    lgdt gdt_pointer(%rip)
    lidt idt_pointer(%rip)
    mov $0x28, %eax
    ltr %ax
    lea stack0_top(%rip), %rsp
    pushq $0x1b                     # ss
    pushq $stack3_top - 8           # rsp, as after a call
    pushq $0x202                    # rflags: interrupts on
    pushq $0x23                     # cs
    pushq ${main}
    iretq

# --- services: ring 3 calls wisp_service with the number in eax; arguments in rdi or dx, rsi, rcx
.global wisp_service
wisp_service:
    ud2
    ret

ud_handler:
    cmpq $wisp_service, (%rsp)
    jne ud_crash
    addq $2, (%rsp)
    cmp $1, %eax
    je service_idle
    cmp $2, %eax
    je service_in8
    cmp $3, %eax
    je service_in16
    cmp $4, %eax
    je service_out8
    cmp $5, %eax
    je service_out16
    cmp $6, %eax
    je service_reset
    cmp $7, %eax
    je service_in32
    cmp $8, %eax
    je service_out32
    cld
    rep outsb                       # 0: rcx bytes from rsi to port dx
    iretq
service_idle:                       # 1: sleep unless an interrupt was taken since the count in edi was read
    cmp wisp_irq_total(%rip), %edi
    jne 1f
    sti
    hlt
    cli
1:  iretq
service_in8:                        # 2 to 5, 7 and 8: one port
    in %dx, %al
    iretq
service_in16:
    in %dx, %ax
    iretq
service_out8:
    mov %ecx, %eax
    out %al, %dx
    iretq
service_out16:
    mov %ecx, %eax
    out %ax, %dx
    iretq
service_in32:
    in %dx, %eax
    iretq
service_out32:
    mov %ecx, %eax
    out %eax, %dx
    iretq
service_reset:                      # 6: a triple fault, the last resort
    lidt null_pointer(%rip)
    ud2

# --- exceptions: ring 3 goes on in wisp_exception(vector, rip, error, address) and says what happened
df_handler:
    mov $8, %edi
    jmp crash
gp_handler:
    mov $13, %edi
    jmp crash
pf_handler:
    mov $14, %edi
crash:
    pop %rdx
    jmp 1f
de_handler:
    xor %edi, %edi
    xor %edx, %edx
    jmp 1f
ud_crash:
    mov $6, %edi
    xor %edx, %edx
1:  mov (%rsp), %rsi
    mov %cr2, %rcx
    movq ${exception}, (%rsp)
    movq $stack3_top - 8, 24(%rsp)
    iretq

# --- interrupts: count and acknowledge
irq_sci:
    incl wisp_irq_sci(%rip)
irq_device:
irq_timer:
    incl wisp_irq_total(%rip)
    push %rax
    mov $0xfee000b0, %eax
    movl $0, (%rax)
    pop %rax
irq_spurious:
    iretq

.balign 8
.global wisp_irq_total
wisp_irq_total: .long 0
.global wisp_irq_sci
wisp_irq_sci: .long 0

banner: .ascii "WISP-GUEST\r\n"
banner_end:

.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 ring 0 code
    .quad 0x00cf93000000ffff        # 0x10 ring 0 data
    .quad 0x00cff3000000ffff        # 0x18 ring 3 data
    .quad 0x00affb000000ffff        # 0x20 ring 3 code
    .word 103, tss - stub_start     # 0x28 task state: limit, base at 0x100000 and up
    .byte 0x10, 0x89, 0, 0
    .quad 0
gdt_end:
.balign 8
    .word 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 8
    .word 0
idt_pointer:
    .word idt_end - idt - 1
    .quad idt
.balign 8
null_pointer:
    .word 0
    .quad 0

.balign 8
    .long 0
tss:                                # rsp0 lies at offset 4, so this one is aligned
    .long 0
    .quad stack0_top
    .fill 90, 1, 0
    .word 104

# A gate's address is split in two; the stub starts at 0x100000 and stays below 64 KiB.
.macro gate handler
    .word \handler - stub_start, 0x08
    .byte 0, 0x8e
    .word 0x0010
    .quad 0
.endm
.macro nothing
    .quad 0, 0
.endm
.balign 16
idt:
    gate de_handler                 # 0
    .rept 5
    nothing
    .endr
    gate ud_handler                 # 6
    nothing
    gate df_handler                 # 8
    .rept 4
    nothing
    .endr
    gate gp_handler                 # 13
    gate pf_handler                 # 14
    .rept 0x30 - 15
    nothing
    .endr
    gate irq_device                 # 0x30
    gate irq_sci                    # 0x31
    gate irq_timer                  # 0x32
    .rept 0x3f - 0x33
    nothing
    .endr
    gate irq_spurious               # 0x3f
idt_end:

# --- page tables: all of the first 4 GiB onto itself, 2 MiB a page, open to ring 3; the top GiB uncached
.section .data.tables, "aw"
.balign 4096
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
.global wisp_pdpt
wisp_pdpt:
pdpt:
    .quad pd + 0x27, pd + 0x1027, pd + 0x2027, pd + 0x3027
    .fill 508, 8, 0
pd:
    .set page, 0
    .rept 3 * 512
    .quad page + 0xe7
    .set page, page + 0x200000
    .endr
    .rept 512
    .quad page + 0xff
    .set page, page + 0x200000
    .endr

.section .bss.stacks, "aw", @nobits
.balign 16
    .skip {stack0}
stack0_top:
    .skip {stack3}
stack3_top:

# --- the PVH note
.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18                  # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad wisp_entry32
