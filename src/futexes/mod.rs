//! What each futex wait was for. The kernel sees a futex; people have mutexes, condition variables, parked
//! threads. [`classify`] tells them apart, so that what waits for work never counts as contention.
//!
//! A pure pass over a symbolized profile: evidence is [`FutexCall`](crate::model::FutexCall) of each site,
//! the history of its address, the runtime of its process, and names in its stack where there are any.

mod chains;
mod names;
mod regroup;
mod rules;
mod runtime;
#[cfg(test)]
mod tests;

pub use runtime::{Libc, Runtime, Runtimes};

use crate::model::{
    FutexCall, FutexKind, FutexLock, FutexOp, FutexPlace, Lock, LockKind, LockPlace, Profile, StackRef,
};
use chains::Moves;
use names::Names;
use rules::{Evidence, History, Verdict, judge};
use std::collections::{BTreeMap, HashMap};

/// Decides what the waits of every futex are, and makes a row of each lock: no more if it has several
/// words or processes, no fewer if several things were at one address.
pub fn classify(profile: &mut Profile, runtimes: &Runtimes) {
    if !profile.locks.iter().any(is_open) {
        return;
    }
    let names = names_of_stacks(profile);
    let names_of = |stack: StackRef| match stack {
        StackRef::Stack(index) => names.get(&index).copied().unwrap_or_default(),
        StackRef::Lost | StackRef::NotTaken => Names::default(),
    };
    let mut histories: BTreeMap<Address, History> = BTreeMap::new();
    for lock in profile.locks.iter().filter(|lock| is_open(lock)) {
        let history = histories.entry(Address::of(lock)).or_default();
        for (call, stack) in waits(lock) {
            call.iter().for_each(|call| history.add(call));
            names_of(stack).library.into_iter().for_each(|library| history.add_library(library));
        }
        let wakes = lock.wakes.unwrap_or_default();
        history.wake_calls = history.wake_calls.saturating_add(wakes.calls);
        history.wakes_all = history.wakes_all.saturating_add(wakes.all);
        history.several_waiters |= lock.several_waiters;
        history.released_by_waiters |= lock.contended_hold.is_some_and(|hold| hold.holds > 0);
        history.owned |= lock.owners.as_ref().is_some_and(|owners| !owners.tasks.is_empty());
    }
    let mut rows = Vec::with_capacity(profile.locks.len());
    let mut moves = Moves::default();
    for lock in std::mem::take(&mut profile.locks) {
        if !is_open(&lock) {
            rows.push(lock);
            continue;
        }
        if is_probe(&lock) {
            continue;
        }
        let history = &histories[&Address::of(&lock)];
        let verdict_of = |call: &Option<FutexCall>, stack: StackRef, pid: u32| {
            let call = call.as_ref()?;
            judge(&Evidence {
                call,
                names: names_of(stack),
                history,
                runtime: runtimes.of(pid),
                addr: lock.addr,
                place: lock.place.as_ref(),
            })
        };
        let sites: Vec<_> =
            lock.sites.iter().map(|site| verdict_of(&site.futex, site.user_stack, site.pid)).collect();
        let in_flight: Vec<_> =
            lock.in_flight.iter().map(|wait| verdict_of(&wait.futex, wait.user_stack, wait.pid)).collect();
        // What says nothing is what all others are.
        let mut said = sites.iter().chain(&in_flight).flatten();
        let first = said.next().copied();
        let otherwise = first.filter(|first| said.all(|verdict| verdict == first));
        let otherwise = otherwise.unwrap_or(Verdict::new(
            FutexLock::new(
                if lock.kind == LockKind::FutexPi { FutexKind::PiMutex } else { FutexKind::Unknown },
                None,
            ),
            0,
        ));
        let all = |verdicts: Vec<Option<Verdict>>| -> Vec<Verdict> {
            verdicts.into_iter().map(|verdict| verdict.unwrap_or(otherwise)).collect()
        };
        rows.extend(regroup::split(lock, &all(sites), &all(in_flight), otherwise, &mut moves));
    }
    profile.locks = regroup::unite(rows, profile, &mut moves);
    chains::follow(profile, &moves);
}

/// A futex that nobody has judged yet.
fn is_open(lock: &Lock) -> bool {
    lock.kind.is_user() && lock.futex.is_none()
}

/// Whose words are one history: an address of a process, or a place that processes share.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Address {
    Of(Option<u32>, u64),
    Shared(String, u64, u64),
}

impl Address {
    fn of(lock: &Lock) -> Address {
        match &lock.place {
            Some(LockPlace::Shared { dev, inode, offset, .. }) => {
                Address::Shared(dev.clone(), *inode, *offset)
            }
            _ => Address::Of(lock.pid, lock.addr),
        }
    }
}

fn waits(lock: &Lock) -> impl Iterator<Item = (Option<FutexCall>, StackRef)> + '_ {
    let ended = lock.sites.iter().map(|site| (site.futex, site.user_stack));
    ended.chain(lock.in_flight.iter().map(|wait| (wait.futex, wait.user_stack)))
}

/// glibc and musl try FUTEX_LOCK_PI on a word of their own before the first mutex that inherits priority
/// (nptl/pthread_mutex_init.c). Nobody waits for it.
fn is_probe(lock: &Lock) -> bool {
    let is_local = |call: FutexCall| call.op == FutexOp::LockPi && call.place == FutexPlace::OwnStack;
    lock.weight_ns() == 0
        && lock.wait.contended == 0
        && lock.in_flight.is_empty()
        && !lock.sites.is_empty()
        && lock.sites.iter().all(|site| site.futex.is_some_and(is_local))
}

/// Of every stack that waits for a futex, once.
fn names_of_stacks(profile: &Profile) -> HashMap<u32, Names> {
    let mut names = HashMap::new();
    for lock in profile.locks.iter().filter(|lock| is_open(lock)) {
        for (_, stack) in waits(lock) {
            if let StackRef::Stack(index) = stack {
                names.entry(index).or_insert_with(|| Names::of(stack, profile));
            }
        }
    }
    names
}
