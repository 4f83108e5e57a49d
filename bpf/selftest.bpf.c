// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Entry points for BPF_PROG_TEST_RUN: what the hooks do, without a hook. Never attached; loaded by
 * src/bpf/selftest/ only.
 */
#include "hold.bpf.h"
#include "owner.bpf.h"
#include "release.bpf.h"
#include "spinhold.bpf.h"

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

SEC("?raw_tp/selftest")
int spinhold__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 addr = ctx->args[1];
	__u32 kind = ctx->args[2];

	if (ctx->args[0] == SELFTEST_ACQUIRE)
		return spin_acquired(addr, kind);
	return spin_released(addr, kind);
}

/* A slow path that is hooked itself, and not by a tracepoint. */
SEC("?raw_tp/selftest")
int spin__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 addr = ctx->args[1];
	__u32 kind = ctx->args[2];

	if (ctx->args[0] == SELFTEST_ACQUIRE)
		return spin_begin(ctx, addr, kind);
	return spin_call_ends(addr);
}

SEC("?raw_tp/selftest")
int wait__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 addr = ctx->args[1];
	__u32 kind = ctx->args[2];

	if (ctx->args[0] == SELFTEST_ACQUIRE)
		return wait_begin(ctx, addr, kind, WAIT_KERNEL);
	return wait_end(addr, ACQUIRED, WAIT_KERNEL);
}

/* (lock, kind): released by whoever runs this. */
SEC("?raw_tp/selftest")
int release__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 kind = ctx->args[1];

	return contended_release(ctx->args[0], kind, kind);
}

/* (lock, kind, tid): a wait begins while that task owns the lock. */
SEC("?raw_tp/selftest")
int owner__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	struct lock_key lock = { .addr = ctx->args[0], .tgid = 0, .kind = ctx->args[1] };
	struct owner owner = { .state = OWNER_TASK, .tid = ctx->args[2], .tgid = 1 };
	struct counters *c = this_cpu_counters();

	if (c)
		owned_by(c, &lock, &owner);
	return 0;
}

enum { SELFTEST_RACED, SELFTEST_DEEP };

/* A stack of `frames` made-up frames, kept by somebody the scratch may no longer belong to. */
SEC("?raw_tp/selftest")
int stack__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 slot = SCRATCH_TASK;
	struct stack_scratch *s = bpf_map_lookup_elem(&scratch, &slot);

	if (!s)
		return 0;
	*(volatile __u64 *)&s->owner =
	    ctx->args[0] == SELFTEST_RACED ? 2 : bpf_get_current_pid_tgid();
	s->stack.frames = 1;
	s->stack.end = STACK_COMPLETE;
	if (ctx->args[0] == SELFTEST_DEEP) {
		s->stack.frames = MAX_FRAMES;
		s->stack.end = STACK_TRUNCATED;
	}
	keep_stack(slot, 0);
	return 0;
}
