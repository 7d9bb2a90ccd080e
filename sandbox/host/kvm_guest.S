# A minimal guest, run instead of a BIOS, that shows whether KVM runs guests: see kvm.py.
#
# It does what a kernel does in its first milliseconds: protected mode, PAE paging, long mode, an interrupt
# descriptor table, an invalid opcode, a page fault that is handled, user mode and back, a periodic local APIC timer, and
# then 200 million rounds of a loop with that timer ticking. A processor does that in about 0.1 s; a KVM that emulates the
# guest's kernel code instruction by instruction would need minutes.
# It ends by writing OUTCOME to QEMU's isa-debug-exit device; anything unexpected is a triple fault.
#
# Built by: as kvm_guest.S -o kvm_guest.o && ld -Ttext 0 --oformat binary kvm_guest.o. The bytes are kept in kvm.py,
# because a host that is being set up has no assembler; a test compares the two.
# Sources: Intel SDM volume 3, chapters 4 (paging), 6 (interrupts), 8 (tasks), 10 (APIC), 10.8.5 (long mode).

    .set OUTCOME, 0x2a
    .set DEBUG_EXIT, 0xf4
    .set ROUNDS, 200000000
    .set ROM, 0xf0000                # the ROM's last 64 KiB, below 1 MiB
    .set PML4, 0x1000
    .set PDPT, 0x2000
    .set LOW_PD, 0x3000              # maps 0 to 1 GiB
    .set HIGH_PD, 0x4000             # maps 3 to 4 GiB
    .set IDT, 0x5000
    .set GDT, 0x6000
    .set TSS, 0x7000                 # rsp0 is at offset 4
    .set KERNEL_STACK, 0x9000
    .set USER_STACK, 0xa000
    .set UNMAPPED, 0x200000
    .set APIC, 0xfee00000

    .section .text
    .code16
    .globl _start
_start:
    cli
    lgdtl %cs:(gdt_in_rom - _start)
    movl %cr0, %eax
    orb $1, %al                      # PE
    movl %eax, %cr0
    ljmpl $0x08, $(ROM + start32 - _start)

    .code32
start32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    cld
    xorl %eax, %eax
    movl $PML4, %edi
    movl $0x2400, %ecx               # 0x1000 to 0xa000, zeroed
    rep stosl
    movl $(PDPT + 7), PML4           # present, writable, user
    movl $(LOW_PD + 7), PDPT
    movl $(HIGH_PD + 3), PDPT + 3 * 8
    movl $0x87, LOW_PD               # the first 2 MiB as one page, for user mode too
    movl $(APIC + 0x9b), HIGH_PD + 503 * 8   # 2 MiB, uncached
    movl %cr4, %eax
    orl $0x20, %eax                  # PAE
    movl %eax, %cr4
    movl $PML4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx           # EFER
    rdmsr
    orl $0x100, %eax                 # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax            # PG
    movl %eax, %cr0
    ljmpl $0x18, $(ROM + start64 - _start)

    .code64
start64:
    movl $KERNEL_STACK, %esp
    movl $(ROM + gdt - _start), %esi # ltr marks the descriptor as busy, so the table must be in RAM
    movl $GDT, %edi
    movl $(gdt_end - gdt), %ecx
    rep movsb
    lgdt ROM + gdt_in_ram - _start
    movl $KERNEL_STACK, TSS + 4
    movw $0x30, %ax
    ltr %ax
    movl $(ROM + on_invalid_opcode - _start), %eax
    movl $(IDT + 6 * 16), %edi
    call set_gate
    movl $(ROM + on_page_fault - _start), %eax
    movl $(IDT + 14 * 16), %edi
    call set_gate
    movl $(ROM + on_timer - _start), %eax
    movl $(IDT + 0x20 * 16), %edi
    call set_gate
    movl $(ROM + on_call - _start), %eax
    movl $(IDT + 0x80 * 16), %edi
    call set_gate
    orb $0x60, IDT + 0x80 * 16 + 5   # user mode may call it
    lidt ROM + idt_pointer - _start
    xorl %ebx, %ebx                  # one bit for each handler that ran

    ud2
    movl $0x12345678, UNMAPPED
    cmpl $0x12345678, UNMAPPED
    jne fail

    pushq $0x23                      # ss, rsp, rflags, cs, rip of user mode
    pushq $USER_STACK
    pushq $2
    pushq $0x2b
    pushq $(ROM + user - _start)
    iretq
user:
    int $0x80
    ud2
back:
    movb $0xff, %al                  # no interrupt from the two PICs
    outb %al, $0x21
    outb %al, $0xa1
    movl $APIC, %edi
    movl $0x1ff, 0xf0(%rdi)          # enabled
    movl $0x0b, 0x3e0(%rdi)          # divide by 1
    movl $0x20020, 0x320(%rdi)       # periodic, vector 0x20
    movl $1000000, 0x380(%rdi)       # about a millisecond
    movl $ROUNDS, %ecx
    sti
1:  decl %ecx
    jnz 1b
    cli
    cmpl $0x0f, %ebx
    jne fail
    movb $OUTCOME, %al
    outb %al, $DEBUG_EXIT
fail:
    lidt ROM + no_idt - _start       # the next fault is a triple fault
    ud2

set_gate:                            # rdi: the gate, eax: its handler (below 4 GiB)
    movw %ax, (%rdi)
    movw $0x18, 2(%rdi)
    movw $0x8e00, 4(%rdi)            # present, interrupt gate
    shrl $16, %eax
    movw %ax, 6(%rdi)
    ret

on_invalid_opcode:
    orb $1, %bl
    addq $2, (%rsp)                  # past ud2
    iretq

on_page_fault:
    orb $2, %bl
    movl $(UNMAPPED + 0x83), LOW_PD + 8
    addq $8, %rsp                    # the error code
    iretq

on_call:
    orb $4, %bl
    movl $KERNEL_STACK, %esp
    jmp back

on_timer:
    orb $8, %bl
    movl $0, 0xb0(%rdi)              # end of interrupt
    iretq

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff         # 08: code, 32 bit
    .quad 0x00cf93000000ffff         # 10: data
    .quad 0x00af9b000000ffff         # 18: code, 64 bit
    .quad 0x00cff3000000ffff         # 20: data, user
    .quad 0x00affb000000ffff         # 28: code, 64 bit, user
    .quad 0x0000890000000067 + (TSS << 16)   # 30: task state
    .quad 0
gdt_end:
gdt_in_rom:
    .word gdt_end - gdt - 1
    .long ROM + gdt - _start
gdt_in_ram:
    .word gdt_end - gdt - 1
    .quad GDT
idt_pointer:
    .word 0x81 * 16 - 1
    .quad IDT
no_idt:
    .word 0
    .quad 0
