// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Futex waits, from begin to the end of the acquisition, and who ended them. Global functions: see stacks.bpf.c.
 */
#include "account.bpf.h"
#include "futex.bpf.h"
#include "owner.bpf.h"
#include "queue.bpf.h"

/* asm-generic/errno*.h and linux/errno.h */
#define EINTR 4
#define ETIMEDOUT 110
#define EDEADLK 35
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

/* Time slices of one wait follow each other at once: CPython's GIL (5 ms), libc++'s atomics (2 s). */
#define SLICE_GAP_NS 1000000

/* What a futex wait came to. EAGAIN (the word had changed), EFAULT and EINVAL never slept. */
static __always_inline enum outcome futex_outcome(__u64 ret)
{
	__s32 err = -(__s32)ret;

	if (err <= 0)
		return ACQUIRED;
	if (err == EINTR || (err >= ERESTARTSYS && err <= ERESTART_RESTARTBLOCK))
		return INTERRUPTED;
	if (err == ETIMEDOUT)
		return TIMED_OUT;
	if (err == EDEADLK)
		return ABORTED;
	return DID_NOT_WAIT;
}

static __always_inline __u32 voluntary_switches(void)
{
	const struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, nvcsw);
}

static __always_inline __u32 value_of(const struct futex_wait *wait)
{
	return wait->site.futex >> FUTEX_VALUE_SHIFT & 0xf;
}

/*
 * Whether the waiter, if it got the lock, will wake the same word when it releases it. A mutex of three states is
 * left in the third by whoever waited (glibc's lowlevellock.c, Rust's sync/mutex/futex.rs), so its unlock calls the
 * kernel; a PI mutex goes through the kernel whenever somebody waits.
 */
static __always_inline bool releases_by_wake(__u32 kind, __u32 bits)
{
	__u32 value = bits >> FUTEX_VALUE_SHIFT & 0xf, place = bits >> FUTEX_PLACE_SHIFT & 3;

	if (kind == KIND_FUTEX_PI || value == VALUE_OWNED_BY_THREAD || value == VALUE_MUSL_BUSY)
		return true;
	if (value != VALUE_TWO)
		return false;
	if (bits & FUTEX_WORDS_GLIBC_MUTEX)
		return true;
	/* Rust's; glibc's rwlock says realtime. */
	if (FUTEX_CMD(bits) == FUTEX_WAIT_BITSET)
		return !(bits & (FUTEX_TIMEOUT | FUTEX_CLOCK_REALTIME));
	/* A lock inside glibc, or somebody's own; musl's condition variable waits on the stack. */
	return FUTEX_CMD(bits) == FUTEX_WAIT && place != PLACE_OWN_STACK && place != PLACE_EITHER;
}

/* … and does so even if nobody waits any more: the third state stays until then. */
static __always_inline __u32 queue_how(__u32 kind, __u32 bits)
{
	bool three_states = kind == KIND_FUTEX && (bits >> FUTEX_VALUE_SHIFT & 0xf) == VALUE_TWO &&
			    releases_by_wake(kind, bits);

	return kind | (three_states ? QUEUE_SEES_ALL : 0);
}

/* What is certain of a mutex is only likely of another word: musl's pthread_join waits for a 2 too. */
static __always_inline bool is_retry(const struct futex_wait *wait, __u32 bits, __u64 now)
{
	if (value_of(wait) != VALUE_TWO || (bits >> FUTEX_VALUE_SHIFT & 0xf) != VALUE_TWO ||
	    !releases_by_wake(KIND_FUTEX, bits))
		return false;
	if (FUTEX_CMD(bits) == FUTEX_WAIT && !((bits | wait->site.futex) & FUTEX_WORDS_GLIBC_MUTEX))
		return now - wait->end_ns < SLICE_GAP_NS;
	return true;
}

static __always_inline void add_hold(struct lock_stats *lock, __u64 ns)
{
	if (!lock)
		return;
	__sync_fetch_and_add(&lock->holds, 1);
	__sync_fetch_and_add(&lock->hold_total_ns, ns);
	raise_max(&lock->hold_max_ns, ns);
}

static __always_inline void remember_hold(struct counters *c, struct futex_wait *wait)
{
	for (int i = 0; i < MAX_FUTEX_HOLDS; i++) {
		struct futex_hold *hold = &wait->held[i];

		if (hold->addr && hold->addr != wait->uaddr)
			continue;
		hold->addr = wait->uaddr;
		hold->acquired_ns = wait->end_ns;
		return;
	}
	c->lost[LOSS_FUTEX_HOLDS_TOO_DEEP]++;
}

/* Who waits for a lock does not hold it: its release was not seen, or it never had it. */
static __always_inline void forget_hold(struct futex_wait *wait, __u64 uaddr)
{
	for (int i = 0; i < MAX_FUTEX_HOLDS; i++) {
		if (wait->held[i].addr == uaddr)
			wait->held[i].addr = 0;
	}
}

static __always_inline void count_release(struct counters *c, const struct futex_wait *wait,
					  __u32 wakee_tid)
{
	struct release_key key = {
		.lock = wait->site.lock,
		.stack = wait->waker.stack,
		.waker_tid = wait->waker.tid,
		.wakee_tid = wakee_tid,
	};
	struct release_stats *stats = bpf_map_lookup_elem(&releases, &key);

	if (!stats) {
		struct release_stats first = { .waker_tgid = wait->waker.tgid };

		__builtin_memcpy(first.comm, wait->waker.comm, sizeof(first.comm));
		bpf_map_update_elem(&releases, &key, &first, BPF_NOEXIST);
		stats = bpf_map_lookup_elem(&releases, &key);
	}
	if (stats)
		__sync_fetch_and_add(&stats->woken, 1);
	else
		c->lost[LOSS_RELEASES_MAP_FULL]++;
}

/* The wait has ended, and nothing more will be added to it. `acquired`: it may hold the lock now. */
static __always_inline void settle(struct counters *c, struct futex_wait *wait)
{
	struct lock_stats *lock;

	if (wait->from_before && cfg.have_wake_mark && wait->waker.tid)
		count_release(c, wait, bpf_get_current_pid_tgid());
	c->events[WAITS_ENDED]++;
	account(c, &wait->site, wait->end_ns - wait->begin_ns, 0, wait->outcome != ACQUIRED);
	if (wait->owner.state == OWNER_TASK)
		owned_by(c, &wait->site.lock, &wait->owner);
	lock = bpf_map_lookup_elem(&locks, &wait->site.lock);
	if (lock) {
		if (wait->owner.state == OWNER_NOBODY)
			__sync_fetch_and_add(&lock->begun_unowned, 1);
		else if (wait->owner.state == OWNER_READERS)
			__sync_fetch_and_add(&lock->begun_read_owned, 1);
	}
	wait->begin_ns = 0;
}

/* Of a lock each timed attempt is one of its own. */
static __always_inline bool may_wait_in_slices(__u32 value)
{
	switch (value) {
	case VALUE_TWO:
	case VALUE_THREE:
	case VALUE_OWNED_BY_THREAD:
	case VALUE_MUSL_BUSY:
	case VALUE_NEGATIVE:
	case VALUE_BIT_30:
	case VALUE_CEILING:
		return false;
	}
	return true;
}

/* A wait for a word begins where an earlier one for it ended: is that still the same acquisition? */
static __always_inline bool continues(const struct futex_wait *wait, __u64 uaddr, __u32 bits,
				      __u64 now)
{
	if (wait->uaddr != uaddr)
		return false;
	switch (wait->outcome) {
	case INTERRUPTED:
		return true;
	case TIMED_OUT:
		return bits & FUTEX_TIMEOUT && may_wait_in_slices(value_of(wait)) &&
		       now - wait->end_ns < SLICE_GAP_NS;
	case ACQUIRED:
		/* Had it got the lock, it would have had to wake the word to release it: woken, and too late. */
		return is_retry(wait, bits, now);
	}
	return false;
}

/* As if it had never begun. */
static __always_inline void queue_forgets(struct futex_wait *wait, __u64 begin_ns)
{
	if (wait->queued)
		queue_cancels(wait->site.lock.addr, wait->site.lock.kind, begin_ns);
	wait->queued = 0;
}

static __always_inline void queue_ends(struct futex_wait *wait, enum outcome outcome, __u32 how)
{
	if (!wait->queued)
		return;
	if (outcome != ACQUIRED)
		how |= QUEUE_ABORTED;
	else if (!(how & QUEUE_IN_PLACE) && wait->waker.tid)
		queue_charge_waker(wait->site.lock.addr, wait->site.lock.kind, wait->end_ns);
	queue_leaves(wait->site.lock.addr, wait->site.lock.kind | how, wait->end_ns);
}

/* The call in this thread's record begins; 1: its stack is wanted. */
__noinline int futex_begin_call(void)
{
	__u32 tid = bpf_get_current_pid_tgid(), tgid = bpf_get_current_pid_tgid() >> 32;
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	struct counters *c = this_cpu_counters();
	volatile struct futex_call *call;
	struct lock_stats *lock;
	__u64 now;

	if (!c || !wait)
		return 0;
	now = bpf_ktime_get_ns();
	call = &wait->call;
	if (wait->begin_ns && !wait->end_ns) {
		/* One function that waits calls another that is hooked. */
		if (wait->uaddr == call->uaddr && !wait->from_before)
			return 0;
		waiter_leaves(bpf_map_lookup_elem(&locks, &wait->site.lock));
		queue_forgets(wait, wait->begin_ns);
		c->lost[LOSS_UNPAIRED_BEGIN]++;
		wait->begin_ns = 0;
	}
	look_at(call);
	forget_hold(wait, call->uaddr);

	if (wait->begin_ns) {
		if (continues(wait, call->uaddr, call->bits, now)) {
			if (wait->queued)
				queue_rejoins(wait->site.lock.addr,
					      queue_how(wait->site.lock.kind, call->bits),
					      wait->end_ns, call->owner.tid, call->owner.task);
			wait->end_ns = 0;
			wait->merged++;
			wait->waker.tid = 0;
			c->events[FUTEX_MERGED]++;
			lock = lock_stats_if_room(&wait->site.lock);
			if (lock)
				__sync_fetch_and_add(&lock->waiting, 1);
			return 0;
		}
		settle(c, wait);
		if (wait->outcome == ACQUIRED && wait->uaddr != call->uaddr &&
		    releases_by_wake(wait->site.lock.kind, wait->site.futex))
			remember_hold(c, wait);
	}

	c->events[WAITS_BEGUN]++;
	wait->uaddr = call->uaddr;
	wait->site.lock.addr = call->uaddr;
	wait->site.lock.tgid = tgid;
	wait->site.lock.kind = is_pi(call->op) ? KIND_FUTEX_PI : KIND_FUTEX;
	if (call->bits >> FUTEX_PARKED_SHIFT & 0xf) {
		/* parking_lot: the word is the waiter's own. */
		lock = lock_stats_if_room(&wait->site.lock);
		wait->site.lock.addr = WORD(call, -32) | (__u64)WORD(call, -28) << 32;
		if (lock)
			lock->alias_of = wait->site.lock.addr;
	}
	wait->site.kernel_stack = STACK_NOT_TAKEN;
	wait->site.user_stack = STACK_LOST;
	wait->site.tgid = tgid;
	wait->site.futex = call->bits;
	wait->end_ns = 0;
	wait->merged = 0;
	wait->from_before = 0;
	wait->waker.tid = 0;
	wait->switches = voluntary_switches();
	__builtin_memcpy(&wait->owner, (void *)&call->owner, sizeof(wait->owner));
	bpf_get_current_comm(wait->comm, sizeof(wait->comm));
	lock = lock_stats_if_room(&wait->site.lock);
	if (lock) {
		__sync_fetch_and_add(&lock->waiting, 1);
		if (!lock->waiter_tid)
			lock->waiter_tid = tid;
		else if (lock->waiter_tid != tid)
			lock->several_waiters = 1;
	}
	*(volatile __u64 *)&wait->begin_ns = now;
	wait->queued =
	    queue_joins(wait->site.lock.addr, queue_how(wait->site.lock.kind, wait->site.futex),
			now, wait->owner.tid, wait->owner.task);
	return 1;
}

/*
 * A wait begins; 1: its stack is wanted. `uaddr`, `value`: as the hooked function got them, for waits that are
 * restarted after a signal, whose call is not in the registers; 0: only the registers are known.
 */
__noinline int futex_enter(__u64 regs, __u64 uaddr, __u32 value)
{
	struct counters *c = this_cpu_counters();
	volatile struct futex_call *call;
	struct syscall syscall = {};
	struct futex_wait *wait;

	if (!c)
		return 0;
	wait = futex_wait_of(c, bpf_get_current_pid_tgid());
	if (!wait)
		return 0;
	call = &wait->call;
	read_syscall((void *)regs, &syscall);
	call->sp = syscall.sp;
	call->thread_pointer = thread_pointer();
	if (!decode_futex_call(&syscall, (volatile void *)call)) {
		/* A restarted call, or the tracepoint's caller was wrong. */
		if (!uaddr)
			return 0;
		call->uaddr = uaddr;
		call->value = value;
		call->op = FUTEX_OP_UNKNOWN;
		call->timeout = 0;
	}
	return futex_begin_call();
}

__noinline int futex_has_stack(__u64 stack)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);

	if (!wait)
		return 0;
	wait->site.user_stack = stack;
	if (wait->queued)
		queue_has_stacks(PLACE_FUTEX, STACK_NOT_TAKEN, stack);
	return 0;
}

/* Where nothing tells exactly who woke whom: whoever woke the word last. */
static __always_inline void guess_waker(struct futex_wait *wait, const struct lock_stats *lock)
{
	__u32 tid = lock->waker_tid;
	struct futex_wait *waker = bpf_map_lookup_elem(&futex_waits, &tid);

	if (!waker)
		return;
	wait->waker.tid = tid;
	wait->waker.tgid = wait->site.lock.tgid;
	wait->waker.stack = waker->wake_stack;
	__builtin_memcpy(wait->waker.comm, waker->comm, sizeof(wait->waker.comm));
}

__noinline int futex_leave(__u64 ret)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	enum outcome outcome = futex_outcome(ret);
	struct counters *c = this_cpu_counters();
	struct lock_stats *lock;

	if (!c)
		return 0;
	if (!wait || !wait->begin_ns || wait->end_ns) {
		if (outcome != DID_NOT_WAIT)
			c->lost[LOSS_UNPAIRED_END]++;
		return 0;
	}
	lock = bpf_map_lookup_elem(&locks, &wait->site.lock);
	waiter_leaves(lock);
	/* The kernel also takes PI locks that are free. musl and glibc try that once. (Early waits have no call.) */
	if (wait->site.lock.kind == KIND_FUTEX_PI && !wait->from_before && !wait->call.candidate &&
	    wait->switches == voluntary_switches())
		outcome = DID_NOT_WAIT;
	if (outcome == DID_NOT_WAIT) {
		/* The word changed meanwhile: that is what was waited for, and the time before is not lost. */
		if (wait->merged) {
			wait->outcome = ACQUIRED;
			wait->end_ns = bpf_ktime_get_ns();
			queue_ends(wait, ACQUIRED, 0);
		} else {
			c->events[FUTEX_RETRIES]++;
			queue_forgets(wait, wait->begin_ns);
			wait->begin_ns = 0;
		}
		return 0;
	}
	wait->outcome = outcome;
	wait->end_ns = bpf_ktime_get_ns();
	queue_ends(wait, outcome, 0);
	if (outcome == ACQUIRED) {
		if (!wait->waker.tid && lock && lock->waker_tid &&
		    (!cfg.have_wake_mark || wait->site.lock.kind == KIND_FUTEX_PI))
			guess_waker(wait, lock);
		if (wait->waker.tid)
			count_release(c, wait, tid);
		if (lock)
			__sync_fetch_and_add(&lock->woken, 1);
	}
	return 0;
}

/* restart_syscall(2): the wait that a signal interrupted goes on. */
__noinline int futex_restarts(void)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	struct counters *c = this_cpu_counters();
	struct lock_stats *lock;

	if (!c || !wait || !wait->begin_ns || !wait->end_ns || wait->outcome != INTERRUPTED)
		return 0;
	if (wait->queued)
		queue_rejoins(wait->site.lock.addr, wait->site.lock.kind, wait->end_ns,
			      wait->owner.tid, 0);
	wait->end_ns = 0;
	wait->merged++;
	c->events[FUTEX_MERGED]++;
	lock = lock_stats_if_room(&wait->site.lock);
	if (lock)
		__sync_fetch_and_add(&lock->waiting, 1);
	return 0;
}

__noinline int futex_is_waiting(void)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);

	return wait && wait->begin_ns && !wait->end_ns;
}

/* The lock that threads wait for at this word. */
static __always_inline struct lock_stats *lock_at(__u64 *uaddr, __u32 kind)
{
	struct lock_key key = { .addr = *uaddr,
				.tgid = bpf_get_current_pid_tgid() >> 32,
				.kind = kind };
	struct lock_stats *lock = bpf_map_lookup_elem(&locks, &key);

	if (!lock || !lock->alias_of)
		return lock;
	*uaddr = key.addr = lock->alias_of;
	return bpf_map_lookup_elem(&locks, &key);
}

#define SOMEBODY_WAITS 1
#define COST_OTHERS_TIME 2

/*
 * The current thread is about to wake a word. Not 0: its stack is wanted, for somebody may wait, or because it held
 * the lock while somebody did.
 */
__noinline int futex_release(__u64 uaddr, __u32 kind, __u32 wake)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	struct counters *c = this_cpu_counters();
	struct lock_stats *lock;
	int wanted_for = 0;
	__u64 now, word = uaddr;

	lock = lock_at(&uaddr, kind);

	if (!c)
		return 0;
	if (wait) {
		now = bpf_ktime_get_ns();
		wait->wake_has_stack = 0;
		if (wait->begin_ns && wait->end_ns && wait->uaddr == word) {
			if (wait->outcome == ACQUIRED &&
			    releases_by_wake(wait->site.lock.kind, wait->site.futex))
				add_hold(lock, now - wait->end_ns);
			settle(c, wait);
		}
		for (int i = 0; i < MAX_FUTEX_HOLDS; i++) {
			if (wait->held[i].addr != word)
				continue;
			add_hold(lock, now - wait->held[i].acquired_ns);
			wait->held[i].addr = 0;
			break;
		}
	}
	if (!lock)
		return 0;
	if (queue_release(uaddr, kind))
		wanted_for = COST_OTHERS_TIME;
	__sync_fetch_and_add(&lock->wake_calls, 1);
	if (wake == 0x7fffffff)
		__sync_fetch_and_add(&lock->wake_all_calls, 1);
	if (!lock->waiting)
		return wanted_for;
	if (!wait) {
		wait = futex_wait_of(c, tid);
		if (!wait)
			return wanted_for;
		bpf_get_current_comm(wait->comm, sizeof(wait->comm));
	}
	wait->wake_stack = STACK_NOT_TAKEN;
	return wanted_for | SOMEBODY_WAITS;
}

__noinline int futex_release_has_stack(__u64 uaddr, __u32 kind, __u64 stack, __u32 wanted_for)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	struct lock_stats *lock = lock_at(&uaddr, kind);

	if (lock && wanted_for & COST_OTHERS_TIME)
		queue_charge(uaddr, kind, STACK_NOT_TAKEN, stack);
	if (!wait || !lock || !(wanted_for & SOMEBODY_WAITS))
		return 0;
	wait->wake_stack = stack;
	wait->wake_has_stack = 1;
	lock->waker_tid = tid;
	return 0;
}

/* A wait that began before the profile ends where it is woken: that thread may have the lock now. */
static __always_inline void early_wait_leaves(const struct futex_wait *wakee, __u32 tid)
{
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &wakee->site.lock);
	struct queue_sum sum;
	struct queue *q;

	if (!stats)
		return;
	q = &stats->queue;
	sum = queue_sum(q, wakee->end_ns);
	count_wall(q, sum.waiters, wakee->end_ns);
	if (q->state == QUEUE_FREE) {
		queue_take(q, sum.ns);
		add_ns(&q->handoff_ns, sum.ns);
		q->handoffs++;
		q->state = QUEUE_HELD;
		q->held_since_ns = wakee->end_ns;
		q->holder.tid = tid;
		q->holder.tgid = wakee->site.tgid;
		q->holder.evidence = HOLDER_ACQUIRED;
		q->holder.reads = 0;
		q->holder.kernel_stack = STACK_NOT_TAKEN;
		q->holder.user_stack = wakee->site.user_stack;
		__builtin_memcpy(q->holder.comm, wakee->comm, sizeof(q->holder.comm));
	}
	__sync_fetch_and_add(&q->value, -queue_unit(wakee->end_ns));
}

/* The current thread wakes this one, under the lock of a futex bucket: only look-ups here. */
__noinline int futex_wakes(__u32 wakee_tid)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id;
	struct futex_wait *wakee = bpf_map_lookup_elem(&futex_waits, &wakee_tid);
	const struct task_struct *task = (void *)bpf_get_current_task();
	struct futex_wait *waker;

	if (!wakee || !wakee->begin_ns || wakee->end_ns)
		return 0;
	waker = bpf_map_lookup_elem(&futex_waits, &tid);
	wakee->waker.tid = tid;
	wakee->waker.woken_ns = bpf_ktime_get_ns();
	wakee->waker.tgid = id >> 32;
	wakee->waker.stack = STACK_NOT_TAKEN;
	/* The stack is that of this system call; a thread that exits makes none. */
	if (waker && waker->wake_has_stack && !(BPF_CORE_READ(task, flags) & PF_EXITING))
		wakee->waker.stack = waker->wake_stack;
	bpf_get_current_comm(wakee->waker.comm, sizeof(wakee->waker.comm));
	if (wakee->from_before) {
		/* Neither fexit nor a return probe comes for a call that was entered before it was there. */
		waiter_leaves(bpf_map_lookup_elem(&locks, &wakee->site.lock));
		wakee->outcome = ACQUIRED;
		wakee->end_ns = wakee->waker.woken_ns;
		if (wakee->queued)
			early_wait_leaves(wakee, wakee_tid);
	}
	return 0;
}

__noinline int futex_thread_exits(void)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	struct counters *c = this_cpu_counters();

	if (!c || !wait)
		return 0;
	if (wait->begin_ns && wait->end_ns) {
		settle(c, wait);
	} else if (wait->begin_ns) {
		waiter_leaves(bpf_map_lookup_elem(&locks, &wait->site.lock));
		queue_forgets(wait, wait->begin_ns);
		c->lost[LOSS_UNPAIRED_BEGIN]++;
	}
	bpf_map_delete_elem(&futex_waits, &tid);
	return 0;
}
