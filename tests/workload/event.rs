//! Hand-over between threads that leaves no lock contention of its own.
//!
//! A condition variable or a channel would put futex waits, and a pipe would put mutex waits, into the very
//! profile that is to be compared with the truth. An eventfd has neither.

use std::io;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// A counting event: each `wait` consumes one `signal`.
pub struct Event(libc::c_int);

impl Event {
    pub fn new() -> Result<Event> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_SEMAPHORE) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("eventfd");
        }
        Ok(Event(fd))
    }

    pub fn signal(&self) -> Result<()> {
        let one = 1u64;
        // SAFETY: the eight bytes are read from `one`, which lives through the call.
        let written = unsafe { libc::write(self.0, (&raw const one).cast(), 8) };
        if written != 8 {
            return Err(io::Error::last_os_error()).context("write to an eventfd");
        }
        Ok(())
    }

    /// Waits without limit: for the threads that obey the director, which itself has a deadline.
    pub fn wait(&self) -> Result<()> {
        loop {
            let mut count = 0u64;
            // SAFETY: eight bytes are written to `count`.
            let got = unsafe { libc::read(self.0, (&raw mut count).cast(), 8) };
            if got == 8 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error).context("read from an eventfd");
            }
        }
    }

    /// Waits until `deadline`; `what` names the condition in the error.
    pub fn wait_until(&self, deadline: Instant, what: &str) -> Result<()> {
        poll_readable(self.0, deadline, what)?;
        self.wait()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the descriptor belongs to this value and is not used again.
        unsafe { libc::close(self.0) };
    }
}

/// Waits until `fd` has something to read, or fails after `deadline`.
pub fn poll_readable(fd: libc::c_int, deadline: Instant, what: &str) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd is passed and counted as one.
        let ready = unsafe { libc::poll(&mut poll, 1, left as libc::c_int) };
        if ready > 0 {
            return Ok(());
        }
        if ready == 0 {
            bail!("gave up waiting for {what}");
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).with_context(|| format!("poll for {what}"));
        }
    }
}
