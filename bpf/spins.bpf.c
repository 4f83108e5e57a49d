// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Waits for locks that spin: spin.bpf.h says how. Global functions: see stacks.bpf.c. */
#include "spin.bpf.h"
#include "spintable.bpf.h"

/* 1 + the place of a site in this CPU's part of spin_sites; 0: there is no room. */
static __noinline __u32 spin_site_place(const struct site_key *key)
{
	__u64 hash = hash_of_lock(&key->lock);

	hash = mix(mix(mix(hash, key->kernel_stack), key->user_stack), key->tgid);
	for (__u32 i = 0; i < SPIN_PROBES; i++) {
		__u32 index = spin_index(cfg.spin_sites_log2, hash, i);
		struct spin_site *entry = bpf_map_lookup_elem(&spin_sites, &index);

		if (!entry)
			return 0;
		if (!entry->key.lock.kind) {
			entry->key = *key;
			return index + 1;
		}
		if (entry->key.lock.addr == key->lock.addr &&
		    entry->key.lock.kind == key->lock.kind &&
		    entry->key.kernel_stack == key->kernel_stack &&
		    entry->key.user_stack == key->user_stack && entry->key.tgid == key->tgid)
			return index + 1;
	}
	return 0;
}

/* … of a lock in this CPU's part of spin_locks. */
static __noinline __u32 spin_lock_place(const struct lock_key *key)
{
	__u64 hash = hash_of_lock(key);

	for (__u32 i = 0; i < SPIN_PROBES; i++) {
		__u32 index = spin_index(cfg.spin_locks_log2, hash, i);
		struct spin_lock *entry = bpf_map_lookup_elem(&spin_locks, &index);

		if (!entry)
			return 0;
		if (!entry->key.kind) {
			entry->key = *key;
			entry->slab_cache = slab_cache_of(key->addr);
			entry->slab_offset = slab_offset_of(key->addr);
			return index + 1;
		}
		if (entry->key.addr == key->addr && entry->key.kind == key->kind)
			return index + 1;
	}
	return 0;
}

static __always_inline bool is_rwlock(__u32 kind)
{
	return kind == KIND_RWLOCK_READ || kind == KIND_RWLOCK_WRITE;
}

/*
 * A queued rwlock's slow path takes the spinlock inside it (qrwlock.wait_lock) to queue: that wait is a
 * part of the one for the rwlock.
 */
static __always_inline bool is_inside_rwlock(const struct spin_waits *waiting, __u32 depth,
					     __u64 addr)
{
	const struct spin_wait *top;

	if (!depth)
		return false;
	top = &waiting->wait[(depth - 1) & (MAX_SPIN_DEPTH - 1)];
	/* offsetof(struct qrwlock, wait_lock): include/asm-generic/qrwlock_types.h */
	return is_rwlock(top->site.lock.kind) && addr == top->site.lock.addr + 4;
}

/* Their ends will not be seen any more. */
static __always_inline void forget_waits_above(struct spin_waits *waiting, __u32 depth)
{
	for (__u32 i = 0; i < MAX_SPIN_DEPTH; i++) {
		if (cfg.spin_blame && i >= depth && i < waiting->depth)
			spin_queue_cancels(waiting->wait[i].queue_place, waiting->wait[i].begin_ns);
	}
	waiting->depth = depth;
}

/* Makes room for a wait; 0: it is a part of another one. */
__noinline int spin_prepare(__u64 addr, __u32 kind)
{
	struct counters *c = this_cpu_counters();
	struct spin_waits *waiting;
	__u32 zero = 0;

	waiting = bpf_map_lookup_elem(&spin, &zero);
	if (!waiting || !c || is_inside_rwlock(waiting, waiting->depth, addr))
		return 0;
	c->events[EVENTS_SEEN]++;
	c->events[WAITS_BEGUN]++;
	if (waiting->depth >= MAX_SPIN_DEPTH) {
		/* Ends went missing: deeper than contexts nest. */
		c->lost[LOSS_SPIN_TOO_DEEP] += waiting->depth;
		forget_waits_above(waiting, 0);
	}
	return 1;
}

__noinline int spin_store(__u64 addr, __u32 kind, __u64 kernel_stack, __u64 user_stack,
			  __u64 begin_ns)
{
	struct counters *c = this_cpu_counters();
	struct spin_waits *waiting;
	struct spin_wait *wait;
	struct site_key key;
	__u32 zero = 0, depth;

	waiting = bpf_map_lookup_elem(&spin, &zero);
	if (!waiting || !c)
		return 0;
	fill_site(&key, addr, kind, kernel_stack, user_stack);
	depth = waiting->depth;
	waiting->depth = depth + 1;
	wait = &waiting->wait[depth & (MAX_SPIN_DEPTH - 1)];
	wait->site = key;
	wait->begin_ns = begin_ns;
	wait->tid = bpf_get_current_pid_tgid();
	bpf_get_current_comm(wait->comm, sizeof(wait->comm));
	wait->site_place = spin_site_place(&key);
	wait->lock_place = spin_lock_place(&key.lock);
	wait->queue_place = 0;
	/* A wait that will not be counted must not be charged. */
	if (cfg.spin_blame && kind == KIND_SPINLOCK && wait->site_place)
		wait->queue_place = spin_queue_joins(addr, begin_ns);
	if (!wait->site_place)
		c->lost[LOSS_SPIN_SITES_FULL]++;
	else if (!wait->lock_place)
		c->lost[LOSS_SPIN_LOCKS_FULL]++;
	return 0;
}

static __always_inline void account_spin(const struct spin_wait *wait, __u64 ns)
{
	__u32 site_index = wait->site_place - 1, lock_index = wait->lock_place - 1;
	__u32 bucket = hist_bucket(ns);
	struct spin_site *site;
	struct spin_lock *lock;

	site = bpf_map_lookup_elem(&spin_sites, &site_index);
	if (!site)
		return;
	site->stats.contended++;
	site->stats.wait_total_ns += ns;
	site->stats.spin_total_ns += ns;
	if (ns > site->stats.wait_max_ns)
		site->stats.wait_max_ns = ns;
	if (~ns > site->stats.wait_min_inverted)
		site->stats.wait_min_inverted = ~ns;
	lock = bpf_map_lookup_elem(&spin_locks, &lock_index);
	if (lock && bucket < HIST_BUCKETS)
		lock->hist[bucket]++;
}

/* `addr` 0: the caller does not know it (return probes), and means the wait that began last. */
__noinline int spin_end(__u64 addr)
{
	struct counters *c = this_cpu_counters();
	struct spin_waits *waiting;
	__u32 zero = 0, depth;
	__u64 now;

	waiting = bpf_map_lookup_elem(&spin, &zero);
	if (!waiting || !c || c->busy)
		return 0;
	depth = waiting->depth;
	for (int i = 0; i < MAX_SPIN_DEPTH; i++) {
		if (!depth)
			return 0;
		depth--;
		struct spin_wait *wait = &waiting->wait[depth & (MAX_SPIN_DEPTH - 1)];
		if (addr && wait->site.lock.addr != addr)
			continue;
		enter(c);
		c->events[EVENTS_SEEN]++;
		c->events[WAITS_ENDED]++;
		/* What lies above began later and never ended. */
		c->lost[LOSS_UNPAIRED_BEGIN] += waiting->depth - depth - 1;
		forget_waits_above(waiting, depth + 1);
		waiting->depth = depth;
		now = bpf_ktime_get_ns();
		if (cfg.spin_blame)
			spin_queue_leaves(wait->queue_place, now);
		account_spin(wait, now - wait->begin_ns);
		leave(c);
		return 1;
	}
	return 0;
}

__noinline int spin_finish(__u64 addr)
{
	struct counters *c = this_cpu_counters();
	struct spin_waits *waiting;
	__u32 zero = 0;

	if (spin_end(addr))
		return 0;
	waiting = bpf_map_lookup_elem(&spin, &zero);
	/* Its begin was counted as spin_in_lockprof, or is inside another wait. */
	if (!c || c->busy || !waiting || is_inside_rwlock(waiting, waiting->depth, addr))
		return 0;
	c->lost[LOSS_UNPAIRED_END]++;
	return 0;
}
