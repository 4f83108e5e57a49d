//! Which kind of lock a PREEMPT_RT kernel's waiter really waits for.
//!
//! There a mutex, a spinlock_t and an rt_mutex are all made of struct rt_mutex_base and say
//! contention_begin alike, and so do rw_semaphore and rwlock_t, made of struct rwbase_rt. The function
//! that was called to take the lock tells them apart, and it is in the stack. Names of other kernels'
//! functions say what the tracepoint said, so nothing changes for them.

use super::callsite;
use crate::model::{Lock, LockKind, Profile, StackRef};
use std::collections::{BTreeMap, HashMap};

/// offsetof(struct rwbase_rt, rtmutex): a writer behind another one waits for this part of the lock, and
/// says so. Also in bpf/core.bpf.h.
const RWBASE_RTMUTEX: u64 = 8;

/// Gives such locks their kind and address, and makes one row of those that are one lock.
pub fn refine(profile: &mut Profile) {
    let kinds: Vec<Option<LockKind>> = profile.locks.iter().map(|lock| kind_of(lock, profile)).collect();
    let mut changed = false;
    for (lock, kind) in profile.locks.iter_mut().zip(kinds) {
        let Some(kind) = kind.filter(|kind| *kind != lock.kind) else { continue };
        if lock.kind == LockKind::RtMutex && is_made_of_rwbase(kind) {
            lock.addr = lock.addr.wrapping_sub(RWBASE_RTMUTEX);
        }
        lock.kind = kind;
        changed = true;
    }
    if !changed {
        return;
    }
    let mut rows: HashMap<(LockKind, u64, Option<u32>), usize> = HashMap::new();
    let mut locks: Vec<Lock> = Vec::with_capacity(profile.locks.len());
    for lock in std::mem::take(&mut profile.locks) {
        match rows.get(&(lock.kind, lock.addr, lock.pid)) {
            Some(row) => locks[*row].merge(lock),
            None => {
                rows.insert((lock.kind, lock.addr, lock.pid), locks.len());
                locks.push(lock);
            }
        }
    }
    Lock::rank(&mut locks);
    profile.locks = locks;
}

fn is_made_of_rwbase(kind: LockKind) -> bool {
    use LockKind::*;
    matches!(kind, RwsemRead | RwsemWrite | RwlockRead | RwlockWrite)
}

/// The kind of the lock by the function that took it where it was waited for longest; `None` when the
/// kind is certain already, or no stack tells.
fn kind_of(lock: &Lock, profile: &Profile) -> Option<LockKind> {
    if !matches!(lock.kind, LockKind::RtMutex | LockKind::RwsemRead | LockKind::RwsemWrite) {
        return None;
    }
    let ended = lock
        .sites
        .iter()
        .map(|site| (site.kernel_stack, site.wait.wait_total_ns.saturating_add(site.wait.aborted_total_ns)));
    let ongoing = lock.in_flight.iter().map(|wait| (wait.kernel_stack, wait.age_ns));
    let mut weights: BTreeMap<LockKind, u64> = BTreeMap::new();
    for (stack, weight) in ended.chain(ongoing) {
        let StackRef::Stack(index) = stack else { continue };
        let Some(stack) = profile.stacks.get(index as usize) else { continue };
        let functions = callsite::lock_functions(stack, &profile.frames);
        // The outermost that tells: below it is what it is made of.
        if let Some(kind) = functions.iter().rev().find_map(|name| kind_taken_by(name)) {
            let sum = weights.entry(kind).or_default();
            *sum = sum.saturating_add(weight);
        }
    }
    weights.into_iter().max_by_key(|(_, weight)| *weight).map(|(kind, _)| kind)
}

/// By the name of a function of the locking interface (kernel/locking/rtmutex_api.c, ww_rt_mutex.c,
/// spinlock_rt.c, rwsem.c).
fn kind_taken_by(function: &str) -> Option<LockKind> {
    let function = function.trim_start_matches('_');
    let kinds = [
        ("rt_mutex_lock", LockKind::RtMutex),
        ("mutex_lock", LockKind::Mutex),
        ("ww_mutex_lock", LockKind::Mutex),
        ("rt_spin_lock", LockKind::Spinlock),
        ("rt_read_lock", LockKind::RwlockRead),
        ("rt_write_lock", LockKind::RwlockWrite),
        ("down_read", LockKind::RwsemRead),
        ("down_write", LockKind::RwsemWrite),
        // What down_write() jumps to, and so is not in the stack; rt_write_lock() always is.
        ("rwbase_read_lock", LockKind::RwsemRead),
        ("rwbase_write_lock", LockKind::RwsemWrite),
    ];
    kinds.into_iter().find(|(name, _)| function.starts_with(name)).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{empty_profile, lock};
    use super::*;
    use crate::model::{Frame, Function, Hist, HoldStats, Site, Space, Stack, WaitStats};

    /// Adds a lock that one site of each stack (`leaf; …; outermost`) waited for.
    fn add(profile: &mut Profile, kind: LockKind, addr: u64, sites: &[(&str, u64)]) {
        let mut row = lock(kind, addr);
        for (text, wait_ns) in sites {
            let mut stack = Stack { frames: Vec::new(), incomplete: false };
            for name in text.split("; ") {
                let mut frame = Frame::unsymbolized(Space::Kernel, None, 0xffffffff81000000, false);
                frame.functions = vec![Function { name: name.to_string(), file: None, line: None }];
                profile.frames.push(frame);
                stack.frames.push(profile.frames.len() as u32 - 1);
            }
            let index = profile.stacks.iter().position(|known| names(profile, known) == *text);
            let index = index.unwrap_or_else(|| {
                profile.stacks.push(stack);
                profile.stacks.len() - 1
            });
            let wait = WaitStats {
                contended: 1,
                wait_total_ns: *wait_ns,
                wait_min_ns: Some(*wait_ns),
                wait_max_ns: Some(*wait_ns),
                ..WaitStats::default()
            };
            row.wait.merge(&wait);
            row.sites.push(Site {
                pid: 1,
                kernel_stack: StackRef::Stack(index as u32),
                user_stack: StackRef::NotTaken,
                futex: None,
                wait,
            });
        }
        row.hist = Some(Hist::from_values(sites.iter().map(|(_, wait_ns)| *wait_ns)));
        profile.locks.push(row);
    }

    fn names(profile: &Profile, stack: &Stack) -> String {
        let names =
            stack.frames.iter().map(|frame| profile.frames[*frame as usize].functions[0].name.as_str());
        names.collect::<Vec<_>>().join("; ")
    }

    fn refined(kind: LockKind, stack: &str) -> (LockKind, u64) {
        let mut profile = empty_profile();
        add(&mut profile, kind, 0x1008, &[(stack, 5)]);
        refine(&mut profile);
        (profile.locks[0].kind, profile.locks[0].addr)
    }

    #[test]
    fn the_function_that_took_the_lock_tells_its_kind() {
        const TP: &str = "bpf_prog_1_contention_begin; bpf_trace_run2; __traceiter_contention_begin";
        for (said, stack, kind, addr) in [
            (
                LockKind::RtMutex,
                "rt_mutex_slowlock.constprop.0; mutex_lock; pipe_write",
                LockKind::Mutex,
                0x1008,
            ),
            (LockKind::RtMutex, "rt_mutex_slowlock; mutex_lock_killable; x", LockKind::Mutex, 0x1008),
            (LockKind::RtMutex, "__rt_mutex_slowlock_locked; ww_mutex_lock; drm", LockKind::Mutex, 0x1008),
            (LockKind::RtMutex, "rt_mutex_slowlock; rt_mutex_lock; i2c", LockKind::RtMutex, 0x1008),
            (
                LockKind::RtMutex,
                "rtlock_slowlock_locked; rt_spin_lock; try_to_wake_up",
                LockKind::Spinlock,
                0x1008,
            ),
            // by the rt_mutex inside, 8 bytes further on
            (
                LockKind::RtMutex,
                "rt_mutex_slowlock; down_write; open_last_lookups",
                LockKind::RwsemWrite,
                0x1000,
            ),
            (
                LockKind::RtMutex,
                "rtlock_slowlock_locked; rwbase_write_lock; rt_write_lock; x",
                LockKind::RwlockWrite,
                0x1000,
            ),
            (
                LockKind::RwsemRead,
                "__rwbase_read_lock; rt_read_lock; ep_poll_callback",
                LockKind::RwlockRead,
                0x1008,
            ),
            (LockKind::RwsemWrite, "rwbase_write_lock; rt_write_lock; x", LockKind::RwlockWrite, 0x1008),
            (LockKind::RwsemRead, "__rwbase_read_lock; down_read; iterate_dir", LockKind::RwsemRead, 0x1008),
            // a caller that is a lock function elsewhere in the stack says nothing
            (LockKind::RtMutex, "rt_mutex_slowlock; caller; mutex_lock; x", LockKind::RtMutex, 0x1008),
            // other kernels
            (LockKind::RtMutex, "rt_mutex_slowlock; rt_mutex_lock_nested; x", LockKind::RtMutex, 0x1008),
            (
                LockKind::RwsemWrite,
                "rwsem_down_write_slowpath; down_write_killable; x",
                LockKind::RwsemWrite,
                0x1008,
            ),
            (LockKind::Mutex, "__mutex_lock; rt_spin_lock; x", LockKind::Mutex, 0x1008),
        ] {
            assert_eq!(refined(said, &format!("{TP}; {stack}")), (kind, addr), "{stack}");
        }
    }

    #[test]
    fn the_longest_wait_decides() {
        let mut profile = empty_profile();
        let sites = [("rt_spin_lock; a", 5), ("mutex_lock; b", 9), ("rt_spin_lock; c", 5)];
        add(&mut profile, LockKind::RtMutex, 0x1000, &sites);
        refine(&mut profile);
        assert_eq!(profile.locks[0].kind, LockKind::Spinlock);
    }

    #[test]
    fn rows_that_turn_out_to_be_one_lock_are_united() {
        let mut profile = empty_profile();
        add(&mut profile, LockKind::Spinlock, 0x5000, &[("native_queued_spin_lock_slowpath; a", 40)]);
        add(&mut profile, LockKind::RwsemWrite, 0x1000, &[("down_write; a", 10), ("down_write; b", 7)]);
        add(&mut profile, LockKind::RtMutex, 0x1008, &[("down_write; a", 30)]);
        let mut held = lock(LockKind::RwsemWrite, 0x1000);
        held.hold = Some(HoldStats { acquired: 4, holds: 3, hold_total_ns: 90, hold_max_ns: Some(50) });
        profile.locks.push(held);
        refine(&mut profile);

        assert_eq!(profile.locks.len(), 2);
        let row = &profile.locks[0];
        assert_eq!((row.kind, row.addr), (LockKind::RwsemWrite, 0x1000));
        assert_eq!((row.wait.contended, row.wait.wait_total_ns), (3, 47));
        assert_eq!((row.wait.wait_min_ns, row.wait.wait_max_ns), (Some(7), Some(30)));
        assert_eq!(row.hist.as_ref().map(Hist::count), Some(3));
        assert_eq!(row.hold.map(|hold| hold.acquired), Some(4));
        let sites: Vec<_> =
            row.sites.iter().map(|site| (site.wait.contended, site.wait.wait_total_ns)).collect();
        assert_eq!(sites, [(2, 40), (1, 7)], "one row for each stack, the longest first");

        let once = profile.clone();
        refine(&mut profile);
        assert_eq!(profile, once);
    }
}
