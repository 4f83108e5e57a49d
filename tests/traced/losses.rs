//! Each loss forced, seen in the report under its name, and the rest still right.

use crate::support::*;

fn swarm(lockprof_args: &[&str]) -> (serde_json::Value, Report) {
    profile_scenario(&["swarm", "--locks", "60", "--stacks", "40", "--waiters", "4"], lockprof_args)
}

#[test]
fn full_maps_are_counted_and_shown() {
    let (truth, report) = swarm(&["-M", "8"]);
    if !should_see(Family::Futex) {
        return;
    }
    for reason in ["sites_map_full", "locks_map_full"] {
        assert!(report.loss(reason) > 0, "{reason}\n{}", report.table);
        assert!(report.table.contains(reason), "{}", report.table);
    }
    let contended: u64 = report.locks("futex").iter().map(|lock| number(lock, "contended")).sum();
    let made: u64 =
        truth["locks"].as_array().expect("locks").iter().map(|row| number(row, "contended")).sum();
    let lost = report.loss("sites_map_full") + report.loss("futex_waits_map_full") + report.skipped_runs();
    assert!(contended + lost >= made, "{contended} counted, {lost} lost, {made} made");
}

#[test]
fn more_threads_waiting_than_there_is_room_for_are_counted() {
    let (_, report) = profile_scenario(
        &["pthread-mutex", "--waiters", "12", "--rounds", "1", "--hold-ms", "20"],
        &["-M", "4"],
    );
    if should_see(Family::Futex) {
        assert!(report.loss("futex_waits_map_full") > 0, "{}", report.table);
        assert!(report.loss("unpaired_end") > 0, "ends without a begin are counted too");
    }
}

#[test]
fn children_beyond_the_room_for_targets_are_counted() {
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait";
    let report = Profiler::start(&["-M", "2", "--", "sh", "-c", script]).finish();
    assert!(report.loss("targets_map_full") > 0, "{}", report.table);
}
