//! "Load every program": what the plan uses on this kernel loads and attaches, all of it.

use crate::support::*;

#[test]
fn every_hook_of_the_plan_is_attached() {
    let workload = Workload::gated(&["pthread-mutex"]);
    // 5.10 inlines the unlocks, and lockprof then refuses --hold=spinlock.
    let hold = if kernel() < (5, 11) { "--hold" } else { "--hold=all" };
    let report = Profiler::start(&["-p", &workload.pid.to_string(), hold, "100ms"]).finish();
    workload.kill();
    let plan = report.json["plan"].as_array().expect("plan");
    let used = plan.iter().filter(|hook| hook["backend"].is_string()).count() as u64;
    assert!(used > 0);
    assert_eq!(number(&report.json["events"], "hooks_attached"), used, "{}", report.table);
    for hook in plan {
        let reason = hook["reason"].as_str().expect("a reason");
        assert!(!reason.contains("Failed to attach"), "{hook}");
    }
}

#[test]
fn a_forced_method_is_the_only_one_used() {
    let workload = Workload::gated(&["pthread-mutex"]);
    let report = Profiler::start(&["-p", &workload.pid.to_string(), "100ms"]).finish();
    workload.kill();
    for hook in report.json["plan"].as_array().expect("plan") {
        let Some(backend) = hook["backend"].as_str() else { continue };
        let allowed: &[&str] = match method() {
            Method::Auto => &["fentry", "kprobe", "kprobe.multi", "tracepoint"],
            Method::Fentry => &["fentry"],
            Method::Kprobe => &["kprobe", "kprobe.multi"],
            Method::Tracepoint => &["tracepoint"],
        };
        assert!(allowed.contains(&backend), "{hook}");
    }
}
