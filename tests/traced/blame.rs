//! Who made the others wait, and why: held against workloads that know.

use crate::support::*;
use serde_json::Value;

/// Times are chosen so that what a guest needs to line its threads up is small beside them.
fn hold_ms() -> &'static str {
    if in_guest() { "800" } else { "250" }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number_or_0(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// What a thread is charged with, whether its stack is known or only its name.
fn blamed_ns(lock: &Value, tid: &Value) -> u64 {
    let blame = &lock["blame"];
    let with_stack = list(&blame["holders"]).iter().filter(|holder| holder["tid"] == *tid);
    let without = list(&blame["unattributed"]).iter().filter(|part| part["thread"]["tid"] == *tid);
    with_stack.map(|holder| number(holder, "blamed_ns")).sum::<u64>()
        + without.map(|part| number(part, "waited_ns")).sum::<u64>()
}

fn is_near(got: f64, truth: f64, tolerance: f64, what: &str, report: &Report) {
    assert!((got - truth).abs() <= tolerance, "{what}: {got:.4}, truth {truth:.4}\n{}", report.table);
}

fn nothing_is_charged_twice_or_never(report: &Report) {
    let sums = &report.json["conservation"];
    assert!(sums["waited_ns"].as_u64().is_some_and(|waited| waited > 0), "{sums}");
    assert_eq!(sums["difference_ns"], 0, "{sums}\n{}", report.table);
}

fn scenario<'a>(name: &'a str, waiters: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![name, "--waiters", waiters, "--rounds", "2", "--hold-ms", hold_ms()];
    args.extend(more);
    args
}

fn user_lock<'r>(truth: &Value, report: &'r Report, symbol: &str) -> &'r Value {
    let locks = list(&report.json["locks"]);
    let named = |lock: &&Value| {
        lock["pid"] == truth["pid"] && lock["name"].as_str().is_some_and(|name| name.contains(symbol))
    };
    locks.iter().find(named).unwrap_or_else(|| panic!("no {symbol} in:\n{}", report.table))
}

#[test]
fn three_in_a_queue_share_the_blame_two_to_one_to_none() {
    let (truth, report) =
        profile_scenario(&scenario("pthread-mutex", "2", &["--waiter-hold-ms", hold_ms()]), &[]);
    nothing_is_charged_twice_or_never(&report);
    let row = &truth["locks"][0];
    let lock = report.futex(&truth);
    let blame = &lock["blame"];
    let all = number(blame, "blamed_ns") as f64;
    let share = |tid: &Value| blamed_ns(lock, tid) as f64 / all;
    is_near(share(&row["holder_tid"]), 2.0 / 3.0, 0.02, "the first holder", &report);
    is_near(share(&row["tids"][0]), 1.0 / 3.0, 0.02, "the second", &report);
    is_near(share(&row["tids"][1]), 0.0, 0.02, "the last", &report);
    assert!(list(&blame["holders"]).iter().all(|holder| holder["evidence"] == "release"), "{blame}");
    // Who waited for whom, as far as threads are told by name.
    let pair = |waiter: &str, holder: &str| {
        let pairs = list(&blame["pairs"]).iter();
        let same = pairs.filter(|pair| pair["waiter"]["comm"] == waiter && pair["holder"]["comm"] == holder);
        same.map(|pair| number(pair, "waited_ns")).sum::<u64>() as f64
    };
    let of_first = pair("waiter-0", "holder") + pair("waiter-1", "holder");
    is_near(of_first / all, 2.0 / 3.0, 0.02, "pairs of the first holder", &report);
    is_near(pair("waiter-1", "waiter-0") / all, 1.0 / 3.0, 0.02, "the pair behind it", &report);
    assert!(report.table.contains("Who made them wait"), "{}", report.table);
}

#[test]
fn parking_lots_holder_is_charged_though_waiters_wait_at_words_of_their_own() {
    let (truth, report) = profile_scenario(&scenario("parking-lot-mutex", "2", &[]), &[]);
    nothing_is_charged_twice_or_never(&report);
    let row = &truth["locks"][0];
    let locks = list(&report.json["locks"]);
    let lock = locks.iter().find(|lock| lock["addr"] == row["object"] && lock["pid"] == truth["pid"]);
    let lock = lock.unwrap_or_else(|| panic!("no {} in:\n{}", row["object"], report.table));
    let share = blamed_ns(lock, &row["holder_tid"]) as f64 / number(lock, "wait_total_ns") as f64;
    assert!(share > 0.95, "the holder has {share} of {}\n{}", lock["blame"], report.table);
}

#[test]
fn a_long_holder_a_short_one_and_innocent_waiters_get_what_they_deserve() {
    let (truth, report) = profile_scenario(&scenario("two-holders", "3", &[]), &[]);
    if !should_see(Family::Mutex) {
        return;
    }
    nothing_is_charged_twice_or_never(&report);
    let lock = report.lock("mutex");
    let truths = list(&truth["holders"]);
    let sum: u64 = truths.iter().map(|holder| number(holder, "blamed_ns")).sum();
    let blame = &lock["blame"];
    let charged = number(blame, "blamed_ns") + number(blame, "unattributed_ns");
    for holder in truths {
        let share = blamed_ns(lock, &holder["tid"]) as f64 / charged as f64;
        let deserved = number(holder, "blamed_ns") as f64 / sum as f64;
        is_near(share, deserved, 0.05, holder["comm"].as_str().unwrap_or_default(), &report);
    }
    // The whole of it, not only its shares: no more than the handoffs and the releases' own time apart.
    is_near(charged as f64 / sum as f64, 1.0, 0.05, "all that is charged", &report);
    for tid in list(&truth["locks"][0]["tids"]) {
        let share = blamed_ns(lock, tid) as f64 / charged as f64;
        assert!(share < 0.05, "{tid} is innocent and has {share}\n{}", report.table);
    }
    if should_see_releases("mutex") {
        let holder = &list(&blame["holders"])[0];
        assert_eq!((&holder["comm"], &holder["evidence"]), (&"long-holder".into(), &"release".into()));
        let stack = holder["kernel_stack"].to_string();
        assert!(stack.contains("read"), "where it let go: {stack}");
    }
}

#[test]
fn a_chain_of_two_locks_leads_to_the_root_holder() {
    let (truth, report) = profile_scenario(&scenario("chain", "3", &[]), &[]);
    nothing_is_charged_twice_or_never(&report);
    let outer = user_lock(&truth, &report, "WORKLOAD_CHAIN_OUTER");
    let inner = user_lock(&truth, &report, "WORKLOAD_CHAIN_INNER");
    let middle = &truth["holders"][0];
    let holders = list(&outer["blame"]["holders"]);
    let charged = holders.iter().find(|holder| holder["tid"] == middle["tid"]).expect("the middle is charged");
    let deserved = number(middle, "blamed_ns") as f64;
    is_near(number(charged, "blamed_ns") as f64 / deserved, 1.0, 0.05, "the middle", &report);
    let chained = number(&truth, "chained_ns") as f64;
    is_near(number(charged, "chained_ns") as f64 / chained, 1.0, 0.05, "while it waited", &report);
    let chain = &outer["blame"]["chains"][0];
    assert_eq!((&chain["through"]["tid"], &chain["addr"]), (&middle["tid"], &inner["addr"]));
    let root = &chain["roots"][0];
    assert_eq!((&root["cause"], &root["holder"]["comm"]), (&"holder".into(), &"root".into()), "{chain}");
    let share = number(root, "waited_ns") as f64 / number(chain, "waited_ns") as f64;
    assert!(share > 0.9, "the root has {share} of the chain: {chain}");
}

/// Shares of the time in which others waited, of the holder of `slow-holder`.
fn states_of_slow_holder(why: &str) -> (impl Fn(&str) -> f64, Report) {
    let (truth, report) = profile_scenario(&scenario("slow-holder", "2", &["--why", why]), &[]);
    nothing_is_charged_twice_or_never(&report);
    let lock = user_lock(&truth, &report, "WORKLOAD_SLOW_HOLDER");
    let tid = &truth["holders"][0]["tid"];
    let holder = list(&lock["blame"]["holders"]).iter().find(|holder| holder["tid"] == *tid);
    let holder = holder.unwrap_or_else(|| panic!("the holder is not charged:\n{}", report.table)).clone();
    let wanted = number(&holder, "wanted_ns") as f64;
    let states = holder["states"].clone();
    assert!(states.is_object(), "the scheduler was watched: {holder}");
    let sum: u64 = states.as_object().into_iter().flatten().map(|(_, ns)| number_or_0(ns)).sum();
    is_near(sum as f64 / wanted, 1.0, 0.03, "all states", &report);
    (move |state: &str| number(&states, state) as f64 / wanted, report)
}

#[test]
fn a_holder_that_sleeps_is_blocked() {
    let (share, report) = states_of_slow_holder("sleep");
    assert!(share("blocked_ns") > 0.9, "{}\n{}", share("blocked_ns"), report.table);
}

#[test]
fn a_holder_that_spins_is_running() {
    let (share, report) = states_of_slow_holder("spin");
    // Until the last waiter has come it sleeps.
    let busy = share("running_ns") + share("runnable_ns");
    assert!(share("running_ns") > 0.6 && busy > 0.85, "{} {busy}\n{}", share("running_ns"), report.table);
    assert!(share("io_ns") < 0.05 && share("lock_ns") < 0.05, "{}", report.table);
}

#[test]
fn a_holder_that_is_preempted_waits_for_a_cpu() {
    let (share, report) = states_of_slow_holder("preempted");
    assert!(share("runnable_ns") > 0.3, "{}\n{}", share("runnable_ns"), report.table);
    assert!(share("runnable_ns") + share("running_ns") > 0.85, "{}", report.table);
}

#[test]
fn a_holder_that_reads_from_a_disk_waits_for_io() {
    // Guests have none: tests/vm/suite leaves this one out by its name.
    let (share, report) = states_of_slow_holder("io");
    assert!(share("io_ns") > 0.4, "{}\n{}", share("io_ns"), report.table);
}
