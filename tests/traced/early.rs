//! Threads that wait for a futex already when the profile starts.

use crate::support::*;
use serde_json::Value;

/// Starts the profile while everybody waits in the first round.
fn profile_from_blocked(scenario: &str) -> (Value, Report) {
    let shape = [scenario, "--waiters", "3", "--rounds", "3", "--hold-ms", "100", "--gate-at", "blocked"];
    profile_scenario(&shape, &[])
}

#[test]
fn waits_that_began_before_the_profile_count_from_its_start() {
    // In a guest each start takes long.
    let scenarios =
        if in_guest() { &["pthread-mutex"][..] } else { &["pthread-mutex", "rust-mutex", "pi-mutex"] };
    for scenario in scenarios {
        let (truth, report) = profile_from_blocked(scenario);
        if !should_see(Family::Futex) {
            assert!(report.says_blind("futex"));
            return;
        }
        let row = &truth["locks"][0];
        assert_eq!(row["unproven"], 0, "{truth}");
        let lock = report.futex(&truth);
        assert_eq!(lock["class"], "lock", "{lock}");
        // Those of the first round too: natively their system calls are seen to end, elsewhere they are seen to be
        // woken. Who hands over a PI mutex wakes nobody that way.
        let made = number(row, "contended");
        if *scenario == "pi-mutex" && hooks_functions() {
            let lost = report.loss("unpaired_begin");
            let got = number(lock, "contended");
            assert!(got + lost + report.skipped_runs() >= made && got <= made, "{got} and {lost} of {made}");
            continue;
        }
        report.assert_counted(lock, "contended", made);
        let total = number(lock, "wait_total_ns");
        assert!(total <= number(row, "wait_total_ns"), "more than the whole waits: {total}, truth {row}");
        // The other two rounds are in it whole.
        let least = number(row, "wait_min_ns") * (number(row, "contended") - 3);
        assert!(total + report.skipped_runs() * number(row, "wait_max_ns") >= least, "{total}, truth {row}");
        assert!(report.loss("unpaired_end") <= report.skipped_runs(), "{}", report.table);
        let frames = |site: &Value| site["user_stack"]["frames"].to_string();
        let call_site = row["call_site"].as_str().expect("a call site");
        let sites = lock["sites"].as_array().expect("sites");
        let named: u64 = sites
            .iter()
            .filter(|site| frames(site).contains(call_site))
            .map(|site| number(site, "contended"))
            .sum();
        // Natively /proc has no frame pointer, without which Rust's own frames can not be walked.
        let least =
            if *scenario == "rust-mutex" { number(row, "contended") - 3 } else { number(row, "contended") };
        assert!(named + report.skipped_runs() >= least, "{named} stacks of {least} have {call_site}: {lock}");
    }
}

#[test]
fn a_thread_that_hangs_since_before_the_start_is_shown_with_the_owner() {
    let mut workload = Workload::gated(&["hung", "--waiters", "2"]);
    workload.open_gate();
    let hung = workload.event("hung");
    let pid = workload.pid.to_string();
    let report = Profiler::start(&["-p", &pid, "500ms"]).finish();
    workload.kill();
    if !should_see(Family::Futex) {
        assert!(report.says_blind("futex"));
        return;
    }
    let locks = report.json["locks"].as_array().expect("locks");
    let lock = locks.iter().find(|lock| lock["addr"] == hung["addr"]).expect("the mutex");
    assert_eq!(
        (&lock["class"], &lock["futex"]["kind_id"]),
        (&"lock".into(), &"glibc-mutex".into()),
        "{lock}"
    );
    let waits = lock["in_flight"].as_array().expect("a list");
    assert_eq!(waits.len(), 2, "{lock}");
    for wait in waits {
        assert_eq!(wait["from_before"], true, "{wait}");
        assert_eq!((&wait["owner"]["state"], &wait["owner"]["tid"]), (&"task".into(), &hung["holder_tid"]));
        assert_eq!(wait["age_ns"], report.json["meta"]["duration_ns"], "of the profile, not of the wait");
        assert_eq!(wait["user_stack"]["status"], "complete", "{wait}");
        assert!(wait["user_stack"].to_string().contains("wait_for_pthread_mutex"), "{wait}");
    }
    assert!(report.table.contains("since before the start"), "{}", report.table);
}
