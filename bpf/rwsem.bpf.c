// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * rw_semaphore: kernel/locking/rwsem.c. Readers and writers are two kinds and never mix.
 * The slow paths include what the tracepoints miss: the optimistic spin of a writer and the steal
 * of a reader.
 */
#include "hold.bpf.h"

LOCK_FN(rwsem_down_read_slowpath, KIND_RWSEM_READ, cfg.rwsem_read_nargs, outcome_of_pointer)
LOCK_FN(rwsem_down_write_slowpath, KIND_RWSEM_WRITE, cfg.rwsem_write_nargs, outcome_of_pointer)

ACQUIRE_FN(5, down_write, KIND_RWSEM_WRITE, acquired_always)
ACQUIRE_FN(6, down_write_killable, KIND_RWSEM_WRITE, acquired_if_zero)
ACQUIRE_FN(7, down_write_trylock, KIND_RWSEM_WRITE, acquired_if_true)
RELEASE_FN(up_write, KIND_RWSEM_WRITE)

ACQUIRE_FN(8, down_read, KIND_RWSEM_READ, acquired_always)
ACQUIRE_FN(9, down_read_interruptible, KIND_RWSEM_READ, acquired_if_zero)
ACQUIRE_FN(10, down_read_killable, KIND_RWSEM_READ, acquired_if_zero)
ACQUIRE_FN(11, down_read_trylock, KIND_RWSEM_READ, acquired_if_true)
RELEASE_FN(up_read, KIND_RWSEM_READ)

/* CONFIG_DEBUG_LOCK_ALLOC; elsewhere these are macros for the functions above. */
ACQUIRE_FN_OF(31, down_write_nested, KIND_RWSEM_WRITE, 2, acquired_always)
ACQUIRE_FN_OF(32, down_write_killable_nested, KIND_RWSEM_WRITE, 2, acquired_if_zero)
ACQUIRE_FN_OF(33, _down_write_nest_lock, KIND_RWSEM_WRITE, 2, acquired_always)
ACQUIRE_FN_OF(34, down_read_nested, KIND_RWSEM_READ, 2, acquired_always)
ACQUIRE_FN_OF(35, down_read_killable_nested, KIND_RWSEM_READ, 2, acquired_if_zero)
ACQUIRE_FN(36, down_read_non_owner, KIND_RWSEM_READ, acquired_always)
RELEASE_FN(up_read_non_owner, KIND_RWSEM_READ)

/* The write hold ends and a read hold of the same task begins. */
static __always_inline int downgraded(__u64 addr)
{
	released(addr, KIND_RWSEM_WRITE);
	return acquired(addr, KIND_RWSEM_READ);
}

SEC("?fentry/downgrade_write")
int downgrade_write__fentry(__u64 *ctx)
{
	return downgraded(plain_number(ctx[0]));
}

SEC("?kprobe/downgrade_write")
int downgrade_write__kprobe(struct pt_regs *ctx)
{
	return downgraded(PT_REGS_PARM1(ctx));
}
