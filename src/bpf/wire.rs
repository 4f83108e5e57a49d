//! Bytes from BPF → model. Layouts come from the generated skeleton; no policy here.

use super::futex_wire;
use super::skel::types;
use crate::model::{
    EventCounts, HoldStats, LockId, LockKind, Loss, Owner, RawFrames, RawLock, RawStack, RawWait, SiteId,
    SlabPlace, Thread, WaitStats,
};
use crate::unwind::{ProcessTable, UserStacks};
use plain::Plain;

/// Reads a record out of map bytes.
pub fn read<T: Plain + Copy + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    plain::copy_from_bytes(&mut value, bytes).expect("the kernel returns whole records");
    value
}

pub fn kind(wire: u32) -> Option<LockKind> {
    use types::lock_kind as K;
    Some(match K(wire) {
        K::KIND_MUTEX => LockKind::Mutex,
        K::KIND_RWSEM_READ => LockKind::RwsemRead,
        K::KIND_RWSEM_WRITE => LockKind::RwsemWrite,
        K::KIND_SPINLOCK => LockKind::Spinlock,
        K::KIND_RWLOCK_READ => LockKind::RwlockRead,
        K::KIND_RWLOCK_WRITE => LockKind::RwlockWrite,
        K::KIND_SEMAPHORE => LockKind::Semaphore,
        K::KIND_PERCPU_RWSEM_READ => LockKind::PercpuRwsemRead,
        K::KIND_PERCPU_RWSEM_WRITE => LockKind::PercpuRwsemWrite,
        K::KIND_RTMUTEX => LockKind::RtMutex,
        K::KIND_FUTEX => LockKind::Futex,
        K::KIND_FUTEX_PI => LockKind::FutexPi,
        K::KIND_FLOCK => LockKind::Flock,
        K::KIND_POSIX_LOCK => LockKind::PosixLock,
        _ => return None,
    })
}

/// The bit of a kind in `config.tracepoint_kinds`.
pub fn kind_bit(wanted: LockKind) -> u32 {
    let wire = (0..types::lock_kind::KIND_COUNT.0).find(|wire| kind(*wire) == Some(wanted));
    1 << wire.expect("every model kind has a wire kind")
}

pub fn lock_id(key: &types::lock_key) -> Option<LockId> {
    let kind = kind(key.kind)?;
    Some(LockId { kind, addr: key.addr, pid: (key.tgid != 0).then_some(key.tgid) })
}

/// lockprof.h
pub(super) const STACK_NOT_TAKEN: u64 = 1;

pub(super) fn raw_stack(id: u64) -> RawStack {
    match id {
        // STACK_LOST and STACK_NOT_TAKEN of lockprof.h
        0 => RawStack::Lost,
        1 => RawStack::NotTaken,
        id => RawStack::Id(id),
    }
}

pub fn site_id(key: &types::site_key) -> Option<SiteId> {
    Some(SiteId {
        lock: lock_id(&key.lock)?,
        pid: key.tgid,
        kernel_stack: raw_stack(key.kernel_stack),
        user_stack: raw_stack(key.user_stack),
        futex: lock_id(&key.lock)?.kind.is_user().then(|| futex_wire::call(key.futex)),
    })
}

/// `phases_known`: something tells when a waiter for this kind spins and when it sleeps.
pub fn wait_stats(wire: &types::site_stats, phases_known: bool) -> WaitStats {
    let any = wire.contended > 0;
    WaitStats {
        contended: wire.contended,
        wait_total_ns: wire.wait_total_ns,
        wait_min_ns: any.then_some(!wire.wait_min_inverted),
        wait_max_ns: any.then_some(wire.wait_max_ns),
        aborted: wire.aborted,
        aborted_total_ns: wire.aborted_total_ns,
        spin_total_ns: phases_known.then_some(wire.spin_total_ns),
    }
}

pub fn raw_lock(wire: &types::lock_stats) -> RawLock {
    RawLock {
        hist: wire.hist.to_vec(),
        wake_calls: wire.wake_calls,
        woken: wire.woken,
        wake_all_calls: wire.wake_all_calls,
        several_waiters: wire.several_waiters != 0,
        contended_releases: wire.contended_releases,
        begun_unowned: wire.begun_unowned,
        begun_read_owned: wire.begun_read_owned,
    }
}

pub(super) fn owner(wire: &types::owner) -> Option<Owner> {
    use types::owner_state as S;
    match S(wire.state) {
        S::OWNER_TASK => Some(Owner::Task(Thread { pid: wire.tgid, tid: wire.tid, comm: comm(&wire.comm) })),
        S::OWNER_READERS => Some(Owner::Readers),
        S::OWNER_NOBODY => Some(Owner::Nobody),
        _ => None,
    }
}

pub fn lock_owner(key: &types::owner_key, wire: &types::owner_stats) -> Option<(LockId, Thread, u64)> {
    let thread = Thread { pid: wire.tgid, tid: key.tid, comm: comm(&wire.comm) };
    Some((lock_id(&key.lock)?, thread, wire.begun))
}

pub fn hold_stats(wire: &types::hold_stats) -> HoldStats {
    HoldStats {
        acquired: wire.acquired,
        holds: wire.holds,
        hold_total_ns: wire.hold_total_ns,
        hold_max_ns: (wire.holds > 0).then_some(wire.hold_max_ns),
    }
}

pub fn raw_wait(key: &types::wait_key, wire: &types::wait) -> Option<RawWait> {
    Some(RawWait {
        site: site_id(&wire.site)?,
        tid: key.tid,
        comm: comm(&wire.comm),
        begin_ns: wire.begin_ns,
        owner: owner(&wire.owner),
        from_before: false,
    })
}

pub fn spin_waits(wire: &types::spin_waits) -> Vec<RawWait> {
    let depth = (wire.depth as usize).min(wire.wait.len());
    let waits = wire.wait[..depth].iter().filter_map(|wait| {
        Some(RawWait {
            site: site_id(&wait.site)?,
            tid: wait.tid,
            comm: comm(&wait.comm),
            begin_ns: wait.begin_ns,
            owner: None,
            from_before: false,
        })
    });
    waits.collect()
}

pub fn frames(wire: &types::stack) -> RawFrames {
    let frames = (wire.frames as usize).min(wire.pcs.len());
    let complete = types::stack_end(wire.end) == types::stack_end::STACK_COMPLETE;
    RawFrames { pcs: wire.pcs[..frames].to_vec(), incomplete: !complete }
}

pub fn process(table: &ProcessTable) -> types::process {
    let mut wire = types::process { generation: table.generation, ..Default::default() };
    for (to, span) in wire.mapping.iter_mut().zip(&table.spans) {
        *to = types::unwind_mapping {
            start: span.start,
            length: span.length,
            pc: span.pc,
            first_row: span.first_row,
            rows: span.rows,
        };
        wire.mappings += 1;
    }
    wire
}

pub fn user_stacks(how: UserStacks) -> u32 {
    use types::user_stacks as U;
    match how {
        UserStacks::Off => U::USER_STACKS_OFF.0,
        UserStacks::FramePointers => U::USER_STACKS_FRAME_POINTERS.0,
        UserStacks::Tables => U::USER_STACKS_TABLES.0,
    }
}

/// `SLAB_OFFSET_UNKNOWN` of lockprof.h is all ones.
pub fn slab_place(cache: u64, offset: u32) -> Option<SlabPlace> {
    (cache != 0).then_some(SlabPlace { cache, offset: (offset != u32::MAX).then_some(offset) })
}

pub(super) fn comm(bytes: &[i8; 16]) -> String {
    chars(bytes)
}

/// What is before the first NUL.
pub(super) fn chars(bytes: &[i8]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn add_counters(sum: &mut types::counters, one: &types::counters) {
    for (total, n) in sum.lost.iter_mut().zip(one.lost) {
        *total += n;
    }
    for (total, n) in sum.events.iter_mut().zip(one.events) {
        *total += n;
    }
}

pub fn event_counts(counters: &types::counters, hooks_attached: u64) -> EventCounts {
    use types::event_count as E;
    let count = |which: E| counters.events[which.0 as usize];
    EventCounts {
        hooks_attached,
        foreign_releases: count(E::FOREIGN_RELEASES),
        events_seen: count(E::EVENTS_SEEN),
        waits_begun: count(E::WAITS_BEGUN),
        waits_ended: count(E::WAITS_ENDED),
        futex_retries: count(E::FUTEX_RETRIES),
        futex_merged: count(E::FUTEX_MERGED),
    }
}

pub fn losses(counters: &types::counters) -> Vec<Loss> {
    (0..types::loss_reason::LOSS_COUNT.0)
        .map(|reason| {
            let (name, meaning) = loss_words(types::loss_reason(reason));
            Loss { reason: name.into(), count: counters.lost[reason as usize], meaning: meaning.into() }
        })
        .collect()
}

/// The stable name of a loss and what it means. `LOSS_REASONS` of lockprof.h, in its order.
fn loss_words(reason: types::loss_reason) -> (&'static str, &'static str) {
    use types::loss_reason as L;
    match reason {
        L::LOSS_SITES_MAP_FULL => {
            ("sites_map_full", "waits not counted: more waiting sites than --map-entries")
        }
        L::LOSS_LOCKS_MAP_FULL => (
            "locks_map_full",
            "waits missing from histograms and percentiles: more locks than --map-entries / 4",
        ),
        L::LOSS_STACKS_MAP_FULL => {
            ("stacks_map_full", "stacks shown as lost: more distinct stacks than --map-entries")
        }
        L::LOSS_WAITS_MAP_FULL => {
            ("waits_map_full", "waits not seen: more threads waiting at once than --map-entries")
        }
        L::LOSS_OWNERS_MAP_FULL => {
            ("owners_map_full", "waits whose owner is not listed: more owning threads than --map-entries")
        }
        L::LOSS_FUTEX_WAITS_MAP_FULL => (
            "futex_waits_map_full",
            "futex waits not seen: more threads that ever waited for one than --map-entries",
        ),
        L::LOSS_THREADS_MAP_FULL => (
            "threads_map_full",
            "threads that are not believed to own a user lock: more threads than --map-entries",
        ),
        L::LOSS_RELEASES_MAP_FULL => (
            "releases_map_full",
            "wakes of a waiter that are not listed: more pairs of threads and stacks than --map-entries",
        ),
        L::LOSS_BLAMES_MAP_FULL => (
            "blames_map_full",
            "waits charged to no holder: more holders and stacks of holders than --map-entries",
        ),
        L::LOSS_PAIRS_MAP_FULL => (
            "pairs_map_full",
            "waits missing from who waited for whom: more pairs of stacks than --map-entries",
        ),
        L::LOSS_WATCHED_MAP_FULL => (
            "watched_map_full",
            "holders whose running and sleeping is not told: more threads that wait or hold than --map-entries",
        ),
        L::LOSS_FUTEX_HOLDS_TOO_DEEP => (
            "futex_holds_too_deep",
            "contended holds of user locks not timed: the thread held more than 4 it had waited for",
        ),
        L::LOSS_HELD_MAP_FULL => {
            ("held_map_full", "holds not timed: more locks held at once than --map-entries")
        }
        L::LOSS_HOLDS_MAP_FULL => {
            ("holds_map_full", "acquisitions not counted: more locks taken than --map-entries")
        }
        L::LOSS_TARGETS_MAP_FULL => {
            ("targets_map_full", "child processes not followed: more than --map-entries")
        }
        L::LOSS_RING_BUFFER_FULL => (
            "ring_buffer_full",
            "notices about new stacks lost: a process that exited early may be shown without symbols",
        ),
        L::LOSS_KERNEL_STACK_FAILED => {
            ("kernel_stack_failed", "kernel stacks shown as lost: bpf_get_stack failed")
        }
        L::LOSS_USER_STACK_FAILED => (
            "user_stack_failed",
            "user stacks shown as lost: bpf_get_stack failed (paged out, or no user stack)",
        ),
        L::LOSS_STACK_SCRATCH_RACED => {
            ("stack_scratch_raced", "stacks shown as lost: the program was preempted while it took them")
        }
        L::LOSS_STACK_TRUNCATED => {
            ("stack_truncated", "stacks deeper than 127 frames: their outermost frames are missing")
        }
        L::LOSS_UNWIND_NO_TABLE => (
            "unwind_no_table",
            "waits whose user stack was taken by frame pointers: the process was too new to have an unwind table",
        ),
        L::LOSS_UNWIND_NO_RULE => (
            "unwind_no_rule",
            "waits whose user stack ends early: code without (supported) unwind information, or mapped just before",
        ),
        L::LOSS_UNWIND_READ_FAILED => (
            "unwind_read_failed",
            "waits whose user stack ends early: its memory could not be read (paged out, or damaged)",
        ),
        L::LOSS_UNPAIRED_BEGIN => ("unpaired_begin", "waits not counted: their end was never seen"),
        L::LOSS_UNPAIRED_END => (
            "unpaired_end",
            "waits not counted: their begin was not seen (waiting before the profile started, or a lost begin)",
        ),
        L::LOSS_SPIN_IN_LOCKPROF => (
            "spin_in_lockprof",
            "spin waits not counted: they came while lockprof itself was at work on that CPU",
        ),
        L::LOSS_SPIN_SITES_FULL => (
            "spin_sites_full",
            "spin waits not counted: more waiting sites on one CPU than --map-entries / CPUs",
        ),
        L::LOSS_SPIN_LOCKS_FULL => (
            "spin_locks_full",
            "spin waits missing from histograms and percentiles: more locks on one CPU than --map-entries / 4 / CPUs",
        ),
        L::LOSS_SPIN_STACKS_FULL => (
            "spin_stacks_full",
            "stacks of spin waits shown as lost: more distinct ones on one CPU than --map-entries / CPUs",
        ),
        L::LOSS_SPIN_HOLDS_FULL => (
            "spin_holds_full",
            "spinlock acquisitions not counted: more locks on one CPU than 2 × --map-entries / CPUs",
        ),
        L::LOSS_SPIN_HELD_TOO_DEEP => {
            ("spin_held_too_deep", "spinlock holds not timed: more than 16 held by one CPU")
        }
        L::LOSS_SPIN_QUEUES_FULL => (
            "spin_queues_full",
            "spin waits charged to nobody: more contended spinlocks than --map-entries / 4",
        ),
        L::LOSS_SPIN_BLAMES_FULL => (
            "spin_blames_full",
            "spin waits charged to no holder: more holders on one CPU than --map-entries / CPUs",
        ),
        L::LOSS_SPIN_TOO_DEEP => ("spin_too_deep", "spin waits not counted: more than 8 open on one CPU"),
        L::LOSS_LOST_RELEASE => {
            ("lost_release", "holds not timed: the lock was acquired again before a release was seen")
        }
        L::LOSS_UNMATCHED_RELEASE => {
            ("unmatched_release", "holds not timed: acquired before the profile, or where it was not seen")
        }
        _ => unreachable!("the wire knows no other loss"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_kind_has_one_wire_kind() {
        let known: Vec<LockKind> = (0..types::lock_kind::KIND_COUNT.0).filter_map(kind).collect();
        assert_eq!(known, LockKind::ALL);
    }

    #[test]
    fn the_histogram_of_bpf_and_of_the_model_have_one_layout() {
        assert_eq!(types::lock_stats::default().hist.len(), crate::model::BUCKETS);
    }

    #[test]
    fn records_have_the_size_the_c_side_asserts() {
        assert_eq!(size_of::<types::site_key>(), 40);
        assert_eq!(size_of::<types::futex_wait>(), 440);
        assert_eq!(size_of::<types::site_stats>(), 56);
        assert_eq!(size_of::<types::lock_stats>(), 3024);
        assert_eq!(size_of::<types::wait>(), 136);
        assert_eq!(size_of::<types::spin_site>(), 96);
        assert_eq!(size_of::<types::spin_stack>(), 1032);
        assert_eq!(size_of::<types::stack>(), 1024);
        assert_eq!(size_of::<types::unwind_mapping>(), 24);
        assert_eq!(types::process::default().mapping.len(), crate::unwind::MAX_MAPPINGS);
        assert_eq!(size_of::<crate::unwind::Row>(), 8);
    }

    #[test]
    fn every_loss_has_words_of_its_own() {
        let losses = losses(&types::counters::default());
        let names: std::collections::BTreeSet<_> = losses.iter().map(|loss| &loss.reason).collect();
        assert_eq!(names.len(), types::loss_reason::LOSS_COUNT.0 as usize);
    }

    #[test]
    fn a_fresh_entry_has_no_minimum() {
        let stats = wait_stats(&types::site_stats { aborted: 3, ..Default::default() }, true);
        assert_eq!((stats.wait_min_ns, stats.wait_max_ns), (None, None));
    }
}
