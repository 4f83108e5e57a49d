/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hot path, inline: wanted() → wait_begin() / wait_end(), acquired() / released().
 *
 * Order in every program: compare the process first, look at `active`, and only then work.
 */
#ifndef CORE_BPF_H
#define CORE_BPF_H

#include "compat.bpf.h"
#include "ustack.bpf.h"

static __always_inline bool wanted(__u32 tgid)
{
	if (cfg.filter == FILTER_ONE) {
		if (tgid != cfg.target_tgid)
			return false;
	} else if (cfg.filter == FILTER_SET) {
		if (!bpf_map_lookup_elem(&targets, &tgid))
			return false;
	} else if (tgid == cfg.self_tgid) {
		return false;
	}
	return active;
}

/* A program that waits in line for a bucket of our own maps would report that as contention. */
static __always_inline void enter(struct counters *c)
{
	__sync_fetch_and_add(&c->busy, 1);
}

static __always_inline void leave(struct counters *c)
{
	__sync_fetch_and_add(&c->busy, -1);
}

static __always_inline __u32 hist_bucket(__u64 ns)
{
	__u32 exp = 0;
	__u64 v = ns;

	if (ns < (1ULL << HIST_MIN_EXP))
		return ns >> (HIST_MIN_EXP - HIST_SUB_BITS);
	if (ns >= (1ULL << HIST_MAX_EXP))
		return HIST_BUCKETS - 1;
	/* log2 without a loop: BPF has no instruction for it. */
	if (v >= 1ULL << 32) {
		exp += 32;
		v >>= 32;
	}
	if (v >= 1 << 16) {
		exp += 16;
		v >>= 16;
	}
	if (v >= 1 << 8) {
		exp += 8;
		v >>= 8;
	}
	if (v >= 1 << 4) {
		exp += 4;
		v >>= 4;
	}
	if (v >= 1 << 2) {
		exp += 2;
		v >>= 2;
	}
	if (v >= 1 << 1)
		exp += 1;
	return (1 << HIST_SUB_BITS) + ((exp - HIST_MIN_EXP) << HIST_SUB_BITS) +
	       ((ns >> (exp - HIST_SUB_BITS)) & ((1 << HIST_SUB_BITS) - 1));
}

/*
 * Raises *max to value. Without compare-and-exchange, which BPF has from 5.12 on: a second writer
 * between check and store can win with a smaller value, so each writer looks again. Two waits on
 * one site would have to end within nanoseconds of each other; user space also raises the maximum
 * to the lower edge of the highest histogram bucket, which bounds the error by 1/16.
 */
static __always_inline void raise_max(volatile __u64 *max, __u64 value)
{
	if (value > *max)
		*max = value;
	if (value > *max)
		*max = value;
}

static __always_inline struct lock_stats *lock_stats_of(struct counters *c,
							const struct lock_key *key)
{
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, key);

	if (stats)
		return stats;
	bpf_map_update_elem(&locks, key, &zero_lock_stats, BPF_NOEXIST);
	stats = bpf_map_lookup_elem(&locks, key);
	if (!stats)
		c->lost[LOSS_LOCKS_MAP_FULL]++;
	return stats;
}

/* A wait ended; `aborted`: without the lock. */
static __always_inline void account(struct counters *c, const struct site_key *site, __u64 ns,
				    bool aborted)
{
	static const struct site_stats zero = {};
	struct site_stats *stats = bpf_map_lookup_elem(&sites, site);

	if (!stats) {
		bpf_map_update_elem(&sites, site, &zero, BPF_NOEXIST);
		stats = bpf_map_lookup_elem(&sites, site);
		if (!stats) {
			c->lost[LOSS_SITES_MAP_FULL]++;
			return;
		}
	}
	if (aborted) {
		__sync_fetch_and_add(&stats->aborted, 1);
		__sync_fetch_and_add(&stats->aborted_total_ns, ns);
		return;
	}
	__sync_fetch_and_add(&stats->contended, 1);
	__sync_fetch_and_add(&stats->wait_total_ns, ns);
	raise_max(&stats->wait_max_ns, ns);
	raise_max(&stats->wait_min_inverted, ~ns);

	struct lock_stats *lock = lock_stats_of(c, &site->lock);
	__u32 bucket = hist_bucket(ns);

	if (lock && bucket < HIST_BUCKETS)
		__sync_fetch_and_add(&lock->hist[bucket], 1);
}

static __always_inline void fill_site(void *ctx, struct counters *c, struct site_key *site,
				      __u64 addr, __u32 kind, __u32 tgid, __u32 slot)
{
	bool user_lock = kind == KIND_FUTEX || kind == KIND_FUTEX_PI;

	site->lock.addr = addr;
	site->lock.tgid = user_lock ? tgid : 0;
	site->lock.kind = kind;
	site->tgid = tgid;
	site->unused = 0;
	/* The kernel side of a futex wait is the same for everyone: do not pay for it. */
	site->kernel_stack = user_lock ? STACK_NOT_TAKEN : kernel_stack(ctx, c, slot);
	site->user_stack = user_stack(ctx, c, tgid, slot);
}

/* A sleeping wait begins: mutex, rwsem, futex. */
static __always_inline int wait_begin(void *ctx, __u64 addr, __u32 kind, __u32 wait_class)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct wait_key key = { .tid = id, .wait_class = wait_class };
	struct wait *old, new;
	struct counters *c;

	if (!wanted(id >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	old = bpf_map_lookup_elem(&waits, &key);
	if (old) {
		/* The mutex tracepoint says begin again when a spinning waiter goes to sleep. */
		if (old->site.lock.addr == addr && old->site.lock.kind == kind)
			goto out;
		c->lost[LOSS_UNPAIRED_BEGIN]++;
	}
	c->events[WAITS_BEGUN]++;
	/* Before the stacks: what they cost is part of what the waiter waited. */
	new.begin_ns = bpf_ktime_get_ns();
	fill_site(ctx, c, &new.site, addr, kind, id >> 32, SCRATCH_TASK);
	bpf_get_current_comm(new.comm, sizeof(new.comm));
	if (bpf_map_update_elem(&waits, &key, &new, BPF_ANY))
		c->lost[LOSS_WAITS_MAP_FULL]++;
out:
	leave(c);
	return 0;
}

enum outcome {
	ACQUIRED,
	ABORTED,
	DID_NOT_WAIT,
};

/* `addr` 0: the caller does not know it (return probes). */
static __always_inline int wait_end(__u64 addr, enum outcome outcome, __u32 wait_class)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct wait_key key = { .tid = id, .wait_class = wait_class };
	struct counters *c;
	struct wait *wait;

	if (!wanted(id >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	wait = bpf_map_lookup_elem(&waits, &key);
	if (!wait || (addr && wait->site.lock.addr != addr)) {
		c->lost[LOSS_UNPAIRED_END]++;
		goto out;
	}
	if (outcome == DID_NOT_WAIT) {
		c->events[FUTEX_RETRIES]++;
	} else {
		c->events[WAITS_ENDED]++;
		account(c, &wait->site, bpf_ktime_get_ns() - wait->begin_ns, outcome == ABORTED);
	}
	bpf_map_delete_elem(&waits, &key);
out:
	leave(c);
	return 0;
}

/* An error return, -4095..-1, of a function that says int. */
static __always_inline enum outcome outcome_of_int(__u64 ret)
{
	return (__s32)ret < 0 ? ABORTED : ACQUIRED;
}

/* … and of one that says pointer (ERR_PTR). */
static __always_inline enum outcome outcome_of_pointer(__u64 ret)
{
	return ret >= (__u64)-4095 ? ABORTED : ACQUIRED;
}

/*
 * LOCK_FN(fn, kind, nargs, outcome): a slow path, entered when the lock is contended, left with
 * the lock or with an error. One line per function makes its four programs; the plan picks.
 */
#define LOCK_FN(fn, kind, nargs, outcome) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return wait_begin(ctx, ctx[0], kind, WAIT_KERNEL); \
	} \
	SEC("?fexit/" #fn) \
	int fn##__fexit(__u64 *ctx) \
	{ \
		return wait_end(ctx[0], outcome(fexit_return(ctx, nargs)), WAIT_KERNEL); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return wait_begin(ctx, PT_REGS_PARM1(ctx), kind, WAIT_KERNEL); \
	} \
	SEC("?kretprobe/" #fn) \
	int fn##__kretprobe(struct pt_regs *ctx) \
	{ \
		return wait_end(0, outcome(PT_REGS_RC(ctx)), WAIT_KERNEL); \
	}

#define outcome_of_void(ret) ACQUIRED

#endif
