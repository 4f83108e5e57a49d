//! `rust-mutex`: proves that waits for a `std::sync::Mutex` are seen although no libc function is involved.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use crate::Options;
use crate::blocked::WaitsIn;
use crate::clock::now_ns;
use crate::crew::{self, Crew, Job, Member, OrderedHold, Waiter};
use crate::truth::{Attempt, FutexUse, LockRow, Outcome, hex};

#[unsafe(no_mangle)]
static WORKLOAD_RUST_MUTEX: Mutex<u64> = Mutex::new(0);

/// The call site. The clock reading after the call keeps this function on the stack (no tail call).
#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_rust_mutex(mutex: &'static Mutex<u64>) -> (MutexGuard<'static, u64>, u64) {
    let before = now_ns();
    let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
    (guard, now_ns() - before)
}

pub fn run(options: &Options) -> Result<Outcome> {
    let hold = OrderedHold::new()?;
    let theirs = Arc::clone(&hold);
    let holding: Job = Box::new(move || {
        let _guard = WORKLOAD_RUST_MUTEX.lock().unwrap_or_else(PoisonError::into_inner);
        theirs.keep()?;
        Ok(Attempt { wait_ns: 0, aborted: false })
    });
    let holder = Member::spawn("holder", holding)?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let keep = options.waiter_hold();
        let waiting: Job = Box::new(move || {
            let (mut guard, wait_ns) = wait_for_rust_mutex(&WORKLOAD_RUST_MUTEX);
            *guard += 1;
            if !keep.is_zero() {
                std::thread::sleep(keep);
            }
            Ok(Attempt { wait_ns, aborted: false })
        });
        waiters.push(Waiter::spawn(&format!("waiter-{index}"), place(&WORKLOAD_RUST_MUTEX), waiting)?);
    }
    let mut crew = Crew { hold, holder, waiters };
    crew.run(options)?;
    let (tally, tids) = crew::sum(crew.waiters.iter());
    let locks = vec![LockRow {
        addr: crew.waiters.iter().find_map(|waiter| waiter.futex).map(hex),
        call_site: Some("wait_for_rust_mutex".to_string()),
        holder_tid: Some(crew.holder.tid()),
        tids,
        ..LockRow::user(FutexUse::RUST_MUTEX, "WORKLOAD_RUST_MUTEX", &tally)
    }];
    crew.dismiss()?;
    Ok(options.outcome(locks))
}

/// The futex word is somewhere inside the mutex: where, Rust does not promise.
pub fn place<T>(mutex: &'static Mutex<T>) -> WaitsIn {
    let start = &raw const *mutex as u64;
    WaitsIn::Futex(start..start + std::mem::size_of::<Mutex<T>>() as u64)
}
