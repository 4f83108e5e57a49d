// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * percpu_rw_semaphore: kernel/locking/percpu-rwsem.c.
 *
 * A reader waits in percpu_rwsem_wait() behind a writer. A writer always waits: for the readers to leave,
 * which takes an RCU grace period when no other writer came before it, and the whole of
 * percpu_down_write() is that wait (6.1's tracepoint says the same of every writer).
 */
#include "hold.bpf.h"

static __always_inline int write_acquired(__u64 addr)
{
	wait_end(addr, ACQUIRED, WAIT_PERCPU_WRITE);
	return cfg.hold_percpu_rwsem ? acquired(addr, KIND_PERCPU_RWSEM_WRITE) : 0;
}

SEC("?fentry/percpu_down_write")
int percpu_down_write__fentry(__u64 *ctx)
{
	return wait_begin(ctx, plain_number(ctx[0]), KIND_PERCPU_RWSEM_WRITE, WAIT_PERCPU_WRITE);
}

SEC("?fexit/percpu_down_write")
int percpu_down_write__fexit(__u64 *ctx)
{
	return write_acquired(plain_number(ctx[0]));
}

SEC("?kprobe/percpu_down_write")
int percpu_down_write__kprobe(struct pt_regs *ctx)
{
	return wait_begin(ctx, PT_REGS_PARM1(ctx), KIND_PERCPU_RWSEM_WRITE, WAIT_PERCPU_WRITE);
}

SEC("?kretprobe/percpu_down_write")
int percpu_down_write__kretprobe(struct pt_regs *ctx)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(),
				.wait_class = WAIT_PERCPU_WRITE };
	struct wait *wait = bpf_map_lookup_elem(&waits, &key);

	return wait ? write_acquired(wait->site.lock.addr)
		    : wait_end(0, ACQUIRED, WAIT_PERCPU_WRITE);
}

/* Readers are counted per CPU, inline, and released by anybody: their holds can not be seen. */
RELEASE_FN(percpu_up_write, KIND_PERCPU_RWSEM_WRITE)

/* percpu_rwsem_wait(sem, reader): a writer behind another writer is inside its percpu_down_write(). */
SEC("?fentry/percpu_rwsem_wait")
int percpu_rwsem_wait__fentry(__u64 *ctx)
{
	if (!(ctx[1] & 0xff))
		return 0;
	return wait_begin(ctx, plain_number(ctx[0]), KIND_PERCPU_RWSEM_READ, WAIT_KERNEL);
}

SEC("?fexit/percpu_rwsem_wait")
int percpu_rwsem_wait__fexit(__u64 *ctx)
{
	if (!(ctx[1] & 0xff))
		return 0;
	return wait_end(plain_number(ctx[0]), ACQUIRED, WAIT_KERNEL);
}

SEC("?kprobe/percpu_rwsem_wait")
int percpu_rwsem_wait__kprobe(struct pt_regs *ctx)
{
	if (!(PT_REGS_PARM2(ctx) & 0xff))
		return 0;
	return wait_begin(ctx, PT_REGS_PARM1(ctx), KIND_PERCPU_RWSEM_READ, WAIT_KERNEL);
}

SEC("?kretprobe/percpu_rwsem_wait")
int percpu_rwsem_wait__kretprobe(struct pt_regs *ctx)
{
	struct wait_key key = { .tid = bpf_get_current_pid_tgid(), .wait_class = WAIT_KERNEL };
	struct wait *wait = bpf_map_lookup_elem(&waits, &key);

	/* A writer returns from here too, and it may have come before us. */
	if (!wait || wait->site.lock.kind != KIND_PERCPU_RWSEM_READ)
		return 0;
	return wait_end(0, ACQUIRED, WAIT_KERNEL);
}
