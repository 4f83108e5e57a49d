/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Releases of locks that somebody waits for: release.bpf.c says which. */
#ifndef RELEASE_BPF_H
#define RELEASE_BPF_H

#include "core.bpf.h"

static __always_inline void released_while_waited_for(__u64 addr, __u32 kind)
{
	struct lock_key key = { .addr = addr, .tgid = 0, .kind = kind };
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &key);

	if (stats && stats->waiting)
		__sync_fetch_and_add(&stats->contended_releases, 1);
}

/* Both sides of a reader-writer lock, for whom waits which is known only there. */
static __always_inline int contended_release(__u64 addr, __u32 kind, __u32 other_side)
{
	if (!active)
		return 0;
	released_while_waited_for(addr, kind);
	if (other_side != kind)
		released_while_waited_for(addr, other_side);
	return 0;
}

#endif
