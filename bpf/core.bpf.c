// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps, the configuration, and the life of processes. */
#include "core.bpf.h"

struct sites_map sites SEC(".maps");
struct locks_map locks SEC(".maps");
struct stacks_map stacks SEC(".maps");
struct waits_map waits SEC(".maps");
struct owners_map owners SEC(".maps");
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
struct spin_held_map spin_held SEC(".maps");
struct scratch_map scratch SEC(".maps");
struct rows_map rows SEC(".maps");
struct rules_map rules SEC(".maps");
struct processes_map processes SEC(".maps");
struct notices_map notices SEC(".maps");

const volatile struct config cfg = {};
const struct lock_stats zero_lock_stats = {};
volatile __u32 active = 0;

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
} wire_types = {};

/* fork(parent, child): a target's child is a target, from its first instruction on. */
SEC("?raw_tp/sched_process_fork")
int sched_process_fork__tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (void *)ctx->args[0];
	struct task_struct *child = (void *)ctx->args[1];
	__u32 parent_tgid = BPF_CORE_READ(parent, tgid);
	__u32 tgid = BPF_CORE_READ(child, tgid);
	__u32 one = 1;

	if (parent_tgid == tgid || !bpf_map_lookup_elem(&targets, &parent_tgid))
		return 0;

	/* And it has its parent's mappings. */
	struct process *process = bpf_map_lookup_elem(&processes, &parent_tgid);

	struct counters *c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
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

	if (!wanted(tgid))
		return 0;

	struct counters *c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
	for (int class = 0; class < WAIT_CLASSES; class ++) {
		key.wait_class = class;
		wait = bpf_map_lookup_elem(&waits, &key);
		if (!wait)
			continue;
		if (wait->begin_ns)
			wait_abandoned(c, wait);
		bpf_map_delete_elem(&waits, &key);
	}
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
