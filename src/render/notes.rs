//! What stands around the table's rows: what was traced, and what is not in the numbers.

use super::View;
use super::table::write_wrapped;
use super::text::{clean, width, wrap};
use crate::model::{Backend, EndReason, FutexClass, Profile, TargetKind};
use crate::units::{count, duration, percent};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Processes named before the rest is counted.
const NAMED_PIDS: usize = 3;
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

pub(super) fn write_header(
    profile: &Profile,
    view: View,
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
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
    // What began and ended is counted for all waits together; their times are not added up.
    let what = match view {
        View::Contention => "Contention",
        View::Idle => "Idle and other waits",
    };
    let numbers = format!(
        "Hooks: {}. Events seen: {}. Waits: {} begun, {} ended{at_once}. {what}: {} in all.",
        hooks.join(", "),
        count(events.events_seen),
        count(events.waits_begun),
        count(events.waits_ended),
        duration(view.weight_ns(profile)),
    );
    write_wrapped(&numbers, columns, 2, out)
}

/// Why the view has no wait to show: nobody waited, or only for other things, or nothing was seen.
pub(super) fn no_waits(profile: &Profile, view: View) -> String {
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
    } else if profile.locks.iter().any(|lock| lock.waits() > 0) {
        let unknown = profile.weight_ns_of(FutexClass::Unknown) > 0;
        let (what, whose) = match view {
            // A wait of unknown kind may have been for a lock.
            View::Contention if unknown => ("contention", "nobody is known to have waited for a lock"),
            View::Contention => ("contention", "nobody had to wait for a lock"),
            View::Idle => ("idle waits", "nobody waited for anything but locks"),
        };
        format!(
            "No {what} seen: {hooks} attached and reached {} times, and {whose}.",
            count(events.events_seen)
        )
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

pub(super) fn write_footer(
    profile: &Profile,
    view: View,
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
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
    if view == View::Contention {
        write_unnamed(profile, columns, out)?;
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

/// How much is called by its call site only, or by several names.
fn write_unnamed(profile: &Profile, columns: usize, out: &mut dyn Write) -> io::Result<()> {
    let Some(naming) = &profile.naming else { return Ok(()) };
    let all = profile.kernel_locks(|_| true);
    let unnamed = profile.kernel_locks(|lock| !lock.has_one_name());
    if unnamed.locks == 0 {
        return Ok(());
    }
    let share = |part: u64, whole: u64| percent(part as f64 / whole.max(1) as f64);
    let mut of = vec![format!("{} of their wait", share(unnamed.wait_ns, all.wait_ns))];
    if let (Some(part), Some(whole)) = (unnamed.acquired, all.acquired) {
        of.push(format!("{} of their acquisitions", share(part, whole)));
    }
    let (part, whole) = (count(unnamed.locks), count(all.locks));
    let mut text =
        format!("note: {part} of {whole} kernel locks ({}) could not be named for certain", of.join(", "));
    if !naming.unavailable.is_empty() {
        text.push_str(&format!(": {}", naming.unavailable.join("; ")));
    }
    text.push('.');
    write_wrapped(&text, columns, 6, out)
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
