//! What is at the end of a chain: the holder of one lock waited for another, whose holder may have waited
//! for a third.
//!
//! What a chain says was waited is passed on to those who held the other lock meanwhile, and from them, as
//! far as they were waiting themselves, further on; what a holder did not wait for stays with it. (The
//! cascaded redistribution of wPerf: Zhou et al., OSDI 2018.) Who held it *for this waiter* is known from
//! the pairs of the other lock, by the waiter's name; without pairs everybody who held it is charged by its
//! share of that lock's whole account.

use super::{Account, Blame, Chain, Holder, Lock, Pair, Party, Thread};

/// A part of a chain's waiter-time and where it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root<'a> {
    /// The last lock of the chain; `None`: it is in no row of the profile.
    pub lock: Option<&'a Lock>,
    pub cause: Cause<'a>,
    pub waited_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause<'a> {
    /// It held the last lock and waited for no other.
    Holder(&'a Party),
    /// The same without pairs: a thread, not necessarily the one that this waiter waited for.
    Thread(&'a Holder),
    /// Nobody held the last lock.
    Handoff,
    Unattributed,
    /// The last lock was not released before the profile stopped.
    Unreleased,
    /// Followed to a lock that is in the chain already, or too far.
    Endless,
    /// Nothing is known about who held the last lock.
    Unknown,
}

impl Cause<'_> {
    pub fn name(&self) -> &'static str {
        match self {
            Cause::Holder(_) | Cause::Thread(_) => "holder",
            Cause::Handoff => "handoff",
            Cause::Unattributed => "not_attributed",
            Cause::Unreleased => "not_released",
            Cause::Endless => "endless",
            Cause::Unknown => "unknown",
        }
    }
}

/// Locks followed before a chain counts as endless.
const LONGEST: usize = 8;
/// Parts smaller than this share of the chain are not followed: their number grows with every lock.
const SMALLEST: u64 = 1_000;

/// Where a chain's waiter-time comes from, largest first; the parts add up to it exactly.
pub fn roots<'a>(accounts: &[Account<'a>], from: &Lock, chain: &'a Chain) -> Vec<Root<'a>> {
    let mut search = Search { accounts, smallest_ns: chain.waited_ns / SMALLEST, found: Vec::new() };
    let mut path = vec![(from.kind.family(), from.addr, from.pid)];
    search.follow(chain, chain.waited_ns, &mut path);
    let mut found = search.found;
    found.sort_by_key(|root| std::cmp::Reverse(root.waited_ns));
    found
}

type Key = (super::Family, u64, Option<u32>);

struct Search<'a, 's> {
    accounts: &'s [Account<'a>],
    smallest_ns: u64,
    found: Vec<Root<'a>>,
}

impl<'a> Search<'a, '_> {
    fn follow(&mut self, chain: &'a Chain, waited_ns: u64, path: &mut Vec<Key>) {
        let key = (chain.kind.family(), chain.addr, chain.pid);
        let account = self.accounts.iter().find(|account| account.key() == key);
        let Some(account) = account else { return self.add(None, Cause::Unknown, waited_ns) };
        let lock = account.rows.first().copied();
        if path.contains(&key) || path.len() >= LONGEST {
            return self.add(lock, Cause::Endless, waited_ns);
        }
        let Some(blame) = account.blame else { return self.add(lock, Cause::Unknown, waited_ns) };
        path.push(key);
        let causes = causes(blame, &chain.through);
        let weights: Vec<u64> = causes.iter().map(|(_, weight)| *weight).collect();
        if weights.iter().all(|weight| *weight == 0) {
            self.add(lock, Cause::Unknown, waited_ns);
        }
        for ((cause, _), part) in causes.iter().zip(split(waited_ns, &weights)) {
            self.settle(lock, blame, *cause, part, path);
        }
        path.pop();
    }

    /// The part of a holder that waited for a lock itself goes on, the rest stays with it.
    fn settle(
        &mut self,
        lock: Option<&'a Lock>,
        blame: &'a Blame,
        cause: Cause<'a>,
        waited_ns: u64,
        path: &mut Vec<Key>,
    ) {
        let is_same = |thread: &Thread| match cause {
            Cause::Holder(party) => (thread.pid, &thread.comm) == (party.pid, &party.comm),
            Cause::Thread(holder) => thread.tid == holder.thread.tid,
            _ => false,
        };
        let chains: Vec<&Chain> = blame.chains.iter().filter(|chain| is_same(&chain.through)).collect();
        let chained: u64 = chains.iter().map(|chain| chain.waited_ns).sum();
        let holders = blame.holders.iter().filter(|holder| is_same(&holder.thread));
        let blamed: u64 = holders.map(|holder| holder.blamed_ns).sum();
        if chained == 0 || waited_ns <= self.smallest_ns {
            return self.add(lock, cause, waited_ns);
        }
        let mut weights: Vec<u64> = chains.iter().map(|chain| chain.waited_ns).collect();
        weights.push(blamed.saturating_sub(chained));
        let mut parts = split(waited_ns, &weights);
        let own = parts.pop().unwrap_or(0);
        for (chain, part) in chains.into_iter().zip(parts) {
            if part > 0 {
                self.follow(chain, part, path);
            }
        }
        self.add(lock, cause, own);
    }

    fn add(&mut self, lock: Option<&'a Lock>, cause: Cause<'a>, waited_ns: u64) {
        if waited_ns == 0 {
            return;
        }
        let place = |lock: Option<&'a Lock>| lock.map(std::ptr::from_ref);
        match self.found.iter_mut().find(|root| place(root.lock) == place(lock) && root.cause == cause) {
            Some(root) => root.waited_ns += waited_ns,
            None => self.found.push(Root { lock, cause, waited_ns }),
        }
    }
}

/// Who had the lock while a thread waited for it, and with what weight.
fn causes<'a>(blame: &'a Blame, waiter: &Thread) -> Vec<(Cause<'a>, u64)> {
    let is_waiter = |pair: &&Pair| (pair.waiter.pid, &pair.waiter.comm) == (waiter.pid, &waiter.comm);
    let mut causes: Vec<(Cause, u64)> = Vec::new();
    for pair in blame.pairs.iter().filter(is_waiter) {
        let cause = Cause::Holder(&pair.holder);
        match causes.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, weight)) => *weight += pair.waited_ns,
            None => causes.push((cause, pair.waited_ns)),
        }
    }
    if causes.is_empty() {
        // It did not wait for itself.
        let others = blame.holders.iter().filter(|holder| holder.thread.tid != waiter.tid);
        causes.extend(others.map(|holder| (Cause::Thread(holder), holder.blamed_ns)));
        causes.push((Cause::Handoff, blame.handoff_ns));
        causes.push((Cause::Unattributed, blame.unattributed_ns()));
        causes.push((Cause::Unreleased, blame.unreleased_ns));
    }
    causes
}

/// By weight; what rounding leaves goes to the last part with weight, so that nothing is lost.
fn split(whole: u64, weights: &[u64]) -> Vec<u64> {
    let (mut left, mut weight_left) = (whole, weights.iter().map(|weight| u128::from(*weight)).sum::<u128>());
    let mut parts = Vec::with_capacity(weights.len());
    for weight in weights {
        let weight = u128::from(*weight);
        // At most `left`, since `weight` is at most `weight_left`.
        let part = (u128::from(left) * weight).checked_div(weight_left).unwrap_or(0) as u64;
        left -= part;
        weight_left -= weight;
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::blame::tests::{empty_profile, holder};
    use crate::model::{LockKind, Profile, StackRef, accounts};

    fn thread(tid: u32) -> Thread {
        Thread { pid: 1, tid, comm: format!("t{tid}") }
    }

    fn party(tid: u32) -> Party {
        Party {
            pid: 1,
            comm: format!("t{tid}"),
            kernel_stack: StackRef::NotTaken,
            user_stack: StackRef::NotTaken,
        }
    }

    fn chain(through: u32, addr: u64, waited_ns: u64) -> Chain {
        Chain { through: thread(through), kind: LockKind::Mutex, addr, pid: None, waited_ns }
    }

    fn lock(addr: u64, blame: Blame) -> Lock {
        Lock { blame: Some(blame), ..Lock::new(LockKind::Mutex, addr, None) }
    }

    fn profile(locks: Vec<Lock>) -> Profile {
        Profile { locks, ..empty_profile() }
    }

    /// (lock, who, how much) of the first chain of the first lock.
    fn found(profile: &Profile) -> Vec<(u64, String, u64)> {
        let chain = &profile.locks[0].blame.as_ref().unwrap().chains[0];
        let roots = roots(&accounts(profile), &profile.locks[0], chain);
        assert_eq!(roots.iter().map(|root| root.waited_ns).sum::<u64>(), chain.waited_ns);
        let who = |cause: Cause| match cause {
            Cause::Holder(party) => party.comm.clone(),
            Cause::Thread(holder) => holder.thread.comm.clone(),
            other => format!("{other:?}"),
        };
        let lock = |root: &Root| root.lock.map_or(0, |lock| lock.addr);
        roots.iter().map(|root| (lock(root), who(root.cause), root.waited_ns)).collect()
    }

    #[test]
    fn pairs_of_the_waiter_say_who_it_waited_for() {
        let pair =
            |waiter, holder, waited_ns| Pair { waiter: party(waiter), holder: party(holder), waited_ns };
        let profile = profile(vec![
            lock(1, Blame { chains: vec![chain(5, 2, 1000)], ..Blame::default() }),
            lock(
                2,
                Blame {
                    holders: vec![holder(6, 900), holder(7, 100)],
                    pairs: vec![pair(5, 7, 30), pair(5, 6, 10), pair(9, 6, 5000)],
                    ..Blame::default()
                },
            ),
        ]);
        assert_eq!(found(&profile), [(2, "t7".into(), 750), (2, "t6".into(), 250)]);
    }

    #[test]
    fn without_pairs_everybody_who_held_it_is_charged_except_the_waiter() {
        let blame = Blame {
            holders: vec![holder(5, 4000), holder(6, 600)],
            handoff_ns: 300,
            unreleased_ns: 100,
            ..Blame::default()
        };
        let profile = profile(vec![
            lock(1, Blame { chains: vec![chain(5, 2, 500)], ..Blame::default() }),
            lock(2, blame),
        ]);
        assert_eq!(
            found(&profile),
            [(2, "t6".into(), 300), (2, "Handoff".into(), 150), (2, "Unreleased".into(), 50)]
        );
    }

    #[test]
    fn a_holder_that_waited_itself_passes_that_part_on() {
        let profile = profile(vec![
            lock(1, Blame { chains: vec![chain(5, 2, 1000)], ..Blame::default() }),
            lock(
                2,
                Blame { holders: vec![holder(6, 400)], chains: vec![chain(6, 3, 300)], ..Blame::default() },
            ),
            lock(3, Blame { holders: vec![holder(7, 10)], ..Blame::default() }),
        ]);
        assert_eq!(found(&profile), [(3, "t7".into(), 750), (2, "t6".into(), 250)]);
    }

    #[test]
    fn a_cycle_ends_where_it_closes() {
        let profile = profile(vec![
            lock(
                1,
                Blame { holders: vec![holder(5, 100)], chains: vec![chain(5, 2, 100)], ..Blame::default() },
            ),
            lock(
                2,
                Blame { holders: vec![holder(6, 100)], chains: vec![chain(6, 1, 100)], ..Blame::default() },
            ),
        ]);
        assert_eq!(found(&profile), [(1, "Endless".into(), 100)]);
    }

    #[test]
    fn long_chains_end() {
        let mut locks: Vec<Lock> = (1..40)
            .map(|addr| {
                let through = addr as u32 + 100;
                let blame = Blame {
                    holders: vec![holder(through, 100)],
                    chains: vec![chain(through, addr + 1, 100)],
                    ..Blame::default()
                };
                lock(addr, blame)
            })
            .collect();
        assert_eq!(found(&profile(locks.clone())), [(9, "Endless".into(), 100)]);
        locks.truncate(3);
        assert_eq!(found(&profile(locks)), [(0, "Unknown".into(), 100)]);
    }

    #[test]
    fn nothing_is_lost_by_rounding() {
        for weights in [vec![1, 1, 1], vec![0, 3, 0], vec![u64::MAX, u64::MAX, 7], vec![2, 0]] {
            for whole in [0, 1, 100, u64::MAX] {
                assert_eq!(split(whole, &weights).iter().sum::<u64>(), whole, "{weights:?}");
            }
        }
        assert_eq!(split(5, &[0, 0]), [0, 0]);
    }
}
