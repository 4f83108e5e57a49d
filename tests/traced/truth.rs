//! Wait counts and times, and the place that waited, against what the workload knows it did.

use crate::support::*;
use serde_json::Value;

const SHAPE: [&str; 6] = ["--waiters", "3", "--rounds", "3", "--hold-ms", "100"];

fn scenario(name: &str) -> Vec<&str> {
    std::iter::once(name).chain(SHAPE).collect()
}

fn truth_row<'t>(truth: &'t Value, kind: &str) -> Vec<&'t Value> {
    let rows: Vec<&Value> = truth["locks"]
        .as_array()
        .expect("locks is a list")
        .iter()
        .filter(|row| row["kind"] == kind)
        .collect();
    assert!(!rows.is_empty(), "the workload made no {kind}");
    rows
}

/// The row of `kind` agrees with the truth: count, total, extremes, percentiles, histogram.
fn agrees(truth: &Value, report: &Report, truth_kind: &str, kind: &str) {
    let rows = truth_row(truth, truth_kind);
    assert!(rows.iter().all(|row| row["unproven"] == 0), "the workload is not sure: {truth}");
    let sum = |field| rows.iter().map(|row| number(row, field)).sum::<u64>();
    let lock = if kind.starts_with("futex") { report.futex(truth) } else { report.lock(kind) };
    assert_eq!(lock["type"], kind);
    let contended = number(lock, "contended");
    report.assert_counted(lock, "contended", sum("contended"));
    let shortest = rows.iter().map(|row| number(row, "wait_min_ns")).min().expect("a row");
    let longest = rows.iter().map(|row| number(row, "wait_max_ns")).max().expect("a row");
    let waits = Truth {
        waits: sum("contended"),
        total_ns: sum("wait_total_ns"),
        shortest_ns: shortest,
        longest_ns: longest,
    };
    assert_close(number(lock, "wait_total_ns"), contended, &waits, "total wait");
    // One wait alone: never shorter than the lock was held, never longer than the waiter saw it.
    let hold_ns = number(truth, "hold_ns");
    for (field, upper) in [("wait_min_ns", shortest), ("wait_max_ns", longest)] {
        let got = number(lock, field);
        assert!(
            hold_ns <= got && got <= upper + upper / 20,
            "{field}: {got} not in [{hold_ns}, {upper} + 5 %]"
        );
    }
    let in_histogram: u64 = lock["histogram"]
        .as_array()
        .expect("a histogram")
        .iter()
        .map(|b| b[2].as_u64().expect("a count"))
        .sum();
    assert_eq!(in_histogram, contended, "every contended wait is in the histogram");
    let p50 = number(lock, "wait_p50_ns");
    assert!(hold_ns - hold_ns / 20 <= p50 && p50 <= longest, "p50 {p50} not in [{hold_ns}, {longest}]");
    assert!(number(lock, "wait_p99_ns") <= number(lock, "wait_max_ns"));
}

fn only_the_target_appears(report: &Report, pid: u64) {
    for lock in report.json["locks"].as_array().expect("locks") {
        for site in lock["sites"].as_array().expect("sites") {
            assert_eq!(site["pid"], pid, "another process in {lock}");
        }
    }
}

/// All waiters came while one thread held the lock; then they got it one after the other.
fn owner_and_releases_match_the_truth(truth: &Value, report: &Report, kind: &str) {
    let (lock, holder) = (report.lock(kind), number(truth, "holder_tid"));
    let waits = number(lock, "contended") + number(lock, "aborted");
    let owners = &lock["owners"];
    let tasks = owners["tasks"].as_array().expect("tasks is a list");
    let begun = |task: &Value| number(task, "waits_begun");
    let known: u64 = tasks.iter().map(begun).sum();
    // A begin that the kernel skipped has no owner, and an end that it skipped is no wait.
    let all = known + number(owners, "nobody") + number(owners, "readers");
    let skipped = report.skipped_runs();
    assert!(all <= waits + skipped && all + skipped >= waits, "{waits} waits: {owners}");
    let by_holder = tasks.iter().filter(|task| number(task, "tid") == holder).map(begun).sum::<u64>();
    assert!(by_holder + skipped >= waits, "{by_holder} of {waits} while {holder} held it: {owners}");
    let of_holder = tasks.iter().find(|task| number(task, "tid") == holder).expect("the holder is there");
    assert_eq!(of_holder["pid"], truth["pid"]);
    assert_eq!(of_holder["comm"], "holder");

    if !should_see_releases(kind) {
        assert!(lock["contended_releases"].is_null(), "unknown is null: {lock}");
        assert!(
            report.json["plan"].to_string().contains("releases of locks somebody waits for") || realtime()
        );
        return;
    }
    // The holder's, and that of every waiter but the last of a round.
    let releases = number(lock, "contended_releases");
    assert!(
        releases <= waits + skipped && releases + skipped >= waits,
        "{releases} releases, {waits} waits\n{}",
        report.table
    );
}

fn nothing_was_lost(report: &Report) {
    for reason in ["sites_map_full", "locks_map_full", "stacks_map_full", "waits_map_full"] {
        assert_eq!(report.loss(reason), 0, "{reason}");
    }
    assert_eq!(report.known_loss("kprobe_misses").unwrap_or(0), 0);
}

fn check(scenario_name: &str, family: Family, truth_kind: &str, kind: &str) -> Option<(Value, Report)> {
    let (truth, report) = profile_scenario(&scenario(scenario_name), &[]);
    if !should_see(family) {
        assert!(report.locks(kind).is_empty(), "{kind} seen by a method that cannot:\n{}", report.table);
        let family = format!("{family:?}").to_lowercase();
        assert!(report.says_blind(&family), "blind for {family} and does not say so:\n{}", report.table);
        assert!(report.table.contains("not seen:"), "{}", report.table);
        return None;
    }
    agrees(&truth, &report, truth_kind, kind);
    only_the_target_appears(&report, truth["pid"].as_u64().expect("a pid"));
    nothing_was_lost(&report);
    Some((truth, report))
}

/// The kernel functions that take the lock in each scenario, over all kernels of the matrix (read
/// from /proc/PID/stack with nothing hooked; under hooks that file shows trampolines).
fn call_site_is_one_of(report: &Report, kind: &str, callers: &[&str]) {
    let got = report.lock(kind)["call_site"].as_str().expect("a call site");
    assert!(callers.contains(&got), "call site {got}, truth {callers:?}\n{}", report.table);
}

#[test]
fn pthread_mutex_waits_match_the_truth_and_rank_first() {
    if let Some((_, report)) = check("pthread-mutex", Family::Futex, "futex", "futex") {
        let addr = &report.lock("futex")["addr"];
        assert!(
            addr.as_str().is_some_and(|text| text.starts_with("0x")),
            "addresses are hex strings: {addr}"
        );
    }
}

#[test]
fn rust_mutex_waits_by_wait_bitset_match_the_truth() {
    if let Some((truth, report)) = check("rust-mutex", Family::Futex, "futex", "futex") {
        let site = report.futex(&truth)["call_site"].as_str().expect("a call site");
        assert!(site.contains("wait_for_rust_mutex"), "{site}\n{}", report.table);
        let wakes = &report.futex(&truth)["wakes"];
        let seen = number(wakes, "woken") + report.skipped_runs();
        assert!(seen >= 9, "every waiter was woken by somebody: {wakes}");
    }
}

#[test]
fn priority_inheriting_mutex_waits_are_a_kind_of_their_own() {
    check("pi-mutex", Family::Futex, "futex", "futex-pi");
}

#[test]
fn waits_that_time_out_are_aborted_and_not_contended() {
    // The timeout is half of the hold: long enough for a slow guest to get to sleep before it.
    let shape = ["pthread-timed", "--waiters", "3", "--rounds", "3", "--hold-ms", "500"];
    let (truth, report) = profile_scenario(&shape, &[]);
    if !should_see(Family::Futex) {
        assert!(report.says_blind("futex"));
        return;
    }
    let row = truth_row(&truth, "futex")[0];
    let addr = &row["addr"];
    let lock =
        report.locks("futex").into_iter().find(|lock| lock["addr"] == *addr).expect("the lock is there");
    let (aborted, truth_aborted) = (number(lock, "aborted"), number(row, "aborted"));
    report.assert_counted(lock, "aborted", truth_aborted);
    // Every one of them gave up after about the same time.
    let average_ns = number(row, "aborted_ns") / truth_aborted;
    let waits = Truth {
        waits: truth_aborted,
        total_ns: number(row, "aborted_ns"),
        shortest_ns: average_ns,
        longest_ns: average_ns,
    };
    assert_close(number(lock, "aborted_total_ns"), aborted, &waits, "aborted time");
    assert_eq!(number(lock, "contended"), 0);
    assert!(lock["wait_min_ns"].is_null() && lock["wait_p50_ns"].is_null(), "unknown is null, not 0: {lock}");
}

#[test]
fn kernel_mutex_waits_in_a_pipe_match_the_truth_and_the_caller() {
    if let Some((truth, report)) = check("pipe-mutex", Family::Mutex, "mutex", "mutex") {
        owner_and_releases_match_the_truth(&truth, &report, "mutex");
        call_site_is_one_of(
            &report,
            "mutex",
            &["pipe_write", "pipe_read", "anon_pipe_write", "anon_pipe_read"],
        );
    }
}

#[test]
fn f_pos_lock_waits_match_the_truth_and_the_caller() {
    if let Some((truth, report)) = check("fpos-mutex", Family::Mutex, "mutex", "mutex") {
        owner_and_releases_match_the_truth(&truth, &report, "mutex");
        call_site_is_one_of(&report, "mutex", &["__fdget_pos", "fdget_pos"]);
    }
}

#[test]
fn i_rwsem_write_waits_match_the_truth_and_the_caller() {
    if let Some((truth, report)) = check("rwsem-write", Family::Rwsem, "rwsem:W", "rwsem:W") {
        owner_and_releases_match_the_truth(&truth, &report, "rwsem:W");
        call_site_is_one_of(&report, "rwsem:W", &["generic_file_write_iter", "shmem_file_write_iter"]);
    }
}

#[test]
fn reader_wait_is_charged_to_the_read_side() {
    let (truth, report) = profile_scenario(&scenario("rwsem-read"), &[]);
    if !should_see(Family::Rwsem) {
        assert!(report.locks("rwsem:R").is_empty() && report.says_blind("rwsem"), "{}", report.table);
        return;
    }
    agrees(&truth, &report, "rwsem:W", "rwsem:W");
    let (writers, owners) = (number(report.lock("rwsem:W"), "contended"), &report.lock("rwsem:W")["owners"]);
    let read_owned = number(owners, "readers");
    // On PREEMPT_RT a second writer waits for the first one, which has the inner rt_mutex.
    let least = if realtime() { 1 } else { writers };
    assert!(read_owned + report.skipped_runs() >= least, "readers held it: {owners}");
    let passed = truth["locks"].as_array().expect("locks").iter().any(|row| row["unproven"] != 0);
    if passed {
        // 5.10's readers spin, and may take a lock that readers hold past a queued writer
        // (rwsem_optimistic_spin; removed in 5.11 with reader optimistic spinning, 617f3ef95177).
        assert!(kernel() < (5, 11), "{truth}");
    } else {
        agrees(&truth, &report, "rwsem:R", "rwsem:R");
        only_the_target_appears(&report, truth["pid"].as_u64().expect("a pid"));
        call_site_is_one_of(&report, "rwsem:R", &["iterate_dir"]);
        call_site_is_one_of(&report, "rwsem:W", &["path_openat", "lookup_open"]);
        assert_eq!(
            report.lock("rwsem:R")["addr"],
            report.lock("rwsem:W")["addr"],
            "two sides of one lock have one address"
        );
    }
}

#[test]
fn many_threads_may_wait_for_one_lock_at_once() {
    // A kretprobe with the kernel's default room loses the ends of all but 2 × CPUs of them.
    let (truth, report) =
        profile_scenario(&["pthread-mutex", "--waiters", "100", "--rounds", "1", "--hold-ms", "20"], &[]);
    if !should_see(Family::Futex) {
        assert!(report.says_blind("futex"));
        return;
    }
    let row = truth_row(&truth, "futex")[0];
    let addr = &row["addr"];
    let lock =
        report.locks("futex").into_iter().find(|lock| lock["addr"] == *addr).expect("the lock is there");
    report.assert_counted(lock, "contended", 100);
    let contended = number(lock, "contended");
    let waits = Truth {
        waits: 100,
        total_ns: number(row, "wait_total_ns"),
        shortest_ns: number(row, "wait_min_ns"),
        longest_ns: number(row, "wait_max_ns"),
    };
    assert_close(number(lock, "wait_total_ns"), contended, &waits, "total wait of 100 threads");
    assert_eq!(report.known_loss("kprobe_misses").unwrap_or(0), 0);
}

#[test]
fn a_table_that_goes_into_a_pipe_is_120_columns_wide() {
    let (_, report) = profile_scenario(&scenario("pthread-mutex"), &[]);
    // Terminals of every width: src/render/mod.rs.
    for line in report.table.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}
