/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Stacks, kept once each under a 64-bit hash of all their frames.
 *
 * bpf_get_stackid() would merge stacks that share a 32-bit hash or drop the newcomer, and it is the
 * hot stacks that collide. Here a stack is lost only when the table is full, and that is counted.
 */
#ifndef USTACK_BPF_H
#define USTACK_BPF_H

#include "compat.bpf.h"

#define PF_KTHREAD 0x00200000

static __always_inline struct counters *this_cpu_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

static __always_inline void notify(struct counters *c, __u32 kind, __u32 tgid)
{
	struct notice *notice = bpf_ringbuf_reserve(&notices, sizeof(*notice), 0);

	if (!notice) {
		c->lost[LOSS_RING_BUFFER_FULL]++;
		return;
	}
	notice->kind = kind;
	notice->tgid = tgid;
	bpf_ringbuf_submit(notice, 0);
}

/* Entry number `probe` for a hash in this CPU's part of a table of `1 << log2` entries per CPU. */
static __always_inline __u32 spin_index(__u32 log2, __u64 hash, __u32 probe)
{
	return (bpf_get_smp_processor_id() << log2) |
	       (((__u32)(hash >> 32) + probe) & ((1U << log2) - 1));
}

/* stacks.bpf.c: the id of the stack in the scratch slot, which is kept under it; tgid: whose user stack. */
extern __u64 keep_stack(__u32 slot, __u32 tgid);

/* bpf_get_stack(); false: there was none. */
static __always_inline bool take_stack(void *ctx, struct counters *c, struct stack_scratch *s,
				       __u64 flags, __u32 end)
{
	long bytes = bpf_get_stack(ctx, s->stack.pcs, sizeof(s->stack.pcs), flags);

	if (bytes <= 0)
		return false;
	s->stack.frames = (__u64)bytes / sizeof(__u64);
	s->stack.end = end;
	if (s->stack.frames >= MAX_FRAMES)
		s->stack.end = STACK_TRUNCATED;
	return true;
}

static __always_inline __u64 kernel_stack(void *ctx, struct counters *c, __u32 slot)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);

	if (!s)
		return STACK_LOST;
	*(volatile __u64 *)&s->owner = bpf_get_current_pid_tgid();
	if (!take_stack(ctx, c, s, 0, STACK_COMPLETE)) {
		c->lost[LOSS_KERNEL_STACK_FAILED]++;
		return STACK_LOST;
	}
	return keep_stack(slot, 0);
}

/* unwind.bpf.c */
extern __u32 walk_user_stack(__u32 slot, __u32 tgid);

static __always_inline __u64 user_stack(void *ctx, struct counters *c, __u32 tgid, __u32 slot)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 result = WALK_NO_TABLE;

	if (!s)
		return STACK_LOST;
	if (cfg.user_stacks == USER_STACKS_OFF || BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return STACK_NOT_TAKEN;
	*(volatile __u64 *)&s->owner = bpf_get_current_pid_tgid();
	if (cfg.user_stacks == USER_STACKS_TABLES) {
		result = walk_user_stack(slot, tgid);
		/* A worker of io_uring: a thread of the process that never left the kernel. */
		if (result == WALK_NO_REGISTERS)
			return STACK_NOT_TAKEN;
	}
	if (result != WALK_DONE) {
		if (!take_stack(ctx, c, s, BPF_F_USER_STACK, STACK_BY_FRAME_POINTERS)) {
			c->lost[LOSS_USER_STACK_FAILED]++;
			return STACK_LOST;
		}
		if (cfg.user_stacks == USER_STACKS_TABLES)
			c->lost[LOSS_UNWIND_NO_TABLE]++;
	}
	return keep_stack(slot, tgid);
}

#endif
