//! Kernels invented here: their types, caches and symbols.

use super::*;
use crate::kernel::btf::tests::Builder;
use crate::model::*;
use std::collections::BTreeMap;

const SLAB: u64 = 0xffff_8880_0010_0000;
const PAGE_OFFSET: u64 = 0xffff_8880_0000_0000;
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;

const KALLSYMS: &str = "\
0000000000000000 D __per_cpu_start
0000000000021000 d runqueues
0000000000030000 A __per_cpu_end
ffffffff81001000 t unix_stream_connect
ffffffff81002000 t anon_pipe_read
ffffffff81003000 t vfs_read
ffffffff81004000 t signal_open
ffffffff81010000 t mutex_lock
ffffffff82000000 D tasklist_lock
ffffffff82001000 D init_task
ffffffff82009000 d after
ffffffffc0001000 d ext4_table\t[ext4]
";

fn types() -> Types {
    let mut b = Builder::default();
    let long = b.int("long", 8);
    let raw = b.structure("raw_spinlock", 4, &[]);
    let spin = b.structure("spinlock", 4, &[("rlock", raw, 0)]);
    let spin = b.typedef("spinlock_t", spin);
    let mutex = b.structure("mutex", 32, &[("owner", long, 0), ("wait_lock", raw, 8)]);
    let rwsem = b.structure("rw_semaphore", 40, &[("count", long, 0), ("wait_lock", raw, 8)]);
    let inode = b.structure("inode", 200, &[("i_rwsem", rwsem, 40)]);
    b.structure("ext4_inode_info", 400, &[("i_data_sem", rwsem, 8), ("vfs_inode", inode, 96)]);
    b.structure("shmem_inode_info", 400, &[("vfs_inode", inode, 96)]);
    b.structure("unix_sock", 1000, &[("lock", spin, 600), ("iolock", mutex, 640)]);
    let signal =
        b.structure("signal_struct", 1040, &[("cred_guard_mutex", mutex, 800), ("stats_lock", spin, 900)]);
    b.structure("pipe_inode_info", 160, &[("mutex", mutex, 0)]);
    b.structure("tty_buffers", 170, &[("mutex", mutex, 0)]);
    b.structure("small", 100, &[("mutex", mutex, 0)]);
    b.structure("task_struct", 2000, &[("alloc_lock", spin, 0x100)]);
    let rq = b.structure("rq", 256, &[("__lock", raw, 64)]);
    b.variable("runqueues", rq);
    let pointer = b.pointer(signal);
    b.function("signal_open", &[pointer]);
    Types::parse(&b.bytes()).unwrap()
}

fn cache(addr: u64, name: &str, size: u32) -> Cache {
    Cache { addr, name: name.into(), size, object_size: size, red_left_pad: 0, order: 2, least_order: 0 }
}

/// A merged cache of sockets and signals, two of inodes, two of all kinds of things.
fn memory() -> Memory {
    let caches = vec![
        cache(1, "signal_cache", 1088),
        cache(2, "ext4_inode_cache", 400),
        cache(3, "shmem_inode_cache", 400),
        cache(4, "kmalloc-192", 192),
        cache(5, "kmalloc-128", 128),
        cache(6, "task_struct", 2048),
    ];
    let identities = [("UNIX", "a"), ("UNIX-STREAM", "a"), ("signal_cache", "a")];
    let identities: BTreeMap<_, _> =
        identities.into_iter().map(|(name, id)| (name.to_string(), id.to_string())).collect();
    Memory {
        types: types(),
        bases: Bases {
            page_offset: PAGE_OFFSET,
            vmemmap: VMEMMAP,
            vmalloc: 0,
            cpu_offsets: vec![0xffff_8880_7000_0000, 0xffff_8880_7010_0000],
        },
        caches: Caches::new(caches, identities),
        places: HashMap::new(),
        unavailable: vec![],
    }
}

struct Run {
    memory: Memory,
    profile: Profile,
}

impl Run {
    fn new() -> Run {
        Run { memory: memory(), profile: crate::symbolize::tests::empty_profile() }
    }

    /// A lock in the `index`th object of a cache.
    fn in_slab(&mut self, kind: LockKind, cache: u64, index: u64, offset: u64, callers: &[&str]) -> u64 {
        let size = u64::from(self.memory.caches.get(cache).unwrap().size);
        let in_slab = index * size + offset;
        let addr = SLAB + (cache << 16) + in_slab;
        self.memory.places.insert(addr, SlabPlace { cache, offset: Some(in_slab as u32) });
        self.at(kind, addr, callers);
        addr
    }

    fn at(&mut self, kind: LockKind, addr: u64, callers: &[&str]) {
        let mut lock = Lock::new(kind, addr, None);
        if !callers.is_empty() {
            let first = self.profile.frames.len() as u32;
            for name in ["mutex_lock"].iter().chain(callers) {
                // A return address of the function.
                let addr = KALLSYMS.lines().find(|line| line.ends_with(&format!(" {name}")));
                let addr = addr.map_or(0, |line| u64::from_str_radix(&line[..16], 16).unwrap());
                let mut frame = Frame::unsymbolized(Space::Kernel, None, addr + 0x10, false);
                frame.functions = vec![Function { name: name.to_string(), file: None, line: None }];
                self.profile.frames.push(frame);
            }
            let frames = (first..self.profile.frames.len() as u32).collect();
            self.profile.stacks.push(Stack { frames, incomplete: false });
            let wait = WaitStats { contended: 1, wait_total_ns: 10, ..WaitStats::default() };
            lock.wait = wait;
            lock.sites.push(Site {
                pid: 1,
                kernel_stack: StackRef::Stack(self.profile.stacks.len() as u32 - 1),
                user_stack: StackRef::NotTaken,
                futex: None,
                wait,
            });
            lock.call_site = Some(callers[0].to_string());
        }
        self.profile.locks.push(lock);
    }

    fn named(mut self) -> Profile {
        let symbols = KernelSymbols::parse(KALLSYMS.to_string());
        name(&mut self.profile, &symbols, &self.memory);
        self.profile
    }
}

fn names(profile: &Profile) -> Vec<&str> {
    profile.locks.iter().map(|lock| lock.name.as_deref().unwrap_or("-")).collect()
}

#[test]
fn a_unix_socket_lock_is_never_called_signal() {
    let mut run = Run::new();
    run.in_slab(LockKind::Mutex, 1, 3, 640, &["unix_stream_connect"]);
    run.in_slab(LockKind::Spinlock, 1, 0, 600, &[]);
    run.in_slab(LockKind::Mutex, 1, 1, 800, &[]);
    assert_eq!(
        names(&run.named()),
        ["unix_sock.iolock", "unix_sock.lock", "signal_struct.cred_guard_mutex"],
        "all are in signal_cache"
    );
}

#[test]
fn one_file_systems_inodes_are_called_like_anothers() {
    let mut run = Run::new();
    run.in_slab(LockKind::RwsemWrite, 2, 5, 96 + 40, &[]);
    run.in_slab(LockKind::RwsemRead, 3, 5, 96 + 40, &[]);
    run.in_slab(LockKind::RwsemRead, 2, 5, 8, &[]);
    run.in_slab(LockKind::Spinlock, 3, 5, 96 + 48, &[]);
    let profile = run.named();
    assert_eq!(
        names(&profile),
        ["inode.i_rwsem", "inode.i_rwsem", "ext4_inode_info.i_data_sem", "inode.i_rwsem.wait_lock"]
    );
    assert_eq!(profile.locks[0].object.as_deref(), Some("ext4_inode_info"));
    assert_eq!(profile.locks[0].key, "k:field:rwsem:inode.i_rwsem");
    assert_eq!(profile.locks[0].key, profile.locks[1].key);
    assert_eq!(profile.locks[2].object, None);
}

#[test]
fn what_a_general_cache_may_hold_is_told_apart_by_the_caller_or_listed() {
    let mut run = Run::new();
    run.in_slab(LockKind::Mutex, 4, 0, 0, &["anon_pipe_read", "vfs_read"]);
    run.in_slab(LockKind::Mutex, 4, 1, 0, &["vfs_read"]);
    run.in_slab(LockKind::Mutex, 4, 2, 0, &[]);
    run.in_slab(LockKind::Mutex, 5, 2, 0, &[]);
    let profile = run.named();
    assert_eq!(
        names(&profile),
        [
            "pipe_inode_info.mutex",
            "{pipe_inode_info.mutex|tty_buffers.mutex}",
            "{pipe_inode_info.mutex|tty_buffers.mutex}",
            "small.mutex"
        ]
    );
    assert_eq!(profile.locks[1].name_candidates, ["pipe_inode_info.mutex", "tty_buffers.mutex"]);
    assert_eq!(profile.locks[1].key, "k:caller:mutex:vfs_read");
    assert_eq!(profile.locks[2].key, "k:field:mutex:{pipe_inode_info.mutex|tty_buffers.mutex}");
    let (all, named) = (profile.kernel_locks(|_| true), profile.kernel_locks(Lock::has_one_name));
    assert_eq!((all.locks, named.locks), (4, 2));
    assert_eq!((all.waits, named.waits), (2, 1));
}

#[test]
fn a_caller_that_locked_something_certain_tells_what_it_locks_elsewhere() {
    let mut run = Run::new();
    // A cache whose names say nothing: what fits is found by size, two structures here.
    run.in_slab(LockKind::Mutex, 4, 2, 0, &["vfs_read"]);
    run.in_slab(LockKind::Mutex, 4, 3, 0, &["anon_pipe_read"]);
    let mut profile = run.named();
    assert_eq!(profile.locks[0].name_candidates.len(), 2);
    profile.locks.clear();
    // An argument of the caller's type.
    let mut run = Run::new();
    let both = ["a", "b"].map(|name| Candidate {
        name: format!("{}.lock", if name == "a" { "signal_struct" } else { "unix_sock" }),
        structure: if name == "a" { "signal_struct" } else { "unix_sock" }.into(),
        object: None,
    });
    run.at(LockKind::Mutex, 1, &["signal_open"]);
    let learnt = Learnt::of(&run.profile, &[Found::Nothing]);
    let chosen = learnt.choose(&run.profile.locks[0], &run.profile, &both, &run.memory.types);
    assert_eq!(chosen.as_ref(), Some(&both[0]));
    // And the same return address.
    let learnt = Learnt::of(&run.profile, &[Found::Member(vec![both[1].clone()])]);
    let chosen = learnt.choose(&run.profile.locks[0], &run.profile, &both, &Types::default());
    assert_eq!(chosen.as_ref(), Some(&both[1]));
}

#[test]
fn red_zones_and_small_slabs_do_not_shift_a_name() {
    let mut run = Run::new();
    let padded =
        Cache { size: 320, object_size: 192, red_left_pad: 64, ..cache(7, "shmem_inode_cache", 320) };
    let padded = Cache { object_size: 256, ..padded };
    // Its slabs have four pages, and one made when memory was short has one: an object of it is not where
    // the order says.
    let sockets = cache(8, "UNIX", 1088);
    run.memory.caches = Caches::new(vec![padded, sockets], BTreeMap::new());
    let addr = SLAB + 2 * 320 + 64 + 96 + 40;
    run.memory.places.insert(addr, SlabPlace { cache: 7, offset: None });
    run.at(LockKind::RwsemWrite, addr, &[]);
    let addr = SLAB + 3 * 4096 + 1088 + 640;
    run.memory.places.insert(addr, SlabPlace { cache: 8, offset: None });
    run.at(LockKind::Mutex, addr, &[]);
    assert_eq!(names(&run.named()), ["inode.i_rwsem", "unix_sock.iolock"]);
}

#[test]
fn a_cache_that_nobody_knows_names_nothing() {
    let mut run = Run::new();
    run.memory.places.insert(SLAB, SlabPlace { cache: 99, offset: Some(0) });
    run.at(LockKind::Mutex, SLAB, &["vfs_read"]);
    run.at(LockKind::Mutex, SLAB + 64, &[]);
    run.at(LockKind::Flock, SLAB + 128, &[]);
    let profile = run.named();
    assert_eq!(names(&profile), ["-", "-", "-"]);
    let keys: Vec<&str> = profile.locks.iter().map(|lock| lock.key.as_str()).collect();
    assert_eq!(keys, ["k:caller:mutex:vfs_read", "k:unknown:mutex", "k:unknown:file-lock"]);
}

#[test]
fn variables_are_named_by_symbol_and_member() {
    let mut run = Run::new();
    run.at(LockKind::RwlockWrite, 0xffffffff82000000, &[]);
    run.at(LockKind::Spinlock, 0xffffffff82001100, &[]);
    run.at(LockKind::Spinlock, 0xffffffff82001108, &[]);
    run.at(LockKind::Spinlock, 0xffff_8880_7010_0000 + 0x21000 + 64, &[]);
    run.at(LockKind::Spinlock, 0xffffffffc0001010, &[]);
    run.at(LockKind::Spinlock, VMEMMAP + 0x40_0028, &[]);
    let profile = run.named();
    assert_eq!(
        names(&profile),
        [
            "tasklist_lock",
            "init_task.alloc_lock",
            "init_task+0x108",
            "runqueues.__lock",
            "ext4_table+0x10",
            "ptdesc.ptl"
        ]
    );
    let keys: Vec<&str> = profile.locks.iter().map(|lock| lock.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "k:sym:tasklist_lock",
            "k:sym:init_task.alloc_lock",
            "k:sym:init_task+0x108",
            "k:sym:runqueues.__lock",
            "k:sym:ext4/ext4_table+0x10",
            "k:field:spinlock:ptdesc.ptl"
        ]
    );
}

/// The same locks of two boots: other addresses, other CPUs, other functions suffixed by the compiler.
#[test]
fn profiles_with_other_addresses_have_equal_keys() {
    let boot = |index: u64, cpu: u64, caller: &str, user: u64| {
        let mut run = Run::new();
        run.in_slab(LockKind::Mutex, 1, index, 640, &[]);
        run.at(LockKind::Spinlock, 0xffff_8880_7000_0000 + cpu * 0x10_0000 + 0x21000 + 64, &[]);
        run.at(LockKind::Mutex, SLAB + index * 8, &[caller]);
        for place in [
            LockPlace::Heap,
            LockPlace::Global { module: "demo".into(), symbol: "CACHE".into(), offset: 0x10 },
            LockPlace::Module { module: "libx.so".into(), vaddr: 0x4010 },
            LockPlace::ThreadLocal,
        ] {
            let mut lock = Lock::new(LockKind::Futex, user, Some(user as u32));
            lock.place = Some(place);
            let first = run.profile.frames.len() as u32;
            for name in ["pthread_mutex_lock", "bank::transfer::h0123456789abcdef", "main"] {
                let mut frame = Frame::unsymbolized(Space::User, lock.pid, user + 0x999, false);
                let name = name.replace("0123456789abcdef", &format!("{:016x}", user ^ 0x1234));
                frame.functions = vec![Function { name, file: None, line: Some(index as u32) }];
                run.profile.frames.push(frame);
            }
            run.profile.stacks.push(Stack { frames: (first..first + 3).collect(), incomplete: false });
            lock.sites.push(Site {
                pid: user as u32,
                kernel_stack: StackRef::NotTaken,
                user_stack: StackRef::Stack(run.profile.stacks.len() as u32 - 1),
                futex: None,
                wait: WaitStats { contended: index, ..WaitStats::default() },
            });
            run.profile.locks.push(lock);
        }
        run.named().locks.into_iter().map(|lock| lock.key).collect::<Vec<_>>()
    };
    let first = boot(2, 0, "vfs_read.constprop.0", 0x7f00_1000);
    assert_eq!(first, boot(3, 1, "vfs_read", 0x5500_8000));
    assert_eq!(first[2], "k:caller:mutex:vfs_read");
    assert_eq!(first[4], "u:sym:demo`CACHE+0x10");
    assert_eq!(first[5], "u:sym:libx.so+0x4010");
    assert!(first[3].starts_with("u:site:futex:") && first[3].len() == "u:site:futex:".len() + 8);
    assert!(first[6].starts_with("u:tls:"));
    assert!(first.iter().all(|key| !key.is_empty()));
}
