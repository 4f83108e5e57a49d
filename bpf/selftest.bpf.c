// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Entry points for BPF_PROG_TEST_RUN: what the hooks do, without a hook. Never attached; loaded by
 * src/bpf/selftest.rs only.
 */
#include "hold.bpf.h"

enum { SELFTEST_ACQUIRE, SELFTEST_RELEASE };

SEC("?raw_tp/selftest")
int hold__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 addr = ctx->args[1];
	__u32 kind = ctx->args[2];

	if (ctx->args[0] == SELFTEST_ACQUIRE)
		return acquired(addr, kind);
	return released(addr, kind);
}

enum { SELFTEST_RACED, SELFTEST_DEEP };

/* A stack of `frames` made-up frames, kept by somebody the scratch may no longer belong to. */
SEC("?raw_tp/selftest")
int stack__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	struct counters *c = this_cpu_counters();
	__u32 slot = SCRATCH_TASK;
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);
	__u64 owner = 1;
	bool is_new = false;

	if (!s || !c)
		return 0;
	*(volatile __u64 *)&s->owner = ctx->args[0] == SELFTEST_RACED ? 2 : owner;
	s->stack.frames = 1;
	s->stack.end = STACK_COMPLETE;
	if (ctx->args[0] == SELFTEST_DEEP) {
		s->stack.frames = MAX_FRAMES;
		s->stack.end = STACK_TRUNCATED;
	}
	keep_stack(c, s, owner, &is_new);
	return 0;
}
