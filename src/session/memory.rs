//! What the kernel's memory is made of, read before and after the measuring, to name kernel locks.

use crate::bpf::{MemoryReader, SlabLookup};
use crate::kernel::Caches;
use crate::kernel::btf::Types;
use crate::model::SlabPlace;
use crate::naming::Memory;
use std::collections::HashMap;

/// A kernel that lets us look, or why it does not.
pub struct MemoryLook {
    reader: Result<MemoryReader, String>,
}

impl MemoryLook {
    pub fn begin() -> MemoryLook {
        MemoryLook { reader: MemoryReader::load().map_err(|err| format!("{err:#}")) }
    }

    pub fn slab_lookup(&self) -> SlabLookup {
        let Ok(reader) = &self.reader else { return SlabLookup::default() };
        let bases = reader.bases();
        SlabLookup {
            by_kernel: reader.told_by_kernel(),
            page_offset: bases.page_offset,
            vmemmap: bases.vmemmap,
        }
    }

    /// After the measuring: a cache that came meanwhile is known too.
    pub fn end(self, places: HashMap<u64, SlabPlace>) -> Memory {
        let mut unavailable = Vec::new();
        let types = Types::load().unwrap_or_else(|err| {
            unavailable.push(format!("members of structures: Failed to read /sys/kernel/btf: {err}"));
            Types::default()
        });
        let lookup = self.slab_lookup();
        let (bases, caches) = match self.reader {
            Ok(reader) => {
                let caches = reader.caches().unwrap_or_else(|err| {
                    unavailable.push(format!("objects on the heap: {err:#}"));
                    Vec::new()
                });
                (reader.bases().clone(), Caches::of_kernel(caches))
            }
            Err(err) => {
                unavailable.push(format!("objects on the heap, per-CPU variables: {err}"));
                Default::default()
            }
        };
        if !lookup.by_kernel && lookup.vmemmap == 0 && !caches.is_empty() {
            unavailable.push(
                "objects on the heap: this kernel lists no vmemmap_base in /proc/kallsyms and has no bpf_get_kmem_cache (6.13)"
                    .to_string(),
            );
        }
        if bases.cpu_offsets.is_empty() && unavailable.is_empty() {
            unavailable.push(
                "per-CPU variables: this kernel lists no __per_cpu_offset in /proc/kallsyms (CONFIG_KALLSYMS_ALL)"
                    .to_string(),
            );
        }
        Memory { types, bases, caches, places, unavailable }
    }
}
