//! `pthread-mutex`, `pthread-timed`, `pi-mutex`, `hung` and `short`: prove that waits for libc mutexes are
//! seen with the right address, count, time and caller, also when they time out, go through the kernel's
//! priority inheritance, are not over yet, or belong to a process that is gone.

use std::cell::UnsafeCell;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::Options;
use crate::blocked::WaitsIn;
use crate::clock::now_ns;
use crate::crew::{self, Crew, Hold, Job, Member, OrderedHold, Waiter};
use crate::truth::{Attempt, FutexUse, LockRow, Outcome, Tally, hex, print_line};

/// A mutex for all threads: the C type is not Sync by itself.
pub struct PthreadMutex(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: pthread mutexes are made to be used from several threads through a shared pointer.
unsafe impl Sync for PthreadMutex {}
// SAFETY: nothing in an unlocked pthread mutex depends on the thread.
unsafe impl Send for PthreadMutex {}

impl PthreadMutex {
    pub const fn new() -> PthreadMutex {
        PthreadMutex(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER))
    }

    fn set_protocol(&self, protocol: libc::c_int) -> Result<()> {
        // SAFETY: the attribute is initialised before use and destroyed after; nobody uses the mutex yet.
        unsafe {
            let mut attr: libc::pthread_mutexattr_t = std::mem::zeroed();
            check(libc::pthread_mutexattr_init(&mut attr), "pthread_mutexattr_init")?;
            check(libc::pthread_mutexattr_setprotocol(&mut attr, protocol), "pthread_mutexattr_setprotocol")?;
            check(libc::pthread_mutex_init(self.raw(), &attr), "pthread_mutex_init")?;
            check(libc::pthread_mutexattr_destroy(&mut attr), "pthread_mutexattr_destroy")
        }
    }

    pub fn raw(&self) -> *mut libc::pthread_mutex_t {
        self.0.get()
    }

    pub fn lock(&self) -> Result<()> {
        // SAFETY: the mutex is initialised and lives as long as `self`.
        check(unsafe { libc::pthread_mutex_lock(self.raw()) }, "pthread_mutex_lock")
    }

    pub fn unlock(&self) -> Result<()> {
        // SAFETY: as above; only the thread that locked calls this.
        check(unsafe { libc::pthread_mutex_unlock(self.raw()) }, "pthread_mutex_unlock")
    }

    /// Where a waiter of this mutex blocks: the futex word is somewhere inside it.
    pub fn place(&self) -> WaitsIn {
        let start = self.raw() as u64;
        WaitsIn::Futex(start..start + std::mem::size_of::<libc::pthread_mutex_t>() as u64)
    }
}

// Statics with plain symbols: a profiler can name these locks.
#[unsafe(no_mangle)]
static WORKLOAD_PTHREAD_MUTEX: PthreadMutex = PthreadMutex::new();
#[unsafe(no_mangle)]
static WORKLOAD_PI_MUTEX: PthreadMutex = PthreadMutex::new();

// The functions that wait keep the clock reading after the call: without it the compiler would turn the call
// into a jump, and the function would be missing from every call stack. Each also mentions its own name: the
// compiler makes one function of two that do the same.

/// The call site of `pthread-mutex`, `hung` and `short`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn wait_for_pthread_mutex(mutex: &PthreadMutex, waited_ns: &mut u64) -> libc::c_int {
    let before = now_ns();
    // SAFETY: the mutex is initialised and borrowed for the time of the call.
    let code = unsafe { libc::pthread_mutex_lock(mutex.raw()) };
    *waited_ns = now_ns() - before;
    black_box("wait_for_pthread_mutex");
    code
}

/// The call site of `pi-mutex`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn wait_for_pi_mutex(mutex: &PthreadMutex, waited_ns: &mut u64) -> libc::c_int {
    let before = now_ns();
    // SAFETY: as in `wait_for_pthread_mutex`.
    let code = unsafe { libc::pthread_mutex_lock(mutex.raw()) };
    *waited_ns = now_ns() - before;
    black_box("wait_for_pi_mutex");
    code
}

/// The call site of `pthread-timed`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn wait_for_timed_mutex(
    mutex: &PthreadMutex,
    until: &libc::timespec,
    waited_ns: &mut u64,
) -> libc::c_int {
    let before = now_ns();
    // SAFETY: as in `wait_for_pthread_mutex`; `until` is a valid timespec.
    let code = unsafe { libc::pthread_mutex_timedlock(mutex.raw(), until) };
    *waited_ns = now_ns() - before;
    code
}

type WaitFunction = extern "C" fn(&PthreadMutex, &mut u64) -> libc::c_int;

fn waiting_job(mutex: &'static PthreadMutex, wait: WaitFunction, keep: Duration) -> Job {
    Box::new(move || {
        let mut wait_ns = 0;
        check(wait(mutex, &mut wait_ns), "pthread_mutex_lock")?;
        if !keep.is_zero() {
            std::thread::sleep(keep);
        }
        mutex.unlock()?;
        Ok(Attempt { wait_ns, aborted: false })
    })
}

/// The holder: takes the mutex, keeps it until it is told to let go.
fn holding_job(mutex: &'static PthreadMutex, hold: &Arc<OrderedHold>) -> Job {
    let hold = Arc::clone(hold);
    Box::new(move || {
        mutex.lock()?;
        hold.keep()?;
        mutex.unlock()?;
        Ok(Attempt { wait_ns: 0, aborted: false })
    })
}

fn muster(
    mutex: &'static PthreadMutex,
    wait: WaitFunction,
    options: &Options,
) -> Result<Crew<Arc<OrderedHold>>> {
    let hold = OrderedHold::new()?;
    let holder = Member::spawn("holder", holding_job(mutex, &hold))?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let job = waiting_job(mutex, wait, options.waiter_hold());
        waiters.push(Waiter::spawn(&format!("waiter-{index}"), mutex.place(), job)?);
    }
    Ok(Crew { hold, holder, waiters })
}

fn row(crew: &Crew<Arc<OrderedHold>>, futex: FutexUse, name: &str, call_site: &str) -> LockRow {
    let (tally, tids) = crew::sum(crew.waiters.iter());
    LockRow {
        // The word that the waiters were seen to sleep on, not the one that we think they should.
        addr: crew.waiters.iter().find_map(|waiter| waiter.futex).map(hex),
        call_site: Some(call_site.to_string()),
        holder_tid: Some(crew.holder.tid()),
        tids,
        ..LockRow::user(futex, name, &tally)
    }
}

pub fn run(options: &Options) -> Result<Outcome> {
    let mut crew = muster(&WORKLOAD_PTHREAD_MUTEX, wait_for_pthread_mutex, options)?;
    crew.run(options)?;
    let locks = vec![row(&crew, FutexUse::GLIBC_MUTEX, "WORKLOAD_PTHREAD_MUTEX", "wait_for_pthread_mutex")];
    crew.dismiss()?;
    Ok(options.outcome(locks))
}

pub fn run_pi(options: &Options) -> Result<Outcome> {
    WORKLOAD_PI_MUTEX.set_protocol(libc::PTHREAD_PRIO_INHERIT)?;
    let mut crew = muster(&WORKLOAD_PI_MUTEX, wait_for_pi_mutex, options)?;
    crew.run(options)?;
    let locks = vec![row(&crew, FutexUse::PI_MUTEX, "WORKLOAD_PI_MUTEX", "wait_for_pi_mutex")];
    crew.dismiss()?;
    Ok(options.outcome(locks))
}

/// Blocks the waiters and leaves it at that, until somebody says otherwise.
pub fn run_hung(options: &Options) -> Result<Outcome> {
    let mut crew = muster(&WORKLOAD_PTHREAD_MUTEX, wait_for_pthread_mutex, options)?;
    crew.block()?;
    let since_ns = now_ns();
    let row_so_far = row(&crew, FutexUse::GLIBC_MUTEX, "WORKLOAD_PTHREAD_MUTEX", "wait_for_pthread_mutex");
    print_line(&json!({
        "event": "hung",
        "pid": std::process::id(),
        "addr": row_so_far.addr,
        "tids": row_so_far.tids,
        "holder_tid": crew.holder.tid(),
        "since_ns": since_ns,
    }))?;
    if !crate::read_line()? {
        // Standard input is at its end: nobody can tell us to go on, so only a signal ends this.
        loop {
            // SAFETY: pause takes nothing.
            unsafe { libc::pause() };
        }
    }
    crew.unblock()?;
    let locks = vec![row(&crew, FutexUse::GLIBC_MUTEX, "WORKLOAD_PTHREAD_MUTEX", "wait_for_pthread_mutex")];
    crew.dismiss()?;
    Ok(Outcome { rounds: 1, hold_ns: Some(now_ns() - since_ns), ..options.outcome(locks) })
}

/// Every wait times out. The proof of contention is the ETIMEDOUT together with the time that it took.
pub fn run_timed(options: &Options) -> Result<Outcome> {
    let mutex = &WORKLOAD_PTHREAD_MUTEX;
    let timeout_ns = options.hold().as_nanos() as u64 / 2;
    if timeout_ns == 0 {
        bail!("pthread-timed needs --hold-ms of at least 1");
    }
    let mut hold = OrderedHold::new()?;
    let holder = Member::spawn("holder", holding_job(mutex, &hold))?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let job: Job = Box::new(move || {
            let until = realtime_in(timeout_ns)?;
            let mut wait_ns = 0;
            match wait_for_timed_mutex(mutex, &until, &mut wait_ns) {
                libc::ETIMEDOUT => Ok(Attempt { wait_ns, aborted: true }),
                code => {
                    check(code, "pthread_mutex_timedlock")?;
                    bail!("pthread_mutex_timedlock got a mutex that was never released")
                }
            }
        });
        waiters.push(Member::spawn(&format!("timed-{index}"), job)?);
    }
    let mut tally = Tally::default();
    for _ in 0..options.rounds {
        holder.start()?;
        hold.await_held()?;
        let held_since = now_ns();
        waiters.iter().try_for_each(Member::start)?;
        for waiter in &waiters {
            let attempt = waiter.await_done()?;
            // A waiter that was off the CPU until its time was up may never have slept in the futex.
            if attempt.wait_ns < timeout_ns / 2 {
                tally.add_unproven();
            } else {
                tally.add(attempt);
            }
        }
        // The lock outlives every timeout, by its own hold time at least.
        let rest = options.hold().as_nanos() as u64;
        std::thread::sleep(Duration::from_nanos(rest.saturating_sub(now_ns() - held_since)));
        hold.release()?;
        holder.await_done()?;
    }
    let locks = vec![LockRow {
        addr: Some(hex(mutex.raw() as u64)),
        call_site: Some("wait_for_timed_mutex".to_string()),
        holder_tid: Some(holder.tid()),
        tids: waiters.iter().map(Member::tid).collect(),
        ..LockRow::user(FutexUse::GLIBC_MUTEX, "WORKLOAD_PTHREAD_MUTEX", &tally)
    }];
    holder.dismiss()?;
    waiters.into_iter().try_for_each(Member::dismiss)?;
    let mut outcome = options.outcome(locks);
    outcome.extra.insert("timeout_ns".to_string(), json!(timeout_ns));
    Ok(outcome)
}

/// The absolute time that `pthread_mutex_timedlock` wants.
fn realtime_in(ns: u64) -> Result<libc::timespec> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) } != 0 {
        return Err(io::Error::last_os_error()).context("clock_gettime");
    }
    let total = time.tv_nsec as u64 + ns;
    time.tv_sec += (total / 1_000_000_000) as libc::time_t;
    time.tv_nsec = (total % 1_000_000_000) as libc::c_long;
    Ok(time)
}

/// pthread functions return their error instead of setting errno.
pub fn check(code: libc::c_int, what: &'static str) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)).context(what),
    }
}
