//! Where the kernel keeps what: bpf/memory.bpf.c, loaded, run by us, never attached.

use super::load::{lift_memory_limit, remember};
use super::skel::memory::{MemorySkel, MemorySkelBuilder, types};
use super::wire;
use crate::kernel::{Bases, Cache, Variables};
use anyhow::{Context, Result, bail};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{OpenObject, PrintLevel};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// The variables of the kernel that say where things are.
const VARIABLES: [&str; 5] =
    ["page_offset_base", "vmemmap_base", "vmalloc_base", "__per_cpu_offset", "slab_caches"];

/// More caches than any kernel has, read 64 at a time.
const MAX_READS: usize = 256;

/// A look into the kernel's memory.
pub struct MemoryReader {
    skel: MemorySkel<'static>,
    bases: Bases,
    told_by_kernel: bool,
}

impl MemoryReader {
    pub fn load() -> Result<MemoryReader> {
        // What kallsyms does not list is not known; some of it is not needed.
        let variables = Variables::of_kernel(&VARIABLES).unwrap_or_default();
        libbpf_rs::set_print(Some((PrintLevel::Warn, remember)));
        lift_memory_limit();
        // Lives until the process ends, like the other programs' (load.rs).
        let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = MemorySkelBuilder::default().open(storage).context("Failed to open memory.bpf.c")?;
        let rodata = open.maps.rodata_data.as_deref_mut().context("memory.bpf.c has no .rodata")?;
        let address = |name| variables.get(name).unwrap_or(0);
        rodata.at_page_offset_base = address("page_offset_base");
        rodata.at_vmemmap_base = address("vmemmap_base");
        rodata.at_vmalloc_base = address("vmalloc_base");
        rodata.at_per_cpu_offset = address("__per_cpu_offset");
        rodata.at_slab_caches = address("slab_caches");
        let cpus = libbpf_rs::num_possible_cpus().unwrap_or(0);
        rodata.cpus = cpus as u32;
        let skel = open.load().context("The kernel refuses to let its memory be looked at")?;

        let mut reader = MemoryReader { skel, bases: Bases::default(), told_by_kernel: false };
        run(&reader.skel.progs.memory_bases)?;
        let bss = reader.bss()?;
        let mut bases = Bases {
            page_offset: bss.page_offset,
            vmemmap: bss.vmemmap,
            vmalloc: bss.vmalloc,
            cpu_offsets: bss.cpu_offsets.iter().take(cpus).copied().collect(),
        };
        let told_by_kernel = bss.told_by_kernel != 0;
        if variables.get("__per_cpu_offset").is_none() {
            bases.cpu_offsets.clear();
        }
        if cfg!(target_arch = "x86_64")
            && variables.get("slab_caches").is_some()
            && variables.get("page_offset_base").is_none()
        {
            // Without CONFIG_DYNAMIC_MEMORY_LAYOUT: arch/x86/include/asm/page_64_types.h, pgtable_64_types.h.
            bases.page_offset = 0xffff_8880_0000_0000;
            bases.vmemmap = 0xffff_ea00_0000_0000;
            bases.vmalloc = 0xffff_c900_0000_0000;
        }
        reader.bases = bases;
        reader.told_by_kernel = told_by_kernel;
        Ok(reader)
    }

    pub fn bases(&self) -> &Bases {
        &self.bases
    }

    /// The kernel itself says which cache an address is of.
    pub fn told_by_kernel(&self) -> bool {
        self.told_by_kernel
    }

    /// All caches of the slab allocator, once.
    pub fn caches(&self) -> Result<Vec<Cache>> {
        let mut caches = Vec::new();
        for _ in 0..MAX_READS {
            run(&self.skel.progs.memory_caches)?;
            let bss = self.bss()?;
            caches.extend(bss.caches.iter().filter(|cache| cache.addr != 0).map(cache));
            if bss.list_ended != 0 {
                break;
            }
        }
        if caches.is_empty() {
            bail!(
                "this kernel lists no slab_caches in /proc/kallsyms (CONFIG_KALLSYMS_ALL) and has no bpf_get_kmem_cache (6.13)"
            );
        }
        Ok(caches)
    }

    fn bss(&self) -> Result<types::bss> {
        let bss = self.skel.maps.bss_data.as_deref().context("memory.bpf.c has no .bss")?;
        // SAFETY: a live mapping, which no program writes between two runs.
        Ok(unsafe { std::ptr::read_volatile(bss) })
    }
}

fn cache(from: &types::slab_cache) -> Cache {
    Cache {
        addr: from.addr,
        name: wire::chars(&from.name),
        size: from.size,
        object_size: from.object_size,
        red_left_pad: from.red_left_pad,
        order: from.order,
        least_order: from.least_order,
    }
}

fn run(program: &impl AsFd) -> Result<()> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        ..Default::default()
    };
    // SAFETY: opts is sized by its own sz field, and has no buffers.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_fd().as_raw_fd(), &mut opts) };
    if result != 0 {
        return Err(std::io::Error::from_raw_os_error(-result))
            .context("The kernel refuses to run a program");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: cargo test --lib -- --ignored"]
    fn the_running_kernels_caches_are_read_whole() {
        let reader = MemoryReader::load().expect("the object loads");
        let caches = reader.caches().expect("the caches are listed, or the kernel tells them");
        let names: Vec<&str> = caches.iter().map(|cache| cache.name.as_str()).collect();
        for name in ["task_struct", "dentry", "filp"] {
            assert_eq!(names.iter().filter(|other| **other == name).count(), 1, "{name} in {names:?}");
        }
        for cache in &caches {
            assert!(cache.size >= cache.object_size && cache.object_size > 0, "{cache:?}");
            assert!(cache.order >= cache.least_order && cache.order < 11, "{cache:?}");
        }
        // All that sysfs has a directory for: those with an identity, or a name, of their own.
        let dirs = std::fs::read_dir("/sys/kernel/slab").expect("SLUB").flatten();
        let dirs = dirs.filter(|entry| !entry.path().is_symlink()).count();
        assert_eq!(caches.len(), dirs);
    }
}
