//! Locks as queues, below the table: how many come, how long they are served, how many wait.

use super::View;
use super::blame::worth_telling;
use super::label::Labels;
use super::table::write_wrapped;
use super::text::{elide, pad_left, width};
use crate::model::{Account, Lock, MeanHold, Profile, Queue, accounts};
use crate::units::{self, duration, percent};
use std::collections::HashMap;
use std::io::{self, Write};

/// Locks that are listed.
const LOCKS: usize = 3;

struct Column {
    title: &'static str,
    /// Fewest columns of a terminal that has it.
    from: usize,
    cell: fn(&Queue) -> Option<String>,
}

const COLUMNS: [Column; 6] = [
    Column { title: "ARRIVALS/S", from: 40, cell: |queue| Some(rate(queue.arrivals_per_s)) },
    Column {
        title: "MEAN HOLD",
        from: 60,
        cell: |queue| match queue.mean_hold? {
            MeanHold::Holds(ns) => Some(duration(ns)),
            MeanHold::Wanted(ns) => Some(format!("≥{}", duration(ns))),
        },
    },
    Column {
        title: "HELD",
        from: 60,
        cell: |queue| queue.wanted.map(|wanted| percent(wanted.held.min(1.0))),
    },
    Column {
        title: "IDLE",
        from: 60,
        cell: |queue| queue.wanted.map(|wanted| percent(wanted.idle.min(1.0))),
    },
    Column { title: "QUEUE", from: 40, cell: |queue| Some(length(queue.mean_length)) },
    Column {
        title: "SAVES",
        from: 40,
        cell: |queue| {
            let share = queue.wanted?.saves_at_most();
            // `<0.1%` is a bound already.
            Some(if share < 0.001 { percent(share) } else { format!("≤{}", percent(share)) })
        },
    },
];

/// Of the rows that have an account of their holders.
pub(super) fn write(
    profile: &Profile,
    rows: &[&Lock],
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let accounts = accounts(profile);
    let account_of = accounts.iter().flat_map(|account| account.rows.iter().map(move |row| (*row, account)));
    let account_of: HashMap<*const Lock, &Account> =
        account_of.map(|(row, account)| (std::ptr::from_ref(row), account)).collect();
    let queues: Vec<(&Lock, Queue)> = rows
        .iter()
        .filter_map(|lock| {
            let account = account_of.get(&std::ptr::from_ref(*lock))?;
            let queue = Queue::of(lock, account, profile.meta.duration_ns)?;
            queue.wanted.filter(|wanted| wanted.held + wanted.idle > 0.0).map(|_| (*lock, queue))
        })
        .take(LOCKS)
        .collect();
    let queues = worth_telling(queues, View::Contention.weight_ns(profile), |(lock, _)| lock.weight_ns());
    if queues.is_empty() {
        return Ok(());
    }
    let labels = Labels::of(rows);
    let shown: Vec<&Column> = COLUMNS.iter().filter(|column| columns >= column.from).collect();
    let cell_width = |column: &Column| width(column.title).max(units::DURATION_WIDTH);
    let mut header = String::from("  ");
    for column in &shown {
        header += &format!("{}  ", pad_left(column.title, cell_width(column)));
    }
    writeln!(out, "As queues:")?;
    writeln!(out, "{}", elide(&format!("{header}LOCK"), columns))?;
    for (lock, queue) in &queues {
        let mut line = String::from("  ");
        for column in &shown {
            let cell = (column.cell)(queue).unwrap_or_else(|| "-".to_string());
            line += &format!("{}  ", pad_left(&cell, cell_width(column)));
        }
        let room = columns.saturating_sub(width(&line) + lock.type_name().len() + 1);
        line += &labels.typed(lock, room);
        writeln!(out, "{}", elide(&line, columns))?;
    }
    let bounded = queues.iter().any(|(_, queue)| matches!(queue.mean_hold, Some(MeanHold::Wanted(_))));
    let mut note = String::from(
        "QUEUE: threads that wait, on average. HELD, IDLE: of the run, while somebody waited and it was \
         held, or nobody held it; SAVES: both, what it could gain at most.",
    );
    if bounded && columns >= 60 {
        note += " MEAN HOLD ≥: from when somebody waited; --hold times all.";
    }
    write_wrapped(&format!("  {note}"), columns, 2, out)?;
    writeln!(out)
}

/// Three significant digits.
fn rate(per_s: f64) -> String {
    match per_s {
        x if x >= 1000.0 => units::count(x.round() as u64),
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

fn length(threads: f64) -> String {
    match threads {
        x if x > 0.0 && x < 0.01 => "<0.01".to_string(),
        x if x >= 1000.0 => units::count(x.round() as u64),
        x if x >= 100.0 => format!("{x:.0}"),
        x => format!("{x:.2}"),
    }
}
