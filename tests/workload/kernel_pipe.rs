//! `pipe-mutex`: proves that a kernel mutex is seen with its true caller, from two different functions.
//!
//! The holder writes one byte from a page that stops it: `pipe_write` copies under `pipe->mutex`, on every
//! kernel from 5.10 to 7.x. Waiters alternate between writing and reading one byte of the same pipe. The pipe
//! always has room and always has data, so the mutex is the only thing they can wait for.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::Options;
use crate::blocked::WaitsIn;
use crate::crew::{Crew, Hold, Member, Waiter};
use crate::kernel::{row, timed};
use crate::truth::Outcome;
use crate::userfault::{FaultPage, UserBuffer};

struct Pipe {
    reader: File,
    writer: File,
}

impl Pipe {
    fn new() -> Result<Pipe> {
        let mut fds = [0; 2];
        // SAFETY: `fds` has room for the two descriptors.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(std::io::Error::last_os_error()).context("pipe2");
        }
        // SAFETY: both descriptors are new and belong to nobody else.
        let (reader, writer) = unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) };
        Ok(Pipe { reader, writer })
    }

    fn write(&self, from: UserBuffer, len: usize) -> i64 {
        // SAFETY: `from` is at least `len` bytes of mapped memory.
        unsafe { libc::write(self.writer.as_raw_fd(), from.ptr(), len) as i64 }
    }

    fn read(&self, to: UserBuffer, len: usize) -> i64 {
        // SAFETY: `to` is at least `len` bytes of mapped memory that no Rust value lives in.
        unsafe { libc::read(self.reader.as_raw_fd(), to.ptr(), len) as i64 }
    }

    fn bytes_inside(&self) -> Result<usize> {
        let mut inside: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int.
        if unsafe { libc::ioctl(self.reader.as_raw_fd(), libc::FIONREAD, &raw mut inside) } != 0 {
            return Err(std::io::Error::last_os_error()).context("FIONREAD");
        }
        Ok(inside as usize)
    }
}

/// Keeps the fill level of the pipe the same in every round.
struct PipeHold {
    page: FaultPage,
    pipe: Arc<Pipe>,
    scratch: UserBuffer,
    level: usize,
}

impl Hold for PipeHold {
    fn prepare(&mut self) -> Result<()> {
        loop {
            let inside = self.pipe.bytes_inside()?;
            let moved = match inside {
                inside if inside > self.level => self.pipe.read(self.scratch, inside - self.level),
                inside if inside < self.level => self.pipe.write(self.scratch, self.level - inside),
                _ => break,
            };
            if moved <= 0 {
                bail!("cannot set the fill level of the pipe: {}", std::io::Error::last_os_error());
            }
        }
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
    let pipe = Arc::new(Pipe::new()?);
    let page = FaultPage::new()?;
    let stop = page.buffer();
    // One byte for each reader, and never near the 64 KiB that a pipe holds.
    let level = options.waiters as usize + 1;
    let theirs = Arc::clone(&pipe);
    let holder = Member::spawn("holder", Box::new(move || Ok(timed("write", || theirs.write(stop, 1))?.0)))?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let theirs = Arc::clone(&pipe);
        let byte = UserBuffer::mapped()?;
        waiters.push(if is_writer(index as usize) {
            let place = WaitsIn::KernelLock(libc::SYS_write);
            Waiter::spawn(
                &format!("pipe-writer-{index}"),
                place,
                Box::new(move || Ok(timed("write", || theirs.write(byte, 1))?.0)),
            )?
        } else {
            let place = WaitsIn::KernelLock(libc::SYS_read);
            Waiter::spawn(
                &format!("pipe-reader-{index}"),
                place,
                Box::new(move || Ok(timed("read", || theirs.read(byte, 1))?.0)),
            )?
        });
    }
    let hold = PipeHold { page, pipe, scratch: UserBuffer::mapped()?, level };
    let mut crew = Crew { hold, holder, waiters };
    crew.run(options)?;

    let mut locks = Vec::new();
    for writers in [true, false] {
        let some = crew.waiters.iter().enumerate().filter(|(index, _)| is_writer(*index) == writers);
        let some = some.map(|(_, waiter)| waiter);
        if some.clone().count() > 0 {
            locks.push(row("mutex", "pipe_inode_info.mutex", some));
        }
    }
    let holder = crew.holder.tid();
    crew.dismiss()?;
    Ok(options.outcome(locks).held_by(holder))
}

fn is_writer(index: usize) -> bool {
    index.is_multiple_of(2)
}
