//! What a profile must say of what a program did.

use super::crowd::*;
use crate::support::*;
use serde_json::Value;

/// One of tests/futexes says this in two fields less than the workload.
pub fn kind_of(row: &Value) -> &str {
    row["futex_kind"].as_str().or(row["kind"].as_str()).expect("a kind")
}

pub fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

pub fn sum(rows: &[&Value], field: &str) -> u64 {
    rows.iter().map(|row| number(row, field)).sum()
}

/// The futexes of the process, or of its children.
pub fn rows_of<'r>(report: &'r Report, truth: &Value) -> Vec<&'r Value> {
    let ours = |pid: &Value| {
        *pid == truth["pid"] || list(truth, "locks").iter().any(|row| list(row, "tids").contains(pid))
    };
    let is_ours = |lock: &&Value| {
        lock["family"] == "futex" && list(lock, "sites").iter().any(|site| ours(&site["pid"]))
    };
    list(&report.json, "locks").iter().filter(is_ours).collect()
}

/// What the call alone does not tell apart, and what it is taken for instead.
pub fn is_taken_for(row: &Value) -> Option<&'static str> {
    match (row["call_site"].as_str().expect("a call site"), kind_of(row)) {
        // futex_wait(2) always has a bitset, and of the futexes with a bitset Rust's are most.
        ("wait_for_futex2_mutex", _) => Some("Rust Mutex"),
        // One reader and waiters: 0x80000001, musl's word for its own locks too.
        ("wait_for_rwlock_write", "musl rwlock") => Some("musl internal lock"),
        _ => None,
    }
}

pub fn is_the_kind(lock: &Value, row: &Value) -> bool {
    let kind = &lock["futex"]["kind"];
    // A writer has musl's rwlock: readers and writers wait with the same value.
    let side_is_unknown = kind_of(row) == "musl rwlock" && lock["futex"]["side"].is_null();
    let exactly = *kind == kind_of(row) && (lock["futex"]["side"] == row["side"] || side_is_unknown);
    lock["class"] == row["class"]
        && (exactly
            || is_taken_for(row).is_some_and(|other| *kind == other) && lock["futex"]["side"].is_null())
}

/// Every row of the truth has its row in the report, and there are no others.
pub fn are_classified<'m, 'r>(
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
pub fn are_counted(report: &Report, shape: &Value, row: &Value, mine: &[&Value]) {
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

pub fn has_the_owner(report: &Report, row: &Value, mine: &[&Value]) {
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
pub fn is_placed(made: &Made, row: &Value, mine: &[&Value]) {
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

pub fn frames(stack: &Value) -> Vec<&str> {
    list(stack, "frames").iter().filter_map(|frame| frame["function"].as_str()).collect()
}

pub fn reaches_the_start(stack: &Value) -> bool {
    let starts = ["member_main", "start_thread", "thread_start", "clone3", "main"];
    stack["status"] == "complete"
        && frames(stack).iter().any(|name| starts.iter().any(|start| name.contains(start)))
}

/// 95 % of the waits, by program, are complete and pass through the function that waits.
pub fn stacks_are_complete(found: &[(&Made, &Value, Vec<&Value>)]) {
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
pub fn is_contention_only(report: &Report) {
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

pub fn says_blind(report: &Report) {
    assert!(report.says_blind("futex"), "{}", report.table);
}

pub fn agrees(made: &[Made], report: &Report) {
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

pub fn sees_where_wakes_come_from(made: &Made) -> bool {
    should_see_where_wakes_come_from(made.truth["scenario"].as_str().expect("a scenario"))
}
