//! Futex records from BPF → model. What the bits mean is in bpf/lockprof.h (site_key.futex).

use super::skel::types;
use super::wire;
use crate::model::{
    FutexCall, FutexOp, FutexPlace, FutexValue, FutexWords, HoldStats, LockId, ParkToken, RawCapture,
    RawStack, RawWait, Thread, WaitStats, bucket_of,
};

// linux/futex.h; 0x7f is bpf/futex.bpf.h's own, for futex_waitv(2).
pub(super) const COMMAND: u32 = 0x7f;
pub(super) const PRIVATE: u32 = 0x80;
pub(super) const CLOCK_REALTIME: u32 = 0x100;
// bpf/lockprof.h
pub(super) const TIMEOUT: u32 = 1 << 9;
pub(super) const VALUE_SHIFT: u32 = 10;
pub(super) const PLACE_SHIFT: u32 = 14;
pub(super) const WORDS_GLIBC_MUTEX: u32 = 1 << 16;
pub(super) const WORDS_RWLOCK_PHASE: u32 = 1 << 17;
pub(super) const WORDS_RWLOCK_WRITERS: u32 = 1 << 18;
pub(super) const WORDS_GLIBC_COND: u32 = 1 << 19;
pub(super) const WORDS_GLIBC_SEM: u32 = 1 << 20;
pub(super) const WORDS_GLIBC_BARRIER: u32 = 1 << 21;
pub(super) const WORDS_RUST_WRITERS: u32 = 1 << 22;
pub(super) const PARKED_SHIFT: u32 = 23;
pub(super) const COMPAT: u32 = 1 << 27;
pub(super) const OP_UNKNOWN: u32 = 1 << 28;

pub fn call(bits: u32) -> FutexCall {
    let has = |bit: u32| bits & bit != 0;
    let op = match bits & COMMAND {
        _ if has(OP_UNKNOWN) => FutexOp::Other,
        0 => FutexOp::Wait,
        6 | 13 => FutexOp::LockPi,
        9 => FutexOp::WaitBitset,
        11 => FutexOp::WaitRequeuePi,
        0x7f => FutexOp::Waitv,
        _ => FutexOp::Other,
    };
    use types::futex_parked as P;
    let parked = match P(bits >> PARKED_SHIFT & 0xf) {
        P::PARKED_MUTEX => Some(ParkToken::Mutex),
        P::PARKED_MUTEX_OR_CONDVAR => Some(ParkToken::MutexOrCondvar),
        P::PARKED_READ => Some(ParkToken::Read),
        P::PARKED_WRITE => Some(ParkToken::Write),
        _ => None,
    };
    FutexCall {
        op,
        private: has(PRIVATE),
        realtime: has(CLOCK_REALTIME),
        timeout: has(TIMEOUT),
        value: value(bits >> VALUE_SHIFT & 0xf),
        place: match types::futex_place(bits >> PLACE_SHIFT & 3) {
            types::futex_place::PLACE_OWN_STACK => FutexPlace::OwnStack,
            types::futex_place::PLACE_THREAD_LOCAL => FutexPlace::ThreadLocal,
            types::futex_place::PLACE_EITHER => FutexPlace::OwnStackOrThreadLocal,
            _ => FutexPlace::Elsewhere,
        },
        words: FutexWords {
            glibc_mutex: has(WORDS_GLIBC_MUTEX),
            glibc_rwlock_phase: has(WORDS_RWLOCK_PHASE),
            glibc_rwlock_writers: has(WORDS_RWLOCK_WRITERS),
            glibc_cond: has(WORDS_GLIBC_COND),
            glibc_sem: has(WORDS_GLIBC_SEM),
            glibc_barrier: has(WORDS_GLIBC_BARRIER),
            rust_rwlock_writers: has(WORDS_RUST_WRITERS),
            parked,
        },
        compat: has(COMPAT),
    }
}

fn value(wire: u32) -> FutexValue {
    use types::futex_value as V;
    match V(wire) {
        V::VALUE_ZERO => FutexValue::Zero,
        V::VALUE_ONE => FutexValue::One,
        V::VALUE_TWO => FutexValue::Two,
        V::VALUE_THREE => FutexValue::Three,
        V::VALUE_FIVE => FutexValue::Five,
        V::VALUE_SEVEN => FutexValue::Seven,
        V::VALUE_ALL_ONES => FutexValue::AllOnes,
        V::VALUE_THREAD => FutexValue::Thread,
        V::VALUE_OWNED_BY_THREAD => FutexValue::OwnedByThread,
        V::VALUE_MUSL_BUSY => FutexValue::MuslBusy,
        V::VALUE_BIT_31 => FutexValue::Bit31,
        V::VALUE_NEGATIVE => FutexValue::Negative,
        V::VALUE_BIT_30 => FutexValue::Bit30,
        V::VALUE_CEILING => FutexValue::Ceiling,
        _ => FutexValue::Other,
    }
}

/// Holds of a futex that began with a wait.
pub fn contended_holds(wire: &types::lock_stats) -> Option<HoldStats> {
    (wire.holds > 0).then_some(HoldStats {
        acquired: wire.holds,
        holds: wire.holds,
        hold_total_ns: wire.hold_total_ns,
        hold_max_ns: Some(wire.hold_max_ns),
    })
}

pub fn releaser(
    key: &types::release_key,
    wire: &types::release_stats,
) -> Option<(LockId, Thread, u32, RawStack, u64)> {
    let waker = Thread { pid: wire.waker_tgid, tid: key.waker_tid, comm: wire::comm(&wire.comm) };
    Some((wire::lock_id(&key.lock)?, waker, key.wakee_tid, wire::raw_stack(key.stack), wire.woken))
}

/// The latest futex wait of a thread: it goes on, or it ended and BPF did not come to account for it, which it
/// does at the thread's next wait or wake.
pub fn add_wait(tid: u32, wire: &types::futex_wait, capture: &mut RawCapture) {
    if wire.begin_ns == 0 {
        return;
    }
    let Some(site) = wire::site_id(&wire.site) else { return };
    if wire.end_ns == 0 {
        capture.in_flight.push(RawWait {
            site,
            tid,
            comm: wire::comm(&wire.comm),
            begin_ns: wire.begin_ns,
            owner: wire::owner(&wire.owner),
            from_before: wire.from_before != 0,
        });
        return;
    }
    let ns = wire.end_ns.saturating_sub(wire.begin_ns);
    let acquired = types::outcome(wire.outcome) == types::outcome::ACQUIRED;
    let wait = if acquired {
        WaitStats {
            contended: 1,
            wait_total_ns: ns,
            wait_min_ns: Some(ns),
            wait_max_ns: Some(ns),
            ..Default::default()
        }
    } else {
        WaitStats { aborted: 1, aborted_total_ns: ns, ..Default::default() }
    };
    capture.events.waits_ended += 1;
    match capture.sites.iter_mut().find(|(known, _)| *known == site) {
        Some((_, stats)) => stats.merge(&wait),
        None => capture.sites.push((site, wait)),
    }
    let lock = capture.locks.entry(site.lock).or_default();
    if acquired {
        lock.hist.resize(crate::model::BUCKETS, 0);
        lock.hist[bucket_of(ns)] += 1;
    }
    match wire::owner(&wire.owner) {
        Some(crate::model::Owner::Nobody) => lock.begun_unowned += 1,
        Some(crate::model::Owner::Readers) => lock.begun_read_owned += 1,
        Some(crate::model::Owner::Task(thread)) => {
            let same =
                |(id, known, _): &&mut (LockId, Thread, u64)| *id == site.lock && known.tid == thread.tid;
            match capture.owners.iter_mut().find(same) {
                Some((_, _, waits)) => *waits += 1,
                None => capture.owners.push((site.lock, thread, 1)),
            }
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_of_a_call_are_read_as_they_were_written() {
        let bits = 9 | PRIVATE | TIMEOUT | 2 << VALUE_SHIFT | 1 << PLACE_SHIFT | WORDS_GLIBC_MUTEX;
        let call = call(bits);
        assert_eq!((call.op, call.private, call.timeout), (FutexOp::WaitBitset, true, true));
        assert_eq!((call.value, call.place), (FutexValue::Two, FutexPlace::OwnStack));
        assert_eq!(call.words, FutexWords { glibc_mutex: true, ..Default::default() });
    }

    #[test]
    fn an_operation_of_the_future_is_no_wait_that_is_known() {
        assert_eq!(call(14 | PRIVATE).op, FutexOp::Other);
        assert_eq!(call(OP_UNKNOWN).op, FutexOp::Other);
    }
}
