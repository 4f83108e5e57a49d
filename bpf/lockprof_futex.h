/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The wire, as far as futexes are concerned. Included by lockprof.h, whose types it uses. */
#ifndef LOCKPROF_FUTEX_H
#define LOCKPROF_FUTEX_H

/*
 * site_key.futex: the waiting call as it was when the wait began. The meaning is in src/model/futex.rs, which
 * bpf/wire.rs makes of it; what to conclude is decided in user space (src/futexes).
 *
 * Bits 0..7 are the command (FUTEX_WAIT, …), 7 FUTEX_PRIVATE_FLAG, 8 FUTEX_CLOCK_REALTIME.
 */
#define FUTEX_TIMEOUT (1U << 9)
#define FUTEX_VALUE_SHIFT 10
#define FUTEX_PLACE_SHIFT 14
#define FUTEX_WORDS_GLIBC_MUTEX (1U << 16)
#define FUTEX_WORDS_RWLOCK_PHASE (1U << 17)
#define FUTEX_WORDS_RWLOCK_WRITERS (1U << 18)
#define FUTEX_WORDS_GLIBC_COND (1U << 19)
#define FUTEX_WORDS_GLIBC_SEM (1U << 20)
#define FUTEX_WORDS_GLIBC_BARRIER (1U << 21)
#define FUTEX_WORDS_RUST_WRITERS (1U << 22)
#define FUTEX_PARKED_SHIFT 23
#define FUTEX_COMPAT (1U << 27)
/* The call was not seen: restarted after a signal. */
#define FUTEX_OP_UNKNOWN (1U << 28)

enum futex_value {
	VALUE_ZERO,
	VALUE_ONE,
	VALUE_TWO,
	VALUE_THREE,
	VALUE_FIVE,
	VALUE_SEVEN,
	VALUE_ALL_ONES,
	VALUE_THREAD,
	VALUE_OWNED_BY_THREAD,
	VALUE_MUSL_BUSY,
	VALUE_BIT_31,
	VALUE_NEGATIVE,
	VALUE_BIT_30,
	VALUE_CEILING,
	VALUE_OTHER,
};

enum futex_place {
	PLACE_ELSEWHERE,
	PLACE_OWN_STACK,
	PLACE_THREAD_LOCAL,
	/* Near the top of a thread's stack, where the C library puts its record of the thread. */
	PLACE_EITHER,
};

enum futex_parked {
	PARKED_NOT,
	PARKED_MUTEX,
	PARKED_MUTEX_OR_CONDVAR,
	PARKED_READ,
	PARKED_WRITE,
};

/* A thread that is or was waiting for a futex, with who woke it. */
struct futex_waker {
	__u64 stack;
	__u64 woken_ns;
	__u32 tid;
	__u32 tgid;
	char comm[16];
};

/* A lock that a thread acquired after a wait, and since when. */
struct futex_hold {
	__u64 addr;
	__u64 acquired_ns;
};

#define MAX_FUTEX_HOLDS 4

/* The words of [futex - 40, futex + 40). */
struct futex_words {
	__u32 word[20];
};

/* What a futex call asks for: how struct futex_call begins, and small enough for a stack. */
struct futex_request {
	__u64 uaddr;
	__u32 op;
	__u32 value;
	__u32 timeout;
	__u32 compat;
};

/*
 * A futex call that is being looked at. In the thread's own record, and not on the stack: what the verifier knows
 * of its memory it forgets, where it would follow every combination of what a call can look like.
 */
struct futex_call {
	/* struct futex_request */
	__u64 uaddr;
	/* FUTEX_* command and flags, as of futex(2). */
	__u32 op;
	__u32 value;
	__u32 timeout;
	__u32 compat;
	__u64 sp;
	__u64 thread_pointer;
	/* As in site_key.futex. */
	__u32 bits;
	/* What may be the owner's thread id, and the bits that are true if it is. */
	__u32 candidate;
	__u32 if_it_lives;
	__u32 unused;
	struct owner owner;
	struct futex_words words;
};

/*
 * The latest futex wait of a thread. When it has ended it stays, until the thread's next wait or wake tells
 * whether the acquisition is complete: a woken thread may have lost the race and wait again.
 */
struct futex_wait {
	struct site_key site;
	/* 0: none. */
	__u64 begin_ns;
	/* 0: it goes on. */
	__u64 end_ns;
	/* The word; site.lock.addr can be another one (parking_lot). */
	__u64 uaddr;
	/* enum outcome, and how many waits before it it continues. */
	__u32 outcome;
	__u32 merged;
	/* It began before the profile: user space put it here. */
	__u32 from_before;
	/* Voluntary context switches of the thread when it began. */
	__u32 switches;
	/* It is counted in its lock's queue. */
	__u32 queued;
	__u32 unused;
	struct owner owner;
	/* Who woke it, if anybody did. */
	struct futex_waker waker;
	/* Where this thread woke others last, and whether that was in its latest wake. */
	__u64 wake_stack;
	__u64 wake_has_stack;
	char comm[16];
	struct futex_hold held[MAX_FUTEX_HOLDS];
	struct futex_call call;
};

/* A thread by the number it has in its own pid namespace, which is what lock words hold. */
struct thread_key {
	/* Inode of the namespace. */
	__u32 pid_namespace;
	__u32 tid;
};

struct thread {
	/* 0: known from /proc, with its name at that time. */
	__u64 task;
	__u32 tid;
	__u32 tgid;
	char comm[16];
};

/* Who woke whom: the waker's stack too. */
struct release_key {
	struct lock_key lock;
	__u64 stack;
	__u32 waker_tid;
	__u32 wakee_tid;
};

struct release_stats {
	__u64 woken;
	__u32 waker_tgid;
	__u32 unused;
	char comm[16];
};

#endif
