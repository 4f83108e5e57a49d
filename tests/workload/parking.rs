//! `parking-lot-*`: locks whose waiters sleep on a word of their own thread; the lock is a key in a table.

use std::hint::black_box;
use std::time::Duration;

use anyhow::Result;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::Options;
use crate::clock::now_ns;
use crate::truth::{FutexUse, Outcome};
use crate::user_locks::{self, Case, Holding, Words, keep_for};

#[unsafe(no_mangle)]
static WORKLOAD_PARKING_LOT_MUTEX: Mutex<u64> = Mutex::new(0);
#[unsafe(no_mangle)]
static WORKLOAD_PARKING_LOT_RWLOCK: RwLock<u64> = RwLock::new(0);
#[unsafe(no_mangle)]
static WORKLOAD_PARKING_LOT_CONDVAR: Condvar = Condvar::new();

// The functions that wait read the clock after the call, and mention their own names: see pthread.rs.

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_parking_lot_mutex(keep: Duration) -> Result<u64> {
    let before = now_ns();
    let mut guard = WORKLOAD_PARKING_LOT_MUTEX.lock();
    let waited = now_ns() - before;
    *guard += 1;
    keep_for(keep);
    Ok(waited)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_parking_lot_rwlock_read(keep: Duration) -> Result<u64> {
    let before = now_ns();
    let guard = WORKLOAD_PARKING_LOT_RWLOCK.read();
    let waited = now_ns() - before;
    black_box("wait_for_parking_lot_rwlock_read");
    keep_for(keep);
    drop(guard);
    Ok(waited)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_parking_lot_rwlock_write(keep: Duration) -> Result<u64> {
    let before = now_ns();
    let mut guard = WORKLOAD_PARKING_LOT_RWLOCK.write();
    let waited = now_ns() - before;
    *guard += 1;
    keep_for(keep);
    Ok(waited)
}

/// Pieces of work that wait for somebody.
static WORK: Mutex<u64> = Mutex::new(0);

#[inline(never)]
#[unsafe(no_mangle)]
pub fn wait_for_parking_lot_condvar(_: Duration) -> Result<u64> {
    let mut guard = WORK.lock();
    let before = now_ns();
    WORKLOAD_PARKING_LOT_CONDVAR.wait_while(&mut guard, |pieces| *pieces == 0);
    let waited = now_ns() - before;
    *guard -= 1;
    Ok(waited)
}

fn hold_mutex(holding: &Holding) -> Result<()> {
    let _guard = WORKLOAD_PARKING_LOT_MUTEX.lock();
    holding.keep()
}

fn hold_for_writing(holding: &Holding) -> Result<()> {
    let _guard = WORKLOAD_PARKING_LOT_RWLOCK.write();
    holding.keep()
}

fn hold_for_reading(holding: &Holding) -> Result<()> {
    let _guard = WORKLOAD_PARKING_LOT_RWLOCK.read();
    holding.keep()
}

fn signal_condvar(holding: &Holding) -> Result<()> {
    holding.keep()?;
    holding.release_each(|| {
        *WORK.lock() += 1;
        WORKLOAD_PARKING_LOT_CONDVAR.notify_one();
    })
}

pub fn run_mutex(options: &Options) -> Result<Outcome> {
    let case = Case {
        futex: FutexUse::PARKING_LOT_MUTEX,
        name: Some("WORKLOAD_PARKING_LOT_MUTEX"),
        // SAFETY: the address is all that is taken.
        object: unsafe { &raw const *WORKLOAD_PARKING_LOT_MUTEX.raw() } as u64,
        words: Words::Elsewhere,
        also_contended: None,
        call_site: "wait_for_parking_lot_mutex",
        hold: hold_mutex,
        wait: wait_for_parking_lot_mutex,
    };
    user_locks::run(options, case)
}

pub fn run_rwlock_read(options: &Options) -> Result<Outcome> {
    user_locks::run(options, rwlock(FutexUse::PARKING_LOT_RWLOCK_READ))
}

pub fn run_rwlock_write(options: &Options) -> Result<Outcome> {
    let case = Case {
        hold: hold_for_reading,
        wait: wait_for_parking_lot_rwlock_write,
        call_site: "wait_for_parking_lot_rwlock_write",
        ..rwlock(FutexUse::PARKING_LOT_RWLOCK_WRITE)
    };
    user_locks::run(options, case)
}

fn rwlock(futex: FutexUse) -> Case {
    Case {
        futex,
        name: Some("WORKLOAD_PARKING_LOT_RWLOCK"),
        // SAFETY: the address is all that is taken.
        object: unsafe { &raw const *WORKLOAD_PARKING_LOT_RWLOCK.raw() } as u64,
        words: Words::Elsewhere,
        also_contended: None,
        call_site: "wait_for_parking_lot_rwlock_read",
        hold: hold_for_writing,
        wait: wait_for_parking_lot_rwlock_read,
    }
}

pub fn run_condvar(options: &Options) -> Result<Outcome> {
    let case = Case {
        futex: FutexUse::PARKING_LOT_CONDVAR,
        name: Some("WORKLOAD_PARKING_LOT_CONDVAR"),
        object: &raw const WORKLOAD_PARKING_LOT_CONDVAR as u64,
        words: Words::Elsewhere,
        also_contended: None,
        call_site: "wait_for_parking_lot_condvar",
        hold: signal_condvar,
        wait: wait_for_parking_lot_condvar,
    };
    user_locks::run(options, case)
}
