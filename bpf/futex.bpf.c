// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Where threads wait for futexes and wake them.
 *
 * The functions are the cheap way: a syscall tracepoint taxes every system call of every process by 150-370
 * instructions (peers.md), a hook on futex_wait only those that wait. What is asked for is in the registers of the
 * system call in both cases, for the functions' arguments and flags differ between kernels.
 */
#include "futex.bpf.h"

/* futexes.bpf.c */
extern int futex_enter(__u64 regs, __u64 uaddr, __u32 value);
extern int futex_has_stack(__u64 stack);
extern int futex_leave(__u64 ret);
extern int futex_restarts(void);
extern int futex_is_waiting(void);
extern int futex_release(__u64 uaddr, __u32 kind, __u32 wake);
extern int futex_release_has_stack(__u64 uaddr, __u32 kind, __u64 stack, __u32 wanted_for);
extern int futex_wakes(__u32 wakee_tid);

static __always_inline int futex_begins(void *ctx, const struct pt_regs *regs, __u64 uaddr,
					__u32 value)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct counters *c;

	if (!wanted(tgid))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	/* The kernel side of a futex wait is the same for everyone: do not pay for it. */
	if (futex_enter(plain_number((__u64)regs), uaddr, value))
		futex_has_stack(user_stack(ctx, c, tgid, SCRATCH_TASK));
	leave(c);
	return 0;
}

static __always_inline int futex_ends(__u64 ret)
{
	struct counters *c;

	if (!wanted(bpf_get_current_pid_tgid() >> 32))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	futex_leave(ret);
	leave(c);
	return 0;
}

static __always_inline int futex_releases(void *ctx, __u64 uaddr, __u32 kind, __u32 wake)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32, wanted_for;
	struct counters *c;

	if (!wanted(tgid))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	wanted_for = futex_release(uaddr, kind, wake);
	if (wanted_for)
		futex_release_has_stack(uaddr, kind, user_stack(ctx, c, tgid, SCRATCH_TASK),
					wanted_for);
	leave(c);
	return 0;
}

/* How many a wake asks for, from the registers: the place of the argument changed with 7.3. */
static __always_inline __u32 wake_count(void)
{
	struct syscall syscall = {};
	struct futex_request call = {};

	read_syscall(saved_registers(), &syscall);
	return decode_futex_call(&syscall, &call) ? call.value : 1;
}

#define FUTEX_WAIT_FN(fn, nargs, uaddr, value) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return futex_begins(ctx, saved_registers(), uaddr(ctx), value(ctx)); \
	} \
	SEC("?fexit/" #fn) \
	int fn##__fexit(__u64 *ctx) \
	{ \
		return futex_ends(fexit_return(ctx, nargs)); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return futex_begins(ctx, saved_registers(), uaddr##_kprobe(ctx), \
				    value##_kprobe(ctx)); \
	} \
	SEC("?kretprobe/" #fn) \
	int fn##__kretprobe(struct pt_regs *ctx) \
	{ \
		return futex_ends(PT_REGS_RC(ctx)); \
	}

#define FIRST(ctx) plain_number(ctx[0])
#define FIRST_kprobe(ctx) PT_REGS_PARM1(ctx)
#define THIRD(ctx) plain_number(ctx[2])
#define THIRD_kprobe(ctx) PT_REGS_PARM3(ctx)
#define NONE(ctx) 0
#define NONE_kprobe(ctx) 0

/* FUTEX_WAIT and WAIT_BITSET, and their restart after a signal: (uaddr, flags, val, …). */
FUTEX_WAIT_FN(futex_wait, cfg.futex_wait_nargs, FIRST, THIRD)
FUTEX_WAIT_FN(futex_lock_pi, cfg.futex_lock_pi_nargs, FIRST, NONE)
FUTEX_WAIT_FN(futex_wait_requeue_pi, cfg.futex_wait_requeue_pi_nargs, FIRST, NONE)
/* futex_waitv(2): its arguments are the kernel's own copy. */
FUTEX_WAIT_FN(futex_wait_multiple, cfg.futex_wait_multiple_nargs, NONE, NONE)
#if defined(__TARGET_ARCH_x86)
/* futex_wait(2), 6.7: calls __futex_wait, which futex_wait calls too. */
FUTEX_WAIT_FN(__x64_sys_futex_wait, 1, NONE, NONE)
#endif

#define FUTEX_WAKE_FN(fn, kind, count) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return futex_releases(ctx, plain_number(ctx[0]), kind, count); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return futex_releases(ctx, PT_REGS_PARM1(ctx), kind, count); \
	}

FUTEX_WAKE_FN(futex_wake, KIND_FUTEX, wake_count())
FUTEX_WAKE_FN(futex_wake_op, KIND_FUTEX, 1)
FUTEX_WAKE_FN(futex_requeue, KIND_FUTEX, 1)
FUTEX_WAKE_FN(futex_unlock_pi, KIND_FUTEX_PI, 1)

/* (wake_q, q): whatever wakes, an exiting thread and a requeue too, comes here for each thread it wakes. */
static __always_inline int wakes(__u64 q)
{
	const struct task_struct *task;

	if (!active)
		return 0;
	task = BPF_CORE_READ((const struct futex_q *)q, task);
	futex_wakes(BPF_CORE_READ(task, pid));
	return 0;
}

#define WAKE_MARK_FN(fn) \
	SEC("?fentry/" #fn) \
	int fn##__fentry(__u64 *ctx) \
	{ \
		return wakes(plain_number(ctx[1])); \
	} \
	SEC("?kprobe/" #fn) \
	int fn##__kprobe(struct pt_regs *ctx) \
	{ \
		return wakes(PT_REGS_PARM2(ctx)); \
	}

WAKE_MARK_FN(futex_wake_mark)
/* Its name before 5.16. */
WAKE_MARK_FN(mark_wake_futex)

/* ---- the system calls' own tracepoints, where neither fentry nor kprobes are to be had ---- */

/* Numbers of both tables; what they mean is looked at later. */
static __always_inline bool may_be_futex(__u64 nr)
{
	return nr == NR_FUTEX || nr == NR_RESTART_SYSCALL || nr == NR_COMPAT_FUTEX ||
	       nr == NR_COMPAT_FUTEX_TIME64 || (nr >= NR_FUTEX_WAITV && nr <= NR_FUTEX_REQUEUE);
}

SEC("?raw_tp/sys_enter")
int sys_enter__tp(struct bpf_raw_tracepoint_args *ctx)
{
	/* Every system call of the machine comes here: the number first. */
	if (!may_be_futex(ctx->args[1]))
		return 0;

	const struct pt_regs *regs = (void *)ctx->args[0];
	struct syscall syscall = {};
	struct futex_request call = {};
	__u32 kind = KIND_FUTEX;

	if (!wanted(bpf_get_current_pid_tgid() >> 32))
		return 0;
	read_syscall(regs, &syscall);
	if (syscall.nr == NR_RESTART_SYSCALL && !syscall.compat)
		return futex_restarts();
	if (!decode_futex_call(&syscall, &call))
		return 0;
	if (is_futex_wait(call.op))
		return futex_begins(ctx, regs, 0, 0);
	switch (FUTEX_CMD(call.op)) {
	case FUTEX_UNLOCK_PI:
		kind = KIND_FUTEX_PI;
	case FUTEX_WAKE:
	case FUTEX_WAKE_BITSET:
	case FUTEX_WAKE_OP:
	case FUTEX_REQUEUE:
	case FUTEX_CMP_REQUEUE:
	case FUTEX_CMP_REQUEUE_PI:
		return futex_releases(ctx, call.uaddr, kind, call.value);
	}
	return 0;
}

SEC("?raw_tp/sys_exit")
int sys_exit__tp(struct bpf_raw_tracepoint_args *ctx)
{
	const struct pt_regs *regs = (void *)ctx->args[0];
	struct syscall syscall = {};
	struct futex_request call = {};

	if (!wanted(bpf_get_current_pid_tgid() >> 32))
		return 0;
	read_syscall(regs, &syscall);
	if (!may_be_futex(syscall.nr))
		return 0;
	if (syscall.nr == NR_RESTART_SYSCALL && !syscall.compat) {
		if (!futex_is_waiting())
			return 0;
	} else if (!decode_futex_call(&syscall, &call) || !is_futex_wait(call.op)) {
		return 0;
	}
	return futex_ends(ctx->args[1]);
}
