//! The threads of a scenario and the round that all of them share.
//!
//! One round: the holder takes the lock; the waiters are sent in one after another, each proven to be blocked
//! before the next starts (so their order in the queue is known); the chosen hold time passes; the holder
//! lets go; every waiter gets the lock exactly once. Nobody enters again before all are through.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

use crate::blocked::{self, Sighting, WaitsIn};
use crate::clock;
use crate::event::Event;
use crate::truth::{Attempt, Tally};
use crate::{GateAt, Options};

/// What a thread does in each round; it times its own wait.
pub type Job = Box<dyn FnMut() -> Result<Attempt> + Send>;

/// A thread that does its job once each time it is told to.
pub struct Member {
    name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    tid: AtomicI32,
    go: Event,
    done: Event,
    finished: AtomicBool,
    quit: AtomicBool,
    /// Uncontended by construction: the thread writes before `done`, the director reads after it.
    result: Mutex<Option<Result<Attempt>>>,
}

impl Member {
    pub fn spawn(name: &str, mut job: Job) -> Result<Member> {
        let shared = Arc::new(Shared {
            tid: AtomicI32::new(0),
            go: Event::new()?,
            done: Event::new()?,
            finished: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            result: Mutex::new(None),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(name.to_string())
            .spawn(move || {
                theirs.tid.store(gettid(), Ordering::Release);
                if theirs.done.signal().is_err() {
                    return;
                }
                while theirs.go.wait().is_ok() && !theirs.quit.load(Ordering::Acquire) {
                    let result = job();
                    *theirs.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                    theirs.finished.store(true, Ordering::Release);
                    if theirs.done.signal().is_err() {
                        return;
                    }
                }
            })
            .with_context(|| format!("start thread {name}"))?;
        shared.done.wait_until(clock::deadline(), &format!("thread {name} to start"))?;
        Ok(Member { name: name.to_string(), shared, thread: Some(thread) })
    }

    pub fn tid(&self) -> i32 {
        self.shared.tid.load(Ordering::Acquire)
    }

    pub fn start(&self) -> Result<()> {
        self.shared.finished.store(false, Ordering::Release);
        self.shared.go.signal()
    }

    pub fn has_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// `None`: the member finished without ever being seen blocked.
    pub fn await_blocked(&self, place: &WaitsIn) -> Result<Option<Sighting>> {
        blocked::await_blocked(self.tid(), &self.name, place, clock::deadline(), || self.has_finished())
    }

    /// For jobs of a length that somebody chose.
    pub fn await_done_without_limit(&self) -> Result<Attempt> {
        self.shared.done.wait()?;
        self.result()
    }

    /// Waits until the member has done its job, and leaves the result to `await_done`.
    pub fn await_finished(&self) -> Result<()> {
        let deadline = clock::deadline();
        while !self.has_finished() {
            if std::time::Instant::now() > deadline {
                return Err(anyhow!("gave up waiting for {} to finish", self.name));
            }
            clock::poll_pause();
        }
        Ok(())
    }

    pub fn await_done(&self) -> Result<Attempt> {
        self.shared.done.wait_until(clock::deadline(), &format!("{} to finish", self.name))?;
        self.result()
    }

    fn result(&self) -> Result<Attempt> {
        let result = self.shared.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.unwrap_or_else(|| Err(anyhow!("no result"))).with_context(|| self.name.clone())
    }

    /// Ends the thread. On errors the process exits instead: a thread stuck in a lock cannot be joined.
    pub fn dismiss(mut self) -> Result<()> {
        self.shared.quit.store(true, Ordering::Release);
        self.shared.go.signal()?;
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("thread {} panicked", self.name)),
            _ => Ok(()),
        }
    }
}

/// How the holder of a scenario comes to hold the lock, and how it is made to let go.
pub trait Hold {
    /// Runs before anybody moves.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }
    /// Returns when the holder, which has been started, provably holds the lock.
    fn await_held(&mut self) -> Result<()>;
    /// Runs when the chosen time has passed, before the holder lets go.
    fn before_release(&mut self, _waiters: &[Waiter]) -> Result<()> {
        Ok(())
    }
    /// Makes the holder let go.
    fn release(&mut self) -> Result<()>;
    /// Runs after everybody is through.
    fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A hold in user space: the holder signals that it has the lock and waits for the order to unlock.
pub struct OrderedHold {
    pub held: Event,
    pub let_go: Event,
}

impl OrderedHold {
    pub fn new() -> Result<Arc<OrderedHold>> {
        Ok(Arc::new(OrderedHold { held: Event::new()?, let_go: Event::new()? }))
    }

    /// The holder's half, to be called while it has the lock.
    pub fn keep(&self) -> Result<()> {
        self.held.signal()?;
        self.let_go.wait()
    }
}

impl Hold for Arc<OrderedHold> {
    fn await_held(&mut self) -> Result<()> {
        self.held.wait_until(clock::deadline(), "the holder to take the lock")
    }
    fn release(&mut self) -> Result<()> {
        self.let_go.signal()
    }
}

/// A waiter with what was learnt about its waits.
pub struct Waiter {
    pub member: Member,
    pub place: WaitsIn,
    pub tally: Tally,
    pub futex: Option<u64>,
    pub kernel_caller: Option<String>,
    proven: bool,
}

impl Waiter {
    pub fn spawn(name: &str, place: WaitsIn, job: Job) -> Result<Waiter> {
        let member = Member::spawn(name, job)?;
        Ok(Waiter { member, place, tally: Tally::default(), futex: None, kernel_caller: None, proven: false })
    }
}

/// Everybody who takes part.
pub struct Crew<H: Hold> {
    pub hold: H,
    pub holder: Member,
    pub waiters: Vec<Waiter>,
}

impl<H: Hold> Crew<H> {
    /// The holder holds and every waiter is blocked when this returns.
    pub fn block(&mut self) -> Result<()> {
        self.hold()?;
        self.queue()
    }

    /// The holder holds when this returns.
    fn hold(&mut self) -> Result<()> {
        self.hold.prepare()?;
        self.holder.start()?;
        self.hold.await_held()
    }

    /// Every waiter is blocked when this returns.
    fn queue(&mut self) -> Result<()> {
        for waiter in &mut self.waiters {
            waiter.member.start()?;
            let sighting = waiter.member.await_blocked(&waiter.place)?;
            waiter.proven = sighting.is_some();
            if let Some(sighting) = sighting {
                waiter.futex = sighting.futex.or(waiter.futex);
                waiter.kernel_caller = sighting.kernel_caller.or(waiter.kernel_caller.take());
            }
        }
        Ok(())
    }

    /// Ends the round that `block` began and adds its waits to the tallies.
    pub fn unblock(&mut self) -> Result<()> {
        self.hold.before_release(&self.waiters)?;
        self.hold.release()?;
        self.holder.await_done()?;
        for waiter in &mut self.waiters {
            let attempt = waiter.member.await_done()?;
            if waiter.proven {
                waiter.tally.add(attempt);
            } else {
                waiter.tally.add_unproven();
            }
        }
        self.hold.clean_up()
    }

    pub fn run(&mut self, options: &Options) -> Result<()> {
        (0..options.rounds)
            .try_for_each(|round| self.round(round, options).with_context(|| format!("round {round}")))
    }

    fn round(&mut self, round: u64, options: &Options) -> Result<()> {
        self.hold()?;
        if round == 0 {
            options.pass_gate_at(GateAt::Held)?;
        }
        self.queue()?;
        if round == 0 {
            options.pass_gate_at(GateAt::Blocked)?;
        }
        std::thread::sleep(options.hold());
        self.unblock()
    }

    pub fn dismiss(self) -> Result<()> {
        self.holder.dismiss()?;
        self.waiters.into_iter().try_for_each(|waiter| waiter.member.dismiss())
    }
}

/// The sum and the threads of some waiters of a crew.
pub fn sum<'a>(waiters: impl Iterator<Item = &'a Waiter>) -> (Tally, Vec<i32>) {
    let mut tally = Tally::default();
    let mut tids = Vec::new();
    for waiter in waiters {
        tally.merge(&waiter.tally);
        tids.push(waiter.member.tid());
    }
    (tally, tids)
}

pub fn gettid() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}
