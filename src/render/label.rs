//! What a lock is called in text.

use super::stacks;
use super::text::{clean, elide, width};
use crate::model::{Lock, LockPlace, Profile};
use std::collections::{BTreeMap, HashMap};

/// A label shorter than this says nothing any more.
pub(super) const SHORTEST_LABEL: usize = 14;

/// A lock's name or call site, and how many locks it stands for.
pub(super) struct RowLabel {
    name: String,
    /// ` (heap ×3)`; empty when it is one lock. Not elided: nobody would guess it.
    multiple: String,
}

impl RowLabel {
    pub(super) fn of(lock: &Lock) -> RowLabel {
        RowLabel { name: clean(&lock.label()), multiple: multiple(lock) }
    }

    pub(super) fn width(&self) -> usize {
        width(&self.name) + width(&self.multiple)
    }

    pub(super) fn fitted(&self, room: usize) -> String {
        let left = room.saturating_sub(width(&self.multiple));
        elide(&format!("{}{}", elide(&self.name, left), self.multiple), room)
    }

    /// The label, and behind it as many callers as fit: `pipe_write ← vfs_write ← ksys_write`.
    pub(super) fn with_callers(&self, profile: &Profile, lock: &Lock, room: usize) -> String {
        let path = stacks::call_path(profile, lock);
        // An unnamed lock's label is its call site already.
        let callers = if lock.name.is_some() { &path[..] } else { path.get(1..).unwrap_or_default() };
        followed_by(self.fitted(room), callers, room)
    }
}

/// What the rows of one table are called, wherever else they are mentioned.
pub(super) struct Labels(HashMap<*const Lock, RowLabel>);

impl Labels {
    pub(super) fn of(rows: &[&Lock]) -> Labels {
        Labels(rows.iter().map(|lock| std::ptr::from_ref(*lock)).zip(row_labels(rows)).collect())
    }

    /// `mutex rename_mutex`, the name in at most `room` columns.
    pub(super) fn typed(&self, lock: &Lock, room: usize) -> String {
        let label = match self.0.get(&std::ptr::from_ref(lock)) {
            Some(label) => label.fitted(room),
            None => RowLabel::of(lock).fitted(room),
        };
        format!("{} {label}", lock.type_name())
    }
}

/// A text, and behind it as many callers as fit.
pub(super) fn followed_by(mut text: String, callers: &[String], room: usize) -> String {
    const ARROW: &str = " ← ";
    for (index, caller) in callers.iter().enumerate() {
        let Some(left) = room.checked_sub(width(&text) + width(ARROW)) else { break };
        let caller = clean(caller);
        if width(&caller) <= left {
            text = format!("{text}{ARROW}{caller}");
        } else {
            // The nearest caller says something even when it is cut; the others would only be noise.
            if index == 0 && left >= SHORTEST_LABEL {
                text = format!("{text}{ARROW}{}", elide(&caller, left));
            }
            break;
        }
    }
    text
}

fn multiple(lock: &Lock) -> String {
    if lock.addresses <= 1 {
        return String::new();
    }
    match &lock.place {
        Some(LockPlace::Heap) => format!(" (heap ×{})", lock.addresses),
        Some(LockPlace::Stack) => format!(" (stack ×{})", lock.addresses),
        Some(LockPlace::ThreadLocal) => format!(" (thread-local ×{})", lock.addresses),
        Some(LockPlace::Global { .. } | LockPlace::Module { .. } | LockPlace::Shared { .. }) | None => {
            format!(" ×{}", lock.addresses)
        }
    }
}

/// Labels of the rows. Unnamed locks taken by the same function get the end of their address, since
/// they are different locks.
pub(super) fn row_labels(rows: &[&Lock]) -> Vec<RowLabel> {
    let mut addresses: BTreeMap<(String, &str), Vec<u64>> = BTreeMap::new();
    for lock in rows {
        addresses.entry((lock.label(), lock.type_name())).or_default().push(lock.addr);
    }
    rows.iter()
        .map(|lock| {
            let mut label = RowLabel::of(lock);
            let same = &addresses[&(lock.label(), lock.type_name())];
            let digits = (4..16).find(|digits| {
                let end = |addr: u64| addr & ((1 << (4 * digits)) - 1);
                same.iter().filter(|addr| end(**addr) == end(lock.addr)).count() == 1
            });
            if let (Some(digits), true) = (digits, same.len() > 1) {
                let digits = digits as usize;
                let end = lock.addr & ((1 << (4 * digits)) - 1);
                label.name = format!("{} …{end:0digits$x}", label.name);
            }
            label
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LockKind;

    #[test]
    fn how_many_locks_a_row_stands_for_survives_a_narrow_column() {
        let mut lock = Lock::new(LockKind::Futex, 0x1000, Some(1));
        lock.call_site = Some("a_long_function_name".into());
        lock.place = Some(LockPlace::Heap);
        assert_eq!(RowLabel::of(&lock).fitted(40), "a_long_function_name");
        lock.addresses = 3;
        assert_eq!(RowLabel::of(&lock).fitted(40), "a_long_function_name (heap ×3)");
        assert_eq!(RowLabel::of(&lock).fitted(20), "a_lo…_name (heap ×3)");
        lock.place = None;
        assert_eq!(RowLabel::of(&lock).fitted(40), "a_long_function_name ×3");
    }
}
