//! Where the kernel keeps what: the bounds of its memory, and the caches of its slab allocator.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::{fs, io};

/// Addresses of variables, from `/proc/kallsyms`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    addresses: HashMap<String, u64>,
}

impl Variables {
    /// Those of these names that the kernel lists; it lists none without CONFIG_KALLSYMS_ALL.
    pub fn of_kernel(names: &[&str]) -> io::Result<Variables> {
        Ok(Variables::parse(&fs::read_to_string("/proc/kallsyms")?, names))
    }

    fn parse(kallsyms: &str, names: &[&str]) -> Variables {
        let mut addresses = HashMap::new();
        for line in kallsyms.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(address), Some(_), Some(name), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let address = u64::from_str_radix(address, 16).unwrap_or(0);
            if address != 0 && names.contains(&name) {
                addresses.entry(name.to_string()).or_insert(address);
            }
        }
        Variables { addresses }
    }

    pub fn get(&self, name: &str) -> Option<u64> {
        self.addresses.get(name).copied()
    }
}

/// Where parts of the kernel's address space begin; 0: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bases {
    /// All of memory, one to one.
    pub page_offset: u64,
    /// The `struct page`s.
    pub vmemmap: u64,
    /// Memory mapped page by page: large tables, kernel stacks.
    pub vmalloc: u64,
    /// What to add to the address of a per-CPU variable, for each CPU.
    pub cpu_offsets: Vec<u64>,
}

/// A cache of the slab allocator: a size of objects, by its first name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    pub addr: u64,
    pub name: String,
    /// From one object to the next.
    pub size: u32,
    pub object_size: u32,
    pub red_left_pad: u32,
    /// Pages of a slab as powers of two, and of one made when memory was short.
    pub order: u16,
    pub least_order: u16,
}

impl Cache {
    /// How far into its object something is, by how far it is into its slab; `None`: between two objects.
    pub fn offset_in_object(&self, offset_in_slab: u64) -> Option<u32> {
        let offset = (offset_in_slab % u64::from(self.size.max(1))) as u32;
        offset.checked_sub(self.red_left_pad).filter(|offset| *offset < self.object_size.max(1))
    }
}

/// All caches. Those of one size and the like are one (they are *merged*), under any of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    by_address: HashMap<u64, Cache>,
    /// Name → the one merged cache's own identity; names that share one are of one cache.
    identities: BTreeMap<String, String>,
}

impl Caches {
    pub fn new(caches: Vec<Cache>, identities: BTreeMap<String, String>) -> Caches {
        Caches { by_address: caches.into_iter().map(|cache| (cache.addr, cache)).collect(), identities }
    }

    /// With the names that `/sys/kernel/slab` lists: links to directories like `:A-0000192`.
    pub fn of_kernel(caches: Vec<Cache>) -> Caches {
        Caches::new(caches, identities(Path::new("/sys/kernel/slab")).unwrap_or_default())
    }

    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    pub fn get(&self, addr: u64) -> Option<&Cache> {
        self.by_address.get(&addr)
    }

    /// Of all caches, with those they were merged from.
    pub fn all_names(&self) -> Vec<&str> {
        let own = self.by_address.values().map(|cache| cache.name.as_str());
        own.chain(self.identities.keys().map(String::as_str)).collect()
    }

    /// Everything the objects of a cache may be called.
    pub fn names_of<'c>(&'c self, cache: &'c Cache) -> Vec<&'c str> {
        let Some(identity) = self.identities.get(&cache.name) else { return vec![&cache.name] };
        let same = self.identities.iter().filter(|(_, other)| *other == identity);
        same.map(|(name, _)| name.as_str()).collect()
    }

    /// The largest objects of the general caches that are smaller than `size`: who asks for less gets those.
    pub fn next_smaller_general(&self, size: u32) -> u32 {
        let general = self.by_address.values().filter(|cache| general_size(&cache.name).is_some());
        general.map(|cache| cache.object_size).filter(|other| *other < size).max().unwrap_or(0)
    }
}

fn identities(dir: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut identities = BTreeMap::new();
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Ok(target) = fs::read_link(entry.path())
            && let Some(target) = target.file_name()
        {
            identities.insert(name, target.to_string_lossy().into_owned());
        }
    }
    Ok(identities)
}

/// The size in `kmalloc-192`, `kmalloc-cg-1k`, `dma-kmalloc-8`, `kmalloc-rnd-05-64`: of objects of any type.
pub fn general_size(name: &str) -> Option<u32> {
    let kind = name.strip_prefix("dma-").unwrap_or(name).strip_prefix("kmalloc-")?;
    let size = kind.rsplit('-').next()?;
    match size.strip_suffix(['k', 'M']) {
        Some(number) => {
            let unit = if size.ends_with('k') { 1 << 10 } else { 1 << 20 };
            number.parse::<u32>().ok()?.checked_mul(unit)
        }
        None => size.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(addr: u64, name: &str, object_size: u32) -> Cache {
        Cache {
            addr,
            name: name.into(),
            size: object_size,
            object_size,
            red_left_pad: 0,
            order: 0,
            least_order: 0,
        }
    }

    #[test]
    fn variables_of_modules_are_not_the_kernels() {
        let text = "ffffffff81000000 D slab_caches\nffffffffc0001000 d slab_caches\t[other]\n0 D hidden\n";
        let found = Variables::parse(text, &["slab_caches", "hidden", "absent"]);
        assert_eq!(found.get("slab_caches"), Some(0xffff_ffff_8100_0000));
        assert_eq!((found.get("hidden"), found.get("absent")), (None, None));
    }

    #[test]
    fn red_zones_lie_before_each_object_and_belong_to_none() {
        let mut cache = cache(1, "x", 192);
        (cache.size, cache.red_left_pad) = (320, 64);
        assert_eq!(cache.offset_in_object(64), Some(0));
        assert_eq!(cache.offset_in_object(320 + 64 + 8), Some(8));
        assert_eq!(cache.offset_in_object(320 + 63), None, "in front of it");
        assert_eq!(cache.offset_in_object(64 + 192), None, "behind it");
    }

    #[test]
    fn merged_caches_have_all_their_names() {
        let identities = [("UNIX", ":0001088"), ("signal_cache", ":0001088"), ("kmalloc-1k", ":0001024")];
        let identities = identities.map(|(name, id)| (name.to_string(), id.to_string())).into();
        let caches = Caches::new(vec![cache(1, "signal_cache", 1088), cache(2, "dentry", 192)], identities);
        assert_eq!(caches.names_of(caches.get(1).unwrap()), ["UNIX", "signal_cache"]);
        assert_eq!(caches.names_of(caches.get(2).unwrap()), ["dentry"]);
        assert_eq!(caches.get(3), None);
    }

    #[test]
    fn general_caches_are_told_by_name() {
        for (name, size) in [
            ("kmalloc-96", Some(96)),
            ("kmalloc-cg-2k", Some(2048)),
            ("kmalloc-rnd-05-64", Some(64)),
            ("dma-kmalloc-8k", Some(8192)),
            ("kmalloc-2M", Some(2 << 20)),
            ("dentry", None),
            ("kmalloc-x", None),
        ] {
            assert_eq!(general_size(name), size, "{name}");
        }
        let caches = [cache(1, "kmalloc-64", 64), cache(2, "kmalloc-96", 96), cache(3, "dentry", 80)];
        let caches = Caches::new(caches.to_vec(), BTreeMap::new());
        assert_eq!(caches.next_smaller_general(96), 64);
        assert_eq!(caches.next_smaller_general(64), 0);
    }
}
