//! How the waits of the hottest locks are distributed: one row per power of two.

use super::label::RowLabel;
use super::text::{pad_left, width};
use super::{Options, View};
use crate::model::{Hist, Lock, Profile};
use crate::units::{count, duration, duration_or_dash};
use std::io::{self, Write};

/// The last power of two a [`Hist`] tells apart; whatever is longer is counted there too.
const LAST_OCTAVE: u32 = 41;
/// A full bar is no easier to read for being longer.
const WIDEST_BAR: usize = 60;

/// Histograms of the first `options.histograms` locks that waited; waits still going on and aborted
/// ones are not in them.
pub fn render(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let columns = options.columns();
    let rows = options.view.rows(profile).filter(|lock| lock.wait.contended > 0);
    let locks: Vec<&Lock> = rows.take(options.histograms).collect();
    if locks.is_empty() {
        let what = match options.view {
            View::Contention => "contended",
            View::Idle => "finished",
        };
        return writeln!(out, "No {what} waits: no histogram.");
    }
    for (index, lock) in locks.into_iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        write_lock(lock, columns, out)?;
    }
    Ok(())
}

fn write_lock(lock: &Lock, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let ended = if lock.is_contention() { "contended" } else { "waits" };
    let ended = format!(", {} {ended}", count(lock.wait.contended));
    let kind = lock.type_name();
    let room = columns.saturating_sub(kind.len() + 1 + width(&ended));
    writeln!(out, "{kind} {}{ended}", RowLabel::of(lock).fitted(room))?;
    match &lock.hist {
        None => writeln!(out, "  not known: histogram table was full"),
        Some(hist) => {
            write_octaves(hist, columns, out)?;
            write_percentiles(lock, hist, columns, out)
        }
    }
}

fn write_octaves(hist: &Hist, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let octaves = hist.per_octave();
    let (Some((first, _)), Some((last, _))) = (octaves.first(), octaves.last()) else { return Ok(()) };
    let most = octaves.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    let rows: Vec<(String, u64)> = (*first..=*last)
        .map(|octave| {
            let n = octaves.iter().find(|(o, _)| *o == octave).map_or(0, |(_, n)| *n);
            (range(octave), n)
        })
        .collect();
    let range_width = rows.iter().map(|(range, _)| width(range)).max().unwrap_or(0);
    let count_width = rows.iter().map(|(_, n)| count(*n).len()).max().unwrap_or(0);
    let bar_width = columns.saturating_sub(2 + range_width + 2 + count_width + 4).min(WIDEST_BAR);
    for (range, n) in rows {
        let range = pad_left(&range, range_width);
        let n_text = pad_left(&count(n), count_width);
        writeln!(out, "  {range}  {n_text}  |{}|", bar(n, most, bar_width))?;
    }
    Ok(())
}

fn range(octave: u32) -> String {
    let low = duration(1 << octave);
    if octave >= LAST_OCTAVE {
        return format!("[{low}, …)");
    }
    format!("[{low}, {})", duration(1 << (octave + 1)))
}

/// `n` of `most` in eighths of a column. What happened at least once is at least one eighth.
fn bar(n: u64, most: u64, columns: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let full = columns as u128 * 8;
    let mut eighths = (u128::from(n) * full / u128::from(most)) as usize;
    if n > 0 {
        eighths = eighths.max(1);
    }
    let text = format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8]);
    let used = text.chars().count();
    text + &" ".repeat(columns.saturating_sub(used))
}

fn write_percentiles(lock: &Lock, hist: &Hist, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let max_ns = lock.wait.wait_max_ns;
    let mut parts: Vec<String> = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)]
        .iter()
        .map(|(name, percent)| format!("{name} {}", duration_or_dash(hist.percentile_ns(*percent, max_ns))))
        .collect();
    parts.push(format!("max {}", duration_or_dash(max_ns)));
    let mut line = String::new();
    for part in parts {
        if !line.is_empty() && width(&line) + 2 + width(&part) > columns {
            writeln!(out, "{line}")?;
            line.clear();
        }
        line.push_str("  ");
        line.push_str(&part);
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_wide_as_asked_and_never_hide_a_count() {
        for n in 0..=1000 {
            assert_eq!(bar(n, 1000, 12).chars().count(), 12);
        }
        assert_eq!(bar(1000, 1000, 3), "███");
        assert_eq!(bar(500, 1000, 3), "█▌ ");
        assert_eq!(bar(1, 1_000_000, 3), "▏  ");
        assert_eq!(bar(0, 1000, 3), "   ");
    }

    #[test]
    fn the_last_range_is_open() {
        assert_eq!(range(12), "[4.10µs, 8.19µs)");
        assert_eq!(range(LAST_OCTAVE), "[36m39s, …)");
    }
}
