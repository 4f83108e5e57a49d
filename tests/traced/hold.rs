//! `--hold`: every acquisition counted, holds timed from acquire to release.

use crate::support::*;

fn holds(report: &Report, kind: &str) -> Option<(u64, u64)> {
    let lock = report.locks(kind).into_iter().find(|lock| number(lock, "contended") > 0)?;
    let hold = &lock["hold"];
    (!hold.is_null()).then(|| (number(hold, "hold_max_ns"), number(hold, "acquired")))
}

fn hooks_functions() -> bool {
    !only_tracepoints() && method() != Method::Tracepoint
}

/// The holder of the scenario keeps the lock for 100 ms in each of 3 rounds, the waiters briefly.
fn check(scenario: &str, kind: &str, family: &str) {
    let (truth, report) =
        profile_scenario(&[scenario, "--waiters", "2", "--rounds", "3", "--hold-ms", "100"], &["--hold"]);
    if !hooks_functions() {
        assert!(report.says_blind(family), "holds are not traced and nothing says so:\n{}", report.table);
        assert!(report.json["locks"].as_array().expect("locks").iter().all(|lock| lock["hold"].is_null()));
        return;
    }
    let (longest, acquired) = holds(&report, kind).expect("holds of the contended lock");
    // The holder has the lock from before the first waiter queues until 100 ms after the last did.
    let hold_ns = number(&truth, "hold_ns");
    assert!(longest >= hold_ns, "longest hold {longest}, chosen {hold_ns}\n{}", report.table);
    let longest_wait =
        truth["locks"].as_array().expect("locks").iter().map(|row| number(row, "wait_max_ns")).max();
    let upper = longest_wait.expect("a wait");
    // The first waiter comes a moment after the acquire.
    let slack = (upper / 20).max(20_000_000);
    assert!(longest <= upper + slack, "longest hold {longest}, longest wait {upper}");
    // 3 rounds: one holder and two waiters each, at least.
    assert!(acquired + report.skipped_runs() >= 9, "{acquired} acquisitions");
}

#[test]
fn mutex_holds_are_timed_from_acquire_to_release() {
    check("pipe-mutex", "mutex", "mutex");
}

#[test]
fn rwsem_write_holds_are_timed_from_acquire_to_release() {
    check("rwsem-write", "rwsem:W", "rwsem");
}

#[test]
fn acquisitions_without_hold_are_unknown_and_not_zero() {
    let (_, report) =
        profile_scenario(&["pipe-mutex", "--waiters", "1", "--rounds", "1", "--hold-ms", "20"], &[]);
    for lock in report.json["locks"].as_array().expect("locks") {
        assert!(lock["hold"].is_null(), "{lock}");
    }
}
