/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Releases of locks that somebody waits for: release.bpf.c says which. */
#ifndef RELEASE_BPF_H
#define RELEASE_BPF_H

#include "queue.bpf.h"

static __always_inline void released_while_waited_for(__u64 addr, __u32 kind)
{
	struct lock_key key = { .addr = addr, .tgid = 0, .kind = kind };
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &key);

	if (stats && stats->waiting)
		__sync_fetch_and_add(&stats->contended_releases, 1);
}

/* Both sides of a reader-writer lock, for whom waits which is known only there. */
static __always_inline int contended_release(void *ctx, __u64 addr, __u32 kind, __u32 other_side)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u64 kernel, user = STACK_NOT_TAKEN;
	struct counters *c;

	if (!active)
		return 0;
	released_while_waited_for(addr, kind);
	if (other_side != kind)
		released_while_waited_for(addr, other_side);
	if (!has_queue(kind))
		return 0;
	c = this_cpu_counters();
	if (!c)
		return 0;
	enter(c);
	if (queue_release(addr, kind)) {
		kernel = kernel_stack(ctx, c, SCRATCH_TASK);
		/* Of other processes there is no unwind table. */
		if (is_target(tgid))
			user = user_stack(ctx, c, tgid, SCRATCH_TASK);
		queue_charge(addr, kind, kernel, user);
	}
	leave(c);
	return 0;
}

#endif
