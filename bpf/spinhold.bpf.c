// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The entry points of spinlocks and rwlocks: kernel/locking/spinlock.c. On PREEMPT_RT the raw ones.
 *
 * By fentry only: a kprobe costs more than the lock, and is not delivered inside another one.
 */
#include "spinhold.bpf.h"

SPIN_ACQUIRE_FN(_raw_spin_lock, KIND_SPINLOCK, spin_always)
SPIN_ACQUIRE_FN(_raw_spin_lock_bh, KIND_SPINLOCK, spin_always)
SPIN_ACQUIRE_FN(_raw_spin_lock_irq, KIND_SPINLOCK, spin_always)
SPIN_ACQUIRE_FN(_raw_spin_lock_irqsave, KIND_SPINLOCK, spin_always)
SPIN_ACQUIRE_FN(_raw_spin_trylock, KIND_SPINLOCK, spin_if_true)
SPIN_ACQUIRE_FN(_raw_spin_trylock_bh, KIND_SPINLOCK, spin_if_true)
/* CONFIG_DEBUG_LOCK_ALLOC */
SPIN_ACQUIRE_FN(_raw_spin_lock_nested, KIND_SPINLOCK, spin_always)
SPIN_ACQUIRE_FN(_raw_spin_lock_irqsave_nested, KIND_SPINLOCK, spin_always)
SPIN_ACQUIRE_FN(_raw_spin_lock_nest_lock, KIND_SPINLOCK, spin_always)
SPIN_RELEASE_FN(_raw_spin_unlock, KIND_SPINLOCK)
SPIN_RELEASE_FN(_raw_spin_unlock_bh, KIND_SPINLOCK)
SPIN_RELEASE_FN(_raw_spin_unlock_irq, KIND_SPINLOCK)
SPIN_RELEASE_FN(_raw_spin_unlock_irqrestore, KIND_SPINLOCK)

SPIN_ACQUIRE_FN(_raw_read_lock, KIND_RWLOCK_READ, spin_always)
SPIN_ACQUIRE_FN(_raw_read_lock_bh, KIND_RWLOCK_READ, spin_always)
SPIN_ACQUIRE_FN(_raw_read_lock_irq, KIND_RWLOCK_READ, spin_always)
SPIN_ACQUIRE_FN(_raw_read_lock_irqsave, KIND_RWLOCK_READ, spin_always)
SPIN_ACQUIRE_FN(_raw_read_trylock, KIND_RWLOCK_READ, spin_if_true)
SPIN_RELEASE_FN(_raw_read_unlock, KIND_RWLOCK_READ)
SPIN_RELEASE_FN(_raw_read_unlock_bh, KIND_RWLOCK_READ)
SPIN_RELEASE_FN(_raw_read_unlock_irq, KIND_RWLOCK_READ)
SPIN_RELEASE_FN(_raw_read_unlock_irqrestore, KIND_RWLOCK_READ)

SPIN_ACQUIRE_FN(_raw_write_lock, KIND_RWLOCK_WRITE, spin_always)
SPIN_ACQUIRE_FN(_raw_write_lock_nested, KIND_RWLOCK_WRITE, spin_always)
SPIN_ACQUIRE_FN(_raw_write_lock_bh, KIND_RWLOCK_WRITE, spin_always)
SPIN_ACQUIRE_FN(_raw_write_lock_irq, KIND_RWLOCK_WRITE, spin_always)
SPIN_ACQUIRE_FN(_raw_write_lock_irqsave, KIND_RWLOCK_WRITE, spin_always)
SPIN_ACQUIRE_FN(_raw_write_trylock, KIND_RWLOCK_WRITE, spin_if_true)
SPIN_RELEASE_FN(_raw_write_unlock, KIND_RWLOCK_WRITE)
SPIN_RELEASE_FN(_raw_write_unlock_bh, KIND_RWLOCK_WRITE)
SPIN_RELEASE_FN(_raw_write_unlock_irq, KIND_RWLOCK_WRITE)
SPIN_RELEASE_FN(_raw_write_unlock_irqrestore, KIND_RWLOCK_WRITE)
