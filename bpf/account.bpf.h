/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a finished wait adds to its site and to its lock's histogram. */
#ifndef ACCOUNT_BPF_H
#define ACCOUNT_BPF_H

#include "core.bpf.h"

/* A wait ended, spin_ns of it spinning; `aborted`: without the lock. */
static __always_inline void account(struct counters *c, const struct site_key *site, __u64 ns,
				    __u64 spin_ns, bool aborted)
{
	static const struct site_stats zero = {};
	struct site_stats *stats = bpf_map_lookup_elem(&sites, site);

	if (!stats) {
		bpf_map_update_elem(&sites, site, &zero, BPF_NOEXIST);
		stats = bpf_map_lookup_elem(&sites, site);
		if (!stats) {
			c->lost[LOSS_SITES_MAP_FULL]++;
			return;
		}
	}
	if (aborted) {
		__sync_fetch_and_add(&stats->aborted, 1);
		__sync_fetch_and_add(&stats->aborted_total_ns, ns);
		return;
	}
	__sync_fetch_and_add(&stats->contended, 1);
	__sync_fetch_and_add(&stats->wait_total_ns, ns);
	/* Clang makes an atomic `or` of adding a constant 0, which 5.10 does not have. */
	if (spin_ns)
		__sync_fetch_and_add(&stats->spin_total_ns, spin_ns);
	raise_max(&stats->wait_max_ns, ns);
	raise_max(&stats->wait_min_inverted, ~ns);

	struct lock_stats *lock = lock_stats_of(c, &site->lock);
	__u32 bucket = hist_bucket(ns);

	if (lock && bucket < HIST_BUCKETS)
		__sync_fetch_and_add(&lock->hist[bucket], 1);
}

#endif
