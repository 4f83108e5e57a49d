// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * futex: FUTEX_WAIT and WAIT_BITSET (futex_wait), LOCK_PI (futex_lock_pi), WAKE (futex_wake).
 *
 * The functions are the cheap way: a syscall tracepoint taxes every system call of every process
 * by 150-370 instructions (peers.md), a hook on futex_wait only those that wait.
 */
#include "core.bpf.h"

/* linux/futex.h; the mask tolerates flags newer kernels may add above it. */
#define FUTEX_CMD(op) ((op)&0x7f)
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX_LOCK_PI 6
#define FUTEX_WAIT_BITSET 9
#define FUTEX_WAKE_BITSET 10
#define FUTEX_LOCK_PI2 13

/* asm-generic/errno*.h and linux/errno.h */
#define EINTR 4
#define ETIMEDOUT 110
#define EDEADLK 35
#define EOWNERDEAD 130
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

/* What a futex wait came to. EAGAIN (the word had changed), EFAULT and EINVAL never slept. */
static __always_inline enum outcome futex_outcome(__u64 ret)
{
	__s32 err = -(__s32)ret;

	if (err <= 0)
		return ACQUIRED;
	if (err == EINTR || err == ETIMEDOUT || err == EDEADLK ||
	    (err >= ERESTARTSYS && err <= ERESTART_RESTARTBLOCK))
		return ABORTED;
	return DID_NOT_WAIT;
}

/* A wake that woke somebody; the others happen to locks nobody waits for. */
static __always_inline int woke(__u64 uaddr, __u64 ret)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct lock_key key = { .addr = uaddr, .tgid = id >> 32, .kind = KIND_FUTEX };
	struct lock_stats *lock;
	struct counters *c;

	if (!wanted(id >> 32) || (__s32)ret <= 0)
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	c->events[EVENTS_SEEN]++;
	enter(c);
	lock = lock_stats_of(c, &key);
	if (lock) {
		__sync_fetch_and_add(&lock->wake_calls, 1);
		__sync_fetch_and_add(&lock->woken, (__s32)ret);
	}
	leave(c);
	return 0;
}

WAIT_FN(futex_wait, KIND_FUTEX, cfg.futex_wait_nargs, futex_outcome, WAIT_FUTEX)
WAIT_FN(futex_lock_pi, KIND_FUTEX_PI, cfg.futex_lock_pi_nargs, futex_outcome, WAIT_FUTEX)

SEC("?fexit/futex_wake")
int futex_wake__fexit(__u64 *ctx)
{
	return woke(plain_number(ctx[0]), fexit_return(ctx, cfg.futex_wake_nargs));
}

#define CALL_FUTEX_WAKE 100

SEC("?kprobe/futex_wake")
int futex_wake__kprobe(struct pt_regs *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct call_key key = { .tid = id, .function = CALL_FUTEX_WAKE };
	__u64 uaddr = PT_REGS_PARM1(ctx);

	if (!wanted(id >> 32))
		return 0;

	struct counters *c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
	if (bpf_map_update_elem(&calls, &key, &uaddr, BPF_ANY))
		c->lost[LOSS_WAITS_MAP_FULL]++;
	leave(c);
	return 0;
}

SEC("?kretprobe/futex_wake")
int futex_wake__kretprobe(struct pt_regs *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct call_key key = { .tid = id, .function = CALL_FUTEX_WAKE };
	__u64 *uaddr;

	if (!wanted(id >> 32))
		return 0;
	uaddr = bpf_map_lookup_elem(&calls, &key);
	if (!uaddr)
		return 0;
	woke(*uaddr, PT_REGS_RC(ctx));
	bpf_map_delete_elem(&calls, &key);
	return 0;
}

/* ---- the system call's own tracepoints, where neither fentry nor kprobes are to be had ---- */

SEC("?raw_tp/sys_enter")
int sys_enter__tp(struct bpf_raw_tracepoint_args *ctx)
{
	/* Every system call of the machine comes here: the number first. */
	if (ctx->args[1] != cfg.futex_nr && ctx->args[1] != cfg.compat_futex_nr)
		return 0;

	__u64 id = bpf_get_current_pid_tgid();
	const struct pt_regs *regs = (void *)ctx->args[0];
	__u64 uaddr;
	__u32 op;

	if (!wanted(id >> 32))
		return 0;

	struct counters *c = this_cpu_counters();
	if (!c)
		return 0;
	/* The number that is futex here is something else there. */
	if (is_compat_syscall(regs)) {
		if (ctx->args[1] == cfg.compat_futex_nr)
			c->lost[LOSS_COMPAT_FUTEX]++;
		return 0;
	}
	if (ctx->args[1] != cfg.futex_nr)
		return 0;
	syscall_args(regs, &uaddr, &op);
	switch (FUTEX_CMD(op)) {
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
		return wait_begin(ctx, uaddr, KIND_FUTEX, WAIT_FUTEX);
	case FUTEX_LOCK_PI:
	case FUTEX_LOCK_PI2:
		return wait_begin(ctx, uaddr, KIND_FUTEX_PI, WAIT_FUTEX);
	}
	return 0;
}

SEC("?raw_tp/sys_exit")
int sys_exit__tp(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	const struct pt_regs *regs = (void *)ctx->args[0];
	__u64 uaddr;
	__u32 op;

	if (!wanted(id >> 32))
		return 0;
	if (syscall_nr(regs) != cfg.futex_nr || is_compat_syscall(regs))
		return 0;
	syscall_args(regs, &uaddr, &op);
	switch (FUTEX_CMD(op)) {
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI:
	case FUTEX_LOCK_PI2:
		return wait_end(uaddr, futex_outcome(ctx->args[1]), WAIT_FUTEX);
	case FUTEX_WAKE:
	case FUTEX_WAKE_BITSET:
		return woke(uaddr, ctx->args[1]);
	}
	return 0;
}
