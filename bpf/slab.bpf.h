/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * In which slab object a lock lives. Asked once for each lock, when its entry is made: the object may be
 * freed before user space looks. Reads memory and writes none, so it may be done while a spinlock spins.
 *
 * What is found is believed only if it is a cache that user space knows (memory.bpf.c): a page that is
 * not of a slab has something else in that field.
 */
#ifndef SLAB_BPF_H
#define SLAB_BPF_H

#include "maps.bpf.h"
#include <bpf/bpf_core_read.h>

/* slabs.bpf.c; global for the verifier's sake (stacks.bpf.c). */
extern __u64 slab_cache_of(__u64 addr);
extern __u32 slab_offset_of(__u64 addr);

/* 64 TiB, more than machines have and less than there is to the kernel's own image. */
#define DIRECT_MAPPING_LOG2 46
#define KERNEL_PAGE_SHIFT 12

/* The first struct page of what is allocated around an address; 0: nothing of the direct mapping. */
static __always_inline __u64 head_page_of(__u64 addr, __u64 page_offset, __u64 vmemmap)
{
	__u64 distance = addr - page_offset, page, head = 0;
	const struct page *at;

	if (!vmemmap || distance >> DIRECT_MAPPING_LOG2)
		return 0;
	page = vmemmap + (distance >> KERNEL_PAGE_SHIFT) * bpf_core_type_size(struct page);
	at = (const struct page *)page;
	/* Not in every kernel: 7.0 and later may keep it in another form. */
	if (!bpf_core_field_exists(at->compound_head) ||
	    bpf_probe_read_kernel(&head, sizeof(head),
				  (const char *)at +
				      bpf_core_field_offset(struct page, compound_head)))
		return 0;
	return head & 1 ? head - 1 : page;
}

static __always_inline __u64 slab_cache_of_page(__u64 page)
{
	__u64 cache = 0;

	if (!page)
		return 0;
	/* struct slab is a struct page under another name since 5.17 (d122019bf061). */
	if (bpf_core_type_exists(struct slab))
		bpf_probe_read_kernel(&cache, sizeof(cache),
				      (const char *)page +
					  bpf_core_field_offset(struct slab, slab_cache));
	else if (bpf_core_field_exists(struct page___5_16, slab_cache))
		bpf_probe_read_kernel(&cache, sizeof(cache),
				      (const char *)page +
					  bpf_core_field_offset(struct page___5_16, slab_cache));
	return cache;
}

/* 6.13 (a992d7a3979120fbd7c13435d27b3da8d9ed095a). */
extern struct kmem_cache *bpf_get_kmem_cache(__u64 addr) __ksym __weak;

/* By the kernel itself, where it does that for us. */
static __always_inline __u64 slab_cache_by_kernel(__u64 addr)
{
	__u64 cache = (__u64)bpf_get_kmem_cache(addr);

	/* For the verifier a pointer, which a function must not return: see plain_number(). */
	asm volatile("%0 = be64 %0\n%0 = be64 %0" : "+r"(cache));
	return cache;
}

#endif
