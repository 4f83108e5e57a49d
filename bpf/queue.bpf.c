// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Waiters come and go: queue.bpf.h says how. Global functions: see stacks.bpf.c. */
#include "queue.bpf.h"
#include "sched.bpf.h"

static __always_inline void holder_is_unknown(struct holder *holder)
{
	__builtin_memset(holder, 0, sizeof(*holder));
	holder->evidence = HOLDER_UNKNOWN;
}

/* The lock's owner word says this task. */
static __always_inline void holder_is_owner(struct holder *holder, __u32 tid, __u64 task)
{
	const struct task_struct *owner = (void *)task;

	holder_is_unknown(holder);
	if (!tid)
		return;
	holder->tid = tid;
	holder->evidence = HOLDER_OWNER_WORD;
	holder->kernel_stack = STACK_NOT_TAKEN;
	holder->user_stack = STACK_NOT_TAKEN;
	if (task && (__u32)BPF_CORE_READ(owner, pid) == tid) {
		holder->tgid = BPF_CORE_READ(owner, tgid);
		BPF_CORE_READ_STR_INTO(&holder->comm, owner, comm);
	}
}

/* A thread holds a lock that somebody waits for: its scheduling is looked at from now on. */
static __always_inline void watch_holder(struct counters *c, const struct lock_key *key, __u32 tid,
					 __u64 task, __u64 now)
{
	struct lock_stats *stats;
	struct watch *watch;

	if (!tid)
		return;
	watch = watch_of(c, tid);
	if (!watch || same_key(&watch->held, key))
		return;
	if (watch->held.addr) {
		/* It holds another one that is wanted: its time is told for that one only. */
		stats = bpf_map_lookup_elem(&locks, &watch->held);
		if (stats && stats->queue.holder.tid == tid &&
		    queue_sum(&stats->queue, now).waiters)
			return;
	}
	if (!watch->task)
		watch->task = task;
	watch->state = tid == (__u32)bpf_get_current_pid_tgid()
			   ? WATCH_RUNNING
			   : state_of_task(watch->task, tid, watch);
	watch->since_ns = now;
	watch->chain_mark_ns = 0;
	for (int i = 0; i < WATCH_STATES; i++)
		watch->state_ns[i] = 0;
	watch->held = *key;
}

/* It holds the lock no more, and nobody saw it let go. */
static __always_inline void unwatch_holder(const struct lock_key *key, __u32 tid)
{
	struct watch *watch = bpf_map_lookup_elem(&watched, &tid);

	if (watch && same_key(&watch->held, key))
		watch->held.addr = 0;
}

/*
 * The lock has another holder and no release was seen: what accrued is kept until one comes late, and else
 * charged to the one who had it.
 */
static __always_inline void release_was_missed(struct queue *q, const struct lock_key *key,
					       struct queue_sum *sum)
{
	unwatch_holder(key, q->holder.tid);
	if (q->pending_ns)
		charge_pending(key->addr, key->kind);
	queue_take(q, sum->ns);
	add_ns(&q->pending_ns, sum->ns);
	q->pending_wanted_ns = q->hold_wanted_ns;
	__builtin_memcpy(&q->pending, &q->holder, sizeof(q->pending));
	q->hold_wanted_ns = 0;
	q->chained_ns = 0;
	sum->ns = 0;
}

static __always_inline void hand_over(struct queue *q, struct queue_sum *sum)
{
	queue_take(q, sum->ns);
	add_ns(&q->handoff_ns, sum->ns);
	q->hold_wanted_ns = 0;
	q->chained_ns = 0;
	sum->ns = 0;
}

static __always_inline void take_position(struct queue_position *position, const struct queue *q,
					  __u64 now)
{
	for (int i = 0; i < HOLDER_CLASSES; i++)
		position->held_ns[i] = q->classes[i].held_ns;
	position->hold = q->holds;
	position->into_hold_ns = q->state == QUEUE_HELD ? now - q->held_since_ns : 0;
}

/* Who owns the lock now, as its word says; what the queue believed may be outdated. */
static __always_inline void look_at_owner(struct queue *q, const struct lock_key *key,
					  struct queue_sum *sum, __u32 how, __u64 now,
					  __u32 owner_tid, __u64 owner_task)
{
	bool known;

	/* Woken, and somebody else was faster: who waits does not hold it. */
	if (q->state == QUEUE_HELD && q->holder.tid == (__u32)bpf_get_current_pid_tgid()) {
		unwatch_holder(key, q->holder.tid);
		holder_is_owner(&q->holder, owner_tid, owner_task);
	}
	known = q->holder.evidence <= HOLDER_OWNER_WORD && q->state == QUEUE_HELD;

	if (!sum->waiters) {
		/* Most locks that nobody waits for are released unseen. */
		bool same =
		    known && (owner_tid ? q->holder.tid == owner_tid : how & QUEUE_SEES_ALL);

		if (!same) {
			/* Left by waits that were given up. */
			if (sum->ns)
				release_was_missed(q, key, sum);
			holder_is_owner(&q->holder, owner_tid, owner_task);
		}
		q->state = QUEUE_HELD;
		q->held_since_ns = now;
		q->counted_ns = now;
		q->hold_wanted_ns = 0;
		q->chained_ns = 0;
		return;
	}
	count_wall(q, sum->waiters, now);
	if (!owner_tid || (q->state == QUEUE_HELD && q->holder.tid == owner_tid))
		return;
	/* A kernel lock's word still names who has just released it; a user lock's was cleared before. */
	if (q->state == QUEUE_FREE && q->holder.tid == owner_tid && !is_user_lock(key->kind))
		return;
	if (q->state == QUEUE_HELD && q->holder.evidence == HOLDER_UNKNOWN) {
		/* Now it is known. */
		holder_is_owner(&q->holder, owner_tid, owner_task);
		return;
	}
	/* It was taken without a wait: by a trylock, or while spinning. */
	if (q->state == QUEUE_HELD)
		release_was_missed(q, key, sum);
	else
		hand_over(q, sum);
	holder_is_owner(&q->holder, owner_tid, owner_task);
	q->state = QUEUE_HELD;
	q->held_since_ns = now;
}

/* How much of the lock this thread holds was uncharged when it began to wait itself. */
static __always_inline void mark_chain(struct watch *watch, __u64 now)
{
	struct lock_stats *stats;

	if (!watch->held.addr)
		return;
	stats = bpf_map_lookup_elem(&locks, &watch->held);
	watch->chain_mark_ns = stats ? queue_sum(&stats->queue, now).ns : 0;
}

static __always_inline __u32 place_of(__u32 kind)
{
	return is_user_lock(kind) ? PLACE_FUTEX : PLACE_KERNEL;
}

static __always_inline int join(__u64 addr, __u32 how, __u64 since_ns, __u64 now, __u64 owner_tid,
				__u64 owner_task)
{
	__u32 kind = how & 0xff;
	struct lock_key key = queue_key(addr, kind);
	struct counters *c = this_cpu_counters();
	struct lock_stats *stats;
	struct queue_sum sum;
	struct watch *watch;
	struct queue *q;

	if (!c)
		return 0;
	stats = lock_stats_if_room(&key);
	if (!stats)
		return 0; /* counted when the wait ends */
	q = &stats->queue;
	sum = queue_sum(q, now);
	look_at_owner(q, &key, &sum, how, now, owner_tid, owner_task);
	__sync_fetch_and_add(&q->value, queue_unit(since_ns));
	if (q->holder.tid && q->state == QUEUE_HELD)
		watch_holder(c, &key, q->holder.tid, owner_task, now);

	watch = watch_of_current(c);
	if (!watch)
		return 1;
	mark_chain(watch, now);
	if (!is_watched(watch)) {
		watch->state = WATCH_RUNNING;
		watch->since_ns = now;
	}
	watch->woken_to_running_ns = 0;
	if (place_of(kind) == PLACE_FUTEX) {
		take_position(&watch->position[PLACE_FUTEX], q, now);
		watch->wanted[PLACE_FUTEX] = key;
	} else {
		take_position(&watch->position[PLACE_KERNEL], q, now);
		watch->wanted[PLACE_KERNEL] = key;
	}
	return 1;
}

/* The current thread begins to wait; 0: the lock has no queue, for want of room. */
__noinline int queue_joins(__u64 addr, __u32 how, __u64 now, __u64 owner_tid, __u64 owner_task)
{
	return join(addr, how, now, now, owner_tid, owner_task);
}

/* A wait that seemed to have ended at `since_ns` goes on. */
__noinline int queue_rejoins(__u64 addr, __u32 how, __u64 since_ns, __u64 owner_tid,
			     __u64 owner_task)
{
	return join(addr, how, since_ns, bpf_ktime_get_ns(), owner_tid, owner_task);
}

/* The waiter has the lock now. */
static __always_inline void acquire(struct queue *q, const struct lock_key *key,
				    struct queue_sum *sum, const struct watch *watch, __u32 kind,
				    __u64 now)
{
	__u32 place = place_of(kind);
	bool reads = kind == KIND_RWSEM_READ;

	/* Readers join readers: the last one out lets go of the lock. */
	if (q->state == QUEUE_HELD && reads && q->holder.reads)
		return;
	if (q->state == QUEUE_HELD) {
		release_was_missed(q, key, sum);
	} else {
		hand_over(q, sum);
		q->handoffs++;
	}
	q->state = QUEUE_HELD;
	q->held_since_ns = now;
	q->holder.tid = bpf_get_current_pid_tgid();
	q->holder.tgid = bpf_get_current_pid_tgid() >> 32;
	q->holder.evidence = HOLDER_ACQUIRED;
	q->holder.reads = reads;
	q->holder.kernel_stack = watch ? watch->kernel_stack[place & 1] : STACK_NOT_TAKEN;
	q->holder.user_stack = watch ? watch->user_stack[place & 1] : STACK_NOT_TAKEN;
	bpf_get_current_comm(q->holder.comm, sizeof(q->holder.comm));
}

/* The current thread waits no more. */
__noinline int queue_leaves(__u64 addr, __u32 how, __u64 now)
{
	__u32 kind = how & 0xff, tid = bpf_get_current_pid_tgid();
	struct lock_key key = queue_key(addr, kind);
	struct counters *c = this_cpu_counters();
	struct lock_stats *stats;
	struct queue_sum sum;
	struct watch *watch;
	struct queue *q;

	if (!c)
		return 0;
	stats = bpf_map_lookup_elem(&locks, &key);
	if (!stats)
		return 0;
	q = &stats->queue;
	sum = queue_sum(q, now);
	if (!sum.waiters)
		return 0; /* it had no room when it began */
	count_wall(q, sum.waiters, now);
	watch = bpf_map_lookup_elem(&watched, &tid);
	if (watch && !(how & QUEUE_IN_PLACE))
		count_pairs(addr, kind, place_of(kind));
	if (!(how & QUEUE_ABORTED))
		acquire(q, &key, &sum, watch, kind, now);
	__sync_fetch_and_add(&q->value, -queue_unit(now));
	if (!watch)
		return 1;
	if (place_of(kind) == PLACE_FUTEX)
		watch->wanted[PLACE_FUTEX].addr = 0;
	else
		watch->wanted[PLACE_KERNEL].addr = 0;
	if (watch->held.addr)
		count_chain(addr, kind, now);
	if (watch->woken_to_running_ns)
		__sync_fetch_and_add(&q->woken_to_running_ns, watch->woken_to_running_ns);
	watch->woken_to_running_ns = 0;
	if (!(how & QUEUE_ABORTED) && sum.waiters > 1)
		watch_holder(c, &key, tid, 0, now);
	return 1;
}

/* The wait was none, or its end will never be seen: as if it had never begun. */
__noinline int queue_cancels(__u64 addr, __u32 kind, __u64 begin_ns)
{
	struct lock_key key = queue_key(addr, kind);
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &key);
	__u32 tid = bpf_get_current_pid_tgid();
	struct watch *watch;

	if (!stats)
		return 0;
	__sync_fetch_and_add(&stats->queue.value, -queue_unit(begin_ns));
	watch = bpf_map_lookup_elem(&watched, &tid);
	if (!watch)
		return 0;
	if (place_of(kind) == PLACE_FUTEX)
		watch->wanted[PLACE_FUTEX].addr = 0;
	else
		watch->wanted[PLACE_KERNEL].addr = 0;
	return 0;
}

/* Where the current thread waits. */
__noinline int queue_has_stacks(__u32 place, __u64 kernel_stack, __u64 user_stack)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct watch *watch = bpf_map_lookup_elem(&watched, &tid);

	if (!watch)
		return 0;
	watch->kernel_stack[place & 1] = kernel_stack;
	watch->user_stack[place & 1] = user_stack;
	return 0;
}

__noinline int queue_thread_exits(void)
{
	__u32 tid = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&watched, &tid);
	return 0;
}

/* (tid): a wait that was listed as going on had ended before the hooks were active. Run by hand. */
SEC("?raw_tp/run")
int forget_early_wait__run(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = ctx->args[0];
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	struct lock_stats *stats;

	/* Meanwhile it may wait for something else, which the hooks saw. */
	if (!wait || !wait->from_before || wait->end_ns)
		return 0;
	stats = bpf_map_lookup_elem(&locks, &wait->site.lock);
	if (stats) {
		waiter_leaves(stats);
		if (wait->queued)
			__sync_fetch_and_add(&stats->queue.value, -QUEUE_UNIT);
	}
	return bpf_map_delete_elem(&futex_waits, &tid) ? 0 : 1;
}
