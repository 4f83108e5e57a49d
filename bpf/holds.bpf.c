// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Holds of locks that sleep: hold.bpf.h says how. Global functions: see stacks.bpf.c. */
#include "core.bpf.h"

static __always_inline bool is_read_side(__u32 kind)
{
	/* An rwlock_t comes here on PREEMPT_RT only, where its readers are tasks too. */
	return kind == KIND_RWSEM_READ || kind == KIND_RWLOCK_READ;
}

static __always_inline struct held_key held_key_of(__u64 addr, __u32 kind, __u32 tid)
{
	/* Field by field: a compound literal leaves what clang likes in the bytes of a key. */
	struct held_key key;

	key.addr = addr;
	key.tid = is_read_side(kind) ? tid : 0;
	key.kind = kind;
	return key;
}

/* How many writers a lock had, as far as readers must know. */
static __always_inline __u64 generation_of(__u64 addr, __u32 read_kind)
{
	struct lock_key write_side = { .addr = addr, .tgid = 0, .kind = read_kind + 1 };
	struct hold_stats *stats;

	_Static_assert(KIND_RWSEM_WRITE == KIND_RWSEM_READ + 1, "the write side comes next");
	_Static_assert(KIND_RWLOCK_WRITE == KIND_RWLOCK_READ + 1, "the write side comes next");
	stats = bpf_map_lookup_elem(&holds, &write_side);
	return stats ? stats->generation : 0;
}

__noinline int hold_begins(__u64 addr, __u32 kind)
{
	static const struct hold_stats zero = {};
	__u64 id = bpf_get_current_pid_tgid();
	struct held_key key = held_key_of(addr, kind, id);
	struct lock_key lock = { .addr = addr, .tgid = 0, .kind = kind };
	struct held new = { .depth = 1, .tid = id };
	struct hold_stats *stats;
	struct counters *c;
	struct held *old;

	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	stats = bpf_map_lookup_elem(&holds, &lock);
	if (!stats) {
		bpf_map_update_elem(&holds, &lock, &zero, BPF_NOEXIST);
		stats = bpf_map_lookup_elem(&holds, &lock);
		if (stats) {
			stats->slab_cache = slab_cache_of(addr);
			stats->slab_offset = slab_offset_of(addr);
		}
	}
	if (!stats) {
		c->lost[LOSS_HOLDS_MAP_FULL]++;
		goto out;
	}
	__sync_fetch_and_add(&stats->acquired, 1);
	if (is_read_side(kind))
		new.generation = generation_of(addr, kind);
	else
		__sync_fetch_and_add(&stats->generation, 1);
	old = bpf_map_lookup_elem(&held, &key);
	if (old && is_read_side(kind) && old->generation == new.generation) {
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

__noinline int hold_ends(__u64 addr, __u32 kind)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct held_key key = held_key_of(addr, kind, id);
	struct lock_key lock = { .addr = addr, .tgid = 0, .kind = kind };
	struct hold_stats *stats;
	struct counters *c;
	struct held *hold;
	__u64 ns;

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
	if (is_read_side(kind) && hold->generation != generation_of(addr, kind)) {
		/* A writer was in between: the record is of a hold whose release we missed. */
		c->lost[LOSS_LOST_RELEASE]++;
		c->lost[LOSS_UNMATCHED_RELEASE]++;
		bpf_map_delete_elem(&held, &key);
		goto out;
	}
	if (hold->depth > 1) {
		hold->depth--;
		goto out;
	}
	if (hold->tid != (__u32)id)
		c->events[FOREIGN_RELEASES]++;
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
