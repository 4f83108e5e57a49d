// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Entry points for BPF_PROG_TEST_RUN: what the hooks do, without a hook. Never attached; loaded by
 * src/bpf/selftest/ only.
 */
#include "futex.bpf.h"
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
	return spin_released(ctx, addr, kind);
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

	return contended_release(ctx, ctx->args[0], kind, kind);
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

/* futexes.bpf.c */
extern int futex_begin_call(void);
extern int futex_has_stack(__u64 stack);
extern int futex_leave(__u64 ret);
extern int futex_restarts(void);
extern int futex_release(__u64 uaddr, __u32 kind, __u32 wake);
extern int futex_release_has_stack(__u64 uaddr, __u32 kind, __u64 stack, __u32 wanted_for);
extern int futex_wakes(__u32 wakee_tid);

enum {
	SELFTEST_FUTEX_BEGIN,
	SELFTEST_FUTEX_END,
	SELFTEST_FUTEX_RELEASE,
	SELFTEST_FUTEX_WAKES,
	SELFTEST_FUTEX_RESTARTS,
	SELFTEST_FUTEX_EXITS,
};

/* (…, uaddr, op, value, sp, thread pointer, timeout, compat): what futex_enter() decodes from the registers. */
static __always_inline int futex_selftest_begins(struct bpf_raw_tracepoint_args *ctx,
						 struct counters *c, __u64 id)
{
	struct futex_wait *wait = futex_wait_of(c, id);
	volatile struct futex_call *call;

	if (!wait)
		return 0;
	call = &wait->call;
	call->uaddr = ctx->args[1];
	call->op = ctx->args[2];
	call->value = ctx->args[3];
	call->sp = ctx->args[4];
	call->thread_pointer = ctx->args[5];
	call->timeout = ctx->args[6];
	call->compat = ctx->args[7];
	if (futex_begin_call())
		futex_has_stack(user_stack(ctx, c, id >> 32, SCRATCH_TASK));
	return 0;
}

/* By the thread that runs it: (BEGIN, …), (END, ret), (RELEASE, uaddr, kind, wake), (WAKES, tid), … */
SEC("?raw_tp/selftest")
int futex__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 id = bpf_get_current_pid_tgid(), first = ctx->args[1];
	struct counters *c = this_cpu_counters();
	__u32 kind = ctx->args[2], wanted_for;

	if (!c)
		return 0;
	switch (ctx->args[0]) {
	case SELFTEST_FUTEX_BEGIN:
		return futex_selftest_begins(ctx, c, id);
	case SELFTEST_FUTEX_END:
		return futex_leave(first);
	case SELFTEST_FUTEX_RELEASE:
		wanted_for = futex_release(first, kind, ctx->args[3]);
		if (wanted_for)
			futex_release_has_stack(
			    first, kind, user_stack(ctx, c, id >> 32, SCRATCH_TASK), wanted_for);
		return 0;
	case SELFTEST_FUTEX_WAKES:
		return futex_wakes(first);
	case SELFTEST_FUTEX_RESTARTS:
		return futex_restarts();
	case SELFTEST_FUTEX_EXITS:
		return futex_thread_exits();
	}
	return 0;
}

/* A thread of a target is born: whoever runs this. */
SEC("?raw_tp/selftest")
int thread__selftest(struct bpf_raw_tracepoint_args *ctx)
{
	struct counters *c = this_cpu_counters();

	if (c)
		remember_thread(c, (void *)bpf_get_current_task());
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
