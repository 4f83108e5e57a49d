//! What stands around the table's rows: what was traced, who still waits, what is not in the numbers.

use super::table::write_wrapped;
use super::text::{clean, elide, pad_left, pad_right, width, wrap};
use crate::model::{Backend, EndReason, Family, Owner, Profile, TargetKind};
use crate::units::{count, duration, percent};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Processes named before the rest is counted.
const NAMED_PIDS: usize = 3;
/// Waiters listed before the rest is counted.
const LISTED_WAITERS: usize = 10;
/// Locks whose owners are named, and owners of each of them.
const LOCKS_WITH_OWNERS: usize = 3;
const NAMED_OWNERS: usize = 3;
/// A blind spot is one remark, not a chapter; `lockprof doctor` has the rest.
const BLIND_LINES: usize = 2;

/// `nginx (pid 4242)`, `make -j8`, `the whole system`.
pub(super) fn target(profile: &Profile) -> String {
    let target = &profile.meta.target;
    match target.kind {
        TargetKind::System => "the whole system".to_string(),
        TargetKind::Command => format!("`{}`", clean(&target.command.join(" "))),
        TargetKind::Pids => {
            let mut named: Vec<String> = target
                .pids
                .iter()
                .enumerate()
                .take(NAMED_PIDS)
                .map(|(index, pid)| match target.comms.get(index) {
                    Some(comm) if !comm.is_empty() => format!("{} (pid {pid})", clean(comm)),
                    _ => format!("pid {pid}"),
                })
                .collect();
            if target.pids.len() > NAMED_PIDS {
                named.push(format!("{} more processes", target.pids.len() - NAMED_PIDS));
            }
            named.join(", ")
        }
    }
}

pub(super) fn end_reason(profile: &Profile) -> String {
    let meta = &profile.meta;
    match (meta.ended_by, meta.target.exit_status) {
        (EndReason::Duration, _) => "the time was up".to_string(),
        (EndReason::Signal, _) => "interrupted".to_string(),
        (EndReason::TargetExited, Some(status)) => format!("it exited with status {status}"),
        (EndReason::TargetExited, None) => "it exited".to_string(),
    }
}

pub(super) fn write_header(profile: &Profile, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let meta = &profile.meta;
    let traced =
        format!("Traced {} for {} ({}).", target(profile), duration(meta.duration_ns), end_reason(profile));
    write_wrapped(&traced, columns, 2, out)?;

    let mut backends: BTreeMap<Backend, u64> = BTreeMap::new();
    for backend in profile.plan.iter().filter_map(|line| line.backend) {
        *backends.entry(backend).or_default() += 1;
    }
    let mut hooks: Vec<String> =
        backends.iter().map(|(backend, n)| format!("{} {n}", backend.name())).collect();
    let skipped = profile.plan.iter().filter(|line| line.backend.is_none()).count();
    if skipped > 0 {
        hooks.push(format!("skipped {skipped}"));
    }
    if hooks.is_empty() {
        hooks.push("none".to_string());
    }
    let events = &profile.events;
    // FUTEX_WAIT finds the word changed and returns: begun, and neither ended nor in flight.
    let at_once = match events.futex_retries {
        0 => String::new(),
        n => format!(", {} returned at once", count(n)),
    };
    let numbers = format!(
        "Hooks: {}. Events seen: {}. Waits: {} begun, {} ended{at_once}, {} in all.",
        hooks.join(", "),
        count(events.events_seen),
        count(events.waits_begun),
        count(events.waits_ended),
        duration(profile.total_weight_ns()),
    );
    write_wrapped(&numbers, columns, 2, out)
}

/// Why there is no wait to show: nobody waited, or nothing was seen.
pub(super) fn no_waits(profile: &Profile) -> String {
    let events = &profile.events;
    let hooks = match events.hooks_attached {
        1 => "1 hook was".to_string(),
        n => format!("{} hooks were", count(n)),
    };
    if events.hooks_attached == 0 {
        "Nothing was measured: no hook could be attached. `lockprof doctor` says why.".to_string()
    } else if events.events_seen == 0 {
        let check = match profile.meta.target.kind {
            TargetKind::Pids => "Check the pid, and that the process was running and not idle",
            TargetKind::Command => "Check that the command did something while it was traced",
            TargetKind::System => "On a running system that is unlikely",
        };
        format!("No events at all: {hooks} attached, and none was reached. {check}; see `lockprof doctor`.")
    } else if events.waits_begun > 0 {
        format!(
            "{} waits began, and none of them is in this profile: see what was lost.",
            count(events.waits_begun)
        )
    } else {
        format!(
            "No contention seen: {hooks} attached and reached {} times, and nobody had to wait.",
            count(events.events_seen)
        )
    }
}

pub(super) fn write_in_flight(profile: &Profile, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let mut waiters: Vec<_> =
        profile.locks.iter().flat_map(|lock| lock.in_flight.iter().map(move |wait| (lock, wait))).collect();
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
        let lock = format!("{} {}", lock.kind.name(), clean(&lock.label()));
        let line = format!("{age}  {thread}  ");
        writeln!(out, "{line}{}", elide(&lock, columns.saturating_sub(width(&line))))?;
        if let Some(owner) = &wait.owner {
            let owner = format!("          {}", owned_by(owner));
            writeln!(out, "{}", elide(&owner, columns))?;
        }
    }
    if waiters.len() > listed.len() {
        writeln!(out, "{}", elide(&format!("        … and {} more", waiters.len() - listed.len()), columns))?;
    }
    writeln!(out)
}

fn owned_by(owner: &Owner) -> String {
    match owner {
        Owner::Task(thread) => format!("it began while {} owned it", named(&thread.comm, thread.tid)),
        Owner::Readers => "it began while readers held it".to_string(),
        Owner::Nobody => "it began while nobody owned it".to_string(),
    }
}

fn named(comm: &str, tid: u32) -> String {
    format!("{} (tid {tid})", clean(comm))
}

/// Who owned the locks that were waited for most, at the moments when waits began.
pub(super) fn write_owners(profile: &Profile, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let owned = profile.locks.iter().filter_map(|lock| Some((lock, lock.owners.as_ref()?)));
    let owned: Vec<_> = owned.filter(|(_, owners)| owners.waits() > 0).take(LOCKS_WITH_OWNERS).collect();
    if owned.is_empty() {
        return Ok(());
    }
    writeln!(out, "{}", elide("Owners when waits began:", columns))?;
    for (lock, owners) in owned {
        let mut parts: Vec<(u64, String)> = owners
            .tasks
            .iter()
            .take(NAMED_OWNERS)
            .map(|(thread, waits)| (*waits, named(&thread.comm, thread.tid)))
            .collect();
        let rest: u64 = owners.tasks.iter().skip(NAMED_OWNERS).map(|(_, waits)| waits).sum();
        let others = owners.tasks.len().saturating_sub(NAMED_OWNERS);
        parts.push((rest, format!("{others} more")));
        parts.push((owners.readers, "readers".to_string()));
        parts.push((owners.nobody, "nobody".to_string()));
        let all = owners.waits() as f64;
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(waits, _)| *waits > 0)
            .map(|(waits, who)| format!("{who} {}", percent(waits as f64 / all).trim_start()))
            .collect();
        let label = elide(&clean(&lock.label()), columns / 2);
        write_wrapped(&format!("{} {label}: {}", lock.kind.name(), parts.join(", ")), columns, 4, out)?;
    }
    writeln!(out)
}

pub(super) fn write_footer(profile: &Profile, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    if profile.locks.iter().any(|lock| lock.kind.family() == Family::Futex) {
        let note = "note: futex waits include idle ones (condition variables, thread pools); they are not \
                    told apart yet.";
        write_wrapped(note, columns, 6, out)?;
    }
    for (blind, functions) in blind_spots(profile) {
        let mut lines = wrap(&clean(&format!("not seen: {blind} ({functions})")), columns, 10);
        if lines.len() > BLIND_LINES {
            lines.truncate(BLIND_LINES);
            let last = &mut lines[BLIND_LINES - 1];
            *last = format!("{last} …");
            if width(last) > columns {
                last.truncate(last.trim_end_matches(" …").rfind(' ').unwrap_or(0));
                last.push_str(" …");
            }
        }
        for line in lines {
            writeln!(out, "{line}")?;
        }
    }
    let mut nothing_lost = true;
    for loss in profile.losses.iter().filter(|loss| loss.count > 0) {
        nothing_lost = false;
        write_wrapped(
            &format!("lost: {} {}: {}", loss.reason, count(loss.count), loss.meaning),
            columns,
            6,
            out,
        )?;
    }
    if nothing_lost {
        writeln!(out, "lost: nothing")?;
    }
    Ok(())
}

/// What skipped hooks cost, each thing once, with the functions it is due to.
fn blind_spots(profile: &Profile) -> Vec<(&str, String)> {
    let mut spots: Vec<(&str, String)> = Vec::new();
    for line in profile.plan.iter().filter(|line| line.backend.is_none()) {
        let Some(blind) = &line.blind else { continue };
        match spots.iter_mut().find(|(text, _)| text == blind) {
            Some((_, functions)) => *functions = format!("{functions}, {}", line.function),
            None => spots.push((blind, format!("no hook on {}", line.function))),
        }
    }
    spots
}
