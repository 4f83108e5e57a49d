// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Waits that sleep: from begin to end, and what they come to. Global functions: see stacks.bpf.c.
 */
#include "account.bpf.h"
#include "owner.bpf.h"
#include "queue.bpf.h"

__noinline __u32 hist_bucket(__u64 ns)
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

/* A lock's own account of who waits for it, and for whom. */
static __always_inline void wait_is_for(struct counters *c, const struct wait *wait)
{
	const struct owner *owner = &wait->owner;
	struct lock_stats *stats = lock_stats_if_room(&wait->site.lock);

	if (!stats)
		return; /* counted when the wait ends */
	__sync_fetch_and_add(&stats->waiting, 1);
	if (owner->state == OWNER_NOBODY)
		__sync_fetch_and_add(&stats->begun_unowned, 1);
	else if (owner->state == OWNER_READERS)
		__sync_fetch_and_add(&stats->begun_read_owned, 1);
	else if (owner->state == OWNER_TASK)
		owned_by(c, &wait->site.lock, owner);
}

/*
 * Stores a wait that begins, and who owns the lock now; its stacks come later, for to take them is slow
 * (and a part of what the waiter waited). 0: it is known already, or there is no room.
 */
__noinline int wait_enter(__u64 addr, __u32 how)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(), .wait_class = how >> 8 & 0xff };
	struct counters *c = this_cpu_counters();
	struct wait *old, new;

	if (!c)
		return 0;
	old = bpf_map_lookup_elem(&waits, &key);
	if (old && old->begin_ns) {
		/* The mutex tracepoint says begin again when a spinning waiter goes to sleep; a function that
		 * is entered again was left before. */
		if (old->site.lock.addr == addr && old->site.lock.kind == (how & 0xff) &&
		    cfg.tracepoint_kinds & (1U << (how & 31))) {
			enter_phase(old, how >> 16);
			return 0;
		}
		if (is_inside(old, addr))
			return 0;
		wait_abandoned(c, old);
	}
	c->events[WAITS_BEGUN]++;
	fill_site(&new.site, addr, how & 0xff, STACK_LOST, STACK_LOST);
	read_owner(addr, how & 0xff, &new.owner);
	new.begin_ns = bpf_ktime_get_ns();
	new.phase = how >> 16;
	new.phase_ns = new.begin_ns;
	new.spin_ns = 0;
	new.queued = 0;
	bpf_get_current_comm(new.comm, sizeof(new.comm));
	if (bpf_map_update_elem(&waits, &key, &new, BPF_ANY)) {
		c->lost[LOSS_WAITS_MAP_FULL]++;
		return 0;
	}
	wait_is_for(c, &new);
	if (!has_queue(how & 0xff))
		return 1;
	if (queue_joins(addr, how & 0xff, new.begin_ns, new.owner.tid, new.owner.task)) {
		old = bpf_map_lookup_elem(&waits, &key);
		if (old)
			old->queued = 1;
	}
	return 1;
}

__noinline int wait_has_stacks(__u32 how, __u64 kernel_stack, __u64 user_stack)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(), .wait_class = how >> 8 & 0xff };
	struct wait *wait = bpf_map_lookup_elem(&waits, &key);

	if (!wait)
		return 0;
	wait->site.kernel_stack = kernel_stack;
	wait->site.user_stack = user_stack;
	if (wait->queued)
		queue_has_stacks(PLACE_KERNEL, kernel_stack, user_stack);
	return 0;
}

__noinline int wait_finish(__u64 addr, __u32 outcome, __u32 wait_class)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(), .wait_class = wait_class };
	struct counters *c = this_cpu_counters();
	__u64 now, spin_ns;
	struct wait *wait;

	if (!c)
		return 0;
	wait = bpf_map_lookup_elem(&waits, &key);
	if (!wait || !wait->begin_ns || (addr && wait->site.lock.addr != addr)) {
		if (!wait || !wait->begin_ns || !is_inside(wait, addr))
			c->lost[LOSS_UNPAIRED_END]++;
		return 0;
	}
	if (outcome == DID_NOT_WAIT) {
		c->events[FUTEX_RETRIES]++;
		if (wait->queued)
			queue_cancels(wait->site.lock.addr, wait->site.lock.kind, wait->begin_ns);
	} else {
		now = bpf_ktime_get_ns();
		if (wait->queued)
			queue_leaves(
			    wait->site.lock.addr,
			    wait->site.lock.kind | (outcome == ACQUIRED ? 0 : QUEUE_ABORTED), now);
		spin_ns = wait->spin_ns;
		if (wait->phase == PHASE_SPIN)
			spin_ns += now - wait->phase_ns;
		c->events[WAITS_ENDED]++;
		account(c, &wait->site, now - wait->begin_ns, spin_ns, outcome != ACQUIRED);
	}
	waiter_leaves(bpf_map_lookup_elem(&locks, &wait->site.lock));
	/* The kernel may refuse to delete it now (EBUSY); it must not pass for a wait that goes on. */
	wait->begin_ns = 0;
	bpf_map_delete_elem(&waits, &key);
	return 0;
}
