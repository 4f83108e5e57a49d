// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps, the configuration, and the life of processes. */
#include "thread.bpf.h"

struct sites_map sites SEC(".maps");
struct locks_map locks SEC(".maps");
struct stacks_map stacks SEC(".maps");
struct waits_map waits SEC(".maps");
struct owners_map owners SEC(".maps");
struct futex_waits_map futex_waits SEC(".maps");
struct threads_map threads SEC(".maps");
struct releases_map releases SEC(".maps");
struct watched_map watched SEC(".maps");
struct blames_map blames SEC(".maps");
struct pairs_map pairs SEC(".maps");
struct chains_map chains SEC(".maps");
struct held_map held SEC(".maps");
struct holds_map holds SEC(".maps");
struct calls_map calls SEC(".maps");
struct targets_map targets SEC(".maps");
struct counters_map counters SEC(".maps");
struct spin_map spin SEC(".maps");
struct spin_sites_map spin_sites SEC(".maps");
struct spin_locks_map spin_locks SEC(".maps");
struct spin_stacks_map spin_stacks SEC(".maps");
struct spin_holds_map spin_holds SEC(".maps");
struct spin_queues_map spin_queues SEC(".maps");
struct spin_blames_map spin_blames SEC(".maps");
struct spin_held_map spin_held SEC(".maps");
struct scratch_map scratch SEC(".maps");
struct rows_map rows SEC(".maps");
struct rules_map rules SEC(".maps");
struct processes_map processes SEC(".maps");
struct notices_map notices SEC(".maps");

const volatile struct config cfg = {};
const struct lock_stats zero_lock_stats = {};
const struct futex_wait zero_futex_wait = {};
const struct watch zero_watch = {};
const struct blame_stats zero_blame = {};
const struct chain_stats zero_chain = {};
volatile __u32 active = 0;
volatile __u64 epoch_ns = 0;

/* The skeleton shows the types of maps and globals only; these are in neither. */
struct wire_types {
	struct notice notice;
	enum notice_kind notice_kind;
	enum lock_kind lock_kind;
	enum loss_reason loss_reason;
	enum event_count event_count;
	enum filter filter;
	enum wait_class wait_class;
	enum wait_phase wait_phase;
	enum owner_state owner_state;
	enum stack_end stack_end;
	enum user_stacks user_stacks;
	enum futex_value futex_value;
	enum futex_place futex_place;
	enum futex_parked futex_parked;
	enum outcome outcome;
	enum queue_state queue_state;
	enum holder_evidence holder_evidence;
	enum watch_state watch_state;
} wire_types = {};

/*
 * fork(parent, child): a target's child is a target, from its first instruction on. Every thread of a target is
 * remembered: lock words name their owner by thread id, and only those of living threads are believed.
 */
SEC("?raw_tp/sched_process_fork")
int sched_process_fork__tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (void *)ctx->args[0];
	struct task_struct *child = (void *)ctx->args[1];
	__u32 parent_tgid = BPF_CORE_READ(parent, tgid);
	__u32 tgid = BPF_CORE_READ(child, tgid);
	bool follow = cfg.filter == FILTER_SET && cfg.follow_forks;
	__u32 one = 1;

	if (!is_target(parent_tgid) || (parent_tgid != tgid && cfg.filter != FILTER_ALL && !follow))
		return 0;

	struct counters *c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
	remember_thread(c, child);
	if (parent_tgid == tgid || !follow) {
		leave(c);
		return 0;
	}

	/* And it has its parent's mappings. */
	struct process *process = bpf_map_lookup_elem(&processes, &parent_tgid);

	if (bpf_map_update_elem(&targets, &tgid, &one, BPF_ANY))
		c->lost[LOSS_TARGETS_MAP_FULL]++;
	if (process)
		bpf_map_update_elem(&processes, &tgid, process, BPF_ANY);
	notify(c, NOTICE_FORK, tgid);
	leave(c);
	return 0;
}

SEC("?raw_tp/sched_process_exec")
int sched_process_exec__tp(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!wanted(tgid))
		return 0;

	struct counters *c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
	bpf_map_delete_elem(&processes, &tgid);
	/* A thread that is not the first one gets the number of the first one. */
	remember_thread(c, (void *)bpf_get_current_task());
	notify(c, NOTICE_EXEC, tgid);
	leave(c);
	return 0;
}

/* A task that dies leaves no wait behind, and the last one of a process no target. */
SEC("?raw_tp/sched_process_exit")
int sched_process_exit__tp(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tgid = id >> 32;
	struct wait_key key = { .tid = id };
	struct task_struct *task = (void *)ctx->args[0];
	struct wait *wait;

	if (!is_target(tgid))
		return 0;

	struct counters *c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
	forget_thread(task);
	if (!active) {
		leave(c);
		return 0;
	}
	for (int class = 0; class < WAIT_CLASSES; class ++) {
		key.wait_class = class;
		wait = bpf_map_lookup_elem(&waits, &key);
		if (!wait)
			continue;
		if (wait->begin_ns)
			wait_abandoned(c, wait);
		bpf_map_delete_elem(&waits, &key);
	}
	futex_thread_exits();
	queue_thread_exits();
	/* do_exit() counts `live` down before this tracepoint, on every kernel of the matrix. */
	if (BPF_CORE_READ(task, signal, live.counter) == 0) {
		if (cfg.filter == FILTER_SET)
			bpf_map_delete_elem(&targets, &tgid);
		bpf_map_delete_elem(&processes, &tgid);
	}
	leave(c);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
