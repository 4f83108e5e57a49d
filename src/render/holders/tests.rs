use super::*;
use crate::render::By;
use crate::render::tests::profile;

fn shown(profile: &Profile, columns: usize) -> String {
    let mut out = Vec::new();
    let options = Options { by: By::Holder, width: Some(columns), ..Options::default() };
    crate::render::table::render(profile, &options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The cells above the line with this text.
fn cells<'a>(table: &'a str, detail: &str) -> Vec<&'a str> {
    let lines: Vec<&str> = table.lines().collect();
    let at = lines.iter().position(|line| line.contains(detail));
    let at = at.unwrap_or_else(|| panic!("no {detail}: {table}"));
    lines[at - 1].split_whitespace().collect()
}

#[test]
fn rows_add_up_to_the_waits() {
    let mut profile = profile();
    for _ in 0..2 {
        let accounts = accounts(&profile);
        let names = Names { labels: Labels::of(&[]), columns: 80 };
        let holders = holder_rows(&profile, &accounts, &names);
        let others = rows_without_holder(&accounts, &names);
        let sum: u64 = holders.iter().chain(&others).map(|row| row.blame_ns).sum();
        assert_eq!(sum, View::Contention.weight_ns(&profile));
        // Waits without an account are a row too.
        profile.locks.iter_mut().filter(|lock| lock.kind.is_user()).for_each(|lock| lock.blame = None);
    }
    assert!(shown(&profile, 80).contains("(in no account)"));
}

#[test]
fn that_it_adds_up_is_computed() {
    let mut profile = profile();
    assert!(shown(&profile, 200).contains(" (exact)\n"));
    let mut blames = profile.locks.iter_mut().filter_map(|lock| lock.blame.as_mut());
    blames.find(|blame| blame.handoff_ns > 0).unwrap().handoff_ns -= 1234;
    assert!(shown(&profile, 200).contains(" (differs by 1234 ns that are in no account)\n"));
    let mut blames = profile.locks.iter_mut().filter_map(|lock| lock.blame.as_mut());
    blames.find(|blame| blame.handoff_ns > 0).unwrap().handoff_ns += 1300;
    assert!(shown(&profile, 200).contains(" (differs by 66 ns that nobody waited)\n"));
}

#[test]
fn what_no_holder_is_charged_with_says_why() {
    let table = shown(&profile(), 120);
    assert_eq!(cells(&table, "nobody held it, ")[4..], ["-", "-", "-", "-", "-", "(handoff)"]);
    for reason in BlameGap::ALL {
        assert_eq!(cells(&table, reason.words())[9..], ["(not", "attributed)"], "{reason:?}");
    }
    assert_eq!(
        cells(&table, "[mutex rename_mutex] not released at the end")[9..],
        ["demo-main", "(tid", "4249)"]
    );
    assert_eq!(cells(&table, "ticks+0x40] not released at the end")[9..], ["(holder", "not", "known)"]);
}

#[test]
fn states_are_shares_of_the_wanted_time_or_not_known() {
    let table = shown(&profile(), 100);
    assert_eq!(cells(&table, "demo::cache::Cache::evict")[4..9], ["30%", "8%", "62%", "0%", "0%"]);
    assert_eq!(cells(&table, "demo::book::Shard::rebalance")[4..9], ["-"; 5]);
    let table = shown(&profile(), 159);
    assert!(table.contains("] taken in demo::book::Shard::rebalance ← "), "{table}");
}

#[test]
fn time_of_a_holder_that_nobody_watched_is_shown_as_such() {
    let mut profile = profile();
    assert!(!shown(&profile, 100).contains(" BLK    ?  HOLDER"));
    let blames = profile.locks.iter_mut().filter_map(|lock| lock.blame.as_mut());
    let mut holders = blames.flat_map(|blame| &mut blame.holders);
    let gc = holders.find(|holder| holder.thread.comm == "demo-gc").unwrap();
    gc.states.as_mut().unwrap().io_ns = 0;
    let table = shown(&profile, 100);
    assert!(table.contains(" BLK    ?  HOLDER"));
    assert_eq!(cells(&table, "demo::cache::Cache::evict")[4..10], ["30%", "8%", "0%", "0%", "0%", "62%"]);
}

#[test]
fn narrower_terminals_lose_columns_by_priority() {
    let titles = |columns| {
        let table = shown(&profile(), columns);
        let line = table.lines().find(|line| line.starts_with("BLAME%")).unwrap().to_string();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(titles(160), "BLAME% BLAME HOLDS WANTED RUN RDY IO LOCK BLK HOLDER [LOCK] PLACE");
    assert_eq!(titles(80), "BLAME% BLAME HOLDS WANTED RUN RDY IO LOCK BLK HOLDER");
    assert_eq!(titles(79), "BLAME% BLAME HOLDS WANTED HOLDER");
    assert_eq!(titles(59), "BLAME% BLAME HOLDER");
}

#[test]
fn holders_beyond_the_limit_are_summed_up_and_reasons_are_not() {
    let options = Options { by: By::Holder, width: Some(80), max_rows: 1, ..Options::default() };
    let mut out = Vec::new();
    render(&profile(), &options, &mut out).unwrap();
    let table = String::from_utf8(out).unwrap();
    assert!(table.contains("more holders (") && table.contains("(handoff)"), "{table}");
}

#[test]
fn a_profile_without_an_account_says_so() {
    let mut profile = profile();
    profile.locks.iter_mut().for_each(|lock| lock.blame = None);
    assert!(shown(&profile, 200).contains(NO_ACCOUNT));
    profile.locks.clear();
    assert!(!shown(&profile, 200).contains(NO_ACCOUNT));
}
