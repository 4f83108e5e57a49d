//! `--hold`: every acquisition counted, holds timed from acquire to release.

use crate::support::*;

/// Of the lock that was waited for; where waits are not seen, of the one that was held longest.
fn holds(report: &Report, kind: &str, waits_are_seen: bool) -> Option<(u64, u64)> {
    let locks = report.locks(kind).into_iter().filter(|lock| !lock["hold"].is_null());
    let hold_max_ns = |lock: &serde_json::Value| lock["hold"]["hold_max_ns"].as_u64().unwrap_or(0);
    let lock = if waits_are_seen {
        locks.filter(|lock| number(lock, "contended") > 0).max_by_key(|lock| number(lock, "wait_total_ns"))?
    } else {
        locks.max_by_key(|lock| hold_max_ns(lock))?
    };
    Some((hold_max_ns(lock), number(&lock["hold"], "acquired")))
}

/// The holder of the scenario keeps the lock for 100 ms in each of 3 rounds, the waiters briefly.
fn check(scenario: &str, kind: &str, family: Family) {
    let name = format!("{family:?}").to_lowercase();
    let (truth, report) =
        profile_scenario(&[scenario, "--waiters", "2", "--rounds", "3", "--hold-ms", "100"], &["--hold"]);
    if !hooks_functions() {
        assert!(report.says_blind(&name), "holds are not traced and nothing says so:\n{}", report.table);
        assert!(report.json["locks"].as_array().expect("locks").iter().all(|lock| lock["hold"].is_null()));
        return;
    }
    let found = holds(&report, kind, should_see(family));
    let (longest, acquired) =
        found.unwrap_or_else(|| panic!("no holds of the contended lock in:\n{}", report.table));
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
    check("pipe-mutex", "mutex", Family::Mutex);
}

#[test]
fn rwsem_write_holds_are_timed_from_acquire_to_release() {
    check("rwsem-write", "rwsem:W", Family::Rwsem);
}

#[test]
fn acquisitions_without_hold_are_unknown_and_not_zero() {
    let (_, report) =
        profile_scenario(&["pipe-mutex", "--waiters", "1", "--rounds", "1", "--hold-ms", "20"], &[]);
    for lock in report.json["locks"].as_array().expect("locks") {
        assert!(lock["hold"].is_null(), "{lock}");
    }
}
