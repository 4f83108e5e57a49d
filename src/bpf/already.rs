//! Threads that waited for a futex before the profile: their waits are put where BPF would have put them, so that
//! it sees their ends, and those that never end are shown.

use super::blame_wire;
use super::load::{TargetThread, Tracer};
use super::skel::types;
use super::wire;
use crate::unwind::WalkEnd;
use anyhow::{Context, Result};
use libbpf_rs::{ErrorKind, MapCore, MapFlags};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The words of [futex - 40, futex + 40). `struct futex_words` of lockprof.h.
pub type Words = [u32; 20];

/// A thread that waits, found from outside.
#[derive(Clone, Debug)]
pub struct WaitingThread<'w> {
    pub pid: u32,
    pub tid: u32,
    pub comm: &'w str,
    pub uaddr: u64,
    /// FUTEX_* command and flags; 0x7f is futex_waitv(2).
    pub op: u32,
    pub value: u32,
    pub timeout: bool,
    pub sp: u64,
    /// `None`: they can not be read.
    pub words: Option<&'w Words>,
    /// Innermost first.
    pub pcs: &'w [u64],
    pub end: WalkEnd,
}

/// Threads by (pid namespace, number there).
pub type ThreadsByNumber<'t> = HashMap<(u32, u32), &'t TargetThread>;

impl Tracer {
    /// Before [`Tracer::activate`].
    pub fn add_waiting(
        &mut self,
        waiting: &WaitingThread<'_>,
        begin_ns: u64,
        pid_namespace: u32,
        threads: &ThreadsByNumber<'_>,
    ) -> Result<()> {
        let find = |number: u32, any: bool| {
            let thread = threads.get(&(pid_namespace, number))?;
            (any || thread.pid == waiting.pid).then_some(*thread)
        };
        let (bits, owner) = look_at(waiting, &find);
        let pi = is_pi(waiting.op);
        let kind = if pi { types::lock_kind::KIND_FUTEX_PI } else { types::lock_kind::KIND_FUTEX };
        let lock = types::lock_key { addr: waiting.uaddr, tgid: waiting.pid, kind: kind.0 };
        let mut wait = types::futex_wait {
            site: types::site_key {
                lock,
                kernel_stack: wire::STACK_NOT_TAKEN,
                user_stack: self.add_stack(waiting)?,
                tgid: waiting.pid,
                futex: bits,
            },
            begin_ns,
            uaddr: waiting.uaddr,
            from_before: 1,
            ..Default::default()
        };
        copy_comm(waiting.comm, &mut wait.comm);
        if let Some(owner) = owner {
            wait.owner = types::owner {
                state: types::owner_state::OWNER_TASK.0,
                tid: owner.tid,
                tgid: owner.pid,
                ..Default::default()
            };
            copy_comm(&owner.comm, &mut wait.owner.comm);
        }
        let maps = &self.skel().maps;
        // SAFETY: plain C structs of integers without padding.
        let key = unsafe { plain::as_bytes(&lock) };
        let mut stats: types::lock_stats =
            maps.locks.lookup(key, MapFlags::ANY)?.map(|bytes| wire::read(&bytes)).unwrap_or_default();
        stats.waiting += 1;
        blame_wire::add_early_waiter(&mut stats.queue, begin_ns, &wait.owner);
        wait.queued = 1;
        // SAFETY: as above.
        let stats = unsafe { plain::as_bytes(&stats) };
        match maps.locks.update(key, stats, MapFlags::ANY) {
            // It will be counted when the wait ends.
            Err(err) if err.kind() == ErrorKind::TooBig => wait.queued = 0,
            result => result.context("Failed to write the map of locks")?,
        }
        // SAFETY: as above.
        let value = unsafe { plain::as_bytes(&wait) };
        match maps.futex_waits.update(&waiting.tid.to_ne_bytes(), value, MapFlags::NO_EXIST) {
            Err(err) if err.kind() == ErrorKind::TooBig => {
                self.count_wait_without_room();
                Ok(())
            }
            Err(err) => Err(err).context("Failed to write the map of futex waits"),
            Ok(()) => {
                self.count_early_wait(1);
                Ok(())
            }
        }
    }

    /// It had gone on before the hooks were active.
    pub fn forget_waiting(&mut self, tid: u32) -> Result<()> {
        if self.forget_early_wait(tid).context("Failed to forget a wait that is over")? {
            self.count_early_wait(-1);
        }
        Ok(())
    }

    /// The id it is kept under; `STACK_LOST` when there is no room.
    fn add_stack(&self, waiting: &WaitingThread<'_>) -> Result<u64> {
        use types::stack_end as E;
        let end = match waiting.end {
            WalkEnd::Complete => E::STACK_COMPLETE,
            WalkEnd::Truncated => E::STACK_TRUNCATED,
            WalkEnd::NoRule => E::STACK_NO_RULE,
            WalkEnd::ReadFailed => E::STACK_READ_FAILED,
        };
        let mut stack = types::stack { end: end.0, ..Default::default() };
        for (to, pc) in stack.pcs.iter_mut().zip(waiting.pcs) {
            *to = *pc;
            stack.frames += 1;
        }
        let mut hasher = DefaultHasher::new();
        (waiting.pcs, end.0).hash(&mut hasher);
        // Any number but the two that stand for no stack.
        let id = hasher.finish() | 2;
        // SAFETY: a plain C struct of integers without padding.
        let value = unsafe { plain::as_bytes(&stack) };
        match self.skel().maps.stacks.update(&id.to_ne_bytes(), value, MapFlags::ANY) {
            Err(err) if err.kind() == ErrorKind::TooBig => Ok(STACK_LOST),
            result => result.map(|()| id).context("Failed to write the map of stacks"),
        }
    }
}

// lockprof.h
const STACK_LOST: u64 = 0;

fn copy_comm(from: &str, to: &mut [i8; 16]) {
    for (to, from) in to.iter_mut().zip(from.bytes().take(15)) {
        *to = from as i8;
    }
}

fn is_pi(op: u32) -> bool {
    matches!(op & 0x7f, 6 | 13)
}

/// site_key.futex and the owner: bpf/futex.bpf.h's look_at(), for a thread that is not the current one. A change
/// there is a change here. What parking_lot parked is not told: where the thread's own storage is, /proc does
/// not say.
fn look_at<'t>(
    waiting: &WaitingThread<'_>,
    find: &dyn Fn(u32, bool) -> Option<&'t TargetThread>,
) -> (u32, Option<&'t TargetThread>) {
    use super::futex_wire::*;
    use types::{futex_place as P, futex_value as V};
    let none = [0; 20];
    let words = waiting.words.unwrap_or(&none);
    let word = |offset: i32| words[(10 + offset / 4) as usize];
    let (op, value) = (waiting.op, waiting.value);
    let (plain, bitset, shared) = (op & 0x7f == 0, op & 0x7f == 9, op & PRIVATE == 0);
    let is_shared_flag = |word: u32| word == 0 || word == 128;

    let mut bits = op & (COMMAND | PRIVATE | CLOCK_REALTIME);
    if waiting.timeout {
        bits |= TIMEOUT;
    }
    if (waiting.sp..waiting.sp.saturating_add(65536)).contains(&waiting.uaddr) {
        bits |= P::PLACE_OWN_STACK.0 << PLACE_SHIFT;
    }
    if bitset {
        let few = 8..1 << 20;
        if few.contains(&word(-4)) || few.contains(&word(-8)) {
            bits |= WORDS_GLIBC_COND;
        }
        if value == 0 && (1..1 << 20).contains(&word(4)) && is_shared_flag(word(8)) {
            bits |= WORDS_GLIBC_SEM;
        }
        if word(-4) >> 31 == 1 && !waiting.timeout {
            bits |= WORDS_RUST_WRITERS;
        }
    }
    if plain && (1..=word(4)).contains(&word(-4)) && word(4) < 1 << 20 && is_shared_flag(word(8)) {
        bits |= WORDS_GLIBC_BARRIER;
    }

    // Without a timeout glibc says realtime all the same; Rust's mutex does not.
    let clocked = bitset && (waiting.timeout || op & CLOCK_REALTIME != 0);
    let rwlock = |futex_at: i32| {
        let is_zero = |at: i32| word(at - futex_at) == 0;
        !is_zero(0) && is_zero(16) && is_zero(20) && word(28 - futex_at) <= 1
    };
    let (candidate, if_it_lives) = if is_pi(op) {
        (word(0) & 0x3fff_ffff, 0)
    } else if !plain && !bitset {
        (0, 0)
    } else if value >> 30 == 1 && plain {
        (value & 0x3fff_ffff, 0)
    } else if value >> 31 == 1 {
        let tid = if value == u32::MAX { 0 } else { value & 0x3fff_ffff };
        (tid, V::VALUE_OWNED_BY_THREAD.0 << VALUE_SHIFT)
    } else if clocked && matches!(value, 2 | 3) && rwlock(8) {
        (word(16), WORDS_RWLOCK_PHASE)
    } else if clocked && matches!(value, 2 | 3) && rwlock(12) {
        (word(12), WORDS_RWLOCK_WRITERS)
    } else if value == 2 && (plain || waiting.timeout) {
        let valid = (1..0x10000).contains(&word(12)) && word(16) & !0x3ff == 0;
        (if valid { word(8) } else { 0 }, WORDS_GLIBC_MUTEX)
    } else if value >= 1 << 19 && value & 0x7ffff == 2 {
        (word(8), 0)
    } else if value > 3 && shared {
        (value, V::VALUE_THREAD.0 << VALUE_SHIFT)
    } else {
        (0, 0)
    };
    let mut owner = None;
    if let Some(thread) = (candidate != 0).then(|| find(candidate, shared)).flatten() {
        bits |= if_it_lives;
        owner = (if_it_lives != V::VALUE_THREAD.0 << VALUE_SHIFT).then_some(thread);
    } else if candidate == 0 && matches!(if_it_lives, WORDS_RWLOCK_PHASE | WORDS_RWLOCK_WRITERS) {
        bits |= if_it_lives;
    }
    if bits >> VALUE_SHIFT & 0xf == 0 {
        bits |= value_class(value).0 << VALUE_SHIFT;
    }
    (bits, owner)
}

fn value_class(value: u32) -> types::futex_value {
    use types::futex_value as V;
    match value {
        0 => V::VALUE_ZERO,
        1 => V::VALUE_ONE,
        2 => V::VALUE_TWO,
        3 => V::VALUE_THREE,
        5 => V::VALUE_FIVE,
        7 => V::VALUE_SEVEN,
        0xffff_ffff => V::VALUE_ALL_ONES,
        0x8000_0010 => V::VALUE_MUSL_BUSY,
        0x8000_0000 => V::VALUE_BIT_31,
        _ if value >> 31 == 1 => V::VALUE_NEGATIVE,
        _ if value >> 30 == 1 => V::VALUE_BIT_30,
        _ if value >= 1 << 19 && value & 0x7ffff == 2 => V::VALUE_CEILING,
        _ => V::VALUE_OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::super::futex_wire;
    use super::*;
    use crate::model::FutexValue;

    fn thread(tid: u32) -> TargetThread {
        TargetThread { pid_namespace: 1, tid_in_namespace: tid, pid: 7, tid, comm: "t".into() }
    }

    fn waiting(op: u32, value: u32, timeout: bool, words: &Words) -> WaitingThread<'_> {
        let (comm, words) = ("w", Some(words));
        let end = WalkEnd::Complete;
        WaitingThread { pid: 7, tid: 9, comm, uaddr: 0x1000, op, value, timeout, sp: 0, words, pcs: &[], end }
    }

    fn words(of: &[(i32, u32)]) -> Words {
        let mut words = [0; 20];
        for (offset, value) in of {
            words[(10 + offset / 4) as usize] = *value;
        }
        words
    }

    fn look(waiting: &WaitingThread<'_>) -> (crate::model::FutexCall, Option<u32>) {
        let owner = thread(42);
        let find = |number: u32, _any: bool| (number == 42).then_some(&owner);
        let (bits, owner) = look_at(waiting, &find);
        (futex_wire::call(bits), owner.map(|owner| owner.tid))
    }

    #[test]
    fn a_glibc_mutex_is_owned_by_the_living_thread_it_names() {
        let owned = words(&[(8, 42), (12, 1), (16, 0)]);
        let (call, owner) = look(&waiting(0x80, 2, false, &owned));
        assert!(call.words.glibc_mutex && owner == Some(42));
        let (call, owner) = look(&waiting(0x80, 2, false, &words(&[(8, 43), (12, 1)])));
        assert!(!call.words.glibc_mutex && owner.is_none());
    }

    #[test]
    fn both_words_of_a_glibc_rwlock_are_told_with_the_writer() {
        let (call, owner) = look(&waiting(0x189, 3, false, &words(&[(-8, 8), (16, 42)])));
        assert!(call.words.glibc_rwlock_phase && owner == Some(42));
        let (call, owner) = look(&waiting(0x189, 3, false, &words(&[(-12, 8), (-4, 3), (12, 42)])));
        assert!(call.words.glibc_rwlock_writers && owner == Some(42));
    }

    #[test]
    fn a_pi_word_and_a_robust_value_name_their_owner() {
        assert_eq!(look(&waiting(0x86, 0, false, &words(&[(0, 0x8000_0000 | 42)]))).1, Some(42));
        let (call, owner) = look(&waiting(0, 0x8000_0000 | 42, false, &words(&[])));
        assert_eq!((call.value, owner), (FutexValue::OwnedByThread, Some(42)));
    }

    #[test]
    fn a_thread_that_is_joined_owns_nothing() {
        let (call, owner) = look(&waiting(0x109, 42, false, &words(&[])));
        assert_eq!((call.value, owner), (FutexValue::Thread, None));
    }
}
