//! An invented profile with one of everything a renderer has to cope with. No kernel produced it.

mod blame;
mod futexes;

use lockprof::model::*;

/// Collects stacks and frames and hands out references to them.
#[derive(Default)]
struct Stacks {
    stacks: Vec<Stack>,
    frames: Vec<Frame>,
}

impl Stacks {
    fn add(&mut self, incomplete: bool, frames: Vec<Frame>) -> StackRef {
        let mut indices = Vec::new();
        for frame in frames {
            let index = self.frames.iter().position(|f| *f == frame).unwrap_or_else(|| {
                self.frames.push(frame);
                self.frames.len() - 1
            });
            indices.push(index as u32);
        }
        self.stacks.push(Stack { frames: indices, incomplete });
        StackRef::Stack(self.stacks.len() as u32 - 1)
    }
}

fn function(name: &str, place: Option<(&str, u32)>) -> Function {
    Function {
        name: name.into(),
        file: place.map(|(file, _)| file.into()),
        line: place.map(|(_, line)| line),
    }
}

fn kernel(name: &str, addr: u64) -> Frame {
    Frame { functions: vec![function(name, None)], ..Frame::unsymbolized(Space::Kernel, None, addr, false) }
}

fn user(module: &str, offset: u64, functions: Vec<Function>) -> Frame {
    Frame {
        module: Some(module.into()),
        module_offset: Some(offset),
        functions,
        ..Frame::unsymbolized(Space::User, Some(4242), 0x5581_0000_0000 + offset, false)
    }
}

fn waits(values: &[u64]) -> (WaitStats, Hist) {
    let wait = WaitStats {
        contended: values.len() as u64,
        wait_total_ns: values.iter().sum(),
        wait_min_ns: values.iter().min().copied(),
        wait_max_ns: values.iter().max().copied(),
        ..WaitStats::default()
    };
    (wait, Hist::from_values(values.iter().copied()))
}

/// Waits from `from_ns` on, each a bit longer than the last, with a long tail.
fn spread(from_ns: u64, n: u64) -> Vec<u64> {
    (0..n).map(|i| from_ns + from_ns * i / 40 + if i % 97 == 96 { from_ns * 900 } else { 0 }).collect()
}

fn lock(kind: LockKind, addr: u64, name: Option<&str>, call_site: Option<&str>) -> Lock {
    Lock {
        name: name.map(Into::into),
        call_site: call_site.map(Into::into),
        ..Lock::new(kind, addr, kind.is_user().then_some(4242))
    }
}

fn thread(tid: u32, comm: &str) -> Thread {
    Thread { pid: 4242, tid, comm: comm.into() }
}

fn site(kernel_stack: StackRef, user_stack: StackRef, wait: WaitStats) -> Site {
    Site { pid: 4242, kernel_stack, user_stack, futex: None, wait }
}

fn hook(
    function: &str,
    families: &[Family],
    backend: Option<Backend>,
    reason: &str,
    blind: Option<&str>,
) -> HookLine {
    HookLine {
        function: function.into(),
        families: families.to_vec(),
        backend,
        reason: reason.into(),
        blind: blind.map(Into::into),
    }
}

pub fn profile() -> Profile {
    let mut stacks = Stacks::default();
    let libc = |offset, name| user("libc.so.6", offset, vec![function(name, None)]);
    let write = [
        libc(0x1147a0, "__write"),
        user(
            "demo",
            0x9a10,
            vec![
                function("demo::worker::run_loop", Some(("src/worker.rs", 71))),
                function("<std::fs::File as std::io::Write>::write_all", Some(("std/src/io/mod.rs", 1704))),
                function("std::sys::fd::FileDesc::write", Some(("std/src/sys/fd/unix.rs", 240))),
            ],
        ),
        user(
            "demo",
            0x7700,
            vec![function(
                "std::sys::backtrace::__rust_begin_short_backtrace::<demo::spawn_workers::{{closure}}, core::result::Result<(), alloc::boxed::Box<dyn core::error::Error + core::marker::Send>>>",
                Some(("std/src/sys/backtrace.rs", 152)),
            )],
        ),
        libc(0x9caa0, "clone3"),
    ];
    let pipe_user = stacks.add(false, write.to_vec());
    let pipe_kernel = stacks.add(
        false,
        vec![
            kernel("bpf_prog_3c0ffee_mutex_lock__fentry", 0xffff_ffff_c000_1000),
            Frame::unsymbolized(Space::Kernel, None, 0xffff_ffff_c000_2000, false),
            kernel("mutex_lock", 0xffff_ffff_8190_0010),
            kernel("pipe_write", 0xffff_ffff_8130_0020),
            kernel("vfs_write", 0xffff_ffff_8120_0030),
            kernel("ksys_write", 0xffff_ffff_8120_0040),
            kernel("do_syscall_64", 0xffff_ffff_8180_0050),
            kernel("entry_SYSCALL_64_after_hwframe", 0xffff_ffff_8200_0060),
        ],
    );
    let fault_kernel = stacks.add(
        false,
        vec![
            kernel("down_read", 0xffff_ffff_8190_1010),
            kernel("lock_mm_and_find_vma", 0xffff_ffff_8110_1020),
            kernel("do_user_addr_fault", 0xffff_ffff_8108_1030),
            kernel("exc_page_fault", 0xffff_ffff_8180_1040),
        ],
    );
    let mmap_kernel = stacks.add(
        false,
        vec![
            kernel("down_write_killable", 0xffff_ffff_8190_2010),
            kernel("vm_mmap_pgoff", 0xffff_ffff_8110_2020),
            kernel("ksys_mmap_pgoff", 0xffff_ffff_8110_2030),
            kernel("do_syscall_64", 0xffff_ffff_8180_0050),
        ],
    );
    let alloc_user = stacks.add(
        true,
        vec![
            libc(0x11bb00, "mmap64"),
            user("libjemalloc.so.2", 0x2f310, vec![]),
            user("libjemalloc.so.2", 0x301a4, vec![]),
        ],
    );
    let cache_user = stacks.add(
        false,
        vec![
            libc(0x91117, "syscall"),
            user(
                "demo",
                0x41e0,
                vec![
                    function("demo::cache::Cache<alloc::string::String, demo::cache::Entry>::get_or_insert_with", Some(("src/cache.rs", 118))),
                    function("std::sync::poison::mutex::Mutex<std::collections::hash::map::HashMap<alloc::string::String, demo::cache::Entry>>::lock", Some(("std/src/sync/poison/mutex.rs", 281))),
                    function("std::sys::sync::mutex::futex::Mutex::lock_contended", Some(("std/src/sys/sync/mutex/futex.rs", 104))),
                ],
            ),
            user("demo", 0x9b00, vec![function("demo::worker::run_loop", Some(("src/worker.rs", 64)))]),
            write[2].clone(),
            write[3].clone(),
        ],
    );
    let bare_user = stacks.add(
        true,
        vec![
            Frame::unsymbolized(Space::User, Some(4242), 0x7f12_3456_789a, true),
            Frame::unsymbolized(Space::User, Some(4242), 0x7f12_3456_8000, false),
        ],
    );
    let rename_kernel = stacks.add(
        false,
        vec![
            kernel("mutex_lock_interruptible", 0xffff_ffff_8190_3010),
            kernel("lock_rename_child_and_check_everything_below", 0xffff_ffff_8121_3020),
            kernel("do_renameat2", 0xffff_ffff_8121_3030),
        ],
    );
    let spin_kernel = stacks.add(
        false,
        vec![
            kernel("native_queued_spin_lock_slowpath", 0xffff_ffff_8190_4010),
            kernel("try_to_wake_up", 0xffff_ffff_810a_4020),
        ],
    );

    // A lock that hangs: nobody has got it while the profile ran.
    let mut hung = lock(
        LockKind::Mutex,
        0xffff_9a01_0a10_1f40,
        Some("rename_mutex"),
        Some("lock_rename_child_and_check_everything_below"),
    );
    hung.contended_releases = Some(0);
    hung.owners = Some(Owners { nobody: 1, readers: 0, tasks: vec![(thread(4249, "demo-main"), 1)] });
    hung.in_flight = vec![
        InFlight {
            futex: None,
            from_before: false,
            pid: 4242,
            tid: 4250,
            comm: "demo-io-0".into(),
            age_ns: 9_871_000_000,
            owner: Some(Owner::Task(thread(4249, "demo-main"))),
            kernel_stack: rename_kernel,
            user_stack: StackRef::Lost,
        },
        InFlight {
            futex: None,
            from_before: false,
            pid: 4242,
            tid: 4251,
            comm: "demo-io-1".into(),
            age_ns: 4_120_000_000,
            owner: Some(Owner::Nobody),
            kernel_stack: rename_kernel,
            user_stack: bare_user,
        },
    ];

    let mut pipe = lock(LockKind::Mutex, 0xffff_9a01_0b20_2468, None, Some("pipe_write"));
    let values = spread(21_000, 3000);
    let (mut wait, hist) = waits(&values);
    let (mut at_pipe, _) = waits(&values);
    for wait in [&mut wait, &mut at_pipe] {
        wait.aborted = 3;
        wait.aborted_total_ns = 120_400_000;
    }
    pipe.wait = wait;
    pipe.hist = Some(hist);
    pipe.contended_releases = Some(2950);
    let tasks = (0..5).map(|n| (thread(4250 + n, &format!("demo-io-{n}")), 900 - 200 * u64::from(n)));
    pipe.owners = Some(Owners { nobody: 503, readers: 0, tasks: tasks.collect() });
    pipe.sites = vec![site(pipe_kernel, pipe_user, at_pipe)];

    // The same function takes another pipe's lock, and its histogram found no room.
    let mut other_pipe = lock(LockKind::Mutex, 0xffff_9a01_0b20_9468, None, Some("pipe_write"));
    let (wait, _) = waits(&spread(9_000, 150));
    other_pipe.wait = wait;
    other_pipe.sites = vec![site(pipe_kernel, StackRef::Lost, wait)];

    let mut mmap_read =
        lock(LockKind::RwsemRead, 0xffff_9a01_0c30_0070, Some("mmap_lock"), Some("lock_mm_and_find_vma"));
    let (wait, hist) = waits(&spread(3_300, 2200));
    mmap_read.wait = wait;
    mmap_read.hist = Some(hist);
    mmap_read.sites = vec![site(fault_kernel, cache_user, wait)];

    let mut mmap_write =
        lock(LockKind::RwsemWrite, 0xffff_9a01_0c30_0070, Some("mmap_lock"), Some("vm_mmap_pgoff"));
    let (wait, hist) = waits(&spread(14_500, 260));
    mmap_write.wait = wait;
    mmap_write.hist = Some(hist);
    mmap_write.contended_releases = Some(251);
    mmap_write.owners = Some(Owners { nobody: 20, readers: 240, tasks: vec![] });
    mmap_write.sites = vec![site(mmap_kernel, alloc_user, wait)];

    let mut runqueue = lock(LockKind::Spinlock, 0xffff_9a01_3f2c_0c40, None, Some("try_to_wake_up"));
    let (wait, hist) = waits(&spread(240, 88));
    runqueue.wait = wait;
    runqueue.hist = Some(hist);
    runqueue.sites = vec![site(spin_kernel, StackRef::NotTaken, wait)];

    // Nobody found a name or a call site, and both stacks are gone.
    let mut unknown = lock(LockKind::PercpuRwsemRead, 0xffff_ffff_82a4_11c0, None, None);
    let (wait, hist) = waits(&[41_000]);
    unknown.wait = wait;
    unknown.hist = Some(hist);
    unknown.sites = vec![site(StackRef::Lost, StackRef::Lost, wait)];

    other_pipe.name_candidates = vec!["pipe_inode_info.mutex".into(), "tty_buffer.lock".into()];
    other_pipe.key = "k:caller:mutex:pipe_write".into();
    mmap_read.object = Some("vma_block".into());
    mmap_read.key = "k:field:rwsem:mm_struct.mmap_lock".into();

    let mut locks = vec![hung, pipe, other_pipe, mmap_read, mmap_write, runqueue, unknown];
    locks.extend(futexes::rows(&mut stacks, cache_user, bare_user, &write[2..]));
    let known = blame::Known { cache_user, pipe_user, pipe_kernel, mmap_kernel, alloc_user };
    blame::add(&mut locks, &mut stacks, &known, &write[2..]);
    let in_flight: u64 = locks.iter().map(|lock| lock.in_flight.len() as u64).sum();
    let waits_ended: u64 = locks.iter().map(|lock| lock.wait.contended + lock.wait.aborted).sum();
    locks.sort_by_key(|lock| std::cmp::Reverse(lock.weight_ns()));
    let loss =
        |reason: &str, count, meaning: &str| Loss { reason: reason.into(), count, meaning: meaning.into() };
    Profile {
        schema: SCHEMA.into(),
        meta: Meta {
            version: "0.1.0".into(),
            command: ["lockprof", "-p", "4242", "10"].map(Into::into).to_vec(),
            hostname: "synthetic".into(),
            kernel: "6.12.0-synthetic".into(),
            arch: "x86_64".into(),
            cpus: 8,
            start_unix_s: 1_795_000_000,
            duration_ns: 10_002_000_000,
            target: Target {
                kind: TargetKind::Pids,
                pids: vec![4242],
                comms: vec!["demo".into()],
                command: vec![],
                exit_status: None,
            },
            ended_by: EndReason::Duration,
            hold: false,
            hold_families: vec![],
        },
        plan: vec![
            hook("mutex_lock", &[Family::Mutex], Some(Backend::Fentry), "trial load succeeded", None),
            hook(
                "mutex_lock_interruptible",
                &[Family::Mutex],
                Some(Backend::Fentry),
                "trial load succeeded",
                None,
            ),
            hook("down_read", &[Family::Rwsem], Some(Backend::Fentry), "trial load succeeded", None),
            hook(
                "down_write_killable",
                &[Family::Rwsem],
                Some(Backend::Kprobe),
                "fentry: trial load failed (EBUSY)",
                None,
            ),
            hook(
                "rt_mutex_lock",
                &[Family::RtMutex],
                None,
                "not in kallsyms: inlined by this kernel",
                Some("waits for rt_mutexes taken by drivers; those taken for PI futexes are seen"),
            ),
            hook(
                "rt_mutex_lock_interruptible",
                &[Family::RtMutex],
                None,
                "not in kallsyms: inlined by this kernel",
                Some("waits for rt_mutexes taken by drivers; those taken for PI futexes are seen"),
            ),
            hook("mutex_lock_io", &[Family::Mutex], None, "covered by contention_begin", None),
            hook(
                "contention_begin",
                &[Family::Spinlock, Family::Rwlock, Family::PercpuRwsem],
                Some(Backend::Tracepoint),
                "the kernel has it",
                None,
            ),
            hook("sys_enter", &[Family::Futex], Some(Backend::Tracepoint), "futex calls", None),
            hook("sys_exit", &[Family::Futex], Some(Backend::Tracepoint), "futex calls", None),
        ],
        events: EventCounts {
            hooks_attached: 7,
            events_seen: 1_234_567,
            waits_begun: waits_ended + in_flight,
            waits_ended,
            futex_retries: 61,
            futex_merged: 0,
            foreign_releases: 0,
        },
        losses: vec![
            loss(
                "stack_map_full",
                150,
                "stacks that found no room in the stack table; their waits are counted, without call sites. Raise --max-stacks.",
            ),
            loss("hist_map_full", 1, "locks without a histogram, so without percentiles. Raise --max-locks."),
            loss("ringbuf_full", 0, "events dropped because nobody read them in time."),
            loss(
                "unwind_failed",
                201,
                "user stacks that end early. Frame pointers or .eh_frame are missing in a library.",
            ),
            loss("unsymbolized_frames", 4, "frames for which no symbol was found; shown as module+offset."),
        ],
        locks,
        stacks: stacks.stacks,
        frames: stacks.frames,
        naming: Some(Naming { unavailable: vec!["per-CPU variables: not listed".into()] }),
    }
}
