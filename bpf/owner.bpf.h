/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who owns a lock that sleeps, as its owner word says: lock-semantics.md B.1 has the bits. A pointer to a
 * task, read once and without a reference: the owner can let go, and in theory exit, meanwhile.
 */
#ifndef OWNER_BPF_H
#define OWNER_BPF_H

#include "core.bpf.h"

/* Members under the names they have on some kernel; the loader finds out which of them this one has. */
struct mutex___owner {
	atomic_long_t owner;
} __attribute__((preserve_access_index));

struct rw_semaphore___owner {
	atomic_long_t count;
	atomic_long_t owner;
} __attribute__((preserve_access_index));

/* 5.15: the lock proper moved out of struct rt_mutex. */
struct rt_mutex_base___owner {
	struct task_struct *owner;
} __attribute__((preserve_access_index));

struct rt_mutex___owner {
	struct task_struct *owner;
} __attribute__((preserve_access_index));

struct rwbase_rt___owner {
	struct rt_mutex_base___owner rtmutex;
} __attribute__((preserve_access_index));

/* kernel/locking/mutex.h, rwsem.c, rtmutex_common.h */
#define MUTEX_FLAGS 7UL
#define RWSEM_READER_OWNED 1UL
#define RWSEM_OWNER_FLAGS 3UL
#define RWSEM_WRITER_LOCKED 1UL
#define RT_MUTEX_HAS_WAITERS 1UL

static __always_inline __u64 read_word(__u64 addr)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)addr);
	return word;
}

/* The owner of the rt_mutex that is, or is inside, a lock. */
static __always_inline __u64 rt_owner_of(__u64 addr)
{
	if (bpf_core_field_exists(struct rt_mutex_base___owner, owner))
		addr += bpf_core_field_offset(struct rt_mutex_base___owner, owner);
	else
		addr += bpf_core_field_offset(struct rt_mutex___owner, owner);
	return read_word(addr) & ~RT_MUTEX_HAS_WAITERS;
}

static __always_inline enum owner_state owner_task_of(__u64 addr, __u32 kind, __u64 *task)
{
	__u64 count;

	switch (kind) {
	case KIND_MUTEX:
		if (bpf_core_field_exists(struct mutex___owner, owner))
			*task =
			    read_word(addr + bpf_core_field_offset(struct mutex___owner, owner)) &
			    ~MUTEX_FLAGS;
		else /* PREEMPT_RT */
			*task = rt_owner_of(addr);
		break;
	case KIND_RTMUTEX:
		*task = rt_owner_of(addr);
		break;
	case KIND_RWSEM_READ:
	case KIND_RWSEM_WRITE:
		if (!bpf_core_field_exists(struct rw_semaphore___owner, owner)) {
			/* PREEMPT_RT. A writer that waits for readers has the rt_mutex already. */
			*task = rt_owner_of(
			    addr + bpf_core_field_offset(struct rwbase_rt___owner, rtmutex));
			if (*task == bpf_get_current_task())
				return OWNER_READERS;
			break;
		}
		/* The word of a lock that readers hold, or held last, names one of them. */
		count = read_word(addr + bpf_core_field_offset(struct rw_semaphore___owner, count));
		*task = read_word(addr + bpf_core_field_offset(struct rw_semaphore___owner, owner));
		if (*task & RWSEM_READER_OWNED)
			return count & RWSEM_WRITER_LOCKED ? OWNER_NOBODY : OWNER_READERS;
		*task &= ~RWSEM_OWNER_FLAGS;
		break;
	default:
		return OWNER_NOT_KEPT;
	}
	return *task ? OWNER_TASK : OWNER_NOBODY;
}

static __always_inline void read_owner(__u64 addr, __u32 kind, struct owner *owner)
{
	const struct task_struct *task;
	__u64 word = 0;

	__builtin_memset(owner, 0, sizeof(*owner));
	owner->state = owner_task_of(addr, kind, &word);
	if (owner->state != OWNER_TASK)
		return;
	task = (void *)word;
	owner->task = word;
	owner->tid = BPF_CORE_READ(task, pid);
	owner->tgid = BPF_CORE_READ(task, tgid);
	BPF_CORE_READ_STR_INTO(&owner->comm, task, comm);
}

/* One more wait for `lock` begins while this task owns it. */
static __always_inline void owned_by(struct counters *c, const struct lock_key *lock,
				     const struct owner *owner)
{
	struct owner_key key = { .lock = *lock, .tid = owner->tid };
	struct owner_stats *stats = bpf_map_lookup_elem(&owners, &key);

	if (stats) {
		__sync_fetch_and_add(&stats->begun, 1);
		return;
	}

	struct owner_stats first = { .begun = 1, .tgid = owner->tgid };

	__builtin_memcpy(first.comm, owner->comm, sizeof(first.comm));
	if (!bpf_map_update_elem(&owners, &key, &first, BPF_NOEXIST))
		return;
	/* Another CPU was faster, or the map is full. */
	stats = bpf_map_lookup_elem(&owners, &key);
	if (stats)
		__sync_fetch_and_add(&stats->begun, 1);
	else
		c->lost[LOSS_OWNERS_MAP_FULL]++;
}

#endif
