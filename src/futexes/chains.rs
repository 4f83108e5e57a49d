//! Chains follow their locks into the rows that these have become, and end where what a holder waited for was
//! no lock: for work, for another thread's end.

use crate::model::{Blame, HolderStates, Lock, LockKind, Profile};
use std::collections::{HashMap, HashSet};

/// What names a row.
pub type Place = (LockKind, u64, Option<u32>);

pub fn place_of(lock: &Lock) -> Place {
    (lock.kind, lock.addr, lock.pid)
}

/// Which row a row has become a part of.
#[derive(Default)]
pub struct Moves(HashMap<Place, Place>);

impl Moves {
    pub fn add(&mut self, from: Place, to: Place) {
        if from != to {
            self.0.entry(from).or_insert(to);
        }
    }

    /// A row can move a few times, and never back.
    fn find(&self, place: Place) -> Place {
        let mut seen = HashSet::new();
        let mut place = place;
        while let Some(next) = self.0.get(&place)
            && seen.insert(place)
        {
            place = *next;
        }
        place
    }
}

pub fn follow(profile: &mut Profile, moves: &Moves) {
    let no_locks: HashSet<Place> =
        profile.locks.iter().filter(|lock| !lock.is_contention()).map(place_of).collect();
    let locks: HashSet<Place> =
        profile.locks.iter().filter(|lock| lock.is_contention()).map(place_of).collect();
    for blame in profile.locks.iter_mut().filter_map(|lock| lock.blame.as_mut()) {
        for chain in &mut blame.chains {
            (chain.kind, chain.addr, chain.pid) = moves.find((chain.kind, chain.addr, chain.pid));
        }
        let is_no_lock = |place: Place| no_locks.contains(&place) && !locks.contains(&place);
        end(blame, is_no_lock);
    }
}

/// Takes chains to what is no lock away: their holders were asleep for another reason.
fn end(blame: &mut Blame, is_no_lock: impl Fn(Place) -> bool) {
    // By thread: waiter-time in chains, and that of those that end.
    let mut sums: HashMap<u32, (u64, u64)> = HashMap::new();
    blame.chains.retain(|chain| {
        let ends = is_no_lock((chain.kind, chain.addr, chain.pid));
        let sum = sums.entry(chain.through.tid).or_default();
        sum.0 += chain.waited_ns;
        sum.1 += if ends { chain.waited_ns } else { 0 };
        !ends
    });
    for holder in &mut blame.holders {
        let Some((all, ending)) = sums.get(&holder.thread.tid).copied().filter(|(_, ending)| *ending > 0)
        else {
            continue;
        };
        let part = |ns: u64| (u128::from(ns) * u128::from(ending) / u128::from(all)) as u64;
        holder.chained_ns -= part(holder.chained_ns);
        if let Some(HolderStates { lock_ns, blocked_ns, .. }) = &mut holder.states {
            let moved = part(*lock_ns);
            *lock_ns -= moved;
            *blocked_ns += moved;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Chain, Evidence, Holder, StackRef, Thread};

    fn thread(tid: u32) -> Thread {
        Thread { pid: 1, tid, comm: "t".into() }
    }

    fn chain(tid: u32, addr: u64, waited_ns: u64) -> Chain {
        Chain { through: thread(tid), kind: LockKind::Futex, addr, pid: Some(1), waited_ns }
    }

    fn holder(tid: u32, lock_ns: u64, chained_ns: u64) -> Holder {
        Holder {
            thread: thread(tid),
            kernel_stack: StackRef::NotTaken,
            user_stack: StackRef::NotTaken,
            evidence: Evidence::Release,
            blamed_ns: 1000,
            chained_ns,
            holds: 1,
            wanted_ns: 500,
            states: Some(HolderStates { lock_ns, ..Default::default() }),
        }
    }

    #[test]
    fn waiting_for_another_threads_end_is_no_link_of_a_chain() {
        let mut blame = Blame {
            holders: vec![holder(7, 300, 900), holder(8, 40, 50)],
            chains: vec![chain(7, 0x10, 600), chain(7, 0x20, 300), chain(8, 0x20, 50)],
            ..Default::default()
        };
        end(&mut blame, |(_, addr, _)| addr == 0x10);
        assert_eq!(blame.chains, [chain(7, 0x20, 300), chain(8, 0x20, 50)]);
        let states = |at: usize| blame.holders[at].states.expect("given");
        assert_eq!((states(0).lock_ns, states(0).blocked_ns, blame.holders[0].chained_ns), (100, 200, 300));
        assert_eq!((states(1).lock_ns, states(1).blocked_ns, blame.holders[1].chained_ns), (40, 0, 50));
    }

    #[test]
    fn a_row_is_found_where_it_went_in_the_end() {
        let place = |addr| (LockKind::Futex, addr, Some(1));
        let mut moves = Moves::default();
        moves.add(place(1), place(2));
        moves.add(place(2), place(3));
        moves.add(place(3), place(1));
        moves.add(place(9), place(9));
        assert_eq!(moves.find(place(9)), place(9));
        assert_eq!(moves.find(place(8)), place(8));
        // A circle, which cannot be, ends too.
        moves.find(place(1));
        let mut moves = Moves::default();
        moves.add(place(1), place(2));
        moves.add(place(2), place(3));
        assert_eq!(moves.find(place(1)), place(3));
    }
}
