//! Unwind tables for BPF: how to get from a frame to its caller without frame pointers.
//!
//! [`elf`] finds `.eh_frame`, [`rows`] turns it into sorted rows of 8 bytes, [`Tables`] keeps the rows
//! of every file once for all processes that map it and lists the mappings of a process.
//! bpf/unwind.bpf.c walks with them, and [`walk`] does the same from outside. Nothing here sees the kernel.

mod elf;
mod rows;
mod walk;

pub use rows::{Row, Rule};
pub use walk::{ReadMemory, Registers, WalkEnd, Walked, walk};

use crate::symbolize::{FileId, Images, Mapping};
use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;

/// How user stacks are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserStacks {
    Off,
    /// By frame pointers: what was compiled without them is missing.
    FramePointers,
    /// By the rules of `.eh_frame`; by frame pointers while a process has no table.
    Tables,
}

impl UserStacks {
    /// The best there is for this architecture.
    pub fn best() -> UserStacks {
        if cfg!(target_arch = "x86_64") { UserStacks::Tables } else { UserStacks::FramePointers }
    }
}

/// The longest list of mappings of a process. `MAX_MAPPINGS` of lockprof.h.
pub const MAX_MAPPINGS: usize = 256;

/// An executable mapping and its rows, as BPF wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub start: u64,
    pub length: u32,
    /// What the rows call the address `start`.
    pub pc: u32,
    pub first_row: u32,
    /// 0: code without rules, which is taken to keep frame pointers.
    pub rows: u32,
}

/// The mappings of one process, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessTable {
    /// Differs for lists that differ, and is never 0.
    pub generation: u64,
    pub spans: Vec<Span>,
}

#[derive(Clone, Debug)]
enum FileTable {
    Rows {
        first: u32,
        count: u32,
        segments: Vec<elf::Segment>,
    },
    /// An ELF file without `.eh_frame`.
    FramePointers,
    /// No ELF file of this machine, or no room: its frames end a stack.
    Unusable,
}

/// The rows of all files seen so far.
#[derive(Debug)]
pub struct Tables {
    capacity: usize,
    rows: Vec<Row>,
    files: HashMap<FileId, FileTable>,
    vdso: Option<FileTable>,
    /// Files left out because their rows did not fit.
    pub files_over_capacity: u64,
    /// Processes with more mappings than BPF has room for.
    pub processes_with_too_many_mappings: u64,
}

impl Tables {
    pub fn new(capacity: usize) -> Tables {
        Tables {
            capacity,
            rows: Vec::new(),
            files: HashMap::new(),
            vdso: None,
            files_over_capacity: 0,
            processes_with_too_many_mappings: 0,
        }
    }

    /// All rows; the list only grows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The table of a process at its latest snapshot, after adding the rows of files not seen before.
    pub fn of_process(&mut self, images: &Images, pid: u32) -> ProcessTable {
        let mut spans: Vec<Span> =
            images.mappings(pid).iter().filter_map(|mapping| self.span(images, mapping)).collect();
        if spans.len() > MAX_MAPPINGS {
            self.processes_with_too_many_mappings += 1;
            spans.truncate(MAX_MAPPINGS);
        }
        let mut hasher = DefaultHasher::new();
        spans.hash(&mut hasher);
        ProcessTable { generation: hasher.finish().max(1), spans }
    }

    /// Adds the libraries of a process, whose program others will not run.
    pub fn preload_libraries(&mut self, images: &Images, pid: u32) {
        let program = images.exe(pid).map(|path| path.to_string_lossy().into_owned());
        for mapping in images.mappings(pid) {
            if Some(&mapping.path) != program.as_ref() {
                self.span(images, mapping);
            }
        }
    }

    /// Adds a file that is not mapped yet.
    pub fn preload(&mut self, images: &Images, file: FileId) {
        self.of_file(file, images.file(file));
    }

    fn span(&mut self, images: &Images, mapping: &Mapping) -> Option<Span> {
        let length = u32::try_from(mapping.end - mapping.start).unwrap_or(u32::MAX);
        let unknown = Span { start: mapping.start, length, pc: 0, first_row: 0, rows: 0 };
        let table = match (mapping.file, mapping.module()) {
            (Some(file), _) => self.of_file(file, images.file(file)),
            (None, "[vdso]") => self.of_vdso(),
            (None, "[jit]") => return Some(unknown),
            (None, _) => return None,
        };
        match table {
            FileTable::Rows { first, count, segments } => {
                let pc = elf::vaddr_at(&segments, mapping.offset)?;
                Some(Span { pc: u32::try_from(pc).ok()?, first_row: first, rows: count, ..unknown })
            }
            FileTable::FramePointers => Some(unknown),
            FileTable::Unusable => None,
        }
    }

    fn of_file(&mut self, id: FileId, file: &File) -> FileTable {
        if let Some(known) = self.files.get(&id) {
            return known.clone();
        }
        let size = file.metadata().map_or(0, |meta| meta.len());
        let table = self.build(&|offset, length| {
            // Lengths come from the file and must not make us allocate more than it holds.
            if offset.checked_add(length as u64)? > size {
                return None;
            }
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        });
        self.files.insert(id, table.clone());
        table
    }

    /// Every 64-bit process has the same vdso; ours is at hand.
    fn of_vdso(&mut self) -> FileTable {
        if let Some(known) = &self.vdso {
            return known.clone();
        }
        let image = own_vdso().unwrap_or_default();
        let table = self.build(&|offset, length| {
            let offset = usize::try_from(offset).ok()?;
            Some(image.get(offset..offset.checked_add(length)?)?.to_vec())
        });
        self.vdso = Some(table.clone());
        table
    }

    fn build(&mut self, read: elf::Read<'_>) -> FileTable {
        let Some(image) = elf::Image::parse(read) else { return FileTable::Unusable };
        let Some(section) = &image.eh_frame else { return FileTable::FramePointers };
        let rows = rows::of_section(&section.bytes, section.vaddr);
        if rows.is_empty() {
            return FileTable::FramePointers;
        }
        if rows.len() > self.capacity - self.rows.len() {
            self.files_over_capacity += 1;
            return FileTable::Unusable;
        }
        let (first, count) = (self.rows.len() as u32, rows.len() as u32);
        self.rows.extend(rows);
        FileTable::Rows { first, count, segments: image.segments }
    }
}

fn own_vdso() -> Option<Vec<u8>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mut bytes = vec![0; (end - start) as usize];
    File::open("/proc/self/mem").ok()?.read_exact_at(&mut bytes, start).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
