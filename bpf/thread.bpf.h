/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The living threads of targets by the number they have in their own pid namespace. The C libraries write that
 * number into their lock words; what is no living thread's number is not believed to be an owner.
 */
#ifndef THREAD_BPF_H
#define THREAD_BPF_H

#include "core.bpf.h"

/* linux/sched.h */
#define PF_EXITING 0x00000004

/* A thread's innermost pid namespace, and its number there. */
static __always_inline struct thread_key key_of_thread(const struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level);
	struct upid *upid = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			    level * bpf_core_type_size(struct upid);

	return (struct thread_key){
		.pid_namespace = BPF_CORE_READ(upid, ns, ns.inum),
		.tid = BPF_CORE_READ(upid, nr),
	};
}

static __always_inline void remember_thread(struct counters *c, struct task_struct *task)
{
	struct thread_key key = key_of_thread(task);
	struct thread thread = {
		.task = (__u64)task,
		.tid = BPF_CORE_READ(task, pid),
		.tgid = BPF_CORE_READ(task, tgid),
	};

	BPF_CORE_READ_STR_INTO(&thread.comm, task, comm);
	if (bpf_map_update_elem(&threads, &key, &thread, BPF_ANY))
		c->lost[LOSS_THREADS_MAP_FULL]++;
}

static __always_inline void forget_thread(struct task_struct *task)
{
	struct thread_key key = key_of_thread(task);

	bpf_map_delete_elem(&threads, &key);
}

/* The living thread of this number among the targets, as the current task counts; `any`: of any process. */
static __always_inline struct thread *find_thread(__u32 tid, bool any)
{
	struct thread_key key;
	struct thread *thread;

	/* PID_MAX_LIMIT */
	if (!tid || tid > 4 * 1024 * 1024)
		return 0;
	key = key_of_thread((void *)bpf_get_current_task());
	key.tid = tid;
	thread = bpf_map_lookup_elem(&threads, &key);
	if (!thread || (!any && thread->tgid != bpf_get_current_pid_tgid() >> 32))
		return 0;
	return thread;
}

static __always_inline void owner_is_thread(struct owner *owner, const struct thread *thread)
{
	const struct task_struct *task = (void *)thread->task;

	owner->state = OWNER_TASK;
	owner->task = thread->task;
	owner->tid = thread->tid;
	owner->tgid = thread->tgid;
	__builtin_memcpy(owner->comm, thread->comm, sizeof(owner->comm));
	/* It was named after its birth, mostly. */
	if (task && (__u32)BPF_CORE_READ(task, pid) == thread->tid)
		BPF_CORE_READ_STR_INTO(&owner->comm, task, comm);
}

#endif
