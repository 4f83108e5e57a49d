// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Releases of locks that somebody waits for. These functions run when the holder finds waiters (up() always).
 *
 * Whoever the holder is, it lets go of what a traced task waits for: not the process is compared here but
 * the lock. Of a semaphore, which is released in interrupts too, only a counter is raised.
 *
 * Not contended_release (7.3): it comes after the owner word was cleared, when the next owner may have said
 * contention_end already, and switching it on makes every unlock of every spinlock a call (kernels.md).
 */
#include "release.bpf.h"

#define CONTENDED_RELEASE_FN(fn, kind, other_side) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return contended_release(ctx, plain_number(ctx[0]), kind, other_side); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return contended_release(ctx, PT_REGS_PARM1(ctx), kind, other_side); \
	}

CONTENDED_RELEASE_FN(__mutex_unlock_slowpath, KIND_MUTEX, KIND_MUTEX)
CONTENDED_RELEASE_FN(rwsem_wake, KIND_RWSEM_WRITE, KIND_RWSEM_READ)
CONTENDED_RELEASE_FN(up, KIND_SEMAPHORE, KIND_SEMAPHORE)
