//! `flock` and `posix-lock`: prove what waits for file locks look like: they are no locks of the kernel's own,
//! and no tracepoint or lock function tells of them (fs/locks.c sleeps on a wait queue).
//!
//! POSIX locks belong to a table of open files (`current->files`), which the threads of a process share: each
//! thread first makes one of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};

use crate::Options;
use crate::blocked::WaitsIn;
use crate::crew::{Crew, Job, Member, OrderedHold, Waiter};
use crate::kernel::{TmpfsDir, row, timed};
use crate::truth::{Attempt, Outcome};

#[derive(Clone, Copy)]
enum Api {
    Flock,
    Posix,
}

impl Api {
    fn kind(self) -> &'static str {
        match self {
            Api::Flock => "flock",
            Api::Posix => "posix-lock",
        }
    }

    fn syscall(self) -> libc::c_long {
        match self {
            Api::Flock => libc::SYS_flock,
            Api::Posix => libc::SYS_fcntl,
        }
    }

    /// Runs once in each thread.
    fn become_an_owner(self) -> Result<()> {
        // SAFETY: no pointers are passed; descriptors keep their numbers.
        if matches!(self, Api::Posix) && unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
            return Err(io::Error::last_os_error()).context("unshare");
        }
        Ok(())
    }

    fn lock(self, file: &File) -> i64 {
        match self {
            // SAFETY: no pointers are passed.
            Api::Flock => i64::from(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }),
            Api::Posix => set_posix_lock(file, libc::F_WRLCK),
        }
    }

    fn unlock(self, file: &File) -> Result<()> {
        let result = match self {
            // SAFETY: no pointers are passed.
            Api::Flock => i64::from(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) }),
            Api::Posix => set_posix_lock(file, libc::F_UNLCK),
        };
        if result < 0 { Err(io::Error::last_os_error()).context("unlock a file") } else { Ok(()) }
    }
}

fn set_posix_lock(file: &File, kind: libc::c_int) -> i64 {
    // SAFETY: all-zero bytes are a valid flock: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: F_SETLKW reads one flock.
    i64::from(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLKW, &raw const lock) })
}

pub fn run_flock(options: &Options) -> Result<Outcome> {
    run(options, Api::Flock)
}

pub fn run_posix(options: &Options) -> Result<Outcome> {
    run(options, Api::Posix)
}

fn run(options: &Options, api: Api) -> Result<Outcome> {
    let dir = TmpfsDir::new()?;
    let path = dir.path().join("locked");
    File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let hold = OrderedHold::new()?;
    let theirs = std::sync::Arc::clone(&hold);
    let holder = Member::spawn("holder", locking_job(api, &path, move || theirs.keep())?)?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let place = WaitsIn::Interruptible(api.syscall());
        let job = locking_job(api, &path, || Ok(()))?;
        waiters.push(Waiter::spawn(&format!("file-locker-{index}"), place, job)?);
    }
    let mut crew = Crew { hold, holder, waiters };
    crew.run(options)?;
    let locks = vec![row(api.kind(), "file_lock", crew.waiters.iter())];
    crew.dismiss()?;
    Ok(options.outcome(locks))
}

/// Each thread has the file open for itself: flock belongs to the open file.
fn locking_job(api: Api, path: &Path, locked: impl Fn() -> Result<()> + Send + 'static) -> Result<Job> {
    let file =
        OpenOptions::new().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
    let mut is_owner = false;
    Ok(Box::new(move || -> Result<Attempt> {
        if !is_owner {
            api.become_an_owner()?;
            is_owner = true;
        }
        let (attempt, _) = timed("lock a file", || api.lock(&file))?;
        locked()?;
        api.unlock(&file)?;
        Ok(attempt)
    }))
}
