// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What holders of wanted locks do, and how long waiters wait for a CPU after their lock is theirs: the scheduler's
 * tracepoints, of which only watched threads pay more than a look-up.
 *
 * They run with a run queue's spinlock held: maps are only read here, and values in them changed in place.
 */
#include "sched.bpf.h"

static __always_inline struct watch *watched_task(const struct task_struct *task)
{
	__u32 tid = BPF_CORE_READ(task, pid);
	struct watch *watch = bpf_map_lookup_elem(&watched, &tid);

	return watch && is_watched(watch) ? watch : 0;
}

/* (preempt, prev, next, …): 5.18 added an argument at the end. */
SEC("?raw_tp/sched_switch")
int sched_switch__tp(struct bpf_raw_tracepoint_args *ctx)
{
	const struct task_struct *prev = (void *)ctx->args[1], *next = (void *)ctx->args[2];
	struct watch *watch;

	if (!active)
		return 0;
	watch = watched_task(prev);
	if (watch)
		enter_state(watch,
			    !ctx->args[0] && task_sleeps(prev) ? sleeping_state(prev, watch)
							       : WATCH_PREEMPTED,
			    bpf_ktime_get_ns());
	watch = watched_task(next);
	if (watch)
		enter_state(watch, WATCH_RUNNING, bpf_ktime_get_ns());
	return 0;
}

/* (task): also for one that has not gone to sleep yet. */
SEC("?raw_tp/sched_waking")
int sched_waking__tp(struct bpf_raw_tracepoint_args *ctx)
{
	const struct task_struct *task = (void *)ctx->args[0];
	struct watch *watch;

	if (!active)
		return 0;
	watch = watched_task(task);
	if (watch && !BPF_CORE_READ(task, on_cpu))
		enter_state(watch, WATCH_WOKEN, bpf_ktime_get_ns());
	return 0;
}
