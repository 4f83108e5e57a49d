//! From one row for each address to one row for each lock.

use super::chains::{Moves, place_of};
use super::rules::Verdict;
use crate::model::{Blame, BlameGap, FutexClass, FutexLock, Lock, LockKind, LockPlace, Profile, WaitStats};
use crate::symbolize::callsite;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// One row for each thing that was waited for at this address.
pub fn split(
    mut lock: Lock,
    sites: &[Verdict],
    in_flight: &[Verdict],
    otherwise: Verdict,
    moves: &mut Moves,
) -> Vec<Lock> {
    let raw = place_of(&lock);
    let first = sites.iter().chain(in_flight).next().copied().unwrap_or(otherwise);
    if sites.iter().chain(in_flight).all(|verdict| *verdict == first) {
        settle(&mut lock, first);
        moves.add(raw, place_of(&lock));
        return vec![lock];
    }
    let mut bare = lock.clone();
    bare.sites = Vec::new();
    bare.in_flight = Vec::new();
    bare.wait = WaitStats::default();
    bare.hist = None;
    bare.hold = None;
    bare.wakes = None;
    bare.contended_releases = None;
    bare.owners = None;
    bare.contended_hold = None;
    bare.releasers = Vec::new();
    bare.blame = None;
    bare.woken_to_running_ns = None;
    let mut rows: BTreeMap<Verdict, Lock> = BTreeMap::new();
    let mut seen = WaitStats::default();
    for (site, verdict) in std::mem::take(&mut lock.sites).into_iter().zip(sites) {
        seen.merge(&site.wait);
        let row = rows.entry(*verdict).or_insert_with(|| bare.clone());
        row.wait.merge(&site.wait);
        row.sites.push(site);
    }
    for (wait, verdict) in std::mem::take(&mut lock.in_flight).into_iter().zip(in_flight) {
        rows.entry(*verdict).or_insert_with(|| bare.clone()).in_flight.push(wait);
    }
    let mut rows: Vec<Lock> = rows
        .into_iter()
        .map(|(verdict, mut row)| {
            settle(&mut row, verdict);
            row
        })
        .collect();
    rows.sort_by_key(|row| Reverse(row.weight_ns()));
    // Waits whose site was lost are in the lock's sums only: they stay in the sums of all rows.
    let lost = WaitStats {
        contended: lock.wait.contended.saturating_sub(seen.contended),
        wait_total_ns: lock.wait.wait_total_ns.saturating_sub(seen.wait_total_ns),
        wait_min_ns: lock.wait.wait_min_ns.filter(|min| seen.wait_min_ns.is_none_or(|seen| *min < seen)),
        wait_max_ns: lock.wait.wait_max_ns.filter(|max| seen.wait_max_ns.is_none_or(|seen| *max > seen)),
        aborted: lock.wait.aborted.saturating_sub(seen.aborted),
        aborted_total_ns: lock.wait.aborted_total_ns.saturating_sub(seen.aborted_total_ns),
        spin_total_ns: None,
    };
    if lost.contended + lost.aborted > 0 {
        rows[0].wait.merge(&lost);
    }
    // The histogram is of all waits of the address; nothing tells whose a bucket is.
    if let Some(row) = rows.iter_mut().find(|row| row.wait.contended == lock.wait.contended) {
        row.hist = lock.hist;
    }
    // The account is of all waits of the address, whatever they were for.
    let only_locks = rows.iter().all(Lock::is_contention);
    if !only_locks && lock.blame.is_some() {
        for row in &mut rows {
            let waited_ns = row.weight_ns();
            let blame = row.blame.insert(Blame::default());
            blame.leave_unattributed(BlameGap::AddressReused, None, waited_ns);
        }
    }
    // Wakes and owners are of the word; a lock is what they are for.
    let main = rows.iter().position(|row| row.futex.is_some_and(|futex| futex.class == FutexClass::Lock));
    let main = &mut rows[main.unwrap_or(0)];
    main.hold = lock.hold;
    main.wakes = lock.wakes;
    main.contended_releases = lock.contended_releases;
    main.owners = lock.owners;
    main.contended_hold = lock.contended_hold;
    main.releasers = lock.releasers;
    if only_locks {
        main.blame = lock.blame;
        main.woken_to_running_ns = lock.woken_to_running_ns;
    }
    moves.add(raw, place_of(main));
    rows
}

/// Says what it is, and points at the lock instead of one of its words.
fn settle(lock: &mut Lock, verdict: Verdict) {
    let back = verdict.back;
    lock.futex = Some(verdict.futex);
    lock.addr = lock.addr.wrapping_sub(back);
    let offset = match &mut lock.place {
        Some(LockPlace::Global { offset, .. } | LockPlace::Shared { offset, .. }) => offset,
        Some(LockPlace::Module { vaddr, .. }) => vaddr,
        _ => return,
    };
    let before = *offset;
    *offset = before.saturating_sub(back);
    let after = *offset;
    // A name that ends in the offset follows.
    let plus = |offset: u64| if offset == 0 { String::new() } else { format!("+{offset:#x}") };
    if let Some(name) = lock.name.take() {
        let base = if before == 0 { None } else { name.strip_suffix(&plus(before)) };
        lock.name = Some(base.map_or_else(|| name.clone(), |base| format!("{base}{}", plus(after))));
    }
}

/// Makes one row of those that are one lock, and ranks all.
pub fn unite(rows: Vec<Lock>, profile: &Profile, moves: &mut Moves) -> Vec<Lock> {
    let call_site = |lock: &mut Lock| {
        if lock.futex.is_some() {
            // A stack that is gone leaves what was known.
            lock.call_site = callsite::of_lock(lock, profile).or(lock.call_site.take());
        }
    };
    type ByAddress = (LockKind, u64, Option<u32>, Option<FutexLock>);
    let by_address = |lock: &Lock| -> Option<ByAddress> {
        lock.futex.map(|_| (lock.kind, lock.addr, lock.pid, lock.futex))
    };
    let mut rows = unite_by(rows, moves, by_address, |into, other| {
        into.addresses = into.addresses.max(other.addresses);
    });
    rows.iter_mut().for_each(call_site);
    let shared = |lock: &Lock| match (&lock.place, lock.futex) {
        (Some(LockPlace::Shared { dev, inode, offset, .. }), Some(futex)) => {
            Some((dev.clone(), *inode, *offset, lock.kind, futex))
        }
        _ => None,
    };
    let mut rows = unite_by(rows, moves, shared, |into, other| {
        if into.pid != other.pid {
            into.pid = None;
            into.several_waiters = true;
        }
    });
    rows.iter_mut().for_each(call_site);
    // What is allocated, or on a stack, has no name that lasts; where it is waited for has.
    let heap = |lock: &Lock| match (&lock.place, lock.futex, &lock.call_site, &lock.name) {
        (place, Some(futex), Some(site), None) => {
            Some((place.clone(), lock.kind, lock.pid, futex, site.clone()))
        }
        _ => None,
    };
    let mut rows = unite_by(rows, moves, heap, |into, other| {
        into.addresses = into.addresses.saturating_add(other.addresses);
    });
    Lock::rank(&mut rows);
    rows
}

/// Rows with equal keys become one, with the address and the names of the heaviest.
fn unite_by<K: Hash + Eq>(
    mut rows: Vec<Lock>,
    moves: &mut Moves,
    key: impl Fn(&Lock) -> Option<K>,
    join: impl Fn(&mut Lock, &Lock),
) -> Vec<Lock> {
    // The heaviest first, the lowest address of equals: the same row whatever order they came in.
    rows.sort_by_key(|lock| (Reverse(lock.weight_ns()), lock.addr, lock.pid));
    let mut known: HashMap<K, usize> = HashMap::new();
    let mut united: Vec<Lock> = Vec::with_capacity(rows.len());
    for lock in rows {
        let Some(key) = key(&lock) else {
            united.push(lock);
            continue;
        };
        match known.get(&key) {
            Some(row) => {
                let into = &mut united[*row];
                let places = [place_of(&lock), place_of(into)];
                join(into, &lock);
                places.into_iter().for_each(|from| moves.add(from, place_of(into)));
                into.name = into.name.take().or_else(|| lock.name.clone());
                into.place = into.place.take().or_else(|| lock.place.clone());
                into.call_site = into.call_site.take().or_else(|| lock.call_site.clone());
                into.merge(lock);
            }
            None => {
                known.insert(key, united.len());
                united.push(lock);
            }
        }
    }
    united
}
