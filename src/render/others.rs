//! What a view does not show: how much of it there was, and the few waits nobody should miss.

use super::label::row_labels;
use super::table::write_wrapped;
use super::text::{elide, pad_left};
use super::{Options, View};
use crate::model::{FutexClass, Lock, Profile};
use crate::units::{self, count, duration};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Kinds of idle waits that are named.
const NAMED_KINDS: usize = 3;
/// Rows of a small section before the rest is counted.
const LISTED_ROWS: usize = 5;

/// One line: `not locks: 34 idle waits of 23.3s (join 20.1s, condvar 3.20s); --idle shows them`.
pub(super) fn write_not_shown(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let line = match options.view {
        View::Contention => not_locks(profile),
        View::Idle => locks(profile),
    };
    let Some(line) = line else { return Ok(()) };
    write_wrapped(&line, options.columns(), 4, out)?;
    writeln!(out)
}

fn locks(profile: &Profile) -> Option<String> {
    let waits: u64 = View::Contention.rows(profile).map(Lock::waits).sum();
    let time = duration(View::Contention.weight_ns(profile));
    match waits {
        0 => None,
        1 => Some(format!("locks: 1 wait of {time} is contention; shown without --idle")),
        n => Some(format!("locks: {} waits of {time} are contention; shown without --idle", count(n))),
    }
}

fn not_locks(profile: &Profile) -> Option<String> {
    let mut parts = Vec::new();
    let mut all = 0;
    for class in [FutexClass::Idle, FutexClass::Unknown, FutexClass::Once] {
        let rows = || profile.locks.iter().filter(move |lock| lock.wait_class() == class);
        let waits: u64 = rows().map(Lock::waits).sum();
        if waits == 0 {
            continue;
        }
        all += waits;
        let what = match (class, waits) {
            (FutexClass::Unknown, _) => "unknown",
            (FutexClass::Once, _) => "for initialization",
            (_, 1) => "idle wait",
            _ => "idle waits",
        };
        let mut part = format!("{} {what} of {}", count(waits), duration(profile.weight_ns_of(class)));
        if class == FutexClass::Idle {
            part += &format!(" ({})", kinds(rows()));
        }
        parts.push(part);
    }
    let them = if all == 1 { "it" } else { "them" };
    (all > 0).then(|| format!("not locks: {}; --idle shows {them}", parts.join(", ")))
}

/// `join 20.1s, condvar 3.20s`, longest first.
fn kinds<'a>(rows: impl Iterator<Item = &'a Lock>) -> String {
    let mut by_kind: BTreeMap<&str, u64> = BTreeMap::new();
    for lock in rows.filter(|lock| lock.waits() > 0) {
        *by_kind.entry(lock.type_name()).or_default() += lock.weight_ns();
    }
    let mut kinds: Vec<(&str, u64)> = by_kind.into_iter().collect();
    kinds.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    if let [(only, _)] = kinds[..] {
        return only.to_string();
    }
    let rest: u64 = kinds.iter().skip(NAMED_KINDS).map(|(_, ns)| ns).sum();
    let others = kinds.len() > NAMED_KINDS;
    kinds.truncate(NAMED_KINDS);
    kinds.extend(others.then_some(("others", rest)));
    kinds.iter().map(|(kind, ns)| format!("{kind} {}", duration(*ns))).collect::<Vec<_>>().join(", ")
}

/// Futex waits that may have been contention, in small sections of their own: nothing is a share of them.
pub(super) fn write_apart(profile: &Profile, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if options.view == View::Idle {
        return Ok(());
    }
    let sections = [
        (FutexClass::Unknown, "Futex waits of unknown kind:"),
        (FutexClass::Once, "Waits for one-time initialization:"),
    ];
    for (class, heading) in sections {
        let waited = |lock: &&Lock| lock.wait_class() == class && lock.waits() > 0;
        let rows: Vec<&Lock> = profile.locks.iter().filter(waited).collect();
        if !rows.is_empty() {
            write_section(profile, heading, &rows, options.columns(), out)?;
        }
    }
    Ok(())
}

fn write_section(
    profile: &Profile,
    heading: &str,
    rows: &[&Lock],
    columns: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "{}", elide(heading, columns))?;
    let listed = &rows[..rows.len().min(LISTED_ROWS)];
    for (lock, label) in listed.iter().zip(row_labels(listed)) {
        let waits = pad_left(&count(lock.waits()), units::COUNT_WIDTH);
        let unit = if lock.waits() == 1 { "wait " } else { "waits" };
        let time = pad_left(&duration(lock.weight_ns()), units::DURATION_WIDTH);
        let line = format!("  {waits} {unit}  {time}  ");
        let room = columns.saturating_sub(super::text::width(&line));
        writeln!(out, "{line}{}", label.with_callers(profile, lock, room))?;
    }
    if rows.len() > listed.len() {
        writeln!(out, "{}", elide(&format!("  … and {} more", rows.len() - listed.len()), columns))?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FutexKind, FutexLock, LockKind};
    use crate::render::tests::profile;

    fn idle(kind: FutexKind, ns: u64) -> Lock {
        let mut lock = Lock::new(LockKind::Futex, ns, Some(1));
        lock.futex = Some(FutexLock::new(kind, None));
        lock.wait.contended = 1;
        lock.wait.wait_total_ns = ns;
        lock
    }

    #[test]
    fn one_kind_needs_no_time_of_its_own_and_many_are_summed_up() {
        let mut profile = profile();
        profile.locks = vec![idle(FutexKind::Join, 5_000_000)];
        assert_eq!(not_locks(&profile).unwrap(), "not locks: 1 idle wait of 5.00ms (join); --idle shows it");
        profile.locks.extend([
            idle(FutexKind::GlibcCond, 4_000_000),
            idle(FutexKind::GlibcSem, 3_000_000),
            idle(FutexKind::RustPark, 2_000_000),
            idle(FutexKind::GlibcBarrier, 1_000_000),
            idle(FutexKind::Unknown, 9_000),
        ]);
        assert_eq!(
            not_locks(&profile).unwrap(),
            "not locks: 5 idle waits of 15.0ms (join 5.00ms, condvar 4.00ms, usem 3.00ms, others 3.00ms), \
             1 unknown of 9.00µs; --idle shows them"
        );
        assert_eq!(locks(&profile), None);
    }

    #[test]
    fn where_everything_is_contention_nothing_is_said() {
        let mut profile = profile();
        profile.locks.retain(Lock::is_contention);
        assert_eq!(not_locks(&profile), None);
        assert!(locks(&profile).unwrap().ends_with("are contention; shown without --idle"));
    }
}
