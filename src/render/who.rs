//! Which threads: that owned a lock, that woke its waiters, that still wait.

use super::View;
use super::blame::accounted;
use super::label::RowLabel;
use super::table::write_wrapped;
use super::text::{clean, elide, pad_left, pad_right, width};
use crate::model::{Lock, Owner, Profile, Thread};
use crate::units::{duration, percent};
use std::io::{self, Write};

/// Waiters listed before the rest is counted.
const LISTED_WAITERS: usize = 10;
/// Locks whose owners and releasers are named, and how many of each of them.
const LOCKS_WITH_THREADS: usize = 3;
const NAMED_THREADS: usize = 3;

pub(super) fn write_in_flight(
    profile: &Profile,
    view: View,
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let waiters = view.rows(profile).flat_map(|lock| lock.in_flight.iter().map(move |wait| (lock, wait)));
    let mut waiters: Vec<_> = waiters.collect();
    if waiters.is_empty() {
        return Ok(());
    }
    waiters.sort_by_key(|(_, wait)| (std::cmp::Reverse(wait.age_ns), wait.tid));
    writeln!(out, "{}", elide("Still waiting when the profile stopped:", columns))?;
    let listed = &waiters[..waiters.len().min(LISTED_WAITERS)];
    let threads: Vec<String> = listed.iter().map(|(_, wait)| named(&wait.comm, wait.tid)).collect();
    // Neither side may squeeze out the other.
    let thread_width = threads.iter().map(|thread| width(thread)).max().unwrap_or(0).min((columns - 12) / 2);
    for ((lock, wait), thread) in listed.iter().zip(&threads) {
        let thread = pad_right(&elide(thread, thread_width), thread_width);
        let age = pad_left(&duration(wait.age_ns), 8);
        let lock = format!("{} {}", lock.type_name(), clean(&lock.label()));
        let line = format!("{age}  {thread}  ");
        writeln!(out, "{line}{}", elide(&lock, columns.saturating_sub(width(&line))))?;
        if wait.from_before {
            writeln!(out, "{}", elide("          since before the start", columns))?;
        }
        if let Some(owner) = &wait.owner {
            let owner = format!("          {}", owned_by(owner, wait.from_before));
            writeln!(out, "{}", elide(&owner, columns))?;
        }
    }
    if waiters.len() > listed.len() {
        writeln!(out, "{}", elide(&format!("        … and {} more", waiters.len() - listed.len()), columns))?;
    }
    writeln!(out)
}

fn owned_by(owner: &Owner, from_before: bool) -> String {
    let when = if from_before { "at the start" } else { "it began while" };
    match owner {
        Owner::Task(thread) => format!("{when} {} owned it", named(&thread.comm, thread.tid)),
        Owner::Readers => format!("{when} readers held it"),
        Owner::Nobody => format!("{when} nobody owned it"),
    }
}

pub(super) fn named(comm: &str, tid: u32) -> String {
    format!("{} (tid {tid})", clean(comm))
}

/// Who owned the locks that were waited for most, at the moments when waits began; where who held them
/// meanwhile is known, that says more.
pub(super) fn write_owners(
    profile: &Profile,
    view: View,
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let accounted = accounted(profile);
    let unaccounted = view.rows(profile).filter(|lock| !accounted.contains(&std::ptr::from_ref(*lock)));
    let owned = unaccounted.filter_map(|lock| Some((lock, lock.owners.as_ref()?)));
    let lines = owned.filter(|(_, owners)| owners.waits() > 0).map(|(lock, owners)| {
        let others = [(owners.readers, "readers"), (owners.nobody, "nobody")];
        (lock, shares(&owners.tasks, &others))
    });
    write_lines("Owners when waits began:", lines, columns, out)
}

/// Who released (idle: woke) what was waited for most, counted by the waiters woken.
pub(super) fn write_releasers(
    profile: &Profile,
    view: View,
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let accounted = accounted(profile);
    let unaccounted = view.rows(profile).filter(|lock| !accounted.contains(&std::ptr::from_ref(*lock)));
    let lines = unaccounted.filter(|lock| !lock.releasers.is_empty()).map(|lock| {
        let mut wakers: Vec<(Thread, u64)> = Vec::new();
        for releaser in &lock.releasers {
            match wakers.iter_mut().find(|(waker, _)| waker.tid == releaser.waker.tid) {
                Some((_, woken)) => *woken += releaser.woken,
                None => wakers.push((releaser.waker.clone(), releaser.woken)),
            }
        }
        wakers.sort_by_key(|(waker, woken)| (std::cmp::Reverse(*woken), waker.tid));
        (lock, shares(&wakers, &[]))
    });
    let heading = match view {
        View::Contention => "Releases that woke a waiter:",
        View::Idle => "Who woke a waiter:",
    };
    write_lines(heading, lines, columns, out)
}

fn write_lines<'a>(
    heading: &str,
    lines: impl Iterator<Item = (&'a Lock, String)>,
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let lines: Vec<_> = lines.take(LOCKS_WITH_THREADS).collect();
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "{}", elide(heading, columns))?;
    for (lock, threads) in lines {
        let label = RowLabel::of(lock).fitted(columns / 2);
        write_wrapped(&format!("{} {label}: {threads}", lock.type_name()), columns, 4, out)?;
    }
    writeln!(out)
}

/// `demo-io-0 (tid 4250) 50.0%, 2 more 33.3%, nobody 16.7%`; the threads come most frequent first.
fn shares(threads: &[(Thread, u64)], others: &[(u64, &str)]) -> String {
    let all = threads.iter().map(|(_, n)| n).chain(others.iter().map(|(n, _)| n)).sum::<u64>() as f64;
    let named_threads = threads.iter().take(NAMED_THREADS).map(|(t, n)| (*n, named(&t.comm, t.tid)));
    let mut parts: Vec<(u64, String)> = named_threads.collect();
    let rest = threads.iter().skip(NAMED_THREADS).map(|(_, n)| n).sum();
    parts.push((rest, format!("{} more", threads.len().saturating_sub(NAMED_THREADS))));
    parts.extend(others.iter().map(|(n, who)| (*n, who.to_string())));
    let parts = parts.into_iter().filter(|(n, _)| *n > 0);
    parts.map(|(n, who)| format!("{who} {}", percent(n as f64 / all))).collect::<Vec<_>>().join(", ")
}
