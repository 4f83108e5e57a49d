//! Kernel locks are called what the workload knows that they are.

use crate::support::*;
use serde_json::Value;

const SHAPE: [&str; 6] = ["--waiters", "2", "--rounds", "2", "--hold-ms", "50"];

/// Profiles a scenario and holds every row against what the workload says the lock is called.
fn is_named(scenario: &str, family: Family, kinds: &[&str]) {
    let workload: Vec<&str> = std::iter::once(scenario).chain(SHAPE).collect();
    let (truth, report) = profile_scenario(&workload, &[]);
    if !should_see(family) {
        assert!(report.says_blind("mutex") || report.says_blind("rwsem"), "{}", report.table);
        return;
    }
    for kind in kinds {
        let rows = truth["locks"].as_array().expect("locks is a list");
        let row = rows.iter().find(|row| row["kind"] == *kind).expect("the truth has the kind");
        let lock = report.lock(kind);
        assert_eq!(lock["name"], row["name"], "{scenario}: {}", lock_words(lock));
        assert_eq!(lock["name_candidates"], serde_json::json!([]));
        let key = format!("k:field:{}:{}", lock["family"].as_str().unwrap(), row["name"].as_str().unwrap());
        assert_eq!(lock["key"], key);
    }
}

fn lock_words(lock: &Value) -> String {
    format!(
        "{} {} {} {} {}",
        lock["type"], lock["name"], lock["name_candidates"], lock["object"], lock["call_site"]
    )
}

#[test]
fn a_unix_socket_lock_is_never_called_signal() {
    is_named("unix-socket", Family::Mutex, &["mutex"]);
}

#[test]
fn a_pipes_mutex_is_named() {
    is_named("pipe-mutex", Family::Mutex, &["mutex"]);
}

#[test]
fn the_position_lock_of_an_open_file_is_named() {
    is_named("fpos-mutex", Family::Mutex, &["mutex"]);
}

#[test]
fn the_lock_of_an_inode_is_named_on_both_sides() {
    is_named("rwsem-read", Family::Rwsem, &["rwsem:R", "rwsem:W"]);
}

#[test]
fn the_mmap_lock_of_another_process_is_named() {
    let (truth, report) = profile_scenario(&["foreign-mmap", "--rounds", "3"], &[]);
    if !should_see(Family::Rwsem) {
        return assert!(report.says_blind("rwsem"), "{}", report.table);
    }
    let named: Vec<&Value> =
        report.locks("rwsem:R").into_iter().filter(|lock| lock["name"] == "mm_struct.mmap_lock").collect();
    let waits: u64 = named.iter().map(|lock| number(lock, "contended")).sum();
    let slept = number(&truth, "slept");
    assert!(waits + report.skipped_runs() >= slept, "{slept} reads slept:\n{}", report.table);
    // Of the child: its memory is read, nothing of our own.
    assert!(named.iter().any(|lock| {
        let stacks = lock["sites"].as_array().unwrap().iter();
        stacks
            .flat_map(|site| site["kernel_stack"]["frames"].as_array().unwrap())
            .any(|frame| frame["function"].as_str().is_some_and(|name| name.contains("process_vm_rw")))
    }));
    assert!(named.iter().all(|lock| lock["key"] == "k:field:rwsem:mm_struct.mmap_lock"));
}

#[test]
fn how_much_has_a_name_is_reported() {
    let (_, report) = profile_scenario(&["fpos-mutex"], &[]);
    let naming = &report.json["naming"];
    let all = number(&naming["all"], "locks");
    let kernel = report.json["locks"].as_array().unwrap().iter().filter(|lock| lock["family"] != "futex");
    assert_eq!(all, kernel.clone().count() as u64);
    let named =
        kernel.filter(|lock| !lock["name"].is_null() && lock["name_candidates"] == serde_json::json!([]));
    assert_eq!(number(&naming["named"], "locks"), named.count() as u64);
    // The development machine lists no variables; every kernel of tests/vm lists them all.
    let unavailable = naming["unavailable"].as_array().unwrap();
    assert_eq!(unavailable.is_empty(), in_guest(), "{unavailable:?}");
    for lock in report.json["locks"].as_array().unwrap() {
        assert!(lock["key"].is_string(), "{}", lock_words(lock));
    }
}

/// The kernel's own load, everything acquired: what share of locks and acquisitions has one name.
/// Not a share of waits, which would be of whatever is contended just then.
#[test]
#[ignore = "system-wide; for the guests"]
fn nearly_all_locks_of_a_mixed_load_have_one_name() {
    if only_tracepoints() || realtime() || method() != Method::Auto {
        return;
    }
    let mut workload = Workload::gated(&["storm", "--seconds", "5", "--waiters", "3"]);
    let hold = if kernel() >= (6, 0) { "--hold=mutex,rwsem,spinlock" } else { "--hold=mutex,rwsem" };
    let profiler = Profiler::start(&["-a", hold, "--map-entries", "262144"]);
    workload.open_gate();
    // Many objects, each locked a few times.
    let find = |dir: &str| {
        let mut find = std::process::Command::new("find");
        find.args([dir, "-maxdepth", "3", "-name", "*e*"]).stdout(std::process::Stdio::null());
        find.stderr(std::process::Stdio::null());
        find.spawn().expect("find runs")
    };
    let finds = ["/proc", "/sys", "/usr/share"].map(find);
    workload.finish();
    for mut find in finds {
        wait(&mut find, "find");
    }
    profiler.signal(libc::SIGINT);
    let report = profiler.finish();
    let naming = &report.json["naming"];
    let share =
        |field: &str| number(&naming["named"], field) as f64 / number(&naming["all"], field).max(1) as f64;
    let (locks, acquired) = (share("locks"), share("acquired"));
    println!("named: {locks:.3} of locks, {acquired:.3} of acquisitions: {naming}");
    // Bounds for regressions, and of acquisitions a wide one: a few locks in kmalloc'ed or per-CPU memory that have no
    // single name can be most of what a load takes. docs/names.md has what several came to.
    assert!(locks >= 0.95 && acquired >= 0.7, "{locks:.3} of locks, {acquired:.3} of acquisitions\n{naming}");
}
