/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps, as named types: only those match when several objects are linked. Sizes here are
 * placeholders; bpf/load.rs sets them from session::Config.
 *
 * All hashes are preallocated: allocation under a raw spinlock hangs kernels before 7.x
 * (shared facts, kernels.md section 4).
 */
#ifndef MAPS_BPF_H
#define MAPS_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "lockprof.h"

#define HASH_MAP(name, key_type, value_type) \
	struct name##_map { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, 1024); \
		__type(key, key_type); \
		__type(value, value_type); \
	}; \
	extern struct name##_map name SEC(".maps")

HASH_MAP(sites, struct site_key, struct site_stats);
HASH_MAP(locks, struct lock_key, struct lock_stats);
HASH_MAP(stacks, __u64, struct stack);
HASH_MAP(waits, struct wait_key, struct wait);
HASH_MAP(owners, struct owner_key, struct owner_stats);
HASH_MAP(futex_waits, __u32, struct futex_wait);
HASH_MAP(threads, struct thread_key, struct thread);
HASH_MAP(releases, struct release_key, struct release_stats);
HASH_MAP(watched, __u32, struct watch);
HASH_MAP(blames, struct blame_key, struct blame_stats);
HASH_MAP(pairs, struct pair_key, __u64);
HASH_MAP(chains, struct chain_key, struct chain_stats);
HASH_MAP(held, struct held_key, struct held);
HASH_MAP(holds, struct lock_key, struct hold_stats);
HASH_MAP(calls, struct call_key, __u64);
HASH_MAP(targets, __u32, __u32);

struct counters_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
};
extern struct counters_map counters SEC(".maps");

struct spin_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct spin_waits);
};
extern struct spin_map spin SEC(".maps");

/* The parts of the CPUs one after the other; user space reads them through its own mapping. */
#define SPIN_TABLE(name, value_type) \
	struct name##_map { \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__uint(max_entries, 1); \
		__type(key, __u32); \
		__type(value, value_type); \
	}; \
	extern struct name##_map name SEC(".maps")

SPIN_TABLE(spin_sites, struct spin_site);
SPIN_TABLE(spin_locks, struct spin_lock);
SPIN_TABLE(spin_stacks, struct spin_stack);
SPIN_TABLE(spin_holds, struct spin_hold);
SPIN_TABLE(spin_queues, struct spin_queue);
SPIN_TABLE(spin_blames, struct spin_blame);

struct spin_held_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct spin_helds);
};
extern struct spin_held_map spin_held SEC(".maps");

/* The frame a walk has come to. */
struct walk {
	__u64 ip;
	__u64 sp;
	__u64 bp;
	__u64 generation;
	__u32 tgid;
	/* ip is a return address, not where execution stopped. */
	__u32 is_return;
};

enum walk_result {
	WALK_DONE,
	WALK_NO_TABLE,
	WALK_NO_REGISTERS,
};

/* Where a stack is before it is known to be new. */
struct stack_scratch {
	__u64 owner;
	struct walk walk;
	struct stack stack;
};

enum scratch_slot {
	SCRATCH_TASK,
	SCRATCH_SPIN,
	SCRATCH_SLOTS,
};

struct scratch_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCH_SLOTS);
	__type(key, __u32);
	__type(value, struct stack_scratch);
};
extern struct scratch_map scratch SEC(".maps");

HASH_MAP(processes, __u32, struct process);

struct rows_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct unwind_row);
};
extern struct rows_map rows SEC(".maps");

struct rules_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << RULE_CACHE_LOG2);
	__type(key, __u32);
	__type(value, __u64);
};
extern struct rules_map rules SEC(".maps");

struct notices_map {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
};
extern struct notices_map notices SEC(".maps");

extern const volatile struct config cfg;
extern const struct lock_stats zero_lock_stats;
extern const struct futex_wait zero_futex_wait;
extern const struct watch zero_watch;
extern const struct blame_stats zero_blame;
extern const struct chain_stats zero_chain;
/* On after the last hook is attached, off before the maps are read. */
extern volatile __u32 active;
/* When the profile began; user space sets it before `active`. */
extern volatile __u64 epoch_ns;

#endif
