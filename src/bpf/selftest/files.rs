//! Waits for file locks: attempts come in, waits come out.

use super::*;

const INODE: u64 = 0xffff_8880_0dea_d000;
const OTHER_INODE: u64 = INODE + 0x400;
const NO_LOCK: u64 = 0xffff_8880_0bad_0000;
/// include/linux/filelock.h
const DEFERRED: i64 = 1;

fn attempt(bench: &Bench, program: &str, inode: u64, ret: i64) {
    bench.run(program, &[inode, NO_LOCK, ret as u64]);
}

fn flock(bench: &Bench, inode: u64, ret: i64) {
    attempt(bench, "flock_lock_inode__tp", inode, ret);
}

fn posix(bench: &Bench, inode: u64, ret: i64) {
    attempt(bench, "posix_lock_inode__tp", inode, ret);
}

#[test]
#[ignore = "needs root"]
fn locks_and_unlocks_of_files_nobody_waits_for_are_no_events() {
    let bench = Bench::new(64);
    for _ in 0..3 {
        flock(&bench, INODE, 0);
        posix(&bench, INODE, 0);
        posix(&bench, INODE, i64::from(-libc::EAGAIN));
    }
    let capture = bench.capture();
    assert_eq!((capture.sites.len(), capture.events.events_seen), (0, 0));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_file_lock_deferred_again_after_a_wake_is_one_wait() {
    let bench = Bench::new(64);
    flock(&bench, INODE, DEFERRED);
    flock(&bench, INODE, DEFERRED);
    flock(&bench, INODE, DEFERRED);
    flock(&bench, INODE, 0);
    flock(&bench, INODE, 0);
    let capture = bench.capture();
    let (site, wait) = &capture.sites[0];
    assert_eq!((site.lock.kind, site.lock.addr), (LockKind::Flock, INODE));
    assert_eq!((wait.contended, wait.spin_total_ns), (1, Some(0)));
    assert_eq!((capture.events.waits_begun, capture.events.waits_ended), (1, 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_posix_lock_given_up_for_a_signal_is_aborted() {
    let bench = Bench::new(64);
    posix(&bench, INODE, DEFERRED);
    // The end of another thread's system call, and of one for another file, end nothing.
    bench.run_elsewhere("fcntl_setlk__tp", &[INODE, NO_LOCK, 0]);
    bench.run("fcntl_setlk__tp", &[OTHER_INODE, NO_LOCK, 0]);
    assert_eq!(bench.capture().in_flight.len(), 1);
    bench.run("fcntl_setlk__tp", &[INODE, NO_LOCK, i64::from(-libc::EINTR) as u64]);
    let capture = bench.capture();
    let wait = capture.sites[0].1;
    assert_eq!((wait.contended, wait.aborted, capture.in_flight.len()), (0, 1, 0));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_refused_attempt_after_a_wait_is_aborted() {
    let bench = Bench::new(64);
    posix(&bench, INODE, DEFERRED);
    posix(&bench, INODE, i64::from(-libc::EDEADLK));
    bench.run("fcntl_setlk__tp", &[INODE, NO_LOCK, i64::from(-libc::EDEADLK) as u64]);
    let capture = bench.capture();
    let wait = capture.sites[0].1;
    assert_eq!((wait.contended, wait.aborted, capture.events.waits_ended), (0, 1, 1));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn a_kernel_lock_waited_for_between_two_attempts_leaves_the_file_lock_alone() {
    let bench = Bench::new(64);
    flock(&bench, INODE, DEFERRED);
    bench.wait(LOCK, PERCPU | READ);
    flock(&bench, INODE, 0);
    let capture = bench.capture();
    let kinds: std::collections::BTreeSet<LockKind> =
        capture.sites.iter().map(|(site, _)| site.lock.kind).collect();
    assert_eq!(kinds, [LockKind::PercpuRwsemRead, LockKind::Flock].into());
    clean(&capture);
}
