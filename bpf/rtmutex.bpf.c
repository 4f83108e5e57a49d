// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * rt_mutex: kernel/locking/rtmutex.c. The slow path can be hooked on 5.10 only. Later kernels have the slow path only as name.constprop.0,
 * whose arguments nobody knows; their contention tracepoints see every wait.
 */
#include "hold.bpf.h"

LOCK_FN(rt_mutex_slowlock, KIND_RTMUTEX, 4, outcome_of_int)

ACQUIRE_FN(15, rt_mutex_lock, KIND_RTMUTEX, acquired_always)
ACQUIRE_FN(16, rt_mutex_lock_interruptible, KIND_RTMUTEX, acquired_if_zero)
ACQUIRE_FN(17, rt_mutex_lock_killable, KIND_RTMUTEX, acquired_if_zero)
ACQUIRE_FN(18, rt_mutex_trylock, KIND_RTMUTEX, acquired_if_true)
RELEASE_FN(rt_mutex_unlock, KIND_RTMUTEX)

/* PREEMPT_RT: kernel/locking/spinlock_rt.c. spinlock_t and rwlock_t are locks that sleep. */
ACQUIRE_FN(19, rt_spin_lock, KIND_SPINLOCK, acquired_always)
ACQUIRE_FN(20, rt_spin_trylock, KIND_SPINLOCK, acquired_if_true)
ACQUIRE_FN(21, rt_spin_trylock_bh, KIND_SPINLOCK, acquired_if_true)
RELEASE_FN(rt_spin_unlock, KIND_SPINLOCK)
ACQUIRE_FN(22, rt_read_lock, KIND_RWLOCK_READ, acquired_always)
ACQUIRE_FN(23, rt_read_trylock, KIND_RWLOCK_READ, acquired_if_true)
RELEASE_FN(rt_read_unlock, KIND_RWLOCK_READ)
ACQUIRE_FN(24, rt_write_lock, KIND_RWLOCK_WRITE, acquired_always)
ACQUIRE_FN(25, rt_write_trylock, KIND_RWLOCK_WRITE, acquired_if_true)
RELEASE_FN(rt_write_unlock, KIND_RWLOCK_WRITE)
