// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * spinlock and rwlock: kernel/locking/qspinlock.c, qrwlock.c. The slow paths are entered by every waiter,
 * the first one too, for whom the tracepoints do not fire; and under a hypervisor without paravirtual
 * spinlocks, where they never do (virt_spin_lock).
 *
 * On PREEMPT_RT these are the raw spinlocks; spinlock_t and rwlock_t sleep there.
 */
#include "spin.bpf.h"

SPIN_FN(native_queued_spin_lock_slowpath, KIND_SPINLOCK)
SPIN_FN(__pv_queued_spin_lock_slowpath, KIND_SPINLOCK)
SPIN_FN(queued_read_lock_slowpath, KIND_RWLOCK_READ)
SPIN_FN(queued_write_lock_slowpath, KIND_RWLOCK_WRITE)
