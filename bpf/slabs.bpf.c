// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* In which slab object a lock lives: slab.bpf.h says how. Global functions: see stacks.bpf.c. */
#include "slab.bpf.h"

/* The cache that an address was allocated from; 0: from none, or nothing can tell. */
__noinline __u64 slab_cache_of(__u64 addr)
{
	if (cfg.slab_by_kernel && bpf_ksym_exists(bpf_get_kmem_cache))
		return slab_cache_by_kernel(addr);
	return slab_cache_of_page(head_page_of(addr, cfg.page_offset, cfg.vmemmap));
}

/* How far into its slab an address is. */
__noinline __u32 slab_offset_of(__u64 addr)
{
	__u64 head = head_page_of(addr, cfg.page_offset, cfg.vmemmap), first;

	if (!head)
		return SLAB_OFFSET_UNKNOWN;
	first = cfg.page_offset +
		((head - cfg.vmemmap) / bpf_core_type_size(struct page) << KERNEL_PAGE_SHIFT);
	return addr - first;
}
