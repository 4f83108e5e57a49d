// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Who makes others wait for a spinlock, where its releases are seen (--hold=spinlock): queue.bpf.h in arrays, for
 * these run in the context of a spinlock. Global functions: see stacks.bpf.c.
 */
#include "queue.bpf.h"
#include "spintable.bpf.h"

/* 1 + where the waiters of a lock are counted; 0: nowhere. */
static __noinline __u32 spin_queue_place(__u64 addr, bool claim)
{
	__u64 hash = mix(0, addr), seen;

	for (__u32 i = 0; i < SPIN_PROBES; i++) {
		__u32 index = ((__u32)(hash >> 32) + i) & ((1U << cfg.spin_queues_log2) - 1);
		struct spin_queue *q = bpf_map_lookup_elem(&spin_queues, &index);

		if (!q)
			return 0;
		seen = *(volatile __u64 *)&q->addr;
		if (seen == addr)
			return index + 1;
		if (seen)
			continue;
		if (*(volatile __u64 *)&q->claims)
			continue;
		if (!claim)
			return 0;
		/* An addition orders memory on x86, and 5.10 has no compare-and-exchange. */
		__sync_fetch_and_add(&q->claims, 1);
		if (*(volatile __u64 *)&q->claims != 1)
			continue;
		*(volatile __u64 *)&q->addr = addr;
		return index + 1;
	}
	return 0;
}

static __always_inline struct spin_queue *spin_queue_at(__u32 place)
{
	__u32 index = place - 1;

	return place ? bpf_map_lookup_elem(&spin_queues, &index) : 0;
}

static __always_inline void spin_count_wall(struct spin_queue *q, __u64 waiters, __u64 now)
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

/* 1 + where this CPU's wait is counted. */
__noinline __u32 spin_queue_joins(__u64 addr, __u64 now)
{
	__u32 place = spin_queue_place(addr, true);
	struct spin_queue *q = spin_queue_at(place);
	struct counters *c = this_cpu_counters();
	struct queue_sum sum;

	if (!c)
		return 0;
	if (!q) {
		c->lost[LOSS_SPIN_QUEUES_FULL]++;
		return 0;
	}
	sum = sum_of(&q->value, now);
	if (sum.waiters) {
		spin_count_wall(q, sum.waiters, now);
	} else {
		q->state = QUEUE_HELD;
		q->counted_ns = now;
		q->hold_wanted_ns = 0;
	}
	__sync_fetch_and_add(&q->value, queue_unit(now));
	return place;
}

/* The lock is this CPU's now. */
__noinline int spin_queue_leaves(__u32 place, __u64 now)
{
	struct spin_queue *q = spin_queue_at(place);
	struct queue_sum sum;

	if (!q)
		return 0;
	sum = sum_of(&q->value, now);
	spin_count_wall(q, sum.waiters, now);
	if (sum.ns) {
		__sync_fetch_and_add(&q->value, -sum.ns);
		if (q->state == QUEUE_FREE)
			__sync_fetch_and_add(&q->handoff_ns, sum.ns);
		else
			__sync_fetch_and_add(&q->not_seen_ns, sum.ns);
	}
	if (q->state == QUEUE_FREE)
		q->handoffs++;
	q->state = QUEUE_HELD;
	q->hold_wanted_ns = 0;
	__sync_fetch_and_add(&q->value, -queue_unit(now));
	return 0;
}

/* As if it had never begun. */
__noinline int spin_queue_cancels(__u32 place, __u64 begin_ns)
{
	struct spin_queue *q = spin_queue_at(place);

	if (q)
		__sync_fetch_and_add(&q->value, -queue_unit(begin_ns));
	return 0;
}

/* This CPU is about to release a lock; 1: that cost others time, and the stack is wanted. */
__noinline int spin_queue_release(__u64 addr)
{
	__u32 place = spin_queue_place(addr, false), zero = 0;
	struct spin_helds *helds = bpf_map_lookup_elem(&spin_held, &zero);
	struct spin_queue *q = spin_queue_at(place);
	struct queue_sum sum;
	__u64 now;

	if (!q || !helds)
		return 0;
	now = bpf_ktime_get_ns();
	sum = sum_of(&q->value, now);
	if (!sum.waiters && !sum.ns)
		return 0;
	spin_count_wall(q, sum.waiters, now);
	if (sum.ns)
		__sync_fetch_and_add(&q->value, -sum.ns);
	helds->charge_place = place;
	helds->charge_ns = sum.ns;
	helds->charge_wanted_ns = q->hold_wanted_ns;
	q->hold_wanted_ns = 0;
	q->state = QUEUE_FREE;
	return 1;
}

/* … and this is where it does. */
__noinline int spin_queue_charge(__u64 addr, __u64 kernel_stack, __u64 user_stack)
{
	__u64 id = bpf_get_current_pid_tgid(), hash;
	struct counters *c = this_cpu_counters();
	struct spin_helds *helds;
	struct spin_queue *q;
	struct blame_key key;
	__u32 zero = 0;

	helds = bpf_map_lookup_elem(&spin_held, &zero);
	if (!c || !helds)
		return 0;
	key.lock.addr = addr;
	key.lock.tgid = 0;
	key.lock.kind = KIND_SPINLOCK;
	key.kernel_stack = kernel_stack;
	key.user_stack = user_stack;
	key.tid = id;
	key.evidence = HOLDER_RELEASED;
	hash = mix(mix(mix(hash_of_lock(&key.lock), kernel_stack), user_stack), key.tid);
	for (__u32 i = 0; i < SPIN_PROBES; i++) {
		__u32 index = spin_index(cfg.spin_blames_log2, hash, i);
		struct spin_blame *blame = bpf_map_lookup_elem(&spin_blames, &index);

		if (!blame)
			break;
		if (!blame->key.lock.kind) {
			blame->key = key;
			blame->stats.tgid = id >> 32;
			bpf_get_current_comm(blame->stats.comm, sizeof(blame->stats.comm));
		} else if (blame->key.lock.addr != addr ||
			   blame->key.kernel_stack != kernel_stack ||
			   blame->key.user_stack != user_stack || blame->key.tid != key.tid) {
			continue;
		}
		blame->stats.blamed_ns += helds->charge_ns;
		blame->stats.wanted_ns += helds->charge_wanted_ns;
		blame->stats.holds++;
		return 0;
	}
	c->lost[LOSS_SPIN_BLAMES_FULL]++;
	q = spin_queue_at(helds->charge_place);
	if (q)
		__sync_fetch_and_add(&q->no_room_ns, helds->charge_ns);
	return 0;
}
