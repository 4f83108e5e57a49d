//! Each family beyond mutex, rwsem and futex: counts and times against the truth; waits that gave up;
//! profiles that start in the middle. And the locks that are not seen.

use crate::support::*;
use serde_json::Value;

const SHAPE: [&str; 6] = ["--waiters", "2", "--rounds", "2", "--hold-ms", "100"];
const WAITERS: u64 = 2;
const ROUNDS: u64 = 2;

fn shaped<'a>(scenario: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    std::iter::once(scenario).chain(SHAPE).chain(more.iter().copied()).collect()
}

/// The one row of the truth of a kind; the workload is sure of it.
fn truth_row<'t>(truth: &'t Value, kind: &str) -> &'t Value {
    let rows = truth["locks"].as_array().expect("locks is a list");
    let row = rows.iter().find(|row| row["kind"] == kind).expect("the workload made it");
    assert_eq!(row["unproven"], 0, "the workload is not sure: {truth}");
    row
}

fn only_the_target_appears(truth: &Value, report: &Report) {
    for lock in report.json["locks"].as_array().expect("locks") {
        for part in ["sites", "in_flight"] {
            for row in lock[part].as_array().expect("a list") {
                assert_eq!(row["pid"], truth["pid"], "another process in {lock}");
            }
        }
    }
}

/// No number is impossible: what u64 arithmetic makes of a difference below zero is longer than the profile.
fn numbers_are_possible(report: &Report) {
    let ran = number(&report.json["meta"], "duration_ns");
    for lock in report.json["locks"].as_array().expect("locks") {
        let contended = number(lock, "contended");
        let longest = lock["wait_max_ns"].as_u64();
        assert_eq!(longest.is_some(), contended > 0, "{lock}");
        // Timed by two clocks that are not read at once.
        assert!(longest.unwrap_or(0) <= ran + ran / 20, "longer than the profile, {ran} ns: {lock}");
        assert!(number(lock, "wait_total_ns") <= contended * longest.unwrap_or(0), "{lock}");
        let average = number(lock, "wait_total_ns").checked_div(contended);
        assert_eq!(lock["avg_wait_ns"].as_u64(), average, "of contended waits only: {lock}");
        if let Some(spun) = lock["wait_spin_total_ns"].as_u64() {
            assert!(spun <= number(lock, "wait_total_ns"), "{lock}");
        }
        if !lock["hold"].is_null() {
            let hold = &lock["hold"];
            assert!(number(hold, "holds") <= number(hold, "acquired"), "{hold}");
            assert!(hold["hold_max_ns"].as_u64().unwrap_or(0) <= ran + ran / 20, "{hold}");
        }
    }
}

fn has_frame(site: &Value, names: &[&str]) -> bool {
    let frames = site["kernel_stack"]["frames"].as_array();
    let mut functions = frames.into_iter().flatten().filter_map(|frame| frame["function"].as_str());
    functions.any(|function| names.iter().any(|name| function.contains(name)))
}

fn says_blind(report: &Report, family: &str, kinds: &[&str]) {
    for kind in kinds {
        assert!(report.locks(kind).is_empty(), "{kind} seen by a method that cannot:\n{}", report.table);
    }
    assert!(report.says_blind(family), "blind for {family} and does not say so:\n{}", report.table);
    assert!(report.table.contains("not seen:"), "{}", report.table);
}

/// The waits of a row, by count and time. The workload's times have what comes before and after the wait
/// inside the system call too.
fn waits_match(report: &Report, lock: &Value, truth: &Value, hold_ns: u64) {
    report.assert_counted(lock, "contended", number(truth, "contended"));
    let (contended, total) = (number(lock, "contended"), number(lock, "wait_total_ns"));
    assert!(total >= contended * hold_ns, "{total} ns in {contended} waits of at least {hold_ns}: {lock}");
    assert!(total <= number(truth, "wait_total_ns"), "{total} ns, truth {truth}");
    assert!(number(lock, "wait_max_ns") <= number(truth, "wait_max_ns"), "{lock} {truth}");
    assert_eq!(number(lock, "aborted"), 0);
}

#[test]
#[ignore = "holds up every fork of the machine: in the guests only, tests/vm/suite"]
fn percpu_rwsem_waits_match_the_truth_by_side() {
    let (truth, report) = profile_scenario(&shaped("percpu-rwsem", &[]), &[]);
    numbers_are_possible(&report);
    only_the_target_appears(&truth, &report);
    if !should_see(Family::PercpuRwsem) {
        return says_blind(&report, "percpu-rwsem", &["pcpu-sem:R", "pcpu-sem:W"]);
    }
    let hold_ns = number(&truth, "hold_ns");
    let readers = report.lock("pcpu-sem:R");
    waits_match(&report, readers, truth_row(&truth, "pcpu-sem:R"), hold_ns);
    let site = readers["call_site"].as_str().expect("a call site");
    assert!(["uprobe_start_dup_mmap", "dup_mmap", "dup_mm"].contains(&site), "{site}\n{}", report.table);

    // 6.1's contention_begin is for every writer, 6.12's and later ones' not for one that waits for readers only.
    if method() == Method::Tracepoint && kernel() >= (6, 12) {
        let plan = report.json["plan"].to_string();
        assert!(plan.contains("writers of a percpu rw_semaphore"), "a hole, and nothing says so: {plan}");
        return;
    }
    // Every percpu_down_write() is a wait: of detached uprobes too, which waited for nobody.
    let (writers, row) = (report.lock("pcpu-sem:W"), truth_row(&truth, "pcpu-sem:W"));
    let (contended, made) = (number(writers, "contended"), number(row, "contended"));
    assert!(contended + report.skipped_runs() >= made, "{contended} of {made}\n{}", report.table);
    let total = number(writers, "wait_total_ns");
    assert!(total + report.skipped_runs() * hold_ns >= made * hold_ns, "{total} ns: {writers}");
    assert_eq!(readers["addr"], writers["addr"], "two sides of one lock have one address");
    let site = writers["call_site"].as_str().expect("a call site");
    assert!(site.contains("register_for_each_vma") || site.contains("uprobe"), "{site}\n{}", report.table);
}

#[test]
#[ignore = "keeps a CPU of the machine busy: in the guests only, tests/vm/suite"]
fn semaphore_waits_match_the_truth() {
    let (truth, report) = profile_scenario(&shaped("semaphore", &[]), &[]);
    numbers_are_possible(&report);
    only_the_target_appears(&truth, &report);
    if !should_see(Family::Semaphore) {
        return says_blind(&report, "semaphore", &["semaphore"]);
    }
    let row = truth_row(&truth, "semaphore");
    let lock = report.lock("semaphore");
    // The waiters come by ioctl; the holder, which writes all the time, may run into one of them.
    let waiters: Vec<&Value> =
        lock["sites"].as_array().expect("sites").iter().filter(|site| has_frame(site, &["ioctl"])).collect();
    let (contended, made) =
        (waiters.iter().map(|site| number(site, "contended")).sum::<u64>(), number(row, "contended"));
    assert!(
        contended <= made && contended + report.skipped_runs() >= made,
        "{contended} of {made}\n{}",
        report.table
    );
    let total: u64 = waiters.iter().map(|site| number(site, "wait_total_ns")).sum();
    assert!(total >= contended * number(&truth, "hold_ns"), "{total} ns\n{}", report.table);
    // Each of these waits ended with an up(), if not for it then for one that had come before.
    if method() == Method::Auto && !only_tracepoints() {
        assert!(number(lock, "contended_releases") + report.skipped_runs() >= contended, "{lock}");
    }
    assert!(total <= number(row, "wait_total_ns"), "{total} ns, truth {row}");
    let site = lock["call_site"].as_str().expect("a call site");
    assert_eq!(site, "console_lock", "{}", report.table);
}

#[test]
fn interrupted_waits_are_aborted_and_not_contended_and_only_the_targets() {
    let mut other = Workload::gated(&shaped("interrupted", &[]));
    let mut target = Workload::gated(&shaped("interrupted", &[]));
    let profiler = Profiler::start(&["-p", &target.pid.to_string()]);
    other.open_gate();
    target.open_gate();
    let other = other.finish();
    let truth = target.finish();
    let report = profiler.finish();
    assert_ne!(other["pid"], truth["pid"]);
    numbers_are_possible(&report);
    only_the_target_appears(&truth, &report);
    if !should_see(Family::Mutex) {
        return says_blind(&report, "mutex", &["mutex"]);
    }
    let row = truth_row(&truth, "mutex");
    assert_eq!(number(row, "aborted"), WAITERS * ROUNDS, "{truth}");
    let aborted: Vec<&Value> =
        report.locks("mutex").into_iter().filter(|lock| number(lock, "aborted") > 0).collect();
    assert_eq!(aborted.len(), 1, "one lock was given up\n{}", report.table);
    let lock = aborted[0];
    report.assert_counted(lock, "aborted", number(row, "aborted"));
    assert_eq!(number(lock, "contended"), 0, "{lock}");
    assert!(lock["wait_max_ns"].is_null() && lock["avg_wait_ns"].is_null(), "unknown is null: {lock}");
    let (got, total) = (number(lock, "aborted"), number(lock, "aborted_total_ns"));
    assert!(total >= got * number(&truth, "hold_ns"), "{total} ns in {got}");
    assert!(total <= number(row, "aborted_ns"), "{total} ns, truth {row}");
    assert_eq!(lock["call_site"], "n_tty_read", "{}", report.table);
}

#[test]
fn killed_waiters_are_aborted_and_leave_nothing_in_flight() {
    let workload = workload_path().display().to_string();
    let args: Vec<&str> = ["--", &workload].into_iter().chain(shaped("killed", &[])).collect();
    let report = Profiler::start(&args).finish();
    let truth = report.truth();
    numbers_are_possible(&report);
    if !should_see(Family::Rwsem) {
        return says_blind(&report, "rwsem", &["rwsem:R", "rwsem:W"]);
    }
    let rows = truth["locks"].as_array().expect("locks");
    if rows.iter().any(|row| row["unproven"] != 0) {
        // 5.10's readers spin, and may pass a queued writer: truth.rs.
        assert!(kernel() < (5, 11), "{truth}");
        return;
    }
    let row = truth_row(&truth, "rwsem:R");
    let lock = report
        .locks("rwsem:R")
        .into_iter()
        .find(|lock| number(lock, "aborted") > 0)
        .unwrap_or_else(|| panic!("nobody gave up\n{}", report.table));
    report.assert_counted(lock, "aborted", number(row, "aborted"));
    assert_eq!(number(lock, "contended"), 0, "{lock}");
    assert!(lock["in_flight"].as_array().expect("a list").is_empty(), "{lock}");
    let total = number(lock, "aborted_total_ns");
    if report.skipped_runs() == 0 {
        assert!(total >= number(&truth, "aborted_at_least_ns"), "{total} ns, {truth}");
    }
    assert!(total <= number(&truth, "aborted_at_most_ns"), "{total} ns, {truth}");
    // The one that waits for writing before them gets it.
    let writers = report.locks("rwsem:W").into_iter().find(|writers| writers["addr"] == lock["addr"]);
    report.assert_counted(writers.expect("the writer"), "contended", ROUNDS);
}

/// Starts the profile where the workload's gate is, in the middle of the first round.
fn profile_from(gate: &str, lockprof_args: &[&str]) -> (Value, Report) {
    let (truth, report) = profile_scenario(&shaped("pipe-mutex", &["--gate-at", gate]), lockprof_args);
    numbers_are_possible(&report);
    only_the_target_appears(&truth, &report);
    (truth, report)
}

fn all_contended(truth: &Value) -> u64 {
    let rows = truth["locks"].as_array().expect("locks");
    assert!(rows.iter().all(|row| row["unproven"] == 0), "{truth}");
    rows.iter().map(|row| number(row, "contended")).sum()
}

#[test]
fn a_hold_that_began_before_the_profile_is_an_unmatched_release() {
    let (truth, report) = profile_from("held", &["--hold=mutex"]);
    let made = all_contended(&truth);
    assert_eq!(made, WAITERS * ROUNDS);
    if !should_see(Family::Mutex) {
        return says_blind(&report, "mutex", &["mutex"]);
    }
    let lock = report.lock("mutex");
    report.assert_counted(lock, "contended", made);
    if !hooks_functions() {
        assert!(lock["hold"].is_null() && report.says_blind("mutex"), "{}", report.table);
        return;
    }
    assert!(report.loss("unmatched_release") + report.skipped_runs() >= 1, "{}", report.table);
    // The holder took it without waiting in the second round; the workload may, besides.
    let (acquired, contended) = (number(&lock["hold"], "acquired"), number(lock, "contended"));
    assert!(acquired > contended, "{acquired} acquired, {contended} contended");
    // The hold of the first round, 100 ms and more, is not made up from its second half.
    let longest = number(&lock["hold"], "hold_max_ns");
    assert!(longest >= number(&truth, "hold_ns") || report.skipped_runs() > 0, "the second round's: {lock}");
    let total = number(&lock["hold"], "hold_total_ns");
    assert!(total < 2 * longest, "two long holds, and one of them began before the profile: {lock}");
    let average = number(lock, "avg_wait_ns");
    assert!(average >= number(&truth, "hold_ns"), "over contended waits only, not over {acquired}: {lock}");
}

#[test]
fn waits_that_began_before_the_profile_are_not_made_up() {
    let (truth, report) = profile_from("blocked", &[]);
    let made = all_contended(&truth);
    if !should_see(Family::Mutex) {
        return says_blind(&report, "mutex", &["mutex"]);
    }
    let contended: u64 = report.locks("mutex").iter().map(|lock| number(lock, "contended")).sum();
    let later = made - WAITERS;
    let ends_are_seen = method() == Method::Tracepoint || only_tracepoints() || realtime();
    if ends_are_seen {
        // A woken waiter that does not get the lock at once says begin again: a short wait of its own.
        let unpaired = report.loss("unpaired_end");
        assert!(contended <= made && contended + report.skipped_runs() >= later, "{}", report.table);
        assert!(contended + unpaired + report.skipped_runs() >= made, "{contended} + {unpaired} of {made}");
    } else {
        assert!(contended <= later && contended + report.skipped_runs() >= later, "{contended} of {later}");
        assert!(report.loss("unpaired_end") <= report.skipped_runs(), "{}", report.table);
    }
    let total: u64 = report.locks("mutex").iter().map(|lock| number(lock, "wait_total_ns")).sum();
    let known: u64 =
        truth["locks"].as_array().expect("locks").iter().map(|row| number(row, "wait_total_ns")).sum();
    assert!(total <= known, "{total} ns of {known}");
    assert!(report.loss("unpaired_begin") <= report.skipped_runs(), "{}", report.table);
}

#[test]
fn acquisitions_that_were_entered_before_the_profile_end_in_unmatched_releases() {
    let (truth, report) = profile_from("blocked", &["--hold=mutex"]);
    let made = all_contended(&truth);
    if !hooks_functions() {
        assert!(report.says_blind("mutex"), "{}", report.table);
        return;
    }
    // The holder's, and those of the waiters: neither fexit nor a kretprobe is left by who came before it.
    let unmatched = report.loss("unmatched_release");
    assert!(unmatched + report.skipped_runs() > WAITERS, "{unmatched}\n{}", report.table);
    let lock = report.lock("mutex");
    let (acquired, contended) = (number(&lock["hold"], "acquired"), number(lock, "contended"));
    assert!(contended <= made - WAITERS, "{contended}\n{}", report.table);
    assert!(acquired > contended, "{acquired} acquired, {contended} contended");
}

fn file_lock_waits_match_the_truth(kind: &str, callers: &[&str]) {
    let (truth, report) = profile_scenario(&shaped(kind, &[]), &["--file-locks"]);
    numbers_are_possible(&report);
    only_the_target_appears(&truth, &report);
    let row = truth_row(&truth, kind);
    if matches!(method(), Method::Fentry | Method::Kprobe) {
        return says_blind(&report, "file-lock", &["flock", "posix-lock"]);
    }
    let lock = report.lock(kind);
    let (contended, made) = (number(lock, "contended"), number(row, "contended"));
    assert_eq!(made, WAITERS * ROUNDS);
    report.assert_counted(lock, "contended", made);
    let waits = Truth {
        waits: made,
        total_ns: number(row, "wait_total_ns"),
        shortest_ns: number(row, "wait_min_ns"),
        longest_ns: number(row, "wait_max_ns"),
    };
    assert_close(number(lock, "wait_total_ns"), contended, &waits, kind);
    assert_eq!(number(lock, "wait_spin_total_ns"), 0, "nobody spins for a file");
    assert_eq!(number(lock, "aborted"), 0, "{lock}");
    let site = lock["call_site"].as_str().expect("a call site");
    assert!(callers.contains(&site), "{site}\n{}", report.table);
}

#[test]
fn flock_waits_match_the_truth() {
    file_lock_waits_match_the_truth("flock", &["__x64_sys_flock", "__do_sys_flock", "__se_sys_flock"]);
}

#[test]
fn posix_lock_waits_match_the_truth() {
    file_lock_waits_match_the_truth("posix-lock", &["do_fcntl", "__x64_sys_fcntl"]);
}

#[test]
fn file_locks_cost_nothing_and_say_nothing_unless_they_are_asked_for() {
    let (_, report) = profile_scenario(&shaped("flock", &[]), &[]);
    numbers_are_possible(&report);
    assert!(report.locks("flock").is_empty(), "{}", report.table);
    let plan = report.json["plan"].to_string();
    assert!(!plan.contains("lock_inode") && !plan.contains("setlk"), "{plan}");
}

#[test]
fn trylocks_that_fail_are_no_acquisitions() {
    let shape = ["trylock", "--waiters", "1", "--rounds", "2", "--hold-ms", "20", "--operations", "50"];
    let (truth, report) = profile_scenario(&shape, &["--hold=mutex"]);
    numbers_are_possible(&report);
    if !hooks_functions() {
        assert!(report.says_blind("mutex"), "{}", report.table);
        return;
    }
    let (acquired, refused) = (number(&truth, "acquired"), number(&truth, "refused"));
    assert_eq!((acquired, refused), (102, 100));
    // The terminal's: of the others' locks none is taken so often.
    let held = |lock: &&Value| lock["hold"]["acquired"].as_u64().unwrap_or(0);
    let lock = report.locks("mutex").into_iter().max_by_key(held).expect("a mutex was held");
    report.assert_counted(&lock["hold"], "acquired", acquired);
    report.assert_counted(&lock["hold"], "holds", acquired);
}

#[test]
fn a_downgraded_rwsem_is_released_for_writing_and_held_for_reading() {
    let (truth, report) = profile_scenario(&["munmap", "--operations", "200"], &["--hold=rwsem"]);
    numbers_are_possible(&report);
    if !hooks_functions() {
        assert!(report.says_blind("rwsem"), "{}", report.table);
        return;
    }
    let munmaps = number(&truth, "munmaps");
    let held = |lock: &&Value| lock["hold"]["acquired"].as_u64().unwrap_or(0);
    let written = report.locks("rwsem:W").into_iter().max_by_key(held).expect("mmap_lock was written");
    let read = report.locks("rwsem:R");
    let read = read.into_iter().find(|lock| lock["addr"] == written["addr"]).expect("and read");
    let skipped = report.skipped_runs();
    // mmap takes it for writing too, and does not downgrade.
    for (side, least) in [(written, 2 * munmaps), (read, munmaps)] {
        let (acquired, holds) = (number(&side["hold"], "acquired"), number(&side["hold"], "holds"));
        assert!(acquired + skipped >= least && holds + skipped >= least, "{least} at least: {side}");
    }
    // A downgrade that was not seen leaves a write hold without a release, and a release without a read hold.
    assert!(report.loss("lost_release") <= skipped, "{}", report.table);
    assert!(report.loss("unmatched_release") <= skipped + 2, "{}", report.table);
}
