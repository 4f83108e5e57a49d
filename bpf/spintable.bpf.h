/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Hashes for the tables of spin waits and holds (SPIN_PROBES in lockprof.h). */
#ifndef SPINTABLE_BPF_H
#define SPINTABLE_BPF_H

#include "core.bpf.h"

static __always_inline __u64 mix(__u64 hash, __u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 32);
}

static __always_inline __u64 hash_of_lock(const struct lock_key *key)
{
	return mix(mix(0, key->addr), (__u64)key->kind << 32 | key->tgid);
}

#endif
