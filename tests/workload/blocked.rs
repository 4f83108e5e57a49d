//! Proof that a thread is blocked in the lock it is meant to wait for.
//!
//! `/proc/TID/syscall` answers with numbers only when the thread is off the CPU; together with the
//! state in `stat` and, for a futex, the address in the first argument, that is a proof. For kernel locks
//! `/proc/TID/stack` (root only) also tells which kernel function waits.

use std::fs;
use std::ops::Range;
use std::time::Instant;

use crate::clock;
use anyhow::{Result, bail};

/// Where a waiter is expected to block.
#[derive(Clone)]
pub enum WaitsIn {
    /// In the futex system call on a word inside this address range.
    Futex(Range<u64>),
    /// Uninterruptibly, inside this system call: a kernel mutex or rwsem.
    KernelLock(libc::c_long),
    /// The same, with the first function on its kernel stack and without one that has the second text in its
    /// name: where the system call can sleep for other reasons too.
    KernelLockVia(libc::c_long, &'static str, &'static str),
    /// Interruptibly, inside this system call: the waits that a signal can end.
    Interruptible(libc::c_long),
}

/// What was seen of a thread that is provably blocked.
pub struct Sighting {
    /// The futex word, if it is one.
    pub futex: Option<u64>,
    /// The kernel function that called the lock function, if the kernel lets us see it.
    pub kernel_caller: Option<String>,
}

impl WaitsIn {
    /// Looks once; `None` means that the thread is not blocked there (yet).
    pub fn check(&self, tid: i32) -> Option<Sighting> {
        let syscall = read(tid, "syscall")?;
        let mut fields = syscall.split_whitespace();
        let number: libc::c_long = fields.next()?.parse().ok()?; // "running" is no number
        let first = fields.next()?.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok())?;
        let state = state(tid)?;
        match self {
            WaitsIn::Futex(words) => {
                let there = number == libc::SYS_futex && words.contains(&first) && matches!(state, 'S' | 'D');
                there.then_some(Sighting { futex: Some(first), kernel_caller: None })
            }
            WaitsIn::KernelLock(wanted) => {
                let there = number == *wanted && state == 'D';
                there.then(|| Sighting { futex: None, kernel_caller: lock_caller(kernel_stack(tid)) })
            }
            WaitsIn::KernelLockVia(wanted, via, unwanted) => {
                let frames = kernel_stack(tid);
                let via = frames.iter().any(|frame| frame == via);
                let elsewhere = frames.iter().any(|frame| frame.contains(unwanted));
                let there = number == *wanted && state == 'D' && via && !elsewhere;
                there.then(|| Sighting { futex: None, kernel_caller: lock_caller(frames) })
            }
            WaitsIn::Interruptible(wanted) => {
                let there = number == *wanted && state == 'S';
                there.then(|| Sighting { futex: None, kernel_caller: lock_caller(kernel_stack(tid)) })
            }
        }
    }
}

/// Waits until `finished` or until the thread is blocked; `None` means that it finished without blocking.
pub fn await_blocked(
    tid: i32,
    name: &str,
    place: &WaitsIn,
    deadline: Instant,
    finished: impl Fn() -> bool,
) -> Result<Option<Sighting>> {
    loop {
        if let Some(sighting) = place.check(tid) {
            return Ok(Some(sighting));
        }
        if finished() {
            return Ok(None);
        }
        if Instant::now() > deadline {
            let syscall = read(tid, "syscall").unwrap_or_default();
            bail!(
                "{name} (thread {tid}) did not block in the lock; it is in system call: {}",
                syscall.trim()
            );
        }
        clock::poll_pause();
    }
}

/// The kernel functions that a thread off the CPU is in, innermost first; empty if the kernel does not tell.
pub fn kernel_stack(tid: i32) -> Vec<String> {
    read(tid, "stack").map(|stack| frames(&stack)).unwrap_or_default()
}

/// Most kernels leave the lock functions themselves out of the file; skip them on the others.
fn lock_caller(frames: Vec<String>) -> Option<String> {
    frames.into_iter().find(|frame| !is_lock_function(frame))
}

fn read(tid: i32, file: &str) -> Option<String> {
    // Not /proc/self/task: a waiter may be a process of its own.
    fs::read_to_string(format!("/proc/{tid}/{file}")).ok()
}

/// The state letter: it follows the command name, which may itself contain spaces and parentheses.
fn state(tid: i32) -> Option<char> {
    let stat = read(tid, "stat")?;
    stat.get(stat.rfind(')')? + 2..)?.chars().next()
}

/// Function names of a `/proc/PID/stack`, innermost first: lines are `[<0>] pipe_write+0x4d/0x530 [module]`.
fn frames(stack: &str) -> Vec<String> {
    stack
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter_map(|frame| frame.split('+').next())
        .map(|name| name.split('.').next().unwrap_or(name).to_string()) // drop .isra.0, .constprop.0
        .collect()
}

/// Functions of the lock implementations themselves (also those of PREEMPT_RT) and of the scheduler.
fn is_lock_function(name: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "mutex_lock",
        "__mutex_lock",
        "rwsem_",
        "percpu_",
        "__percpu_",
        "down",
        "__down",
        "rt_mutex_",
        "__rt_mutex_",
        "rwbase_",
        "schedule",
        "__schedule",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
