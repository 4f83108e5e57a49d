//! Futex waits from begin to the end of the acquisition, and who ended them.

use super::*;
use crate::bpf::load::TargetThread;
use crate::model::{HoldStats, LockId, RawLock, RawStack, RawWait, WaitStats};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

// linux/futex.h
pub(super) const WAIT: u32 = 0;
pub(super) const LOCK_PI: u32 = 6;
pub(super) const WAIT_BITSET: u32 = 9;
pub(super) const PRIVATE: u32 = 0x80;
pub(super) const REALTIME: u32 = 0x100;
/// bpf/futexes.bpf.c: as long as two slices of one wait may be apart.
const SLICE_GAP: Duration = Duration::from_millis(1);
const WAKE_ALL: u64 = i32::MAX as u64;

pub(super) fn gettid() -> u32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() as u32 }
}

/// What a futex call asks for; the word lies outside of every stack and all thread-local storage.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub uaddr: u64,
    pub op: u32,
    pub value: u32,
    pub sp: u64,
    pub thread_pointer: u64,
    pub timeout: bool,
    pub compat: bool,
}

impl Call {
    pub fn new(uaddr: u64, op: u32, value: u32) -> Call {
        Call { uaddr, op, value, sp: uaddr + 4096, thread_pointer: 0, timeout: false, compat: false }
    }

    pub fn timed(self) -> Call {
        Call { timeout: true, ..self }
    }

    fn kind(self) -> LockKind {
        if self.op & 0x7f == LOCK_PI { LockKind::FutexPi } else { LockKind::Futex }
    }
}

/// Rust's Mutex: whoever waited leaves 2 behind, so its release is a wake.
fn mutex(uaddr: u64) -> Call {
    Call::new(uaddr, WAIT_BITSET | PRIVATE, 2)
}

/// What a thread does; usable in any thread.
#[derive(Clone, Copy)]
pub(super) struct Futexes(RawFd);

impl Futexes {
    pub fn begin(self, call: Call) {
        let Call { uaddr, op, value, sp, thread_pointer, timeout, compat } = call;
        let flags = [timeout.into(), compat.into()];
        run(self.0, &[0, uaddr, op.into(), value.into(), sp, thread_pointer, flags[0], flags[1]]);
    }

    /// 0, or an error as the kernel returns it.
    pub fn end(self, ret: i32) {
        run(self.0, &[1, ret as i64 as u64]);
    }

    pub fn wait(self, call: Call) {
        self.begin(call);
        self.end(0);
    }

    fn release_of(self, uaddr: u64, kind: LockKind, wake: u64) {
        run(self.0, &[2, uaddr, wire::kind_bit(kind).trailing_zeros().into(), wake]);
    }

    fn release(self, uaddr: u64) {
        self.release_of(uaddr, LockKind::Futex, 1);
    }

    fn wakes(self, tid: u32) {
        run(self.0, &[3, tid.into()]);
    }

    fn restarts(self) {
        run(self.0, &[4]);
    }

    fn exits(self) {
        run(self.0, &[5]);
    }

    /// As another thread of this process, which is gone afterwards.
    pub fn elsewhere<T: Send>(self, what: impl FnOnce(Futexes) -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(move || what(self)).join().expect("it runs"))
    }
}

impl Bench {
    pub(super) fn futexes(&self) -> Futexes {
        Futexes(self.program("futex__selftest"))
    }

    pub(super) fn is_born(&self) {
        self.run("thread__selftest", &[]);
    }
}

fn id(call: Call) -> LockId {
    LockId { kind: call.kind(), addr: call.uaddr, pid: Some(std::process::id()) }
}

fn of_lock(capture: &RawCapture, call: Call) -> RawLock {
    capture.locks.get(&id(call)).cloned().unwrap_or_default()
}

fn waits(capture: &RawCapture, call: Call) -> WaitStats {
    let mut sum = WaitStats::default();
    let of_it = capture.sites.iter().filter(|(site, _)| site.lock == id(call));
    of_it.for_each(|(_, wait)| sum.merge(wait));
    sum
}

/// Contended, aborted.
fn counts(capture: &RawCapture, call: Call) -> (u64, u64) {
    let wait = waits(capture, call);
    (wait.contended, wait.aborted)
}

fn holds(capture: &RawCapture, call: Call) -> HoldStats {
    capture.contended_holds.get(&id(call)).copied().unwrap_or_default()
}

/// The only wait that goes on.
pub(super) fn in_flight(capture: &RawCapture) -> &RawWait {
    assert_eq!(capture.in_flight.len(), 1, "{:?}", capture.in_flight);
    &capture.in_flight[0]
}

/// Words that are none of any C library's.
fn words() -> Box<[u32; 256]> {
    Box::new([0; 256])
}

/// Words 0x40 bytes apart.
fn addresses<const N: usize>(words: &[u32; 256]) -> [u64; N] {
    std::array::from_fn(|nth| &raw const words[16 + 16 * nth] as u64)
}

/// Switches to another thread.
fn sleep() {
    std::thread::sleep(Duration::from_millis(3));
}

#[test]
#[ignore = "needs root"]
fn a_futex_wait_is_counted_with_its_callers_stack() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    futexes.begin(mutex(word));
    let capture = bench.capture();
    let wait = in_flight(&capture);
    assert_eq!((wait.site.lock, wait.tid), (id(mutex(word)), gettid()));
    assert!(!wait.comm.is_empty() && !wait.from_before);
    futexes.end(0);
    let capture = bench.capture();
    assert!(capture.in_flight.is_empty());
    assert_eq!(counts(&capture, mutex(word)), (1, 0));
    let site = &capture.sites[0].0;
    let RawStack::Id(stack) = site.user_stack else { panic!("{site:?}") };
    assert!(capture.stacks.contains_key(&stack));
    assert_eq!(site.kernel_stack, RawStack::NotTaken);
    assert_eq!((capture.events.waits_begun, capture.events.waits_ended), (1, 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_retry_of_a_mutex_is_one_acquisition() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    let begun = Instant::now();
    for _ in 0..3 {
        futexes.wait(mutex(word));
        sleep();
    }
    futexes.release(word);
    let ns = begun.elapsed().as_nanos() as u64;
    let capture = bench.capture();
    assert_eq!(counts(&capture, mutex(word)), (1, 0));
    assert_eq!(of_lock(&capture, mutex(word)).hist.iter().sum::<u32>(), 1);
    assert_eq!(capture.events.futex_merged, 2);
    let (wait, hold) = (waits(&capture, mutex(word)), holds(&capture, mutex(word)));
    assert!(wait.wait_total_ns > 6_000_000, "the time between the first begin and the last end: {wait:?}");
    assert!(wait.wait_total_ns + hold.hold_total_ns <= ns && hold.hold_total_ns > 3_000_000, "{hold:?}");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_retry_of_what_only_may_be_a_mutex_follows_at_once() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    let maybe = Call::new(word, WAIT | PRIVATE, 2);
    futexes.wait(maybe);
    sleep();
    futexes.wait(maybe);
    assert_eq!(counts(&bench.capture(), maybe), (2, 0));
}

#[test]
#[ignore = "needs root"]
fn a_wake_between_two_waits_makes_them_two() {
    let (bench, words) = (Bench::new(64), words());
    let [word, other] = addresses(&words);
    let futexes = bench.futexes();
    for _ in 0..2 {
        futexes.wait(mutex(word));
        futexes.release(other);
        futexes.release(word);
    }
    let capture = bench.capture();
    assert_eq!((counts(&capture, mutex(word)), capture.events.futex_merged), ((2, 0), 0));
    assert_eq!(of_lock(&capture, mutex(word)).wake_calls, 2);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn waits_for_anything_but_a_lock_are_not_merged() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    let sequence = Call::new(word, WAIT_BITSET | PRIVATE, 7);
    (0..3).for_each(|_| futexes.wait(sequence));
    let capture = bench.capture();
    assert_eq!((counts(&capture, sequence), capture.events.futex_merged), ((3, 0), 0));
}

#[test]
#[ignore = "needs root"]
fn a_hold_that_began_with_a_wait_ends_with_the_holders_own_wake() {
    let (bench, words) = (Bench::new(64), words());
    let [word, condition] = addresses(&words);
    let futexes = bench.futexes();
    futexes.wait(mutex(word));
    futexes.elsewhere(|other| other.release(word));
    assert_eq!(holds(&bench.capture(), mutex(word)).holds, 0, "another thread holds nothing");
    sleep();
    futexes.release(word);
    futexes.release(word);
    let hold = holds(&bench.capture(), mutex(word));
    assert_eq!((hold.acquired, hold.holds), (1, 1));
    assert!(hold.hold_total_ns >= 3_000_000 && hold.hold_max_ns == Some(hold.hold_total_ns), "{hold:?}");

    let sequence = Call::new(condition, WAIT | PRIVATE, 8);
    futexes.wait(sequence);
    futexes.release(condition);
    assert_eq!(holds(&bench.capture(), sequence).holds, 0, "a condition is nothing to hold");
    clean(&bench.capture());
}

#[test]
#[ignore = "needs root"]
fn an_attempt_that_failed_holds_nothing() {
    let (bench, words) = (Bench::new(64), words());
    let [word, other] = addresses(&words);
    let futexes = bench.futexes();
    for ret in [-libc::ETIMEDOUT, -libc::EINTR] {
        futexes.begin(mutex(word));
        futexes.end(ret);
        futexes.wait(mutex(other));
        futexes.release(other);
        futexes.release(word);
    }
    let capture = bench.capture();
    assert_eq!((holds(&capture, mutex(word)).holds, holds(&capture, mutex(other)).holds), (0, 2));
    assert_eq!(counts(&capture, mutex(word)), (0, 2));
}

#[test]
#[ignore = "needs root"]
fn nested_holds_are_timed_each() {
    let (bench, words) = (Bench::new(64), words());
    let locks: [u64; 4] = addresses(&words);
    let futexes = bench.futexes();
    for word in locks {
        futexes.wait(mutex(word));
        sleep();
    }
    // Not the latest first.
    locks.iter().for_each(|word| futexes.release(*word));
    let capture = bench.capture();
    let times = locks.map(|word| {
        let hold = holds(&capture, mutex(word));
        assert_eq!(hold.holds, 1);
        hold.hold_total_ns
    });
    assert!(times.is_sorted_by(|before, after| before > after), "{times:?}");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn who_waits_for_a_lock_does_not_hold_it() {
    let (bench, words) = (Bench::new(64), words());
    let [word, other] = addresses(&words);
    let futexes = bench.futexes();
    // Between the first two waits it was released, without a wake; the last two are retries.
    for call in [mutex(word), mutex(other), mutex(word)] {
        futexes.wait(call);
    }
    futexes.release(word);
    assert_eq!(holds(&bench.capture(), mutex(word)).holds, 1);

    // Waits for a musl mutex are not merged: each time it may have got it.
    let musl = Call::new(word, WAIT | PRIVATE, 0x8000_0010);
    futexes.wait(musl);
    sleep();
    futexes.wait(musl);
    futexes.release(word);
    let hold = holds(&bench.capture(), musl);
    assert_eq!(hold.holds, 2);
    assert!(hold.hold_total_ns < 3_000_000, "not since the first wait: {hold:?}");
}

#[test]
#[ignore = "needs root"]
fn a_timed_slice_continues_and_a_timed_lock_attempt_does_not() {
    let (bench, words) = (Bench::new(64), words());
    let [word, lock, late] = addresses(&words);
    let futexes = bench.futexes();
    let twice = |call: Call, pause: fn()| {
        futexes.begin(call.timed());
        let begun = Instant::now();
        futexes.end(-libc::ETIMEDOUT);
        pause();
        futexes.begin(call.timed());
        let in_time = begun.elapsed() < SLICE_GAP;
        futexes.end(0);
        // Nothing is pending.
        futexes.exits();
        in_time
    };
    let slice = Call::new(word, WAIT | PRIVATE, 6);
    // Somebody else may get the CPU in between.
    let mut missed = 0;
    while !twice(slice, || {}) {
        missed += 1;
        assert!(missed < 100);
    }
    assert!(counts(&bench.capture(), slice).0 > 0);
    assert!(bench.capture().events.futex_merged > 0);
    let before = bench.capture().events.futex_merged;
    twice(Call::new(lock, WAIT_BITSET | PRIVATE, 2), || {});
    twice(Call::new(late, WAIT | PRIVATE, 6), sleep);
    let capture = bench.capture();
    assert_eq!(capture.events.futex_merged, before);
    assert_eq!(counts(&capture, mutex(lock)), (1, 1));
    assert_eq!(counts(&capture, mutex(late)), (1, 1), "too late for a slice");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn an_interrupted_wait_goes_on() {
    let (bench, words) = (Bench::new(64), words());
    let [word, again] = addresses(&words);
    let futexes = bench.futexes();
    let sequence = Call::new(word, WAIT | PRIVATE, 9);
    // EINTR, ERESTARTSYS, ERESTARTNOINTR, ERESTART_RESTARTBLOCK
    for err in [libc::EINTR, 512, 513, 516] {
        futexes.begin(sequence);
        futexes.end(-err);
    }
    futexes.wait(sequence);
    futexes.exits();
    let capture = bench.capture();
    assert_eq!((counts(&capture, sequence), capture.events.futex_merged), ((1, 0), 4));

    let restarted = Call::new(again, WAIT | PRIVATE, 9);
    futexes.begin(restarted);
    futexes.end(-516);
    futexes.restarts();
    assert_eq!(bench.capture().in_flight.len(), 1, "by restart_syscall(2)");
    futexes.end(0);
    futexes.restarts();
    let capture = bench.capture();
    assert!(capture.in_flight.is_empty(), "what was not interrupted is not restarted");
    assert_eq!((counts(&capture, restarted), capture.events.futex_merged), ((1, 0), 5));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn an_interrupted_wait_that_does_not_go_on_is_aborted() {
    let (bench, words) = (Bench::new(64), words());
    let [word, other] = addresses(&words);
    let futexes = bench.futexes();
    futexes.begin(mutex(word));
    futexes.end(-libc::EINTR);
    futexes.wait(mutex(other));
    assert_eq!(counts(&bench.capture(), mutex(word)), (0, 1));
}

#[test]
#[ignore = "needs root"]
fn eagain_is_no_wait() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    for err in [libc::EAGAIN, libc::EFAULT, libc::EINVAL] {
        futexes.begin(mutex(word));
        futexes.end(-err);
        futexes.release(word);
    }
    let capture = bench.capture();
    assert!(capture.sites.is_empty() && capture.in_flight.is_empty());
    assert_eq!((capture.events.futex_retries, capture.events.waits_ended), (3, 0));
    assert_eq!(holds(&capture, mutex(word)).holds, 0);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn eagain_after_a_wait_does_not_lose_it() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    futexes.wait(mutex(word));
    sleep();
    futexes.begin(mutex(word));
    futexes.end(-libc::EAGAIN);
    futexes.release(word);
    let capture = bench.capture();
    let wait = waits(&capture, mutex(word));
    assert_eq!((wait.contended, holds(&capture, mutex(word)).holds), (1, 1));
    assert!(wait.wait_total_ns >= 3_000_000, "until it had the lock: {wait:?}");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_pi_lock_that_was_free_was_not_waited_for() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    let pi = Call::new(word, LOCK_PI | PRIVATE, 0);
    // This thread is alone on its CPU only mostly, but it blocks nowhere here.
    futexes.wait(pi);
    let capture = bench.capture();
    assert_eq!((counts(&capture, pi), capture.events.futex_retries), ((0, 0), 1));
    futexes.begin(pi);
    sleep();
    futexes.end(0);
    sleep();
    futexes.release_of(word, LockKind::FutexPi, 1);
    let capture = bench.capture();
    assert_eq!((counts(&capture, pi), holds(&capture, pi).holds), ((1, 0), 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_pending_wait_is_accounted_at_the_end() {
    let (bench, words) = (Bench::new(64), words());
    let [word, other, failed] = addresses(&words);
    let futexes = bench.futexes();
    // Accounted for by BPF, and then the same pending.
    (0..2).for_each(|_| {
        futexes.wait(mutex(word));
        futexes.wait(mutex(other));
    });
    futexes.wait(mutex(word));
    let capture = bench.capture();
    assert_eq!((counts(&capture, mutex(word)), counts(&capture, mutex(other))), ((3, 0), (2, 0)));
    assert_eq!(of_lock(&capture, mutex(word)).hist.iter().sum::<u32>(), 3);
    assert_eq!((capture.events.waits_begun, capture.events.waits_ended), (5, 5));
    futexes.begin(mutex(failed));
    futexes.end(-libc::ETIMEDOUT);
    let capture = bench.capture();
    assert_eq!(counts(&capture, mutex(failed)), (0, 1));
    assert_eq!(of_lock(&capture, mutex(failed)).hist.iter().sum::<u32>(), 0);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn several_threads_wait_for_it_even_if_none_came_further() {
    let (bench, words) = (Bench::new(64), words());
    let [one, two, going_on] = addresses(&words);
    let futexes = bench.futexes();
    futexes.wait(mutex(one));
    futexes.release(one);
    futexes.wait(mutex(one));
    futexes.elsewhere(|other| other.wait(mutex(two)));
    futexes.wait(mutex(two));
    futexes.elsewhere(|other| other.begin(mutex(going_on)));
    futexes.begin(mutex(going_on));
    let capture = bench.capture();
    let several = [one, two, going_on].map(|word| of_lock(&capture, mutex(word)).several_waiters);
    assert_eq!(several, [false, true, true]);
}

#[test]
#[ignore = "needs root"]
fn a_wait_inside_a_hooked_wait_is_one() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    futexes.begin(mutex(word));
    futexes.wait(mutex(word));
    let capture = bench.capture();
    assert_eq!((counts(&capture, mutex(word)), capture.events.waits_begun), ((1, 0), 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_begin_without_an_end_and_an_end_without_a_begin_are_losses() {
    let (bench, words) = (Bench::new(64), words());
    let [word, other] = addresses(&words);
    let futexes = bench.futexes();
    futexes.end(-libc::EAGAIN);
    clean(&bench.capture());
    futexes.end(0);
    assert_eq!(lost(&bench.capture(), "unpaired_end"), 1);
    futexes.begin(mutex(word));
    futexes.wait(mutex(other));
    futexes.release(word);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "unpaired_begin"), 1);
    assert_eq!((counts(&capture, mutex(word)), counts(&capture, mutex(other))), ((0, 0), (1, 0)));
    assert!(capture.releasers.is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_thread_that_exits_leaves_its_waits_accounted_for() {
    let (bench, words) = (Bench::new(64), words());
    let [word, ongoing] = addresses(&words);
    let futexes = bench.futexes();
    futexes.wait(mutex(word));
    futexes.exits();
    futexes.release(word);
    let capture = bench.capture();
    assert_eq!((counts(&capture, mutex(word)), holds(&capture, mutex(word)).holds), ((1, 0), 0));
    clean(&capture);
    futexes.begin(mutex(ongoing));
    futexes.exits();
    let capture = bench.capture();
    assert!(capture.in_flight.is_empty());
    assert_eq!(lost(&capture, "unpaired_begin"), 1);
    // Nobody waits, so no stack is taken.
    futexes.release(ongoing);
    assert_eq!(bench.capture().stacks.len(), capture.stacks.len());
}

#[test]
#[ignore = "needs root"]
fn who_woke_whom_is_counted_with_the_wakers_stack() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let (futexes, wakee) = (bench.futexes(), gettid());
    futexes.begin(mutex(word));
    let waker = futexes.elsewhere(|other| {
        other.release(word);
        other.wakes(wakee);
        gettid()
    });
    futexes.end(0);
    let capture = bench.capture();
    let [(lock, by, woken, stack, times)] = &capture.releasers[..] else { panic!("{:?}", capture.releasers) };
    assert_eq!(
        (*lock, by.pid, by.tid, *woken, *times),
        (id(mutex(word)), std::process::id(), waker, wakee, 1)
    );
    assert!(!by.comm.is_empty());
    let RawStack::Id(stack) = stack else { panic!("{stack:?}") };
    assert!(capture.stacks.contains_key(stack));
    assert_ne!(RawStack::Id(*stack), capture.sites[0].0.user_stack, "the waker's, not the waiter's");
    let lock = of_lock(&capture, mutex(word));
    assert_eq!((lock.wake_calls, lock.wake_all_calls, lock.woken), (1, 0, 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_wake_for_all_is_told_from_a_wake_for_one() {
    let (bench, words) = (Bench::new(64), words());
    let [word, never] = addresses(&words);
    let futexes = bench.futexes();
    futexes.wait(mutex(word));
    for wake in [1, 2, WAKE_ALL] {
        futexes.release_of(word, LockKind::Futex, wake);
        futexes.release_of(never, LockKind::Futex, wake);
    }
    let capture = bench.capture();
    let lock = of_lock(&capture, mutex(word));
    assert_eq!((lock.wake_calls, lock.wake_all_calls), (3, 1));
    assert_eq!(of_lock(&capture, mutex(never)), RawLock::default(), "nobody ever waited for it");
}

#[test]
#[ignore = "needs root"]
fn without_the_kernels_word_the_latest_waker_was_it() {
    let (bench, words) = (Bench::new(64), words());
    let [word] = addresses(&words);
    let (futexes, wakee) = (bench.futexes(), gettid());
    futexes.begin(mutex(word));
    let wake = |other: Futexes| {
        other.release(word);
        gettid()
    };
    futexes.elsewhere(wake);
    let latest = futexes.elsewhere(wake);
    futexes.end(0);
    let capture = bench.capture();
    let [(_, by, woken, RawStack::Id(_), 1)] = &capture.releasers[..] else {
        panic!("{:?}", capture.releasers)
    };
    assert_eq!((by.tid, *woken), (latest, wakee));
}

#[test]
#[ignore = "needs root"]
fn where_the_kernel_tells_who_woke_whom_nobody_guesses() {
    let mut plan = tracepoint_plan();
    // Not loaded: it has no tracepoint.
    plan.hooks.push(Hook { function: "futex_wake_mark", ..plan.hooks[0].clone() });
    let facts = Facts::gather(&[], &[]).expect("facts");
    let targets = Targets::Pids(vec![std::process::id()]);
    let (bench, words) = (Bench::load(alone(), &plan, &facts, &settings(64, targets)), words());
    let [word, pi] = addresses(&words);
    let futexes = bench.futexes();
    futexes.begin(mutex(word));
    futexes.elsewhere(|other| other.release(word));
    futexes.end(0);
    assert!(bench.capture().releasers.is_empty(), "it woke another thread, or none");
    // The rt_mutex hands a PI lock over, and not the futex's code.
    let pi = Call::new(pi, LOCK_PI | PRIVATE, 0);
    futexes.begin(pi);
    futexes.elsewhere(|other| other.release_of(pi.uaddr, LockKind::FutexPi, 1));
    sleep();
    futexes.end(0);
    assert_eq!(bench.capture().releasers.len(), 1);
}

#[test]
#[ignore = "needs root"]
fn a_wake_of_something_unknown_has_no_older_wakes_stack() {
    let (bench, words) = (Bench::new(64), words());
    let [word, parked, unknown] = addresses(&words);
    let (futexes, wakee) = (bench.futexes(), gettid());
    futexes.elsewhere(|waiter| waiter.begin(mutex(word)));
    futexes.begin(mutex(parked));
    futexes.elsewhere(|other| {
        other.release(word);
        // Like a parked thread's own word: the lock is another address.
        other.release(unknown);
        other.wakes(wakee);
    });
    futexes.end(0);
    let capture = bench.capture();
    assert_eq!(capture.releasers.len(), 1);
    assert_eq!(capture.releasers[0].3, RawStack::NotTaken, "not where it released the other lock");
}

#[test]
#[ignore = "needs root"]
fn loss_futex_waits_map_full() {
    let (bench, words) = (Bench::new(1), words());
    let [word] = addresses(&words);
    let futexes = bench.futexes();
    futexes.begin(mutex(word));
    futexes.elsewhere(|other| {
        other.wait(mutex(word));
        // Whose stack has nowhere to go.
        other.release(word);
    });
    let capture = bench.capture();
    assert_eq!(lost(&capture, "futex_waits_map_full"), 2);
    // The end that belongs to a begin that found no room.
    assert_eq!(lost(&capture, "unpaired_end"), 1);
    assert_eq!(capture.in_flight.len(), 1, "who was there first stays");
}

#[test]
#[ignore = "needs root"]
fn loss_futex_holds_too_deep() {
    let (bench, words) = (Bench::new(64), words());
    let locks: [u64; 6] = addresses(&words);
    let futexes = bench.futexes();
    locks[..5].iter().for_each(|word| futexes.wait(mutex(*word)));
    clean(&bench.capture());
    // The fifth hold that is to be remembered; the sixth is the thread's latest wait.
    futexes.wait(mutex(locks[5]));
    assert_eq!(lost(&bench.capture(), "futex_holds_too_deep"), 1);
    locks.iter().for_each(|word| futexes.release(*word));
    let capture = bench.capture();
    let timed = locks.map(|word| holds(&capture, mutex(word)).holds);
    assert_eq!(timed, [1, 1, 1, 1, 0, 1]);
    assert_eq!(lost(&capture, "futex_holds_too_deep"), 1);
}

#[test]
#[ignore = "needs root"]
fn loss_releases_map_full() {
    const ROOM: u64 = 4;
    let (bench, words) = (Bench::new(ROOM as u32), words());
    let [word] = addresses(&words);
    let (futexes, wakee) = (bench.futexes(), gettid());
    for _ in 0..ROOM + 3 {
        futexes.begin(mutex(word));
        futexes.elsewhere(|other| other.wakes(wakee));
        futexes.end(0);
    }
    let capture = bench.capture();
    assert_eq!((lost(&capture, "releases_map_full"), capture.releasers.len() as u64), (3, ROOM));
    assert_eq!(of_lock(&capture, mutex(word)).woken, ROOM + 3, "nothing else is lost by that");
}

pub(super) fn own_thread() -> TargetThread {
    TargetThread {
        pid_namespace: std::fs::metadata("/proc/self/ns/pid").expect("this process").ino() as u32,
        tid_in_namespace: gettid(),
        pid: std::process::id(),
        tid: gettid(),
        comm: "from proc".into(),
    }
}

#[test]
#[ignore = "needs root"]
fn loss_threads_map_full() {
    let mut bench = Bench::new(1);
    bench.is_born();
    bench.is_born();
    clean(&bench.capture());
    bench.run_elsewhere("thread__selftest", &[]);
    assert_eq!(lost(&bench.capture(), "threads_map_full"), 1);
    bench.tracer.remember_thread(&own_thread()).expect("it is known");
    let other = TargetThread { tid_in_namespace: gettid() + 1, tid: gettid() + 1, ..own_thread() };
    bench.tracer.remember_thread(&other).expect("a loss is no error");
    assert_eq!(lost(&bench.capture(), "threads_map_full"), 2);
}

/// A program of `name` after the verifier; kernels before 5.16 do not say.
fn verified_instructions(bench: &Bench, name: &str) -> u32 {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of_val(&info) as u32;
    // SAFETY: the descriptor is a program's, and the kernel writes at most `size` bytes.
    let result = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(bench.program(name), &mut info, &mut size) };
    assert_eq!(result, 0);
    info.verified_insns
}

#[test]
#[ignore = "needs root"]
fn what_waits_look_like_does_not_multiply_in_the_verifier() {
    let bench = Bench::new(64);
    let count = verified_instructions(&bench, "sys_enter__tp");
    println!("sys_enter__tp: {count} instructions verified");
    assert!(count < 30_000, "{count}; 320 000 took seconds to load");
}
