//! `percpu-rwsem`: proves that both sides of a percpu_rw_semaphore are seen: `dup_mmap_sem`, which every fork
//! takes for reading and every attached uprobe for writing (kernel/fork.c dup_mm, kernel/events/uprobes.c).
//!
//! The holder forks, and its fork is stopped inside `dup_mmap` by userfaultfd (see `ForkStop`), with the lock
//! held for reading. One thread then attaches a uprobe and waits for writing; the waiters fork and wait for
//! reading behind it. The uprobe is on a file of our own that nobody maps: nothing is ever patched.
//!
//! A writer first waits for an RCU grace period (kernel/rcu/sync.c rcu_sync_enter) and shuts readers out only
//! after it, so it counts as blocked only when it is past that.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use serde_json::json;

use crate::Options;
use crate::blocked::WaitsIn;
use crate::crew::{Crew, Job, Member, Waiter};
use crate::kernel::{TmpfsDir, c_path, row, timed};
use crate::perf::{ENABLE_ON_EXEC, PerfEventAttr};
use crate::truth::Outcome;
use crate::userfault::ForkStop;

const LOCK: &str = "dup_mmap_sem";

pub fn run(options: &Options) -> Result<Outcome> {
    let dir = TmpfsDir::new()?;
    let probed = dir.path().join("probed");
    fs::write(&probed, [0x90; 4096]).with_context(|| format!("write {}", probed.display()))?;
    let probed = c_path(&probed)?;
    let pmu = uprobe_pmu()?;
    // Find out here, and not with a thread on the way, whether this works at all.
    drop(attach_uprobe(pmu, &probed, 0).context("attach a uprobe")?);

    let stop = ForkStop::new()?;
    let holder = Member::spawn("holder", fork_job())?;
    let mut waiters = vec![attacher(pmu, probed)?];
    for index in 0..options.waiters {
        let place = WaitsIn::KernelLockVia(libc::SYS_clone, "uprobe_start_dup_mmap", "rcu");
        waiters.push(Waiter::spawn(&format!("forker-{index}"), place, fork_job())?);
    }
    let mut crew = Crew { hold: stop, holder, waiters };
    crew.run(options)?;
    let locks = vec![
        row("pcpu-sem:W", LOCK, crew.waiters.iter().take(1)),
        row("pcpu-sem:R", LOCK, crew.waiters.iter().skip(1)),
    ];
    crew.dismiss()?;
    let mut outcome = options.outcome(locks);
    outcome.extra.insert("times_include".to_string(), json!("the rest of fork and perf_event_open"));
    Ok(outcome)
}

/// Forks, with a child that ends at once.
fn fork_job() -> Job {
    Box::new(|| {
        let fork = || {
            // By number: libc's fork() runs handlers and takes its own locks.
            // SAFETY: the child is a copy of this thread on a copy of its stack.
            let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            if pid == 0 {
                // SAFETY: the child touches nothing and ends.
                unsafe { libc::syscall(libc::SYS_exit_group, 0) };
            }
            pid
        };
        let (attempt, pid) = timed("clone", fork)?;
        // SAFETY: no pointer is passed but null, which waitpid allows.
        if unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0) } != pid as libc::pid_t {
            return Err(io::Error::last_os_error()).context("waitpid");
        }
        Ok(attempt)
    })
}

/// Waits for writing. Its uprobes stay attached until the end: to detach takes the lock for writing too.
fn attacher(pmu: u32, probed: CString) -> Result<Waiter> {
    let mut attached = Vec::new();
    let job: Job = Box::new(move || {
        let mut fd = None;
        // A new offset each time: a second probe at the same place would be the first one's.
        let offset = attached.len() as u64 + 1;
        let (attempt, _) = timed("perf_event_open", || match attach_uprobe(pmu, &probed, offset) {
            Ok(event) => {
                fd = Some(event);
                0
            }
            Err(_) => -1,
        })?;
        attached.push(fd);
        Ok(attempt)
    });
    let place = WaitsIn::KernelLockVia(libc::SYS_perf_event_open, "register_for_each_vma", "rcu");
    Waiter::spawn("uprobe-attacher", place, job)
}

/// Attaches a uprobe that never fires. `ENABLE_ON_EXEC` is what makes this take the lock once and not twice
/// (kernel/trace/trace_uprobe.c trace_uprobe_filter_add).
fn attach_uprobe(pmu: u32, path: &CString, offset: u64) -> io::Result<OwnedFd> {
    let attr = PerfEventAttr {
        kind: pmu,
        config1: path.as_ptr() as u64,
        config2: offset,
        flags: ENABLE_ON_EXEC,
        ..PerfEventAttr::default()
    };
    attr.open(0, -1)
}

fn uprobe_pmu() -> Result<u32> {
    const TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";
    let number = fs::read_to_string(TYPE).with_context(|| format!("no uprobes here: {TYPE}"))?;
    number.trim().parse().with_context(|| format!("{TYPE} is no number: {number}"))
}
