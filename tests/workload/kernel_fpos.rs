//! `fpos-mutex`: proves that a kernel mutex which belongs to no file-system object is named and seen.
//!
//! The holder reads a tmpfs file into a page that stops it. `read` keeps `file->f_pos_lock` of the shared open
//! file; the waiters `lseek` the same descriptor. (Only a process with several threads takes this lock.)

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::Options;
use crate::blocked::WaitsIn;
use crate::crew::{Crew, Hold, Member, Waiter};
use crate::kernel::{TmpfsDir, row, timed};
use crate::truth::Outcome;
use crate::userfault::FaultPage;

struct FileHold {
    page: FaultPage,
    file: Arc<File>,
}

impl Hold for FileHold {
    /// Back to the start, so that `read` has something to copy.
    fn prepare(&mut self) -> Result<()> {
        (&*self.file).seek(SeekFrom::Start(0)).context("seek")?;
        self.page.prepare()
    }
    fn await_held(&mut self) -> Result<()> {
        self.page.await_held()
    }
    fn release(&mut self) -> Result<()> {
        self.page.release()
    }
}

pub fn run(options: &Options) -> Result<Outcome> {
    let dir = TmpfsDir::new()?;
    let path = dir.path().join("shared");
    let mut file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(&[b'x'; 64]).context("write to tmpfs")?;
    let file = Arc::new(file);
    let page = FaultPage::new()?;
    let stop = page.buffer();
    let theirs = Arc::clone(&file);
    let holder = Member::spawn(
        "holder",
        Box::new(move || {
            // SAFETY: the kernel writes at most 64 bytes to the page, which no Rust value lives in.
            let read = || unsafe { libc::read(theirs.as_raw_fd(), stop.ptr(), 64) as i64 };
            Ok(timed("read", read)?.0)
        }),
    )?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let theirs = Arc::clone(&file);
        waiters.push(Waiter::spawn(
            &format!("seeker-{index}"),
            WaitsIn::KernelLock(libc::SYS_lseek),
            Box::new(move || {
                // SAFETY: no pointers are passed.
                let seek = || unsafe { libc::lseek(theirs.as_raw_fd(), 0, libc::SEEK_SET) };
                Ok(timed("lseek", seek)?.0)
            }),
        )?);
    }
    let mut crew = Crew { hold: FileHold { page, file }, holder, waiters };
    crew.run(options)?;
    let locks = vec![row("mutex", "file.f_pos_lock", crew.waiters.iter())];
    let holder = crew.holder.tid();
    crew.dismiss()?;
    Ok(options.outcome(locks).held_by(holder))
}
