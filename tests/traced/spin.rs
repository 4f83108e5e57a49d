//! Locks that spin, and the time that others spin before they sleep.

use crate::support::*;
use serde_json::Value;

#[test]
fn a_mutex_waiter_that_sleeps_has_spun_for_little_of_its_wait() {
    let shape = ["pipe-mutex", "--waiters", "2", "--rounds", "2", "--hold-ms", "100"];
    let (truth, report) = profile_scenario(&shape, &[]);
    if !should_see(Family::Mutex) {
        assert!(report.says_blind("mutex"), "{}", report.table);
        return;
    }
    let lock = report.lock("mutex");
    // Only contention_begin says when a waiter goes to sleep; that of an rt_mutex does not.
    if kernel() < (5, 19) || matches!(method(), Method::Fentry | Method::Kprobe) || realtime() {
        assert!(lock["wait_spin_total_ns"].is_null(), "unknown is null: {lock}");
        return;
    }
    // The holder sleeps in the kernel, so nobody spins for it (mutex_spin_on_owner: owner_on_cpu).
    let (spun, waited) = (number(lock, "wait_spin_total_ns"), number(lock, "wait_total_ns"));
    assert!(waited >= number(&truth, "hold_ns") * number(lock, "contended"), "{}", report.table);
    assert!(spun <= waited / 4, "spun {spun} ns of {waited} ns");
    let of_sites: u64 =
        lock["sites"].as_array().expect("sites").iter().map(|site| number(site, "wait_spin_total_ns")).sum();
    assert_eq!(of_sites, spun, "the rows of a lock add up");
}

fn rows<'r>(report: &'r Report, family: &str) -> Vec<&'r Value> {
    let locks = report.json["locks"].as_array().expect("locks is a list");
    locks.iter().filter(|lock| lock["family"] == family).collect()
}

fn sum(rows: &[&Value], field: &str) -> u64 {
    rows.iter().map(|row| number(row, field)).sum()
}

fn in_flight(rows: &[&Value]) -> u64 {
    rows.iter().map(|row| row["in_flight"].as_array().expect("a list").len() as u64).sum()
}

fn kernel_functions(site: &Value) -> Vec<&str> {
    let frames = site["kernel_stack"]["frames"].as_array();
    frames.into_iter().flatten().filter_map(|frame| frame["function"].as_str()).collect()
}

/// Two processors that spin for each other, and a kernel that does not know it is a guest: under a
/// hypervisor without paravirtual spinlocks nobody queues (virt_spin_lock). See tests/vm/spin.
mod bare {
    use super::*;

    const SPIN: &str = "native_queued_spin_lock_slowpath";
    const READ: &str = "queued_read_lock_slowpath";
    const WRITE: &str = "queued_write_lock_slowpath";

    /// What an independent counter and lockprof say of one run.
    struct Run {
        truth: Value,
        report: Report,
        /// Entries of the slow paths: spin, read, write.
        entries: [u64; 3],
        /// Entries the counter is known to have missed, of anybody.
        missed: u64,
    }

    /// The process runs only while both look: it sleeps at its gate until they are ready, and is gone
    /// when they end.
    fn run(scenario: &str, operations: u64, lockprof_args: &[&str]) -> Run {
        let cpus = std::thread::available_parallelism().expect("a number of CPUs").get();
        assert!(cpus > 1, "one CPU has no spinlock contention");
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("procfs is mounted");
        assert!(!cpuinfo.contains(" hypervisor"), "the hypervisor shows: boot --bare");

        let operations = operations.to_string();
        let mut workload = Workload::gated(&[scenario, "--waiters", "2", "--operations", &operations]);
        await_sleep(workload.pid);
        let pid = workload.pid.to_string();
        let args: Vec<&str> = ["-p", &pid].iter().chain(lockprof_args).copied().collect();
        let profiler = Profiler::start(&args);
        let counter = Counter::start(&[SPIN, READ, WRITE], workload.pid);
        workload.open_gate();
        let truth = workload.finish();
        let counts = counter.finish();
        let report = profiler.finish();
        let run = Run {
            truth,
            report,
            entries: [counts[0].0, counts[1].0, counts[2].0],
            missed: counts.iter().map(|(_, missed)| missed).sum(),
        };
        run.print(scenario);
        run
    }

    /// Its one thread waits for the gate.
    fn await_sleep(pid: u32) {
        let start = std::time::Instant::now();
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the workload lives");
            if stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S")) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the workload does not come to its gate");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    impl Run {
        fn print(&self, scenario: &str) {
            let spins = rows(&self.report, "spinlock");
            let losses: Vec<String> = self.report.json["losses"]
                .as_array()
                .expect("losses")
                .iter()
                .filter(|loss| loss["count"].as_u64().is_some_and(|count| count > 0))
                .map(|loss| format!("{} {}", loss["reason"], loss["count"]))
                .collect();
            println!(
                "{scenario}: entered: spin {}, read {}, write {}, missed {}; lockprof: spinlock {}, rwlock:R {}, rwlock:W {}, in flight {}, of exiting threads {:?}, losses {losses:?}",
                self.entries[0],
                self.entries[1],
                self.entries[2],
                self.missed,
                sum(&spins, "contended"),
                sum(&self.report.locks("rwlock:R"), "contended"),
                sum(&self.report.locks("rwlock:W"), "contended"),
                in_flight(&spins) + in_flight(&rows(&self.report, "rwlock")),
                self.of_exiting_threads(&["spinlock", "rwlock:R", "rwlock:W"]),
            );
        }

        /// Waits for which lockprof has no row, but a count.
        fn counted_losses(&self) -> u64 {
            let of_spinning = ["spin_in_lockprof", "spin_sites_full", "spin_too_deep", "unpaired_begin"];
            of_spinning.iter().map(|reason| self.report.loss(reason)).sum()
        }

        /// Begins or ends the kernel skipped, of all programs: each may be one wait that nobody counted.
        fn skipped(&self) -> u64 {
            self.report.skipped_runs() + self.report.known_loss("kprobe_misses").unwrap_or(0)
        }

        /// Waits inside do_exit(): its perf_event_exit_task() ends the counter's sight of a thread, and
        /// what the thread waits for after it only lockprof sees. (certainly after it, all others)
        fn of_exiting_threads(&self, kinds: &[&str]) -> (u64, u64) {
            let rows = kinds.iter().flat_map(|kind| self.report.locks(kind));
            let sites = rows.flat_map(|lock| lock["sites"].as_array().expect("sites"));
            let (mut after, mut other) = (0, 0);
            for site in sites {
                let functions = kernel_functions(site);
                if !functions.contains(&"do_exit") {
                    continue;
                }
                let is_after =
                    ["exit_notify", "do_task_dead", "cgroup_exit"].iter().any(|f| functions.contains(f));
                *(if is_after { &mut after } else { &mut other }) += number(site, "contended");
            }
            (after, other)
        }

        /// lockprof's contended waits are the entries, exactly, but for what is counted as lost: `merged` of
        /// the entries may be parts of other waits.
        fn adds_up(&self, kinds: &[&str], entries: u64, merged: u64) {
            let rows: Vec<&Value> = kinds.iter().flat_map(|kind| self.report.locks(kind)).collect();
            let seen = sum(&rows, "contended") + in_flight(&rows);
            let (after, other) = self.of_exiting_threads(kinds);
            let least = (entries + after).saturating_sub(self.counted_losses() + self.skipped() + merged);
            let most = entries + self.missed + after + other;
            assert!(
                (least..=most).contains(&seen),
                "{kinds:?}: {seen} not in {least}..={most}, {entries} entries\n{}",
                self.report.table
            );
        }

        /// How often they meet is up to the machine; the claims hold for any number, and are empty for none.
        fn met(&self, entries: u64) {
            assert!(entries > 0, "the threads never met, which proves nothing");
        }
    }

    /// What holds of every row of a lock that spins.
    fn rows_are_sane(report: &Report, pid: &Value) {
        for lock in rows(report, "spinlock").into_iter().chain(rows(report, "rwlock")) {
            let contended = number(lock, "contended");
            if contended > 0 {
                assert_eq!(lock["wait_spin_total_ns"], lock["wait_total_ns"], "it only spins: {lock}");
            }
            let histogram = lock["histogram"].as_array();
            let counted: u64 = histogram.into_iter().flatten().map(|b| b[2].as_u64().expect("a count")).sum();
            assert!(counted <= contended && counted + report.loss("spin_locks_full") >= contended, "{lock}");
            assert_eq!(number(lock, "aborted"), 0);
            let sites = lock["sites"].as_array().expect("sites");
            assert_eq!(sites.iter().map(|site| number(site, "contended")).sum::<u64>(), contended);
            for site in sites {
                assert_eq!(site["pid"], *pid, "another process in {lock}");
            }
            if contended > 0 {
                assert!(number(lock, "wait_max_ns") <= number(&report.json["meta"], "duration_ns"), "{lock}");
                let site = lock["call_site"].as_str().unwrap_or_default();
                let is_lock_function =
                    site.contains("_raw_") || site.contains("queued_") || site.contains("slowpath");
                assert!(!is_lock_function, "the call site is a lock function: {site}\n{}", report.table);
            }
        }
    }

    #[test]
    #[ignore = "two processors without a hypervisor: tests/vm/spin"]
    fn spinlock_slow_path_entries_are_all_counted() {
        let run = run("spin", 100_000, &[]);
        run.met(run.entries[0]);
        run.adds_up(&["spinlock"], run.entries[0], run.entries[1] + run.entries[2]);
        rows_are_sane(&run.report, &run.truth["pid"]);

        // The threads' table of open files, run into by dup and by close.
        let busiest = rows(&run.report, "spinlock")
            .into_iter()
            .max_by_key(|lock| number(lock, "contended"))
            .expect("a spinlock");
        let sites = busiest["sites"].as_array().expect("sites");
        let waits_in = |names: &[&str]| {
            sites.iter().any(|site| kernel_functions(site).iter().any(|function| names.contains(function)))
        };
        assert!(
            waits_in(&["alloc_fd", "__alloc_fd", "get_unused_fd_flags"]),
            "dup waits for it\n{}",
            run.report.table
        );
        assert!(
            waits_in(&["close_fd", "__close_fd", "file_close_fd", "pick_file"]),
            "close waits for the same\n{}",
            run.report.table
        );
        let share = number(busiest, "contended") * 2;
        assert!(share >= run.entries[0], "it is most of {}\n{}", run.entries[0], run.report.table);
    }

    #[test]
    #[ignore = "two processors without a hypervisor: tests/vm/spin"]
    fn rwlock_slow_path_entries_are_all_counted_by_side() {
        let run = run("rwlock", 40_000, &[]);
        run.met(run.entries[1] + run.entries[2]);
        let [_, read, write] = run.entries;
        run.adds_up(&["rwlock:R"], read, 0);
        run.adds_up(&["rwlock:W"], write, 0);
        // Each of these slow paths takes the spinlock inside the rwlock, at most once.
        run.adds_up(&["spinlock"], run.entries[0], read + write);
        run.adds_up(&["spinlock", "rwlock:R", "rwlock:W"], run.entries.iter().sum(), read + write);
        rows_are_sane(&run.report, &run.truth["pid"]);

        // tasklist_lock: both sides have one address.
        let busiest = |kind| {
            let rows = run.report.locks(kind).into_iter();
            rows.max_by_key(|lock| number(lock, "contended")).map(|lock| lock["addr"].clone())
        };
        if read > 0 && write > 0 {
            assert_eq!(busiest("rwlock:R"), busiest("rwlock:W"), "{}", run.report.table);
        }
        // The spinlock inside it is a part of its wait and no lock of its own.
        let inner = |addr: &str| {
            let word = u64::from_str_radix(addr.trim_start_matches("0x"), 16).expect("an address");
            format!("{:#x}", word + 4)
        };
        for lock in rows(&run.report, "rwlock") {
            let inner = inner(lock["addr"].as_str().expect("an address"));
            let as_spinlock: Vec<_> = rows(&run.report, "spinlock")
                .into_iter()
                .filter(|spin| spin["addr"] == inner.as_str())
                .collect();
            assert!(as_spinlock.is_empty() || run.skipped() > 0, "{as_spinlock:?}");
        }
    }

    #[test]
    #[ignore = "two processors without a hypervisor: tests/vm/spin"]
    fn every_acquisition_of_a_spinlock_is_counted_with_hold() {
        if kernel() < (6, 1) {
            let output = lockprof().args(["--hold=spinlock", "-a", "1"]).output().expect("lockprof runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(77), "{said}");
            assert!(said.contains("_raw_spin_unlock") && said.contains("inlines"), "{said}");
            assert!(said.contains("hint:"), "{said}");
            return;
        }
        let run = run("spin", 5_000, &["--hold=spinlock"]);
        rows_are_sane(&run.report, &run.truth["pid"]);
        let report = &run.report;
        let file_lock = rows(report, "spinlock")
            .into_iter()
            .filter(|lock| !lock["hold"].is_null())
            .max_by_key(|lock| number(&lock["hold"], "acquired"))
            .expect("a spinlock that was held");
        let hold = &file_lock["hold"];
        let (acquired, holds) = (number(hold, "acquired"), number(hold, "holds"));
        let made = number(&run.truth, "acquisitions");
        println!("hold: acquired {acquired}, holds {holds}, truth at least {made}, {hold}");
        let lost = report.loss("spin_in_lockprof") + report.loss("spin_holds_full") + report.skipped_runs();
        assert!(acquired + lost >= made, "{acquired} acquired, {lost} lost, {made} made\n{}", report.table);
        // Besides: the workload's own files, a few for each thread.
        assert!(acquired <= made + 1000, "{acquired} acquired, {made} made\n{}", report.table);
        assert!(holds <= acquired, "{hold}");
        let untimed = report.loss("lost_release") + report.loss("spin_held_too_deep") + lost;
        assert!(holds + untimed >= acquired, "every hold has an end: {hold}\n{}", report.table);
        let (longest, total) = (number(hold, "hold_max_ns"), number(hold, "hold_total_ns"));
        assert!(longest > 0 && longest <= total, "{hold}");
        // Held by one at a time, and only while the workload ran.
        let ran = number(&run.truth, "end_ns") - number(&run.truth, "start_ns");
        assert!(total <= ran, "held for {total} ns of {ran} ns");
        assert!(number(file_lock, "contended") <= acquired, "{file_lock}");
        // Its releases are seen: who made others wait is charged with that, and nothing is twice or never.
        assert_eq!(report.json["conservation"]["difference_ns"], 0, "{}", report.table);
        if number(file_lock, "contended") > 0 {
            assert!(number(&file_lock["blame"], "blamed_ns") > 0, "{}\n{}", file_lock["blame"], report.table);
        }
    }
}
