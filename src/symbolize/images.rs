//! What must be taken from a process while it lives: its mappings of code and of shared memory, its
//! name, and an open descriptor of every file it executes.
//!
//! The descriptors are the point. After the process is gone its `/proc` directory is gone too, and
//! its files may be deleted, replaced, or never have been visible in our mount namespace. A
//! descriptor opened through `/proc/PID/map_files` outlives all of that.

use super::perfmap;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Descriptors left to the rest of the program when many files are kept open.
const FD_RESERVE: u64 = 128;

/// Index of a kept-open file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(u32);

/// From the first byte to one past the last.
type Range = std::ops::Range<u64>;

/// An executable or a shared mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Offset in the file of the byte at `start`.
    pub offset: u64,
    /// As `/proc/PID/maps` shows it: `08:01`.
    pub dev: String,
    pub inode: u64,
    /// As `/proc/PID/maps` shows it, without ` (deleted)`. Empty for anonymous memory.
    pub path: String,
    /// `None`: nothing to open (anonymous, vdso, not executable), or it could not be opened (counted in
    /// [`Images`]).
    pub file: Option<FileId>,
}

impl Mapping {
    /// File name of what is mapped: `libc.so.6`, `[vdso]`; `[jit]` for anonymous code.
    pub fn module(&self) -> &str {
        if self.path.is_empty() || self.path.starts_with("[anon") || self.path.starts_with("//anon") {
            return "[jit]";
        }
        if self.path.starts_with('[') {
            return &self.path;
        }
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The file offset of an address inside the mapping. For memory without a file (where the kernel
    /// shows offset 0) the offset from the mapping's start.
    pub fn offset_of(&self, addr: u64) -> u64 {
        addr - self.start + self.offset
    }

    fn contains(&self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    fn is_file(&self) -> bool {
        self.inode != 0 && self.path.starts_with('/')
    }

    /// The same mapping, whether or not its file could be opened.
    fn same_as(&self, other: &Mapping) -> bool {
        (self.start, self.end, self.offset, self.inode) == (other.start, other.end, other.offset, other.inode)
            && self.dev == other.dev
            && self.path == other.path
    }
}

#[derive(Debug, Default)]
struct Process {
    comm: Option<String>,
    exe: Option<PathBuf>,
    /// The executable ones, by start, never overlapping.
    mappings: Vec<Mapping>,
    /// The same of shared memory.
    shared: Vec<Mapping>,
    /// Where the executable mappings of the latest snapshot start: the others are from before it.
    latest: Vec<u64>,
    /// All that the latest snapshot has mapped, without the seams.
    mapped: Vec<Range>,
    /// Where its runtime lists the code that it generates.
    perf_map: Option<File>,
    /// The main thread's stack, once for each program the process has run, and other threads' stacks.
    stacks: Vec<Range>,
}

/// Snapshots of processes. Taking one again adds what is new and is cheap when nothing is.
#[derive(Debug, Default)]
pub struct Images {
    processes: HashMap<u32, Process>,
    files: Vec<File>,
    /// (st_dev, st_ino) of every kept file.
    by_inode: HashMap<(u64, u64), FileId>,
    /// What maps shows of every kept file: saves looking at the same libc for each process.
    by_maps: HashMap<(String, u64, String), FileId>,
    max_files: Option<u64>,
    raised_limit: bool,
    /// Mapped files that could not be opened, except for want of descriptors.
    pub files_unopened: u64,
    /// Mapped files not opened because the limit of open files (RLIMIT_NOFILE) was reached.
    pub files_over_limit: u64,
    /// Processes that had exited before their first snapshot.
    pub processes_missed: u64,
    /// Snapshots refused by the kernel (no permission to read `/proc/PID/maps`).
    pub processes_denied: u64,
}

impl Images {
    pub fn new() -> Images {
        Images::default()
    }

    /// Takes what symbolization needs from a living process.
    ///
    /// `NotFound` when it is gone (a zombie is); an earlier snapshot then stays as it is. Mappings that
    /// were seen earlier stay until a newer one overlaps them.
    pub fn snapshot(&mut self, pid: u32) -> io::Result<()> {
        match self.read_process(pid) {
            Ok(()) => Ok(()),
            Err(error) if is_gone(&error) => {
                if !self.processes.contains_key(&pid) {
                    self.processes_missed += 1;
                }
                Err(io::Error::new(ErrorKind::NotFound, format!("process {pid} is gone")))
            }
            Err(error) => {
                if error.kind() == ErrorKind::PermissionDenied {
                    self.processes_denied += 1;
                }
                Err(io::Error::new(error.kind(), format!("cannot read /proc/{pid}/maps: {error}")))
            }
        }
    }

    /// Whether a snapshot of the process has code at this address.
    pub fn covers(&self, pid: u32, addr: u64) -> bool {
        self.mapping(pid, addr).is_some()
    }

    /// The name of the process (of its main thread) at its latest snapshot.
    pub fn comm(&self, pid: u32) -> Option<&str> {
        self.processes.get(&pid)?.comm.as_deref()
    }

    /// The program of the process at its latest snapshot; `None` for kernel threads.
    pub fn exe(&self, pid: u32) -> Option<&std::path::Path> {
        self.processes.get(&pid)?.exe.as_deref()
    }

    /// The executable mappings of a process, by address.
    pub fn mappings(&self, pid: u32) -> &[Mapping] {
        self.processes.get(&pid).map_or(&[], |process| &process.mappings)
    }

    pub fn mapping(&self, pid: u32, addr: u64) -> Option<&Mapping> {
        find(self.mappings(pid), addr)
    }

    /// Whether there is a snapshot of the process.
    pub fn knows(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }

    /// The mapping of shared memory at an address.
    pub fn shared_mapping(&self, pid: u32, addr: u64) -> Option<&Mapping> {
        find(&self.processes.get(&pid)?.shared, addr)
    }

    /// Whether an address is on the stack of a thread: of the main thread as far as it had grown, of others
    /// together with their thread-local storage.
    pub fn on_stack(&self, pid: u32, addr: u64) -> bool {
        self.processes.get(&pid).is_some_and(|process| covers(&process.stacks, addr))
    }

    /// Whether the latest snapshot has anything mapped at this address.
    pub fn is_mapped(&self, pid: u32, addr: u64) -> bool {
        self.processes.get(&pid).is_some_and(|process| {
            let before = process.mapped.partition_point(|range| range.start <= addr);
            covers(&process.mapped[before.saturating_sub(1)..before], addr)
        })
    }

    /// Whether an executable mapping was still there at the latest snapshot.
    pub fn is_latest(&self, pid: u32, mapping: &Mapping) -> bool {
        self.processes.get(&pid).is_some_and(|process| process.latest.binary_search(&mapping.start).is_ok())
    }

    /// Where the process's runtime lists the code that it generated.
    pub fn perf_map(&self, pid: u32) -> Option<&File> {
        self.processes.get(&pid)?.perf_map.as_ref()
    }

    pub fn file(&self, id: FileId) -> &File {
        &self.files[id.0 as usize]
    }

    /// Number of files kept open.
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    fn read_process(&mut self, pid: u32) -> io::Result<()> {
        let maps = fs::read(format!("/proc/{pid}/maps"))?;
        if maps.is_empty() && is_dead(pid) {
            return Err(ErrorKind::NotFound.into());
        }
        let mut maps = parse_maps(&maps);
        let known = self.processes.remove(&pid).unwrap_or_default();
        for mapping in &mut maps.code {
            if !mapping.is_file() {
                continue;
            }
            // A file that failed before is not tried again: the snapshot must stay cheap.
            mapping.file = match known.mappings.iter().find(|old| old.same_as(mapping)) {
                Some(old) => old.file,
                None => self.keep_file(pid, mapping),
            };
        }
        let comm = fs::read(format!("/proc/{pid}/comm"))
            .ok()
            .map(|comm| String::from_utf8_lossy(comm.trim_ascii_end()).into_owned());
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
        let mut stacks = known.stacks;
        for stack in maps.stacks {
            stacks.retain(|known| known.end <= stack.start || stack.end <= known.start);
            stacks.push(stack);
        }
        // Only runtimes that generate code have such mappings, and they begin the file at some time.
        let generates_code = maps.code.iter().any(|mapping| mapping.module() == "[jit]");
        let perf_map = known.perf_map.or_else(|| generates_code.then(|| perfmap::open(pid)).flatten());
        let process = Process {
            perf_map,
            comm: comm.or(known.comm),
            exe: exe.or(known.exe),
            latest: maps.code.iter().map(|mapping| mapping.start).collect(),
            mappings: merge(known.mappings, maps.code),
            // Whatever takes the place of shared memory ends it. Code may be in stacks from before that.
            shared: sorted(uncovered(known.shared, &maps.mapped), maps.shared),
            mapped: maps.mapped,
            stacks,
        };
        self.processes.insert(pid, process);
        Ok(())
    }

    fn keep_file(&mut self, pid: u32, mapping: &Mapping) -> Option<FileId> {
        let key = (mapping.dev.clone(), mapping.inode, mapping.path.clone());
        if let Some(id) = self.by_maps.get(&key) {
            return Some(*id);
        }
        match self.open(pid, mapping) {
            Ok(id) => {
                self.by_maps.insert(key, id);
                Some(id)
            }
            Err(error) if is_fd_shortage(&error) => {
                self.files_over_limit += 1;
                None
            }
            Err(_) => {
                self.files_unopened += 1;
                None
            }
        }
    }

    /// Opens the program of a process to come. When it is mapped, it is known by its inode.
    pub fn keep_program(&mut self, path: &std::path::Path) -> Option<FileId> {
        // A script is not what will be mapped, and its interpreter is looked at when it runs.
        let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let inode = (meta.dev(), meta.ino());
        if let Some(id) = self.by_inode.get(&inode) {
            return Some(*id);
        }
        let file = self.open_within_limit(path).ok()?;
        Some(self.keep(inode, file))
    }

    fn keep(&mut self, inode: (u64, u64), file: File) -> FileId {
        let id = FileId(self.files.len() as u32);
        self.files.push(file);
        self.by_inode.insert(inode, id);
        id
    }

    fn open(&mut self, pid: u32, mapping: &Mapping) -> io::Result<FileId> {
        let map_file = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end));
        // Looked at before it is opened: opening a device could do something.
        let (path, meta) = match fs::metadata(&map_file) {
            Ok(meta) => (map_file, meta),
            // Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE. By its path, then, but only the same file:
            // names of a newer build would be wrong.
            Err(_) => {
                let mut path = PathBuf::from(format!("/proc/{pid}/root"));
                path.push(OsStr::from_bytes(&mapping.path.as_bytes()[1..]));
                let meta = fs::metadata(&path)?;
                if meta.ino() != mapping.inode {
                    return Err(io::Error::other("the file at this path is another one"));
                }
                (path, meta)
            }
        };
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let inode = (meta.dev(), meta.ino());
        if let Some(id) = self.by_inode.get(&inode) {
            return Ok(*id);
        }
        let file = self.open_within_limit(&path)?;
        Ok(self.keep(inode, file))
    }

    fn open_within_limit(&mut self, path: &std::path::Path) -> io::Result<File> {
        if self.files.len() as u64 >= self.max_files() && !self.raise_limit() {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        match File::open(path) {
            Err(error) if is_fd_shortage(&error) && self.raise_limit() => File::open(path),
            result => result,
        }
    }

    fn max_files(&mut self) -> u64 {
        *self.max_files.get_or_insert_with(|| budget(nofile_limit().rlim_cur))
    }

    /// Raises the soft limit of open files to the hard one; false when that was done before or changes
    /// nothing. Only when it is needed, because commands started later inherit the limit.
    fn raise_limit(&mut self) -> bool {
        if std::mem::replace(&mut self.raised_limit, true) {
            return false;
        }
        let mut limit = nofile_limit();
        if limit.rlim_cur >= limit.rlim_max {
            return false;
        }
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to a valid rlimit for the duration of the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return false;
        }
        self.max_files = Some(budget(limit.rlim_cur));
        true
    }
}

/// How many files to keep open under this limit of descriptors.
fn budget(limit: u64) -> u64 {
    limit.saturating_sub(FD_RESERVE).max(limit / 2)
}

fn nofile_limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    // SAFETY: the pointer is to a valid rlimit for the duration of the call. It cannot fail with these
    // arguments; if it does the defaults above stay.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit
}

fn is_fd_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Tells a zombie from a kernel thread, whose maps are empty too.
fn is_dead(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, None | Some('Z' | 'X' | 'x'))
}

/// What is kept of the text of a `/proc/PID/maps`, by address.
#[derive(Debug, Default)]
struct Maps {
    /// The executable mappings.
    code: Vec<Mapping>,
    /// The shared ones, executable or not.
    shared: Vec<Mapping>,
    /// Everything, without the seams.
    mapped: Vec<Range>,
    stacks: Vec<Range>,
}

fn parse_maps(text: &[u8]) -> Maps {
    let mut maps = Maps::default();
    // Where some pages end that nobody may touch: below the stack of a thread (pthread_attr_getguardsize: one
    // page in glibc, two in musl). The arenas of malloc have such memory too, but above, and megabytes of it.
    let mut guard = None;
    for line in text.split(|byte| *byte == b'\n') {
        // Most lines are neither code nor shared: they are read no further than they are needed.
        let Some((range, perms)) = parse_range(line) else { continue };
        match maps.mapped.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => maps.mapped.push(range.clone()),
        }
        let is_guarded = guard == Some(range.start) && perms.starts_with(b"rw-p") && line.ends_with(b" 0 ");
        let is_guard = perms == b"---p" && range.end - range.start <= 65536;
        guard = is_guard.then_some(range.end);
        let (code, shared) = (perms.get(2) == Some(&b'x'), perms.get(3) == Some(&b's'));
        if code || shared {
            let Some(mapping) = parse_mapping(line, range) else { continue };
            if shared {
                maps.shared.push(mapping.clone());
            }
            if code {
                maps.code.push(mapping);
            }
        } else if is_guarded || line.ends_with(b"[stack]") {
            maps.stacks.push(range);
        }
    }
    maps
}

/// The addresses of a line, and its permissions.
fn parse_range(line: &[u8]) -> Option<(Range, &[u8])> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let (range, perms) = (fields.next()?, fields.next()?);
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?, perms))
}

fn parse_mapping(line: &[u8], range: Range) -> Option<Mapping> {
    // 7f1c2a-7f1c2b r-xp 00026000 08:01 1835016    /usr/lib/libc.so.6 (deleted)
    let line = String::from_utf8_lossy(line);
    let mut rest = line.as_ref();
    let mut field = || {
        let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        field
    };
    let (_range, _perms, offset, dev, inode) = (field(), field(), field(), field(), field());
    let path = rest.trim_start();
    Some(Mapping {
        start: range.start,
        end: range.end,
        offset: u64::from_str_radix(offset, 16).ok()?,
        dev: dev.to_string(),
        inode: inode.parse().ok()?,
        path: path.strip_suffix(" (deleted)").unwrap_or(path).to_string(),
        file: None,
    })
}

/// The mapping at an address, of a list by start.
fn find(mappings: &[Mapping], addr: u64) -> Option<&Mapping> {
    let after = mappings.partition_point(|mapping| mapping.start <= addr);
    mappings[..after].last().filter(|mapping| mapping.contains(addr))
}

fn covers(ranges: &[Range], addr: u64) -> bool {
    ranges.iter().any(|range| range.contains(&addr))
}

/// The new mappings, and what they leave of the old ones.
fn merge(old: Vec<Mapping>, new: Vec<Mapping>) -> Vec<Mapping> {
    let taken: Vec<Range> = new.iter().map(|mapping| mapping.start..mapping.end).collect();
    sorted(uncovered(old, &taken), new)
}

fn sorted(mut mappings: Vec<Mapping>, more: Vec<Mapping>) -> Vec<Mapping> {
    mappings.extend(more);
    mappings.sort_by_key(|mapping| mapping.start);
    mappings
}

/// What is left of mappings outside of ranges that are in order and do not overlap.
fn uncovered(mappings: Vec<Mapping>, taken: &[Range]) -> Vec<Mapping> {
    let mut left = Vec::new();
    for mapping in mappings {
        let mut rest = mapping;
        let first = taken.partition_point(|range| range.end <= rest.start);
        let end = rest.end;
        for range in taken[first..].iter().take_while(|range| range.start < end) {
            if rest.start < range.start {
                left.push(Mapping { end: range.start, ..rest.clone() });
            }
            let start = range.end.min(end);
            rest.offset += start - rest.start;
            rest.start = start;
        }
        if rest.start < rest.end {
            left.push(rest);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
55d0c0000000-55d0c0001000 r--p 00000000 08:01 11   /opt/my app/prog (deleted)
55d0c0001000-55d0c0002000 r-xp 00001000 08:01 11   /opt/my app/prog (deleted)
7f0000000000-7f0000001000 rwxp 00000000 00:00 0 
7f0000002000-7f0000003000 r-xp 00026000 08:01 12   /usr/lib/libc.so.6
7fff00000000-7fff00002000 r-xp 00000000 00:00 0    [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
";

    fn mapping(start: u64, end: u64, offset: u64, path: &str) -> Mapping {
        Mapping { start, end, offset, dev: "08:01".into(), inode: 1, path: path.into(), file: None }
    }

    #[test]
    fn executable_mappings_are_parsed() {
        let mappings = parse_maps(MAPS).code;
        let modules: Vec<&str> = mappings.iter().map(Mapping::module).collect();
        assert_eq!(modules, ["prog", "[jit]", "libc.so.6", "[vdso]", "[vsyscall]"]);
        assert_eq!(mappings[0].path, "/opt/my app/prog");
        assert_eq!(mappings[2].offset_of(0x7f0000002010), 0x26010);
        assert_eq!((mappings[2].inode, mappings[2].dev.as_str()), (12, "08:01"));
    }

    const DATA: &[u8] = b"\
1000-2000 r-xp 00000000 08:01 11   /opt/prog
2000-3000 rw-p 00001000 08:01 11   /opt/prog
3000-4000 rw-p 00000000 00:00 0    [heap]
8000-9000 rw-s 00003000 00:1a 7    /dev/shm/my queue (deleted)
9000-a000 r--s 00000000 00:01 8    /memfd:ring (deleted)
c000-d000 rwxs 00000000 00:01 9    /dev/zero (deleted)
f000-11000 rw-p 00000000 00:00 0   [stack]
not a mapping
";

    #[test]
    fn shared_mappings_are_kept_whatever_their_protection() {
        let maps = parse_maps(DATA);
        let shared: Vec<_> =
            maps.shared.iter().map(|mapping| (mapping.inode, mapping.path.as_str())).collect();
        assert_eq!(shared, [(7, "/dev/shm/my queue"), (8, "/memfd:ring"), (9, "/dev/zero")]);
        assert_eq!(maps.shared[0].offset_of(0x8040), 0x3040);
        let code: Vec<u64> = maps.code.iter().map(|mapping| mapping.start).collect();
        assert_eq!(code, [0x1000, 0xc000]);
        assert_eq!(maps.mapped, [0x1000..0x4000, 0x8000..0xa000, 0xc000..0xd000, 0xf000..0x11000]);
        assert_eq!((maps.stacks.len(), maps.stacks[0].clone()), (1, 0xf000..0x11000));
    }

    #[test]
    fn shared_memory_ends_where_something_else_was_mapped() {
        let left = uncovered(parse_maps(DATA).shared, &[0x1000..0x8400, 0x8800..0x9000, 0x9800..0x20000]);
        let left: Vec<_> = left.iter().map(|left| (left.start..left.end, left.offset)).collect();
        assert_eq!(left, [(0x8400..0x8800, 0x3400), (0x9000..0x9800, 0)]);
    }

    #[test]
    fn newer_mappings_win_and_the_rest_of_the_old_ones_stays() {
        let old = vec![mapping(0x1000, 0x5000, 0, "/old"), mapping(0x9000, 0xa000, 0, "/plugin")];
        let new = vec![mapping(0x2000, 0x3000, 0x7000, "/new"), mapping(0x4000, 0x6000, 0, "/new")];
        assert_eq!(
            merge(old, new),
            [
                mapping(0x1000, 0x2000, 0, "/old"),
                mapping(0x2000, 0x3000, 0x7000, "/new"),
                mapping(0x3000, 0x4000, 0x2000, "/old"),
                mapping(0x4000, 0x6000, 0, "/new"),
                mapping(0x9000, 0xa000, 0, "/plugin"),
            ]
        );
    }

    #[test]
    fn merging_the_same_mappings_changes_nothing() {
        let mappings = parse_maps(MAPS).code;
        assert_eq!(merge(mappings.clone(), mappings.clone()), mappings);
    }

    #[test]
    fn a_snapshot_covers_the_code_of_a_process_and_repeats_without_opening_more() {
        let mut images = Images::new();
        let pid = std::process::id();
        images.snapshot(pid).unwrap();
        let here = parse_maps as *const () as u64;
        assert!(images.covers(pid, here));
        assert!(!images.covers(pid, 0x10));
        assert!(!images.covers(1 << 30, here));
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(images.comm(pid), Some(comm.trim_end()));
        assert_eq!(images.exe(pid), Some(std::env::current_exe().unwrap().as_path()));
        let (files, mappings) = (images.open_files(), images.mappings(pid).to_vec());
        assert!(files >= 2, "the program and libc: {files}");
        images.snapshot(pid).unwrap();
        assert_eq!((images.open_files(), images.mappings(pid)), (files, mappings.as_slice()));
        assert_eq!(images.files_unopened + images.files_over_limit, 0);
    }

    #[test]
    fn a_process_that_is_gone_is_not_found_and_its_snapshot_stays() {
        let mut images = Images::new();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        images.snapshot(pid).unwrap();
        let mappings = images.mappings(pid).to_vec();
        assert!(!mappings.is_empty());
        child.kill().unwrap();
        while !is_dead(pid) {
            std::thread::yield_now();
        }
        assert_eq!(images.snapshot(pid).unwrap_err().kind(), ErrorKind::NotFound, "a zombie");
        child.wait().unwrap();
        assert_eq!(images.snapshot(pid).unwrap_err().kind(), ErrorKind::NotFound, "reaped");
        assert_eq!(images.mappings(pid), mappings);
        assert!(images.comm(pid).is_some());
        assert_eq!(images.processes_missed, 0);
        assert!(images.snapshot(1 << 30).is_err());
        assert_eq!(images.processes_missed, 1);
    }

    #[test]
    fn files_beyond_the_limit_are_counted_and_left_out() {
        let mut images = Images { max_files: Some(1), raised_limit: true, ..Images::default() };
        let pid = std::process::id();
        images.snapshot(pid).unwrap();
        assert_eq!(images.open_files(), 1);
        assert!(images.files_over_limit > 0);
        let counted = images.files_over_limit;
        images.snapshot(pid).unwrap();
        assert_eq!(images.files_over_limit, counted, "the same failure is counted once");
        assert!(images.covers(pid, parse_maps as *const () as u64));
    }
}
