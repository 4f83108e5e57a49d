//! Raw capture → [`Profile`] with addresses: rows per lock, sites in order, waits in flight.

use crate::model::{
    Blame, BlameGap, Chain, Frame, Hist, Holder, HookLine, InFlight, Lock, LockId, Meta, Owners, Pair, Party,
    Profile, RawBlame, RawCapture, RawFrames, RawParty, RawStack, Releaser, SCHEMA, Site, SiteId, Space,
    Stack, StackRef, Wakes,
};
use std::collections::HashMap;

/// Frames and stacks of one profile, each kept once.
struct Table<'c> {
    raw: &'c HashMap<u64, RawFrames>,
    frames: Vec<Frame>,
    frame_ids: HashMap<(Space, Option<u32>, u64, bool), u32>,
    stacks: Vec<Stack>,
    stack_ids: HashMap<(u64, Option<u32>), u32>,
}

impl Table<'_> {
    /// A user stack belongs to a process: the same addresses mean other code in another one.
    fn stack(&mut self, raw: RawStack, space: Space, pid: Option<u32>) -> StackRef {
        let id = match raw {
            RawStack::Id(id) => id,
            RawStack::Lost => return StackRef::Lost,
            RawStack::NotTaken => return StackRef::NotTaken,
        };
        if let Some(index) = self.stack_ids.get(&(id, pid)) {
            return StackRef::Stack(*index);
        }
        let Some(raw) = self.raw.get(&id) else { return StackRef::Lost };
        let frames = raw
            .pcs
            .iter()
            .enumerate()
            .map(|(depth, addr)| {
                let key = (space, pid, *addr, depth == 0);
                *self.frame_ids.entry(key).or_insert_with(|| {
                    self.frames.push(Frame::unsymbolized(space, pid, *addr, depth == 0));
                    self.frames.len() as u32 - 1
                })
            })
            .collect();
        self.stacks.push(Stack { frames, incomplete: raw.incomplete });
        let index = self.stacks.len() as u32 - 1;
        self.stack_ids.insert((id, pid), index);
        StackRef::Stack(index)
    }

    fn of_site(&mut self, site: &SiteId) -> (StackRef, StackRef) {
        (
            self.stack(site.kernel_stack, Space::Kernel, None),
            self.stack(site.user_stack, Space::User, Some(site.pid)),
        )
    }
}

/// Builds the profile. `capture.losses` and `capture.events` are taken over as they are.
pub fn profile(capture: RawCapture, meta: Meta, plan: Vec<HookLine>) -> Profile {
    let mut table = Table {
        raw: &capture.stacks,
        frames: Vec::new(),
        frame_ids: HashMap::new(),
        stacks: Vec::new(),
        stack_ids: HashMap::new(),
    };
    let mut locks: HashMap<LockId, Lock> = HashMap::new();

    for (id, wait) in &capture.sites {
        let (kernel_stack, user_stack) = table.of_site(id);
        let lock = locks.entry(id.lock).or_insert_with(|| Lock::new(id.lock.kind, id.lock.addr, id.lock.pid));
        lock.wait.merge(wait);
        lock.sites.push(Site { pid: id.pid, kernel_stack, user_stack, futex: id.futex, wait: *wait });
    }
    for wait in &capture.in_flight {
        let (kernel_stack, user_stack) = table.of_site(&wait.site);
        let begin_ns = wait.begin_ns.max(capture.start_ns);
        locks
            .entry(wait.site.lock)
            .or_insert_with(|| Lock::new(wait.site.lock.kind, wait.site.lock.addr, wait.site.lock.pid))
            .in_flight
            .push(InFlight {
                pid: wait.site.pid,
                tid: wait.tid,
                comm: wait.comm.clone(),
                age_ns: capture.stop_ns.saturating_sub(begin_ns),
                owner: wait.owner.clone(),
                kernel_stack,
                user_stack,
                futex: wait.site.futex,
                from_before: wait.from_before,
            });
    }
    for (id, hold) in &capture.holds {
        // Acquired, and nobody ever waited: still a lock of this profile.
        locks.entry(*id).or_insert_with(|| Lock::new(id.kind, id.addr, id.pid)).hold = Some(*hold);
    }
    for (id, raw) in &capture.locks {
        // A futex that was only woken is no contended lock.
        let Some(lock) = locks.get_mut(id) else { continue };
        let hist = Hist::from_dense(&raw.hist);
        lock.wait.wait_max_ns = at_least(lock.wait.wait_max_ns, hist.highest_low_ns());
        // Its waits may all be going on.
        lock.hist = (!hist.buckets.is_empty()).then_some(hist);
        if capture.kinds_with_releases.contains(&id.kind) {
            lock.contended_releases = Some(raw.contended_releases);
        }
        if raw.begun_unowned + raw.begun_read_owned > 0 {
            let owners = lock.owners.get_or_insert_default();
            owners.nobody = raw.begun_unowned;
            owners.readers = raw.begun_read_owned;
        }
        if id.kind.is_user() {
            lock.wakes = Some(Wakes { calls: raw.wake_calls, woken: raw.woken, all: raw.wake_all_calls });
            lock.several_waiters = raw.several_waiters;
        }
    }

    for (id, hold) in &capture.contended_holds {
        if let Some(lock) = locks.get_mut(id) {
            lock.contended_hold = Some(*hold);
        }
    }
    for (id, waker, wakee_tid, stack, woken) in &capture.releasers {
        let Some(lock) = locks.get_mut(id) else { continue };
        let user_stack = table.stack(*stack, Space::User, Some(waker.pid));
        let (waker, wakee_tid, woken) = (waker.clone(), *wakee_tid, *woken);
        lock.releasers.push(Releaser { waker, wakee_tid, user_stack, woken });
    }
    for (id, thread, waits) in &capture.owners {
        let Some(lock) = locks.get_mut(id) else { continue };
        lock.owners.get_or_insert_default().tasks.push((thread.clone(), *waits));
    }

    charge(&capture, &mut table, &mut locks);

    let mut locks: Vec<Lock> = locks.into_values().collect();
    locks.iter_mut().filter_map(|lock| lock.owners.as_mut()).for_each(Owners::rank);
    Lock::rank(&mut locks);
    Profile {
        schema: SCHEMA.to_string(),
        meta,
        plan,
        events: capture.events,
        losses: capture.losses.clone(),
        locks,
        stacks: table.stacks,
        frames: table.frames,
        naming: None,
    }
}

/// Every lock that was waited for gets its account; of the two sides of a reader-writer lock, one.
fn charge(capture: &RawCapture, table: &mut Table<'_>, locks: &mut HashMap<LockId, Lock>) {
    let waited: Vec<LockId> =
        locks.iter().filter(|(_, lock)| lock.weight_ns() > 0).map(|(id, _)| *id).collect();
    for id in waited {
        let queue = id.queue();
        let raw = capture.blames.get(&queue);
        // The account is at the write side, if anybody waited to write.
        let is_shown_there = queue != id && locks.get(&queue).is_some_and(|lock| lock.weight_ns() > 0);
        let Some(lock) = locks.get_mut(&id) else { continue };
        lock.blame = match raw {
            Some(_) if is_shown_there => None,
            Some(raw) => {
                if capture.scheduler_watched && id.kind != crate::model::LockKind::Spinlock {
                    lock.woken_to_running_ns = Some(raw.woken_to_running_ns);
                }
                Some(blame(raw, table, capture.scheduler_watched))
            }
            None => {
                let mut blame = Blame::default();
                blame.leave_unattributed(BlameGap::NoReleaseEvent, None, lock.weight_ns());
                Some(blame)
            }
        };
    }
}

fn blame(raw: &RawBlame, table: &mut Table<'_>, scheduler_watched: bool) -> Blame {
    let mut blame = Blame {
        handoff_ns: raw.handoff_ns,
        handoffs: raw.handoffs,
        unreleased_ns: raw.unreleased_ns,
        unreleased_by: raw.unreleased_by.clone(),
        uncounted_ns: raw.uncounted_ns,
        wanted_ns: raw.wanted_ns,
        idle_while_wanted_ns: raw.idle_while_wanted_ns,
        ..Default::default()
    };
    for part in &raw.unattributed {
        blame.leave_unattributed(part.reason, part.thread.clone(), part.waited_ns);
    }
    for holder in &raw.holders {
        let pid = Some(holder.thread.pid);
        blame.holders.push(Holder {
            thread: holder.thread.clone(),
            kernel_stack: table.stack(holder.kernel_stack, Space::Kernel, None),
            user_stack: table.stack(holder.user_stack, Space::User, pid),
            evidence: holder.evidence,
            blamed_ns: holder.blamed_ns,
            chained_ns: holder.chained_ns,
            holds: holder.holds,
            wanted_ns: holder.wanted_ns,
            states: (scheduler_watched && holder.states.total_ns() > 0).then_some(holder.states),
        });
    }
    let mut party = |raw: &RawParty| Party {
        pid: raw.pid,
        comm: raw.comm.clone(),
        kernel_stack: table.stack(raw.kernel_stack, Space::Kernel, None),
        user_stack: table.stack(raw.user_stack, Space::User, Some(raw.pid)),
    };
    for (waiter, holder, waited_ns) in &raw.pairs {
        blame.pairs.push(Pair { waiter: party(waiter), holder: party(holder), waited_ns: *waited_ns });
    }
    for (through, other, waited_ns) in &raw.chains {
        let (through, waited_ns) = (through.clone(), *waited_ns);
        blame.chains.push(Chain { through, kind: other.kind, addr: other.addr, pid: other.pid, waited_ns });
    }
    blame.rank();
    blame
}

/// See raise_max() in bpf/core.bpf.h: the histogram corrects a maximum that lost a race.
fn at_least(max: Option<u64>, low: Option<u64>) -> Option<u64> {
    max.map(|max| max.max(low.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndReason, LockKind, RawLock, RawWait, Target, TargetKind, WaitStats, bucket_of};

    fn meta() -> Meta {
        Meta {
            version: "0".into(),
            command: vec![],
            hostname: "h".into(),
            kernel: "6.1".into(),
            arch: "x86_64".into(),
            cpus: 2,
            start_unix_s: 0,
            duration_ns: 1000,
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
        }
    }

    fn lock(addr: u64) -> LockId {
        LockId { kind: LockKind::Mutex, addr, pid: None }
    }

    fn site(addr: u64, pid: u32, kernel: u64) -> SiteId {
        SiteId {
            lock: lock(addr),
            pid,
            kernel_stack: RawStack::Id(kernel),
            user_stack: RawStack::NotTaken,
            futex: None,
        }
    }

    fn frames(pcs: &[u64]) -> RawFrames {
        RawFrames { pcs: pcs.to_vec(), incomplete: false }
    }

    fn waits(contended: u64, total: u64) -> WaitStats {
        WaitStats {
            contended,
            wait_total_ns: total,
            wait_min_ns: Some(total / contended),
            wait_max_ns: Some(total / contended),
            ..Default::default()
        }
    }

    #[test]
    fn sites_of_one_lock_are_one_row_and_add_up() {
        let capture = RawCapture {
            sites: vec![
                (site(1, 7, 10), waits(2, 20)),
                (site(1, 8, 11), waits(1, 100)),
                (site(2, 7, 10), waits(1, 5)),
            ],
            stacks: HashMap::from([(10, frames(&[0xa, 0xb])), (11, frames(&[0xc, 0xb]))]),
            ..Default::default()
        };
        let profile = profile(capture, meta(), vec![]);
        assert_eq!(profile.locks.len(), 2);
        let first = &profile.locks[0];
        assert_eq!((first.addr, first.wait.contended, first.wait.wait_total_ns), (1, 3, 120));
        assert_eq!((first.wait.wait_min_ns, first.wait.wait_max_ns), (Some(10), Some(100)));
        assert_eq!(first.sites[0].pid, 8, "the longest waiting site comes first");
        assert_eq!(profile.frames.len(), 3, "a frame two stacks share is kept once");
    }

    #[test]
    fn a_lock_that_only_hangs_is_ranked_by_the_age_of_its_waits() {
        let capture = RawCapture {
            sites: vec![(site(1, 7, 10), waits(1, 100))],
            in_flight: vec![RawWait {
                site: site(2, 7, 10),
                tid: 70,
                comm: "t".into(),
                begin_ns: 500,
                owner: None,
                from_before: false,
            }],
            stop_ns: 1500,
            ..Default::default()
        };
        let profile = profile(capture, meta(), vec![]);
        assert_eq!(profile.locks[0].addr, 2);
        assert_eq!(profile.locks[0].in_flight[0].age_ns, 1000);
        assert_eq!(profile.locks[0].wait.contended, 0);
    }

    #[test]
    fn a_stack_that_did_not_fit_is_lost_and_its_wait_is_not() {
        let capture = RawCapture { sites: vec![(site(1, 7, 99), waits(1, 100))], ..Default::default() };
        let profile = profile(capture, meta(), vec![]);
        assert_eq!(profile.locks[0].sites[0].kernel_stack, StackRef::Lost);
        assert_eq!(profile.locks[0].wait.wait_total_ns, 100);
    }

    #[test]
    fn user_frames_of_two_processes_are_not_shared() {
        let of = |pid| SiteId {
            lock: lock(1),
            pid,
            kernel_stack: RawStack::NotTaken,
            user_stack: RawStack::Id(10),
            futex: None,
        };
        let capture = RawCapture {
            sites: vec![(of(7), waits(1, 1)), (of(8), waits(1, 1))],
            stacks: HashMap::from([(10, frames(&[0xa]))]),
            ..Default::default()
        };
        assert_eq!(profile(capture, meta(), vec![]).frames.len(), 2);
    }

    #[test]
    fn the_histogram_raises_a_maximum_that_lost_a_race() {
        let mut hist = vec![0; crate::model::BUCKETS];
        hist[bucket_of(1 << 20)] = 1;
        let capture = RawCapture {
            sites: vec![(site(1, 7, 10), waits(1, 100))],
            locks: HashMap::from([(lock(1), RawLock { hist, ..Default::default() })]),
            ..Default::default()
        };
        assert_eq!(profile(capture, meta(), vec![]).locks[0].wait.wait_max_ns, Some(1 << 20));
    }
}
