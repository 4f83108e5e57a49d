//! `swarm`: proves that a profiler says so when its tables overflow.
//!
//! Many distinct mutexes, each contended exactly once, reached through many distinct call stacks: path number
//! P is walked by its binary digits, one recursive call for each, so that paths differ in depth and in shape.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use serde_json::json;

use crate::Options;
use crate::clock::now_ns;
use crate::crew::{Crew, Hold, Job, Member, OrderedHold, Waiter, sum};
use crate::pthread::{PthreadMutex, check};
use crate::truth::{Attempt, FutexUse, LockRow, Outcome};

/// Goes down one call for each binary digit of `path`; returns how long the lock call took.
#[inline(never)]
fn descend(mutex: &PthreadMutex, path: u64) -> Result<u64> {
    let waited = match path {
        0 | 1 => wait_for_swarm_mutex(mutex),
        path if path.is_multiple_of(2) => descend_left(mutex, path),
        path => descend_right(mutex, path),
    };
    // Work after the call, or the call becomes a jump and the frame disappears.
    black_box(waited)
}

// Left and right each mention their own name: the compiler makes one function of two that do the same.

#[inline(never)]
fn descend_left(mutex: &PthreadMutex, path: u64) -> Result<u64> {
    black_box("left");
    black_box(descend(mutex, path / 2))
}

#[inline(never)]
fn descend_right(mutex: &PthreadMutex, path: u64) -> Result<u64> {
    black_box("right");
    black_box(descend(mutex, path / 2))
}

#[inline(never)]
fn wait_for_swarm_mutex(mutex: &PthreadMutex) -> Result<u64> {
    let before = now_ns();
    // SAFETY: the mutex is initialised and borrowed for the time of the call.
    let code = unsafe { libc::pthread_mutex_lock(mutex.raw()) };
    let waited = now_ns() - before;
    check(code, "pthread_mutex_lock")?;
    Ok(waited)
}

pub fn run(options: &Options) -> Result<Outcome> {
    let locks: Arc<Vec<PthreadMutex>> = Arc::new((0..options.locks).map(|_| PthreadMutex::new()).collect());
    let count = locks.len();
    let batch = (options.waiters as usize).min(count);
    // First lock of the batch that is being worked on; only the director changes it.
    let first = Arc::new(AtomicUsize::new(0));

    let mut hold = OrderedHold::new()?;
    let (theirs, from, mutexes) = (Arc::clone(&hold), Arc::clone(&first), Arc::clone(&locks));
    let holding: Job = Box::new(move || {
        let from = from.load(Ordering::Acquire);
        let held = &mutexes[from..(from + batch).min(mutexes.len())];
        held.iter().try_for_each(PthreadMutex::lock)?;
        theirs.keep()?;
        held.iter().try_for_each(PthreadMutex::unlock)?;
        Ok(Attempt { wait_ns: 0, aborted: false })
    });
    let holder = Member::spawn("holder", holding)?;

    let mut waiters = Vec::new();
    for index in 0..batch {
        let (from, mutexes) = (Arc::clone(&first), Arc::clone(&locks));
        let stacks = options.stacks;
        let waiting: Job = Box::new(move || {
            let number = from.load(Ordering::Acquire) + index;
            // Path 0 would be the same walk as path 1.
            let wait_ns = descend(&mutexes[number], number as u64 % stacks + 1)?;
            mutexes[number].unlock()?;
            Ok(Attempt { wait_ns, aborted: false })
        });
        waiters.push(Waiter::spawn(&format!("swarm-{index}"), locks[index].place(), waiting)?);
    }

    // Not Crew::run: the lock of each waiter, and in the last batch the number of waiters, changes.
    while first.load(Ordering::Acquire) < count {
        let from = first.load(Ordering::Acquire);
        let active = batch.min(count - from);
        holder.start()?;
        hold.await_held()?;
        let mut proven = Vec::new();
        for (index, waiter) in waiters[..active].iter().enumerate() {
            waiter.member.start()?;
            proven.push(waiter.member.await_blocked(&locks[from + index].place())?.is_some());
        }
        std::thread::sleep(options.hold());
        hold.release()?;
        holder.await_done()?;
        for (waiter, proven) in waiters[..active].iter_mut().zip(proven) {
            let attempt = waiter.member.await_done()?;
            if proven {
                waiter.tally.add(attempt);
            } else {
                waiter.tally.add_unproven();
            }
        }
        first.store(from + batch, Ordering::Release);
    }

    let (tally, tids) = sum(waiters.iter());
    let row = LockRow {
        call_site: Some("wait_for_swarm_mutex".to_string()),
        tids,
        ..LockRow::user(FutexUse::GLIBC_MUTEX, "swarm", &tally)
    };
    let mut outcome = Outcome { rounds: 1, ..options.outcome(vec![LockRow { name: None, ..row }]) };
    outcome.extra.insert("distinct_locks".to_string(), json!(tally.contended()));
    outcome.extra.insert("distinct_stacks".to_string(), json!(options.stacks.min(options.locks)));
    Crew { hold, holder, waiters }.dismiss()?;
    Ok(outcome)
}
