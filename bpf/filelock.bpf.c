// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * File locks (fs/locks.c), with --file-locks: flock(), and POSIX and open-file-description locks.
 *
 * posix_lock_inode(inode, fl, ret) and flock_lock_inode(inode, fl, ret), include/trace/events/filelock.h, say
 * what every attempt came to, unlocks included. One that is deferred puts its task to sleep until the lock is
 * free, and then to another attempt: a wait lasts from the first deferred attempt to one that is not.
 *
 * A class of its own: between two attempts the task takes file_rwsem, a percpu_rw_semaphore.
 */
#include "core.bpf.h"

/* include/linux/filelock.h */
#define FILE_LOCK_DEFERRED 1

/* include/linux/sched.h */
#define PF_KTHREAD 0x00200000

/* lockd asks for its clients, and sleeps for none of them. */
static __always_inline bool is_kernel_thread(void)
{
	const struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, flags) & PF_KTHREAD;
}

static __always_inline bool waits_for_file(__u64 inode, __u32 kind)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(), .wait_class = WAIT_FILE };
	const struct wait *wait = bpf_map_lookup_elem(&waits, &key);

	return wait && wait->begin_ns && wait->site.lock.addr == inode &&
	       wait->site.lock.kind == kind;
}

static __always_inline int attempted(void *ctx, __u64 inode, __u32 kind, __u32 ret)
{
	if (!wanted(bpf_get_current_pid_tgid() >> 32))
		return 0;
	if (ret != FILE_LOCK_DEFERRED) {
		if (waits_for_file(inode, kind))
			wait_end(inode, outcome_of_int(ret), WAIT_FILE);
		return 0;
	}
	/* Woken, and somebody else was faster: the wait goes on. */
	if (waits_for_file(inode, kind) || is_kernel_thread())
		return 0;
	return wait_begin_in(ctx, inode, kind, WAIT_FILE, PHASE_SLEEP);
}

SEC("?raw_tp/flock_lock_inode")
int flock_lock_inode__tp(struct bpf_raw_tracepoint_args *ctx)
{
	return attempted(ctx, ctx->args[0], KIND_FLOCK, ctx->args[2]);
}

SEC("?raw_tp/posix_lock_inode")
int posix_lock_inode__tp(struct bpf_raw_tracepoint_args *ctx)
{
	return attempted(ctx, ctx->args[0], KIND_POSIX_LOCK, ctx->args[2]);
}

/* The system call is over. A wait that still goes on was ended by a signal, without another attempt. */
static __always_inline int given_up(__u64 inode, __u32 kind)
{
	if (wanted(bpf_get_current_pid_tgid() >> 32) && waits_for_file(inode, kind))
		wait_end(inode, ABORTED, WAIT_FILE);
	return 0;
}

SEC("?raw_tp/fcntl_setlk")
int fcntl_setlk__tp(struct bpf_raw_tracepoint_args *ctx)
{
	return given_up(ctx->args[0], KIND_POSIX_LOCK);
}

SEC("?fexit/locks_lock_inode_wait")
int locks_lock_inode_wait__fexit(__u64 *ctx)
{
	return given_up(plain_number(ctx[0]), KIND_FLOCK);
}

/* The return does not know the inode, and the task waits for no other. */
SEC("?kretprobe/locks_lock_inode_wait")
int locks_lock_inode_wait__kretprobe(struct pt_regs *ctx)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(), .wait_class = WAIT_FILE };
	const struct wait *wait = bpf_map_lookup_elem(&waits, &key);

	return wait ? given_up(wait->site.lock.addr, KIND_FLOCK) : 0;
}
