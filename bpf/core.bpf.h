/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hot path, inline: wanted() → wait_begin() / wait_end(), acquired() / released().
 *
 * Order in every program: compare the process first, look at `active`, and only then work.
 */
#ifndef CORE_BPF_H
#define CORE_BPF_H

#include "compat.bpf.h"
#include "slab.bpf.h"
#include "ustack.bpf.h"

/* A process that is traced. */
static __always_inline bool is_target(__u32 tgid)
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
	return true;
}

static __always_inline bool wanted(__u32 tgid)
{
	return is_target(tgid) && active;
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

/* waits.bpf.c; global for the verifier's sake (stacks.bpf.c). `how` is HOW(kind, class, phase). */
extern __u32 hist_bucket(__u64 ns);
extern int wait_enter(__u64 addr, __u32 how);
extern int wait_has_stacks(__u32 how, __u64 kernel_stack, __u64 user_stack);
extern int wait_finish(__u64 addr, __u32 outcome, __u32 wait_class);

/* futexes.bpf.c */
extern int futex_thread_exits(void);

/* queue.bpf.c */
extern int queue_cancels(__u64 addr, __u32 kind, __u64 begin_ns);
extern int queue_thread_exits(void);

#define HOW(kind, class, phase) ((kind) | (class) << 8 | (phase) << 16)

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

static __always_inline bool is_user_lock(__u32 kind)
{
	return kind == KIND_FUTEX || kind == KIND_FUTEX_PI;
}

static __always_inline struct lock_stats *lock_stats_if_room(const struct lock_key *key)
{
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, key);

	if (stats)
		return stats;
	bpf_map_update_elem(&locks, key, &zero_lock_stats, BPF_NOEXIST);
	stats = bpf_map_lookup_elem(&locks, key);
	if (stats && !is_user_lock(key->kind)) {
		stats->slab_cache = slab_cache_of(key->addr);
		stats->slab_offset = slab_offset_of(key->addr);
	}
	return stats;
}

static __always_inline struct lock_stats *lock_stats_of(struct counters *c,
							const struct lock_key *key)
{
	struct lock_stats *stats = lock_stats_if_room(key);

	if (!stats)
		c->lost[LOSS_LOCKS_MAP_FULL]++;
	return stats;
}

static __always_inline void waiter_leaves(struct lock_stats *stats)
{
	if (stats)
		__sync_fetch_and_add(&stats->waiting, -1);
}

/* Its end will not be seen any more. */
static __always_inline void wait_abandoned(struct counters *c, const struct wait *wait)
{
	waiter_leaves(bpf_map_lookup_elem(&locks, &wait->site.lock));
	if (wait->queued)
		queue_cancels(wait->site.lock.addr, wait->site.lock.kind, wait->begin_ns);
	c->lost[LOSS_UNPAIRED_BEGIN]++;
}

static __always_inline void fill_site(struct site_key *site, __u64 addr, __u32 kind,
				      __u64 kernel_stack, __u64 user_stack)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	site->lock.addr = addr;
	site->lock.tgid = is_user_lock(kind) ? tgid : 0;
	site->lock.kind = kind;
	site->kernel_stack = kernel_stack;
	site->user_stack = user_stack;
	site->tgid = tgid;
	site->futex = 0;
}

static __always_inline void enter_phase(struct wait *wait, enum wait_phase phase)
{
	__u64 now;

	if (wait->phase == phase)
		return;
	now = bpf_ktime_get_ns();
	if (wait->phase == PHASE_SPIN)
		wait->spin_ns += now - wait->phase_ns;
	wait->phase = phase;
	wait->phase_ns = now;
}

/*
 * PREEMPT_RT: a reader of an rwlock_t or rw_semaphore says begin for the lock and again for the rt_mutex
 * inside it (kernel/locking/rwbase_rt.c, struct rwbase_rt). One wait, of the lock.
 */
static __always_inline bool is_inside(const struct wait *outer, __u64 addr)
{
	__u32 kind = outer->site.lock.kind;

	if (kind < KIND_RWSEM_READ || kind > KIND_RWLOCK_WRITE)
		return false;
	/* offsetof(struct rwbase_rt, rtmutex) */
	return addr == outer->site.lock.addr + 8;
}

/* A sleeping wait begins: mutex, rwsem, futex. */
static __always_inline int wait_begin_in(void *ctx, __u64 addr, __u32 kind, __u32 wait_class,
					 __u32 phase)
{
	__u64 id = bpf_get_current_pid_tgid(), kernel, user;
	__u32 how = HOW(kind, wait_class, phase);
	struct counters *c;

	if (!wanted(id >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	if (wait_enter(addr, how)) {
		/* The kernel side of a futex wait is the same for everyone: do not pay for it. */
		kernel = is_user_lock(kind) ? STACK_NOT_TAKEN : kernel_stack(ctx, c, SCRATCH_TASK);
		user = user_stack(ctx, c, id >> 32, SCRATCH_TASK);
		wait_has_stacks(how, kernel, user);
	}
	leave(c);
	return 0;
}

/* … in a function: a kind whose phases a tracepoint tells begins by spinning. */
static __always_inline int wait_begin(void *ctx, __u64 addr, __u32 kind, __u32 wait_class)
{
	return wait_begin_in(ctx, addr, kind, wait_class,
			     cfg.phase_kinds & (1U << kind) ? PHASE_SPIN : PHASE_UNKNOWN);
}

/* `addr` 0: the caller does not know it (return probes). */
static __always_inline int wait_end(__u64 addr, enum outcome outcome, __u32 wait_class)
{
	struct counters *c;

	if (!wanted(bpf_get_current_pid_tgid() >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	wait_finish(addr, outcome, wait_class);
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
#define LOCK_FN(fn, kind, nargs, outcome) WAIT_FN(fn, kind, nargs, outcome, WAIT_KERNEL)

#define WAIT_FN(fn, kind, nargs, outcome, class) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return wait_begin(ctx, plain_number(ctx[0]), kind, class); \
	} \
	SEC("?fexit/" #fn) \
	int fn##__fexit(__u64 *ctx) \
	{ \
		return wait_end(plain_number(ctx[0]), outcome(fexit_return(ctx, nargs)), class); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return wait_begin(ctx, PT_REGS_PARM1(ctx), kind, class); \
	} \
	SEC("?kretprobe/" #fn) \
	int fn##__kretprobe(struct pt_regs *ctx) \
	{ \
		return wait_end(0, outcome(PT_REGS_RC(ctx)), class); \
	}

#define outcome_of_void(ret) ACQUIRED

#endif
