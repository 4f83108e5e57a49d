//! Who made the others wait: the waiter-time of one lock, charged to its holders.
//!
//! With n(t) threads waiting, a hold costs them the integral of n over it: its blame. From a release to the
//! next acquisition nobody holds the lock: handoff. Every nanosecond waited is in one of these buckets, so
//!
//! ```text
//! completed + aborted + ongoing waits (+ uncounted ones) = Σ blamed + handoff + Σ unattributed + unreleased
//! ```
//!
//! exactly, per lock ([`Conservation`]). Waiter-time can exceed the run's: four threads that wait one second
//! for one holder make four seconds of blame.

use super::{Family, Lock, LockKind, Profile, StackRef, Thread};
use serde::{Deserialize, Serialize};

/// Of one lock; the two sides of an rw_semaphore have one account between them, at the row of either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blame {
    /// Most to blame first.
    pub holders: Vec<Holder>,
    /// Waiter-time while nobody held the lock: from a release to the next acquisition by a waiter.
    pub handoff_ns: u64,
    /// How many releases were followed by a waiter's acquisition.
    pub handoffs: u64,
    pub unattributed: Vec<Unattributed>,
    /// Waiter-time that had not been charged when the profile stopped: the holder had not released yet.
    pub unreleased_ns: u64,
    /// Who held it then, as far as the lock says.
    pub unreleased_by: Option<Thread>,
    /// Charged, and in no counted wait: a wait whose end was never seen (loss `unpaired_begin`) is not counted, but
    /// while it seemed to go on its time was charged.
    #[serde(default)]
    pub uncounted_ns: u64,
    /// Wall time the lock was held while somebody waited.
    pub wanted_ns: u64,
    /// Wall time nobody held it while somebody waited: Σ of the handoffs' latencies.
    pub idle_while_wanted_ns: u64,
    /// Who waited for whom, largest first; sums up to the waits at most.
    pub pairs: Vec<Pair>,
    /// Other locks that holders of this one waited for while this one was wanted.
    pub chains: Vec<Chain>,
}

/// One thread at one place, and the waiter-time its holds cost others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub thread: Thread,
    /// Where it released the lock, or as `evidence` says.
    pub kernel_stack: StackRef,
    pub user_stack: StackRef,
    pub evidence: Evidence,
    pub blamed_ns: u64,
    /// Of `blamed_ns`: while this holder was itself waiting for another lock ([`Blame::chains`]).
    pub chained_ns: u64,
    /// Holds that ended while somebody waited.
    pub holds: u64,
    /// Wall time of these holds in which somebody waited.
    pub wanted_ns: u64,
    /// What it did in that time; `None` where the scheduler was not watched.
    pub states: Option<HolderStates>,
}

/// How a holder is known; the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// It released the lock: the stack is its own, at that moment.
    Release,
    /// Its release was not seen; the stack is that of its own wait for the lock.
    Acquire,
}

impl Evidence {
    pub fn name(self) -> &'static str {
        match self {
            Evidence::Release => "release",
            Evidence::Acquire => "acquire",
        }
    }
}

/// Wall time of holds that others waited for, by what the holder did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderStates {
    /// On a CPU.
    pub running_ns: u64,
    /// Woken or preempted, and not on a CPU: the scheduler's.
    pub runnable_ns: u64,
    /// Asleep until input or output was done, page faults that read a file among them.
    pub io_ns: u64,
    /// Asleep because it waited for another lock itself.
    pub lock_ns: u64,
    /// Asleep for any other reason.
    pub blocked_ns: u64,
}

impl HolderStates {
    pub fn total_ns(&self) -> u64 {
        self.running_ns + self.runnable_ns + self.io_ns + self.lock_ns + self.blocked_ns
    }

    pub fn merge(&mut self, other: &HolderStates) {
        self.running_ns += other.running_ns;
        self.runnable_ns += other.runnable_ns;
        self.io_ns += other.io_ns;
        self.lock_ns += other.lock_ns;
        self.blocked_ns += other.blocked_ns;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unattributed {
    pub reason: BlameGap,
    /// Who held the lock, where that much is known.
    pub thread: Option<Thread>,
    pub waited_ns: u64,
}

/// Why waiter-time could not be charged to a holder's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlameGap {
    /// Nothing tells when locks of this kind are released: spinlocks (without --hold=spinlock), semaphores, others.
    NoReleaseEvent,
    /// The thread that held it is known by the lock's owner word, and no stack of it.
    OwnerWithoutStack,
    /// The lock changed hands and no release was seen.
    ReleaseNotSeen,
    /// The map of holders was full.
    NoRoom,
    /// The address was a lock and something else in turn, and its account is of both.
    AddressReused,
}

impl BlameGap {
    pub const ALL: [BlameGap; 5] = [
        BlameGap::NoReleaseEvent,
        BlameGap::OwnerWithoutStack,
        BlameGap::ReleaseNotSeen,
        BlameGap::NoRoom,
        BlameGap::AddressReused,
    ];

    pub fn name(self) -> &'static str {
        match self {
            BlameGap::NoReleaseEvent => "no_release_event",
            BlameGap::OwnerWithoutStack => "owner_without_stack",
            BlameGap::ReleaseNotSeen => "release_not_seen",
            BlameGap::NoRoom => "no_room",
            BlameGap::AddressReused => "address_reused",
        }
    }

    /// For a sentence: "2.1 s are charged to nobody: …".
    pub fn words(self) -> &'static str {
        match self {
            BlameGap::NoReleaseEvent => "no release of such locks is seen",
            BlameGap::OwnerWithoutStack => "the owner is known, and no stack of it",
            BlameGap::ReleaseNotSeen => "the lock changed hands unseen",
            BlameGap::NoRoom => "more holders than --map-entries",
            BlameGap::AddressReused => "the address was a lock and something else in turn",
        }
    }
}

/// One side of a [`Pair`]: threads of one name at one place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Party {
    pub pid: u32,
    pub comm: String,
    pub kernel_stack: StackRef,
    pub user_stack: StackRef,
}

/// "`waiter` waited `waited_ns` while `holder` held the lock."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub waiter: Party,
    pub holder: Party,
    pub waited_ns: u64,
}

/// Of a lock's blame: so much while its holder waited for that other lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The thread that held this lock and waited for the other.
    pub through: Thread,
    pub kind: LockKind,
    pub addr: u64,
    pub pid: Option<u32>,
    pub waited_ns: u64,
}

impl Blame {
    pub fn blamed_ns(&self) -> u64 {
        self.holders.iter().map(|holder| holder.blamed_ns).sum()
    }

    pub fn unattributed_ns(&self) -> u64 {
        self.unattributed.iter().map(|part| part.waited_ns).sum()
    }

    /// Every bucket together: what the lock's waits must come to.
    pub fn accounted_ns(&self) -> u64 {
        self.blamed_ns() + self.handoff_ns + self.unattributed_ns() + self.unreleased_ns
    }

    /// Wall time it was wanted, held and not held; `None` where nobody saw it change hands, since whoever
    /// waited, waited for some time.
    pub fn wall_ns(&self) -> Option<(u64, u64)> {
        let (held, idle) = (self.wanted_ns, self.idle_while_wanted_ns);
        (held + idle > 0 || self.accounted_ns() == 0).then_some((held, idle))
    }

    /// Adds to the bucket of a reason.
    pub fn leave_unattributed(&mut self, reason: BlameGap, thread: Option<Thread>, waited_ns: u64) {
        if waited_ns == 0 {
            return;
        }
        match self.unattributed.iter_mut().find(|part| (part.reason, &part.thread) == (reason, &thread)) {
            Some(part) => part.waited_ns += waited_ns,
            None => self.unattributed.push(Unattributed { reason, thread, waited_ns }),
        }
    }

    /// Takes over the account of another lock that is shown in the same row.
    pub fn merge(&mut self, other: Blame) {
        for theirs in other.holders {
            let key = |holder: &Holder| {
                (holder.thread.tid, holder.kernel_stack, holder.user_stack, holder.evidence)
            };
            match self.holders.iter_mut().find(|mine| key(mine) == key(&theirs)) {
                Some(mine) => {
                    mine.blamed_ns += theirs.blamed_ns;
                    mine.chained_ns += theirs.chained_ns;
                    mine.holds += theirs.holds;
                    mine.wanted_ns += theirs.wanted_ns;
                    match (&mut mine.states, &theirs.states) {
                        (Some(mine), Some(theirs)) => mine.merge(theirs),
                        (None, Some(theirs)) => mine.states = Some(*theirs),
                        _ => {}
                    }
                }
                None => self.holders.push(theirs),
            }
        }
        self.handoff_ns += other.handoff_ns;
        self.handoffs += other.handoffs;
        for part in other.unattributed {
            self.leave_unattributed(part.reason, part.thread, part.waited_ns);
        }
        self.unreleased_ns += other.unreleased_ns;
        self.uncounted_ns += other.uncounted_ns;
        self.unreleased_by = self.unreleased_by.take().or(other.unreleased_by);
        self.wanted_ns += other.wanted_ns;
        self.idle_while_wanted_ns += other.idle_while_wanted_ns;
        for theirs in other.pairs {
            match self
                .pairs
                .iter_mut()
                .find(|mine| (&mine.waiter, &mine.holder) == (&theirs.waiter, &theirs.holder))
            {
                Some(mine) => mine.waited_ns += theirs.waited_ns,
                None => self.pairs.push(theirs),
            }
        }
        self.chains.extend(other.chains);
        self.rank();
    }

    pub fn rank(&mut self) {
        self.holders.sort_by(|a, b| {
            let key = |holder: &Holder| (holder.thread.clone(), holder.kernel_stack, holder.user_stack);
            b.blamed_ns.cmp(&a.blamed_ns).then_with(|| key(a).cmp(&key(b)))
        });
        self.unattributed
            .sort_by_key(|part| (std::cmp::Reverse(part.waited_ns), part.reason, part.thread.clone()));
        self.pairs.sort_by(|a, b| {
            b.waited_ns.cmp(&a.waited_ns).then_with(|| (&a.waiter, &a.holder).cmp(&(&b.waiter, &b.holder)))
        });
        self.chains.sort_by_key(|chain| (std::cmp::Reverse(chain.waited_ns), chain.addr, chain.through.tid));
    }
}

/// Both sides of the identity, over some locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conservation {
    pub waited_ns: u64,
    /// [`Blame::uncounted_ns`]: on the side of the waits.
    pub uncounted_ns: u64,
    pub blamed_ns: u64,
    pub handoff_ns: u64,
    pub unattributed_ns: u64,
    pub unreleased_ns: u64,
}

impl Conservation {
    /// Of all contention in a profile; `None`: it has no account of blame.
    pub fn of(profile: &Profile) -> Option<Conservation> {
        let mut sum = Conservation::default();
        let mut any = false;
        for lock in profile.locks.iter().filter(|lock| lock.is_contention()) {
            sum.waited_ns += lock.weight_ns();
            let Some(blame) = &lock.blame else { continue };
            any = true;
            sum.uncounted_ns += blame.uncounted_ns;
            sum.blamed_ns += blame.blamed_ns();
            sum.handoff_ns += blame.handoff_ns;
            sum.unattributed_ns += blame.unattributed_ns();
            sum.unreleased_ns += blame.unreleased_ns;
        }
        any.then_some(sum)
    }

    /// Waited and in no bucket; 0 unless something was lost.
    pub fn difference_ns(&self) -> i128 {
        let accounted = i128::from(self.blamed_ns)
            + i128::from(self.handoff_ns)
            + i128::from(self.unattributed_ns)
            + i128::from(self.unreleased_ns);
        i128::from(self.waited_ns) + i128::from(self.uncounted_ns) - accounted
    }
}

/// One lock with everything that was waited for it: both sides of a reader-writer lock, and what is known
/// about who made them wait.
#[derive(Clone, Debug)]
pub struct Account<'a> {
    /// Never empty; the one with the account first, else that with the longer waits.
    pub rows: Vec<&'a Lock>,
    pub blame: Option<&'a Blame>,
}

impl Account<'_> {
    pub fn key(&self) -> (Family, u64, Option<u32>) {
        account_key(self.rows[0])
    }

    pub fn waited_ns(&self) -> u64 {
        self.rows.iter().map(|lock| lock.weight_ns()).sum()
    }

    /// Waited and in no bucket of the account.
    pub fn missing_ns(&self) -> u64 {
        let uncounted = self.blame.map_or(0, |blame| blame.uncounted_ns);
        (self.waited_ns() + uncounted).saturating_sub(self.blame.map_or(0, Blame::accounted_ns))
    }
}

fn account_key(lock: &Lock) -> (Family, u64, Option<u32>) {
    (lock.kind.family(), lock.addr, lock.pid)
}

/// Of all contention; in the order of the profile.
pub fn accounts(profile: &Profile) -> Vec<Account<'_>> {
    let mut accounts: Vec<Account> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for lock in profile.locks.iter().filter(|lock| lock.is_contention()) {
        let next = accounts.len();
        let index = *known.entry(account_key(lock)).or_insert(next);
        if index == next {
            accounts.push(Account { rows: Vec::new(), blame: None });
        }
        let account = &mut accounts[index];
        match (&lock.blame, account.blame) {
            (Some(blame), None) => {
                account.blame = Some(blame);
                account.rows.insert(0, lock);
            }
            // A second account at the same address is that of another lock.
            (Some(blame), Some(_)) => accounts.push(Account { rows: vec![lock], blame: Some(blame) }),
            (None, _) => account.rows.push(lock),
        }
    }
    accounts
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{EndReason, EventCounts, Meta, SCHEMA, Target, TargetKind};

    pub fn empty_profile() -> Profile {
        Profile {
            schema: SCHEMA.into(),
            meta: Meta {
                version: String::new(),
                command: vec![],
                hostname: String::new(),
                kernel: String::new(),
                arch: String::new(),
                cpus: 1,
                start_unix_s: 0,
                duration_ns: 0,
                target: Target {
                    kind: TargetKind::System,
                    pids: vec![],
                    comms: vec![],
                    command: vec![],
                    exit_status: None,
                },
                ended_by: EndReason::Duration,
                hold: false,
                hold_families: vec![],
            },
            plan: vec![],
            events: EventCounts::default(),
            losses: vec![],
            naming: None,
            locks: vec![],
            stacks: vec![],
            frames: vec![],
        }
    }

    pub fn holder(tid: u32, blamed_ns: u64) -> Holder {
        Holder {
            thread: Thread { pid: 1, tid, comm: format!("t{tid}") },
            kernel_stack: StackRef::NotTaken,
            user_stack: StackRef::NotTaken,
            evidence: Evidence::Release,
            blamed_ns,
            chained_ns: 0,
            holds: 1,
            wanted_ns: blamed_ns,
            states: None,
        }
    }

    fn waited(kind: LockKind, addr: u64, ns: u64, blame: Option<Blame>) -> Lock {
        let mut lock = Lock::new(kind, addr, None);
        lock.wait.contended = 1;
        lock.wait.wait_total_ns = ns;
        Lock { blame, ..lock }
    }

    #[test]
    fn wall_time_that_nobody_saw_is_not_zero() {
        let mut blame = Blame::default();
        assert_eq!(blame.wall_ns(), Some((0, 0)));
        blame.leave_unattributed(BlameGap::NoReleaseEvent, None, 7);
        assert_eq!(blame.wall_ns(), None);
        blame.idle_while_wanted_ns = 3;
        assert_eq!(blame.wall_ns(), Some((0, 3)));
    }

    #[test]
    fn the_sides_of_a_reader_writer_lock_have_one_account() {
        let blame = Blame { holders: vec![holder(1, 70)], handoff_ns: 20, ..Blame::default() };
        let profile = Profile {
            locks: vec![
                waited(LockKind::RwsemRead, 1, 60, None),
                waited(LockKind::Mutex, 2, 50, None),
                waited(LockKind::RwsemWrite, 1, 40, Some(blame)),
            ],
            ..empty_profile()
        };
        let accounts = accounts(&profile);
        assert_eq!(accounts.len(), 2);
        assert_eq!(accounts[0].rows[0].kind, LockKind::RwsemWrite);
        assert_eq!((accounts[0].waited_ns(), accounts[0].missing_ns()), (100, 10));
        assert_eq!((accounts[1].waited_ns(), accounts[1].missing_ns()), (50, 50));
        assert_eq!(Conservation::of(&profile).unwrap().difference_ns(), 60);
    }
}
