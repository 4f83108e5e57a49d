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

/* mutex_lock_io() calls mutex_lock(): hooking it too would count twice. */
ACQUIRE_FN(1, mutex_lock, KIND_MUTEX, acquired_always)
ACQUIRE_FN(2, mutex_lock_interruptible, KIND_MUTEX, acquired_if_zero)
ACQUIRE_FN(3, mutex_lock_killable, KIND_MUTEX, acquired_if_zero)
ACQUIRE_FN(4, mutex_trylock, KIND_MUTEX, acquired_if_true)
RELEASE_FN(mutex_unlock, KIND_MUTEX)
