use super::*;
use crate::model::{
    EndReason, EventCounts, Frame, Function, FutexClass, FutexValue, FutexWords, Hist, HoldStats, InFlight,
    Meta, Owners, ParkToken, SCHEMA, Side, Site, Space, Stack, Target, TargetKind, Thread, WaitStats, Wakes,
};
use FutexKind::*;
use FutexOp::{Wait, WaitBitset};
use FutexValue::{AllOnes, Five, MuslBusy, Negative, One, OwnedByThread, Seven, Three, Two, Zero};

const PID: u32 = 7;
const ADDR: u64 = 0x1000;

fn profile(locks: Vec<Lock>) -> Profile {
    Profile {
        schema: SCHEMA.into(),
        meta: Meta {
            version: String::new(),
            command: Vec::new(),
            hostname: String::new(),
            kernel: String::new(),
            arch: String::new(),
            cpus: 1,
            start_unix_s: 0,
            duration_ns: 0,
            target: Target {
                kind: TargetKind::System,
                pids: Vec::new(),
                comms: Vec::new(),
                command: Vec::new(),
                exit_status: None,
            },
            ended_by: EndReason::Duration,
            hold: false,
            hold_families: vec![],
        },
        plan: Vec::new(),
        events: EventCounts::default(),
        losses: Vec::new(),
        locks,
        stacks: Vec::new(),
        frames: Vec::new(),
        naming: None,
    }
}

/// Private, without a timeout, on the heap.
fn call(op: FutexOp, value: FutexValue) -> FutexCall {
    FutexCall {
        op,
        private: true,
        realtime: false,
        timeout: false,
        value,
        place: FutexPlace::Elsewhere,
        words: FutexWords::default(),
        compat: false,
    }
}

/// FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME: glibc waiting without a timeout.
fn clocked(value: FutexValue) -> FutexCall {
    FutexCall { realtime: true, ..call(WaitBitset, value) }
}

fn timed(call: FutexCall) -> FutexCall {
    FutexCall { timeout: true, ..call }
}

fn shared(call: FutexCall) -> FutexCall {
    FutexCall { private: false, ..call }
}

fn own_stack(call: FutexCall) -> FutexCall {
    FutexCall { place: FutexPlace::OwnStack, ..call }
}

fn with(call: FutexCall, set: impl Fn(&mut FutexWords)) -> FutexCall {
    let mut call = call;
    set(&mut call.words);
    call
}

fn wait_of(contended: u64, each_ns: u64) -> WaitStats {
    WaitStats {
        contended,
        wait_total_ns: contended * each_ns,
        wait_min_ns: Some(each_ns).filter(|_| contended > 0),
        wait_max_ns: Some(each_ns).filter(|_| contended > 0),
        ..WaitStats::default()
    }
}

/// Ten waits at each site by several threads; woken one by one.
fn row(addr: u64, calls: &[FutexCall]) -> Lock {
    let mut lock = Lock::new(LockKind::Futex, addr, Some(PID));
    lock.several_waiters = true;
    lock.wakes = Some(Wakes { calls: 10, woken: 10, all: 0 });
    for (index, call) in calls.iter().enumerate() {
        let wait = wait_of(10, 100 + index as u64);
        lock.wait.merge(&wait);
        lock.sites.push(Site {
            pid: PID,
            kernel_stack: StackRef::NotTaken,
            user_stack: StackRef::NotTaken,
            futex: Some(*call),
            wait,
        });
    }
    lock.hist = Some(Hist::from_values((0..lock.wait.contended).map(|_| 100)));
    lock
}

fn woken_all(mut lock: Lock) -> Lock {
    lock.wakes = Some(Wakes { calls: 3, woken: 9, all: 3 });
    lock
}

fn alone(mut lock: Lock) -> Lock {
    lock.several_waiters = false;
    lock
}

fn held(mut lock: Lock) -> Lock {
    lock.contended_hold = Some(HoldStats { acquired: 5, holds: 5, hold_total_ns: 9, hold_max_ns: Some(2) });
    lock
}

fn placed(mut lock: Lock, place: LockPlace) -> Lock {
    lock.place = Some(place);
    lock
}

/// `module!function; …`, the leaf first.
fn stack(profile: &mut Profile, text: &str) -> StackRef {
    let mut stack = Stack { frames: Vec::new(), incomplete: false };
    for part in text.split("; ") {
        let (module, name) = part.split_once('!').unwrap_or(("app", part));
        let mut frame = Frame::unsymbolized(Space::User, Some(PID), 0x40, false);
        frame.module = Some(module.into());
        if name != "?" {
            frame.functions = vec![Function { name: name.into(), file: None, line: None }];
        }
        profile.frames.push(frame);
        stack.frames.push(profile.frames.len() as u32 - 1);
    }
    profile.stacks.push(stack);
    StackRef::Stack(profile.stacks.len() as u32 - 1)
}

fn runtimes(runtime: Runtime) -> Runtimes {
    Runtimes(BTreeMap::from([(PID, runtime)]))
}

fn libc(libc: Libc) -> Runtime {
    Runtime { libc, ..Runtime::default() }
}

type Found = (FutexKind, Option<Side>, u64);

fn found(profile: &Profile) -> Vec<Found> {
    let mut found: Vec<Found> = profile
        .locks
        .iter()
        .map(|lock| {
            let futex = lock.futex.expect("every futex row says what it is");
            assert_eq!(futex.class, futex.kind.class());
            (futex.kind, futex.side, lock.addr)
        })
        .collect();
    found.sort();
    found
}

fn judged(lock: Lock, runtime: Runtime) -> Vec<Found> {
    let mut profile = profile(vec![lock]);
    classify(&mut profile, &runtimes(runtime));
    found(&profile)
}

fn kind(lock: Lock, runtime: Runtime) -> FutexKind {
    let found = judged(lock, runtime);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].0
}

/// One site with this stack.
fn kind_at(call: FutexCall, text: &str, runtime: Runtime) -> FutexKind {
    let mut profile = profile(vec![row(ADDR, &[call])]);
    profile.locks[0].sites[0].user_stack = stack(&mut profile, text);
    classify(&mut profile, &runtimes(runtime));
    found(&profile)[0].0
}

fn glibc_mutex() -> FutexCall {
    with(call(Wait, Two), |words| words.glibc_mutex = true)
}

const GLIBC: Runtime =
    Runtime { libc: Libc::Glibc, go: false, hotspot: false, python: false, openmp: false, rust: false };
const MUSL: Runtime = Runtime { libc: Libc::Musl, ..GLIBC };
const UNKNOWN: Runtime = Runtime { libc: Libc::Unknown, ..GLIBC };

#[test]
fn mapped_files_tell_the_runtime() {
    let of = |names: &[&str]| Runtime::of_files(names.iter().copied());
    assert_eq!(of(&["/lib/x86_64-linux-gnu/libc.so.6", "app"]), libc(Libc::Glibc));
    assert_eq!(of(&["libc-2.31.so"]).libc, Libc::Glibc);
    assert_eq!(of(&["/lib/ld-musl-x86_64.so.1"]), libc(Libc::Musl));
    assert_eq!(of(&["libc.musl-x86_64.so.1", "libc.so.6"]).libc, Libc::Musl, "gcompat maps both");
    assert_eq!(of(&["a.out", "[heap]"]), UNKNOWN);
    let java = of(&["/usr/lib/jvm/lib/server/libjvm.so", "libgomp.so.1.0.0", "python3.11"]);
    assert!(java.hotspot && java.openmp && java.python && !java.go);
}

#[test]
fn lock_pi_is_a_pi_mutex_and_requeue_pi_a_condition() {
    let mut lock = row(ADDR, &[call(FutexOp::LockPi, FutexValue::Other)]);
    lock.kind = LockKind::FutexPi;
    assert_eq!(kind(lock, MUSL), PiMutex);
    assert_eq!(kind(row(ADDR, &[call(FutexOp::WaitRequeuePi, Zero)]), GLIBC), GlibcCond);
    assert_eq!(kind(row(ADDR, &[call(FutexOp::Waitv, Two)]), GLIBC), Waitv);
}

#[test]
fn a_probe_for_pi_that_never_waited_is_no_row() {
    let probe = || {
        let mut lock = row(ADDR, &[own_stack(call(FutexOp::LockPi, Zero))]);
        lock.kind = LockKind::FutexPi;
        lock.sites[0].wait = WaitStats::default();
        lock.wait = WaitStats::default();
        lock
    };
    assert_eq!(judged(probe(), GLIBC), []);
    let mut waited = probe();
    waited.wait.aborted = 1;
    waited.wait.aborted_total_ns = 5;
    assert_eq!(kind(waited, GLIBC), PiMutex);
}

#[test]
fn one_site_that_saw_the_owner_makes_all_waits_for_2_a_glibc_mutex() {
    let unlucky = call(Wait, Two);
    let clock = timed(clocked(Two));
    assert_eq!(judged(row(ADDR, &[unlucky, glibc_mutex(), clock]), GLIBC), [(GlibcMutex, None, ADDR)]);
    assert_eq!(kind(row(ADDR, &[glibc_mutex()]), UNKNOWN), GlibcMutex, "in a static program");
    assert_eq!(kind(row(ADDR, &[shared(glibc_mutex())]), GLIBC), GlibcMutex);
    assert_eq!(kind(row(ADDR, &[own_stack(glibc_mutex())]), GLIBC), GlibcMutex);
}

#[test]
fn robust_and_ceiling_mutexes_are_told_by_the_value() {
    assert_eq!(kind(row(ADDR, &[call(Wait, OwnedByThread)]), GLIBC), GlibcRobustMutex);
    let words = with(call(Wait, OwnedByThread), |words| words.glibc_mutex = true);
    assert_eq!(kind(row(ADDR, &[words]), UNKNOWN), GlibcRobustMutex);
    assert_eq!(kind(row(ADDR, &[call(Wait, FutexValue::Ceiling)]), GLIBC), GlibcCeilingMutex);
}

#[test]
fn a_wait_for_2_without_an_owner_is_libc_s_own_only_if_libc_says_so() {
    let bare = call(Wait, Two);
    assert_eq!(kind(row(ADDR, &[bare]), GLIBC), MutexLike);
    let place = LockPlace::Global { module: "libc.so.6".into(), symbol: "main_arena".into(), offset: 0 };
    assert_eq!(kind(placed(row(ADDR, &[bare]), place), GLIBC), GlibcInternal);
    let at = |text| kind_at(bare, text, GLIBC);
    assert_eq!(
        at("libc.so.6!__lll_lock_wait_private; libc.so.6!_int_free; libc.so.6!free; work"),
        GlibcInternal
    );
    assert_eq!(at("libc.so.6!__lll_lock_wait_private; libc.so.6!_IO_puts; main"), GlibcInternal);
    assert_eq!(at("libtcmalloc.so.4!malloc; main"), MutexLike, "whose spinlock sleeps at 2");
    assert_eq!(
        at("libc.so.6!__lll_lock_wait_private; libc.so.6!?; main"),
        MutexLike,
        "a stripped libc's only name"
    );
    assert_eq!(at("libc.so.6!__lll_lock_wait; libc.so.6!pthread_mutex_lock; main"), GlibcMutex);
    assert_eq!(kind_at(bare, "libc.so.6!__lll_lock_wait; libc.so.6!malloc; main", MUSL), MutexLike);
}

#[test]
fn the_mutex_of_a_condition_variable_taken_again_is_a_mutex() {
    let text =
        "libc.so.6!__lll_lock_wait; libc.so.6!__pthread_mutex_cond_lock; libc.so.6!pthread_cond_wait; main";
    assert_eq!(kind_at(call(Wait, Two), text, GLIBC), GlibcMutex);
    let rust = "std::sys::sync::mutex::futex::Mutex::lock_contended; std::sys::sync::condvar::futex::Condvar::wait; main";
    assert_eq!(kind_at(call(WaitBitset, Two), rust, UNKNOWN), RustMutex);
}

#[test]
fn both_words_of_a_glibc_rwlock_lead_to_its_address() {
    let phase = |value| with(clocked(value), |words| words.glibc_rwlock_phase = true);
    let writers = |value| with(clocked(value), |words| words.glibc_rwlock_writers = true);
    let mut profile =
        profile(vec![row(ADDR + 8, &[phase(Three), phase(Two)]), row(ADDR + 12, &[writers(Three)])]);
    classify(&mut profile, &runtimes(GLIBC));
    let both = [(GlibcRwlock, Some(Side::Read), ADDR), (GlibcRwlock, Some(Side::Write), ADDR)];
    assert_eq!(found(&profile), both, "the first writer and those behind it are one row");
    let waits: u64 = profile.locks.iter().map(|lock| lock.wait.contended).sum();
    assert_eq!(waits, 30);
}

#[test]
fn words_that_fit_both_parts_of_a_rwlock_are_told_apart_by_alignment() {
    let both = with(clocked(Three), |words| {
        words.glibc_rwlock_phase = true;
        words.glibc_rwlock_writers = true;
    });
    assert_eq!(judged(row(ADDR + 8, &[both]), GLIBC), [(GlibcRwlock, Some(Side::Read), ADDR)]);
    assert_eq!(judged(row(ADDR + 12, &[both]), GLIBC), [(GlibcRwlock, Some(Side::Write), ADDR)]);
}

#[test]
fn the_two_groups_of_a_glibc_cond_are_one_row() {
    let cond = with(clocked(Zero), |words| words.glibc_cond = true);
    let mut profile =
        profile(vec![row(ADDR + 0x28, &[cond]), woken_all(row(ADDR + 0x2c, &[cond, timed(cond)]))]);
    classify(&mut profile, &runtimes(GLIBC));
    assert_eq!(found(&profile), [(GlibcCond, None, ADDR + 0x28)]);
    assert_eq!(profile.locks[0].wait.contended, 30);
    assert_eq!(profile.locks[0].addresses, 1);
    let old = with(call(Wait, Zero), |words| words.glibc_cond = true);
    assert_eq!(kind(row(ADDR, &[old]), GLIBC), GlibcCond, "to 2.32");
    assert_eq!(kind(row(ADDR, &[clocked(Zero)]), GLIBC), GlibcCond, "whose words were not read");
    assert_eq!(
        kind(row(ADDR, &[clocked(FutexValue::Other)]), GLIBC),
        GlibcCond,
        "a count of signals, from 2.41"
    );
}

#[test]
fn semaphores_barriers_joins_and_once_of_glibc() {
    let sem = with(clocked(Zero), |words| words.glibc_sem = true);
    assert_eq!(kind(row(ADDR, &[sem]), GLIBC), GlibcSem);
    let barrier = with(call(Wait, Two), |words| words.glibc_barrier = true);
    assert_eq!(kind(woken_all(row(ADDR, &[barrier])), GLIBC), GlibcBarrier, "round 2");
    assert_eq!(kind(alone(row(ADDR, &[shared(clocked(FutexValue::Thread))])), GLIBC), Join);
    assert_eq!(kind(alone(row(ADDR, &[shared(call(Wait, FutexValue::Thread))])), GLIBC), Join, "2.31");
    let gone = with(shared(clocked(FutexValue::Other)), |words| words.glibc_cond = true);
    assert_eq!(
        kind(alone(row(ADDR, &[gone])), GLIBC),
        Join,
        "of a thread that is gone when its number is read"
    );
    assert_eq!(kind(woken_all(row(ADDR, &[call(Wait, One)])), GLIBC), GlibcOnce);
    assert_ne!(kind(row(ADDR, &[call(Wait, One)]), GLIBC), GlibcOnce, "woken one by one");
}

#[test]
fn a_rust_mutex_waits_for_2_and_nothing_else() {
    assert_eq!(kind(row(ADDR, &[call(WaitBitset, Two)]), UNKNOWN), RustMutex);
}

#[test]
fn a_condvar_whose_counter_passes_two_is_no_mutex() {
    let counter: Vec<_> =
        [Zero, One, Two, Three, FutexValue::Other].map(|value| call(WaitBitset, value)).into();
    assert_eq!(judged(row(ADDR, &counter), UNKNOWN), [(RustCondvar, None, ADDR)]);
    assert_eq!(kind(woken_all(row(ADDR, &[call(WaitBitset, Two)])), UNKNOWN), RustCondvar, "notify_all");
    assert_eq!(kind(row(ADDR, &[timed(call(WaitBitset, Two))]), UNKNOWN), RustCondvar, "wait_timeout");
}

#[test]
fn both_sides_of_a_rust_rwlock_lead_to_its_address() {
    let writer = with(call(WaitBitset, Two), |words| words.rust_rwlock_writers = true);
    assert_eq!(judged(row(ADDR + 4, &[writer]), UNKNOWN), [(RustRwlock, Some(Side::Write), ADDR)]);
    let readers = [call(WaitBitset, FutexValue::Bit30), call(WaitBitset, Negative)];
    assert_eq!(judged(woken_all(row(ADDR, &readers)), UNKNOWN), [(RustRwlock, Some(Side::Read), ADDR)]);
}

#[test]
fn rust_s_park_and_once_are_no_locks() {
    assert_eq!(kind(alone(row(ADDR, &[call(WaitBitset, AllOnes)])), GLIBC), RustPark);
    assert_eq!(kind(alone(row(ADDR, &[timed(call(WaitBitset, AllOnes))])), GLIBC), RustPark);
    let once = [call(WaitBitset, Five), call(WaitBitset, Seven)];
    assert_eq!(kind(woken_all(row(ADDR, &once)), GLIBC), RustOnce);
    assert_eq!(kind(row(ADDR, &once[..1]), GLIBC), RustCondvar, "a counter at 5, woken one by one");
}

#[test]
fn names_of_rust_s_std_decide_over_values() {
    let at = |value, text| kind_at(call(WaitBitset, value), text, UNKNOWN);
    assert_eq!(at(Two, "std::sys::sync::condvar::futex::Condvar::wait_optional_timeout; main"), RustCondvar);
    assert_eq!(at(Zero, "<std::sys::sync::rwlock::futex::RwLock>::write_contended; main"), RustRwlock);
    assert_eq!(at(Three, "std::sys_common::once::futex::Once::call; main"), RustOnce);
    assert_eq!(at(Two, "std::sys::unix::locks::futex_mutex::Mutex::lock_contended; main"), RustMutex);
    assert_eq!(at(AllOnes, "syscall; std::thread::park; main"), RustPark);
}

#[test]
fn a_name_beyond_the_application_is_about_another_wait() {
    let text = "app::wait_for_turn; app::init; std::sys::sync::once::futex::Once::call; main";
    assert_eq!(kind_at(call(WaitBitset, Two), text, UNKNOWN), RustMutex);
}

#[test]
fn what_parking_lot_parked_is_told_by_token_and_history() {
    let parked = |token| with(call(Wait, One), |words| words.parked = Some(token));
    let (mutex, maybe) = (parked(ParkToken::Mutex), parked(ParkToken::MutexOrCondvar));
    assert_eq!(judged(row(ADDR, &[mutex, maybe]), UNKNOWN), [(ParkingLotMutex, None, ADDR)]);
    assert_eq!(kind(row(ADDR, &[maybe]), UNKNOWN), ParkingLotCondvar, "no mutex was ever seen");
    let condvar = "parking_lot::condvar::Condvar::wait_until_internal; main";
    assert_eq!(kind_at(mutex, condvar, UNKNOWN), ParkingLotCondvar);
    assert_eq!(kind_at(maybe, "parking_lot::raw_mutex::RawMutex::lock_slow; main", UNKNOWN), ParkingLotMutex);
}

#[test]
fn the_writer_that_waits_for_readers_is_at_the_lock_too() {
    let parked = |token| with(call(Wait, One), |words| words.parked = Some(token));
    let (read, write) = (parked(ParkToken::Read), parked(ParkToken::Write));
    let mut profile = profile(vec![row(ADDR, &[read, write]), row(ADDR | 1, &[write])]);
    classify(&mut profile, &runtimes(UNKNOWN));
    let both = [(ParkingLotRwlock, Some(Side::Read), ADDR), (ParkingLotRwlock, Some(Side::Write), ADDR)];
    assert_eq!(found(&profile), both);
}

#[test]
fn go_s_notes_are_idle_and_its_runtime_locks_are_not() {
    let go = Runtime { go: true, ..UNKNOWN };
    assert_eq!(kind(row(ADDR, &[call(Wait, Zero)]), go), GoNote);
    assert_eq!(kind(row(ADDR, &[timed(call(Wait, Zero))]), go), GoNote);
    assert_eq!(kind(row(ADDR, &[call(Wait, AllOnes)]), go), GoRuntimeLock);
    assert_eq!(kind(row(ADDR, &[call(Wait, Two)]), go), GoRuntimeLock);
    assert_eq!(kind(row(ADDR, &[glibc_mutex()]), Runtime { go: true, ..GLIBC }), GlibcMutex, "in cgo");
    assert_eq!(
        kind_at(call(Wait, Zero), "runtime.futex; runtime.futexsleep; runtime.notesleep; main.main", UNKNOWN),
        GoNote
    );
}

#[test]
fn musl_s_mutexes_begin_a_word_before_the_futex() {
    assert_eq!(judged(row(ADDR + 4, &[call(Wait, MuslBusy)]), UNKNOWN), [(MuslMutex, None, ADDR)]);
    assert_eq!(judged(row(ADDR + 4, &[call(Wait, OwnedByThread)]), MUSL), [(MuslMutex, None, ADDR)]);
}

#[test]
fn musl_s_conditions_barriers_joins_and_once_are_no_locks() {
    assert_eq!(kind(alone(row(ADDR, &[own_stack(call(Wait, Two))])), MUSL), MuslCond);
    assert_eq!(kind(placed(row(ADDR, &[call(Wait, Zero)]), LockPlace::Stack), MUSL), MuslBarrier);
    assert_eq!(kind(alone(row(ADDR, &[call(Wait, Two)])), MUSL), Join);
    assert_eq!(kind(row(ADDR, &[call(Wait, Two)]), MUSL), MutexLike, "which several threads wait for");
    assert_eq!(kind(row(ADDR, &[call(Wait, Three)]), MUSL), MuslOnce);
}

#[test]
fn musl_s_own_locks() {
    assert_eq!(kind(row(ADDR, &[shared(call(Wait, FutexValue::Thread))]), MUSL), MuslInternal, "__tl_lock");
    let list = |symbol: &str| LockPlace::Global { module: "app".into(), symbol: symbol.into(), offset: 0 };
    let gone = || alone(row(ADDR, &[shared(call(Wait, FutexValue::Other))]));
    assert_eq!(kind(placed(gone(), list("__thread_list_lock")), MUSL), MuslInternal, "its thread is gone");
    assert_ne!(kind(placed(gone(), list("my_word")), MUSL), MuslInternal);
    assert_eq!(kind(row(ADDR, &[call(Wait, FutexValue::Bit30)]), MUSL), MuslInternal, "a FILE");
    assert_eq!(kind(row(ADDR, &[call(Wait, Negative)]), MUSL), MuslInternal, "__lock");
}

#[test]
fn musl_s_semaphore_and_rwlock_are_told_apart_by_history_or_not_at_all() {
    let ones = call(Wait, AllOnes);
    assert_eq!(kind(row(ADDR, &[ones]), MUSL), MuslSem);
    assert_eq!(kind(woken_all(row(ADDR, &[ones])), MUSL), MuslRwlock);
    assert_eq!(kind(row(ADDR, &[ones, call(Wait, Negative)]), MUSL), MuslRwlock);
    assert_eq!(kind(row(ADDR, &[call(Wait, FutexValue::Bit31)]), MUSL), MuslSem);
    let mut silent = row(ADDR, &[ones]);
    silent.wakes = None;
    assert_eq!(kind(silent, MUSL), Unknown);
    assert_eq!(kind_at(ones, "ld-musl-x86_64.so.1!pthread_rwlock_rdlock; main", MUSL), MuslRwlock);
}

#[test]
fn stacks_name_what_is_built_on_conditions_and_semaphores() {
    let cond = with(clocked(Zero), |words| words.glibc_cond = true);
    let at = |text: &str| kind_at(cond, text, GLIBC);
    let park = "libc.so.6!pthread_cond_wait; libjvm.so!os::PlatformEvent::park()";
    assert_eq!(at(&format!("{park}; libjvm.so!ObjectMonitor::EnterI(JavaThread*); ?")), HotspotMonitor);
    assert_eq!(at(&format!("{park}; libjvm.so!ObjectMonitor::wait(long, bool, JavaThread*)")), HotspotPark);
    assert_eq!(
        at("libc.so.6!pthread_cond_timedwait; libjvm.so!Parker::park(bool, long); Unsafe_Park"),
        HotspotPark
    );
    assert_eq!(
        at("libc.so.6!pthread_cond_timedwait; python3.11!take_gil; python3.11!PyEval_RestoreThread"),
        PythonGil
    );
    let sem = with(own_stack(clocked(Zero)), |words| words.glibc_sem = true);
    let text = "libc.so.6!sem_wait; python3.13!_PySemaphore_Wait; python3.13!_PyParkingLot_Park; python3.13!_PyMutex_LockTimed";
    assert_eq!(kind_at(sem, text, GLIBC), PythonMutex);
}

#[test]
fn an_abseil_mutex_is_told_from_its_conditions_by_what_was_called() {
    let at = |text: &str| {
        let text = format!("syscall; AbslInternalPerThreadSemWait_lts_20230802; {text}; main");
        kind_at(clocked(Zero), &text, UNKNOWN)
    };
    assert_eq!(
        at(
            "absl::lts_20230802::Mutex::Block(x*); absl::lts_20230802::Mutex::LockSlowLoop(x); absl::lts_20230802::Mutex::Lock()"
        ),
        AbseilMutex
    );
    assert_eq!(at("absl::Mutex::LockSlowLoop(x)"), AbseilMutex, "tail calls left no more");
    assert_eq!(at("absl::CondVar::WaitCommon(absl::Mutex*); absl::CondVar::Wait(absl::Mutex*)"), AbseilWait);
    assert_eq!(
        at("absl::Mutex::LockSlowLoop(x); absl::Mutex::Trans(x); absl::CondVar::WaitCommon(x)"),
        AbseilMutex,
        "taken again"
    );
    assert_eq!(
        at("absl::Mutex::Block(x); absl::Mutex::LockSlowLoop(x); absl::Mutex::LockWhen(c)"),
        AbseilWait
    );
    assert_eq!(at("absl::Mutex::Block(x); absl::Mutex::AwaitCommon(c)"), AbseilWait);
}

#[test]
fn openmp_and_atomic_waits_are_told_by_name_or_runtime() {
    let any = call(Wait, FutexValue::Other);
    assert_eq!(kind_at(any, "libgomp.so.1!gomp_barrier_wait_end; work", GLIBC), OpenmpBarrier);
    assert_eq!(kind_at(call(Wait, AllOnes), "libgomp.so.1!gomp_mutex_lock_slow; work", GLIBC), OpenmpLock);
    let openmp = Runtime { openmp: true, ..GLIBC };
    assert_eq!(kind(row(ADDR, &[call(Wait, AllOnes)]), openmp), OpenmpLock);
    assert_eq!(kind(woken_all(row(ADDR, &[any])), openmp), OpenmpBarrier);
    let libstdcpp = "syscall; void std::__atomic_wait_address_v<int>(int const*); main";
    assert_eq!(kind_at(any, libstdcpp, GLIBC), CppAtomicWait);
    let libcpp = "libc++.so.1!std::__1::__libcpp_atomic_wait(void const volatile*, long); main";
    assert_eq!(kind_at(timed(any), libcpp, GLIBC), CppAtomicWait);
}

#[test]
fn what_no_rule_fits_is_judged_by_how_it_is_used() {
    let any = || row(ADDR, &[call(Wait, FutexValue::Other)]);
    assert_eq!(kind(any(), UNKNOWN), Unknown);
    assert_eq!(kind(alone(any()), UNKNOWN), Parker);
    assert_eq!(kind(held(any()), UNKNOWN), MutexLike);
    assert_eq!(kind(woken_all(held(any())), UNKNOWN), Unknown, "no mutex is given to everybody");
    assert_eq!(kind(row(ADDR, &[own_stack(call(Wait, FutexValue::Other))]), UNKNOWN), OwnStack);
    assert_eq!(kind(row(ADDR, &[call(Wait, Two)]), UNKNOWN), MutexLike);
    assert_eq!(kind(row(ADDR, &[call(Wait, Two), call(Wait, Three)]), UNKNOWN), Unknown, "a counter");
    let mut owned = any();
    let thread = Thread { pid: PID, tid: PID, comm: "x".into() };
    owned.owners = Some(Owners { nobody: 0, readers: 0, tasks: vec![(thread, 3)] });
    assert_eq!(kind(owned, UNKNOWN), MutexLike, "whose word names a thread");
}

fn in_flight(call: Option<FutexCall>) -> InFlight {
    InFlight {
        pid: PID,
        tid: PID,
        comm: "x".into(),
        age_ns: 50,
        owner: None,
        kernel_stack: StackRef::NotTaken,
        user_stack: StackRef::NotTaken,
        futex: call,
        from_before: call.is_none(),
    }
}

#[test]
fn a_wait_whose_call_was_not_seen_is_what_the_others_are() {
    for unseen in [None, Some(call(FutexOp::Other, FutexValue::Other))] {
        let mut lock = row(ADDR + 4, &[call(Wait, MuslBusy)]);
        lock.in_flight.push(in_flight(unseen));
        assert_eq!(judged(lock, UNKNOWN), [(MuslMutex, None, ADDR)]);
        let mut lone = row(ADDR, &[]);
        lone.in_flight.push(in_flight(unseen));
        assert_eq!(judged(lone.clone(), UNKNOWN), [(Unknown, None, ADDR)]);
        lone.kind = LockKind::FutexPi;
        assert_eq!(judged(lone, UNKNOWN), [(PiMutex, None, ADDR)]);
    }
}

#[test]
fn only_waits_in_flight_are_judged_too() {
    let mut lock = row(ADDR, &[]);
    lock.in_flight.push(in_flight(Some(glibc_mutex())));
    assert_eq!(judged(lock, GLIBC), [(GlibcMutex, None, ADDR)]);
}

#[test]
fn an_address_that_was_two_things_is_two_rows_and_the_lock_has_the_owners() {
    let cond = with(clocked(Zero), |words| words.glibc_cond = true);
    let mut lock = held(row(ADDR, &[glibc_mutex(), cond, cond]));
    lock.sites[2].kernel_stack = StackRef::Lost;
    lock.owners = Some(Owners { nobody: 4, ..Owners::default() });
    lock.in_flight.push(in_flight(Some(cond)));
    let mut profile = profile(vec![lock]);
    classify(&mut profile, &runtimes(GLIBC));
    assert_eq!(found(&profile), [(GlibcMutex, None, ADDR), (GlibcCond, None, ADDR)]);
    let of =
        |kind| profile.locks.iter().find(|lock| lock.futex.is_some_and(|futex| futex.kind == kind)).unwrap();
    let (mutex, cond) = (of(GlibcMutex), of(GlibcCond));
    assert_eq!((mutex.wait.contended, cond.wait.contended), (10, 20));
    assert!(mutex.owners.is_some() && mutex.wakes.is_some() && mutex.contended_hold.is_some());
    assert!(cond.owners.is_none() && cond.wakes.is_none() && cond.contended_hold.is_none());
    assert_eq!((&mutex.hist, &cond.hist), (&None, &None), "nobody knows whose the buckets are");
    assert_eq!((mutex.in_flight.len(), cond.in_flight.len()), (0, 1));
}

#[test]
fn totals_keep_the_classes_apart() {
    let mut idle = row(ADDR * 2, &[call(WaitBitset, AllOnes)]);
    idle.in_flight.push(in_flight(Some(call(WaitBitset, AllOnes))));
    let mut kernel = Lock::new(LockKind::Mutex, ADDR, None);
    kernel.wait = wait_of(3, 7);
    let mut profile = profile(vec![row(ADDR, &[glibc_mutex()]), idle, kernel]);
    classify(&mut profile, &runtimes(GLIBC));
    let totals =
        [FutexClass::Lock, FutexClass::Idle, FutexClass::Once].map(|class| profile.weight_ns_of(class));
    assert_eq!(totals, [1000 + 3 * 7, 1050, 0], "a kernel lock is a lock");
}

#[test]
fn the_histogram_stays_with_all_contended_waits() {
    let mut lock = row(ADDR, &[glibc_mutex()]);
    lock.in_flight.push(in_flight(Some(call(FutexOp::Waitv, Zero))));
    let mut profile = profile(vec![lock]);
    classify(&mut profile, &runtimes(GLIBC));
    let hists: Vec<_> = profile.locks.iter().map(|lock| (lock.wait.contended, lock.hist.is_some())).collect();
    assert_eq!(hists, [(10, true), (0, false)]);
}

#[test]
fn waits_whose_sites_were_lost_stay_in_the_sums() {
    let mut lock = row(ADDR, &[glibc_mutex(), call(FutexOp::Waitv, Zero)]);
    lock.wait.merge(&wait_of(5, 9));
    let total = lock.wait;
    let mut profile = profile(vec![lock]);
    classify(&mut profile, &runtimes(GLIBC));
    let mut sum = WaitStats::default();
    profile.locks.iter().for_each(|lock| sum.merge(&lock.wait));
    assert_eq!(sum, total);
}

fn shared_place(inode: u64, offset: u64) -> LockPlace {
    LockPlace::Shared { dev: "00:01".into(), inode, offset, path: "/dev/shm/x".into() }
}

#[test]
fn a_lock_that_processes_share_is_one_row() {
    // Only the owner's own process sees that a thread owns it.
    let mut other = placed(row(ADDR * 2 + 4, &[shared(call(Wait, MuslBusy))]), shared_place(3, 0x44));
    other.pid = Some(PID + 1);
    other.wait.merge(&wait_of(1, 9));
    let mine = placed(row(ADDR + 4, &[shared(call(Wait, MuslBusy))]), shared_place(3, 0x44));
    let elsewhere = placed(row(ADDR + 0x104, &[shared(call(Wait, MuslBusy))]), shared_place(4, 0x44));
    let mut profile = profile(vec![mine, other, elsewhere]);
    classify(&mut profile, &runtimes(UNKNOWN));
    let rows: Vec<_> = profile
        .locks
        .iter()
        .map(|lock| (lock.pid, lock.addr, lock.wait.contended, lock.place.clone()))
        .collect();
    let expected = [
        (None, ADDR * 2, 21, Some(shared_place(3, 0x40))),
        (Some(PID), ADDR + 0x100, 10, Some(shared_place(4, 0x40))),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn a_shared_mutex_whose_owner_one_process_sees_is_a_glibc_mutex_in_both() {
    let mine = placed(row(ADDR, &[shared(glibc_mutex())]), shared_place(3, 0));
    let mut other = placed(row(ADDR * 2, &[shared(call(Wait, Two))]), shared_place(3, 0));
    other.pid = Some(PID + 1);
    let mut profile = profile(vec![mine, other]);
    classify(&mut profile, &runtimes(GLIBC));
    assert_eq!(profile.locks.len(), 1);
    assert_eq!((profile.locks[0].pid, profile.locks[0].wait.contended), (None, 20));
}

#[test]
fn locks_on_the_heap_are_one_row_for_each_call_site_and_process() {
    let at = |addr, pid, site: Option<&str>, place| {
        let mut lock = row(addr, &[glibc_mutex()]);
        (lock.pid, lock.call_site, lock.place) = (Some(pid), site.map(String::from), place);
        lock
    };
    let mut heavy = at(0x3000, PID, Some("insert"), Some(LockPlace::Heap));
    heavy.wait.merge(&wait_of(1, 1));
    let mut profile = profile(vec![
        at(0x1000, PID, Some("insert"), Some(LockPlace::Heap)),
        at(0x2000, PID, Some("insert"), Some(LockPlace::Heap)),
        heavy,
        at(0x4000, PID, Some("remove"), Some(LockPlace::Heap)),
        at(0x5000, PID + 1, Some("insert"), Some(LockPlace::Heap)),
        at(0x6000, PID, Some("insert"), Some(LockPlace::Stack)),
        at(0x7000, PID, None, None),
        at(0x8000, PID, None, None),
        at(0x9000, PID, Some("insert"), None),
    ]);
    classify(&mut profile, &runtimes(GLIBC));
    let mut rows: Vec<_> =
        profile.locks.iter().map(|lock| (lock.addr, lock.addresses, lock.wait.contended)).collect();
    rows.sort();
    let singles = [0x4000, 0x5000, 0x6000, 0x7000, 0x8000, 0x9000].map(|addr| (addr, 1, 10));
    let mut expected = vec![(0x3000, 3, 31)];
    expected.extend(singles);
    assert_eq!(rows, expected, "unknown call sites and places are no identity");
    assert_eq!(profile.locks[0].place, Some(LockPlace::Heap));
}

#[test]
fn the_name_and_place_follow_the_address() {
    let place = |offset| LockPlace::Global { module: "app".into(), symbol: "big".into(), offset };
    let mut lock = placed(row(ADDR + 4, &[call(Wait, MuslBusy)]), place(4));
    lock.name = Some("app`big+0x4".into());
    let mut profile = profile(vec![lock]);
    classify(&mut profile, &runtimes(UNKNOWN));
    let lock = &profile.locks[0];
    assert_eq!((lock.name.as_deref(), lock.place.clone()), (Some("app`big"), Some(place(0))));
}

#[test]
fn kernel_locks_are_left_alone_and_a_second_pass_changes_nothing() {
    let mut kernel = Lock::new(LockKind::Mutex, 0xffff_8880_0000_1000, None);
    kernel.wait = wait_of(3, 7);
    let mut profile = profile(vec![kernel.clone(), row(ADDR, &[glibc_mutex(), call(FutexOp::Waitv, Zero)])]);
    classify(&mut profile, &runtimes(GLIBC));
    assert!(profile.locks.contains(&kernel));
    let once = profile.clone();
    classify(&mut profile, &runtimes(MUSL));
    assert_eq!(profile, once);
}

/// xorshift64
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn no_input_makes_it_panic_or_lose_a_wait() {
    use FutexOp::*;
    use FutexValue::*;
    let ops = [FutexOp::Wait, FutexOp::WaitBitset, LockPi, WaitRequeuePi, FutexOp::Waitv, FutexOp::Other];
    let values = [
        Zero,
        One,
        Two,
        Three,
        Five,
        Seven,
        AllOnes,
        FutexValue::Thread,
        OwnedByThread,
        MuslBusy,
        Bit31,
        Negative,
        Bit30,
        Ceiling,
        FutexValue::Other,
    ];
    let places = [FutexPlace::OwnStack, FutexPlace::ThreadLocal, FutexPlace::Elsewhere];
    let tokens = [ParkToken::Mutex, ParkToken::MutexOrCondvar, ParkToken::Read, ParkToken::Write];
    let seed = &mut 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..2000 {
        let mut locks = Vec::new();
        for _ in 0..1 + random(seed) % 4 {
            let calls: Vec<FutexCall> = (0..random(seed) % 5)
                .map(|_| {
                    let bits = random(seed);
                    let bit = |n: u32| bits >> n & 1 == 1;
                    FutexCall {
                        op: ops[random(seed) as usize % ops.len()],
                        private: bit(0),
                        realtime: bit(1),
                        timeout: bit(2),
                        value: values[random(seed) as usize % values.len()],
                        place: places[random(seed) as usize % places.len()],
                        words: FutexWords {
                            glibc_mutex: bit(3),
                            glibc_rwlock_phase: bit(4) && bit(20),
                            glibc_rwlock_writers: bit(5) && bit(20),
                            glibc_cond: bit(6) && bit(21),
                            glibc_sem: bit(7) && bit(21),
                            glibc_barrier: bit(8) && bit(22),
                            rust_rwlock_writers: bit(9) && bit(22),
                            parked: (bit(10) && bit(11)).then(|| tokens[random(seed) as usize % 4]),
                        },
                        compat: bit(12),
                    }
                })
                .collect();
            // Near 0, where shifts wrap, and near each other, where rows unite.
            let mut lock = row(random(seed) % 24, &calls);
            let bits = random(seed);
            lock.several_waiters = bits & 1 == 1;
            lock.pid = Some(PID + (bits >> 1 & 1) as u32);
            lock.place =
                [None, Some(LockPlace::Heap), Some(LockPlace::Stack), Some(shared_place(1, bits >> 8 & 4))]
                    [(bits >> 2 & 3) as usize]
                    .clone();
            if bits >> 4 & 1 == 1 {
                lock = held(lock);
            }
            if bits >> 5 & 1 == 1 {
                lock = woken_all(lock);
            }
            lock.call_site = (bits >> 6 & 1 == 1).then(|| "f".into());
            lock.in_flight.extend(calls.first().map(|call| in_flight(Some(*call))));
            for site in &mut lock.sites {
                site.user_stack = StackRef::Stack((random(seed) % 3) as u32);
            }
            locks.push(lock);
        }
        let sums = |profile: &Profile| {
            let waits = profile.locks.iter().map(|lock| lock.wait.contended).sum::<u64>();
            (waits, profile.locks.iter().map(Lock::weight_ns).sum::<u64>())
        };
        let mut profile = profile(locks);
        stack(&mut profile, "libc.so.6!?; main");
        let before = sums(&profile);
        let runtime = Runtime {
            libc: [Libc::Glibc, Libc::Musl, Libc::Unknown][random(seed) as usize % 3],
            go: random(seed).is_multiple_of(4),
            openmp: random(seed).is_multiple_of(4),
            ..UNKNOWN
        };
        classify(&mut profile, &runtimes(runtime));
        assert_eq!(sums(&profile), before);
        assert!(profile.locks.iter().all(|lock| lock.futex.is_some()));
        for lock in &profile.locks {
            let buckets = lock.hist.as_ref().map_or(lock.wait.contended, Hist::count);
            assert_eq!(buckets, lock.wait.contended, "a histogram is of all waits of its row");
        }
    }
}
