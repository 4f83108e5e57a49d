use super::*;
use crate::model::{FutexClass, HoldStats, WaitStats};
use crate::render::tests::profile;

fn shown(profile: &Profile, options: &Options) -> String {
    let mut out = Vec::new();
    render(profile, options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn at(columns: usize) -> Options {
    Options { width: Some(columns), ..Options::default() }
}

fn row<'a>(table: &'a str, label: &str) -> &'a str {
    table.lines().find(|line| line.contains('%') && line.contains(label)).unwrap()
}

#[test]
fn a_lock_that_only_hangs_is_ranked_first() {
    let table = shown(&profile(), &at(120));
    let first = table.lines().skip_while(|line| !line.starts_with("WAIT%")).nth(1).unwrap();
    assert!(first.contains("rename_mutex") && first.contains("(2 waiting now)"), "{first}");
}

#[test]
fn what_is_not_known_is_a_dash_and_not_zero() {
    let table = shown(&profile(), &at(100));
    let cells: Vec<&str> = row(&table, "rename_mutex").split_whitespace().collect();
    assert_eq!(cells[2..8], ["0", "-", "-", "-", "-", "-"]);
}

#[test]
fn narrower_terminals_lose_columns_by_priority() {
    let titles = |columns| {
        let table = shown(&profile(), &at(columns));
        table
            .lines()
            .find(|line| line.starts_with("WAIT%"))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(titles(140), "WAIT% TYPE CONTENDED TOTAL AVG P50 P99 MAX ABORTED HOLD AVG LOCK");
    assert_eq!(titles(120), "WAIT% TYPE CONTENDED TOTAL AVG P50 P99 MAX HOLD AVG LOCK");
    assert_eq!(titles(100), "WAIT% TYPE CONTENDED TOTAL AVG P50 P99 MAX LOCK");
    assert_eq!(titles(99), "WAIT% TYPE CONTENDED TOTAL AVG P99 LOCK");
    assert_eq!(titles(79), "WAIT% TYPE CONTENDED TOTAL P99 LOCK");
    assert_eq!(titles(59), "WAIT% TYPE TOTAL LOCK");
}

#[test]
fn holds_are_shown_when_they_were_traced() {
    let mut profile = profile();
    profile.meta.hold = true;
    let pipe = profile.locks.iter_mut().find(|lock| lock.label() == "pipe_write").unwrap();
    pipe.hold = Some(HoldStats {
        acquired: 123_456,
        holds: 1000,
        hold_total_ns: 5_000_000,
        hold_max_ns: Some(90_000),
    });
    let table = shown(&profile, &at(160));
    let cells: Vec<&str> = row(&table, "…2468").split_whitespace().collect();
    assert_eq!(cells[9..12], ["123k", "5.00µs", "90.0µs"]);
    // What the kernel never saw is not counted.
    let cells: Vec<&str> = row(&table, "CACHE").split_whitespace().collect();
    assert_eq!(cells[9..12], ["-", "2.70ms", "96.3ms"]);
    let cells: Vec<&str> = row(&table, "rename_mutex").split_whitespace().collect();
    assert_eq!(cells[9..12], ["-", "-", "-"]);
}

#[test]
fn holds_of_user_locks_are_shown_with_what_they_leave_out() {
    let note = "note: holds of user locks are seen only when they began with a wait";
    let mut profile = profile();
    let table = shown(&profile, &at(120));
    assert!(row(&table, "CACHE").contains("2.70ms") && table.contains(note));
    assert!(!shown(&profile, &at(119)).contains(note));
    profile.locks.iter_mut().for_each(|lock| lock.contended_hold = None);
    let table = shown(&profile, &at(120));
    assert!(!table.contains("HOLD AVG") && !table.contains(note));
}

#[test]
fn contention_and_idle_waits_are_never_in_one_table() {
    let profile = profile();
    let rows = |view| {
        let table = shown(&profile, &Options { view, ..at(120) });
        let rows = table.lines().skip_while(|line| !line.starts_with("WAIT%"));
        rows.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    };
    let (locks, idle) = (rows(View::Contention), rows(View::Idle));
    assert!(locks.contains("CACHE") && locks.contains("urwlock:W") && locks.contains("(heap ×3)"));
    assert!(!locks.contains("condvar") && !locks.contains("TABLES") && !locks.contains("libfancy"));
    assert!(idle.contains("condvar") && idle.contains("TABLES") && idle.contains("libfancy"));
    assert!(!idle.contains("mutex"));
}

#[test]
fn what_the_default_table_leaves_out_is_named_below_it() {
    let mut profile = profile();
    // Where it is known who held a lock, it need not be said who woke whom.
    assert!(!shown(&profile, &at(200)).contains("Releases that woke a waiter:"));
    assert!(!shown(&profile, &at(200)).contains("Owners when waits began:"));
    profile.locks.iter_mut().for_each(|lock| lock.blame = None);
    let table = shown(&profile, &at(200));
    assert!(table.contains("Owners when waits began:\nmutex rename_mutex: "));
    assert!(table.contains("not locks: 453 idle waits of 21.0s (condvar 11.0s, join 10.0s, park 11.4ms)"));
    assert!(table.contains("Futex waits of unknown kind:\n"));
    assert!(table.contains("Waits for one-time initialization:\n"));
    assert!(
        table.contains("Releases that woke a waiter:\numutex demo`CACHE+0x10: demo-io-2 (tid 4252) 57.3%")
    );
    assert!(table.contains("umutex /dev/shm/ticks+0x40\n          since before the start\n"));
}

#[test]
fn locks_are_queues() {
    let table = shown(&profile(), &at(80));
    let queues = table.split("As queues:\n").nth(1).unwrap();
    let titles: Vec<&str> = queues.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["ARRIVALS/S", "MEAN", "HOLD", "HELD", "IDLE", "QUEUE", "SAVES", "LOCK"]);
    let row = |table: &str, lock: &str| {
        let queues = table.split("As queues:\n").nth(1).unwrap().to_string();
        let line = queues.lines().find(|line| line.contains(lock)).unwrap().to_string();
        line.split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    // Two waited for it, one of them nearly all the time.
    assert_eq!(row(&table, "rename_mutex")[..6], ["0.20", "-", "98.7%", "0%", "1.40", "≤98.7%"]);
    assert!(row(&table, "CACHE")[1].starts_with('≥') && table.contains("MEAN HOLD ≥:"));
    assert!(!shown(&profile(), &at(59)).contains("MEAN HOLD"));
    let mut profile = profile();
    profile.locks.iter_mut().for_each(|lock| lock.blame = None);
    assert!(!shown(&profile, &at(80)).contains("As queues:"));
}

#[test]
fn rows_can_be_holders() {
    let options = Options { by: super::By::Holder, ..at(80) };
    assert!(shown(&profile(), &options).contains("\nBLAME%"));
    // Nobody holds what an idle thread waits for.
    let table = shown(&profile(), &Options { view: View::Idle, ..options });
    assert!(table.contains("\nWAIT%"));
}

#[test]
fn only_idle_waits_are_no_contention() {
    let mut profile = profile();
    profile.locks.retain(|lock| !lock.is_contention());
    let table = shown(&profile, &at(200));
    assert!(
        table.contains("and nobody is known to have waited for a lock.") && table.contains("unknown kind")
    );
    profile.locks.retain(|lock| lock.wait_class() == FutexClass::Idle);
    let table = shown(&profile, &at(200));
    assert!(table.contains(
        "No contention seen: 7 hooks were attached and reached 1.23M times, and nobody had to wait for a lock."
    ));
    assert!(table.contains("not locks: 453 idle waits") && !table.contains("WAIT%"));
    let mut profile = crate::render::tests::profile();
    profile.locks.retain(Lock::is_contention);
    let table = shown(&profile, &Options { view: View::Idle, ..at(200) });
    assert!(table.contains("No idle waits seen: 7 hooks were attached"), "{table}");
}

#[test]
fn futexes_that_nobody_classified_are_contention() {
    let mut profile = profile();
    profile.locks.iter_mut().for_each(|lock| lock.futex = None);
    let table = shown(&profile, &at(120));
    assert!(row(&table, "queue::Queue::pop").contains("futex") && !table.contains("not locks:"));
}

#[test]
fn rows_beyond_the_limit_are_summed_up() {
    let table = shown(&profile(), &Options { max_rows: 2, ..at(80) });
    assert!(table.contains("… and 8 more locks (30.5% of wait)"), "{table}");
    let idle = shown(&profile(), &Options { max_rows: 5, view: View::Idle, ..at(80) });
    assert!(idle.contains("… and 1 more futex (<0.1% of wait)"), "{idle}");
}

#[test]
fn unnamed_locks_with_the_same_call_site_are_told_apart() {
    let table = shown(&profile(), &at(80));
    assert!(table.contains("pipe_write …2468") && table.contains("pipe_write …9468"));
}

#[test]
fn quiet_and_blind_are_not_the_same() {
    let mut profile = profile();
    profile.locks.clear();
    assert!(shown(&profile, &at(200)).contains("8003 waits began, and none of them is in this profile"));
    profile.events.waits_begun = 0;
    assert!(
        shown(&profile, &at(200))
            .contains("No contention seen: 7 hooks were attached and reached 1.23M times")
    );
    profile.events.events_seen = 0;
    assert!(
        shown(&profile, &at(200))
            .contains("No events at all: 7 hooks were attached, and none was reached. Check the pid")
    );
    profile.events.hooks_attached = 0;
    assert!(shown(&profile, &at(200)).contains("Nothing was measured: no hook could be attached."));
}

#[test]
fn locks_that_were_held_but_never_waited_for_do_not_hide_that_nobody_waited() {
    let mut profile = profile();
    profile.locks.truncate(1);
    profile.locks[0].in_flight.clear();
    profile.locks[0].wait = WaitStats::default();
    profile.events.waits_begun = 0;
    let table = shown(&profile, &at(80));
    assert!(table.contains("No contention seen") && table.contains("rename_mutex"));
}

#[test]
fn nothing_lost_is_said() {
    let mut profile = profile();
    profile.losses.iter_mut().for_each(|loss| loss.count = 0);
    assert!(shown(&profile, &at(80)).ends_with("lost: nothing\n"));
}

#[test]
fn colours_only_when_asked_for() {
    let mut profile = profile();
    assert!(!shown(&profile, &at(80)).contains('\x1b'));
    profile.locks.retain(|lock| lock.in_flight.iter().all(|wait| !wait.from_before));
    let table = shown(&profile, &Options { color: true, ..at(80) });
    assert!(table.contains("\x1b[31m57.0%") && table.contains("\x1b[2m 0.2%"));
}
