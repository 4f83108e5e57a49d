// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * mutex: kernel/locking/mutex.c. The three slow paths are entered only when the fast path's
 * compare-and-exchange failed, spin (optimistic) and sleep included. mutex_lock_io goes through
 * mutex_lock. PREEMPT_RT kernels have none of them: there the tracepoints serve.
 */
#include "hold.bpf.h"

LOCK_FN(__mutex_lock_slowpath, KIND_MUTEX, 1, outcome_of_void)
LOCK_FN(__mutex_lock_killable_slowpath, KIND_MUTEX, 1, outcome_of_int)
LOCK_FN(__mutex_lock_interruptible_slowpath, KIND_MUTEX, 1, outcome_of_int)

/* ww_mutex begins with a mutex. -EDEADLK: it backs off and takes its locks in another order. */
LOCK_FN(__ww_mutex_lock_slowpath, KIND_MUTEX, 2, outcome_of_int)
LOCK_FN(__ww_mutex_lock_interruptible_slowpath, KIND_MUTEX, 2, outcome_of_int)

/* mutex_lock_io() calls mutex_lock(): hooking it too would count twice. */
ACQUIRE_FN(1, mutex_lock, KIND_MUTEX, acquired_always)
ACQUIRE_FN(2, mutex_lock_interruptible, KIND_MUTEX, acquired_if_zero)
ACQUIRE_FN(3, mutex_lock_killable, KIND_MUTEX, acquired_if_zero)
ACQUIRE_FN(4, mutex_trylock, KIND_MUTEX, acquired_if_true)
RELEASE_FN(mutex_unlock, KIND_MUTEX)

/* CONFIG_DEBUG_LOCK_ALLOC: mutex_lock() and its like are macros around these, mutex_lock_io() too. */
ACQUIRE_FN_OF(26, mutex_lock_nested, KIND_MUTEX, 2, acquired_always)
ACQUIRE_FN_OF(27, mutex_lock_interruptible_nested, KIND_MUTEX, 2, acquired_if_zero)
ACQUIRE_FN_OF(28, mutex_lock_killable_nested, KIND_MUTEX, 2, acquired_if_zero)
ACQUIRE_FN_OF(29, mutex_lock_io_nested, KIND_MUTEX, 2, acquired_always)
ACQUIRE_FN_OF(30, _mutex_lock_nest_lock, KIND_MUTEX, 2, acquired_always)

/* ww_mutex_unlock() calls mutex_unlock(). */
ACQUIRE_FN_OF(12, ww_mutex_lock, KIND_MUTEX, 2, acquired_if_zero)
ACQUIRE_FN_OF(13, ww_mutex_lock_interruptible, KIND_MUTEX, 2, acquired_if_zero)

/* Without a context it calls mutex_trylock(), which is counted there. */
SEC("?fexit/ww_mutex_trylock")
int ww_mutex_trylock__fexit(__u64 *ctx)
{
	if (!ctx[1] || !acquired_if_true(ctx[2]))
		return 0;
	return acquired(plain_number(ctx[0]), KIND_MUTEX);
}

#define CALL_WW_MUTEX_TRYLOCK 14

SEC("?kprobe/ww_mutex_trylock")
int ww_mutex_trylock__kprobe(struct pt_regs *ctx)
{
	if (!PT_REGS_PARM2(ctx))
		return 0;
	return call_begins(PT_REGS_PARM1(ctx), CALL_WW_MUTEX_TRYLOCK);
}

SEC("?kretprobe/ww_mutex_trylock")
int ww_mutex_trylock__kretprobe(struct pt_regs *ctx)
{
	return call_ends(CALL_WW_MUTEX_TRYLOCK, KIND_MUTEX, acquired_if_true(PT_REGS_RC(ctx)));
}
