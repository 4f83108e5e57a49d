//! `foreign-mmap`: proves that the mmap_lock of another process is called what it is.
//!
//! A child maps and fills some memory over itself, again and again, with its own mmap_lock held for writing all
//! the while; we read its memory and so wait for that lock. How often is chance: it goes on until `--rounds`
//! reads have slept, for which there is no other reason.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::Options;
use crate::truth::{LockRow, Outcome};

const CHURNED: usize = 32 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

fn map(at: *mut libc::c_void, length: usize, flags: libc::c_int) -> Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: a new mapping, or one in place of another that only this module knows.
    let place = unsafe { libc::mmap(at, length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("mmap");
    }
    Ok(place)
}

fn churn(place: *mut libc::c_void) -> ! {
    // SAFETY: no pointers; the child must not outlive us.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    while map(place, CHURNED, libc::MAP_FIXED | libc::MAP_POPULATE).is_ok() {}
    // SAFETY: ends the child without running what the parent's exit would.
    unsafe { libc::_exit(1) }
}

pub fn run(options: &Options) -> Result<Outcome> {
    let churned = map(std::ptr::null_mut(), CHURNED, 0)?;
    let message = map(std::ptr::null_mut(), 4096, libc::MAP_POPULATE)?;
    // SAFETY: we have one thread, and the child calls nothing that needs another.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()).context("fork"),
        0 => churn(churned),
        child => child,
    };
    let result = read_until_it_waited(child, message, options.rounds);
    // SAFETY: our own child, which is not reaped yet.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    let (reads, waits) = result?;
    let row = LockRow::unknown("rwsem:R", "mm_struct.mmap_lock");
    let mut outcome = Outcome { hold_ns: None, ..options.outcome(vec![row]) };
    outcome.extra.insert("reads".to_string(), json!(reads));
    outcome.extra.insert("slept".to_string(), json!(waits));
    outcome.extra.insert("child".to_string(), json!(child));
    Ok(outcome)
}

/// How often we went off the CPU without being made to.
fn sleeps() -> Result<libc::c_long> {
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the answer.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) } != 0 {
        return Err(io::Error::last_os_error()).context("getrusage");
    }
    Ok(usage.ru_nvcsw)
}

/// How often it read, and how often that slept.
fn read_until_it_waited(child: i32, from: *mut libc::c_void, times: u64) -> Result<(u64, u64)> {
    let mut to = [0u8; 64];
    let (mut reads, mut waits) = (0, 0);
    let start = Instant::now();
    while waits < times {
        let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
        let remote = libc::iovec { iov_base: from, iov_len: to.len() };
        let before = sleeps()?;
        // SAFETY: `to` is as long as said; `from` is an address in the child.
        if unsafe { libc::process_vm_readv(child, &local, 1, &remote, 1, 0) } < 0 {
            return Err(io::Error::last_os_error()).context("process_vm_readv");
        }
        reads += 1;
        waits += u64::from(sleeps()? > before);
        if start.elapsed() > PATIENCE {
            bail!("{reads} reads, and only {waits} of them had to wait");
        }
    }
    Ok((reads, waits))
}
