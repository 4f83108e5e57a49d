/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A lock's waiters as a queue, and who makes them wait: struct queue in lockprof_blame.h has the arithmetic
 * (shared facts, lock-semantics.md B.3 and B.4, has the quantities).
 *
 *	wait begins   queue_joins()    n + 1
 *	release       queue_release()  what accrued is the releasing thread's, charged to its stack by queue_charge()
 *	wait ends     queue_leaves()   n - 1; what accrued since the release is handoff
 *
 * A release that is not seen is noticed when the lock has another owner: what accrued is then charged to the old
 * one by the next best evidence.
 */
#ifndef QUEUE_BPF_H
#define QUEUE_BPF_H

#include "core.bpf.h"

/* Locks of these kinds have one holder, or readers of which the last one lets go of the lock. */
#define QUEUE_KINDS \
	(1U << KIND_MUTEX | 1U << KIND_RWSEM_READ | 1U << KIND_RWSEM_WRITE | 1U << KIND_RTMUTEX | \
	 1U << KIND_FUTEX | 1U << KIND_FUTEX_PI)

static __always_inline bool has_queue(__u32 kind)
{
	return QUEUE_KINDS & (1U << (kind & 31));
}

/* queue.bpf.c; global for the verifier's sake (stacks.bpf.c). `how`: QUEUE_HOW(kind, …). */
extern int queue_joins(__u64 addr, __u32 how, __u64 now, __u64 owner_tid, __u64 owner_task);
extern int queue_rejoins(__u64 addr, __u32 how, __u64 since_ns, __u64 owner_tid, __u64 owner_task);
extern int queue_leaves(__u64 addr, __u32 how, __u64 now);
extern int queue_has_stacks(__u32 place, __u64 kernel_stack, __u64 user_stack);
/* blame.bpf.c */
extern int queue_release(__u64 addr, __u32 kind);
extern int queue_charge(__u64 addr, __u32 kind, __u64 kernel_stack, __u64 user_stack);
extern int queue_charge_waker(__u64 addr, __u32 kind, __u64 now);
extern int charge_pending(__u64 addr, __u32 kind);
extern int count_pairs(__u64 addr, __u32 kind, __u32 place);
extern int count_chain(__u64 addr, __u32 kind, __u64 now);

/* No release of this lock goes unseen, whether or not somebody waits. */
#define QUEUE_SEES_ALL (1U << 10)
#define QUEUE_ABORTED (1U << 8)
/* Under a lock where no map may be changed. */
#define QUEUE_IN_PLACE (1U << 9)

/* Both sides of a reader-writer lock are one queue, at the write side's key. */
static __always_inline struct lock_key queue_key(__u64 addr, __u32 kind)
{
	struct lock_key key;

	key.addr = addr;
	key.tgid = is_user_lock(kind) ? bpf_get_current_pid_tgid() >> 32 : 0;
	key.kind = kind == KIND_RWSEM_READ ? KIND_RWSEM_WRITE : kind;
	return key;
}

static __always_inline __u64 queue_time(__u64 now)
{
	__u64 t = now - epoch_ns;

	/* A clock that is a little behind the one that took the epoch. */
	return t < QUEUE_LATEST_NS ? t : 0;
}

static __always_inline __u64 queue_unit(__u64 now)
{
	return QUEUE_UNIT - queue_time(now);
}

struct queue_sum {
	__u64 waiters;
	/* Waiter-time that is not charged yet; never below 0 here. */
	__u64 ns;
};

static __always_inline struct queue_sum sum_of(__u64 *of, __u64 now)
{
	__u64 value = *(volatile __u64 *)of + QUEUE_SLACK, unit = queue_unit(now);
	struct queue_sum sum;

	sum.waiters = value / unit;
	sum.ns = value % unit;
	sum.ns = sum.ns > QUEUE_SLACK ? sum.ns - QUEUE_SLACK : 0;
	return sum;
}

static __always_inline struct queue_sum queue_sum(struct queue *q, __u64 now)
{
	return sum_of(&q->value, now);
}

/*
 * Amounts are only ever added to and taken from, never set: two CPUs that do the same at once are then a little
 * above and a little below the truth, and the sum is right.
 */
static __always_inline void add_ns(__u64 *amount, __u64 ns)
{
	if (ns)
		__sync_fetch_and_add(amount, ns);
}

/* All that is there; 0 where another CPU took more than there was. */
static __always_inline __u64 take_all(__u64 *amount)
{
	__u64 ns = *(volatile __u64 *)amount;

	if ((__s64)ns <= 0)
		return 0;
	__sync_fetch_and_add(amount, -ns);
	return ns;
}

/* It is charged now. */
static __always_inline void queue_take(struct queue *q, __u64 ns)
{
	if (ns)
		__sync_fetch_and_add(&q->value, -ns);
}

/* Wall time until now, in which `waiters` waited. */
static __always_inline void count_wall(struct queue *q, __u64 waiters, __u64 now)
{
	__u64 ns = now - q->counted_ns;

	q->counted_ns = now;
	if (!waiters || (__s64)ns <= 0)
		return;
	if (q->state == QUEUE_HELD) {
		q->wanted_ns += ns;
		q->hold_wanted_ns += ns;
	} else {
		q->idle_ns += ns;
	}
}

static __always_inline bool same_key(const struct lock_key *a, const struct lock_key *b)
{
	return a->addr == b->addr && a->kind == b->kind && a->tgid == b->tgid;
}

static __always_inline struct watch *watch_of(struct counters *c, __u32 tid)
{
	struct watch *watch = bpf_map_lookup_elem(&watched, &tid);

	if (watch)
		return watch;
	bpf_map_update_elem(&watched, &tid, &zero_watch, BPF_NOEXIST);
	watch = bpf_map_lookup_elem(&watched, &tid);
	if (!watch)
		c->lost[LOSS_WATCHED_MAP_FULL]++;
	return watch;
}

static __always_inline struct watch *watch_of_current(struct counters *c)
{
	struct watch *watch = watch_of(c, bpf_get_current_pid_tgid());

	if (watch)
		watch->task = bpf_get_current_task();
	return watch;
}

/* sched.bpf.c says what a watched thread does from here on. */
static __always_inline bool is_watched(const struct watch *watch)
{
	return watch->held.addr || watch->wanted[PLACE_KERNEL].addr ||
	       watch->wanted[PLACE_FUTEX].addr;
}

static __always_inline void enter_state(struct watch *watch, __u32 state, __u64 now)
{
	__u32 old = watch->state;
	__u64 ns = now - watch->since_ns;

	watch->state = state;
	watch->since_ns = now;
	if (old >= WATCH_STATES || (__s64)ns <= 0)
		return;
	watch->state_ns[old] += ns;
	if (old == WATCH_WOKEN && state == WATCH_RUNNING)
		watch->woken_to_running_ns += ns;
}

#endif
