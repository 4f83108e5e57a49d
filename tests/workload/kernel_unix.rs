//! `unix-socket`: proves that a lock of a UNIX socket is called one, although its memory is that of a cache
//! which has other names too.
//!
//! The holder reads from a stream socket into a page that stops it, with `iolock` of the socket held; the
//! waiters read from the same socket. There is something to read for everybody, so nobody waits for data.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::Options;
use crate::blocked::WaitsIn;
use crate::crew::{Crew, Hold, Job, Member, Waiter};
use crate::kernel::{row, timed};
use crate::truth::Outcome;
use crate::userfault::{FaultPage, UserBuffer};

const MESSAGE: usize = 64;

struct SocketHold {
    page: FaultPage,
    peer: UnixStream,
    readers: usize,
}

impl Hold for SocketHold {
    fn prepare(&mut self) -> Result<()> {
        self.peer.write_all(&vec![b'x'; MESSAGE * self.readers]).context("write to a socket")?;
        self.page.prepare()
    }
    fn await_held(&mut self) -> Result<()> {
        self.page.await_held()
    }
    fn release(&mut self) -> Result<()> {
        self.page.release()
    }
}

fn read_job(socket: Arc<UnixStream>, to: UserBuffer) -> Job {
    Box::new(move || {
        // SAFETY: the kernel writes at most 64 bytes to the page, which no Rust value lives in.
        let read = || unsafe { libc::read(socket.as_raw_fd(), to.ptr(), MESSAGE) as i64 };
        Ok(timed("read", read)?.0)
    })
}

pub fn run(options: &Options) -> Result<Outcome> {
    let (socket, peer) = UnixStream::pair().context("socketpair")?;
    let socket = Arc::new(socket);
    let page = FaultPage::new()?;
    let holder = Member::spawn("holder", read_job(Arc::clone(&socket), page.buffer()))?;
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let job = read_job(Arc::clone(&socket), UserBuffer::mapped()?);
        waiters.push(Waiter::spawn(&format!("receiver-{index}"), WaitsIn::KernelLock(libc::SYS_read), job)?);
    }
    let hold = SocketHold { page, peer, readers: waiters.len() + 1 };
    let mut crew = Crew { hold, holder, waiters };
    crew.run(options)?;
    let locks = vec![row("mutex", "unix_sock.iolock", crew.waiters.iter())];
    let holder = crew.holder.tid();
    crew.dismiss()?;
    Ok(options.outcome(locks).held_by(holder))
}
