//! `spin`, `rwlock` and `acpi-semaphore`: threads on different CPUs that hammer one kernel lock a chosen number
//! of times.
//!
//! Nobody outside the kernel can tell how long they wait. The truth is the number of operations; how often they
//! met is counted by `lockprof-workload count-calls`, which shares no code with the profiler.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use serde_json::json;

use crate::Options;
use crate::clock::now_ns;
use crate::crew::{Job, Member};
use crate::truth::{Attempt, LockRow, Outcome};

/// dup and close take `files_struct.file_lock` once each (fs/file.c alloc_fd, close_fd).
pub fn run_spin(options: &Options) -> Result<Outcome> {
    let file = Arc::new(File::open("/proc/self/stat").context("open a file")?);
    let tids = hammer(options, |_| {
        let file = Arc::clone(&file);
        Box::new(move || {
            // SAFETY: no pointers are passed, and the copy is closed by nobody else.
            if unsafe { libc::close(libc::dup(file.as_raw_fd())) } != 0 {
                return Err(io::Error::last_os_error()).context("dup and close");
            }
            Ok(())
        })
    })?;
    let row = LockRow { tids, ..LockRow::unknown("spinlock", "files_struct.file_lock") };
    Ok(outcome(options, vec![row], 2))
}

/// The mutexes of the ACPI interpreter are semaphores taken with `down_timeout` (drivers/acpi/osl.c
/// acpi_os_wait_semaphore); reading the status of a device evaluates its `_STA` method.
pub fn run_acpi(options: &Options) -> Result<Outcome> {
    let status = find_acpi_status()?;
    let in_reads_ns = Arc::new(AtomicU64::new(0));
    let tids = hammer(options, |_| {
        let (status, in_reads_ns) = (status.clone(), Arc::clone(&in_reads_ns));
        Box::new(move || {
            let before = now_ns();
            std::fs::read(&status).with_context(|| format!("read {}", status.display()))?;
            in_reads_ns.fetch_add(now_ns() - before, Ordering::Relaxed);
            Ok(())
        })
    })?;
    let row = LockRow { name: None, tids, ..LockRow::unknown("semaphore", "") };
    let mut outcome = Outcome { hold_ns: None, rounds: 1, ..options.outcome(vec![row]) };
    outcome.extra.insert("operations".to_string(), json!(options.waiters * options.operations));
    outcome.extra.insert("wait_at_most_ns".to_string(), json!(in_reads_ns.load(Ordering::Relaxed)));
    Ok(outcome)
}

/// Of a CPU if possible: its method takes a mutex of the firmware's own too.
fn find_acpi_status() -> Result<PathBuf> {
    const DEVICES: &str = "/sys/bus/acpi/devices";
    let entries = std::fs::read_dir(DEVICES).with_context(|| format!("no ACPI devices here: {DEVICES}"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path().join("status")))
        .filter(|file| file.exists())
        .collect();
    files.sort_by_key(|file| (!file.to_string_lossy().contains("LNXCPU"), file.clone()));
    files.into_iter().next().with_context(|| format!("no ACPI device with a status in {DEVICES}"))
}

/// Every other thread takes `tasklist_lock` for writing, the rest for reading.
pub fn run_rwlock(options: &Options) -> Result<Outcome> {
    let tids =
        hammer(options, |index| if is_writer(index) { Box::new(write_lock) } else { Box::new(read_lock) })?;
    let mut locks = Vec::new();
    for (kind, writers) in [("rwlock:W", true), ("rwlock:R", false)] {
        let some = tids.iter().enumerate().filter(|(index, _)| is_writer(*index) == writers);
        let tids: Vec<i32> = some.map(|(_, tid)| *tid).collect();
        if !tids.is_empty() {
            locks.push(LockRow { tids, ..LockRow::unknown(kind, "tasklist_lock") });
        }
    }
    Ok(outcome(options, locks, 1))
}

fn is_writer(index: usize) -> bool {
    index.is_multiple_of(2)
}

/// kernel/sys.c setpgid: `write_lock_irq(&tasklist_lock)`. Into the group we are in: nothing changes, or it is
/// refused (to a session leader), after the lock in both cases.
fn write_lock() -> Result<()> {
    // SAFETY: no pointers are passed.
    unsafe { libc::setpgid(0, libc::getpgrp()) };
    Ok(())
}

/// kernel/signal.c kill_something_info: `read_lock(&tasklist_lock)` around a walk over all processes, which makes
/// it long enough to be run into. Signal 0 is never sent.
fn read_lock() -> Result<()> {
    // SAFETY: no pointers are passed.
    unsafe { libc::kill(-1, 0) };
    Ok(())
}

fn outcome(options: &Options, locks: Vec<LockRow>, acquisitions_each: u64) -> Outcome {
    let operations = options.waiters * options.operations;
    let mut outcome = Outcome { hold_ns: None, rounds: 1, ..options.outcome(locks) };
    outcome.extra.insert("operations".to_string(), json!(operations));
    outcome.extra.insert("acquisitions".to_string(), json!(operations * acquisitions_each));
    outcome
}

type Operation = Box<dyn FnMut() -> Result<()> + Send>;

/// Runs all threads at once, spread over the CPUs; returns their ids.
fn hammer(options: &Options, operation: impl Fn(usize) -> Operation) -> Result<Vec<i32>> {
    let cpus = allowed_cpus()?;
    let mut members = Vec::new();
    for index in 0..options.waiters as usize {
        let (cpu, count) = (cpus[index % cpus.len()], options.operations);
        let mut operation = operation(index);
        let job: Job = Box::new(move || {
            pin_to(cpu)?;
            (0..count).try_for_each(|_| operation())?;
            Ok(Attempt { wait_ns: 0, aborted: false })
        });
        members.push(Member::spawn(&format!("hammer-{index}"), job)?);
    }
    members.iter().try_for_each(Member::start)?;
    for member in &members {
        member.await_done_without_limit()?;
    }
    let tids = members.iter().map(Member::tid).collect();
    members.into_iter().try_for_each(Member::dismiss)?;
    Ok(tids)
}

fn allowed_cpus() -> Result<Vec<usize>> {
    // SAFETY: all-zero bytes are an empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the size belongs to `set`.
    if unsafe { libc::sched_getaffinity(0, std::mem::size_of_val(&set), &mut set) } != 0 {
        return Err(io::Error::last_os_error()).context("sched_getaffinity");
    }
    // SAFETY: the numbers are below the size of the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// The calling thread, and the threads it starts later.
pub fn pin_to(cpu: usize) -> Result<()> {
    // SAFETY: all-zero bytes are an empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET ignores numbers beyond the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the size belongs to `set`.
    match unsafe { libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("move to CPU {cpu}")),
    }
}
