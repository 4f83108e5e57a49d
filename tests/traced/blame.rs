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
    assert!(sums["waited_ns"].as_u64().is_some_and(|waited| waited > 0), "{sums}\n{}", report.table);
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
    let charged =
        holders.iter().find(|holder| holder["tid"] == middle["tid"]).expect("the middle is charged");
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

/// Times of the holder of `slow-holder` while others waited, by lockprof and by the kernel's own account.
struct SlowHolder {
    states: Value,
    /// Wall time in which others waited.
    wanted_ns: u64,
    /// What the kernel says of its slow part, before which it slept until the last waiter had come.
    cpu_ns: u64,
    delay_ns: u64,
    asleep_ns: u64,
    report: Report,
}

impl SlowHolder {
    fn new(why: &str) -> SlowHolder {
        let (truth, report) = profile_scenario(&scenario("slow-holder", "2", &["--why", why]), &[]);
        nothing_is_charged_twice_or_never(&report);
        let lock = user_lock(&truth, &report, "WORKLOAD_SLOW_HOLDER");
        let slow = &truth["slow_holder"];
        let holder = list(&lock["blame"]["holders"]).iter().find(|holder| holder["tid"] == slow["tid"]);
        let holder = holder.unwrap_or_else(|| panic!("the holder is not charged:\n{}", report.table)).clone();
        let (cpu_ns, delay_ns) = (number(slow, "cpu_ns"), number(slow, "delay_ns"));
        let slow = SlowHolder {
            states: holder["states"].clone(),
            wanted_ns: number(&holder, "wanted_ns"),
            cpu_ns,
            delay_ns,
            asleep_ns: number(slow, "wall_ns").saturating_sub(cpu_ns + delay_ns),
            report,
        };
        let sum: u64 = slow.states.as_object().into_iter().flatten().map(|(_, ns)| number_or_0(ns)).sum();
        slow.agrees(sum, slow.wanted_ns, "all states");
        slow.agrees(slow.ns("running_ns") + slow.ns("runnable_ns"), cpu_ns + delay_ns, "awake");
        slow
    }

    /// Only where it seldom sleeps: from being woken to being queued on a CPU (an interrupt between processors) it is
    /// ready for us and not for the kernel's account, and from being picked to running it runs for that alone.
    fn running_and_ready_agree(&self) {
        self.agrees(self.ns("running_ns"), self.cpu_ns, "on a CPU");
        self.agrees(self.ns("runnable_ns"), self.delay_ns, "ready for one");
    }

    fn ns(&self, state: &str) -> u64 {
        number(&self.states, state)
    }

    fn agrees(&self, got: u64, truth: u64, what: &str) {
        let wanted = self.wanted_ns as f64;
        is_near(got as f64 / wanted, truth as f64 / wanted, 0.08, what, &self.report);
    }
}

#[test]
fn a_holder_that_sleeps_is_blocked() {
    let slow = SlowHolder::new("sleep");
    slow.running_and_ready_agree();
    slow.agrees(slow.ns("blocked_ns"), slow.wanted_ns - slow.cpu_ns - slow.delay_ns, "asleep");
    assert!(slow.ns("blocked_ns") > slow.wanted_ns / 2, "{}", slow.report.table);
}

#[test]
fn a_holder_that_spins_runs_as_far_as_it_is_let() {
    let slow = SlowHolder::new("spin");
    slow.running_and_ready_agree();
    assert!(slow.ns("running_ns") + slow.ns("runnable_ns") > slow.wanted_ns / 2, "{}", slow.report.table);
    slow.agrees(slow.ns("io_ns") + slow.ns("lock_ns"), 0, "waiting for anything");
}

#[test]
fn a_holder_that_is_preempted_waits_for_a_cpu() {
    let slow = SlowHolder::new("preempted");
    slow.running_and_ready_agree();
    assert!(slow.ns("runnable_ns") > slow.wanted_ns / 4, "{}", slow.report.table);
    // It waits for its rival's end, which is no lock.
    slow.agrees(slow.ns("lock_ns"), 0, "waiting for a lock");
}

#[test]
fn a_holder_that_reads_from_a_disk_waits_for_io() {
    // Guests have none: tests/vm/suite leaves this one out by its name.
    let slow = SlowHolder::new("io");
    slow.agrees(slow.ns("io_ns"), slow.asleep_ns, "waiting for the disk");
    assert!(slow.ns("io_ns") > 0, "{}", slow.report.table);
}
