// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Walks the user stack of the current task with the rules of .eh_frame, which src/unwind made rows of.
 *
 * Why: distributions' libraries keep no frame pointers, and every futex wait has libc at its leaf; with
 * frame pointers the function that took a mutex was right in none of 24 measured stacks, with rules in
 * all (build.md section 3).
 *
 * The functions here are global (not static) and take numbers: such functions are verified once, on
 * their own, not once per frame and caller. Inlined, the search alone is more than the million
 * instructions the verifier is willing to look at.
 *
 * Safe everywhere, also in a spin wait: arrays, and look-ups (never changes) of one hash.
 */
#include "compat.bpf.h"

/* The rule of the last of `count` rows from `first` on that is not behind pc; 0: none. */
__noinline __u32 find_row(__u32 first, __u32 count, __u32 pc)
{
	__u32 low = 0, high = count, index;
	struct unwind_row *row;

	/* Enough for 2^24 rows. */
	for (int i = 0; i < 25; i++) {
		__u32 middle = (low + high) / 2;

		if (low >= high)
			break;
		index = first + middle;
		row = bpf_map_lookup_elem(&rows, &index);
		if (!row)
			return 0;
		if (row->pc <= pc)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return 0;
	index = first + low - 1;
	row = bpf_map_lookup_elem(&rows, &index);
	return row ? row->rule : 0;
}

/*
 * The rule for an address of a process; 0: no mapping has it, or the list is not the one of this
 * generation any more. An entry that is replaced meanwhile can be reused for another process, so its
 * generation is compared again after the search: what is cached must be true.
 */
__noinline __u32 find_rule(__u32 tgid, __u64 generation, __u64 pc)
{
	struct process *process = bpf_map_lookup_elem(&processes, &tgid);
	struct unwind_mapping *mapping;
	__u32 low = 0, high, rule;
	__u64 into;

	if (!process)
		return 0;
	high = process->mappings;
	for (int i = 0; i < MAX_MAPPINGS_LOG2 + 1; i++) {
		__u32 middle = (low + high) / 2;

		if (low >= high)
			break;
		if (process->mapping[middle & (MAX_MAPPINGS - 1)].start <= pc)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return 0;
	mapping = &process->mapping[(low - 1) & (MAX_MAPPINGS - 1)];
	into = pc - mapping->start;
	if (into >= mapping->length)
		return 0;
	if (mapping->rows)
		rule = find_row(mapping->first_row, mapping->rows, mapping->pc + (__u32)into);
	else
		rule = RULE_FRAME_POINTER;
	return *(volatile __u64 *)&process->generation == generation ? rule : 0;
}

static __always_inline __u32 cached_rule(struct walk *walk, __u64 pc)
{
	/*
	 * One word holds half of the hash and the rule, so that no reader sees half of an entry. The
	 * other half of the hash chooses the word.
	 */
	__u64 hash = (pc + walk->generation) * 0x9e3779b97f4a7c15ULL;
	__u32 rule, index;
	__u64 *word;

	hash = (hash ^ (hash >> 32)) * 0x9e3779b97f4a7c15ULL;
	index = (__u32)hash >> (32 - RULE_CACHE_LOG2);
	word = bpf_map_lookup_elem(&rules, &index);
	if (!word)
		return 0;
	__u64 known = *(volatile __u64 *)word;
	if ((known ^ hash) >> 32 == 0 && (__u32)known)
		return known;
	rule = find_rule(walk->tgid, walk->generation, pc);
	if (rule)
		*(volatile __u64 *)word = (hash & 0xffffffff00000000ULL) | rule;
	return rule;
}

#define READ(to, from) bpf_probe_read_user(&(to), sizeof(to), (void *)(from))

/* From one frame to its caller; not 0: the walk is over, walk->end says why. */
__noinline __u32 walk_step(__u32 slot)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	__u64 sp, bp, ip, cfa, pair[2];
	__u32 rule, n;

	if (!s)
		return 1;

	struct walk *walk = &s->walk;
	sp = walk->sp;
	bp = walk->bp;
	n = s->stack.frames;
	if (n >= MAX_FRAMES) {
		s->stack.end = STACK_TRUNCATED;
		return 1;
	}
	/* A return address belongs to the call before it, which may be its function's last instruction. */
	rule = cached_rule(walk, walk->ip - walk->is_return);
	switch (rule & 0xff) {
	case RULE_END:
		s->stack.end = STACK_COMPLETE;
		return 1;
	case RULE_SIGNAL:
		/* The kernel's rt_sigframe: sp is at its ucontext, whose gregs begin at 40. */
		if (READ(ip, sp + 168) || READ(bp, sp + 120) || READ(cfa, sp + 160)) {
			s->stack.end = STACK_READ_FAILED;
			return 1;
		}
		/* The handler may have a stack of its own: cfa is not above sp. */
		walk->is_return = 0;
		goto found;
	case RULE_FRAME_POINTER:
		if (!bp) {
			s->stack.end = STACK_COMPLETE;
			return 1;
		}
		cfa = bp + 16;
		break;
	case RULE_RSP:
		cfa = sp + ((rule >> 16) << 3);
		break;
	case RULE_RBP:
		cfa = bp + ((rule >> 16) << 3);
		break;
	case RULE_PLT:
		cfa = sp + 8 + ((walk->ip & 15) >= 11 ? 8 : 0);
		break;
	case RULE_REALIGNED:
		if (READ(cfa, bp - ((rule >> 16) << 3)) || READ(bp, bp)) {
			s->stack.end = STACK_READ_FAILED;
			return 1;
		}
		break;
	default:
		s->stack.end = STACK_NO_RULE;
		return 1;
	}
	/* Stacks grow down: also what ends a walk that goes in circles. */
	if (cfa <= sp) {
		s->stack.end = STACK_NO_RULE;
		return 1;
	}
	/* Both at once where they are neighbours, as after `push %rbp`. */
	if (READ(pair, cfa - 16)) {
		s->stack.end = STACK_READ_FAILED;
		return 1;
	}
	ip = pair[1];
	rule = (rule & 0xff) == RULE_FRAME_POINTER ? 2 : (rule >> 8) & 0xff;
	if (rule == 2) {
		bp = pair[0];
	} else if (rule && READ(bp, cfa - rule * 8)) {
		s->stack.end = STACK_READ_FAILED;
		return 1;
	}
	walk->is_return = 1;
found:
	if (!ip) {
		s->stack.end = STACK_COMPLETE;
		return 1;
	}
	walk->ip = ip;
	walk->sp = cfa;
	walk->bp = bp;
	s->stack.pcs[n] = ip;
	s->stack.frames = n + 1;
	return 0;
}

/*
 * Leaves the user stack of the current task in the scratch slot, if its result is WALK_DONE.
 */
__noinline __u32 walk_user_stack(__u32 slot, __u32 tgid)
{
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	struct process *process;

	if (!s)
		return WALK_NO_TABLE;
	if (!user_registers(&s->walk.ip, &s->walk.sp, &s->walk.bp))
		return WALK_NO_REGISTERS;
	process = bpf_map_lookup_elem(&processes, &tgid);
	if (!process)
		return WALK_NO_TABLE;
	s->walk.generation = process->generation;
	s->walk.tgid = tgid;
	s->walk.is_return = 0;
	s->stack.pcs[0] = s->walk.ip;
	s->stack.frames = 1;
	s->stack.end = STACK_TRUNCATED;
	for (int i = 0; i < MAX_FRAMES; i++)
		if (walk_step(slot))
			break;
	return WALK_DONE;
}
