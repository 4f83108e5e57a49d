//! Releases of locks that somebody waits for, and who owned them.

use super::*;
use crate::model::{LockId, RawLock};

const OTHER_LOCK: u64 = LOCK + 0x100;
const KIND: LockKind = LockKind::Mutex;

fn release(bench: &Bench, lock: u64) {
    bench.run("release__selftest", &[lock, wire::kind_bit(KIND).trailing_zeros().into()]);
}

fn owned(bench: &Bench, lock: u64, tid: u32) {
    bench.run("owner__selftest", &[lock, wire::kind_bit(KIND).trailing_zeros().into(), tid.into()]);
}

fn of_lock(capture: &RawCapture, addr: u64) -> RawLock {
    capture.locks.get(&LockId { kind: KIND, addr, pid: None }).cloned().unwrap_or_default()
}

#[test]
#[ignore = "needs root"]
fn a_release_counts_while_somebody_waits_for_that_lock() {
    let bench = Bench::new(64);
    release(&bench, LOCK);
    bench.begin(LOCK, MUTEX);
    release(&bench, OTHER_LOCK);
    release(&bench, LOCK);
    release(&bench, LOCK);
    bench.end(LOCK, 0);
    release(&bench, LOCK);
    let capture = bench.capture();
    assert_eq!(of_lock(&capture, LOCK).contended_releases, 2);
    assert_eq!(of_lock(&capture, OTHER_LOCK), RawLock::default(), "nobody waits, so nothing is kept");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_lock_is_waited_for_until_its_last_waiter_has_it() {
    let bench = Bench::new(64);
    bench.begin(LOCK, MUTEX);
    bench.run_elsewhere("contention_begin__tp", &[LOCK, MUTEX]);
    release(&bench, LOCK);
    bench.end(LOCK, 0);
    release(&bench, LOCK);
    let capture = bench.capture();
    assert_eq!(of_lock(&capture, LOCK).contended_releases, 2);
    assert_eq!(capture.in_flight.len(), 1);
}

#[test]
#[ignore = "needs root"]
fn a_waiter_that_gave_up_or_whose_end_was_missed_waits_no_more() {
    let bench = Bench::new(64);
    bench.begin(LOCK, MUTEX);
    bench.end(LOCK, -libc::EINTR);
    release(&bench, LOCK);
    // It waits for another lock already.
    bench.begin(LOCK, MUTEX);
    bench.begin(OTHER_LOCK, MUTEX);
    release(&bench, LOCK);
    release(&bench, OTHER_LOCK);
    let capture = bench.capture();
    assert_eq!(of_lock(&capture, LOCK).contended_releases, 0);
    assert_eq!(of_lock(&capture, OTHER_LOCK).contended_releases, 1);
    assert_eq!(lost(&capture, "unpaired_begin"), 1);
}

#[test]
#[ignore = "needs root"]
fn a_lock_without_a_readable_owner_word_is_owned_by_nobody() {
    /// No kernel has an address like it.
    const NOWHERE: u64 = 0x1000_0000_0000_0000;
    let bench = Bench::new(64);
    bench.wait(NOWHERE, MUTEX);
    let capture = bench.capture();
    assert_eq!((of_lock(&capture, NOWHERE).begun_unowned, capture.owners.len()), (1, 0));
}

#[test]
#[ignore = "needs root"]
fn loss_owners_map_full() {
    const ROOM: u32 = 4;
    let bench = Bench::new(ROOM);
    for tid in 1..=ROOM {
        owned(&bench, LOCK, tid);
        owned(&bench, LOCK, tid);
    }
    let capture = bench.capture();
    assert_eq!(lost(&capture, "owners_map_full"), 0);
    assert!(capture.owners.len() == 4 && capture.owners.iter().all(|(_, _, waits)| *waits == 2));
    for tid in ROOM + 1..=ROOM + 3 {
        owned(&bench, LOCK, tid);
    }
    assert_eq!(lost(&bench.capture(), "owners_map_full"), 3);
}
