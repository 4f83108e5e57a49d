//! `--by holder`: one row for each thread at each place that made others wait, and for what no holder is
//! charged with, so that the rows add up to the waits.

use super::blame::{NO_ACCOUNT, identity, whole_of};
use super::flamegraph::short_name;
use super::label::{Labels, followed_by};
use super::table::{painted, write_wrapped};
use super::text::{clean, elide, pad_left, pad_right, width};
use super::who::named;
use super::{Options, View, notes, stacks};
use crate::model::{
    Account, Blame, BlameGap, Conservation, Evidence, Holder, HolderStates, Lock, Profile, accounts,
};
use crate::units::{self, count, duration, duration_or_dash, percent};
use std::io::{self, Write};

const GAP: &str = "  ";
/// Wide terminals have room for the lock and the place on the holder's line.
const ONE_LINE_FROM: usize = 160;
/// Where the second line of a row begins.
const INDENT: usize = 8;
const STATE_WIDTH: usize = 4;
/// The last one is what nobody watched; without such time the column is not there.
const STATES: [&str; 6] = ["RUN", "RDY", "IO", "LOCK", "BLK", "?"];

struct Row {
    blame_ns: u64,
    holds: Option<u64>,
    wanted_ns: Option<u64>,
    /// Shares of the wanted time; `None`: not watched, or nobody to be watched.
    states: Option<[f64; 6]>,
    who: String,
    /// What stands on the second line: a text and functions that may follow it.
    lock: String,
    path: Vec<String>,
}

pub fn render(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let columns = options.columns();
    notes::write_header(profile, View::Contention, columns, out)?;
    writeln!(out)?;
    match Conservation::of(profile) {
        Some(sums) if sums.waited_ns > 0 => {
            let unwatched = write_rows(profile, &sums, options, out)?;
            let end = if unwatched { "blocked (BLK), or not watched (?)" } else { "or blocked (BLK)" };
            let legend = format!(
                "BLAME: what others waited meanwhile; n threads that wait count n times. WANTED: wall time held \
                 while somebody waited; of it the holder was running (RUN), runnable (RDY), in io (IO), waiting \
                 for a lock itself (LOCK), {end}."
            );
            write_wrapped(&legend, columns, 2, out)?;
            writeln!(out)?;
            write_wrapped(&identity(&sums), columns, 4, out)?;
        }
        Some(_) => write_wrapped(&notes::no_waits(profile, View::Contention), columns, 0, out)?,
        None if View::Contention.rows(profile).any(|lock| lock.waits() > 0) => {
            write_wrapped(NO_ACCOUNT, columns, 0, out)?;
        }
        None => write_wrapped(&notes::no_waits(profile, View::Contention), columns, 0, out)?,
    }
    writeln!(out)?;
    notes::write_footer(profile, super::View::Contention, columns, out)
}

/// Whether there is time that nobody watched.
fn write_rows(
    profile: &Profile,
    sums: &Conservation,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<bool> {
    let columns = options.columns();
    let accounts = accounts(profile);
    let locks: Vec<&Lock> = View::Contention.rows(profile).take(options.max_rows).collect();
    let names = Names { labels: Labels::of(&locks), columns };
    let mut holders = holder_rows(profile, &accounts, &names);
    holders.sort_by_key(|row| std::cmp::Reverse(row.blame_ns));
    let rest = holders.split_off(options.max_rows.min(holders.len()));
    // What has no holder is never left out: it says how far the rest can be trusted.
    let mut rows = holders;
    rows.extend(rows_without_holder(&accounts, &names));
    rows.sort_by_key(|row| std::cmp::Reverse(row.blame_ns));

    let one_line = columns >= ONE_LINE_FROM;
    let who_width = rows.iter().map(|row| width(&row.who)).max().unwrap_or(0).clamp(6, 32);
    let unknown = |row: &Row| row.states.is_some_and(|shares| shares[5] >= 0.01);
    let layout = Layout { columns, waited_ns: sums.waited_ns, unwatched: rows.iter().any(unknown) };
    let mut header = layout.cells(None);
    header.push(if one_line { pad_right("HOLDER", who_width) } else { "HOLDER".to_string() });
    if one_line {
        header.push("[LOCK] PLACE".to_string());
    }
    writeln!(out, "{}", elide(header.join(GAP).trim_end(), columns))?;
    for row in &rows {
        let before = layout.cells(Some(row)).join(GAP) + GAP;
        let room = columns.saturating_sub(width(&before));
        let lines = if one_line {
            let who = pad_right(&elide(&row.who, who_width), who_width);
            let room = room.saturating_sub(who_width + GAP.len());
            vec![format!("{before}{who}{GAP}{}", row.detail(room))]
        } else {
            let detail = row.detail(columns.saturating_sub(INDENT));
            vec![format!("{before}{}", elide(&row.who, room)), format!("{}{detail}", " ".repeat(INDENT))]
        };
        for line in lines {
            writeln!(out, "{}", painted(line.trim_end(), row.blame_ns, sums.waited_ns, options.color))?;
        }
    }
    if !rest.is_empty() {
        let ns: u64 = rest.iter().map(|row| row.blame_ns).sum();
        let share = percent(ns as f64 / sums.waited_ns.max(1) as f64);
        let holders = if rest.len() == 1 { "holder" } else { "holders" };
        let text =
            format!("… and {} more {holders} ({} of blame, {share})", count(rest.len() as u64), duration(ns));
        writeln!(out, "{}", elide(&text, columns))?;
    }
    writeln!(out)?;
    Ok(layout.unwatched)
}

impl Row {
    fn detail(&self, room: usize) -> String {
        let Some((function, callers)) = self.path.split_first() else { return elide(&self.lock, room) };
        // The function may take what the lock leaves, and at least a third.
        let function = clean(&short_name(function));
        let left = room.saturating_sub(width(&self.lock) + 1).max(room / 3).min(room.saturating_sub(2));
        let function = elide(&function, left);
        let lock = elide(&self.lock, room.saturating_sub(width(&function) + 1));
        followed_by(format!("{lock} {function}"), callers, room)
    }
}

struct Layout {
    columns: usize,
    waited_ns: u64,
    unwatched: bool,
}

impl Layout {
    /// The numbers of a row, or their titles.
    fn cells(&self, row: Option<&Row>) -> Vec<String> {
        let cell = |title: &str, width: usize, text: &dyn Fn(&Row) -> String| {
            pad_left(&row.map_or_else(|| title.to_string(), text), width.max(title.len()))
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_string());
        let share = |row: &Row| percent(row.blame_ns as f64 / self.waited_ns.max(1) as f64);
        let mut cells = vec![
            cell("BLAME%", units::PERCENT_WIDTH, &share),
            cell("BLAME", units::DURATION_WIDTH, &|row| duration(row.blame_ns)),
        ];
        if self.columns >= 60 {
            cells.push(cell("HOLDS", units::COUNT_WIDTH, &|row| or_dash(row.holds.map(count))));
            cells.push(cell("WANTED", units::DURATION_WIDTH, &|row| duration_or_dash(row.wanted_ns)));
        }
        if self.columns >= 80 {
            let states = STATES.iter().enumerate().take(if self.unwatched { 6 } else { 5 });
            let states = states.map(|(index, title)| {
                let share = |row: &Row| or_dash(row.states.map(|shares| whole_percent(shares[index])));
                cell(title, STATE_WIDTH, &share)
            });
            cells.push(states.collect::<Vec<_>>().join(" "));
        }
        cells
    }
}

fn whole_percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 1.0 { "<1%".to_string() } else { format!("{percent:.0}%") }
}

fn holder_rows(profile: &Profile, accounts: &[Account], names: &Names) -> Vec<Row> {
    let holders = accounts.iter().filter_map(|account| Some((account.rows[0], account.blame?)));
    let holders = holders.flat_map(|(lock, blame)| blame.holders.iter().map(move |holder| (lock, holder)));
    holders
        .filter(|(_, holder)| holder.blamed_ns > 0)
        .map(|(lock, holder)| Row {
            blame_ns: holder.blamed_ns,
            holds: Some(holder.holds),
            wanted_ns: Some(holder.wanted_ns),
            states: holder.states.map(|states| shares(&states, holder.wanted_ns)),
            who: named(&holder.thread.comm, holder.thread.tid),
            lock: format!("[{}]{}", names.of(lock), evidence(holder)),
            path: stacks::place_of(profile, lock, holder.kernel_stack, holder.user_stack),
        })
        .collect()
}

fn evidence(holder: &Holder) -> &'static str {
    match holder.evidence {
        Evidence::Release => "",
        Evidence::Acquire => " taken in",
    }
}

fn shares(states: &HolderStates, wanted_ns: u64) -> [f64; 6] {
    let whole = whole_of(states, wanted_ns);
    let unwatched_ns = wanted_ns.saturating_sub(states.total_ns());
    [states.running_ns, states.runnable_ns, states.io_ns, states.lock_ns, states.blocked_ns, unwatched_ns]
        .map(|ns| ns as f64 / whole)
}

/// Handoffs and each reason once for all locks; what was not released lock by lock.
fn rows_without_holder(accounts: &[Account], names: &Names) -> Vec<Row> {
    let row = |blame_ns, who: String, lock: String| Row {
        blame_ns,
        holds: None,
        wanted_ns: None,
        states: None,
        who,
        lock,
        path: Vec::new(),
    };
    let blames = || accounts.iter().filter_map(|account| Some((account.rows[0], account.blame?)));
    let mut rows = Vec::new();

    let handoffs: Vec<(&Lock, u64)> = blames().map(|(lock, blame)| (lock, blame.handoff_ns)).collect();
    let times: u64 = blames().map(|(_, blame)| blame.handoffs).sum();
    let idle_ns = blames().map(|(_, blame)| blame.idle_while_wanted_ns).sum();
    let text = format!("nobody held it, {} times; {}", count(times), names.mostly(&handoffs));
    rows.push(Row { wanted_ns: Some(idle_ns), ..row(sum(&handoffs), "(handoff)".into(), text) });

    for reason in BlameGap::ALL {
        let waited = |blame: &Blame| {
            let parts = blame.unattributed.iter().filter(|part| part.reason == reason);
            parts.map(|part| part.waited_ns).sum::<u64>()
        };
        let locks: Vec<(&Lock, u64)> = blames().map(|(lock, blame)| (lock, waited(blame))).collect();
        let text = format!("{}; {}", reason.words(), names.mostly(&locks));
        rows.push(row(sum(&locks), "(not attributed)".into(), text));
    }

    for (lock, blame) in blames() {
        let who = match &blame.unreleased_by {
            Some(thread) => named(&thread.comm, thread.tid),
            None => "(holder not known)".to_string(),
        };
        let text = format!("[{}] not released at the end", names.of(lock));
        rows.push(row(blame.unreleased_ns, who, text));
    }

    let missing: Vec<(&Lock, u64)> =
        accounts.iter().map(|account| (account.rows[0], account.missing_ns())).collect();
    rows.push(row(sum(&missing), "(in no account)".into(), names.mostly(&missing)));
    rows.retain(|row| row.blame_ns > 0);
    rows
}

fn sum(locks: &[(&Lock, u64)]) -> u64 {
    locks.iter().map(|(_, ns)| ns).sum()
}

struct Names {
    labels: Labels,
    columns: usize,
}

impl Names {
    fn of(&self, lock: &Lock) -> String {
        self.labels.typed(lock, self.columns / 2)
    }

    /// `[mutex a]`, or `80.0% [mutex a]`.
    fn mostly(&self, locks: &[(&Lock, u64)]) -> String {
        let mut locks: Vec<&(&Lock, u64)> = locks.iter().filter(|(_, ns)| *ns > 0).collect();
        locks.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
        match locks[..] {
            [] => String::new(),
            [(lock, _)] => format!("[{}]", self.of(lock)),
            [(lock, ns), ..] => {
                let all: u64 = locks.iter().map(|(_, ns)| ns).sum();
                format!("{} [{}]", percent(*ns as f64 / all as f64), self.of(lock))
            }
        }
    }
}

#[cfg(test)]
mod tests;
