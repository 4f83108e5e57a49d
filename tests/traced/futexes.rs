//! What the futex waits of C, C++, musl and Rust programs are: class, kind, side, place, owner, who released
//! them, how long they were held and from where they waited, against what tests/futexes and the workload say
//! they did.

mod claims;
mod crowd;

use crate::support::*;
use claims::*;
use crowd::*;
use serde_json::Value;

#[test]
fn futexes_of_c_cpp_and_rust_programs_are_what_they_are() {
    let programs: [(&str, &[&str]); 3] =
        [("futexes-c", &C), ("futexes-cpp", &CPP), ("lockprof-workload", &RUST)];
    let (made, report) = crowd(&programs, &[], &[]);
    if !should_see(Family::Futex) {
        return says_blind(&report);
    }
    agrees(&made, &report);
}

#[test]
fn futexes_of_static_musl_programs_are_what_they_are() {
    let (made, report) = crowd(&[("futexes-musl", &C)], &[], &[]);
    if !should_see(Family::Futex) {
        return says_blind(&report);
    }
    agrees(&made, &report);
    // Its C library has no unwind tables; a stack that ends there must not pass for a whole one.
    for site in list(&report.json, "locks").iter().flat_map(|lock| list(lock, "sites")) {
        let stack = &site["user_stack"];
        assert!(stack["status"] != "complete" || reaches_the_start(stack), "{stack}");
    }
}

/// The holder wakes the first waiter, that one the second …, every time from the function that unlocks; and
/// what a waiter held is timed.
#[test]
fn mutexes_are_followed_from_holder_to_holder() {
    let (made, report) = crowd(&CHAINS, &["--waiter-hold-ms", "50"], &[]);
    if !should_see(Family::Futex) {
        return says_blind(&report);
    }
    for (made, row, mine) in are_classified(&made, &report) {
        if !should_see_wakes(kind_of(row)) || mine.is_empty() {
            continue;
        }
        let (rounds, skipped) = (number(&made.truth, "rounds"), report.skipped_runs());
        let [lock] = mine[..] else { panic!("one lock, not {mine:?}") };
        are_released_in_turn(made, row, lock, rounds, skipped);
        // Holds of ceiling mutexes are not timed.
        let known = !row["holds"].is_null() || made.program == "lockprof-workload";
        let known = known && sees_where_wakes_come_from(made);
        if known && kind_of(row) != "glibc ceiling mutex" {
            are_held_so_long(row, lock, rounds, skipped);
        }
    }
}

fn are_released_in_turn(made: &Made, row: &Value, lock: &Value, rounds: u64, skipped: u64) {
    let mut releaser = &row["holder_tid"];
    for waiter in list(row, "tids") {
        let of_pair = |other: &&Value| other["tid"] == *releaser && other["wakee_tid"] == *waiter;
        let woken: u64 =
            list(lock, "releasers").iter().filter(of_pair).map(|other| number(other, "woken")).sum();
        assert!(
            woken <= rounds && woken + skipped >= rounds,
            "{releaser} woke {waiter} {woken} times: {row}\n{}",
            lock["releasers"]
        );
        releaser = waiter;
    }
    let from_where = made.program != "futexes-musl" && sees_where_wakes_come_from(made);
    for other in list(lock, "releasers").iter().filter(|_| from_where) {
        let stack = &other["user_stack"];
        let unlocks =
            ["hold", "leave", "lockprof_workload::", row["call_site"].as_str().expect("a call site")];
        assert!(
            reaches_the_start(stack)
                && frames(stack).iter().any(|name| unlocks.iter().any(|part| name.contains(part))),
            "{} {:?}: {stack}",
            made.program,
            made.truth["scenario"]
        );
    }
}

fn are_held_so_long(row: &Value, lock: &Value, rounds: u64, skipped: u64) {
    // The workload of Rust does not say; the shape does.
    let each = row["hold_each_ns"].as_u64().unwrap_or(50_000_000);
    let least = row["holds"].as_u64().unwrap_or(rounds * (WAITERS - 1));
    let hold = &lock["contended_hold"];
    assert!(hold.is_object(), "nobody held it: {lock}");
    let holds = number(hold, "contended_holds");
    // The last of a queue does not know that nobody waits any more, and calls too.
    assert!(holds <= rounds * WAITERS && holds + skipped >= least, "{holds} of {least}: {row}");
    let ticks = if only_tracepoints() { 8_000_000 } else { 20_000_000 };
    let (average, most) = (number(hold, "avg_hold_ns"), each + (each / 20).max(ticks));
    assert!(holds == 0 || (each - each / 20..=most).contains(&average), "{average} is not {each}: {hold}");
}

/// Children of a command: the waiters of these mutexes are processes, in which they have different addresses.
#[test]
fn locks_in_shared_memory_are_one_and_a_pool_is_idle() {
    let script = "waits() { for scenario; do \"$program\" $scenario --waiters 2 --rounds 2 --hold-ms 50 || exit 1; done; }
        program=$0 waits mutex mutex-shared mutex-mapped pool; program=$1 waits mutex-shared mutex-mapped";
    let (c, musl) =
        (futexes_path("futexes-c").display().to_string(), futexes_path("futexes-musl").display().to_string());
    let report = Profiler::start(&["--idle", "--", "sh", "-c", script, &c, &musl]).finish();
    let truths = report.truths();
    assert_eq!(truths.len(), 6, "{}", report.table);
    if !should_see(Family::Futex) {
        return says_blind(&report);
    }
    let made: Vec<Made> = truths
        .into_iter()
        .enumerate()
        .map(|(i, truth)| Made { program: if i < 4 { "futexes-c" } else { "futexes-musl" }.into(), truth })
        .collect();
    for (made, row, mine) in are_classified(&made, &report) {
        are_counted(&report, &made.truth, row, &mine);
        has_the_owner(&report, row, &mine);
        if row["processes"] != true {
            continue;
        }
        let [lock] = mine[..] else { panic!("one lock, not {mine:?}") };
        assert!(lock["pid"].is_null() && lock["place"]["kind"] == "shared", "{lock}");
        for waiter in list(row, "tids") {
            let of_waiter: Vec<&Value> =
                list(lock, "sites").iter().filter(|site| site["pid"] == *waiter).collect();
            let (got, made) = (sum(&of_waiter, "contended"), number(&made.truth, "rounds"));
            assert!(
                got <= made && got + report.skipped_runs() >= made,
                "{got} of {made} of {waiter}: {lock}"
            );
        }
    }
    let view: Vec<&str> = report.table.lines().filter(|line| !line.starts_with('{')).collect();
    let condvar = view.iter().find(|line| line.split_whitespace().nth(1) == Some("condvar"));
    assert!(condvar.is_some_and(|line| line.contains("work_condition")), "{}", report.table);
    assert!(!view.iter().any(|line| line.split_whitespace().nth(1) == Some("umutex")), "{}", report.table);
}

/// A woken thread that finds the lock taken again has not waited twice.
#[test]
fn a_lost_race_is_no_wait_of_its_own() {
    let (truth, report) = profile_scenario(&["busy", "--seconds", "2", "--waiters", "4"], &[]);
    if !should_see(Family::Futex) {
        return says_blind(&report);
    }
    for name in ["LEDGER", "JOURNAL"] {
        let tried: Vec<&Value> = list(&truth, "locks").iter().filter(|row| row["name"] == name).collect();
        let most = sum(&tried, "contended");
        let of_lock = |lock: &&Value| lock["class"] == "lock" && lock["place"]["symbol"] == name;
        let locks: Vec<&Value> = list(&report.json, "locks").iter().filter(of_lock).collect();
        let waits = sum(&locks, "contended");
        println!("{name}: {waits} waits, {most} acquisitions that had to wait or spin");
        assert!(waits > 0 && waits <= most, "{waits} waits, {most} acquisitions\n{}", report.table);
        assert!(locks.iter().all(|lock| lock["futex"]["kind_id"] == "rust-mutex"), "{locks:?}");
    }
    println!("{} calls are part of another wait", report.json["events"]["futex_merged"]);
}

#[test]
fn the_lock_of_the_python_interpreter_is_named() {
    let Some(python) = python() else {
        return println!("skipped: no python3 with the symbols of its library");
    };
    let script = "import threading, time\n\
        end = time.monotonic() + 1\n\
        def busy():\n    while time.monotonic() < end: pass\n\
        threads = [threading.Thread(target=busy) for _ in range(2)]\n\
        [thread.start() for thread in threads]\n\
        [thread.join() for thread in threads]\n";
    let report = Profiler::start(&["--", &python, "-c", script]).finish();
    let gil: Vec<&Value> =
        list(&report.json, "locks").iter().filter(|lock| lock["futex"]["kind"] == "Python GIL").collect();
    assert!(!gil.is_empty(), "{}", report.table);
    assert!(gil.iter().all(|lock| lock["class"] == "lock"), "{gil:?}");
    assert!(sum(&gil, "contended") + sum(&gil, "aborted") > 10, "{}", report.table);
}

/// An interpreter itself, not what pyenv has in its place. Natively only: guests have the same one.
fn python() -> Option<String> {
    if in_guest() {
        return None;
    }
    let script = "import sys; print(sys.executable)";
    let output = std::process::Command::new("python3").args(["-c", script]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !path.is_empty()).then_some(path)
}

#[test]
fn owners_are_found_by_their_numbers_in_a_pid_namespace_of_their_own() {
    let program = futexes_path("futexes-c").display().to_string();
    let namespace = ["--", "unshare", "--pid", "--fork", "--mount-proc", &program, "mutex"];
    let args: Vec<&str> = namespace.into_iter().chain(SHAPE).collect();
    let report = Profiler::start(&args).finish();
    let truth = report.truth();
    let row = &truth["locks"][0];
    if !should_see(Family::Futex) {
        assert!(report.says_blind("futex"));
        return;
    }
    let locks = report.json["locks"].as_array().expect("locks");
    let lock = locks.iter().find(|lock| lock["addr"] == row["addr"]).expect("the mutex");
    report.assert_counted(lock, "contended", number(row, "contended"));
    let tasks = list(&lock["owners"], "tasks");
    let named: u64 = tasks.iter().map(|task| number(task, "waits_begun")).sum();
    assert!(named + report.skipped_runs() >= number(row, "contended"), "{lock}");
    // Inside its number is a small one; the report has those that everybody else sees.
    assert_eq!(tasks.len(), 1, "{lock}");
    assert_eq!(tasks[0]["pid"], lock["pid"]);
    assert_ne!((&tasks[0]["tid"], &tasks[0]["pid"]), (&row["holder_tid"], &truth["pid"]), "{lock} {truth}");
}
