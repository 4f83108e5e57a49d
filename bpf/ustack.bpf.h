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

static __always_inline __u64 hash_frames(const struct stack *stack, __u32 frames)
{
	__u64 hash = frames | (__u64)stack->end << 32;

	for (__u32 i = 0; i < MAX_FRAMES; i++) {
		if (i >= frames)
			break;
		hash = (hash ^ stack->pcs[i]) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 32;
	}
	return hash < STACK_FIRST_ID ? hash + STACK_FIRST_ID : hash;
}

/*
 * Keeps the stack in `s` and returns its id.
 *
 * An fentry program can be preempted, and the next task's program on this CPU then writes into the
 * same scratch. `owner` shows it: whoever comes later leaves its own name there.
 */
static __always_inline __u64 keep_stack(struct counters *c, struct stack_scratch *s, __u64 owner,
					bool *is_new)
{
	volatile __u64 *owner_now = &s->owner;
	__u32 frames = s->stack.frames;
	__u64 id;

	if (frames > MAX_FRAMES)
		frames = MAX_FRAMES;
	if (s->stack.end == STACK_TRUNCATED)
		c->lost[LOSS_STACK_TRUNCATED]++;
	else if (s->stack.end == STACK_NO_RULE)
		c->lost[LOSS_UNWIND_NO_RULE]++;
	else if (s->stack.end == STACK_READ_FAILED)
		c->lost[LOSS_UNWIND_READ_FAILED]++;
	id = hash_frames(&s->stack, frames);
	if (*owner_now != owner) {
		c->lost[LOSS_STACK_SCRATCH_RACED]++;
		return STACK_LOST;
	}
	if (bpf_map_lookup_elem(&stacks, &id))
		return id;
	/* -17: EEXIST, another CPU was faster with the same stack. */
	long err = bpf_map_update_elem(&stacks, &id, &s->stack, BPF_NOEXIST);
	if (err && err != -17) {
		c->lost[LOSS_STACKS_MAP_FULL]++;
		return STACK_LOST;
	}
	if (*owner_now != owner) {
		bpf_map_delete_elem(&stacks, &id);
		c->lost[LOSS_STACK_SCRATCH_RACED]++;
		return STACK_LOST;
	}
	*is_new = true;
	return id;
}

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

static __noinline __u64 kernel_stack(void *ctx, struct counters *c, __u32 slot)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	bool is_new = false;
	__u64 owner;

	if (!s || !c)
		return STACK_LOST;
	owner = bpf_get_current_pid_tgid();
	*(volatile __u64 *)&s->owner = owner;
	if (!take_stack(ctx, c, s, 0, STACK_COMPLETE)) {
		c->lost[LOSS_KERNEL_STACK_FAILED]++;
		return STACK_LOST;
	}
	return keep_stack(c, s, owner, &is_new);
}

/* unwind.bpf.c */
extern __u32 walk_user_stack(__u32 slot, __u32 tgid);

static __noinline __u64 user_stack(void *ctx, struct counters *c, __u32 tgid, __u32 slot)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 result = WALK_NO_TABLE;
	bool is_new = false;
	__u64 owner, id;

	if (!s || !c)
		return STACK_LOST;
	if (cfg.user_stacks == USER_STACKS_OFF || BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return STACK_NOT_TAKEN;
	owner = bpf_get_current_pid_tgid();
	*(volatile __u64 *)&s->owner = owner;
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
	id = keep_stack(c, s, owner, &is_new);
	/* No ring buffer under a spinlock: it hung 6.12 (kernels.md section 4). User space also
	 * looks at every process it knows from time to time. */
	if (is_new && slot == SCRATCH_TASK)
		notify(c, NOTICE_STACK, tgid);
	return id;
}

#endif
