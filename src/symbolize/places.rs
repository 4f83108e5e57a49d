//! Where user locks live, which names the globals among them.
//!
//! A global is found through the code of its file: [`Images`] knows where that is mapped and keeps the
//! file, whose program headers say how far away the data lies. The mappings of the data itself are not
//! needed, and would not do: `.bss` is anonymous memory.

use super::images::{FileId, Images, Mapping};
use super::user::{clean, path_of};
use crate::model::{FutexCall, FutexPlace, Lock, LockPlace};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Fills the places of user locks that have none, and names the locks where a place has a name. A lock
/// of a process without a snapshot stays without a place.
pub fn find(symbolizer: &Symbolizer, locks: &mut [Lock], images: &Images) {
    let mut files = HashMap::new();
    let mut processes: HashMap<u32, Vec<Module>> = HashMap::new();
    let mut globals: BTreeMap<FileId, Vec<Global>> = BTreeMap::new();
    for (index, lock) in locks.iter_mut().enumerate() {
        let Some(pid) = lock.pid.filter(|pid| lock.kind.is_user() && images.knows(*pid)) else { continue };
        if lock.place.is_some() {
            continue;
        }
        let modules = processes.entry(pid).or_insert_with(|| modules(images, pid, &mut files));
        match of_lock(lock, pid, modules, images) {
            Found::Global(module, vaddr) => {
                let name = module.mapping.module().to_string();
                globals.entry(module.file).or_default().push(Global { lock: index, module: name, vaddr });
            }
            Found::Place(place) => set(lock, place),
        }
    }
    for (file, globals) in globals {
        let vaddrs: Vec<u64> = globals.iter().map(|global| global.vaddr).collect();
        let symbols = symbols(symbolizer, images, file, &vaddrs);
        for (Global { lock, module, vaddr }, symbol) in globals.into_iter().zip(symbols) {
            let place = match symbol {
                Some((symbol, offset)) => LockPlace::Global { module, symbol, offset },
                None => LockPlace::Module { module, vaddr },
            };
            set(&mut locks[lock], place);
        }
    }
}

/// A lock in the data of a file, to be named with all others of that file.
struct Global {
    lock: usize,
    module: String,
    vaddr: u64,
}

enum Found<'a> {
    /// And the address as the file is linked.
    Global(&'a Module<'a>, u64),
    Place(LockPlace),
}

fn of_lock<'a>(lock: &Lock, pid: u32, modules: &'a [Module<'a>], images: &Images) -> Found<'a> {
    let global = |latest| {
        let modules = modules.iter().filter(|module| module.latest == latest);
        modules.filter_map(|module| Some(Found::Global(module, module.vaddr(lock.addr)?))).next()
    };
    // The waiters only judge by distance, and a stack or thread-local storage may be next to the data of
    // a library. So what is known to the byte comes first.
    if let Some(found) = global(true) {
        return found;
    }
    let calls = || {
        let sites = lock.sites.iter().map(|site| site.futex);
        sites.chain(lock.in_flight.iter().map(|wait| wait.futex))
    };
    // What parking_lot parks is seen at a word of the waiter, which says nothing about where the lock is.
    let tells = |call: &FutexCall| call.words.parked.is_none();
    let all = |is: fn(&FutexCall) -> bool| {
        calls().next().is_some() && calls().all(|call| call.is_some_and(|call| tells(&call) && is(&call)))
    };
    // For the kernel, the same address is another futex to a private call.
    if all(|call| !call.private)
        && let Some(mapping) = images.shared_mapping(pid, lock.addr)
    {
        return Found::Place(LockPlace::Shared {
            dev: mapping.dev.clone(),
            inode: mapping.inode,
            offset: mapping.offset_of(lock.addr),
            path: mapping.path.clone(),
        });
    }
    // glibc's thread-local storage is larger than what is called near here.
    if all(|call| matches!(call.place, FutexPlace::ThreadLocal | FutexPlace::OwnStackOrThreadLocal)) {
        return Found::Place(LockPlace::ThreadLocal);
    }
    if all(|call| call.place == FutexPlace::OwnStack) || images.on_stack(pid, lock.addr) {
        return Found::Place(LockPlace::Stack);
    }
    // A program before an exec, a library that was closed: theirs while nothing took the place.
    let gone = if images.is_mapped(pid, lock.addr) { None } else { global(false) };
    gone.unwrap_or(Found::Place(LockPlace::Heap))
}

fn set(lock: &mut Lock, place: LockPlace) {
    if lock.name.is_none() {
        lock.name = name(&place);
    }
    lock.place = Some(place);
}

fn name(place: &LockPlace) -> Option<String> {
    let plus = |offset: u64| if offset == 0 { String::new() } else { format!("+{offset:#x}") };
    match place {
        LockPlace::Global { module, symbol, offset } => Some(format!("{module}`{symbol}{}", plus(*offset))),
        LockPlace::Module { module, vaddr } => Some(format!("{module}+{vaddr:#x}")),
        LockPlace::Shared { offset, path, .. } => Some(format!("{path}{}", plus(*offset))),
        LockPlace::ThreadLocal | LockPlace::Stack | LockPlace::Heap => None,
    }
}

/// The variable at each address, and how far into it; by the symbol table, of the file itself or of its
/// debug file.
fn symbols(
    symbolizer: &Symbolizer,
    images: &Images,
    file: FileId,
    vaddrs: &[u64],
) -> Vec<Option<(String, u64)>> {
    let path = path_of(images, file);
    let look_up = |debug_syms, vaddrs: &[u64]| -> Vec<Option<(String, u64)>> {
        let mut source = Elf::new(&path);
        source.debug_syms = debug_syms;
        match symbolizer.symbolize(&Source::Elf(source), Input::VirtOffset(vaddrs)) {
            Ok(found) => found.iter().map(variable).collect(),
            Err(_) => vec![None; vaddrs.len()],
        }
    };
    let mut found = look_up(false, vaddrs);
    // Reading debug information takes long; and what the symbol table says of data is all it has.
    let missing: Vec<usize> = (0..vaddrs.len()).filter(|index| found[*index].is_none()).collect();
    if !missing.is_empty() {
        let again: Vec<u64> = missing.iter().map(|index| vaddrs[*index]).collect();
        for (index, symbol) in missing.into_iter().zip(look_up(true, &again)) {
            found[index] = symbol;
        }
    }
    found
}

fn variable(found: &Symbolized<'_>) -> Option<(String, u64)> {
    // A symbol without a size is a mark of the linker (`__bss_start`): it says nothing of what follows.
    let sym = found.as_sym().filter(|sym| sym.size.is_some())?;
    // A variable that the program has a copy of: `environ@@GLIBC_2.2.5`.
    let name = sym.name.split('@').next().filter(|name| !name.is_empty())?;
    // Without arguments, C++ names look like Rust's to the demangler, which then leaves this as it is.
    Some((clean(name).replace("_GLOBAL__N_1", "(anonymous namespace)"), sym.offset as u64))
}

/// A file that a process has loaded.
struct Module<'a> {
    file: FileId,
    mapping: &'a Mapping,
    segments: Vec<Segment>,
    /// What to add to an address of the file to get one of the process, modulo 2^64.
    bias: u64,
    latest: bool,
}

impl Module<'_> {
    /// The address as the file is linked, if it is inside of what the file loads.
    fn vaddr(&self, addr: u64) -> Option<u64> {
        let vaddr = addr.wrapping_sub(self.bias);
        self.segments.iter().any(|segment| segment.contains(vaddr)).then_some(vaddr)
    }
}

fn modules<'a>(
    images: &'a Images,
    pid: u32,
    files: &mut HashMap<FileId, Option<Vec<Segment>>>,
) -> Vec<Module<'a>> {
    let mut modules: Vec<Module> = Vec::new();
    for mapping in images.mappings(pid) {
        let Some(file) = mapping.file else { continue };
        let segments = files.entry(file).or_insert_with(|| segments(images.file(file)));
        let Some(bias) = segments.as_deref().and_then(|segments| bias(segments, mapping)) else { continue };
        let latest = images.is_latest(pid, mapping);
        // One file has several mappings of code when its protection was changed in parts.
        match modules.iter_mut().find(|known| (known.file, known.bias) == (file, bias)) {
            Some(known) => known.latest |= latest,
            None => {
                let segments = segments.clone().unwrap_or_default();
                modules.push(Module { file, mapping, segments, bias, latest });
            }
        }
    }
    modules
}

/// How far from where it is linked the file of an executable mapping was loaded.
fn bias(segments: &[Segment], mapping: &Mapping) -> Option<u64> {
    // A mapping starts at a page boundary and a segment need not; the page may begin with the end of
    // another segment, which is linked elsewhere. Exact starts go first for that.
    let code = || segments.iter().filter(|segment| segment.executable);
    let segment = code().find(|segment| segment.first_page() == mapping.offset).or_else(|| {
        code().find(|segment| {
            segment.first_page() <= mapping.offset && mapping.offset < segment.offset + segment.file_size
        })
    })?;
    let vaddr = segment.vaddr.wrapping_add(mapping.offset).wrapping_sub(segment.offset);
    Some(mapping.start.wrapping_sub(vaddr))
}

/// A part of the file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    vaddr: u64,
    file_size: u64,
    /// With the memory that is not in the file: `.bss`.
    size: u64,
    executable: bool,
}

impl Segment {
    fn contains(&self, vaddr: u64) -> bool {
        vaddr.checked_sub(self.vaddr).is_some_and(|distance| distance < self.size)
    }

    fn first_page(&self) -> u64 {
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        self.offset & !(u64::try_from(page).unwrap_or(4096) - 1)
    }
}

/// The program headers of a little-endian ELF file, of 32 or 64 bits; `None` when it is none.
fn segments(file: &File) -> Option<Vec<Segment>> {
    let read = |offset, length| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
    };
    parse_segments(&read)
}

fn parse_segments(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Vec<Segment>> {
    const PT_LOAD: u64 = 1;
    const PF_X: u64 = 1;
    let header = read(0, 52)?;
    if !header.starts_with(b"\x7fELF") || header[5] != 1 {
        return None;
    }
    // (place in the file header of: where the program headers are, their size, their number), (place in a
    // program header of: flags, offset, address, sizes), bytes of an address.
    let wide = header[4] == 2;
    let ([table, size, count], [flags, offset, vaddr, file_size, mem_size], word) = match wide {
        true => ([32, 54, 56], [4, 8, 16, 32, 40], 8),
        false => ([28, 42, 44], [24, 4, 8, 16, 20], 4),
    };
    let header = if wide { read(0, 64)? } else { header };
    let entry_size = number(&header, size, 2)? as usize;
    let table = read(number(&header, table, word)?, entry_size * number(&header, count, 2)? as usize)?;
    let mut segments = Vec::new();
    for entry in table.chunks_exact(entry_size.max(mem_size + word)) {
        if number(entry, 0, 4)? == PT_LOAD {
            segments.push(Segment {
                offset: number(entry, offset, word)?,
                vaddr: number(entry, vaddr, word)?,
                file_size: number(entry, file_size, word)?,
                size: number(entry, mem_size, word)?,
                executable: number(entry, flags, 4)? & PF_X != 0,
            });
        }
    }
    Some(segments)
}

/// The little-endian number of so many bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + length)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, vaddr: u64, file_size: u64, size: u64, executable: bool) -> Segment {
        Segment { offset, vaddr, file_size, size, executable }
    }

    /// As lld lays a program out: every segment starts in the page that the one before ends in.
    fn lld() -> Vec<Segment> {
        vec![
            segment(0, 0, 0x7d0, 0x7d0, false),
            segment(0x7d0, 0x17d0, 0x1900, 0x1900, true),
            segment(0x20d0, 0x40d0, 0x200, 0x200, false),
            segment(0x22d0, 0x52d0, 0x40, 0x30000, false),
        ]
    }

    fn code(start: u64, end: u64, offset: u64) -> Mapping {
        let (dev, path) = ("08:01".to_string(), "/opt/prog".to_string());
        Mapping { start, end, offset, dev, inode: 1, path, file: None }
    }

    #[test]
    fn the_load_bias_comes_from_any_part_of_the_code() {
        const BASE: u64 = 0x5555_5555_0000;
        assert_eq!(bias(&lld(), &code(BASE + 0x1000, BASE + 0x4000, 0)), Some(BASE));
        // After an mprotect of the middle page, or what an exec left of it.
        assert_eq!(bias(&lld(), &code(BASE + 0x2000, BASE + 0x3000, 0x1000)), Some(BASE));
        assert_eq!(bias(&lld(), &code(BASE, BASE + 0x1000, 0x7000)), None, "not of its code");
        // Linked where it runs.
        let fixed = vec![segment(0x1000, 0x401000, 0x500, 0x500, true)];
        assert_eq!(bias(&fixed, &code(0x401000, 0x402000, 0x1000)), Some(0));
        // Linked above where it runs.
        let high = vec![segment(0, 0xffff_0000, 0x500, 0x500, true)];
        assert_eq!(bias(&high, &code(0x1000, 0x2000, 0)), Some(0x1000_u64.wrapping_sub(0xffff_0000)));
    }

    #[test]
    fn of_two_segments_in_one_page_the_one_that_starts_there_is_mapped() {
        let two =
            vec![segment(0x1000, 0x1000, 0x1800, 0x1800, true), segment(0x2800, 0x13800, 0x800, 0x800, true)];
        assert_eq!(bias(&two, &code(0x7000_2000_3000, 0x7000_2000_4000, 0x2000)), Some(0x7000_1fff_0000));
    }

    #[test]
    fn memory_beyond_the_file_belongs_to_the_module_and_its_end_does_not() {
        let mapping = code(0x10_1000, 0x10_4000, 0);
        let segments = lld();
        let bias = bias(&segments, &mapping).unwrap();
        let module = Module { file: FileId::default(), mapping: &mapping, segments, bias, latest: true };
        assert_eq!(module.vaddr(0x10_52d0), Some(0x52d0));
        assert_eq!(module.vaddr(0x10_0000 + 0x352cf), Some(0x352cf));
        assert_eq!(module.vaddr(0x10_0000 + 0x352d0), None);
        assert_eq!(module.vaddr(0x10_42d0), None, "between two segments");
        assert_eq!(module.vaddr(0xf_ffff), None, "below the file");
    }

    #[test]
    fn where_a_parked_thread_waits_is_not_where_the_lock_is() {
        use crate::model::{FutexOp, FutexValue, FutexWords, LockKind, ParkToken, Site, StackRef, WaitStats};
        let parked = |parked| FutexCall {
            op: FutexOp::Wait,
            private: true,
            realtime: false,
            timeout: false,
            value: FutexValue::One,
            place: FutexPlace::ThreadLocal,
            words: FutexWords { parked, ..FutexWords::default() },
            compat: false,
        };
        // The process was ending when it was looked at last: nothing of it was left.
        let (mapping, segments) = (code(0x10_1000, 0x10_4000, 0), lld());
        let bias = bias(&segments, &mapping).unwrap();
        let modules = [Module { file: FileId::default(), mapping: &mapping, segments, bias, latest: false }];
        let found = |call| {
            let mut lock = Lock::new(LockKind::Futex, 0x10_52d0, Some(1));
            lock.sites.push(Site {
                pid: 1,
                kernel_stack: StackRef::NotTaken,
                user_stack: StackRef::NotTaken,
                futex: Some(call),
                wait: WaitStats::default(),
            });
            of_lock(&lock, 1, &modules, &Images::default())
        };
        assert!(matches!(found(parked(Some(ParkToken::Mutex))), Found::Global(_, 0x52d0)));
        assert!(matches!(found(parked(None)), Found::Place(LockPlace::ThreadLocal)));
    }

    fn put(bytes: &mut [u8], at: usize, length: usize, value: u64) {
        bytes[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
    }

    fn parse(bytes: &[u8]) -> Option<Vec<Segment>> {
        parse_segments(&|offset, length| {
            let offset = usize::try_from(offset).ok()?;
            Some(bytes.get(offset..offset.checked_add(length)?)?.to_vec())
        })
    }

    #[test]
    fn segments_of_both_widths_are_read() {
        let wide = {
            let mut bytes = vec![0; 64 + 2 * 56];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            put(&mut bytes, 32, 8, 64);
            put(&mut bytes, 54, 2, 56);
            put(&mut bytes, 56, 2, 2);
            // The first is PT_NOTE.
            put(&mut bytes, 64, 4, 4);
            let at = 64 + 56;
            put(&mut bytes, at, 4, 1);
            put(&mut bytes, at + 4, 4, 5);
            for (field, value) in [(8, 0x1000), (16, 0x40_1000), (32, 0x200), (40, 0x300)] {
                put(&mut bytes, at + field, 8, value);
            }
            bytes
        };
        let narrow = {
            let mut bytes = vec![0; 52 + 32];
            bytes[..6].copy_from_slice(b"\x7fELF\x01\x01");
            put(&mut bytes, 28, 4, 52);
            put(&mut bytes, 42, 2, 32);
            put(&mut bytes, 44, 2, 1);
            for (field, value) in [(0, 1), (4, 0x1000), (8, 0x40_1000), (16, 0x200), (20, 0x300), (24, 5)] {
                put(&mut bytes, 52 + field, 4, value);
            }
            bytes
        };
        let expected = vec![segment(0x1000, 0x40_1000, 0x200, 0x300, true)];
        assert_eq!(parse(&wide), Some(expected.clone()));
        assert_eq!(parse(&narrow), Some(expected));
        assert_eq!(parse(&wide[..100]), None, "cut off");
        assert_eq!(
            parse(b"#!/bin/sh\nexit 0 # a script that is longer than the header of an ELF file"),
            None
        );
    }
}
