//! `killed`: proves that a lock wait which SIGKILL ends is neither lost nor counted as an acquisition.
//!
//! The shape is that of `rwsem-read`, with processes instead of threads as the readers: the holder lists a
//! tmpfs directory, a creator waits for writing, and the children that list the directory behind it wait in
//! `down_read_killable` (fs/readdir.c iterate_dir). All of them are killed while they wait.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::Options;
use crate::blocked::{self, WaitsIn};
use crate::clock::{self, now_ns};
use crate::crew::{Crew, Hold, Member, Waiter};
use crate::kernel::{TmpfsDir, row};
use crate::kernel_rwsem::{DirectoryHold, creator};
use crate::truth::{LockRow, Outcome};
use crate::userfault::UserBuffer;

/// A child that waits. It cannot time itself, so two bounds are known of its wait.
struct Child {
    pid: i32,
    started_ns: u64,
    blocked_ns: u64,
}

/// What happened to all children so far.
#[derive(Default)]
struct Deaths {
    pids: Vec<i32>,
    aborted: u64,
    /// Children that got the lock, and so ended by themselves.
    unproven: u64,
    at_least_ns: u64,
    at_most_ns: u64,
    kernel_caller: Option<String>,
}

struct KillingHold {
    directory: DirectoryHold,
    buffer: UserBuffer,
    children: u64,
    time: Duration,
    deaths: Deaths,
}

impl Hold for KillingHold {
    fn prepare(&mut self) -> Result<()> {
        self.directory.prepare()
    }
    fn await_held(&mut self) -> Result<()> {
        self.directory.await_held()
    }

    /// The creator waits by now. Sends the children in behind it, and kills them after the chosen time.
    fn before_release(&mut self, _waiters: &[Waiter]) -> Result<()> {
        let mut children = Vec::new();
        let sent = (0..self.children).try_for_each(|_| self.send_child(&mut children));
        std::thread::sleep(self.time);
        for child in children {
            let killed_ns = now_ns();
            self.deaths.pids.push(child.pid);
            if kill_and_reap(child.pid)? && child.blocked_ns != 0 {
                self.deaths.aborted += 1;
                self.deaths.at_least_ns += killed_ns - child.blocked_ns;
                self.deaths.at_most_ns += now_ns() - child.started_ns;
            } else {
                self.deaths.unproven += 1;
            }
        }
        sent
    }
    fn release(&mut self) -> Result<()> {
        self.directory.release()
    }
    fn clean_up(&mut self) -> Result<()> {
        self.directory.clean_up()
    }
}

impl KillingHold {
    fn send_child(&mut self, children: &mut Vec<Child>) -> Result<()> {
        let listed = File::open(self.directory.path()).context("open the directory")?;
        let started_ns = now_ns();
        let pid = fork_lister(&listed, self.buffer)?;
        children.push(Child { pid, started_ns, blocked_ns: 0 });
        let place = WaitsIn::KernelLock(libc::SYS_getdents64);
        let sighting = blocked::await_blocked(pid, "child", &place, clock::deadline(), || has_ended(pid))?;
        if let (Some(sighting), Some(child)) = (sighting, children.last_mut()) {
            child.blocked_ns = now_ns();
            self.deaths.kernel_caller = sighting.kernel_caller.or(self.deaths.kernel_caller.take());
        }
        Ok(())
    }
}

pub fn run(options: &Options) -> Result<Outcome> {
    let dir = TmpfsDir::new()?;
    let created = dir.path().join("created");
    let waiters = vec![creator(&created)?];
    let (directory, listing) = DirectoryHold::new(&dir, created)?;
    let holder = Member::spawn("holder", listing)?;
    let buffer = UserBuffer::mapped()?;
    let deaths = Deaths::default();
    let hold = KillingHold { directory, buffer, children: options.waiters, time: options.hold(), deaths };
    let mut crew = Crew { hold, holder, waiters };
    crew.run(options)?;
    let deaths = std::mem::take(&mut crew.hold.deaths);
    let readers = LockRow {
        contended: Some(0),
        wait_total_ns: Some(0),
        aborted: Some(deaths.aborted),
        unproven: Some(deaths.unproven),
        call_site: deaths.kernel_caller,
        tids: deaths.pids,
        ..LockRow::unknown("rwsem:R", "inode.i_rwsem")
    };
    let locks = vec![row("rwsem:W", "inode.i_rwsem", crew.waiters.iter()), readers];
    crew.dismiss()?;
    let mut outcome = options.outcome(locks);
    outcome.extra.insert("aborted_at_least_ns".to_string(), json!(deaths.at_least_ns));
    outcome.extra.insert("aborted_at_most_ns".to_string(), json!(deaths.at_most_ns));
    Ok(outcome)
}

/// A child that lists the directory once and dies with its parent.
fn fork_lister(listed: &File, to: UserBuffer) -> Result<i32> {
    let fd = listed.as_raw_fd();
    // By number: libc's fork() runs handlers and takes locks, which are another thread's business.
    // SAFETY: the child makes system calls, and nothing else.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: the kernel writes at most one page to the child's copy of `to`.
        unsafe {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::syscall(libc::SYS_getdents64, fd, to.ptr::<u8>(), to.len());
            libc::syscall(libc::SYS_exit_group, 0);
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error()).context("clone");
    }
    Ok(pid as i32)
}

/// Whether the child has ended by itself; it stays to be reaped.
fn has_ended(pid: i32) -> bool {
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a valid place for the answer, and its pid is 0 if there is none.
    unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) == 0 && info.si_pid() == pid }
}

/// `true`: it was the kill that ended the child.
fn kill_and_reap(pid: i32) -> Result<bool> {
    let mut status = 0;
    // SAFETY: the child is ours and not reaped yet; `status` is a valid place for the answer.
    let reaped = unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, &mut status, 0)
    };
    if reaped != pid {
        return Err(io::Error::last_os_error()).context("waitpid");
    }
    Ok(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL)
}
