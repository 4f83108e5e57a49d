// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * contention_begin(lock, flags) / contention_end(lock, ret): include/trace/events/lock.h, 5.19+.
 * The cheap path: nothing runs while nobody waits. What they miss is said in attach/catalog.rs.
 */
#include "spin.bpf.h"

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

#define SPIN_KINDS (1U << KIND_SPINLOCK | 1U << KIND_RWLOCK_READ | 1U << KIND_RWLOCK_WRITE)

static __always_inline __u32 class_of(__u32 kind)
{
	return kind == KIND_PERCPU_RWSEM_WRITE ? WAIT_PERCPU_WRITE : WAIT_KERNEL;
}

static __always_inline bool is_spinning_kind(__u32 kind, __u32 flags)
{
	/* On PREEMPT_RT spinlock_t and rwlock_t sleep. */
	return (flags & LCB_F_SPIN) && !(flags & (LCB_F_MUTEX | LCB_F_RT));
}

/*
 * A waiter goes from spinning to sleeping, or back: mutex (several times), rwsem (a writer that gives up
 * spinning). The wait itself belongs to the hook on the slow path.
 */
static __always_inline int phase_begins(__u64 addr, __u32 flags)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(), .wait_class = WAIT_KERNEL };
	struct wait *wait = bpf_map_lookup_elem(&waits, &key);

	if (wait && wait->site.lock.addr == addr)
		enter_phase(wait, flags & LCB_F_SPIN ? PHASE_SPIN : PHASE_SLEEP);
	return 0;
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
	if (cfg.phase_kinds & (1U << kind))
		return phase_begins(addr, flags);
	if (!(cfg.tracepoint_kinds & (1U << kind)))
		return 0;
	if (is_spinning_kind(kind, flags))
		return spin_begin(ctx, addr, kind);
	return wait_begin_in(ctx, addr, kind, class_of(kind),
			     flags & LCB_F_SPIN ? PHASE_SPIN : PHASE_SLEEP);
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
	struct wait *wait, *outer;

	if (!wanted(id >> 32))
		return 0;
	if (cfg.tracepoint_kinds & SPIN_KINDS && spin_end(addr))
		return 0;
	wait = outer = bpf_map_lookup_elem(&waits, &key);
	if (!wait || wait->site.lock.addr != addr) {
		key.wait_class = WAIT_PERCPU_WRITE;
		wait = bpf_map_lookup_elem(&waits, &key);
	}
	if (!wait || wait->site.lock.addr != addr ||
	    !(cfg.tracepoint_kinds & (1U << (wait->site.lock.kind & 31)))) {
		struct counters *c = this_cpu_counters();

		/* With every sleeping kind on the tracepoints, an end without a record is a loss. */
		if (c && cfg.tracepoint_kinds & (1U << KIND_MUTEX) &&
		    !(outer && is_inside(outer, addr)))
			c->lost[LOSS_UNPAIRED_END]++;
		return 0;
	}
	return wait_end(addr, outcome_of_int(ctx->args[1]), key.wait_class);
}
