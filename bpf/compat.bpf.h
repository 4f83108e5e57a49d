/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every difference between kernels and architectures, each with its version and reason. */
#ifndef COMPAT_BPF_H
#define COMPAT_BPF_H

#include "maps.bpf.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/*
 * An argument of an fentry program as a plain number. The verifier takes it for a typed pointer, with
 * which it allows no arithmetic, nor to pass it to a function that takes numbers; swapping the bytes
 * twice makes it forget. Nothing is read through these.
 */
static __always_inline __u64 plain_number(__u64 argument)
{
	asm volatile("%0 = be64 %0\n%0 = be64 %0" : "+r"(argument));
	return argument;
}

/*
 * The return value of a function in its fexit program is behind the arguments, and how many those
 * are changed: rwsem_down_read_slowpath got `count` in 5.11 (c8fe8b056438), futex_wake got `pop`
 * in 7.3. bpf_get_func_ret() would do, but came with 5.17. The count comes from BTF; the barriers
 * keep clang from merging the loads into one with a variable offset, which is no context access.
 */
static __always_inline __u64 fexit_return(const __u64 *ctx, __u32 nargs)
{
	__u64 value = 0;

	if (nargs == 1) {
		value = ctx[1];
		barrier_var(value);
	} else if (nargs == 2) {
		value = ctx[2];
		barrier_var(value);
	} else if (nargs == 3) {
		value = ctx[3];
		barrier_var(value);
	} else if (nargs == 4) {
		value = ctx[4];
		barrier_var(value);
	} else if (nargs == 5) {
		value = ctx[5];
		barrier_var(value);
	}
	return value;
}

/* A system call, by the registers saved at its entry. */
struct syscall {
	__u64 args[5];
	__u64 sp;
	__u32 nr;
	/* Through the 32-bit entry, whose numbers are another table. */
	__u32 compat;
};

static __always_inline void read_syscall(const struct pt_regs *regs, struct syscall *call)
{
#if defined(__TARGET_ARCH_x86)
	/* TS_COMPAT of arch/x86/include/asm/thread_info.h; a 64-bit program's int $0x80 too. */
	const struct task_struct *task = (void *)bpf_get_current_task();

	call->compat = (BPF_CORE_READ(task, thread_info.status) & 0x2) != 0;
	call->nr = BPF_CORE_READ(regs, orig_ax);
	call->sp = BPF_CORE_READ(regs, sp);
	call->args[2] = BPF_CORE_READ(regs, dx);
	if (call->compat) {
		call->args[0] = (__u32)BPF_CORE_READ(regs, bx);
		call->args[1] = (__u32)BPF_CORE_READ(regs, cx);
		call->args[2] = (__u32)call->args[2];
		call->args[3] = (__u32)BPF_CORE_READ(regs, si);
		call->args[4] = (__u32)BPF_CORE_READ(regs, di);
	} else {
		call->args[0] = BPF_CORE_READ(regs, di);
		call->args[1] = BPF_CORE_READ(regs, si);
		call->args[3] = BPF_CORE_READ(regs, r10);
		call->args[4] = BPF_CORE_READ(regs, r8);
	}
#elif defined(__TARGET_ARCH_arm64)
	/* PSR_MODE32_BIT of arch/arm64/include/uapi/asm/ptrace.h */
	call->compat = (BPF_CORE_READ(regs, pstate) & 0x10) != 0;
	call->nr = BPF_CORE_READ(regs, syscallno);
	call->sp = BPF_CORE_READ(regs, sp);
	for (int i = 0; i < 5; i++)
		call->args[i] = BPF_CORE_READ(regs, regs[i]);
#endif
}

/* Where thread-local storage ends; 0: unknown. */
static __always_inline __u64 thread_pointer(void)
{
#if defined(__TARGET_ARCH_x86)
	const struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, thread.fsbase);
#else
	return 0;
#endif
}

/*
 * What a task's registers were when it entered the kernel; any task, not only the current one.
 *
 * By hand before 5.15: they are the uppermost thing on the kernel stack (THREAD_SIZE, 16 KB). Only
 * there, for with CONFIG_X86_FRED (6.9) 16 bytes are left free above them.
 */
static __always_inline const struct pt_regs *entry_registers(struct task_struct *task,
							     bool have_task_pt_regs)
{
	if (have_task_pt_regs)
		return (const struct pt_regs *)bpf_task_pt_regs(task);
#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(task, stack) + 16384 - bpf_core_type_size(struct pt_regs);
#else
	return 0;
#endif
}

/* Of the current task, which is in the kernel. */
static __always_inline const struct pt_regs *saved_registers(void)
{
	if (cfg.have_task_pt_regs)
		return (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	return entry_registers((void *)bpf_get_current_task(), false);
}

/*
 * Where user space was when it entered the kernel; false: it never was there. In every context: what
 * interrupts a task leaves these registers alone.
 */
static __always_inline bool user_registers(__u64 *ip, __u64 *sp, __u64 *bp)
{
#if defined(__TARGET_ARCH_x86)
	if (cfg.have_task_pt_regs) {
		const struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());

		*ip = regs->ip;
		*sp = regs->sp;
		*bp = regs->bp;
		/* Any 64-bit code segment of user space; 32-bit programs have no table. */
		return (regs->cs & 3) == 3;
	}
	const struct pt_regs *regs = saved_registers();

	*ip = BPF_CORE_READ(regs, ip);
	*sp = BPF_CORE_READ(regs, sp);
	*bp = BPF_CORE_READ(regs, bp);
	return (BPF_CORE_READ(regs, cs) & 3) == 3;
#else
	/* Rows are made for x86-64 only (src/unwind); elsewhere stacks are by frame pointers. */
	return false;
#endif
}

#endif
