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

static __always_inline struct held_key held_key_of(__u64 addr, __u32 kind, __u32 tid)
{
	/* Field by field: a compound literal leaves what clang likes in the bytes of a key. */
	struct held_key key;

	key.addr = addr;
	key.tid = kind == KIND_RWSEM_READ ? tid : 0;
	key.kind = kind;
	return key;
}

static __always_inline int acquired(__u64 addr, __u32 kind)
{
	static const struct hold_stats zero = {};
	__u64 id = bpf_get_current_pid_tgid();
	struct held_key key = held_key_of(addr, kind, id);
	struct lock_key lock = { .addr = addr, .tgid = 0, .kind = kind };
	struct held new = { .depth = 1 };
	struct hold_stats *stats;
	struct counters *c;
	struct held *old;

	if (!wanted(id >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	stats = bpf_map_lookup_elem(&holds, &lock);
	if (!stats) {
		bpf_map_update_elem(&holds, &lock, &zero, BPF_NOEXIST);
		stats = bpf_map_lookup_elem(&holds, &lock);
	}
	if (!stats) {
		c->lost[LOSS_HOLDS_MAP_FULL]++;
		goto out;
	}
	__sync_fetch_and_add(&stats->acquired, 1);
	old = bpf_map_lookup_elem(&held, &key);
	if (old && kind == KIND_RWSEM_READ) {
		/* One task reads twice: its outermost hold is the one that keeps writers out. */
		old->depth++;
		goto out;
	}
	if (old)
		c->lost[LOSS_LOST_RELEASE]++;
	new.acquired_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&held, &key, &new, BPF_ANY))
		c->lost[LOSS_HELD_MAP_FULL]++;
out:
	leave(c);
	return 0;
}

static __always_inline int released(__u64 addr, __u32 kind)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct held_key key = held_key_of(addr, kind, id);
	struct lock_key lock = { .addr = addr, .tgid = 0, .kind = kind };
	struct hold_stats *stats;
	struct counters *c;
	struct held *hold;
	__u64 ns;

	if (!wanted(id >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	hold = bpf_map_lookup_elem(&held, &key);
	if (!hold) {
		c->lost[LOSS_UNMATCHED_RELEASE]++;
		goto out;
	}
	if (hold->depth > 1) {
		hold->depth--;
		goto out;
	}
	ns = bpf_ktime_get_ns() - hold->acquired_ns;
	bpf_map_delete_elem(&held, &key);
	stats = bpf_map_lookup_elem(&holds, &lock);
	if (!stats)
		goto out;
	__sync_fetch_and_add(&stats->holds, 1);
	__sync_fetch_and_add(&stats->hold_total_ns, ns);
	raise_max(&stats->hold_max_ns, ns);
out:
	leave(c);
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
#define ACQUIRE_FN(number, fn, kind, got_it) \
	SEC("?fexit/" #fn) \
	int fn##__fexit(__u64 *ctx) \
	{ \
		if (!(got_it(ctx[1]))) \
			return 0; \
		return acquired(ctx[0], kind); \
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
		return released(ctx[0], kind); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return released(PT_REGS_PARM1(ctx), kind); \
	}

#endif
