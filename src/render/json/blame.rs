//! Who made the others wait, of a lock and of the whole report.

use super::hex;
use super::stack::StackRow;
use crate::model::{
    Account, Blame, Cause, Chain, Conservation, Holder, HolderStates, Lock, MeanHold, Pair, Party, Profile,
    Queue, Root, Thread, Unattributed, roots,
};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct BlameRow<'a> {
    blamed_ns: u64,
    handoff_ns: u64,
    handoffs: u64,
    unattributed_ns: u64,
    unreleased_ns: u64,
    unreleased_by: Option<ThreadRow<'a>>,
    uncounted_ns: u64,
    wanted_ns: Option<u64>,
    idle_while_wanted_ns: Option<u64>,
    holders: Vec<HolderRow<'a>>,
    unattributed: Vec<UnattributedRow<'a>>,
    pairs: Vec<PairRow<'a>>,
    chains: Vec<ChainRow<'a>>,
}

#[derive(Serialize)]
struct ThreadRow<'a> {
    pid: u32,
    tid: u32,
    comm: &'a str,
}

#[derive(Serialize)]
struct HolderRow<'a> {
    pid: u32,
    tid: u32,
    comm: &'a str,
    evidence: &'static str,
    blamed_ns: u64,
    chained_ns: u64,
    holds: u64,
    wanted_ns: u64,
    states: Option<StatesRow>,
    kernel_stack: StackRow<'a>,
    user_stack: StackRow<'a>,
}

#[derive(Serialize)]
struct StatesRow {
    running_ns: u64,
    runnable_ns: u64,
    io_ns: u64,
    lock_ns: u64,
    blocked_ns: u64,
}

#[derive(Serialize)]
struct UnattributedRow<'a> {
    reason: &'static str,
    thread: Option<ThreadRow<'a>>,
    waited_ns: u64,
}

#[derive(Serialize)]
struct PairRow<'a> {
    waiter: PartyRow<'a>,
    holder: PartyRow<'a>,
    waited_ns: u64,
}

#[derive(Serialize)]
struct PartyRow<'a> {
    pid: u32,
    comm: &'a str,
    kernel_stack: StackRow<'a>,
    user_stack: StackRow<'a>,
}

#[derive(Serialize)]
struct ChainRow<'a> {
    through: ThreadRow<'a>,
    #[serde(flatten)]
    lock: LockRef,
    waited_ns: u64,
    roots: Vec<RootRow<'a>>,
}

/// Which entry of `locks`: it has the same three.
#[derive(Serialize)]
struct LockRef {
    #[serde(rename = "type")]
    kind: &'static str,
    addr: String,
    pid: Option<u32>,
}

#[derive(Serialize)]
struct RootRow<'a> {
    lock: Option<LockRef>,
    cause: &'static str,
    holder: Option<RootHolder<'a>>,
    waited_ns: u64,
}

/// Without a thread id where pairs tell who it was: they are by name and place.
#[derive(Serialize)]
struct RootHolder<'a> {
    pid: u32,
    tid: Option<u32>,
    comm: &'a str,
    kernel_stack: StackRow<'a>,
    user_stack: StackRow<'a>,
}

#[derive(Serialize)]
pub(super) struct QueueRow {
    arrivals_per_s: f64,
    mean_wait_ns: Option<u64>,
    mean_queue_length: f64,
    mean_hold_ns: Option<u64>,
    mean_hold_of: Option<&'static str>,
    held_while_wanted_share: Option<f64>,
    idle_while_wanted_share: Option<f64>,
    saves_at_most_share: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct ConservationRow {
    waited_ns: u64,
    uncounted_ns: u64,
    blamed_ns: u64,
    handoff_ns: u64,
    unattributed_ns: u64,
    unreleased_ns: u64,
    difference_ns: i64,
}

impl<'a> BlameRow<'a> {
    pub(super) fn of(
        profile: &'a Profile,
        accounts: &[Account<'a>],
        lock: &'a Lock,
        blame: &'a Blame,
    ) -> BlameRow<'a> {
        BlameRow {
            blamed_ns: blame.blamed_ns(),
            handoff_ns: blame.handoff_ns,
            handoffs: blame.handoffs,
            unattributed_ns: blame.unattributed_ns(),
            unreleased_ns: blame.unreleased_ns,
            unreleased_by: blame.unreleased_by.as_ref().map(ThreadRow::of),
            uncounted_ns: blame.uncounted_ns,
            wanted_ns: blame.wall_ns().map(|(held, _)| held),
            idle_while_wanted_ns: blame.wall_ns().map(|(_, idle)| idle),
            holders: blame.holders.iter().map(|holder| HolderRow::of(profile, holder)).collect(),
            unattributed: blame.unattributed.iter().map(UnattributedRow::of).collect(),
            pairs: blame.pairs.iter().map(|pair| PairRow::of(profile, pair)).collect(),
            chains: blame
                .chains
                .iter()
                .map(|chain| ChainRow {
                    through: ThreadRow::of(&chain.through),
                    lock: LockRef::of_chain(chain),
                    waited_ns: chain.waited_ns,
                    roots: roots(accounts, lock, chain)
                        .into_iter()
                        .map(|root| RootRow::of(profile, root))
                        .collect(),
                })
                .collect(),
        }
    }
}

impl<'a> ThreadRow<'a> {
    fn of(thread: &'a Thread) -> ThreadRow<'a> {
        ThreadRow { pid: thread.pid, tid: thread.tid, comm: &thread.comm }
    }
}

impl<'a> HolderRow<'a> {
    fn of(profile: &'a Profile, holder: &'a Holder) -> HolderRow<'a> {
        HolderRow {
            pid: holder.thread.pid,
            tid: holder.thread.tid,
            comm: &holder.thread.comm,
            evidence: holder.evidence.name(),
            blamed_ns: holder.blamed_ns,
            chained_ns: holder.chained_ns,
            holds: holder.holds,
            wanted_ns: holder.wanted_ns,
            states: holder.states.map(StatesRow::of),
            kernel_stack: StackRow::of(profile, holder.kernel_stack),
            user_stack: StackRow::of(profile, holder.user_stack),
        }
    }
}

impl StatesRow {
    fn of(states: HolderStates) -> StatesRow {
        StatesRow {
            running_ns: states.running_ns,
            runnable_ns: states.runnable_ns,
            io_ns: states.io_ns,
            lock_ns: states.lock_ns,
            blocked_ns: states.blocked_ns,
        }
    }
}

impl<'a> UnattributedRow<'a> {
    fn of(part: &'a Unattributed) -> UnattributedRow<'a> {
        UnattributedRow {
            reason: part.reason.name(),
            thread: part.thread.as_ref().map(ThreadRow::of),
            waited_ns: part.waited_ns,
        }
    }
}

impl<'a> PairRow<'a> {
    fn of(profile: &'a Profile, pair: &'a Pair) -> PairRow<'a> {
        PairRow {
            waiter: PartyRow::of(profile, &pair.waiter),
            holder: PartyRow::of(profile, &pair.holder),
            waited_ns: pair.waited_ns,
        }
    }
}

impl<'a> PartyRow<'a> {
    fn of(profile: &'a Profile, party: &'a Party) -> PartyRow<'a> {
        PartyRow {
            pid: party.pid,
            comm: &party.comm,
            kernel_stack: StackRow::of(profile, party.kernel_stack),
            user_stack: StackRow::of(profile, party.user_stack),
        }
    }
}

impl LockRef {
    fn of_chain(chain: &Chain) -> LockRef {
        LockRef { kind: chain.kind.name(), addr: hex(chain.addr), pid: chain.pid }
    }

    fn of_lock(lock: &Lock) -> LockRef {
        LockRef { kind: lock.kind.name(), addr: hex(lock.addr), pid: lock.pid }
    }
}

impl<'a> RootRow<'a> {
    fn of(profile: &'a Profile, root: Root<'a>) -> RootRow<'a> {
        let holder = match root.cause {
            Cause::Holder(party) => Some(RootHolder {
                pid: party.pid,
                tid: None,
                comm: &party.comm,
                kernel_stack: StackRow::of(profile, party.kernel_stack),
                user_stack: StackRow::of(profile, party.user_stack),
            }),
            Cause::Thread(holder) => Some(RootHolder {
                pid: holder.thread.pid,
                tid: Some(holder.thread.tid),
                comm: &holder.thread.comm,
                kernel_stack: StackRow::of(profile, holder.kernel_stack),
                user_stack: StackRow::of(profile, holder.user_stack),
            }),
            _ => None,
        };
        let cause = root.cause.name();
        RootRow { lock: root.lock.map(LockRef::of_lock), cause, holder, waited_ns: root.waited_ns }
    }
}

impl QueueRow {
    pub(super) fn of(queue: Queue) -> QueueRow {
        let (mean_hold_ns, mean_hold_of) = match queue.mean_hold {
            Some(MeanHold::Holds(ns)) => (Some(ns), Some("all_holds")),
            Some(MeanHold::Wanted(ns)) => (Some(ns), Some("wanted_part")),
            None => (None, None),
        };
        QueueRow {
            arrivals_per_s: queue.arrivals_per_s,
            mean_wait_ns: queue.mean_wait_ns.map(|ns| ns.round() as u64),
            mean_queue_length: queue.mean_length,
            mean_hold_ns,
            mean_hold_of,
            held_while_wanted_share: queue.wanted.map(|wanted| wanted.held),
            idle_while_wanted_share: queue.wanted.map(|wanted| wanted.idle),
            saves_at_most_share: queue.wanted.map(|wanted| wanted.saves_at_most()),
        }
    }
}

impl ConservationRow {
    pub(super) fn of(sums: Conservation) -> ConservationRow {
        ConservationRow {
            waited_ns: sums.waited_ns,
            uncounted_ns: sums.uncounted_ns,
            blamed_ns: sums.blamed_ns,
            handoff_ns: sums.handoff_ns,
            unattributed_ns: sums.unattributed_ns,
            unreleased_ns: sums.unreleased_ns,
            difference_ns: sums.difference_ns().clamp(i64::MIN.into(), i64::MAX.into()) as i64,
        }
    }
}
