/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The wire, as far as blame is concerned: who made the waiters of a lock wait. Included by lockprof.h. */
#ifndef LOCKPROF_BLAME_H
#define LOCKPROF_BLAME_H

/* Holders that a lock tells apart for the question who waited for whom; the others' shares are known in sum only. */
#define HOLDER_CLASSES 8
/* Holds of which a lock remembers the class: a wait that spans more of them is off by a part of one hold. */
#define HOLD_RING 64

enum queue_state {
	/* Since the latest release. Of a lock nobody waits for it means nothing. */
	QUEUE_FREE,
	QUEUE_HELD,
};

enum holder_evidence {
	/* It released the lock. */
	HOLDER_RELEASED,
	/* It acquired the lock after a wait; its release was not seen. */
	HOLDER_ACQUIRED,
	/* The owner word named it. */
	HOLDER_OWNER_WORD,
	/* Nothing is known. */
	HOLDER_UNKNOWN,
};

struct holder {
	__u64 kernel_stack;
	__u64 user_stack;
	__u32 tid;
	__u32 tgid;
	/* enum holder_evidence: HOLDER_ACQUIRED and later. */
	__u32 evidence;
	/* It reads, and so may others. */
	__u32 reads;
	char comm[16];
};

/* Threads of one name at one place. */
struct party {
	__u64 kernel_stack;
	__u64 user_stack;
	__u32 tgid;
	__u32 unused;
	char comm[16];
};

struct holder_class {
	struct party party;
	/* Σ of its holds that somebody waited for. 0: the class is free. */
	__u64 held_ns;
};

/*
 * The waiters of a lock as one number: with t since the profile began,
 *
 *	value = n * (QUEUE_UNIT - t) + a
 *
 * where n threads wait and `a` is the waiter-time that is not charged to anybody yet. One addition when a wait
 * begins (QUEUE_UNIT - t) and one when it ends (the same, subtracted) keep it true at every later t; charging
 * subtracts what was charged. So every nanosecond is charged once, whatever the CPUs do at the same time.
 */
#define QUEUE_UNIT (1ULL << 50)
/* `a` can be a little below 0: two CPUs' clocks, or two that charge the same. */
#define QUEUE_SLACK (1ULL << 40)
/* 6.5 days; n is below 2^14. */
#define QUEUE_LATEST_NS (QUEUE_UNIT / 2)

struct queue {
	__u64 value;
	/* When the wall time below was counted last. */
	__u64 counted_ns;
	/* When the hold that goes on began, or its first waiter came. */
	__u64 held_since_ns;
	/* enum queue_state */
	__u32 state;
	__u32 unused;
	struct holder holder;
	/* Waiter-time of a hold whose release was not seen yet, and whose it probably was. */
	__u64 pending_ns;
	__u64 pending_wanted_ns;
	struct holder pending;
	__u64 handoff_ns;
	__u64 handoffs;
	/* Waiter-time that could not be charged: nobody is known; the map of holders was full. */
	__u64 not_seen_ns;
	__u64 no_room_ns;
	/* Wall time in which somebody waited, and the lock was held or not. */
	__u64 wanted_ns;
	__u64 idle_ns;
	/* Of the hold that goes on: how long somebody waited, and waiter-time while its holder waited elsewhere. */
	__u64 hold_wanted_ns;
	__u64 chained_ns;
	/* Waits: from being woken to running. */
	__u64 woken_to_running_ns;
	__u64 holds;
	__u8 class_of_hold[HOLD_RING];
	struct holder_class classes[HOLDER_CLASSES];
};

/* Where a waiter came in: what every class had held until then, and the hold that went on. */
struct queue_position {
	__u64 held_ns[HOLDER_CLASSES];
	__u64 hold;
	__u64 into_hold_ns;
};

/* What a watched thread does. */
enum watch_state {
	WATCH_RUNNING,
	WATCH_PREEMPTED,
	/* Woken, and not running yet. */
	WATCH_WOKEN,
	WATCH_IO,
	WATCH_LOCK,
	WATCH_BLOCKED,
	WATCH_STATES,
	WATCH_UNKNOWN = WATCH_STATES,
};

enum wait_place {
	PLACE_KERNEL,
	PLACE_FUTEX,
	WAIT_PLACES,
};

/* A thread that waits for a lock, or holds one that others wait for; kept until the thread ends. */
struct watch {
	/* 0: not known yet. */
	__u64 task;
	/* The lock it holds while others wait; addr 0: none. */
	struct lock_key held;
	/* The lock it waits for; addr 0: none. */
	struct lock_key wanted[WAIT_PLACES];
	struct queue_position position[WAIT_PLACES];
	__u64 kernel_stack[WAIT_PLACES];
	__u64 user_stack[WAIT_PLACES];
	__u64 since_ns;
	/* enum watch_state */
	__u32 state;
	__u32 unused;
	__u64 state_ns[WATCH_STATES];
	__u64 woken_to_running_ns;
	/* Waiter-time of the lock it holds, uncharged, when it began to wait for another. */
	__u64 chain_mark_ns;
	/* A release: from the moment it is seen until its stack is. */
	__u64 charge_ns;
	__u64 charge_chained_ns;
	__u64 charge_wanted_ns;
	__u64 charge_hold_ns;
	/* 1: the release ends the hold; 0: it came late, somebody else holds the lock already. */
	__u32 charge_ends_hold;
	__u32 charge_known_states;
	__u64 charge_state_ns[WATCH_STATES];
};

/* Who is to blame. */
struct blame_key {
	struct lock_key lock;
	__u64 kernel_stack;
	__u64 user_stack;
	__u32 tid;
	/* enum holder_evidence */
	__u32 evidence;
};

struct blame_stats {
	__u64 blamed_ns;
	__u64 chained_ns;
	__u64 holds;
	__u64 wanted_ns;
	/* Of wanted_ns, as far as the scheduler was watched. */
	__u64 state_ns[WATCH_STATES];
	__u32 tgid;
	__u32 unused;
	char comm[16];
};

/*
 * The waiters of a spinlock, with --hold=spinlock, which sees its releases: a table of all CPUs, for nothing may be
 * put into a hash while a spinlock is held. An entry is never freed.
 */
struct spin_queue {
	/* 0: free, or two CPUs wanted it at once and neither has it. */
	__u64 addr;
	/* How many CPUs wanted it; who is the first one has it. */
	__u64 claims;
	/* As in struct queue. */
	__u64 value;
	__u64 counted_ns;
	__u32 state;
	__u32 unused;
	__u64 handoff_ns;
	__u64 handoffs;
	__u64 not_seen_ns;
	__u64 no_room_ns;
	__u64 wanted_ns;
	__u64 idle_ns;
	__u64 hold_wanted_ns;
};

/* Who is to blame, in a part of the table for each CPU; an entry of kind 0 is free. */
struct spin_blame {
	struct blame_key key;
	struct blame_stats stats;
};

struct pair_key {
	struct lock_key lock;
	struct party waiter;
	struct party holder;
};

/* `lock` was wanted while its holder `tid` waited for `other`. */
struct chain_key {
	struct lock_key lock;
	struct lock_key other;
	__u32 tid;
	__u32 unused;
};

struct chain_stats {
	__u64 waited_ns;
	__u32 tgid;
	__u32 unused;
	char comm[16];
};

#endif
