//! `interrupted`: proves that a kernel lock wait which a signal ends is not counted as an acquisition.
//!
//! Who reads a terminal in which nothing was typed keeps the reader lock while it waits
//! (drivers/tty/n_tty.c n_tty_read: `mutex_lock_interruptible(&ldata->atomic_read_lock)`), from 5.10 to 7.x.
//! The waiters read the same terminal, and a signal ends each wait with EINTR. Only then is a line typed.
//!
//! `trylock`: a read that must not block takes the same lock by `mutex_trylock`. Many of them while it is held are
//! refused, and as many while it is free get it; neither finds anything to read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::Options;
use crate::blocked::WaitsIn;
use crate::clock::now_ns;
use crate::crew::{Crew, Hold, Job, Member, Waiter};
use crate::kernel::row;
use crate::truth::{Attempt, Outcome};

const INTERRUPT: libc::c_int = libc::SIGUSR1;

struct TypedLine {
    master: File,
    holder_tid: i32,
    tries: Option<Tries>,
}

struct Tries {
    /// The terminal, opened with O_NONBLOCK.
    terminal: File,
    number: u64,
}

impl Tries {
    fn new(slave: &File, number: u64) -> Result<Tries> {
        // Another open file: the flag is not one of the descriptor.
        let path = format!("/proc/self/fd/{}", slave.as_raw_fd());
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        let terminal = OpenOptions::new().read(true).custom_flags(flags).open(path);
        Ok(Tries { terminal: terminal.context("open the terminal again")?, number })
    }

    fn run(&self) -> Result<()> {
        for _ in 0..self.number {
            match (&self.terminal).read(&mut [0u8; 64]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read from the terminal without blocking"),
                Ok(_) => bail!("read something that was never typed"),
            }
        }
        Ok(())
    }
}

impl Hold for TypedLine {
    /// The lock is free.
    fn prepare(&mut self) -> Result<()> {
        self.tries.as_ref().map_or(Ok(()), Tries::run)
    }

    /// Nobody else reads yet: who sleeps in `read` now sleeps for input, with the lock.
    fn await_held(&mut self) -> Result<()> {
        let place = WaitsIn::Interruptible(libc::SYS_read);
        let deadline = crate::clock::deadline();
        match crate::blocked::await_blocked(self.holder_tid, "holder", &place, deadline, || false)? {
            Some(_) => Ok(()),
            None => bail!("the holder read something that was never typed"),
        }
    }

    fn before_release(&mut self, waiters: &[Waiter]) -> Result<()> {
        self.tries.as_ref().map_or(Ok(()), Tries::run)?;
        for waiter in waiters {
            // SAFETY: no pointers are passed.
            let sent = unsafe {
                libc::syscall(libc::SYS_tgkill, std::process::id(), waiter.member.tid(), INTERRUPT)
            };
            if sent != 0 {
                return Err(io::Error::last_os_error()).context("tgkill");
            }
            waiter.member.await_finished()?;
        }
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.master.write_all(b"line\n").context("type a line")
    }
}

pub fn run(options: &Options) -> Result<Outcome> {
    run_with(options, 0)
}

pub fn run_trylock(options: &Options) -> Result<Outcome> {
    let mut outcome = run_with(options, options.operations)?;
    // The holder's of each round, and the tries while the lock was free.
    let acquired = options.rounds * (1 + options.operations);
    outcome.extra.insert("acquired".to_string(), json!(acquired));
    outcome.extra.insert("refused".to_string(), json!(options.rounds * options.operations));
    Ok(outcome)
}

fn run_with(options: &Options, tries: u64) -> Result<Outcome> {
    catch_signal()?;
    let (master, slave) = open_terminal()?;
    let tries = (tries > 0).then(|| Tries::new(&slave, tries)).transpose()?;
    let slave = Arc::new(slave);
    let holder = Member::spawn("holder", read_job(Arc::clone(&slave)))?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let place = WaitsIn::Interruptible(libc::SYS_read);
        waiters.push(Waiter::spawn(&format!("reader-{index}"), place, read_job(Arc::clone(&slave)))?);
    }
    let hold = TypedLine { master, holder_tid: holder.tid(), tries };
    let mut crew = Crew { hold, holder, waiters };
    crew.run(options)?;
    let locks = vec![row("mutex", "n_tty_data.atomic_read_lock", crew.waiters.iter())];
    crew.dismiss()?;
    Ok(options.outcome(locks))
}

fn read_job(terminal: Arc<File>) -> Job {
    Box::new(move || {
        let mut line = [0u8; 64];
        let before = now_ns();
        // SAFETY: at most as many bytes as `line` has are written to it.
        let got = unsafe { libc::read(terminal.as_raw_fd(), line.as_mut_ptr().cast(), line.len()) };
        let wait_ns = now_ns() - before;
        let error = io::Error::last_os_error();
        match got {
            1.. => Ok(Attempt { wait_ns, aborted: false }),
            -1 if error.kind() == io::ErrorKind::Interrupted => Ok(Attempt { wait_ns, aborted: true }),
            -1 => Err(error).context("read from the terminal"),
            _ => bail!("the terminal was hung up"),
        }
    })
}

/// A handler without SA_RESTART: the interrupted read returns.
fn catch_signal() -> Result<()> {
    extern "C" fn ignore(_signal: libc::c_int) {}
    // SAFETY: all-zero bytes are a valid sigaction: no flags, nothing masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
    // SAFETY: `action` is valid, and the handler does nothing at all.
    match unsafe { libc::sigaction(INTERRUPT, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("sigaction"),
    }
}

/// A pseudo-terminal that is nobody's controlling terminal.
fn open_terminal() -> Result<(File, File)> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("open a pseudo-terminal");
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    let master = unsafe { File::from_raw_fd(fd) };
    let mut name = [0 as libc::c_char; 64];
    // SAFETY: `master` is open, and `name` has the length that is passed.
    let named = unsafe {
        libc::grantpt(fd) == 0
            && libc::unlockpt(fd) == 0
            && libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) == 0
    };
    if !named {
        return Err(io::Error::last_os_error()).context("set up a pseudo-terminal");
    }
    // SAFETY: ptsname_r has written a NUL-terminated string.
    let path = unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }.to_str().context("name of the terminal")?;
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .with_context(|| format!("open {path}"))?;
    Ok((master, slave))
}
