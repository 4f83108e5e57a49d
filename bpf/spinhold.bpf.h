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

/* Of any task: a run queue's lock is released by the next one. */
static __always_inline int spin_released(__u64 addr, __u32 kind)
{
	if (active)
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
		return spin_released(plain_number(ctx[0]), kind); \
	}

#endif
