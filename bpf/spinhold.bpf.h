/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * `--hold=spinlock,rwlock`: every acquire and release of the locks that spin.
 *
 * What a CPU holds is a list of that CPU, searched from the top: a release out of order is normal
 * (hand-over-hand, double_rq_lock), and a run queue's lock is released by the next task, on the same
 * CPU. A lock that spins can not change its CPU.
 */
#ifndef SPINHOLD_BPF_H
#define SPINHOLD_BPF_H

#include "spin.bpf.h"

/* spinholds.bpf.c; global for the verifier's sake (stacks.bpf.c). */
extern int spin_hold_begins(__u64 addr, __u32 kind);
extern int spin_hold_ends(__u64 addr, __u32 kind);

static __always_inline int spin_acquired(__u64 addr, __u32 kind)
{
	if (wanted(bpf_get_current_pid_tgid() >> 32))
		spin_hold_begins(addr, kind);
	return 0;
}

/* A release that somebody waits for is charged with that. */
static __always_inline void spin_release_costs(void *ctx, __u64 addr)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct counters *c = this_cpu_counters();
	__u64 kernel, user = STACK_NOT_TAKEN;

	if (!c || c->busy)
		return;
	enter(c);
	if (spin_queue_release(addr)) {
		kernel = kernel_stack(ctx, c, SCRATCH_SPIN);
		/* Of other processes there is no unwind table. */
		if (is_target(tgid))
			user = user_stack(ctx, c, tgid, SCRATCH_SPIN);
		spin_queue_charge(addr, kernel, user);
	}
	leave(c);
}

/* Of any task: a run queue's lock is released by the next one. */
static __always_inline int spin_released(void *ctx, __u64 addr, __u32 kind)
{
	if (!active)
		return 0;
	if (cfg.spin_blame && kind == KIND_SPINLOCK)
		spin_release_costs(ctx, addr);
	spin_hold_ends(addr, kind);
	return 0;
}

#define spin_always(ctx) true
#define spin_if_true(ctx) ((__s32)(ctx)[1] != 0)

#define SPIN_ACQUIRE_FN(fn, kind, got_it) \
	SEC("?fexit/" #fn) \
	int fn##__fexit(__u64 *ctx) \
	{ \
		if (!got_it(ctx)) \
			return 0; \
		return spin_acquired(plain_number(ctx[0]), kind); \
	}

#define SPIN_RELEASE_FN(fn, kind) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return spin_released(ctx, plain_number(ctx[0]), kind); \
	}

#endif
