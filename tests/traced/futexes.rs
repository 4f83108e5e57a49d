//! What the futex waits of C, C++, musl and Rust programs are: class, kind, side, place, owner, who released
//! them, how long they were held and from where they waited, against what tests/futexes and the workload say
//! they did.

use crate::support::*;
use serde_json::Value;
use std::path::PathBuf;

const SHAPE: [&str; 6] = ["--waiters", "2", "--rounds", "2", "--hold-ms", "50"];
const WAITERS: u64 = 2;

const C: [&str; 35] = [
    "mutex",
    "mutex-recursive",
    "mutex-errorcheck",
    "mutex-adaptive",
    "mutex-timed",
    "mutex-timed-out",
    "mutex-robust",
    "mutex-pi",
    "mutex-ceiling",
    "mutex-heap",
    "mutex-stack",
    "mutex-thread-local",
    "rwlock-read",
    "rwlock-write-behind-reader",
    "rwlock-write-behind-writer",
    "cond-signal",
    "cond-broadcast",
    "cond-timed-out",
    "cond-timed-out-monotonic",
    "semaphore",
    "semaphore-timed",
    "barrier",
    "join",
    "pool",
    "mix",
    "once",
    "stdio",
    "raw-mutex",
    "raw-futex2",
    "raw-int80",
    "raw-wake-op",
    "raw-waitv",
    "raw-requeue",
    "raw-requeue-pi",
    "raw-unknown",
];

const CPP: [&str; 13] = [
    "std-mutex",
    "std-timed-mutex",
    "std-recursive-mutex",
    "std-shared-mutex-shared",
    "std-shared-mutex-unique",
    "account",
    "std-condition",
    "std-semaphore",
    "std-latch",
    "std-barrier",
    "std-atomic",
    "std-future",
    "std-once",
];

const RUST: [&str; 14] = [
    "pthread-mutex",
    "pthread-timed",
    "pi-mutex",
    "rust-mutex",
    "rust-rwlock-read",
    "rust-rwlock-write",
    "rust-condvar",
    "rust-park",
    "rust-once",
    "rust-barrier",
    "parking-lot-mutex",
    "parking-lot-rwlock-read",
    "parking-lot-rwlock-write",
    "parking-lot-condvar",
];

/// What a guest runs of them, unless LOCKPROF_VM_ALL asks for all: at least one of each call, of each side and of
/// each way to find an owner. Timeouts of 50 ms are over there before anybody has seen the waiter. What user space makes of the words does not depend on the kernel.
const IN_GUESTS: [(&str, &[&str]); 4] = [
    (
        "futexes-c",
        &[
            "mutex",
            "mutex-robust",
            "mutex-pi",
            "mutex-heap",
            "mutex-stack",
            "rwlock-read",
            "rwlock-write-behind-reader",
            "mix",
            "once",
            "raw-futex2",
            "raw-int80",
            "raw-wake-op",
            "raw-waitv",
            "raw-requeue",
            "raw-requeue-pi",
        ],
    ),
    ("futexes-cpp", &["std-shared-mutex-unique", "account", "std-atomic"]),
    (
        "lockprof-workload",
        &["rust-mutex", "rust-rwlock-write", "rust-condvar", "parking-lot-mutex", "parking-lot-rwlock-read"],
    ),
    ("futexes-musl", &["mutex", "mutex-errorcheck", "rwlock-read", "join"]),
];

/// With `--waiter-hold-ms`: the waiters own these one after another.
const CHAINS: [(&str, &[&str]); 4] = [
    (
        "futexes-c",
        &[
            "mutex",
            "mutex-recursive",
            "mutex-robust",
            "mutex-pi",
            "mutex-ceiling",
            "mutex-stack",
            "stdio",
            "raw-mutex",
            "raw-int80",
            "raw-wake-op",
        ],
    ),
    ("futexes-cpp", &["std-mutex", "account"]),
    ("futexes-musl", &["mutex", "mutex-errorcheck"]),
    ("lockprof-workload", &["rust-mutex", "pthread-mutex", "pi-mutex"]),
];

fn program_path(program: &str) -> PathBuf {
    if program == "lockprof-workload" { workload_path() } else { futexes_path(program) }
}

fn chosen<'s>(program: &str, all: &[&'s str]) -> Vec<&'s str> {
    let everything = !in_guest() || std::env::var_os("LOCKPROF_VM_ALL").is_some_and(|value| value == "1");
    let few = IN_GUESTS.iter().find(|(name, _)| *name == program).expect("every program has some").1;
    all.iter().copied().filter(|scenario| everything || few.contains(scenario)).collect()
}

/// What one process did: the truth it printed, and whether stacks of it can be taken to the end.
struct Made {
    program: String,
    truth: Value,
}

/// Many processes in one profile: all there before it starts, let through the gate one by one.
fn crowd(programs: &[(&str, &[&str])], more: &[&str], lockprof_args: &[&str]) -> (Vec<Made>, Report) {
    let mut waiting = Vec::new();
    for (program, scenarios) in programs {
        for scenario in chosen(program, scenarios) {
            let args: Vec<&str> =
                std::iter::once(scenario).chain(SHAPE).chain(more.iter().copied()).collect();
            waiting.push((*program, Workload::gated_program(&program_path(program), &args)));
        }
    }
    let pids: Vec<String> = waiting.iter().map(|(_, workload)| workload.pid.to_string()).collect();
    let pids = pids.join(",");
    let args: Vec<&str> = ["-p", &pids, "-E", "500"].iter().chain(lockprof_args).copied().collect();
    let profiler = Profiler::start(&args);
    let mut made = Vec::new();
    for (program, mut workload) in waiting {
        workload.open_gate();
        made.push(Made { program: program.to_string(), truth: workload.finish() });
    }
    (made, profiler.finish())
}

/// One of tests/futexes says this in two fields less than the workload.
fn kind_of(row: &Value) -> &str {
    row["futex_kind"].as_str().or(row["kind"].as_str()).expect("a kind")
}

fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn sum(rows: &[&Value], field: &str) -> u64 {
    rows.iter().map(|row| number(row, field)).sum()
}

/// The futexes of the process, or of its children.
fn rows_of<'r>(report: &'r Report, truth: &Value) -> Vec<&'r Value> {
    let ours = |pid: &Value| {
        *pid == truth["pid"] || list(truth, "locks").iter().any(|row| list(row, "tids").contains(pid))
    };
    let is_ours = |lock: &&Value| {
        lock["family"] == "futex" && list(lock, "sites").iter().any(|site| ours(&site["pid"]))
    };
    list(&report.json, "locks").iter().filter(is_ours).collect()
}

/// What the call alone does not tell apart, and what it is taken for instead.
fn is_taken_for(row: &Value) -> Option<&'static str> {
    match (row["call_site"].as_str().expect("a call site"), kind_of(row)) {
        // futex_wait(2) always has a bitset, and of the futexes with a bitset Rust's are most.
        ("wait_for_futex2_mutex", _) => Some("Rust Mutex"),
        // One reader and waiters: 0x80000001, musl's word for its own locks too.
        ("wait_for_rwlock_write", "musl rwlock") => Some("musl internal lock"),
        _ => None,
    }
}

fn is_the_kind(lock: &Value, row: &Value) -> bool {
    let kind = &lock["futex"]["kind"];
    // A writer has musl's rwlock: readers and writers wait with the same value.
    let side_is_unknown = kind_of(row) == "musl rwlock" && lock["futex"]["side"].is_null();
    let exactly = *kind == kind_of(row) && (lock["futex"]["side"] == row["side"] || side_is_unknown);
    lock["class"] == row["class"]
        && (exactly
            || is_taken_for(row).is_some_and(|other| *kind == other) && lock["futex"]["side"].is_null())
}

/// Every row of the truth has its row in the report, and there are no others.
fn are_classified<'m, 'r>(
    made: &'m [Made],
    report: &'r Report,
) -> Vec<(&'m Made, &'m Value, Vec<&'r Value>)> {
    let mut found = Vec::new();
    for one in made {
        let truth = &one.truth;
        let scenario = truth["scenario"].as_str().expect("a scenario");
        if let Some(why) = truth["unsupported"].as_str() {
            println!("{} {scenario}: {why}", one.program);
            continue;
        }
        let mut others = rows_of(report, truth);
        for row in list(truth, "locks") {
            assert_eq!(row["unproven"], 0, "the workload is not sure: {truth}");
            let (mine, rest): (Vec<&Value>, _) = others.into_iter().partition(|lock| is_the_kind(lock, row));
            others = rest;
            let rest: Vec<_> = others.iter().map(|lock| (&lock["futex"], &lock["call_site"])).collect();
            let made = number(row, "contended") + number(row, "aborted");
            if !should_see_futex(scenario) {
                assert!(mine.is_empty(), "seen by a function that is not there: {mine:?}");
                continue;
            }
            assert!(
                !mine.is_empty() || made <= report.skipped_runs(),
                "{} {scenario}: no {} {}, but {rest:?}\n{row}",
                one.program,
                row["class"],
                kind_of(row)
            );
            found.push((one, row, mine));
        }
        let also = list(truth, "locks").iter().any(|row| row["also_contended"].is_string());
        for lock in others {
            // Members of the workload's crew are joined at the end; futexes-* have no such waits.
            // (A thread that is gone by the time its id is read makes them look like a condition variable.)
            let joined = one.program == "lockprof-workload"
                && lock["class"] == "idle"
                && lock["call_site"].as_str().is_some_and(|site| site.contains("dismiss"));
            assert!(
                joined || also && lock["class"] == "lock",
                "{} {scenario}: nobody made {lock}",
                one.program
            );
        }
    }
    found
}

/// What waited for a lock, by number and time; of the rest, that it is there.
fn are_counted(report: &Report, shape: &Value, row: &Value, mine: &[&Value]) {
    if row["class"] != "lock" || mine.is_empty() {
        return;
    }
    let [lock] = mine else {
        // musl's heap is where its threads' stacks are: README of tests/futexes.
        assert!(row["call_site"] == "wait_for_heap_mutex" && kind_of(row) == "musl mutex", "{mine:?}");
        let (got, made) = (sum(mine, "contended"), number(row, "contended"));
        assert!(got <= made && got + report.skipped_runs() >= made, "{got} of {made}: {mine:?}");
        return;
    };
    for (count, total, truth_total) in
        [("contended", "wait_total_ns", "wait_total_ns"), ("aborted", "aborted_total_ns", "aborted_ns")]
    {
        let made = number(row, count);
        println!("{} {}: {} of {made} {count}", row["call_site"], kind_of(row), lock[count]);
        report.assert_counted(lock, count, made);
        if made == 0 {
            continue;
        }
        let average = number(row, truth_total) / made;
        let extreme = |field: &str| row[field].as_u64().unwrap_or(average);
        let truth = Truth {
            waits: made,
            total_ns: number(row, truth_total),
            shortest_ns: extreme("wait_min_ns"),
            longest_ns: extreme("wait_max_ns"),
        };
        let (got, waits) = (number(lock, total), number(lock, count));
        if in_guest() {
            // The waiter reads its clock when it runs again, on one busy processor: later by any time.
            let least = waits * number(shape, "hold_ns");
            assert!((least..=truth.total_ns).contains(&got), "{total} is {got}, {least} at least: {row}");
            continue;
        }
        assert_close(got, waits, &truth, &format!("{total} of {row}"));
    }
}

fn has_the_owner(report: &Report, row: &Value, mine: &[&Value]) {
    let kept = row["owner_is_kept"].as_bool().unwrap_or(false);
    let Some(holder) = row["holder_tid"].as_u64().filter(|_| kept && row["class"] == "lock") else { return };
    let tasks = mine.iter().flat_map(|lock| list(&lock["owners"], "tasks"));
    let named: u64 = tasks.filter(|task| task["tid"] == holder).map(|task| number(task, "waits_begun")).sum();
    let waits = sum(mine, "contended") + sum(mine, "aborted");
    let needed = (waits * 99).div_ceil(100);
    assert!(
        named + report.skipped_runs() >= needed,
        "{named} of {waits} while {holder} had it: {row} {:?}",
        mine.iter().map(|lock| &lock["owners"]).collect::<Vec<_>>()
    );
}

/// Where the lock lives, by what the scenario is called for.
fn is_placed(made: &Made, row: &Value, mine: &[&Value]) {
    let places: Vec<&str> =
        mine.iter().map(|lock| lock["place"]["kind"].as_str().unwrap_or("nowhere")).collect();
    let all_are = |allowed: &[&str]| places.iter().all(|place| allowed.contains(place));
    if row["class"] == "lock"
        && let Some(name) = row["name"].as_str()
    {
        for lock in mine {
            assert!(all_are(&["global"]), "{row} is at {places:?}: {mine:?}");
            let symbol = lock["place"]["symbol"].as_str().expect("a symbol");
            assert_eq!(symbol, name, "{lock}");
            assert!(lock["name"].as_str().is_some_and(|text| text.contains(name)), "{lock}");
        }
    }
    // musl takes memory for stacks, threads and its heap from one mapping.
    if made.program == "futexes-musl" {
        return;
    }
    match made.truth["scenario"].as_str().expect("a scenario") {
        "mutex-heap" => {
            assert!(all_are(&["heap"]) && mine.len() == 1, "{mine:?}");
            assert_eq!(number(mine[0], "addresses"), WAITERS, "{mine:?}");
        }
        "account" => assert!(all_are(&["heap"]) && number(mine[0], "addresses") == 1, "{mine:?}"),
        "mutex-stack" | "mutex-thread-local" => {
            // A guest's lockprof may be too slow to see the stack of a thread that lives for 0.2 s.
            let too_late = in_guest() && all_are(&["heap"]);
            assert!(too_late || all_are(&["stack", "thread_local"]), "at {places:?}");
        }
        _ => {}
    }
}

fn frames(stack: &Value) -> Vec<&str> {
    list(stack, "frames").iter().filter_map(|frame| frame["function"].as_str()).collect()
}

fn reaches_the_start(stack: &Value) -> bool {
    let starts = ["member_main", "start_thread", "thread_start", "clone3", "main"];
    stack["status"] == "complete"
        && frames(stack).iter().any(|name| starts.iter().any(|start| name.contains(start)))
}

/// 95 % of the waits, by program, are complete and pass through the function that waits.
fn stacks_are_complete(found: &[(&Made, &Value, Vec<&Value>)]) {
    let mut programs: std::collections::BTreeMap<&str, (u64, u64, Vec<String>)> = Default::default();
    for (made, row, mine) in found {
        let through = row["call_site"].as_str().expect("a call site");
        for site in mine.iter().flat_map(|lock| list(lock, "sites")) {
            let (waits, good, bad) = programs.entry(&made.program).or_default();
            let these = number(site, "contended") + number(site, "aborted");
            let stack = &site["user_stack"];
            *waits += these;
            if reaches_the_start(stack) && frames(stack).iter().any(|name| name.contains(through)) {
                *good += these;
            } else {
                bad.push(format!("{through}: {} {:?}", stack["status"], frames(stack)));
            }
        }
    }
    for (program, (waits, good, bad)) in programs {
        assert!(
            good * 100 >= waits * 95,
            "{program}: {good} of {waits} waits have their stack, not {bad:#?}"
        );
    }
}

/// The default view has locks only, and the sums never mix classes.
fn is_contention_only(report: &Report) {
    let locks = list(&report.json, "locks");
    for lock in locks.iter().filter(|lock| lock["class"] == "idle") {
        for field in ["call_site", "name"] {
            if let Some(text) = lock[field].as_str().map(|text| text.rsplit('`').next().unwrap_or(text)) {
                // Others wait for a lock of the same function or object.
                let shared = locks.iter().any(|other| {
                    other["class"] != "idle"
                        && (other[field] == lock[field] || other.to_string().contains(&format!("{text}\"")))
                });
                assert!(shared || !report.table.contains(text), "{text} is idle\n{}", report.table);
            }
        }
    }
    for line in report.table.lines().filter(|line| line.contains('%')) {
        let kind = line.split_whitespace().nth(1).unwrap_or("");
        let idle = ["condvar", "usem", "barrier", "join", "park", "atomicwait", "once", "futex"];
        assert!(!idle.contains(&kind), "{line}\n{}", report.table);
    }
    for (totals, class) in
        [("totals", "lock"), ("idle_totals", "idle"), ("once_totals", "once"), ("unknown_totals", "unknown")]
    {
        let rows: Vec<&Value> = locks
            .iter()
            .filter(|lock| lock["class"] == class || class == "lock" && lock["class"].is_null())
            .collect();
        let totals = &report.json[totals];
        for field in ["weight_ns", "contended", "wait_total_ns", "aborted", "aborted_total_ns"] {
            assert_eq!(number(totals, field), sum(&rows, field), "{field} of class {class}: {totals}");
        }
        assert_eq!(number(totals, "locks"), rows.len() as u64, "{class}");
    }
}

fn says_blind(report: &Report) {
    assert!(report.says_blind("futex"), "{}", report.table);
}

fn agrees(made: &[Made], report: &Report) {
    let found = are_classified(made, report);
    for (made, row, mine) in &found {
        if sees_where_wakes_come_from(made) {
            are_counted(report, &made.truth, row, mine);
        } else {
            // Without the wake between them, two waits of one thread look like a wait and its retry.
            let waits = sum(mine, "contended");
            assert!((WAITERS..=number(row, "contended")).contains(&waits), "{waits}: {row}");
        }
        has_the_owner(report, row, mine);
        is_placed(made, row, mine);
    }
    is_contention_only(report);
    let complete: Vec<_> = found.into_iter().filter(|(made, _, _)| made.program != "futexes-musl").collect();
    stacks_are_complete(&complete);
}

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

fn sees_where_wakes_come_from(made: &Made) -> bool {
    should_see_where_wakes_come_from(made.truth["scenario"].as_str().expect("a scenario"))
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
