/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The wire: everything BPF and user space say to each other. Rust sees these types through the
 * generated skeleton (`bpf/wire.rs` asserts their sizes); nobody restates a layout.
 */
#ifndef LOCKPROF_H
#define LOCKPROF_H

/* Longest stack kept, in frames; the value bpf_get_stack itself is limited to by default
 * (sysctl kernel.perf_event_max_stack = 127). */
#define MAX_FRAMES 127

/* Nested spin waits of one CPU: task, softirq, hardirq, NMI, each perhaps waiting twice. */
#define MAX_SPIN_DEPTH 8

/* model/hist.rs explains this layout; 16 linear buckets, then 16 per power of two from 2^8 to 2^42. */
#define HIST_SUB_BITS 4
#define HIST_MIN_EXP 8
#define HIST_MAX_EXP 42
#define HIST_BUCKETS ((1 + HIST_MAX_EXP - HIST_MIN_EXP) << HIST_SUB_BITS)

/* Names end up in the output: bpf/wire.rs maps each to model::LockKind. */
enum lock_kind {
	KIND_UNKNOWN,
	KIND_MUTEX,
	KIND_RWSEM_READ,
	KIND_RWSEM_WRITE,
	KIND_SPINLOCK,
	KIND_RWLOCK_READ,
	KIND_RWLOCK_WRITE,
	KIND_SEMAPHORE,
	KIND_PERCPU_RWSEM_READ,
	KIND_PERCPU_RWSEM_WRITE,
	KIND_RTMUTEX,
	KIND_FUTEX,
	KIND_FUTEX_PI,
	KIND_FLOCK,
	KIND_POSIX_LOCK,
	KIND_COUNT,
};

/*
 * Whatever happened and is not in the numbers. The name is the one users see; the comment is what
 * it means. User space adds reasons only it can know (recursion misses, unsymbolized frames).
 */
#define LOSS_REASONS(X) \
	X(SITES_MAP_FULL, sites_map_full) \
	X(LOCKS_MAP_FULL, locks_map_full) \
	X(STACKS_MAP_FULL, stacks_map_full) \
	X(WAITS_MAP_FULL, waits_map_full) \
	X(OWNERS_MAP_FULL, owners_map_full) \
	X(FUTEX_WAITS_MAP_FULL, futex_waits_map_full) \
	X(THREADS_MAP_FULL, threads_map_full) \
	X(RELEASES_MAP_FULL, releases_map_full) \
	X(BLAMES_MAP_FULL, blames_map_full) \
	X(PAIRS_MAP_FULL, pairs_map_full) \
	X(WATCHED_MAP_FULL, watched_map_full) \
	X(FUTEX_HOLDS_TOO_DEEP, futex_holds_too_deep) \
	X(HELD_MAP_FULL, held_map_full) \
	X(HOLDS_MAP_FULL, holds_map_full) \
	X(TARGETS_MAP_FULL, targets_map_full) \
	X(RING_BUFFER_FULL, ring_buffer_full) \
	X(KERNEL_STACK_FAILED, kernel_stack_failed) \
	X(USER_STACK_FAILED, user_stack_failed) \
	X(STACK_SCRATCH_RACED, stack_scratch_raced) \
	X(STACK_TRUNCATED, stack_truncated) \
	X(UNWIND_NO_TABLE, unwind_no_table) \
	X(UNWIND_NO_RULE, unwind_no_rule) \
	X(UNWIND_READ_FAILED, unwind_read_failed) \
	X(UNPAIRED_BEGIN, unpaired_begin) \
	X(UNPAIRED_END, unpaired_end) \
	X(SPIN_IN_LOCKPROF, spin_in_lockprof) \
	X(SPIN_TOO_DEEP, spin_too_deep) \
	X(SPIN_SITES_FULL, spin_sites_full) \
	X(SPIN_LOCKS_FULL, spin_locks_full) \
	X(SPIN_STACKS_FULL, spin_stacks_full) \
	X(SPIN_HOLDS_FULL, spin_holds_full) \
	X(SPIN_HELD_TOO_DEEP, spin_held_too_deep) \
	X(SPIN_QUEUES_FULL, spin_queues_full) \
	X(SPIN_BLAMES_FULL, spin_blames_full) \
	X(LOST_RELEASE, lost_release) \
	X(UNMATCHED_RELEASE, unmatched_release)

enum loss_reason {
#define X(upper, lower) LOSS_##upper,
	LOSS_REASONS(X)
#undef X
	    LOSS_COUNT,
};

/* Events that are not losses, counted so that an empty profile explains itself. */
enum event_count {
	EVENTS_SEEN,
	WAITS_BEGUN,
	WAITS_ENDED,
	FUTEX_RETRIES,
	/* Waits of one acquisition that followed another without its release in between. */
	FUTEX_MERGED,
	/* By another task than the one that acquired: legal, and no loss. */
	FOREIGN_RELEASES,
	EVENTS_COUNT,
};

/* One per CPU. */
struct counters {
	__u64 lost[LOSS_COUNT];
	__u64 events[EVENTS_COUNT];
	/* How many of lockprof's programs are at work on this CPU; a spin wait that begins meanwhile
	 * may be on a lock of our own maps and is left alone. */
	__u64 busy;
};

enum filter {
	FILTER_ALL, /* every process but lockprof */
	FILTER_ONE, /* config.target_tgid */
	FILTER_SET, /* the map `targets` */
};

/* Read-only data, set before load: the verifier removes what is switched off. */
struct config {
	__u32 filter;
	__u32 target_tgid;
	__u32 self_tgid;
	/* Children of targets become targets. */
	__u32 follow_forks;
	/* Bit per lock_kind: which kinds contention_begin/_end account for. The others have a hook of
	 * their own, and counting both would count twice. */
	__u32 tracepoint_kinds;
	/* … and for which kinds they only say when a waiter goes from spinning to sleeping and back. */
	__u32 phase_kinds;
	/* Number of arguments of functions whose signature changed between kernels, from BTF. */
	__u32 rwsem_read_nargs;
	__u32 rwsem_write_nargs;
	__u32 futex_wait_nargs;
	__u32 futex_lock_pi_nargs;
	__u32 futex_wait_multiple_nargs;
	__u32 futex_wait_requeue_pi_nargs;
	/* futex_wake_mark() is hooked: it says exactly who woke whom. */
	__u32 have_wake_mark;
	/* enum user_stacks */
	__u32 user_stacks;
	/* bpf_task_pt_regs(), 5.15. */
	__u32 have_task_pt_regs;
	/* percpu_down_write() is a wait and, with this, an acquisition. */
	__u32 hold_percpu_rwsem;
	/* Entries each CPU has of spin_sites, spin_locks, spin_stacks and spin_holds, as powers of two. */
	__u32 spin_sites_log2;
	__u32 spin_locks_log2;
	__u32 spin_stacks_log2;
	__u32 spin_holds_log2;
	/* Releases of spinlocks are seen, so that somebody can be blamed. The first table is one for all CPUs. */
	__u32 spin_blame;
	__u32 spin_queues_log2;
	__u32 spin_blames_log2;
	/* bpf_get_kmem_cache() says where a lock lives. */
	__u32 slab_by_kernel;
	/* Where memory and its struct pages begin; 0: not known. */
	__u64 page_offset;
	__u64 vmemmap;
};

/* slab_cache_of() and slab_offset_of(): nothing could tell. */
#define SLAB_OFFSET_UNKNOWN 0xffffffff

/* A cache of the slab allocator (memory.bpf.c). */
struct slab_cache {
	__u64 addr;
	__u32 size;
	__u32 object_size;
	__u32 red_left_pad;
	/* Pages of a slab, and of one made when memory was short, as powers of two. */
	__u16 order;
	__u16 least_order;
	char name[40];
};

#define MEMORY_CACHES 64
#define MEMORY_CPUS 1024

enum user_stacks {
	USER_STACKS_OFF,
	USER_STACKS_FRAME_POINTERS,
	USER_STACKS_TABLES,
};

/* `tgid` is 0 for kernel locks: their address is the same for everyone. */
struct lock_key {
	__u64 addr;
	__u32 tgid;
	__u32 kind;
};

/* Stack ids are hashes, except these two. */
#define STACK_LOST 0
#define STACK_NOT_TAKEN 1
#define STACK_FIRST_ID 2

#include "lockprof_blame.h"

struct site_key {
	struct lock_key lock;
	__u64 kernel_stack;
	__u64 user_stack;
	__u32 tgid;
	/* What a waiting futex call looked like: FUTEX_* bits below. 0 for kernel locks. */
	__u32 futex;
};

struct site_stats {
	__u64 contended;
	__u64 wait_total_ns;
	/* Stored as ~min so that a fresh, zeroed entry needs no special case. */
	__u64 wait_min_inverted;
	__u64 wait_max_ns;
	__u64 aborted;
	__u64 aborted_total_ns;
	/* The part of wait_total_ns that was spent spinning, as far as `phase_kinds` tell. */
	__u64 spin_total_ns;
};

struct lock_stats {
	/* Futexes: wakes by traced threads, those for everybody (INT_MAX), and the threads they woke. */
	__u64 wake_calls;
	__u64 wake_all_calls;
	__u64 woken;
	/* Futexes: holds that began with a wait, from its end to the holder's own wake. */
	__u64 holds;
	__u64 hold_total_ns;
	__u64 hold_max_ns;
	/* Futexes: the first thread that waited, whether others did, and who woke last. */
	__u32 waiter_tid;
	__u32 several_waiters;
	__u32 waker_tid;
	/* Kernel locks: how far into a slab it is, and of which cache; 0: of none. */
	__u32 slab_offset;
	__u64 slab_cache;
	/* How many wait for it now, and how often it was released while somebody did. */
	__u64 waiting;
	__u64 contended_releases;
	/* Waits that began while no task owned it: free just then, or held by readers. */
	__u64 begun_unowned;
	__u64 begun_read_owned;
	/* The word a parked thread waits at stands for this lock (parking_lot). 0: for itself. */
	__u64 alias_of;
	struct queue queue;
	__u32 hist[HIST_BUCKETS];
};

/*
 * The writer of a percpu_rw_semaphore waits for RCU, whose code takes mutexes. Waits for futexes are in a map
 * of their own: a task can wait for one and, handling a page fault meanwhile, for a kernel lock.
 */
enum wait_class {
	WAIT_KERNEL,
	WAIT_PERCPU_WRITE,
	WAIT_FILE,
	WAIT_CLASSES,
};

enum wait_phase {
	PHASE_UNKNOWN,
	PHASE_SPIN,
	PHASE_SLEEP,
};

struct wait_key {
	__u32 tid;
	__u32 wait_class;
};

/* What the owner word of a lock said when a wait began. */
enum owner_state {
	/* Locks of this kind have no owner word. */
	OWNER_NOT_KEPT,
	OWNER_TASK,
	OWNER_READERS,
	/* Released, or given to a task that has not taken it yet. */
	OWNER_NOBODY,
};

struct owner {
	/* 0: known by its number only. */
	__u64 task;
	__u32 state;
	__u32 tid;
	__u32 tgid;
	__u32 unused;
	char comm[16];
};

/* A task that owned a lock when a wait for it began. */
struct owner_key {
	struct lock_key lock;
	__u32 tid;
	__u32 unused;
};

struct owner_stats {
	__u64 begun;
	__u32 tgid;
	__u32 unused;
	char comm[16];
};

/* What a wait came to. */
enum outcome {
	ACQUIRED,
	/* Without the lock: a timeout, a signal, a deadlock refused. */
	ABORTED,
	/* Aborted, by a signal: the kernel or the C library goes on waiting. */
	INTERRUPTED,
	/* Aborted, and its time was up. */
	TIMED_OUT,
	/* It never slept. */
	DID_NOT_WAIT,
};

/* A wait that has not ended. */
struct wait {
	struct site_key site;
	__u64 begin_ns;
	/* enum wait_phase, since when, and the time of the spinning phases before it. */
	__u64 phase;
	__u64 phase_ns;
	__u64 spin_ns;
	char comm[16];
	struct owner owner;
	/* It is counted in its lock's queue. */
	__u64 queued;
};

#include "lockprof_futex.h"

struct spin_wait {
	struct site_key site;
	__u64 begin_ns;
	__u32 tid;
	/* Where its site and its lock are in spin_sites and spin_locks, plus 1; 0: no room. */
	__u32 site_place;
	__u32 lock_place;
	/* … and its waiters in spin_queues. */
	__u32 queue_place;
	char comm[16];
};

struct spin_waits {
	__u32 depth;
	__u32 unused;
	struct spin_wait wait[MAX_SPIN_DEPTH];
};

/*
 * What spin waits come to. In the context of a spinlock no hash may be changed (kernels.md section 4:
 * hangs every kernel before 7.x), so these are arrays in which every CPU has a part of its own, used as
 * open-addressed tables. An entry of kind 0 (id 0) is free; a used one is never freed.
 */
#define SPIN_PROBES 8

struct spin_site {
	struct site_key key;
	struct site_stats stats;
};

struct spin_lock {
	struct lock_key key;
	__u64 slab_cache;
	__u32 slab_offset;
	__u32 unused;
	__u32 hist[HIST_BUCKETS];
};

/* Where a stack ends; a part of its identity. */
enum stack_end {
	STACK_COMPLETE,
	STACK_TRUNCATED,
	/* By frame pointers: no table for the process, or none wanted. */
	STACK_BY_FRAME_POINTERS,
	STACK_NO_RULE,
	STACK_READ_FAILED,
};

struct stack {
	__u32 frames;
	__u32 end;
	__u64 pcs[MAX_FRAMES];
};

struct spin_stack {
	__u64 id;
	struct stack stack;
};

/*
 * Unwinding (unwind.bpf.c). Rows are those of every file, one file after the other, and never change;
 * a process has a list of the executable mappings of these files, replaced as a whole.
 */
struct unwind_row {
	/* As the file is linked. */
	__u32 pc;
	/* enum unwind_rule in bits 0..8; 8..16: rbp is at cfa - 8 * this, 0 unchanged; 16..32: the
	 * rule's offset / 8. src/unwind/rows.rs writes them. */
	__u32 rule;
};

enum unwind_rule {
	RULE_NONE,
	RULE_RSP,
	RULE_RBP,
	RULE_END,
	RULE_UNSUPPORTED,
	RULE_SIGNAL,
	RULE_PLT,
	RULE_REALIGNED,
	/* Only here: code without rows. */
	RULE_FRAME_POINTER,
};

struct unwind_mapping {
	__u64 start;
	__u32 length;
	__u32 pc;
	__u32 first_row;
	__u32 rows;
};

#define MAX_MAPPINGS_LOG2 8
#define MAX_MAPPINGS (1 << MAX_MAPPINGS_LOG2)

struct process {
	/* Other mappings, another number: rules cached under the old one are not found any more. */
	__u64 generation;
	__u32 mappings;
	__u32 unused;
	struct unwind_mapping mapping[MAX_MAPPINGS];
};

#define RULE_CACHE_LOG2 14

/* Exclusive holders have tid 0: whoever acquires next proves that a missing release happened. */
struct held_key {
	__u64 addr;
	__u32 tid;
	__u32 kind;
};

struct held {
	__u64 acquired_ns;
	/* Recursive readers: only the outermost hold is timed. */
	__u32 depth;
	__u32 tid;
	/* hold_stats.generation of the write side when a reader came. */
	__u64 generation;
};

struct hold_stats {
	__u64 acquired;
	__u64 holds;
	__u64 hold_total_ns;
	__u64 hold_max_ns;
	/* Writers so far (write side only): a reader's record from before the last one is stale, for a
	 * writer that got the lock proves that there was no reader. */
	__u64 generation;
	/* As in lock_stats. */
	__u64 slab_cache;
	__u32 slab_offset;
	__u32 unused;
};

/* Spinlocks held by a CPU, in the order of their acquisition. */
#define MAX_SPIN_HELD 16

struct spin_held {
	/* 0: released out of order. */
	__u64 addr;
	__u64 acquired_ns;
	__u32 kind;
	/* 1 + its place in spin_holds. */
	__u32 place;
};

struct spin_helds {
	__u32 depth;
	/* A release, until its stack is taken: as in struct watch. */
	__u32 charge_place;
	__u64 charge_ns;
	__u64 charge_wanted_ns;
	struct spin_held held[MAX_SPIN_HELD];
};

struct spin_hold {
	struct lock_key key;
	struct hold_stats stats;
};

/* An acquire between its kprobe and its kretprobe. */
struct call_key {
	__u32 tid;
	__u32 function;
};

/* A thread that waits in a futex call, and where it is in user space (blocked.bpf.c). */
struct blocked_registers {
	__u32 tgid;
	__u32 tid;
	__u64 ip;
	__u64 sp;
	__u64 bp;
};

/* Tells user space to look at a process while it lives. */
enum notice_kind {
	NOTICE_STACK, /* a user stack was seen for the first time */
	NOTICE_EXEC,
	NOTICE_FORK,
};

struct notice {
	__u32 kind;
	__u32 tgid;
};

#endif
