// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Keeps stacks, once each. The functions are global (not static) and take numbers, so that the verifier
 * looks at each of them once per program, and not once per path that leads to it: loading is most of
 * what starting lockprof costs.
 */
#include "ustack.bpf.h"

/* 64 bits of all frames of the stack in a scratch slot, and of how it ends. */
__noinline __u64 hash_stack(__u32 slot)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	__u64 hash;

	if (!s)
		return STACK_LOST;
	hash = s->stack.frames | (__u64)s->stack.end << 32;
	for (__u32 i = 0; i < MAX_FRAMES; i++) {
		if (i >= s->stack.frames)
			break;
		hash = (hash ^ s->stack.pcs[i]) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 32;
	}
	return hash < STACK_FIRST_ID ? hash + STACK_FIRST_ID : hash;
}

/*
 * Of a spin wait. No hash and no ring buffer here, and nothing that could be preempted: whoever waits for
 * a spinlock, or interrupts somebody who does, stays on its CPU.
 */
__noinline __u64 keep_spin_stack(__u64 id)
{
	__u32 slot = SCRATCH_SPIN, frames;
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	struct counters *c = this_cpu_counters();

	if (!s || !c)
		return STACK_LOST;
	frames = s->stack.frames;
	if (frames > MAX_FRAMES)
		frames = MAX_FRAMES;
	for (__u32 i = 0; i < SPIN_PROBES; i++) {
		__u32 index = spin_index(cfg.spin_stacks_log2, id, i);
		struct spin_stack *entry = bpf_map_lookup_elem(&spin_stacks, &index);

		if (!entry)
			break;
		if (entry->id == id)
			return id;
		if (entry->id)
			continue;
		bpf_probe_read_kernel(&entry->stack, 8 + 8 * frames, &s->stack);
		*(volatile __u64 *)&entry->id = id;
		return id;
	}
	c->lost[LOSS_SPIN_STACKS_FULL]++;
	return STACK_LOST;
}

/*
 * An fentry program can be preempted, and the next task's program on this CPU then writes into the
 * same scratch. `owner` shows it: whoever comes later leaves its own name there.
 */
__noinline __u64 keep_stack(__u32 slot, __u32 tgid)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	struct counters *c = this_cpu_counters();
	__u64 owner, id;

	if (!s || !c)
		return STACK_LOST;
	if (s->stack.end == STACK_TRUNCATED)
		c->lost[LOSS_STACK_TRUNCATED]++;
	else if (s->stack.end == STACK_NO_RULE)
		c->lost[LOSS_UNWIND_NO_RULE]++;
	else if (s->stack.end == STACK_READ_FAILED)
		c->lost[LOSS_UNWIND_READ_FAILED]++;
	id = hash_stack(slot);
	if (slot == SCRATCH_SPIN)
		return keep_spin_stack(id);

	volatile __u64 *owner_now = &s->owner;

	owner = bpf_get_current_pid_tgid();
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
	if (tgid)
		notify(c, NOTICE_STACK, tgid);
	return id;
}
