//! Queues and blame from BPF → model. bpf/lockprof_blame.h has the arithmetic.

use super::skel::types;
use super::wire;
use crate::model::{
    BlameGap, Evidence, HolderStates, LockId, RawBlame, RawHolder, RawParty, Thread, Unattributed,
};

// bpf/lockprof_blame.h
const QUEUE_UNIT: u64 = 1 << 50;
const QUEUE_SLACK: u64 = 1 << 40;

/// Adds a waiter who came when the profile began.
pub fn add_early_waiter(queue: &mut types::queue, epoch_ns: u64, owner: &types::owner) {
    queue.value = queue.value.wrapping_add(QUEUE_UNIT);
    queue.state = types::queue_state::QUEUE_HELD.0;
    queue.counted_ns = epoch_ns;
    queue.held_since_ns = epoch_ns;
    let evidence = if owner.tid == 0 {
        types::holder_evidence::HOLDER_UNKNOWN
    } else {
        types::holder_evidence::HOLDER_OWNER_WORD
    };
    queue.holder = types::holder {
        kernel_stack: wire::STACK_NOT_TAKEN,
        user_stack: wire::STACK_NOT_TAKEN,
        tid: owner.tid,
        tgid: owner.tgid,
        evidence: evidence.0,
        comm: owner.comm,
        ..Default::default()
    };
}

/// Waiters at `now`, and the waiter-time that is charged to nobody yet; `since_epoch_ns`: of now.
fn sum(value: u64, since_epoch_ns: u64) -> (u64, i64) {
    let unit = QUEUE_UNIT - since_epoch_ns;
    let value = value.wrapping_add(QUEUE_SLACK);
    (value / unit, (value % unit) as i64 - QUEUE_SLACK as i64)
}

/// What a queue came to until the profile stopped; `None`: nobody ever waited.
pub fn account(queue: &types::queue, since_epoch_ns: u64) -> Option<RawBlame> {
    if queue.counted_ns == 0 {
        return None;
    }
    let (waiters, uncharged_ns) = sum(queue.value, since_epoch_ns);
    let mut blame = RawBlame {
        handoff_ns: queue.handoff_ns,
        handoffs: queue.handoffs,
        wanted_ns: queue.wanted_ns,
        idle_while_wanted_ns: queue.idle_ns,
        woken_to_running_ns: queue.woken_to_running_ns,
        ..Default::default()
    };
    let mut gap = |reason, thread, waited_ns| {
        if waited_ns > 0 {
            blame.unattributed.push(Unattributed { reason, thread, waited_ns });
        }
    };
    gap(BlameGap::ReleaseNotSeen, None, queue.not_seen_ns);
    gap(BlameGap::NoRoom, None, queue.no_room_ns);
    // Below 0: two CPUs charged it.
    let (pending_ns, too_much_ns) = (queue.pending_ns as i64, -(queue.pending_ns as i64));
    if pending_ns > 0 {
        match evidence(queue.pending.evidence) {
            Known::Stack(evidence) => blame.holders.push(RawHolder {
                thread: holder_thread(&queue.pending),
                kernel_stack: wire::raw_stack(queue.pending.kernel_stack),
                user_stack: wire::raw_stack(queue.pending.user_stack),
                evidence,
                blamed_ns: queue.pending_ns,
                chained_ns: 0,
                holds: 1,
                wanted_ns: queue.pending_wanted_ns,
                states: HolderStates::default(),
            }),
            Known::Thread => {
                gap(BlameGap::OwnerWithoutStack, Some(holder_thread(&queue.pending)), queue.pending_ns)
            }
            Known::Nothing => gap(BlameGap::ReleaseNotSeen, None, queue.pending_ns),
        }
    }
    let held = types::queue_state(queue.state) == types::queue_state::QUEUE_HELD;
    let holder =
        (held && !matches!(evidence(queue.holder.evidence), Known::Nothing) && queue.holder.reads == 0)
            .then(|| holder_thread(&queue.holder));
    // Below 0: charged, and then taken back as a wait whose end was not seen.
    let uncharged = uncharged_ns.max(0) as u64;
    blame.uncounted_ns = uncharged_ns.min(0).unsigned_abs() + too_much_ns.max(0) as u64;
    match (held, waiters) {
        (false, 1..) => blame.handoff_ns += uncharged,
        (true, 1..) => {
            blame.unreleased_ns = uncharged;
            blame.unreleased_by = holder;
        }
        // Waits that were given up, and nothing happened since.
        (_, 0) if uncharged > 0 => {
            let reason =
                if holder.is_some() { BlameGap::OwnerWithoutStack } else { BlameGap::ReleaseNotSeen };
            blame.unattributed.push(Unattributed { reason, thread: holder, waited_ns: uncharged });
        }
        _ => {}
    }
    Some(blame)
}

/// A spinlock's, which two CPUs can have begun to count at two places.
pub fn add_spin_queue(blame: &mut RawBlame, queue: &types::spin_queue, since_epoch_ns: u64) {
    let (waiters, uncharged_ns) = sum(queue.value, since_epoch_ns);
    let uncharged = uncharged_ns.max(0) as u64;
    blame.uncounted_ns += uncharged_ns.min(0).unsigned_abs();
    blame.handoff_ns += queue.handoff_ns;
    blame.handoffs += queue.handoffs;
    blame.wanted_ns += queue.wanted_ns;
    blame.idle_while_wanted_ns += queue.idle_ns;
    let held = types::queue_state(queue.state) == types::queue_state::QUEUE_HELD;
    let mut unseen = queue.not_seen_ns;
    match (held, waiters) {
        (false, 1..) => blame.handoff_ns += uncharged,
        (true, 1..) => blame.unreleased_ns += uncharged,
        (_, 0) => unseen += uncharged,
    }
    for (reason, waited_ns) in [(BlameGap::ReleaseNotSeen, unseen), (BlameGap::NoRoom, queue.no_room_ns)] {
        if waited_ns > 0 {
            blame.unattributed.push(Unattributed { reason, thread: None, waited_ns });
        }
    }
}

enum Known {
    Stack(Evidence),
    Thread,
    Nothing,
}

fn evidence(wire: u32) -> Known {
    use types::holder_evidence as E;
    match E(wire) {
        E::HOLDER_RELEASED => Known::Stack(Evidence::Release),
        E::HOLDER_ACQUIRED => Known::Stack(Evidence::Acquire),
        E::HOLDER_OWNER_WORD => Known::Thread,
        _ => Known::Nothing,
    }
}

fn holder_thread(wire: &types::holder) -> Thread {
    Thread { pid: wire.tgid, tid: wire.tid, comm: wire::comm(&wire.comm) }
}

/// Adds what one holder is charged with.
pub fn add_holder(blame: &mut RawBlame, key: &types::blame_key, wire: &types::blame_stats) {
    let thread = Thread { pid: wire.tgid, tid: key.tid, comm: wire::comm(&wire.comm) };
    let evidence = match evidence(key.evidence) {
        Known::Stack(evidence) => evidence,
        Known::Thread | Known::Nothing => {
            if wire.blamed_ns > 0 {
                blame.unattributed.push(Unattributed {
                    reason: BlameGap::OwnerWithoutStack,
                    thread: Some(thread),
                    waited_ns: wire.blamed_ns,
                });
            }
            return;
        }
    };
    use types::watch_state as W;
    let state = |state: W| wire.state_ns[state.0 as usize];
    blame.holders.push(RawHolder {
        thread,
        kernel_stack: wire::raw_stack(key.kernel_stack),
        user_stack: wire::raw_stack(key.user_stack),
        evidence,
        blamed_ns: wire.blamed_ns,
        chained_ns: wire.chained_ns,
        holds: wire.holds,
        wanted_ns: wire.wanted_ns,
        states: HolderStates {
            running_ns: state(W::WATCH_RUNNING),
            runnable_ns: state(W::WATCH_PREEMPTED) + state(W::WATCH_WOKEN),
            io_ns: state(W::WATCH_IO),
            lock_ns: state(W::WATCH_LOCK),
            blocked_ns: state(W::WATCH_BLOCKED),
        },
    });
}

pub fn party(wire: &types::party) -> RawParty {
    RawParty {
        pid: wire.tgid,
        comm: wire::comm(&wire.comm),
        kernel_stack: wire::raw_stack(wire.kernel_stack),
        user_stack: wire::raw_stack(wire.user_stack),
    }
}

pub fn chain(key: &types::chain_key, wire: &types::chain_stats) -> Option<(Thread, LockId, u64)> {
    let through = Thread { pid: wire.tgid, tid: key.tid, comm: wire::comm(&wire.comm) };
    Some((through, wire::lock_id(&key.other)?, wire.waited_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_and_their_time_are_read_from_one_number() {
        // Came at 10, 20 and 20; one went at 50; 25 ns were charged.
        let value = [10, 20, 20].iter().fold(0u64, |sum, t| sum.wrapping_add(QUEUE_UNIT - t));
        let value = value.wrapping_sub(QUEUE_UNIT - 50).wrapping_sub(25);
        assert_eq!(sum(value, 100), (2, (90 + 80 + 80 - 50 - 25)));
    }

    #[test]
    fn a_thousand_waiters_of_a_day_fit() {
        let day = 86_400_000_000_000;
        let value = (0..1000u64).fold(0u64, |sum, t| sum.wrapping_add(QUEUE_UNIT - t));
        let late = value.wrapping_sub(1000 * (day - 5_000_000) - (0..1000).sum::<u64>());
        assert_eq!(sum(late, day), (1000, 1000 * 5_000_000));
    }

    #[test]
    fn time_below_zero_stays_below_zero() {
        assert_eq!(sum(QUEUE_UNIT.wrapping_sub(100), 50), (1, -50));
        assert_eq!(sum(0u64.wrapping_sub(7), 50), (0, -7));
    }
}
