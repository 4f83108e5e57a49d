// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Where this kernel keeps what: read by user space with BPF_PROG_TEST_RUN, to tell what an address
 * belongs to. An object of its own, loaded beside the others; nothing in it is ever attached.
 */
#include "slab.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Addresses of the kernel's variables of these names, from /proc/kallsyms; 0: it does not list it. */
const volatile __u64 at_page_offset_base = 0;
const volatile __u64 at_vmemmap_base = 0;
const volatile __u64 at_vmalloc_base = 0;
const volatile __u64 at_per_cpu_offset = 0;
const volatile __u64 at_slab_caches = 0;
const volatile __u32 cpus = 0;

/* What they say. */
__u64 page_offset = 0;
__u64 vmemmap = 0;
__u64 vmalloc = 0;
__u64 cpu_offsets[MEMORY_CPUS] = {};

/* One run reads some caches (addr 0: none); `at` is the next entry of the list. */
struct slab_cache caches[MEMORY_CACHES] = {};
__u32 list_ended = 0;
__u64 list_begin = 0;
__u64 list_at = 0;
/* The kernel tells the cache of an address itself. */
__u32 told_by_kernel = 0;

static __always_inline __u64 read_u64(__u64 addr)
{
	__u64 value = 0;

	if (addr)
		bpf_probe_read_kernel(&value, sizeof(value), (const void *)addr);
	return value;
}

SEC("raw_tp/memory_bases")
int memory_bases(void *ctx)
{
	__u32 bytes = cpus * sizeof(cpu_offsets[0]);

	page_offset = read_u64(at_page_offset_base);
	vmemmap = read_u64(at_vmemmap_base);
	vmalloc = read_u64(at_vmalloc_base);
	if (bytes > sizeof(cpu_offsets))
		bytes = sizeof(cpu_offsets);
	if (at_per_cpu_offset)
		bpf_probe_read_kernel(cpu_offsets, bytes, (const void *)at_per_cpu_offset);
	/* The task that runs this lives in a slab. */
	if (bpf_ksym_exists(bpf_get_kmem_cache))
		told_by_kernel = slab_cache_by_kernel(bpf_get_current_task()) != 0;
	return 0;
}

/* slab_caches, or where that is not listed the cache of this task: the list is a circle. */
static __always_inline void begin_list(void)
{
	list_begin = at_slab_caches;
	if (!list_begin && bpf_ksym_exists(bpf_get_kmem_cache)) {
		list_begin = slab_cache_by_kernel(bpf_get_current_task());
		if (list_begin)
			list_begin += bpf_core_field_offset(struct kmem_cache, list);
	}
	list_at = at_slab_caches ? read_u64(list_begin) : list_begin;
	list_ended = !list_begin;
}

static __always_inline void read_cache(__u64 addr, struct slab_cache *to)
{
	const struct kmem_cache *from = (const struct kmem_cache *)addr;
	const char *name = BPF_CORE_READ(from, name);

	/* Of a circle entered somewhere one entry is the list's head, which is in no slab. */
	if (!at_slab_caches && bpf_ksym_exists(bpf_get_kmem_cache) && !slab_cache_by_kernel(addr))
		return;
	to->size = BPF_CORE_READ(from, size);
	to->object_size = BPF_CORE_READ(from, object_size);
	to->red_left_pad = 0;
	if (bpf_core_field_exists(from->red_left_pad))
		to->red_left_pad = BPF_CORE_READ(from, red_left_pad);
	/* OO_SHIFT, mm/slub.c */
	to->order = BPF_CORE_READ(from, oo.x) >> 16;
	to->least_order = BPF_CORE_READ(from, min.x) >> 16;
	if (bpf_probe_read_kernel_str(to->name, sizeof(to->name), name) > 0)
		to->addr = addr;
}

SEC("raw_tp/memory_caches")
int memory_caches(void *ctx)
{
	if (!list_begin)
		begin_list();
	for (int i = 0; i < MEMORY_CACHES; i++) {
		caches[i].addr = 0;
		if (list_ended)
			continue;
		read_cache(list_at - bpf_core_field_offset(struct kmem_cache, list), &caches[i]);
		list_at = read_u64(list_at);
		/* 0: memory that could not be read. */
		if (!list_at || list_at == list_begin)
			list_ended = 1;
	}
	return 0;
}
