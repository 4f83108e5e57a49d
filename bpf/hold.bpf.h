/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * `--hold`: every acquire and release of exclusive locks and readers, without stacks, so that it
 * costs a few hundred instructions and not a few thousand.
 *
 * No hold is ever computed from a missing half: an exclusive lock that is acquired while its record
 * still stands had a release we missed (`lost_release`, the record starts anew); a release without
 * a record had an acquire before the profile or out of sight (`unmatched_release`).
 */
#ifndef HOLD_BPF_H
#define HOLD_BPF_H

#include "core.bpf.h"

/* holds.bpf.c; global for the verifier's sake (stacks.bpf.c). */
extern int hold_begins(__u64 addr, __u32 kind);
extern int hold_ends(__u64 addr, __u32 kind);

static __always_inline int acquired(__u64 addr, __u32 kind)
{
	if (wanted(bpf_get_current_pid_tgid() >> 32))
		hold_begins(addr, kind);
	return 0;
}

static __always_inline int released(__u64 addr, __u32 kind)
{
	if (wanted(bpf_get_current_pid_tgid() >> 32))
		hold_ends(addr, kind);
	return 0;
}

/* A kprobe knows the lock, its kretprobe the result: the lock waits here in between. */
static __always_inline int call_begins(__u64 addr, __u32 function)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct call_key key = { .tid = id, .function = function };
	struct counters *c;

	if (!wanted(id >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
	if (bpf_map_update_elem(&calls, &key, &addr, BPF_ANY))
		c->lost[LOSS_HELD_MAP_FULL]++;
	leave(c);
	return 0;
}

static __always_inline int call_ends(__u32 function, __u32 kind, bool got_it)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct call_key key = { .tid = id, .function = function };
	__u64 *stored, addr;

	if (!wanted(id >> 32))
		return 0;
	stored = bpf_map_lookup_elem(&calls, &key);
	if (!stored)
		return 0;
	addr = *stored;
	bpf_map_delete_elem(&calls, &key);
	return got_it ? acquired(addr, kind) : 0;
}

#define acquired_always(ret) true
#define acquired_if_zero(ret) ((__s32)(ret) == 0)
#define acquired_if_true(ret) ((__s32)(ret) != 0)

/* `number` tells the functions apart that one task may be inside of at once. */
#define ACQUIRE_FN(number, fn, kind, got_it) ACQUIRE_FN_OF(number, fn, kind, 1, got_it)

/* … of a function with `nargs` arguments. */
#define ACQUIRE_FN_OF(number, fn, kind, nargs, got_it) \
	SEC("?fexit/" #fn) \
	int fn##__fexit(__u64 *ctx) \
	{ \
		if (!(got_it(ctx[nargs]))) \
			return 0; \
		return acquired(plain_number(ctx[0]), kind); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return call_begins(PT_REGS_PARM1(ctx), number); \
	} \
	SEC("?kretprobe/" #fn) \
	int fn##__kretprobe(struct pt_regs *ctx) \
	{ \
		return call_ends(number, kind, got_it(PT_REGS_RC(ctx))); \
	}

/* Stamped at the entry of the release: the hold is short by the release's own body. */
#define RELEASE_FN(fn, kind) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return released(plain_number(ctx[0]), kind); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return released(PT_REGS_PARM1(ctx), kind); \
	}

#endif
