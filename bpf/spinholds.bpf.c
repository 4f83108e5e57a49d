// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Holds of locks that spin: spinhold.bpf.h says how. Global functions: see stacks.bpf.c. */
#include "spintable.bpf.h"

static __noinline __u32 spin_hold_place(__u64 addr, __u32 kind)
{
	struct lock_key key = { .addr = addr, .tgid = 0, .kind = kind };
	__u64 hash = hash_of_lock(&key);

	for (__u32 i = 0; i < SPIN_PROBES; i++) {
		__u32 index = spin_index(cfg.spin_holds_log2, hash, i);
		struct spin_hold *entry = bpf_map_lookup_elem(&spin_holds, &index);

		if (!entry)
			return 0;
		if (!entry->key.kind) {
			entry->key = key;
			entry->stats.slab_cache = slab_cache_of(addr);
			entry->stats.slab_offset = slab_offset_of(addr);
			return index + 1;
		}
		if (entry->key.addr == addr && entry->key.kind == kind)
			return index + 1;
	}
	return 0;
}

/* 1 + where in the list the lock is, from the top; 0: it is not. */
static __always_inline __u32 find_held(const struct spin_helds *helds, __u64 addr, __u32 kind)
{
	__u32 depth = helds->depth;

	for (int i = 0; i < MAX_SPIN_HELD; i++) {
		if (!depth)
			break;
		depth--;
		const struct spin_held *held = &helds->held[depth & (MAX_SPIN_HELD - 1)];
		if (held->addr == addr && held->kind == kind)
			return depth + 1;
	}
	return 0;
}

/* Takes an entry out; what was released before its turn goes with the top of the list. */
static __always_inline void forget_held(struct spin_helds *helds, __u32 place)
{
	helds->held[(place - 1) & (MAX_SPIN_HELD - 1)].addr = 0;
	for (int i = 0; i < MAX_SPIN_HELD; i++) {
		__u32 depth = helds->depth;

		if (!depth || helds->held[(depth - 1) & (MAX_SPIN_HELD - 1)].addr)
			break;
		helds->depth = depth - 1;
	}
}

__noinline int spin_hold_begins(__u64 addr, __u32 kind)
{
	struct spin_helds *helds;
	struct spin_hold *hold;
	struct spin_held *held;
	struct counters *c;
	__u32 zero = 0, place, index, depth;

	c = this_cpu_counters();
	if (!c)
		return 0;
	if (c->busy) {
		c->lost[LOSS_SPIN_IN_LOCKPROF]++;
		return 0;
	}
	helds = bpf_map_lookup_elem(&spin_held, &zero);
	if (!helds)
		return 0;
	enter(c);
	c->events[EVENTS_SEEN]++;
	place = spin_hold_place(addr, kind);
	index = place - 1;
	hold = bpf_map_lookup_elem(&spin_holds, &index);
	if (!hold) {
		c->lost[LOSS_SPIN_HOLDS_FULL]++;
		goto out;
	}
	hold->stats.acquired++;
	if (kind != KIND_RWLOCK_READ) {
		__u32 old = find_held(helds, addr, kind);

		if (old) {
			c->lost[LOSS_LOST_RELEASE]++;
			forget_held(helds, old);
		}
	}
	depth = helds->depth;
	if (depth >= MAX_SPIN_HELD) {
		c->lost[LOSS_SPIN_HELD_TOO_DEEP] += depth;
		depth = 0;
	}
	helds->depth = depth + 1;
	/* Or clang leaves out the mask, which 6.1's verifier needs. */
	barrier_var(depth);
	held = &helds->held[depth & (MAX_SPIN_HELD - 1)];
	held->addr = addr;
	held->kind = kind;
	held->place = place;
	held->acquired_ns = bpf_ktime_get_ns();
out:
	leave(c);
	return 0;
}

__noinline int spin_hold_ends(__u64 addr, __u32 kind)
{
	struct spin_helds *helds;
	struct spin_hold *hold;
	struct spin_held *held;
	struct counters *c;
	__u32 zero = 0, place, index;
	__u64 ns;

	c = this_cpu_counters();
	helds = bpf_map_lookup_elem(&spin_held, &zero);
	if (!c || !helds || c->busy)
		return 0;
	enter(c);
	place = helds->depth ? find_held(helds, addr, kind) : 0;
	if (!place) {
		/* Only where it can have been acquired in our sight. */
		if (wanted(bpf_get_current_pid_tgid() >> 32))
			c->lost[LOSS_UNMATCHED_RELEASE]++;
		goto out;
	}
	c->events[EVENTS_SEEN]++;
	held = &helds->held[(place - 1) & (MAX_SPIN_HELD - 1)];
	ns = bpf_ktime_get_ns() - held->acquired_ns;
	index = held->place - 1;
	forget_held(helds, place);
	hold = bpf_map_lookup_elem(&spin_holds, &index);
	if (!hold)
		goto out;
	hold->stats.holds++;
	hold->stats.hold_total_ns += ns;
	if (ns > hold->stats.hold_max_ns)
		hold->stats.hold_max_ns = ns;
out:
	leave(c);
	return 0;
}
