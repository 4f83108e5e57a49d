/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a task does, as its own fields say. */
#ifndef SCHED_BPF_H
#define SCHED_BPF_H

#include "queue.bpf.h"

/* 5.14 renamed it (2f064a59a11f). */
struct task_struct___before_5_14 {
	volatile long state;
} __attribute__((preserve_access_index));

struct task_struct___since_5_14 {
	unsigned int __state;
} __attribute__((preserve_access_index));

static __always_inline bool task_sleeps(const struct task_struct *task)
{
	const struct task_struct___since_5_14 *since = (const void *)task;
	const struct task_struct___before_5_14 *before = (const void *)task;

	if (bpf_core_field_exists(since->__state))
		return BPF_CORE_READ(since, __state) != 0;
	return BPF_CORE_READ(before, state) != 0;
}

static __always_inline enum watch_state sleeping_state(const struct task_struct *task,
						       const struct watch *watch)
{
	if (watch->wanted[PLACE_KERNEL].addr || watch->wanted[PLACE_FUTEX].addr)
		return WATCH_LOCK;
	/* io_schedule(): block devices, and page faults that read a file. */
	return BPF_CORE_READ_BITFIELD_PROBED(task, in_iowait) ? WATCH_IO : WATCH_BLOCKED;
}

/* Of any task; 0: who it is is not known. */
static __always_inline enum watch_state state_of_task(__u64 address, __u32 tid,
						      const struct watch *watch)
{
	const struct task_struct *task = (void *)address;

	/* It may be another one's by now. */
	if (!task || (__u32)BPF_CORE_READ(task, pid) != tid)
		return WATCH_UNKNOWN;
	if (BPF_CORE_READ(task, on_cpu))
		return WATCH_RUNNING;
	return task_sleeps(task) ? sleeping_state(task, watch) : WATCH_PREEMPTED;
}

#endif
