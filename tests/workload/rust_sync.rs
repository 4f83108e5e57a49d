//! `rust-rwlock-*`, `rust-condvar`, `rust-park`, `rust-once` and `rust-barrier`: what the standard library makes
//! of futexes besides its mutex; all of it without libc.

use std::cell::UnsafeCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Condvar, Mutex, Once, OnceLock, PoisonError, RwLock};
use std::thread::Thread;
use std::time::Duration;

use anyhow::Result;

use crate::Options;
use crate::clock::now_ns;
use crate::truth::{FutexUse, Outcome};
use crate::user_locks::{self, Case, Holding, Words, keep_for};

#[unsafe(no_mangle)]
static WORKLOAD_RUST_RWLOCK: RwLock<u64> = RwLock::new(0);
#[unsafe(no_mangle)]
static WORKLOAD_RUST_CONDVAR: Condvar = Condvar::new();
#[unsafe(no_mangle)]
static WORKLOAD_RUST_ONCE: RenewableOnce = RenewableOnce(UnsafeCell::new(Once::new()));

// The functions that wait read the clock after the call, and mention their own names: see pthread.rs.

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_rust_rwlock_read(keep: Duration) -> Result<u64> {
    let before = now_ns();
    let guard = WORKLOAD_RUST_RWLOCK.read().unwrap_or_else(PoisonError::into_inner);
    let waited = now_ns() - before;
    black_box("wait_for_rust_rwlock_read");
    keep_for(keep);
    drop(guard);
    Ok(waited)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_rust_rwlock_write(keep: Duration) -> Result<u64> {
    let before = now_ns();
    let mut guard = WORKLOAD_RUST_RWLOCK.write().unwrap_or_else(PoisonError::into_inner);
    let waited = now_ns() - before;
    *guard += 1;
    keep_for(keep);
    Ok(waited)
}

fn hold_for_writing(holding: &Holding) -> Result<()> {
    let _guard = WORKLOAD_RUST_RWLOCK.write().unwrap_or_else(PoisonError::into_inner);
    holding.keep()
}

fn hold_for_reading(holding: &Holding) -> Result<()> {
    let _guard = WORKLOAD_RUST_RWLOCK.read().unwrap_or_else(PoisonError::into_inner);
    holding.keep()
}

pub fn run_rwlock_read(options: &Options) -> Result<Outcome> {
    user_locks::run(options, Case { hold: hold_for_writing, ..rwlock(FutexUse::RUST_RWLOCK_READ) })
}

pub fn run_rwlock_write(options: &Options) -> Result<Outcome> {
    let case = Case {
        hold: hold_for_reading,
        wait: wait_for_rust_rwlock_write,
        call_site: "wait_for_rust_rwlock_write",
        ..rwlock(FutexUse::RUST_RWLOCK_WRITE)
    };
    user_locks::run(options, case)
}

fn rwlock(futex: FutexUse) -> Case {
    Case {
        futex,
        name: Some("WORKLOAD_RUST_RWLOCK"),
        object: &raw const WORKLOAD_RUST_RWLOCK as u64,
        words: Words::Inside(size_of::<RwLock<u64>>()),
        also_contended: None,
        call_site: "wait_for_rust_rwlock_read",
        hold: hold_for_writing,
        wait: wait_for_rust_rwlock_read,
    }
}

/// Pieces of work that wait for somebody.
static WORK: Mutex<u64> = Mutex::new(0);

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_rust_condvar(_: Duration) -> Result<u64> {
    let guard = WORK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = now_ns();
    let mut guard = WORKLOAD_RUST_CONDVAR
        .wait_while(guard, |pieces| *pieces == 0)
        .unwrap_or_else(PoisonError::into_inner);
    let waited = now_ns() - before;
    *guard -= 1;
    Ok(waited)
}

fn signal_condvar(holding: &Holding) -> Result<()> {
    holding.keep()?;
    holding.release_each(|| {
        *WORK.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        WORKLOAD_RUST_CONDVAR.notify_one();
    })
}

pub fn run_condvar(options: &Options) -> Result<Outcome> {
    let case = Case {
        futex: FutexUse::RUST_CONDVAR,
        name: Some("WORKLOAD_RUST_CONDVAR"),
        object: &raw const WORKLOAD_RUST_CONDVAR as u64,
        words: Words::Inside(size_of::<Condvar>()),
        also_contended: None,
        call_site: "wait_for_rust_condvar",
        hold: signal_condvar,
        wait: wait_for_rust_condvar,
    };
    user_locks::run(options, case)
}

/// Who is parked, in the order of arrival. Nobody meets here: the waiters come one by one.
static PARKED: Mutex<Vec<Thread>> = Mutex::new(Vec::new());
/// How often somebody may leave the parking.
static UNPARKED: AtomicU64 = AtomicU64::new(0);
static PARKINGS: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_rust_park(_: Duration) -> Result<u64> {
    PARKED.lock().unwrap_or_else(PoisonError::into_inner).push(std::thread::current());
    let number = PARKINGS.fetch_add(1, Ordering::AcqRel) + 1;
    let before = now_ns();
    while UNPARKED.load(Ordering::Acquire) < number {
        std::thread::park();
    }
    Ok(now_ns() - before)
}

fn unpark_each(holding: &Holding) -> Result<()> {
    holding.keep()?;
    let parked = std::mem::take(&mut *PARKED.lock().unwrap_or_else(PoisonError::into_inner));
    let mut parked = parked.into_iter();
    holding.release_each(|| {
        UNPARKED.fetch_add(1, Ordering::AcqRel);
        if let Some(thread) = parked.next() {
            thread.unpark();
        }
    })
}

pub fn run_park(options: &Options) -> Result<Outcome> {
    let case = Case {
        futex: FutexUse::RUST_PARK,
        name: None,
        object: 0,
        words: Words::Elsewhere,
        also_contended: None,
        call_site: "wait_for_rust_park",
        hold: unpark_each,
        wait: wait_for_rust_park,
    };
    user_locks::run(options, case)
}

/// A `Once` that is as good as new in every round.
#[repr(transparent)]
struct RenewableOnce(UnsafeCell<Once>);

// SAFETY: it is renewed only while nobody else uses it: at the start of a round, before the waiters are let in.
unsafe impl Sync for RenewableOnce {}

impl RenewableOnce {
    fn get(&self) -> &Once {
        // SAFETY: the holder alone writes, and not while there are borrowers (see above).
        unsafe { &*self.0.get() }
    }

    fn renew(&self) {
        // SAFETY: as above.
        unsafe { *self.0.get() = Once::new() };
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_rust_once(_: Duration) -> Result<u64> {
    let before = now_ns();
    WORKLOAD_RUST_ONCE.get().call_once(|| unreachable!("the holder initializes"));
    Ok(now_ns() - before)
}

fn initialize_slowly(holding: &Holding) -> Result<()> {
    WORKLOAD_RUST_ONCE.renew();
    let mut result = Ok(());
    WORKLOAD_RUST_ONCE.get().call_once(|| result = holding.keep());
    result
}

pub fn run_once(options: &Options) -> Result<Outcome> {
    let case = Case {
        futex: FutexUse::RUST_ONCE,
        name: Some("WORKLOAD_RUST_ONCE"),
        object: &raw const WORKLOAD_RUST_ONCE as u64,
        words: Words::Inside(size_of::<Once>()),
        also_contended: None,
        call_site: "wait_for_rust_once",
        hold: initialize_slowly,
        wait: wait_for_rust_once,
    };
    user_locks::run(options, case)
}

/// Sized by the number of waiters.
static BARRIER: OnceLock<Box<Barrier>> = OnceLock::new();

fn barrier() -> &'static Barrier {
    BARRIER.get().expect("run_barrier sets it")
}

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_rust_barrier(_: Duration) -> Result<u64> {
    let before = now_ns();
    barrier().wait();
    Ok(now_ns() - before)
}

/// The last that the barrier waits for.
fn come_last(holding: &Holding) -> Result<()> {
    holding.keep()?;
    barrier().wait();
    Ok(())
}

pub fn run_barrier(options: &Options) -> Result<Outcome> {
    let barrier = BARRIER.get_or_init(|| Box::new(Barrier::new(options.waiters as usize + 1)));
    let case = Case {
        // A barrier is a condition variable and a mutex.
        futex: FutexUse::RUST_CONDVAR,
        name: None,
        object: &raw const **barrier as u64,
        words: Words::Inside(size_of::<Barrier>()),
        also_contended: Some("the mutex inside the barrier"),
        call_site: "wait_for_rust_barrier",
        hold: come_last,
        wait: wait_for_rust_barrier,
    };
    user_locks::run(options, case)
}
