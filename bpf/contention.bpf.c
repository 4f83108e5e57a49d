// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * contention_begin(lock, flags) / contention_end(lock, ret): include/trace/events/lock.h, 5.19+.
 * The cheap path: nothing runs while nobody waits. What they miss is said in attach/catalog.rs.
 */
#include "core.bpf.h"

/* include/trace/events/lock.h */
#define LCB_F_SPIN (1U << 0)
#define LCB_F_READ (1U << 1)
#define LCB_F_WRITE (1U << 2)
#define LCB_F_RT (1U << 3)
#define LCB_F_PERCPU (1U << 4)
#define LCB_F_MUTEX (1U << 5)

static __always_inline __u32 kind_of(__u32 flags)
{
	bool read = flags & LCB_F_READ;

	/* A mutex says SPIN too while it spins for its owner. */
	if (flags & LCB_F_MUTEX)
		return KIND_MUTEX;
	if (flags & LCB_F_PERCPU)
		return read ? KIND_PERCPU_RWSEM_READ : KIND_PERCPU_RWSEM_WRITE;
	if (flags & LCB_F_SPIN) {
		if (flags & LCB_F_WRITE)
			return KIND_RWLOCK_WRITE;
		return read ? KIND_RWLOCK_READ : KIND_SPINLOCK;
	}
	if (flags & (LCB_F_READ | LCB_F_WRITE))
		return read ? KIND_RWSEM_READ : KIND_RWSEM_WRITE;
	if (flags & LCB_F_RT)
		return KIND_RTMUTEX;
	/* No flags at all: struct semaphore, and on 5.19's first release candidates the mutex. */
	return KIND_SEMAPHORE;
}

static __always_inline bool is_spinning_kind(__u32 kind, __u32 flags)
{
	/* On PREEMPT_RT spinlock_t and rwlock_t sleep. */
	return (flags & LCB_F_SPIN) && !(flags & (LCB_F_MUTEX | LCB_F_RT));
}

/*
 * Spin waits nest strictly on their CPU (task, softirq, hardirq, NMI): a stack per CPU, searched
 * from the top. No map of ours is locked between `busy` checks, so a wait on one of our own
 * buckets can not come back here.
 */
static __always_inline int spin_begin(void *ctx, __u64 addr, __u32 kind)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct counters *c = this_cpu_counters();
	struct spin_waits *waiting;
	struct spin_wait *wait;
	__u32 zero = 0, depth;

	if (!c)
		return 0;
	if (c->busy) {
		c->lost[LOSS_SPIN_IN_LOCKPROF]++;
		return 0;
	}
	c->events[EVENTS_SEEN]++;
	c->events[WAITS_BEGUN]++;
	waiting = bpf_map_lookup_elem(&spin, &zero);
	if (!waiting)
		return 0;
	enter(c);
	depth = waiting->depth;
	if (depth >= MAX_SPIN_DEPTH) {
		/* Ends went missing: deeper than contexts nest. */
		c->lost[LOSS_SPIN_TOO_DEEP] += depth;
		depth = 0;
	}
	wait = &waiting->wait[depth & (MAX_SPIN_DEPTH - 1)];
	waiting->depth = depth + 1;
	wait->begin_ns = bpf_ktime_get_ns();
	wait->tid = id;
	fill_site(ctx, c, &wait->site, addr, kind, id >> 32, SCRATCH_SPIN);
	bpf_get_current_comm(wait->comm, sizeof(wait->comm));
	leave(c);
	return 0;
}

/* True: the lock was one that spins. */
static __always_inline bool spin_end(__u64 addr)
{
	struct counters *c = this_cpu_counters();
	struct spin_waits *waiting;
	__u32 zero = 0, depth;

	waiting = bpf_map_lookup_elem(&spin, &zero);
	if (!waiting || !c || !waiting->depth || c->busy)
		return false;
	depth = waiting->depth;
	for (int i = 0; i < MAX_SPIN_DEPTH; i++) {
		if (!depth)
			return false;
		depth--;
		struct spin_wait *wait = &waiting->wait[depth & (MAX_SPIN_DEPTH - 1)];
		if (wait->site.lock.addr != addr)
			continue;
		enter(c);
		c->events[EVENTS_SEEN]++;
		c->events[WAITS_ENDED]++;
		/* What lies above began later and never ended. */
		c->lost[LOSS_UNPAIRED_BEGIN] += waiting->depth - depth - 1;
		waiting->depth = depth;
		account(c, &wait->site, bpf_ktime_get_ns() - wait->begin_ns, false);
		leave(c);
		return true;
	}
	return false;
}

SEC("?raw_tp/contention_begin")
int contention_begin__tp(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 addr = ctx->args[0];
	__u32 flags = ctx->args[1];
	__u32 kind;

	if (!wanted(bpf_get_current_pid_tgid() >> 32))
		return 0;
	kind = kind_of(flags);
	if (!(cfg.tracepoint_kinds & (1U << kind)))
		return 0;
	if (is_spinning_kind(kind, flags))
		return spin_begin(ctx, addr, kind);
	return wait_begin(ctx, addr, kind, WAIT_KERNEL);
}

/*
 * The end does not say the kind. A wait we do not know by its lock is one that another hook
 * accounts for (its record then has the same lock and is not ours to close), or began before us.
 */
SEC("?raw_tp/contention_end")
int contention_end__tp(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 addr = ctx->args[0];
	__u64 id = bpf_get_current_pid_tgid();
	struct wait_key key = { .tid = id, .wait_class = WAIT_KERNEL };
	struct wait *wait;

	if (!wanted(id >> 32))
		return 0;
	if (spin_end(addr))
		return 0;
	wait = bpf_map_lookup_elem(&waits, &key);
	if (!wait || wait->site.lock.addr != addr ||
	    !(cfg.tracepoint_kinds & (1U << (wait->site.lock.kind & 31)))) {
		struct counters *c = this_cpu_counters();

		/* With every sleeping kind on the tracepoints, an end without a record is a loss. */
		if (c && cfg.tracepoint_kinds & (1U << KIND_MUTEX))
			c->lost[LOSS_UNPAIRED_END]++;
		return 0;
	}
	return wait_end(addr, outcome_of_int(ctx->args[1]), WAIT_KERNEL);
}
