//! Starting, following, ending: processes, signals, exit statuses.

use crate::support::*;
use std::process::Stdio;

const SHORT: [&str; 6] = ["--waiters", "2", "--rounds", "1", "--hold-ms", "50"];

fn workload(scenario: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec!["--".to_string(), workload_path().display().to_string(), scenario.to_string()];
    args.extend(SHORT.iter().chain(more).map(|arg| arg.to_string()));
    args
}

fn run_command(args: &[String]) -> Report {
    Profiler::start(&args.iter().map(String::as_str).collect::<Vec<_>>()).finish()
}

#[test]
fn a_command_is_held_until_every_hook_is_in_place() {
    // `short` contends at once and exits: were it not held, its wait would be missed.
    let report = run_command(&workload("short", &[]));
    if !should_see(Family::Futex) {
        assert!(report.says_blind("futex"));
        return;
    }
    report.assert_counted(report.futex(&report.truth()), "contended", 2);
    assert_eq!(report.json["meta"]["ended_by"], "target_exited");
}

#[test]
fn a_target_that_exited_before_the_report_is_symbolized() {
    let report = run_command(&workload("short", &[]));
    if !should_see(Family::Futex) {
        return;
    }
    let stack = report.futex(&report.truth())["sites"][0]["user_stack"].clone();
    let text = stack.to_string();
    assert!(text.contains("lock_wait") || text.contains("wait_for_pthread_mutex"), "{text}");
}

#[test]
fn the_exit_status_of_the_command_is_passed_through() {
    let report = run_command(&workload("short", &["--exit-code", "7"]));
    assert_eq!(report.status.code(), Some(7));
    assert_eq!(report.json["target"]["exit_status"], 7);
}

#[test]
fn a_command_killed_by_a_signal_gives_128_plus_the_signal() {
    let args = ["--", "sh", "-c", "kill -9 $$"].map(String::from);
    assert_eq!(run_command(&args).status.code(), Some(137));
}

#[test]
fn children_of_a_command_are_followed() {
    let report = run_command(&workload("pthread-mutex", &["--children"]));
    if !should_see(Family::Futex) {
        return;
    }
    let lock = report.futex(&report.truth());
    report.assert_counted(lock, "contended", 2);
    let of_child = number(lock, "pid");
    assert_ne!(report.json["target"]["pids"][0], of_child, "the waits are the child's");
}

#[test]
fn another_process_never_appears_with_a_pid() {
    let mut other = Workload::gated(&["pthread-mutex", "--waiters", "2", "--rounds", "1", "--hold-ms", "50"]);
    let mut target =
        Workload::gated(&["pthread-mutex", "--waiters", "2", "--rounds", "1", "--hold-ms", "50"]);
    let pid = target.pid;
    let profiler = Profiler::start(&["-p", &pid.to_string()]);
    other.open_gate();
    other.finish();
    target.open_gate();
    target.finish();
    let report = profiler.finish();
    let locks = report.json["locks"].as_array().expect("locks");
    let pids: Vec<_> = locks.iter().flat_map(|lock| lock["sites"].as_array().expect("sites")).collect();
    assert!(pids.iter().all(|site| site["pid"] == pid), "{}", report.table);
    assert_eq!(locks.iter().any(|lock| lock["type"] == "futex"), should_see(Family::Futex));
}

#[test]
fn several_processes_are_traced_together() {
    let shape = ["pthread-mutex", "--waiters", "2", "--rounds", "1", "--hold-ms", "50"];
    let run = || {
        let (mut first, mut second) = (Workload::gated(&shape), Workload::gated(&shape));
        let profiler = Profiler::start(&["-p", &format!("{},{}", first.pid, second.pid)]);
        first.open_gate();
        second.open_gate();
        ([first.finish(), second.finish()], profiler.finish())
    };
    let (truths, report) = again_when_skipped(run, |(_, report)| report);
    if !should_see(Family::Futex) {
        return;
    }
    for truth in truths {
        if report.skipped_runs() < 2 || report.sees_futex(&truth) {
            report.assert_counted(report.futex(&truth), "contended", 2);
        }
    }
}

#[test]
#[ignore = "system-wide: in the guests only, tests/vm/suite"]
fn a_system_wide_profile_sees_the_workload_and_not_lockprof() {
    let mut workload = Workload::gated(&["pipe-mutex", "--waiters", "2", "--rounds", "2", "--hold-ms", "50"]);
    let profiler = Profiler::start(&["-a"]);
    let own = profiler.child.id();
    workload.open_gate();
    let truth = workload.finish();
    profiler.signal(libc::SIGINT);
    let report = profiler.finish();
    for lock in report.json["locks"].as_array().expect("locks") {
        for site in lock["sites"].as_array().expect("sites") {
            assert_ne!(site["pid"], own, "lockprof counted itself: {lock}");
        }
    }
    if should_see(Family::Mutex) {
        let pid = &truth["pid"];
        let seen = report
            .locks("mutex")
            .iter()
            .any(|lock| lock["sites"].as_array().expect("sites").iter().any(|site| site["pid"] == *pid));
        assert!(seen, "{}", report.table);
    }
}

#[test]
fn a_wait_that_does_not_end_is_in_flight_with_age_lock_and_stack() {
    let mut workload = Workload::gated(&["hung", "--waiters", "2"]);
    let profiler = Profiler::start(&["-p", &workload.pid.to_string()]);
    workload.open_gate();
    let hung = workload.event("hung");
    std::thread::sleep(std::time::Duration::from_millis(300));
    profiler.signal(libc::SIGTERM);
    let report = profiler.finish();
    workload.kill();
    assert_eq!(report.json["meta"]["ended_by"], "signal");
    if !should_see(Family::Futex) {
        return;
    }
    let lock = &report.json["locks"][0];
    assert_eq!(lock["addr"], hung["addr"], "the hanging lock comes first:\n{}", report.table);
    let waits = lock["in_flight"].as_array().expect("waits in flight");
    assert!(waits.len() as u64 + report.skipped_runs() >= 2 && waits.len() <= 2, "{}", report.table);
    for wait in waits {
        assert!(hung["tids"].as_array().expect("tids").contains(&wait["tid"]), "{wait}");
        assert!(number(wait, "age_ns") >= 300_000_000, "{wait}");
        assert!(number(wait, "age_ns") <= number(&report.json["meta"], "duration_ns"), "{wait}");
        assert!(!wait["user_stack"]["frames"].as_array().expect("a stack").is_empty(), "{wait}");
    }
    assert!(report.table.to_lowercase().contains("still waiting"), "{}", report.table);
}

#[test]
fn ctrl_c_ends_early_and_reports() {
    let mut workload =
        Workload::gated(&["pthread-mutex", "--waiters", "2", "--rounds", "1", "--hold-ms", "50"]);
    let profiler = Profiler::start(&["-p", &workload.pid.to_string(), "10m"]);
    workload.open_gate();
    let truth = workload.event("truth");
    profiler.signal(libc::SIGINT);
    let report = profiler.finish();
    assert_eq!(report.status.code(), Some(0));
    if should_see(Family::Futex) {
        report.assert_counted(report.futex(&truth), "contended", 2);
    }
    workload.kill();
}

#[test]
fn a_duration_ends_the_profile() {
    let workload = Workload::gated(&["pthread-mutex"]);
    let report = Profiler::start(&["-p", &workload.pid.to_string(), "200ms"]).finish();
    assert_eq!(report.json["meta"]["ended_by"], "duration");
    let took = number(&report.json["meta"], "duration_ns");
    assert!(took >= 200_000_000, "{took}");
    workload.kill();
}

#[test]
fn a_command_that_outlives_the_duration_is_reported_first_and_then_waited_for() {
    let until_reported = "while ! [ -s @REPORT@ ]; do sleep 0.05; done; exit 3";
    let profiler = Profiler::start(&["100ms", "--", "sh", "-c", until_reported]);
    let report = profiler.finish();
    assert_eq!(report.json["meta"]["ended_by"], "duration");
    assert!(report.json["target"]["exit_status"].is_null(), "not known when the report was written");
    assert_eq!(report.status.code(), Some(3));
}

#[test]
fn a_signal_ends_the_profile_and_the_command() {
    let profiler = Profiler::start(&["--", "sleep", "600"]);
    profiler.signal(libc::SIGTERM);
    let report = profiler.finish();
    assert_eq!(report.json["meta"]["ended_by"], "signal");
    assert_eq!(report.status.code(), Some(128 + libc::SIGTERM));
}

#[test]
fn a_profile_without_contention_says_what_it_watched() {
    let workload = Workload::gated(&["pthread-mutex"]);
    let report = Profiler::start(&["-p", &workload.pid.to_string(), "200ms"]).finish();
    workload.kill();
    assert!(number(&report.json["events"], "hooks_attached") > 0, "{}", report.table);
    assert!(report.table.contains("Hooks:"), "{}", report.table);
    assert!(report.json["locks"].as_array().expect("locks").is_empty(), "{}", report.table);
}

#[test]
#[ignore = "system-wide: in the guests only, tests/vm/suite"]
fn the_attach_phase_is_not_in_the_profile() {
    // klockstat's first rows are its own bpf_trampoline_link_prog.
    let report = Profiler::start(&["-a", "300ms"]).finish();
    let text = report.json["locks"].to_string();
    for own in
        ["bpf_trampoline_link_prog", "bpf_tracing_prog_attach", "modify_ftrace_direct", "perf_event_open"]
    {
        assert!(!text.contains(own), "{own} in {}", report.table);
    }
}

#[test]
fn a_process_that_is_gone_is_one_clear_line() {
    let mut child = std::process::Command::new("true").spawn().expect("true runs");
    let pid = child.id().to_string();
    child.wait().expect("true ends");
    let output = lockprof().args(method_args()).args(["-p", &pid, "1"]).output().expect("lockprof runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains(&format!("There is no process {pid}")), "{stderr}");
    assert!(stderr.contains("hint:"), "{stderr}");
}

#[test]
fn a_command_that_cannot_run_gives_the_status_of_env() {
    let text_file = scratch("not-executable");
    std::fs::write(&text_file, "text").expect("the scratch directory is writable");
    let text_file = text_file.display().to_string();
    for (command, code) in [("/no/such/command", 127), ("no-such-command-anywhere", 127), (&text_file, 126)] {
        let output = lockprof().args(method_args()).args(["--", command]).output().expect("lockprof runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{command}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_found_before_measuring() {
    let output = lockprof()
        .args(method_args())
        .args(["--json", "/no/such/directory/x.json", "--", "touch"])
        .arg(scratch("ran"))
        .stdout(Stdio::null())
        .output()
        .expect("lockprof runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("/no/such/directory/x.json"), "{stderr}");
    assert!(!stderr.contains("tracing"), "it measured first: {stderr}");
}

#[test]
fn doctor_says_what_is_seen_and_exits_0() {
    let output = lockprof().args(["doctor"]).args(method_args()).output().expect("lockprof runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for family in [Family::Mutex, Family::Rwsem, Family::Spinlock, Family::Futex] {
        let name = format!("{family:?}").to_lowercase();
        let line = text.lines().find(|line| line.trim_start().starts_with(&name)).expect("a line per family");
        // The second column is how its waits are seen.
        assert_eq!(line.split_whitespace().nth(1) != Some("no"), should_see(family), "{line}");
    }
}
