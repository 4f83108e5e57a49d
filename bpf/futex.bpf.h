/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a waiting futex call looks like: operation, expected value, where the word is, and what the words around
 * it could be. The layouts are those of the C libraries and runtimes named; the conclusion is drawn in user space
 * from all calls on an address (src/futexes), for a single one can mislead.
 */
#ifndef FUTEX_BPF_H
#define FUTEX_BPF_H

#include "thread.bpf.h"

/* linux/futex.h; the mask tolerates flags newer kernels may add above it. */
#define FUTEX_CMD(op) ((op)&0x7f)
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX_REQUEUE 3
#define FUTEX_CMP_REQUEUE 4
#define FUTEX_WAKE_OP 5
#define FUTEX_LOCK_PI 6
#define FUTEX_UNLOCK_PI 7
#define FUTEX_WAIT_BITSET 9
#define FUTEX_WAKE_BITSET 10
#define FUTEX_WAIT_REQUEUE_PI 11
#define FUTEX_CMP_REQUEUE_PI 12
#define FUTEX_LOCK_PI2 13
/* Not of the kernel: futex_waitv(2). */
#define FUTEX_WAITV 0x7f
#define FUTEX_PRIVATE 0x80
#define FUTEX_CLOCK_REALTIME 0x100

/* Numbers of system calls: asm-generic/unistd.h has the new ones on all architectures. */
#if defined(__TARGET_ARCH_x86)
#define NR_FUTEX 202
#define NR_RESTART_SYSCALL 219
#elif defined(__TARGET_ARCH_arm64)
#define NR_FUTEX 98
#define NR_RESTART_SYSCALL 128
#endif
#define NR_FUTEX_WAITV 449
#define NR_FUTEX_WAKE 454
#define NR_FUTEX_WAIT 455
#define NR_FUTEX_REQUEUE 456
/* arch/x86/entry/syscalls/syscall_32.tbl, and arm's 32-bit table */
#define NR_COMPAT_FUTEX 240
#define NR_COMPAT_FUTEX_TIME64 422

/*
 * The futex call in the registers of a system call's entry; false: it is none. The registers stay as they are
 * until the call returns.
 */
static __always_inline bool decode_futex_call(const struct syscall *call,
					      volatile struct futex_request *futex)
{
	struct {
		__u64 value;
		__u64 uaddr;
		__u32 flags;
		__u32 reserved;
	} first = {};

	futex->compat = call->compat;
	futex->uaddr = call->args[0];
	if (call->compat) {
		if (call->nr != NR_COMPAT_FUTEX && call->nr != NR_COMPAT_FUTEX_TIME64 &&
		    call->nr != NR_FUTEX_WAITV)
			return false;
	} else if (call->nr < NR_FUTEX_WAITV && call->nr != NR_FUTEX) {
		return false;
	}
	if (call->nr == NR_FUTEX_WAITV) {
		if (bpf_probe_read_user(&first, sizeof(first), (void *)call->args[0]))
			return false;
		futex->uaddr = first.uaddr;
		futex->value = first.value;
		/* FUTEX2_PRIVATE is FUTEX_PRIVATE_FLAG. */
		futex->op = FUTEX_WAITV | (first.flags & FUTEX_PRIVATE);
		futex->timeout = call->args[3] != 0;
	} else if (call->nr == NR_FUTEX_WAIT) {
		futex->value = call->args[1];
		futex->op = FUTEX_WAIT_BITSET | (call->args[3] & FUTEX_PRIVATE);
		futex->timeout = call->args[4] != 0;
	} else if (call->nr == NR_FUTEX_WAKE) {
		futex->value = call->args[2];
		futex->op = FUTEX_WAKE_BITSET | (call->args[3] & FUTEX_PRIVATE);
		futex->timeout = 0;
	} else if (call->nr == NR_FUTEX_REQUEUE) {
		if (bpf_probe_read_user(&first, sizeof(first), (void *)call->args[0]))
			return false;
		futex->uaddr = first.uaddr;
		futex->value = call->args[2];
		futex->op = FUTEX_CMP_REQUEUE | (first.flags & FUTEX_PRIVATE);
		futex->timeout = 0;
	} else if (call->nr == NR_FUTEX || call->compat) {
		futex->op = call->args[1];
		futex->value = call->args[2];
		futex->timeout = call->args[3] != 0;
	} else {
		return false;
	}
	return true;
}

static __always_inline bool is_futex_wait(__u32 op)
{
	switch (FUTEX_CMD(op)) {
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
	case FUTEX_WAIT_REQUEUE_PI:
	case FUTEX_LOCK_PI:
	case FUTEX_LOCK_PI2:
	case FUTEX_WAITV:
		return true;
	}
	return false;
}

static __always_inline bool is_pi(__u32 op)
{
	return FUTEX_CMD(op) == FUTEX_LOCK_PI || FUTEX_CMD(op) == FUTEX_LOCK_PI2;
}

#define WORD(call, offset) ((call)->words.word[10 + (offset) / 4])

static __always_inline void read_words(volatile struct futex_call *call)
{
	struct futex_words *words = (void *)&call->words;

	if (!bpf_probe_read_user(words, sizeof(*words), (void *)(call->uaddr - 40)))
		return;
	/* The page before may not be there. */
	__builtin_memset(words, 0, sizeof(*words));
	bpf_probe_read_user(&words->word[10], 40, (void *)call->uaddr);
}

static __always_inline __u32 value_class(__u32 value)
{
	switch (value) {
	case 0:
		return VALUE_ZERO;
	case 1:
		return VALUE_ONE;
	case 2:
		return VALUE_TWO;
	case 3:
		return VALUE_THREE;
	case 5:
		return VALUE_FIVE;
	case 7:
		return VALUE_SEVEN;
	case 0xffffffff:
		return VALUE_ALL_ONES;
	case 0x80000010:
		return VALUE_MUSL_BUSY;
	case 0x80000000:
		return VALUE_BIT_31;
	}
	if (value & 0x80000000)
		return VALUE_NEGATIVE;
	if (value & 0x40000000)
		return VALUE_BIT_30;
	/* nptl/pthread_mutex_lock.c: ceiling << PTHREAD_MUTEX_PRIO_CEILING_SHIFT | 2 */
	if (value >= 1 << 19 && (value & 0x7ffff) == 2)
		return VALUE_CEILING;
	return VALUE_OTHER;
}

static __always_inline __u32 place_of(const volatile struct futex_call *call)
{
	bool on_stack = call->uaddr >= call->sp && call->uaddr < call->sp + 65536;

	/* The thread's own record begins there, thread-local variables end there; and a thread's stack begins
	 * below them: not far in glibc, at once in musl. */
	if (call->uaddr >= call->thread_pointer && call->uaddr < call->thread_pointer + 4096)
		return PLACE_THREAD_LOCAL;
	if (call->uaddr + 2048 >= call->thread_pointer && call->uaddr < call->thread_pointer)
		return on_stack ? PLACE_EITHER : PLACE_THREAD_LOCAL;
	return on_stack ? PLACE_OWN_STACK : PLACE_ELSEWHERE;
}

/* glibc's flag that a lock is shared between processes: LLL_PRIVATE, LLL_SHARED. */
static __always_inline bool is_shared_flag(__u32 word)
{
	return word == 0 || word == 128;
}

/*
 * parking_lot_core's ThreadData: { key at -32, …, token at -8, the word }, in thread-local storage. The lock is
 * the key. Tokens are lock states of parking_lot's raw_rwlock.rs: 8 exclusive, 16 and 20 shared.
 */
static __always_inline __u32 parked_of(const volatile struct futex_call *call)
{
	__u64 token, key;
	__u8 state;

	if ((call->op & ~FUTEX_CLOCK_REALTIME) != (FUTEX_WAIT | FUTEX_PRIVATE) ||
	    call->value != 1 || call->compat)
		return PARKED_NOT;
	if (call->uaddr > call->thread_pointer || call->uaddr + 65536 < call->thread_pointer)
		return PARKED_NOT;
	key = WORD(call, -32) | (__u64)WORD(call, -28) << 32;
	token = WORD(call, -8) | (__u64)WORD(call, -4) << 32;
	if (token > 24 || token & 3 || key < 4096)
		return PARKED_NOT;
	/* raw_mutex.rs: LOCKED_BIT | PARKED_BIT, checked just before the thread parks. */
	if (bpf_probe_read_user(&state, sizeof(state), (void *)key))
		return PARKED_NOT;
	if (token & 16)
		return PARKED_READ;
	if (token & 8)
		return PARKED_WRITE;
	return (state & 3) == 3 ? PARKED_MUTEX : PARKED_MUTEX_OR_CONDVAR;
}

static __always_inline bool is_plain(const volatile struct futex_call *call)
{
	return FUTEX_CMD(call->op) == FUTEX_WAIT;
}

static __always_inline bool is_bitset(const volatile struct futex_call *call)
{
	return FUTEX_CMD(call->op) == FUTEX_WAIT_BITSET;
}

/*
 * Which word would be the owner's thread id, if this is what it looks like: what it looks like goes to
 * `call->bits`, and becomes true only when that thread lives.
 */
static __always_inline void find_candidate(volatile struct futex_call *call)
{
	call->candidate = 0;
	call->if_it_lives = 0;
	if (is_pi(call->op)) {
		/* FUTEX_TID_MASK */
		call->candidate = WORD(call, 0) & 0x3fffffff;
		return;
	}
	if (!is_plain(call) && !is_bitset(call))
		return;
	/* musl's FILE: tid | MAYBE_WAITERS (src/stdio/__lockfile.c) */
	if (call->value >> 30 == 1 && is_plain(call)) {
		call->candidate = call->value & 0x3fffffff;
		return;
	}
	if (call->value >> 31) {
		if (call->value == 0xffffffff)
			return;
		call->candidate = call->value & 0x3fffffff;
		call->if_it_lives = VALUE_OWNED_BY_THREAD << FUTEX_VALUE_SHIFT;
		return;
	}
	/* pthread_rwlock_t: __readers at 0, __wrphase_futex at 8, __writers_futex at 12, two words that stay 0,
	 * __cur_writer at 24, __shared at 28. (readers >> PTHREAD_RWLOCK_READER_SHIFT is their number.) Without a
	 * timeout glibc says realtime all the same; Rust's mutex does not. */
	if (is_bitset(call) && (call->timeout || call->op & FUTEX_CLOCK_REALTIME) &&
	    (call->value == 2 || call->value == 3)) {
		if (WORD(call, -8) && !WORD(call, 8) && !WORD(call, 12) && WORD(call, 20) <= 1) {
			call->candidate = WORD(call, 16);
			call->if_it_lives = FUTEX_WORDS_RWLOCK_PHASE;
			if (!call->candidate) {
				call->bits |= FUTEX_WORDS_RWLOCK_PHASE;
				if (WORD(call, -8) >> 3)
					call->owner.state = OWNER_READERS;
			}
			return;
		}
		if (WORD(call, -12) && !WORD(call, 4) && !WORD(call, 8) && WORD(call, 16) <= 1) {
			call->candidate = WORD(call, 12);
			call->if_it_lives = FUTEX_WORDS_RWLOCK_WRITERS;
			if (!call->candidate) {
				call->bits |= FUTEX_WORDS_RWLOCK_WRITERS;
				if (WORD(call, -12) >> 3)
					call->owner.state = OWNER_READERS;
			}
			return;
		}
	}
	/* pthread_mutex_t: __owner at 8, __nusers at 12, __kind at 16. glibc's plain wait has no bitset, its timed
	 * one has; Rust's mutex always has one, and no timeout. */
	if (call->value == 2) {
		if (is_bitset(call) && !call->timeout)
			return;
		if (!WORD(call, 12) || WORD(call, 12) >= 0x10000 || WORD(call, 16) & ~0x3ff)
			return;
		call->candidate = WORD(call, 8);
		call->if_it_lives = FUTEX_WORDS_GLIBC_MUTEX;
		return;
	}
	/* nptl/pthread_mutex_lock.c: the priority ceiling and 2 */
	if (value_class(call->value) == VALUE_CEILING) {
		call->candidate = WORD(call, 8);
		return;
	}
	/* pthread_join */
	if (call->value > 3 && !(call->op & FUTEX_PRIVATE)) {
		call->candidate = call->value;
		call->if_it_lives = VALUE_THREAD << FUTEX_VALUE_SHIFT;
	}
}

/* What needs no living thread. */
static __always_inline void look_at_words(volatile struct futex_call *call)
{
	if (is_bitset(call)) {
		/* pthread_cond_t: __wrefs before the two futexes; a waiter counts 8. */
		if ((WORD(call, -4) >= 8 && WORD(call, -4) < 1 << 20) ||
		    (WORD(call, -8) >= 8 && WORD(call, -8) < 1 << 20))
			call->bits |= FUTEX_WORDS_GLIBC_COND;
		/* sem_t: value, waiters, shared */
		if (!call->value && WORD(call, 4) && WORD(call, 4) < 1 << 20 &&
		    is_shared_flag(WORD(call, 8)))
			call->bits |= FUTEX_WORDS_GLIBC_SEM;
		/* library/std/src/sys/sync/rwlock/futex.rs: WRITERS_WAITING of the state before */
		if (WORD(call, -4) & 0x80000000 && !call->timeout)
			call->bits |= FUTEX_WORDS_RUST_WRITERS;
	}
	/* pthread_barrier_t: in, current_round, count, shared */
	if (is_plain(call) && WORD(call, -4) && WORD(call, -4) <= WORD(call, 4) &&
	    WORD(call, 4) < 1 << 20 && is_shared_flag(WORD(call, 8)))
		call->bits |= FUTEX_WORDS_GLIBC_BARRIER;
}

/* The record of a thread, new if it has none. */
static __always_inline struct futex_wait *futex_wait_of(struct counters *c, __u32 tid)
{
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);

	if (wait)
		return wait;
	bpf_map_update_elem(&futex_waits, &tid, &zero_futex_wait, BPF_NOEXIST);
	wait = bpf_map_lookup_elem(&futex_waits, &tid);
	if (!wait)
		c->lost[LOSS_FUTEX_WAITS_MAP_FULL]++;
	return wait;
}

/* Fills `bits` and `owner` of a decoded call. */
static __always_inline void look_at(volatile struct futex_call *call)
{
	struct thread *thread;

	__builtin_memset((void *)&call->owner, 0, sizeof(call->owner));
	call->bits = call->op & (0x7f | FUTEX_PRIVATE | FUTEX_CLOCK_REALTIME | FUTEX_OP_UNKNOWN);
	if (call->timeout)
		call->bits |= FUTEX_TIMEOUT;
	if (call->compat)
		call->bits |= FUTEX_COMPAT;
	call->bits |= place_of(call) << FUTEX_PLACE_SHIFT;
	read_words((void *)call);
	look_at_words(call);
	find_candidate(call);
	if (call->candidate) {
		thread = find_thread(call->candidate, !(call->op & FUTEX_PRIVATE));
		if (thread) {
			call->bits |= call->if_it_lives;
			/* EBUSY is 16: in a container there may be such a thread. */
			if (call->if_it_lives != VALUE_THREAD << FUTEX_VALUE_SHIFT &&
			    value_class(call->value) != VALUE_MUSL_BUSY)
				owner_is_thread((void *)&call->owner, thread);
		}
	}
	/* Not what the value is of a living thread. */
	if (!(call->bits >> FUTEX_VALUE_SHIFT & 0xf))
		call->bits |= value_class(call->value) << FUTEX_VALUE_SHIFT;
	call->bits |= parked_of(call) << FUTEX_PARKED_SHIFT;
}

#endif
