//! What locks are called: kernel locks by what their address belongs to, and a key for every lock by which
//! another profile finds it again. `docs/names.md` says how, and what has no name.
//!
//! A pure pass over a symbolized and classified profile, with what was read of the kernel's [`Memory`].

pub mod key;
mod objects;
#[cfg(test)]
mod tests;

use crate::kernel::btf::{TypeId, Types};
use crate::kernel::{Bases, Cache, Caches, general_size};
use crate::model::{Family, Lock, LockKind, Naming, Profile, SlabPlace, StackRef};
use crate::symbolize::{KernelSymbols, callsite};
use objects::Candidate;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Candidates that are shown before the rest is counted.
const SHOWN: usize = 3;
/// … and that are kept.
const KEPT: usize = 16;
/// Callers that are asked which of several candidates they mean.
const CALLERS: usize = 3;

const PAGE: u64 = 4096;
/// A struct page has room for one small lock, that of the page table in the page (`ptl`).
const PAGE_TABLE_LOCK: &str = "ptdesc.ptl";
/// VMALLOC_END - vmemmap is larger than this with 4-level page tables: 1 TiB of struct pages.
const VMEMMAP_BYTES: u64 = 1 << 40;

/// What was read of the kernel while it was traced.
#[derive(Debug, Default)]
pub struct Memory {
    pub types: Types,
    pub bases: Bases,
    pub caches: Caches,
    /// Lock → where in a slab it was when it was first seen.
    pub places: HashMap<u64, SlabPlace>,
    /// What could not be read, and why.
    pub unavailable: Vec<String>,
}

/// Names the kernel locks of a profile, and gives every lock its key.
pub fn name(profile: &mut Profile, symbols: &KernelSymbols, memory: &Memory) {
    let mut namer = Namer { symbols, memory, known: HashMap::new(), dedicated: dedicated(memory) };
    let mut found: Vec<Found> = profile.locks.iter().map(|lock| namer.find(lock)).collect();
    let learnt = Learnt::of(profile, &found);
    for (lock, found) in profile.locks.iter().zip(&mut found) {
        if let Found::Member(candidates) = found
            && candidates.len() > 1
            && let Some(one) = learnt.choose(lock, profile, candidates, &memory.types)
        {
            *candidates = vec![one];
        }
    }
    let mut locks = std::mem::take(&mut profile.locks);
    for (lock, found) in locks.iter_mut().zip(found) {
        if lock.kind.is_user() {
            lock.key = key::of_user_lock(lock, profile);
        } else {
            settle(lock, found);
        }
    }
    profile.locks = locks;
    let mut unavailable = memory.unavailable.clone();
    if !symbols.has_variables {
        let why = "this kernel lists none in /proc/kallsyms (CONFIG_KALLSYMS_ALL, kernel.kptr_restrict)";
        unavailable.push(format!("variables: {why}"));
    }
    profile.naming = Some(Naming { unavailable });
}

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// A variable, or a part of it: its name, and its name in other boots.
    Variable {
        name: String,
        key: String,
    },
    /// A member of an object; several where it can not be told which.
    Member(Vec<Candidate>),
    Nothing,
}

fn settle(lock: &mut Lock, found: Found) {
    let family = lock.kind.family().name();
    match found {
        Found::Variable { name, key } => {
            lock.key = format!("k:sym:{key}");
            lock.name = Some(name);
        }
        Found::Member(candidates) => {
            if let [one] = &candidates[..] {
                lock.key = format!("k:field:{family}:{}", key::without_indexes(&one.name));
                lock.name = Some(one.name.clone());
                lock.object = one.object.clone();
                return;
            }
            let names: Vec<String> = candidates.into_iter().map(|candidate| candidate.name).collect();
            let set = braced(&names);
            lock.key = match &lock.call_site {
                Some(site) => of_caller(lock.kind, site),
                None => format!("k:field:{family}:{}", key::without_indexes(&set)),
            };
            // More than a few say less than who took it.
            if names.len() <= SHOWN || lock.call_site.is_none() {
                lock.name = Some(set);
            }
            lock.name_candidates = names.into_iter().take(KEPT).collect();
        }
        Found::Nothing => {
            lock.key = match &lock.call_site {
                Some(site) => of_caller(lock.kind, site),
                None => format!("k:unknown:{family}"),
            };
        }
    }
}

fn of_caller(kind: LockKind, site: &str) -> String {
    format!("k:caller:{}:{}", kind.family().name(), key::normalized(site))
}

/// `{a|b|c}`
fn braced(names: &[String]) -> String {
    let mut text = names[..names.len().min(SHOWN)].join("|");
    if names.len() > SHOWN {
        text.push_str(&format!("|+{}", names.len() - SHOWN));
    }
    format!("{{{text}}}")
}

/// Names of types that a lock of a kind may be.
fn type_names(kind: LockKind) -> &'static [&'static str] {
    match kind.family() {
        Family::Mutex => &["mutex"],
        Family::Rwsem => &["rw_semaphore"],
        Family::Spinlock => &["spinlock_t", "spinlock", "raw_spinlock_t", "raw_spinlock", "qspinlock"],
        Family::Rwlock => &["rwlock_t", "qrwlock"],
        Family::Semaphore => &["semaphore"],
        Family::PercpuRwsem => &["percpu_rw_semaphore"],
        // On PREEMPT_RT the others are made of it.
        Family::RtMutex => &["rt_mutex", "rt_mutex_base", "mutex", "spinlock", "spinlock_t"],
        Family::Futex | Family::FileLock => &[],
    }
}

struct Namer<'m> {
    symbols: &'m KernelSymbols,
    memory: &'m Memory,
    known: HashMap<(u64, u32, LockKind), Vec<Candidate>>,
    /// Structures that have a cache of their own, and so are not in one for all sizes.
    dedicated: HashSet<TypeId>,
}

fn dedicated(memory: &Memory) -> HashSet<TypeId> {
    let names = memory.caches.all_names();
    names.into_iter().flat_map(|name| objects::in_cache(&memory.types, name)).collect()
}

impl Namer<'_> {
    fn find(&mut self, lock: &Lock) -> Found {
        if type_names(lock.kind).is_empty() {
            return Found::Nothing;
        }
        let bases = &self.memory.bases;
        if bases.vmemmap != 0 && lock.addr.wrapping_sub(bases.vmemmap) < VMEMMAP_BYTES {
            return Found::Member(vec![page_table_lock()]);
        }
        if let Some(found) = self.per_cpu(lock).or_else(|| self.variable(lock)) {
            return found;
        }
        let candidates = self.in_slab(lock);
        if candidates.is_empty() { Found::Nothing } else { Found::Member(candidates) }
    }

    fn per_cpu(&self, lock: &Lock) -> Option<Found> {
        let mut offsets = self.memory.bases.cpu_offsets.iter().filter(|offset| **offset != 0);
        let (symbol, offset) =
            offsets.find_map(|offset| self.symbols.per_cpu(lock.addr.wrapping_sub(*offset)))?;
        Some(self.part_of_variable(lock, symbol, None, offset))
    }

    fn variable(&self, lock: &Lock) -> Option<Found> {
        let symbol = self.symbols.variable(lock.addr)?;
        Some(self.part_of_variable(lock, symbol.name, symbol.module, symbol.offset))
    }

    fn part_of_variable(&self, lock: &Lock, symbol: &str, module: Option<&str>, offset: u64) -> Found {
        let types = &self.memory.types;
        let of = types.variable(symbol).or_else(|| types.structure(structure_of_variable(symbol)));
        let path = of.zip(u32::try_from(offset).ok()).and_then(|(of, offset)| {
            let paths = types.paths_to(of, offset, type_names(lock.kind));
            let mut names: Vec<String> = paths.iter().map(|steps| objects::members(steps)).collect();
            names.dedup();
            // Several members of a union are one lock with several names.
            names.into_iter().next().filter(|name| !name.is_empty())
        });
        let part = match path {
            Some(path) if path.starts_with('[') => path,
            Some(path) => format!(".{path}"),
            None if offset == 0 => String::new(),
            None => format!("+{offset:#x}"),
        };
        let name = format!("{symbol}{part}");
        let module = module.map_or_else(String::new, |module| format!("{module}/"));
        Found::Variable { key: format!("{module}{}", key::without_indexes(&name)), name }
    }

    fn in_slab(&mut self, lock: &Lock) -> Vec<Candidate> {
        let Some((place, before)) = self.place(lock.addr) else { return vec![] };
        let memory = self.memory;
        let Some(cache) = memory.caches.get(place.cache) else { return vec![] };
        let in_slab: Vec<u64> = match place.offset {
            Some(offset) => vec![u64::from(offset).wrapping_sub(before)],
            // A slab made when memory was short is smaller, and begins elsewhere.
            None => {
                let mut orders = vec![cache.order, cache.least_order];
                orders.dedup();
                orders.into_iter().map(|order| lock.addr & ((PAGE << order) - 1)).collect()
            }
        };
        for offset in in_slab.into_iter().filter_map(|offset| cache.offset_in_object(offset)) {
            let candidates = self.in_object(cache, offset, lock.kind);
            if !candidates.is_empty() {
                return candidates;
            }
        }
        vec![]
    }

    /// Where BPF saw it; symbolize/realtime.rs moves the address of some locks back by 8.
    fn place(&self, addr: u64) -> Option<(SlabPlace, u64)> {
        let at = |addr| self.memory.places.get(&addr).copied();
        at(addr).map(|place| (place, 0)).or_else(|| at(addr.wrapping_add(8)).map(|place| (place, 8)))
    }

    fn in_object(&mut self, cache: &Cache, offset: u32, kind: LockKind) -> Vec<Candidate> {
        let key = (cache.addr, offset, kind);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let candidates = self.look_up(cache, offset, kind);
        self.known.insert(key, candidates.clone());
        candidates
    }

    fn look_up(&self, cache: &Cache, offset: u32, kind: LockKind) -> Vec<Candidate> {
        let (types, caches) = (&self.memory.types, &self.memory.caches);
        let names = caches.names_of(cache);
        if names == [objects::PAGE_TABLE_LOCKS] {
            return vec![page_table_lock()];
        }
        let mut structures = BTreeSet::new();
        let mut unknown = false;
        for name in &names {
            if let Some(size) = general_size(name) {
                structures.extend(self.of_size(caches.next_smaller_general(size), size));
            } else {
                let known = objects::in_cache(types, name);
                unknown |= known.is_empty();
                structures.extend(known);
            }
        }
        let known = candidates(types, structures, offset, kind);
        if !known.is_empty() || !unknown {
            return known;
        }
        // A cache that is called otherwise than its structure: the structures that fill its objects.
        for slack in [8, 64] {
            let structures = self.of_size(cache.object_size.saturating_sub(slack), cache.object_size);
            let filling = candidates(types, structures.into_iter().collect(), offset, kind);
            if !filling.is_empty() {
                return filling;
            }
        }
        vec![]
    }

    /// Structures larger than one size, and no larger than another; and those that may have a tail.
    fn of_size(&self, above: u32, most: u32) -> Vec<TypeId> {
        let types = &self.memory.types;
        let fits =
            |id: TypeId, size: u32| size <= most && (size > above || size > 0 && types.is_open_ended(id));
        let all = types.structures().filter(|(_, id, size)| fits(*id, *size) && !self.dedicated.contains(id));
        all.map(|(_, id, _)| id).collect()
    }
}

fn candidates(types: &Types, structures: BTreeSet<TypeId>, offset: u32, kind: LockKind) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = structures
        .into_iter()
        .flat_map(|structure| types.paths_to(structure, offset, type_names(kind)))
        .filter_map(|steps| Candidate::of(&steps))
        .collect();
    // The same member of objects of several types is one name; whose it is, is then not known.
    candidates.sort();
    candidates.dedup_by(|other, first| {
        let same = other.name == first.name;
        if same && other.object != first.object {
            first.object = None;
        }
        same
    });
    candidates
}

fn page_table_lock() -> Candidate {
    let structure = PAGE_TABLE_LOCK.split('.').next().unwrap_or_default().to_string();
    Candidate { name: PAGE_TABLE_LOCK.to_string(), structure, object: None }
}

/// Objects that exist from the start on are variables; BTF has no type for those.
fn structure_of_variable(symbol: &str) -> &str {
    match symbol {
        "init_task" => "task_struct",
        "init_mm" => "mm_struct",
        "init_signals" => "signal_struct",
        "init_sighand" => "sighand_struct",
        "init_files" => "files_struct",
        "init_fs" => "fs_struct",
        "init_net" => "net",
        "init_user_ns" => "user_namespace",
        "init_pid_ns" => "pid_namespace",
        "init_css_set" => "css_set",
        "root_task_group" => "task_group",
        "cgrp_dfl_root" => "cgroup_root",
        "contig_page_data" => "pglist_data",
        "def_root_domain" => "root_domain",
        "noop_backing_dev_info" => "backing_dev_info",
        other => other,
    }
}

/// What callers locked where that was certain.
struct Learnt {
    by_return: HashMap<u64, HashSet<String>>,
    by_function: HashMap<String, HashSet<String>>,
}

impl Learnt {
    fn of(profile: &Profile, found: &[Found]) -> Learnt {
        let mut learnt = Learnt { by_return: HashMap::new(), by_function: HashMap::new() };
        for (lock, found) in profile.locks.iter().zip(found) {
            let Found::Member(candidates) = found else { continue };
            let [one] = &candidates[..] else { continue };
            for callers in callers(lock, profile) {
                let Some((addr, function)) = callers.into_iter().next() else { continue };
                learnt.by_return.entry(addr).or_default().insert(one.name.clone());
                learnt.by_function.entry(function).or_default().insert(one.name.clone());
            }
        }
        learnt
    }

    /// Which of several it is, by those who took it; all of them must agree.
    fn choose(
        &self,
        lock: &Lock,
        profile: &Profile,
        candidates: &[Candidate],
        types: &Types,
    ) -> Option<Candidate> {
        let mut chosen: Option<&Candidate> = None;
        for callers in callers(lock, profile) {
            let Some(one) = self.choose_by(&callers, candidates, types) else { continue };
            if chosen.is_some_and(|chosen| chosen != one) {
                return None;
            }
            chosen = Some(one);
        }
        chosen.cloned()
    }

    fn choose_by<'c>(
        &self,
        callers: &[(u64, String)],
        candidates: &'c [Candidate],
        types: &Types,
    ) -> Option<&'c Candidate> {
        let (addr, function) = callers.first()?;
        let named = |names: Option<&HashSet<String>>| {
            only(
                candidates
                    .iter()
                    .filter(|candidate| names.is_some_and(|names| names.contains(&candidate.name))),
            )
        };
        let has = |structures: &[TypeId], candidate: &Candidate| {
            let names = [Some(&candidate.structure), candidate.object.as_ref()];
            let mut ids = names.into_iter().flatten().filter_map(|name| types.structure(name));
            ids.any(|id| structures.contains(&id))
        };
        let given =
            |structures: &[TypeId]| only(candidates.iter().filter(|candidate| has(structures, candidate)));
        let arguments = || callers.iter().map(|(_, function)| types.argument_structures(function));
        named(self.by_return.get(addr))
            .or_else(|| arguments().find_map(|arguments| given(&arguments)))
            .or_else(|| callers.iter().find_map(|(_, function)| most_alike(function, candidates)))
            .or_else(|| named(self.by_function.get(function)))
            .or_else(|| {
                let reach = arguments().next()?;
                let reach: Vec<TypeId> =
                    reach.into_iter().flat_map(|id| types.pointed_structures(id)).collect();
                given(&reach)
            })
    }
}

fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

fn most_alike<'c>(function: &str, candidates: &'c [Candidate]) -> Option<&'c Candidate> {
    let likeness = |candidate: &Candidate| objects::likeness(function, candidate);
    let best = candidates.iter().map(likeness).max().filter(|best| *best > 0)?;
    only(candidates.iter().filter(|candidate| likeness(candidate) == best))
}

/// Who took the lock, for each of its kernel stacks: return addresses and functions, from the taker outwards.
fn callers(lock: &Lock, profile: &Profile) -> Vec<Vec<(u64, String)>> {
    let stacks: BTreeSet<StackRef> = lock
        .sites
        .iter()
        .map(|site| site.kernel_stack)
        .chain(lock.in_flight.iter().map(|wait| wait.kernel_stack))
        .collect();
    let stacks = stacks.into_iter().filter_map(|stack| match stack {
        StackRef::Stack(index) => profile.stacks.get(index as usize),
        StackRef::Lost | StackRef::NotTaken => None,
    });
    stacks.map(|stack| callsite::kernel_callers(stack, &profile.frames, CALLERS)).collect()
}
