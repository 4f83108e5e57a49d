/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Waits for locks that spin: spin_begin() / spin_end(), and the SPIN_FN macro.
 *
 * They run in the context of a raw spinlock, with interrupts off or in an interrupt, so all they touch
 * are arrays of which each CPU has a part of its own (kernels.md section 4 has what hangs otherwise).
 * Spin waits nest strictly on their CPU (task, softirq, hardirq, NMI): a stack per CPU, searched from
 * the top.
 *
 * `busy` is the guard: set by every program of ours while it works. A spin wait that begins meanwhile is
 * one for a lock of our own maps, or an interrupt's; it is counted and left alone. Nothing here runs
 * inside itself, so nothing needs an atomic instruction.
 */
#ifndef SPIN_BPF_H
#define SPIN_BPF_H

#include "core.bpf.h"

/* spins.bpf.c; global for the verifier's sake (stacks.bpf.c). */
extern int spin_prepare(__u64 addr, __u32 kind);
extern int spin_store(__u64 addr, __u32 kind, __u64 kernel_stack, __u64 user_stack, __u64 begin_ns);
extern int spin_end(__u64 addr);
extern int spin_finish(__u64 addr);
/* spinqueues.bpf.c */
extern __u32 spin_queue_joins(__u64 addr, __u64 now);
extern int spin_queue_leaves(__u32 place, __u64 now);
extern int spin_queue_cancels(__u32 place, __u64 begin_ns);
extern int spin_queue_release(__u64 addr);
extern int spin_queue_charge(__u64 addr, __u64 kernel_stack, __u64 user_stack);

static __always_inline int spin_begin(void *ctx, __u64 addr, __u32 kind)
{
	__u64 id = bpf_get_current_pid_tgid(), kernel, user, begin_ns;
	struct counters *c;

	if (!wanted(id >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	if (c->busy) {
		c->lost[LOSS_SPIN_IN_LOCKPROF]++;
		return 0;
	}
	enter(c);
	if (spin_prepare(addr, kind)) {
		/* All that is slow happens here, while the task has to wait anyway; the end holds the lock. */
		begin_ns = bpf_ktime_get_ns();
		kernel = kernel_stack(ctx, c, SCRATCH_SPIN);
		user = user_stack(ctx, c, id >> 32, SCRATCH_SPIN);
		spin_store(addr, kind, kernel, user, begin_ns);
	}
	leave(c);
	return 0;
}

/* The end of a slow path, where every begin has an end. */
static __always_inline int spin_call_ends(__u64 addr)
{
	if (wanted(bpf_get_current_pid_tgid() >> 32))
		spin_finish(addr);
	return 0;
}

#define SPIN_FN(fn, kind) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return spin_begin(ctx, plain_number(ctx[0]), kind); \
	} \
	SEC("?fexit/" #fn) \
	int fn##__fexit(__u64 *ctx) \
	{ \
		return spin_call_ends(plain_number(ctx[0])); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return spin_begin(ctx, PT_REGS_PARM1(ctx), kind); \
	} \
	SEC("?kretprobe/" #fn) \
	int fn##__kretprobe(struct pt_regs *ctx) \
	{ \
		return spin_call_ends(0); \
	}

#endif
