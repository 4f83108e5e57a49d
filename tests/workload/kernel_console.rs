//! `semaphore`: proves that waits for a `struct semaphore` are seen: `console_sem`, the only one that user
//! space can hold up on every kernel without a module.
//!
//! Nothing copies from user space under `console_sem` since 6.9, so a missing page cannot hold it. Instead the
//! holder is preempted: it writes to a virtual terminal all the time, mostly inside `do_con_write` with
//! `console_sem` held (drivers/tty/vt/vt.c), on one CPU with real-time threads that wake up, find it there, and
//! keep the CPU. The waiters, real-time threads too, go in with an ioctl that takes `console_lock`. All of it
//! is on one CPU, so it works with any number of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::Options;
use crate::blocked::{self, WaitsIn};
use crate::clock;
use crate::crew::{self, Job, Member, Waiter};
use crate::kernel::{row, timed};
use crate::truth::{Attempt, Outcome};

/// Hardly ever in use, and never in the foreground.
const TERMINAL: &str = "/dev/tty63";
/// Below the 0.95 s after which the kernel throttles real-time threads.
const LONGEST_HOLD: Duration = Duration::from_millis(500);
/// tty_write hands over at most 2 KiB at once; more would take the semaphore several times.
const CHUNK: usize = 2048;
const DIRECTOR_PRIORITY: libc::c_int = 2;
const WAITER_PRIORITY: libc::c_int = 3;

pub fn run(options: &Options) -> Result<Outcome> {
    if options.hold() > LONGEST_HOLD {
        bail!("semaphore: --hold-ms must be at most {}", LONGEST_HOLD.as_millis());
    }
    let terminal = Arc::new(open_terminal()?);
    stay_on_one_cpu()?;
    let stop = Arc::new(AtomicBool::new(false));
    let holder = Member::spawn("holder", writing_job(Arc::clone(&terminal), Arc::clone(&stop)))?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let place = WaitsIn::KernelLock(libc::SYS_ioctl);
        let waiter =
            Waiter::spawn(&format!("console-user-{index}"), place, asking_job(Arc::clone(&terminal)))?;
        set_priority(waiter.member.tid(), WAITER_PRIORITY)?;
        waiters.push(waiter);
    }
    if blocked::kernel_stack(crew::gettid()).is_empty() {
        bail!(
            "semaphore: /proc/PID/stack is not readable here: cannot tell when the holder has the semaphore"
        );
    }
    let mut round = Round { holder, waiters, stop, misses: 0 };
    for number in 0..options.rounds {
        set_priority(crew::gettid(), DIRECTOR_PRIORITY)?;
        let result = round.run(options).with_context(|| format!("round {number}"));
        set_priority(crew::gettid(), 0)?;
        result?;
    }
    let locks = vec![row("semaphore", "console_sem", round.waiters.iter())];
    round.holder.dismiss()?;
    round.waiters.into_iter().try_for_each(|waiter| waiter.member.dismiss())?;
    let mut outcome = options.outcome(locks);
    outcome.extra.insert("misses".to_string(), json!(round.misses));
    Ok(outcome)
}

struct Round {
    holder: Member,
    waiters: Vec<Waiter>,
    stop: Arc<AtomicBool>,
    /// How often the first waiter found the semaphore free after all.
    misses: u64,
}

impl Round {
    /// Runs in a real-time thread: whenever it does not sleep, the holder stands still.
    fn run(&mut self, options: &Options) -> Result<()> {
        self.stop.store(false, Ordering::Release);
        self.holder.start()?;
        let deadline = clock::deadline();
        loop {
            if Instant::now() > deadline {
                self.stop.store(true, Ordering::Release);
                bail!("never found the holder preempted with console_sem held");
            }
            if self.holder_is_inside() && self.send_in(0)? {
                break;
            }
            // Lets the holder run; a different time each time, so as not to meet it at the same place again.
            std::thread::sleep(Duration::from_nanos(100_000 + clock::now_ns() % 400_000));
        }
        let mut proven = vec![true];
        for index in 1..self.waiters.len() {
            proven.push(self.send_in(index)?);
        }
        let until = Instant::now() + options.hold();
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        self.stop.store(true, Ordering::Release);
        self.holder.await_done()?;
        for (waiter, proven) in self.waiters.iter_mut().zip(proven) {
            let attempt = waiter.member.await_done()?;
            if proven { waiter.tally.add(attempt) } else { waiter.tally.add_unproven() }
        }
        Ok(())
    }

    /// Between the call of `console_lock` and that of `console_unlock`.
    fn holder_is_inside(&self) -> bool {
        let frames = blocked::kernel_stack(self.holder.tid());
        let is = |name: &str| frames.iter().any(|frame| frame == name);
        (is("do_con_write") || is("con_write")) && !is("console_lock") && !is("console_unlock")
    }

    /// `false`: the waiter came through. It has a higher priority than we: it is blocked or done when we run.
    fn send_in(&mut self, index: usize) -> Result<bool> {
        let waiter = &mut self.waiters[index];
        waiter.member.start()?;
        let deadline = clock::deadline();
        loop {
            if let Some(sighting) = waiter.place.check(waiter.member.tid()) {
                waiter.kernel_caller = sighting.kernel_caller.or(waiter.kernel_caller.take());
                return Ok(true);
            }
            if waiter.member.has_finished() {
                if index == 0 {
                    // It did not wait and nobody waits behind it: nothing has happened.
                    waiter.member.await_done()?;
                    self.misses += 1;
                }
                return Ok(false);
            }
            if Instant::now() > deadline {
                bail!("a waiter neither blocked nor finished");
            }
        }
    }
}

fn writing_job(terminal: Arc<File>, stop: Arc<AtomicBool>) -> Job {
    Box::new(move || {
        let text = [b'x'; CHUNK];
        while !stop.load(Ordering::Acquire) {
            // SAFETY: `text` has as many bytes as are passed.
            let written = unsafe { libc::write(terminal.as_raw_fd(), text.as_ptr().cast(), text.len()) };
            if written < 0 {
                return Err(io::Error::last_os_error()).with_context(|| format!("write to {TERMINAL}"));
            }
        }
        Ok(Attempt { wait_ns: 0, aborted: false })
    })
}

/// Asks whether programs want mouse reports, for which the kernel takes `console_lock`.
fn asking_job(terminal: Arc<File>) -> Job {
    const TIOCLINUX: libc::c_ulong = 0x541c;
    const TIOCL_GETMOUSEREPORTING: u8 = 7;
    Box::new(move || {
        let mut code = TIOCL_GETMOUSEREPORTING;
        // SAFETY: the kernel reads and writes the one byte.
        let ask = || i64::from(unsafe { libc::ioctl(terminal.as_raw_fd(), TIOCLINUX as _, &raw mut code) });
        Ok(timed("TIOCLINUX", ask)?.0)
    })
}

/// The terminal, set to pass on what is written in one piece.
fn open_terminal() -> Result<File> {
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(TERMINAL)
        .with_context(|| format!("open {TERMINAL}: the scenario needs root and virtual terminals"))?;
    // SAFETY: all-zero bytes are a valid termios.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is a valid place for the answer, and then a complete termios.
    let set = unsafe {
        libc::tcgetattr(terminal.as_raw_fd(), &mut settings) == 0 && {
            libc::cfmakeraw(&mut settings);
            libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &settings) == 0
        }
    };
    if !set {
        return Err(io::Error::last_os_error()).with_context(|| format!("set up {TERMINAL}"));
    }
    Ok(terminal)
}

/// The caller and all threads it starts from now on.
fn stay_on_one_cpu() -> Result<()> {
    // SAFETY: sched_getcpu takes nothing.
    let cpu = unsafe { libc::sched_getcpu() };
    crate::kernel_spin::pin_to(usize::try_from(cpu).context("sched_getcpu")?)
}

/// SCHED_FIFO, or back to normal with priority 0.
fn set_priority(tid: i32, priority: libc::c_int) -> Result<()> {
    let policy = if priority == 0 { libc::SCHED_OTHER } else { libc::SCHED_FIFO };
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: `parameters` lives through the call.
    match unsafe { libc::sched_setscheduler(tid, policy, &parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("sched_setscheduler: real-time priority needs root"),
    }
}
