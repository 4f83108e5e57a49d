// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Where threads are in user space that wait in a futex call already when a profile begins: no hook saw
 * them enter. /proc/PID/task/TID/syscall says the same, except for the frame pointer, without which
 * stacks through code that keeps one can not be walked.
 *
 * An object of its own, not linked with the others: read once, then unloaded; and it is of type TRACING,
 * which some kernels refuse to load.
 */
#include "compat.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* bpf_task_pt_regs(), 5.15. */
const volatile __u32 have_task_pt_regs = 0;
/* 0: every process. */
const volatile __u32 only_tgid = 0;
/* Only for its type, which the skeleton has of variables alone. */
const volatile struct blocked_registers layout = {};

/* include/linux/sched.h */
#define PF_KTHREAD 0x00200000

/* asm-generic/unistd.h; futex_waitv and futex_wait have one number on all architectures. */
#if defined(__TARGET_ARCH_x86)
#define NR_FUTEX 202
#define SYSCALL_NR(regs) BPF_CORE_READ(regs, orig_ax)
#else
#define NR_FUTEX 98
#define SYSCALL_NR(regs) BPF_CORE_READ(regs, syscallno)
#endif
#define NR_FUTEX_WAITV 449
#define NR_FUTEX_WAIT 455

static __always_inline bool waits_in_futex(const struct pt_regs *regs)
{
	switch (SYSCALL_NR(regs)) {
	case NR_FUTEX:
		/* FUTEX_CMD_MASK: without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME. */
		switch (PT_REGS_PARM2_CORE_SYSCALL(regs) & 0x7f) {
		case 0:	 /* FUTEX_WAIT */
		case 6:	 /* FUTEX_LOCK_PI */
		case 9:	 /* FUTEX_WAIT_BITSET */
		case 11: /* FUTEX_WAIT_REQUEUE_PI */
		case 13: /* FUTEX_LOCK_PI2 */
			return true;
		}
		return false;
	case NR_FUTEX_WAITV:
	case NR_FUTEX_WAIT:
		return true;
	}
	return false;
}

SEC("iter/task")
int dump_blocked(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct blocked_registers record = {};
	const struct pt_regs *regs;

	/* NULL after the last one. */
	if (!task || task->flags & PF_KTHREAD)
		return 0;
	if (only_tgid && (__u32)task->tgid != only_tgid)
		return 0;
	regs = entry_registers(task, have_task_pt_regs);
	if (!waits_in_futex(regs))
		return 0;
	record.tgid = task->tgid;
	record.tid = task->pid;
	record.ip = PT_REGS_IP_CORE(regs);
	record.sp = PT_REGS_SP_CORE(regs);
	record.bp = PT_REGS_FP_CORE(regs);
	/* What does not fit is asked for again in the next read. */
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
