//! The BPF logic driven by BPF_PROG_TEST_RUN with nothing attached: pairing, nesting, filters, and
//! one test per loss that BPF counts. Needs root: `cargo test --lib -- --ignored`.

mod blame;
mod files;
mod futex_calls;
mod futexes;
mod holds;
mod releases;
mod slabs;
mod spins;

use super::load::{Settings, SlabLookup, Targets, Tracer};
use super::wire;
use crate::attach::plan::{Hook, Plan};
use crate::kernel::Facts;
use crate::model::{Backend, LockKind, RawCapture};
use crate::unwind::{ProcessTable, Span, UserStacks};
use libbpf_rs::{MapCore, MapFlags};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard};

// include/trace/events/lock.h
const SPIN: u64 = 1;
const READ: u64 = 2;
const PERCPU: u64 = 16;
const MUTEX: u64 = 32;
/// Looks like the address of a slab object.
const LOCK: u64 = 0xffff_8880_0000_1000;

fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Per-CPU state, and two sysctls: one test at a time, each pinned to one CPU.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: a zeroed cpu_set_t is an empty one; CPU 0 exists.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &cpus), 0);
    }
    guard
}

/// Every kind by the contention tracepoints.
fn tracepoint_plan() -> Plan {
    let hook = |function| Hook {
        function,
        variant: None,
        families: vec![],
        backend: Some(Backend::Tracepoint),
        reason: String::new(),
        blind: None,
    };
    Plan {
        hooks: [
            "contention_begin",
            "contention_end",
            "sys_enter",
            "sys_exit",
            "flock_lock_inode",
            "posix_lock_inode",
            "fcntl_setlk",
        ]
        .map(hook)
        .to_vec(),
        tracepoint_kinds: LockKind::ALL.into_iter().filter(|kind| !kind.is_user()).collect(),
        phase_kinds: vec![],
        lifecycle: vec!["sched_process_exec"],
        realtime: false,
    }
}

fn settings(entries: u32, targets: Targets) -> Settings {
    Settings {
        targets,
        follow_forks: false,
        map_entries: entries,
        notice_bytes: 4096,
        user_stacks: UserStacks::FramePointers,
        unwind_rows: 1,
        unwind_processes: 1,
        slabs: SlabLookup::default(),
    }
}

struct Bench {
    tracer: Tracer,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new(entries: u32) -> Bench {
        Bench::with(entries, Targets::Pids(vec![std::process::id()]))
    }

    fn with(entries: u32, targets: Targets) -> Bench {
        // Our own table would be read for nothing: most tests are about other things.
        Bench::with_stacks(entries, targets, UserStacks::FramePointers)
    }

    fn with_stacks(entries: u32, targets: Targets, user_stacks: UserStacks) -> Bench {
        let alone = alone();
        let plan = tracepoint_plan();
        let facts = Facts::gather(&[], &[]).expect("facts");
        let settings = Settings { user_stacks, ..settings(entries, targets) };
        Bench::load(alone, &plan, &facts, &settings)
    }

    /// As where a mutex's slow path is hooked and the tracepoints only tell its phases.
    fn with_phases(kind: LockKind) -> Bench {
        let alone = alone();
        let plan = Plan { phase_kinds: vec![kind], tracepoint_kinds: vec![], ..tracepoint_plan() };
        let facts = Facts::gather(&[], &[]).expect("facts");
        Bench::load(alone, &plan, &facts, &settings(64, Targets::Pids(vec![std::process::id()])))
    }

    fn load(alone: MutexGuard<'static, ()>, plan: &Plan, facts: &Facts, settings: &Settings) -> Bench {
        let mut tracer = Tracer::load_selftest(plan, facts, settings)
            .expect("BPF programs load: run this as root, on a kernel that allows BPF");
        tracer.set_epoch(now_ns()).expect("the globals are mapped");
        tracer.activate().expect("the globals are mapped");
        Bench { tracer, _alone: alone }
    }

    fn run(&self, program: &str, args: &[u64]) {
        run(self.program(program), args);
    }

    /// As another thread of this process.
    fn run_elsewhere(&self, program: &str, args: &[u64]) {
        let (program, args) = (self.program(program), args.to_vec());
        std::thread::spawn(move || run(program, &args)).join().expect("the other thread runs it");
    }

    fn program(&self, name: &str) -> RawFd {
        let object = libbpf_rs::skel::Skel::object(self.tracer.skel());
        let program = object.progs().find(|program| program.name() == name).expect("a program of that name");
        program.as_fd().as_raw_fd()
    }

    fn begin(&self, lock: u64, flags: u64) {
        self.run("contention_begin__tp", &[lock, flags]);
    }

    fn end(&self, lock: u64, ret: i32) {
        self.run("contention_end__tp", &[lock, ret as i64 as u64]);
    }

    fn wait(&self, lock: u64, flags: u64) {
        self.begin(lock, flags);
        self.end(lock, 0);
    }

    fn acquire(&self, lock: u64, kind: LockKind) {
        self.run("hold__selftest", &[0, lock, wire::kind_bit(kind).trailing_zeros().into()]);
    }

    fn release(&self, lock: u64, kind: LockKind) {
        self.run("hold__selftest", &[1, lock, wire::kind_bit(kind).trailing_zeros().into()]);
    }

    fn capture(&self) -> RawCapture {
        self.tracer.collect(now_ns()).expect("the maps are readable")
    }
}

/// BPF_PROG_TEST_RUN of a raw tracepoint program: 5.10 and later.
fn run(program: RawFd, args: &[u64]) {
    // Room for every argument any of the programs looks at.
    let mut context = [0u64; 8];
    context[..args.len()].copy_from_slice(args);
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        ctx_in: context.as_ptr().cast(),
        ctx_size_in: size_of_val(&context) as u32,
        ..Default::default()
    };
    // SAFETY: the context outlives the call, the descriptor is a loaded program's.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program, &mut opts) };
    assert_eq!(result, 0, "BPF_PROG_TEST_RUN is refused");
}

fn lost(capture: &RawCapture, reason: &str) -> u64 {
    capture.losses.iter().find(|loss| loss.reason == reason).expect("a known loss").count
}

/// No loss at all.
fn clean(capture: &RawCapture) {
    let losses: Vec<_> = capture.losses.iter().filter(|loss| loss.count > 0).collect();
    assert!(losses.is_empty(), "{losses:?}");
}

#[test]
#[ignore = "needs root"]
fn a_wait_is_counted_once_with_both_stacks() {
    let bench = Bench::new(64);
    bench.wait(LOCK, MUTEX);
    let capture = bench.capture();
    let (site, wait) = &capture.sites[0];
    assert_eq!((site.lock.kind, site.lock.addr, site.pid), (LockKind::Mutex, LOCK, std::process::id()));
    assert_eq!((wait.contended, wait.aborted), (1, 0));
    assert!(wait.wait_min_ns == wait.wait_max_ns && wait.wait_max_ns == Some(wait.wait_total_ns));
    assert_eq!(capture.stacks.len(), 2, "one kernel and one user stack");
    assert_eq!(capture.locks[&site.lock].hist.iter().sum::<u32>(), 1);
    assert!(capture.in_flight.is_empty());
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn the_phases_of_one_mutex_wait_are_one_wait() {
    let bench = Bench::new(64);
    bench.begin(LOCK, MUTEX | SPIN);
    bench.begin(LOCK, MUTEX);
    bench.begin(LOCK, MUTEX | SPIN);
    bench.end(LOCK, 0);
    let capture = bench.capture();
    assert_eq!((capture.sites.len(), capture.sites[0].1.contended), (1, 1));
    assert_eq!((capture.events.waits_begun, capture.events.waits_ended), (1, 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn an_interrupted_wait_is_aborted_and_not_contended() {
    let bench = Bench::new(64);
    bench.begin(LOCK, MUTEX);
    bench.end(LOCK, -libc::EINTR);
    let capture = bench.capture();
    let wait = capture.sites[0].1;
    assert_eq!((wait.contended, wait.aborted, wait.wait_min_ns), (0, 1, None));
    let hist: u32 = capture.locks.values().flat_map(|lock| &lock.hist).sum();
    assert_eq!(hist, 0, "aborted waits are not in the histogram");
}

#[test]
#[ignore = "needs root"]
fn readers_and_writers_of_one_address_are_two_locks() {
    let bench = Bench::new(64);
    bench.wait(LOCK, READ);
    bench.wait(LOCK, 4);
    let mut kinds: Vec<_> = bench.capture().sites.iter().map(|(site, _)| site.lock.kind).collect();
    kinds.sort();
    assert_eq!(kinds, [LockKind::RwsemRead, LockKind::RwsemWrite]);
}

#[test]
#[ignore = "needs root"]
fn nested_spin_waits_end_in_any_order() {
    let bench = Bench::new(64);
    bench.begin(LOCK, SPIN);
    bench.begin(LOCK + 8, SPIN);
    bench.end(LOCK + 8, 0);
    bench.end(LOCK, 0);
    let capture = bench.capture();
    assert_eq!(capture.sites.len(), 2);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_sleeping_wait_and_a_spin_wait_of_one_task_do_not_mix() {
    let bench = Bench::new(64);
    bench.begin(LOCK, MUTEX);
    bench.wait(LOCK + 8, SPIN);
    bench.end(LOCK, 0);
    let capture = bench.capture();
    assert_eq!(capture.sites.len(), 2);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_wait_without_an_end_is_in_flight() {
    let bench = Bench::new(64);
    bench.begin(LOCK, MUTEX);
    bench.begin(LOCK + 8, SPIN);
    let mut waits = bench.capture().in_flight;
    waits.sort_by_key(|wait| wait.site.lock.addr);
    assert_eq!(waits.iter().map(|wait| wait.site.lock.addr).collect::<Vec<_>>(), [LOCK, LOCK + 8]);
    assert!(waits.iter().all(|wait| wait.begin_ns > 0 && !wait.comm.is_empty()));
}

#[test]
#[ignore = "needs root"]
fn another_process_is_filtered_before_anything_is_counted() {
    let bench = Bench::with(64, Targets::Pids(vec![1]));
    bench.wait(LOCK, MUTEX);
    let capture = bench.capture();
    assert_eq!((capture.events.events_seen, capture.sites.len()), (0, 0));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn lockprof_itself_is_never_counted_system_wide() {
    let bench = Bench::with(64, Targets::All);
    bench.wait(LOCK, MUTEX);
    assert_eq!(bench.capture().events.events_seen, 0);
}

#[test]
#[ignore = "needs root"]
fn nothing_counts_before_activate_and_after_deactivate() {
    let mut bench = Bench::new(64);
    bench.tracer.deactivate().expect("the globals are mapped");
    bench.wait(LOCK, MUTEX);
    assert_eq!(bench.capture().events.events_seen, 0);
}

#[test]
#[ignore = "needs root"]
fn loss_unpaired_end() {
    let bench = Bench::new(64);
    bench.end(LOCK, 0);
    assert_eq!(lost(&bench.capture(), "unpaired_end"), 1);
}

#[test]
#[ignore = "needs root"]
fn loss_unpaired_begin() {
    let bench = Bench::new(64);
    bench.begin(LOCK, MUTEX);
    bench.wait(LOCK + 8, MUTEX);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "unpaired_begin"), 1);
    assert_eq!(capture.sites.len(), 1, "the wait without an end became no number");
}

#[test]
#[ignore = "needs root"]
fn loss_spin_too_deep() {
    let bench = Bench::new(64);
    for nth in 0..9 {
        bench.begin(LOCK + 8 * nth, SPIN);
    }
    assert_eq!(lost(&bench.capture(), "spin_too_deep"), 8);
}

#[test]
#[ignore = "needs root"]
fn loss_spin_in_lockprof() {
    let bench = Bench::new(64);
    let map = &bench.tracer.skel().maps.counters;
    let key = 0u32.to_ne_bytes();
    let mut cpus = map.lookup_percpu(&key, MapFlags::ANY).unwrap().unwrap();
    for cpu in &mut cpus {
        // counters.busy is the last field.
        let at = cpu.len() - 8;
        cpu[at..].copy_from_slice(&1u64.to_ne_bytes());
    }
    map.update_percpu(&key, &cpus, MapFlags::ANY).unwrap();
    bench.begin(LOCK, SPIN);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "spin_in_lockprof"), 1);
    assert!(capture.in_flight.is_empty());
}

#[test]
#[ignore = "needs root"]
fn loss_sites_map_full_and_locks_map_full() {
    let bench = Bench::new(1);
    bench.wait(LOCK, MUTEX);
    bench.wait(LOCK + 8, MUTEX);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "sites_map_full"), 1);
    assert_eq!(capture.sites.len(), 1);

    // A quarter of the entries for locks: 1 of 4.
    drop(bench);
    let bench = Bench::new(4);
    bench.wait(LOCK, MUTEX);
    bench.wait(LOCK + 8, MUTEX);
    let capture = bench.capture();
    assert_eq!((lost(&capture, "locks_map_full"), capture.sites.len()), (1, 2));
}

#[test]
#[ignore = "needs root"]
fn loss_stacks_map_full() {
    let bench = Bench::new(1);
    bench.wait(LOCK, MUTEX);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "stacks_map_full"), 1, "room for the kernel stack only");
    assert_eq!(capture.sites[0].1.contended, 1, "the wait itself is not lost");
}

#[test]
#[ignore = "needs root"]
fn loss_waits_map_full() {
    let bench = Bench::new(1);
    bench.begin(LOCK, MUTEX);
    bench.run_elsewhere("contention_begin__tp", &[LOCK, MUTEX]);
    assert_eq!(lost(&bench.capture(), "waits_map_full"), 1);
}

#[test]
#[ignore = "needs root"]
fn loss_ring_buffer_full() {
    let bench = Bench::new(64);
    // 16 bytes each into 4096, and nobody reads.
    for _ in 0..300 {
        bench.run("sched_process_exec__tp", &[]);
    }
    assert!(lost(&bench.capture(), "ring_buffer_full") >= 300 - 256);
}

#[test]
#[ignore = "needs root"]
fn loss_stack_scratch_raced_and_stack_truncated() {
    let bench = Bench::new(64);
    bench.run("stack__selftest", &[0]);
    bench.run("stack__selftest", &[1]);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "stack_scratch_raced"), 1);
    assert_eq!(lost(&capture, "stack_truncated"), 1);
    assert_eq!(capture.stacks.len(), 1, "the raced stack was not kept");
}

#[test]
#[ignore = "needs root"]
fn loss_unwind_no_table_and_unwind_no_rule() {
    let pid = std::process::id();
    let mut bench = Bench::with_stacks(64, Targets::Pids(vec![pid]), UserStacks::Tables);
    bench.wait(LOCK, MUTEX);
    // A mapping at the very bottom, where nothing is.
    let nowhere = Span { start: 0x1000, length: 0x1000, pc: 0, first_row: 0, rows: 0 };
    let table = ProcessTable { generation: 1, spans: vec![nowhere] };
    assert!(bench.tracer.set_process_table(pid, &table, &[]).expect("the map is writable"));
    bench.wait(LOCK, MUTEX);
    assert!(!bench.tracer.set_process_table(pid + 1, &table, &[]).expect("no room is no error"));
    let capture = bench.capture();
    assert_eq!((lost(&capture, "unwind_no_table"), lost(&capture, "unwind_no_rule")), (1, 1));
    assert_eq!(capture.stacks.values().filter(|stack| stack.incomplete).count(), 2);
}

#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "needs root"]
fn loss_unwind_read_failed() {
    let pid = std::process::id();
    let mut bench = Bench::with_stacks(64, Targets::Pids(vec![pid]), UserStacks::Tables);
    // Everything is code by frame pointers, and the frame pointer points nowhere.
    let span = |start| Span { start, length: u32::MAX, pc: 0, first_row: 0, rows: 0 };
    let here = loss_unwind_read_failed as *const () as u64;
    let table = ProcessTable { generation: 1, spans: vec![span(here - (1 << 24))] };
    assert!(bench.tracer.set_process_table(pid, &table, &[]).expect("the map is writable"));
    let program = bench.program("contention_begin__tp");
    let mut request = [0u64; 16];
    let context = [LOCK, MUTEX, 0, 0, 0, 0];
    // union bpf_attr, test: prog_fd, …, ctx_size_in, ctx_size_out, ctx_in
    request[0] = program as u64;
    request[5] = size_of_val(&context) as u64;
    request[6] = context.as_ptr() as u64;
    let result: i64;
    // SAFETY: BPF_PROG_TEST_RUN reads the two arrays; rbp is restored, and nobody looks at it meanwhile.
    unsafe {
        std::arch::asm!(
            "push rbp",
            "mov rbp, 0x7ffffffff000",
            "syscall",
            "pop rbp",
            inlateout("rax") libc::SYS_bpf => result,
            in("rdi") 10,
            in("rsi") request.as_ptr(),
            in("rdx") size_of_val(&request),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    assert_eq!(result, 0, "BPF_PROG_TEST_RUN is refused");
    assert_eq!(lost(&bench.capture(), "unwind_read_failed"), 1);
}

#[test]
#[ignore = "needs root"]
fn loss_kernel_stack_failed_and_user_stack_failed() {
    // The kernel sizes its buffers by this sysctl when the program loads; with 0 every stack fails.
    struct Restore(String);
    impl Drop for Restore {
        fn drop(&mut self) {
            while std::fs::write(SYSCTL, &self.0).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
    const SYSCTL: &str = "/proc/sys/kernel/perf_event_max_stack";
    let _restore = Restore(std::fs::read_to_string(SYSCTL).expect("the sysctl is readable"));
    // Busy while programs that take stacks are loaded; those of the test before go after a grace period.
    let start = std::time::Instant::now();
    while let Err(err) = std::fs::write(SYSCTL, "0") {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{SYSCTL}: {err}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let bench = Bench::new(64);
    bench.wait(LOCK, MUTEX);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "kernel_stack_failed"), 1);
    assert_eq!(capture.sites[0].1.contended, 1, "the wait itself is not lost");
    assert_eq!(lost(&capture, "user_stack_failed"), 1);
}

/// What a run on this plan, with a hook besides that this kernel does not allow, makes of it.
fn started_with(extra: Hook) -> (Plan, RawCapture) {
    let _alone = alone();
    let mut plan = tracepoint_plan();
    let others = plan.hooks.len();
    let extra_function = extra.function;
    plan.hooks.push(extra);
    let mut facts = Facts::gather(&[extra_function], &[]).expect("facts");
    if let Some(about) = facts.functions.get_mut(extra_function) {
        // One more than any kernel has: where fentry works, the verifier refuses to read it.
        about.arguments = Some(5);
    }
    let targets = Targets::Pids(vec![std::process::id()]);
    let mut tracer = Tracer::start(&mut plan, &facts, &settings(64, targets)).expect("the others work");
    tracer.activate().expect("the globals are mapped");
    tracer.deactivate().expect("the globals are mapped");
    let capture = tracer.collect(now_ns()).expect("the maps can be read");
    assert_eq!(capture.events.hooks_attached, others as u64, "all the others are attached");
    (plan, capture)
}

fn struck(plan: &Plan) -> &Hook {
    let hook = plan.hooks.last().expect("the hook is still listed");
    assert_eq!(hook.backend, None);
    assert!(hook.blind.is_some(), "what is not seen without it is said: {hook:?}");
    hook
}

#[test]
#[ignore = "needs root"]
fn a_hook_that_the_kernel_refuses_to_load_is_skipped_and_the_others_work() {
    let (plan, _) = started_with(Hook {
        function: "rwsem_down_write_slowpath",
        variant: None,
        families: vec![crate::model::Family::Rwsem],
        backend: Some(Backend::Fentry),
        reason: "a trial load worked".into(),
        blind: None,
    });
    let reason = &struck(&plan).reason;
    assert!(reason.starts_with("Failed to load rwsem_down_write_slowpath__f"), "{reason}");
}

#[test]
#[ignore = "needs root"]
fn a_hook_that_cannot_be_attached_is_skipped_and_the_others_work() {
    let (plan, _) = started_with(Hook {
        function: "up",
        variant: Some("no_function_of_any_kernel".into()),
        families: vec![crate::model::Family::Semaphore],
        backend: Some(Backend::Kprobe),
        reason: "single".into(),
        blind: None,
    });
    let reason = &struck(&plan).reason;
    assert!(reason.starts_with("Failed to attach up: "), "{reason}");
}
