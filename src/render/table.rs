//! The default output: what was traced, one row per lock, and what is missing from the numbers.

use super::label::{RowLabel, SHORTEST_LABEL, row_labels};
use super::text::{clean, elide, pad_left, pad_right, width, wrap};
use super::{By, Options, View, blame, holders, notes, others, queues, who};
use crate::model::{Lock, Profile};
use crate::units::{self, count, duration_or_dash, percent};
use std::io::{self, Write};

const GAP: &str = "  ";
/// Narrower terminals have no columns for holds.
const HOLDS_FROM: usize = 120;

pub fn render(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let (view, columns) = (options.view, options.columns());
    if (options.by, view) == (By::Holder, View::Contention) {
        return holders::render(profile, options, out);
    }
    notes::write_header(profile, view, columns, out)?;
    writeln!(out)?;
    let rows: Vec<&Lock> = view.rows(profile).collect();
    if rows.iter().all(|lock| lock.waits() == 0) {
        write_wrapped(&notes::no_waits(profile, view), columns, 0, out)?;
        writeln!(out)?;
    }
    if !rows.is_empty() {
        write_rows(profile, &rows, options, out)?;
        writeln!(out)?;
    }
    others::write_not_shown(profile, options, out)?;
    if view == View::Contention {
        let shown = &rows[..options.max_rows.min(rows.len())];
        blame::write_sections(profile, shown, columns, out)?;
        queues::write(profile, shown, columns, out)?;
    }
    others::write_apart(profile, options, out)?;
    who::write_owners(profile, view, columns, out)?;
    who::write_releasers(profile, view, columns, out)?;
    who::write_in_flight(profile, view, columns, out)?;
    let shown = &rows[..options.max_rows.min(rows.len())];
    if columns >= HOLDS_FROM && shown.iter().any(|lock| lock.hold.is_none() && lock.contended_hold.is_some())
    {
        let note = "note: holds of user locks are seen only when they began with a wait; uncontended ones \
                    never reach the kernel.";
        write_wrapped(note, columns, 6, out)?;
    }
    notes::write_footer(profile, view, columns, out)
}

struct Column {
    title: &'static str,
    width: usize,
    left: bool,
    cell: fn(&Lock, total_ns: u64) -> String,
}

impl Column {
    fn number(title: &'static str, width: usize, cell: fn(&Lock, u64) -> String) -> Column {
        Column { title, width: width.max(title.len()), left: false, cell }
    }

    fn aligned(&self, text: &str) -> String {
        if self.left { pad_right(text, self.width) } else { pad_left(text, self.width) }
    }
}

/// The columns before LOCK. The fewer terminal columns there are, the more of the numbers go that
/// another number nearly tells: P50 and MAX first, then AVG, then P99 and CONTENDED.
fn columns_for(profile: &Profile, view: View, rows: &[&Lock], terminal: usize) -> Vec<Column> {
    const TIME: usize = units::DURATION_WIDTH;
    let type_width = rows.iter().map(|lock| lock.type_name().len()).max().unwrap_or(0);
    let mut columns = vec![
        Column::number("WAIT%", units::PERCENT_WIDTH, |lock, total_ns| match total_ns {
            0 => "-".to_string(),
            _ => percent(lock.weight_ns() as f64 / total_ns as f64),
        }),
        Column {
            title: "TYPE",
            width: type_width.max(4),
            left: true,
            cell: |lock, _| lock.type_name().into(),
        },
    ];
    if terminal >= 60 {
        let title = match view {
            View::Contention => "CONTENDED",
            View::Idle => "WAITS",
        };
        columns.push(Column::number(title, units::COUNT_WIDTH, |lock, _| count(lock.wait.contended)));
    }
    columns.push(Column::number("TOTAL", TIME, |lock, _| {
        duration_or_dash((lock.wait.contended > 0).then_some(lock.wait.wait_total_ns))
    }));
    if terminal >= 80 {
        columns.push(Column::number("AVG", TIME, |lock, _| duration_or_dash(lock.wait.avg_wait_ns())));
    }
    if terminal >= 100 {
        columns.push(Column::number("P50", TIME, |lock, _| percentile(lock, 50.0)));
    }
    if terminal >= 60 {
        columns.push(Column::number("P99", TIME, |lock, _| percentile(lock, 99.0)));
    }
    if terminal >= 100 {
        columns.push(Column::number("MAX", TIME, |lock, _| duration_or_dash(lock.wait.wait_max_ns)));
    }
    if has_aborted_column(terminal) {
        columns.push(Column::number("ABORTED", units::COUNT_WIDTH, |lock, _| count(lock.wait.aborted)));
    }
    if terminal >= HOLDS_FROM {
        if profile.meta.hold {
            columns.push(Column::number("ACQUIRED", units::COUNT_WIDTH, |lock, _| {
                lock.hold.map_or_else(|| "-".to_string(), |hold| count(hold.acquired))
            }));
        }
        if profile.meta.hold || rows.iter().any(|lock| lock.contended_hold.is_some()) {
            columns.push(Column::number("HOLD AVG", TIME, |lock, _| {
                duration_or_dash(lock.seen_holds().and_then(|holds| holds.avg_hold_ns()))
            }));
        }
        if profile.meta.hold {
            columns.push(Column::number("HOLD MAX", TIME, |lock, _| {
                duration_or_dash(lock.seen_holds().and_then(|holds| holds.hold_max_ns))
            }));
        }
    }
    columns
}

fn has_aborted_column(terminal: usize) -> bool {
    terminal >= 140
}

fn percentile(lock: &Lock, percent: f64) -> String {
    duration_or_dash(lock.hist.as_ref().and_then(|hist| hist.percentile_ns(percent, lock.wait.wait_max_ns)))
}

fn write_rows(profile: &Profile, rows: &[&Lock], options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let terminal = options.columns();
    let total_ns = options.view.weight_ns(profile);
    let (shown, rest) = rows.split_at(options.max_rows.min(rows.len()));
    let columns = columns_for(profile, options.view, shown, terminal);
    let (title, singular, plural) = match options.view {
        View::Contention => ("LOCK", "lock", "locks"),
        View::Idle => ("FUTEX", "futex", "futexes"),
    };
    let indent: usize = columns.iter().map(|column| column.width + GAP.len()).sum();
    let labels = row_labels(shown);

    let mut header: Vec<String> = columns.iter().map(|column| column.aligned(column.title)).collect();
    header.push(title.to_string());
    writeln!(out, "{}", header.join(GAP))?;
    for (lock, label) in shown.iter().zip(&labels) {
        let mut cells: Vec<String> =
            columns.iter().map(|column| column.aligned(&(column.cell)(lock, total_ns))).collect();
        let (cell, below) = lock_cell(profile, lock, label, terminal, terminal - indent);
        cells.push(cell);
        let mut lines = vec![cells.join(GAP)];
        lines.extend(below);
        for line in lines {
            writeln!(out, "{}", painted(&line, lock.weight_ns(), total_ns, options.color))?;
        }
    }
    if !rest.is_empty() {
        let locks = if rest.len() == 1 { singular } else { plural };
        let share = match total_ns {
            0 => String::new(),
            _ => {
                let ns: u64 = rest.iter().map(|lock| lock.weight_ns()).sum();
                format!(" ({} of wait)", percent(ns as f64 / total_ns as f64))
            }
        };
        writeln!(
            out,
            "{}",
            elide(&format!("… and {} more {locks}{share}", count(rest.len() as u64)), terminal)
        )?;
    }
    Ok(())
}

/// One hue for what takes more than half of the wait, dim for what takes less than 1 %.
pub(super) fn painted(line: &str, weight_ns: u64, total_ns: u64, color: bool) -> String {
    let share = if total_ns == 0 { 0.0 } else { weight_ns as f64 / total_ns as f64 };
    match share {
        _ if !color => line.to_string(),
        share if share > 0.5 => format!("\x1b[31m{line}\x1b[0m"),
        share if share < 0.01 => format!("\x1b[2m{line}\x1b[0m"),
        _ => line.to_string(),
    }
}

/// What stands under LOCK, in at most `room` columns, and what found no room there.
fn lock_cell(
    profile: &Profile,
    lock: &Lock,
    label: &RowLabel,
    terminal: usize,
    room: usize,
) -> (String, Option<String>) {
    let mut notes = Vec::new();
    if lock.wait.aborted > 0 && !has_aborted_column(terminal) {
        notes.push(format!("+{} aborted", count(lock.wait.aborted)));
    }
    if !lock.in_flight.is_empty() {
        notes.push(format!("{} waiting now", count(lock.in_flight.len() as u64)));
    }
    if notes.is_empty() {
        return (label.with_callers(profile, lock, room), None);
    }
    let note = format!("({})", notes.join(", "));
    let label_room = room.saturating_sub(width(&note) + 1);
    if label.width() <= label_room || label_room >= SHORTEST_LABEL {
        return (format!("{} {note}", label.with_callers(profile, lock, label_room)), None);
    }
    let note = if width(&note) <= room { pad_right(&note, room) } else { elide(&note, terminal) };
    (label.with_callers(profile, lock, room), Some(pad_left(&note, terminal).trim_end().to_string()))
}

pub(super) fn write_wrapped(
    text: &str,
    columns: usize,
    indent: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    for line in wrap(&clean(text), columns, indent) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
