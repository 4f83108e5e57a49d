//! `--hold`: what an acquire and a release come to, in every order they may be seen in.

use super::*;

fn hold_of(capture: &RawCapture, kind: LockKind) -> crate::model::HoldStats {
    let mut found = capture.holds.iter().filter(|(id, _)| id.kind == kind);
    *found.next().expect("the lock was acquired").1
}

impl Bench {
    fn spin_hold(&self, step: u64, lock: u64, kind: LockKind) {
        self.run("spinhold__selftest", &[step, lock, wire::kind_bit(kind).trailing_zeros().into()]);
    }

    fn spin_acquire(&self, lock: u64, kind: LockKind) {
        self.spin_hold(0, lock, kind);
    }

    fn spin_release(&self, lock: u64, kind: LockKind) {
        self.spin_hold(1, lock, kind);
    }

    fn elsewhere(&self, step: u64, lock: u64, kind: LockKind) {
        self.run_elsewhere("hold__selftest", &[step, lock, wire::kind_bit(kind).trailing_zeros().into()]);
    }
}

#[test]
#[ignore = "needs root"]
fn holds_pair_an_acquire_with_its_release() {
    let bench = Bench::new(64);
    bench.acquire(LOCK, LockKind::Mutex);
    bench.acquire(LOCK + 8, LockKind::Mutex);
    bench.release(LOCK, LockKind::Mutex);
    bench.release(LOCK + 8, LockKind::Mutex);
    let capture = bench.capture();
    assert_eq!(capture.holds.len(), 2);
    assert!(capture.holds.values().all(|hold| hold.acquired == 1 && hold.holds == 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_recursive_read_is_one_hold_of_two_acquisitions() {
    let bench = Bench::new(64);
    bench.acquire(LOCK, LockKind::RwsemRead);
    bench.acquire(LOCK, LockKind::RwsemRead);
    bench.release(LOCK, LockKind::RwsemRead);
    assert_eq!(bench.capture().holds.values().next().map(|hold| hold.holds), Some(0));
    bench.release(LOCK, LockKind::RwsemRead);
    let capture = bench.capture();
    let hold = capture.holds.values().next().expect("a hold");
    assert_eq!((hold.acquired, hold.holds), (2, 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn loss_lost_release_and_unmatched_release() {
    let bench = Bench::new(64);
    bench.release(LOCK, LockKind::Mutex);
    bench.acquire(LOCK, LockKind::Mutex);
    bench.acquire(LOCK, LockKind::Mutex);
    bench.release(LOCK, LockKind::Mutex);
    let capture = bench.capture();
    assert_eq!((lost(&capture, "unmatched_release"), lost(&capture, "lost_release")), (1, 1));
    let hold = capture.holds.values().next().expect("a hold");
    assert_eq!((hold.acquired, hold.holds), (2, 1), "no hold is made of two halves of different ones");
}

#[test]
#[ignore = "needs root"]
fn loss_held_map_full_and_holds_map_full() {
    let bench = Bench::new(1);
    bench.acquire(LOCK, LockKind::RwsemRead);
    // Another reader of the same lock: its row exists, its hold finds no room.
    let rwsem_read = wire::kind_bit(LockKind::RwsemRead).trailing_zeros();
    bench.run_elsewhere("hold__selftest", &[0, LOCK, rwsem_read.into()]);
    bench.acquire(LOCK + 8, LockKind::Mutex);
    let capture = bench.capture();
    assert_eq!((lost(&capture, "held_map_full"), lost(&capture, "holds_map_full")), (1, 1));
}

#[test]
#[ignore = "needs root"]
fn a_writer_proves_that_older_readers_are_gone() {
    let bench = Bench::new(64);
    // The reader's release is missed; a writer gets the lock; the same task reads again.
    bench.acquire(LOCK, LockKind::RwsemRead);
    bench.acquire(LOCK, LockKind::RwsemWrite);
    bench.release(LOCK, LockKind::RwsemWrite);
    bench.acquire(LOCK, LockKind::RwsemRead);
    bench.release(LOCK, LockKind::RwsemRead);
    let capture = bench.capture();
    let reads = hold_of(&capture, LockKind::RwsemRead);
    assert_eq!((reads.acquired, reads.holds), (2, 1), "not one hold over both, nor a recursive read");
    assert_eq!((lost(&capture, "lost_release"), lost(&capture, "unmatched_release")), (1, 0));
}

#[test]
#[ignore = "needs root"]
fn a_release_that_belongs_to_a_later_reader_makes_no_hold_of_two_halves() {
    let bench = Bench::new(64);
    bench.acquire(LOCK, LockKind::RwsemRead);
    bench.acquire(LOCK, LockKind::RwsemWrite);
    bench.release(LOCK, LockKind::RwsemWrite);
    // Its acquire was missed.
    bench.release(LOCK, LockKind::RwsemRead);
    let capture = bench.capture();
    assert_eq!(hold_of(&capture, LockKind::RwsemRead).holds, 0);
    assert_eq!((lost(&capture, "lost_release"), lost(&capture, "unmatched_release")), (1, 1));
}

#[test]
#[ignore = "needs root"]
fn an_exclusive_lock_may_be_released_by_another_task() {
    let bench = Bench::new(64);
    bench.acquire(LOCK, LockKind::PercpuRwsemWrite);
    bench.elsewhere(1, LOCK, LockKind::PercpuRwsemWrite);
    let capture = bench.capture();
    assert_eq!(hold_of(&capture, LockKind::PercpuRwsemWrite).holds, 1);
    assert_eq!(capture.events.foreign_releases, 1);
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_foreign_up_read_is_counted_and_times_nothing() {
    let bench = Bench::new(64);
    bench.acquire(LOCK, LockKind::RwsemRead);
    bench.elsewhere(1, LOCK, LockKind::RwsemRead);
    let capture = bench.capture();
    assert_eq!(hold_of(&capture, LockKind::RwsemRead).holds, 0);
    assert_eq!(lost(&capture, "unmatched_release"), 1);
}

#[test]
#[ignore = "needs root"]
fn spinlocks_may_be_released_in_any_order() {
    let bench = Bench::new(1 << 12);
    for lock in [LOCK, LOCK + 64, LOCK + 128] {
        bench.spin_acquire(lock, LockKind::Spinlock);
    }
    // Hand over hand: the first one goes first.
    for lock in [LOCK, LOCK + 128, LOCK + 64] {
        bench.spin_release(lock, LockKind::Spinlock);
    }
    bench.spin_acquire(LOCK, LockKind::Spinlock);
    bench.spin_release(LOCK, LockKind::Spinlock);
    let capture = bench.capture();
    let counts: Vec<(u64, u64)> = capture.holds.values().map(|hold| (hold.acquired, hold.holds)).collect();
    assert_eq!(counts.len(), 3);
    assert!(counts.iter().all(|(acquired, holds)| acquired == holds), "{counts:?}");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_spinlock_acquired_again_had_a_release_that_was_missed() {
    let bench = Bench::new(1 << 12);
    bench.spin_release(LOCK, LockKind::Spinlock);
    bench.spin_acquire(LOCK, LockKind::Spinlock);
    bench.spin_acquire(LOCK, LockKind::Spinlock);
    bench.spin_release(LOCK, LockKind::Spinlock);
    let capture = bench.capture();
    let hold = hold_of(&capture, LockKind::Spinlock);
    assert_eq!((hold.acquired, hold.holds), (2, 1));
    assert_eq!((lost(&capture, "lost_release"), lost(&capture, "unmatched_release")), (1, 1));
}

#[test]
#[ignore = "needs root"]
fn one_cpu_may_read_an_rwlock_twice() {
    let bench = Bench::new(1 << 12);
    for _ in 0..2 {
        bench.spin_acquire(LOCK, LockKind::RwlockRead);
    }
    for _ in 0..2 {
        bench.spin_release(LOCK, LockKind::RwlockRead);
    }
    let capture = bench.capture();
    let hold = hold_of(&capture, LockKind::RwlockRead);
    assert_eq!((hold.acquired, hold.holds), (2, 2));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn loss_spin_held_too_deep() {
    let bench = Bench::new(1 << 12);
    for nth in 0..17 {
        bench.spin_acquire(LOCK + 64 * nth, LockKind::Spinlock);
    }
    assert_eq!(lost(&bench.capture(), "spin_held_too_deep"), 16);
}

#[test]
#[ignore = "needs root"]
fn loss_spin_holds_full() {
    let bench = Bench::new(64);
    for nth in 0..200 {
        bench.spin_acquire(LOCK + 64 * nth, LockKind::Spinlock);
        bench.spin_release(LOCK + 64 * nth, LockKind::Spinlock);
    }
    let capture = bench.capture();
    let acquired: u64 = capture.holds.values().map(|hold| hold.acquired).sum();
    assert_eq!(acquired + lost(&capture, "spin_holds_full"), 200);
    assert!(acquired < 200, "the table is smaller than that");
}
