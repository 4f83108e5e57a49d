//! `rwsem-write` and `rwsem-read`: prove that both kinds of waits for one rwsem are told apart.
//!
//! `rwsem-write`: the holder writes to a tmpfs file from a page that stops it, with `i_rwsem` of the file held
//! for writing; the waiters write to the same file. (Both the copy itself and the pre-faulting of newer
//! kernels happen under the lock.)
//!
//! `rwsem-read`: the holder lists a tmpfs directory into a page that stops it, with `i_rwsem` of the directory
//! held for reading (the first thing that `dcache_readdir` and `offset_readdir` emit is "."). One creator of
//! a file then waits for writing, and listers of the same directory wait for reading behind it. Each lister
//! has its own open directory: one shared by several would make them wait for `f_pos_lock` instead.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};

use crate::Options;
use crate::blocked::WaitsIn;
use crate::crew::{Crew, Hold, Job, Member, Waiter};
use crate::kernel::{TmpfsDir, c_path, row, timed};
use crate::truth::Outcome;
use crate::userfault::{FaultPage, UserBuffer};

pub fn run_write(options: &Options) -> Result<Outcome> {
    let dir = TmpfsDir::new()?;
    let file = Arc::new(File::create(dir.path().join("ledger")).context("create a file on tmpfs")?);
    let page = FaultPage::new()?;
    let holder = Member::spawn("holder", pwrite_job(Arc::clone(&file), page.buffer()))?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let place = WaitsIn::KernelLock(libc::SYS_pwrite64);
        let job = pwrite_job(Arc::clone(&file), UserBuffer::mapped()?);
        waiters.push(Waiter::spawn(&format!("file-writer-{index}"), place, job)?);
    }
    let mut crew = Crew { hold: page, holder, waiters };
    crew.run(options)?;
    let locks = vec![row("rwsem:W", "inode.i_rwsem", crew.waiters.iter())];
    let holder = crew.holder.tid();
    crew.dismiss()?;
    Ok(options.outcome(locks).held_by(holder))
}

fn pwrite_job(file: Arc<File>, from: UserBuffer) -> Job {
    Box::new(move || {
        // SAFETY: `from` is a whole page; 64 bytes of it are read.
        let write = || unsafe { libc::pwrite(file.as_raw_fd(), from.ptr(), 64, 0) as i64 };
        Ok(timed("pwrite", write)?.0)
    })
}

/// An open directory that the director replaces before each round, so that every listing starts at ".".
struct Listing {
    fd: AtomicI32,
}

impl Listing {
    fn job(self: &Arc<Listing>, to: UserBuffer) -> Job {
        let listing = Arc::clone(self);
        Box::new(move || {
            let fd = listing.fd.load(Ordering::Acquire);
            // SAFETY: the kernel writes at most one page to `to`, which no Rust value lives in.
            let list = || unsafe { libc::syscall(libc::SYS_getdents64, fd, to.ptr::<u8>(), to.len()) as i64 };
            Ok(timed("getdents64", list)?.0)
        })
    }
}

pub struct DirectoryHold {
    page: FaultPage,
    dir: PathBuf,
    listings: Vec<Arc<Listing>>,
    /// The directories behind the descriptors of `listings`.
    open: Vec<File>,
    /// What the creator makes in each round.
    created: PathBuf,
}

impl DirectoryHold {
    /// With the job of the holder.
    pub fn new(dir: &TmpfsDir, created: PathBuf) -> Result<(DirectoryHold, Job)> {
        let page = FaultPage::new()?;
        let stop = page.buffer();
        let dir = dir.path().to_path_buf();
        let mut hold = DirectoryHold { page, dir, listings: Vec::new(), open: Vec::new(), created };
        let job = hold.listing_job(stop);
        Ok((hold, job))
    }

    /// Lists the directory once in each round.
    fn listing_job(&mut self, to: UserBuffer) -> Job {
        let listing = Arc::new(Listing { fd: AtomicI32::new(-1) });
        self.listings.push(Arc::clone(&listing));
        listing.job(to)
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Hold for DirectoryHold {
    fn prepare(&mut self) -> Result<()> {
        self.open.clear();
        for listing in &self.listings {
            let dir = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECTORY)
                .open(&self.dir)
                .with_context(|| format!("open {}", self.dir.display()))?;
            listing.fd.store(dir.as_raw_fd(), Ordering::Release);
            self.open.push(dir);
        }
        self.page.prepare()
    }
    fn await_held(&mut self) -> Result<()> {
        self.page.await_held()
    }
    fn release(&mut self) -> Result<()> {
        self.page.release()
    }
    fn clean_up(&mut self) -> Result<()> {
        std::fs::remove_file(&self.created).context("remove the created file")
    }
}

pub fn run_read(options: &Options) -> Result<Outcome> {
    let dir = TmpfsDir::new()?;
    let created = dir.path().join("created");
    let mut waiters = vec![creator(&created)?];
    let (mut hold, listing) = DirectoryHold::new(&dir, created)?;
    let holder = Member::spawn("holder", listing)?;
    for index in 0..options.waiters {
        let place = WaitsIn::KernelLock(libc::SYS_getdents64);
        let job = hold.listing_job(UserBuffer::mapped()?);
        waiters.push(Waiter::spawn(&format!("dir-lister-{index}"), place, job)?);
    }
    let mut crew = Crew { hold, holder, waiters };
    crew.run(options)?;
    let locks = vec![
        row("rwsem:W", "inode.i_rwsem", crew.waiters.iter().take(1)),
        row("rwsem:R", "inode.i_rwsem", crew.waiters.iter().skip(1)),
    ];
    let holder = crew.holder.tid();
    crew.dismiss()?;
    Ok(options.outcome(locks).held_by(holder))
}

/// Waits for writing. Its wait ends a few microseconds after it has the lock, when the file exists.
pub fn creator(path: &Path) -> Result<Waiter> {
    let path = c_path(path)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC;
    let job: Job = Box::new(move || {
        // SAFETY: the path is NUL-terminated. openat by number: libc's open() is not the same call everywhere.
        let create =
            || unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) as i64 };
        let (attempt, fd) = timed("create a file", create)?;
        // SAFETY: the descriptor is new and not used again.
        unsafe { libc::close(fd as libc::c_int) };
        Ok(attempt)
    });
    Waiter::spawn("dir-creator", WaitsIn::KernelLock(libc::SYS_openat), job)
}
