//! Waits for locks that spin, and the part of a sleeping wait that is spent spinning.

use super::*;
use std::time::Duration;

impl Bench {
    fn slow_path(&self, step: u64, lock: u64, kind: LockKind) {
        self.run("spin__selftest", &[step, lock, wire::kind_bit(kind).trailing_zeros().into()]);
    }

    fn mutex_slow_path(&self, step: u64, lock: u64) {
        let kind = wire::kind_bit(LockKind::Mutex).trailing_zeros();
        self.run("wait__selftest", &[step, lock, kind.into()]);
    }
}

#[test]
#[ignore = "needs root"]
fn all_of_a_spin_wait_is_spinning() {
    let bench = Bench::new(1 << 12);
    bench.slow_path(0, LOCK, LockKind::Spinlock);
    bench.slow_path(1, LOCK, LockKind::Spinlock);
    let capture = bench.capture();
    let wait = capture.sites[0].1;
    assert_eq!((wait.contended, wait.spin_total_ns), (1, Some(wait.wait_total_ns)));
    assert_eq!(capture.stacks.len(), 2, "one kernel and one user stack");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_spin_wait_has_one_site_however_often_it_happens() {
    let bench = Bench::new(1 << 12);
    for _ in 0..50 {
        bench.slow_path(0, LOCK, LockKind::Spinlock);
        bench.slow_path(1, LOCK, LockKind::Spinlock);
    }
    let capture = bench.capture();
    assert_eq!((capture.sites.len(), capture.sites[0].1.contended), (1, 50));
    assert_eq!(capture.locks[&capture.sites[0].0.lock].hist.iter().sum::<u32>(), 50);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn the_spinlock_inside_an_rwlock_is_a_part_of_the_wait_for_the_rwlock() {
    let bench = Bench::new(1 << 12);
    bench.slow_path(0, LOCK, LockKind::RwlockWrite);
    // offsetof(struct qrwlock, wait_lock)
    bench.slow_path(0, LOCK + 4, LockKind::Spinlock);
    bench.slow_path(1, LOCK + 4, LockKind::Spinlock);
    bench.slow_path(1, LOCK, LockKind::RwlockWrite);
    let capture = bench.capture();
    assert_eq!(capture.sites.len(), 1);
    assert_eq!(capture.sites[0].0.lock.kind, LockKind::RwlockWrite);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn an_end_without_a_begin_is_counted() {
    let bench = Bench::new(1 << 12);
    bench.slow_path(1, LOCK, LockKind::Spinlock);
    let capture = bench.capture();
    assert!(capture.sites.is_empty());
    assert_eq!(lost(&capture, "unpaired_end"), 1);
}

#[test]
#[ignore = "needs root"]
fn a_spin_wait_that_goes_on_is_in_flight_and_not_waited() {
    let bench = Bench::new(1 << 12);
    bench.slow_path(0, LOCK, LockKind::Spinlock);
    let capture = bench.capture();
    assert!(capture.sites.is_empty(), "{:?}", capture.sites);
    assert_eq!(capture.in_flight.len(), 1);
}

#[test]
#[ignore = "needs root"]
fn loss_spin_sites_full_and_spin_locks_full() {
    let bench = Bench::new(64);
    for nth in 0..200 {
        bench.slow_path(0, LOCK + 64 * nth, LockKind::Spinlock);
        bench.slow_path(1, LOCK + 64 * nth, LockKind::Spinlock);
    }
    let capture = bench.capture();
    let counted: u64 = capture.sites.iter().map(|(_, wait)| wait.contended).sum();
    assert_eq!(counted + lost(&capture, "spin_sites_full"), 200);
    assert!(counted < 200, "the table is smaller than that");
    let in_histograms: u64 = capture.locks.values().flat_map(|lock| &lock.hist).map(|n| u64::from(*n)).sum();
    assert_eq!(in_histograms + lost(&capture, "spin_locks_full"), counted);
    assert!(in_histograms < counted, "there is less room for locks than for sites");
}

#[test]
#[ignore = "needs root"]
fn loss_spin_stacks_full() {
    // One entry, for the kernel stack; the user stack finds no room.
    let bench = Bench::new(1);
    bench.slow_path(0, LOCK, LockKind::Spinlock);
    bench.slow_path(1, LOCK, LockKind::Spinlock);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "spin_stacks_full"), 1);
    assert_eq!(capture.sites[0].1.contended, 1, "the wait itself is not lost");
}

#[test]
#[ignore = "needs root"]
fn a_mutex_waiter_spins_until_the_tracepoint_says_that_it_sleeps() {
    let bench = Bench::with_phases(LockKind::Mutex);
    bench.mutex_slow_path(0, LOCK);
    bench.begin(LOCK, MUTEX | SPIN);
    bench.begin(LOCK, MUTEX);
    std::thread::sleep(Duration::from_millis(20));
    // Its owner runs again: the sleeper, woken, spins.
    bench.begin(LOCK, MUTEX | SPIN);
    bench.mutex_slow_path(1, LOCK);
    let capture = bench.capture();
    let wait = capture.sites[0].1;
    let spun = wait.spin_total_ns.expect("the phases are known");
    assert_eq!(wait.contended, 1);
    assert!(0 < spun && spun + 20_000_000 <= wait.wait_total_ns, "{wait:?}");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_waiter_that_got_the_lock_while_spinning_never_slept() {
    let bench = Bench::with_phases(LockKind::RwsemWrite);
    let kind = wire::kind_bit(LockKind::RwsemWrite).trailing_zeros();
    bench.run("wait__selftest", &[0, LOCK, kind.into()]);
    bench.run("wait__selftest", &[1, LOCK, kind.into()]);
    let wait = bench.capture().sites[0].1;
    assert_eq!(wait.spin_total_ns, Some(wait.wait_total_ns));
}

#[test]
#[ignore = "needs root"]
fn without_the_tracepoints_spinning_is_unknown_and_not_zero() {
    let bench = Bench::new(64);
    // The tracepoints alone say nothing of a writer's spinning.
    bench.wait(LOCK, 4);
    assert_eq!(bench.capture().sites[0].1.spin_total_ns, None);
}
