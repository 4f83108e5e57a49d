//! What the scenarios of Rust's user-space locks share: a crew whose holder keeps what the waiters want.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::Options;
use crate::blocked::WaitsIn;
use crate::clock;
use crate::crew::{self, Crew, Job, Member, OrderedHold, Waiter};
use crate::truth::{Attempt, FutexUse, LockRow, Outcome, hex};

/// A lock and one way of waiting for it.
#[derive(Clone, Copy)]
pub struct Case {
    pub futex: FutexUse,
    /// Its data symbol.
    pub name: Option<&'static str>,
    /// The lock itself; the futex word may be elsewhere. 0: there is none.
    pub object: u64,
    /// Where the futex word is.
    pub words: Words,
    /// What the waiters also meet at, if anything.
    pub also_contended: Option<&'static str>,
    pub call_site: &'static str,
    /// The holder's part: takes it, keeps it, lets go.
    pub hold: fn(&Holding) -> Result<()>,
    /// The waiter's part: how long it waited. Keeps it for the given time where it can be kept.
    pub wait: fn(Duration) -> Result<u64>,
}

#[derive(Clone, Copy)]
pub enum Words {
    /// Within so many bytes from the object
    Inside(usize),
    /// In a record of the thread
    Elsewhere,
}

/// What the holder may know.
pub struct Holding {
    order: Arc<OrderedHold>,
    waiters: u64,
    through: Arc<AtomicU64>,
}

impl Holding {
    /// To be called while the holder has the lock.
    pub fn keep(&self) -> Result<()> {
        self.through.store(0, Ordering::Release);
        self.order.keep()
    }

    /// Lets the waiters through one after another, so that they do not meet at a mutex.
    pub fn release_each(&self, mut release: impl FnMut()) -> Result<()> {
        for number in 1..=self.waiters {
            release();
            let deadline = clock::deadline();
            while self.through.load(Ordering::Acquire) < number {
                if std::time::Instant::now() > deadline {
                    bail!("gave up waiting for waiter {number} to get through");
                }
                clock::poll_pause();
            }
        }
        Ok(())
    }
}

pub fn run(options: &Options, case: Case) -> Result<Outcome> {
    let order = OrderedHold::new()?;
    let through = Arc::new(AtomicU64::new(0));
    let holding =
        Holding { order: Arc::clone(&order), waiters: options.waiters, through: Arc::clone(&through) };
    let holder_job: Job = Box::new(move || {
        (case.hold)(&holding)?;
        Ok(Attempt { wait_ns: 0, aborted: false })
    });
    let holder = Member::spawn("holder", holder_job)?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let keep = options.waiter_hold();
        let through = Arc::clone(&through);
        let job: Job = Box::new(move || {
            let wait_ns = (case.wait)(keep)?;
            through.fetch_add(1, Ordering::AcqRel);
            Ok(Attempt { wait_ns, aborted: false })
        });
        waiters.push(Waiter::spawn(&format!("waiter-{index}"), WaitsIn::Futex(case.words()), job)?);
    }
    let mut crew = Crew { hold: order, holder, waiters };
    crew.run(options)?;
    let (tally, tids) = crew::sum(crew.waiters.iter());
    let locks = vec![LockRow {
        name: case.name.map(str::to_string),
        addr: crew.waiters.iter().find_map(|waiter| waiter.futex).map(hex),
        object: (case.object != 0).then(|| hex(case.object)),
        also_contended: case.also_contended.map(str::to_string),
        call_site: Some(case.call_site.to_string()),
        // Who signals a condition variable does not own it.
        holder_tid: (case.futex.class != "idle").then(|| crew.holder.tid()),
        tids,
        ..LockRow::user(case.futex, "", &tally)
    }];
    crew.dismiss()?;
    Ok(options.outcome(locks))
}

impl Case {
    fn words(&self) -> Range<u64> {
        match self.words {
            Words::Inside(size) => self.object..self.object + size as u64,
            Words::Elsewhere => 0..u64::MAX,
        }
    }
}

/// A waiter keeps what it got.
pub fn keep_for(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}
