//! In which slab object a lock lives. The caches' own descriptions are objects of a cache, at addresses that
//! are known.

use super::*;
use crate::bpf::load::SlabLookup;
use crate::bpf::memory::MemoryReader;
use crate::kernel::Cache;

fn bench(slabs: SlabLookup) -> Bench {
    let alone = alone();
    let facts = Facts::gather(&[], &[]).expect("facts");
    let settings = Settings { slabs, ..settings(4096, Targets::Pids(vec![std::process::id()])) };
    Bench::load(alone, &tracepoint_plan(), &facts, &settings)
}

/// What this kernel allows: it may tell itself, or we go by its struct pages.
fn lookups(reader: &MemoryReader) -> Vec<SlabLookup> {
    let bases = reader.bases();
    let both = SlabLookup {
        by_kernel: reader.told_by_kernel(),
        page_offset: bases.page_offset,
        vmemmap: bases.vmemmap,
    };
    let mut lookups = vec![];
    if both.by_kernel {
        lookups.push(SlabLookup { page_offset: 0, vmemmap: 0, ..both });
    }
    if both.vmemmap != 0 {
        lookups.push(SlabLookup { by_kernel: false, ..both });
    }
    assert!(!lookups.is_empty(), "nothing tells slabs on this kernel");
    lookups
}

#[test]
#[ignore = "needs root"]
fn a_lock_in_a_slab_object_is_found_there_by_every_method() {
    let reader = MemoryReader::load().expect("the object loads");
    let caches = reader.caches().expect("the caches");
    let own = caches.iter().find(|cache| cache.name == "kmem_cache").expect("caches have a cache");
    for slabs in lookups(&reader) {
        for (kind, is_spin) in [(MUTEX, false), (SPIN, true)] {
            let bench = bench(slabs);
            let objects: Vec<&Cache> = caches.iter().take(20).collect();
            for object in &objects {
                bench.wait(object.addr + 8, kind);
            }
            let capture = bench.capture();
            for object in objects {
                let place = capture.slab_places.get(&(object.addr + 8));
                let place = place.unwrap_or_else(|| panic!("{object:?} by {slabs:?}, spin: {is_spin}"));
                assert_eq!(place.cache, own.addr);
                assert_eq!(place.offset.is_some(), slabs.vmemmap != 0);
                let in_slab = place.offset.map_or((object.addr + 8) & ((4096 << own.order) - 1), u64::from);
                assert_eq!(own.offset_in_object(in_slab), Some(8), "{object:?} in {own:?} by {slabs:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_in_no_slab_has_no_place() {
    let reader = MemoryReader::load().expect("the object loads");
    let known: Vec<u64> = reader.caches().expect("the caches").iter().map(|cache| cache.addr).collect();
    for slabs in lookups(&reader) {
        let bench = bench(slabs);
        // The kernel's image, the middle of nowhere, user space, and nothing.
        for addr in [0xffff_ffff_8100_0000, 0xffff_c8ff_ffff_0000, 0x7f00_0000_1000, 0x10] {
            bench.wait(addr, MUTEX);
        }
        let capture = bench.capture();
        assert_eq!(capture.sites.len(), 4, "they are counted all the same");
        for place in capture.slab_places.values() {
            assert!(!known.contains(&place.cache), "{:?} by {slabs:?}", capture.slab_places);
        }
    }
}
