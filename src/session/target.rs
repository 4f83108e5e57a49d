//! The traced processes: watched through pidfds, or spawned and held.

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::thread::JoinHandle;

/// Why the command did not run, as `env` tells it apart.
#[derive(Debug)]
pub struct SpawnError {
    pub command: String,
    pub source: io::Error,
}

impl SpawnError {
    /// 127: not found. 126: found, and not executable.
    pub fn exit_code(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failed to run {}: {}", self.command, self.source)
    }
}

impl std::error::Error for SpawnError {}

/// A descriptor that becomes readable when the process is gone.
pub struct Watched {
    pub pid: u32,
    pidfd: Option<OwnedFd>,
}

impl Watched {
    pub fn open(pid: u32) -> Result<Watched> {
        // SAFETY: no pointers; 5.3 has the call.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd >= 0 {
            // SAFETY: a fresh descriptor nobody else owns.
            return Ok(Watched { pid, pidfd: Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }) });
        }
        let err = io::Error::last_os_error();
        match err.raw_os_error() {
            Some(libc::ESRCH) => Err(no_process(pid)),
            // pidfd_open wants the leader: a thread's id is no process.
            Some(libc::EINVAL | libc::ENOENT) => match thread_group(pid) {
                Some(leader) if leader != pid => Err(Failure::new(
                    Exit::Runtime,
                    format!("{pid} is a thread of process {leader}"),
                    format!("give the process: -p {leader}"),
                )
                .into()),
                _ => Err(no_process(pid)),
            },
            _ => Err(err).with_context(|| format!("Failed to watch process {pid}")),
        }
    }

    pub fn is_gone(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 }
    }
}

fn no_process(pid: u32) -> anyhow::Error {
    let hint = "pgrep NAME prints the ids of a program's processes";
    Failure::new(Exit::Runtime, format!("There is no process {pid}"), hint).into()
}

fn thread_group(tid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

pub fn comm(pid: u32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_string())
}

/// A command that is forked but not yet run: it waits at a pipe, just before exec.
///
/// `Command::spawn` returns only after exec, so it sits in a thread of its own; that way exec's own
/// error comes back as it should.
pub struct Held {
    pub pid: u32,
    pub command: Vec<String>,
    go: File,
    spawn: JoinHandle<io::Result<Child>>,
}

impl Held {
    pub fn spawn(command: &[String]) -> Result<Held> {
        let (mut pid_in, pid_out) = pipe()?;
        let (go_in, go) = pipe()?;
        let (pid_fd, go_fd) = (pid_out.as_raw_fd(), go_in.as_raw_fd());
        let go_fd_of_parent = go.as_raw_fd();
        let mut child = Command::new(&command[0]);
        child.args(&command[1..]);
        // SAFETY: only async-signal-safe calls, and the descriptors live until spawn returned.
        unsafe {
            child.pre_exec(move || {
                // Our copy of the writing end would keep the read below from ever seeing its end.
                libc::close(go_fd_of_parent);
                let pid = libc::getpid().to_ne_bytes();
                if libc::write(pid_fd, pid.as_ptr().cast(), pid.len()) != pid.len() as isize {
                    return Err(io::Error::last_os_error());
                }
                let mut byte = 0u8;
                // One byte: go. End of file: lockprof gave up.
                match libc::read(go_fd, (&raw mut byte).cast(), 1) {
                    1 => {}
                    _ => libc::_exit(125),
                }
                // Ours are set to be ignored or handled; the command's are not.
                libc::signal(libc::SIGPIPE, libc::SIG_DFL);
                Ok(())
            });
        }
        let spawn = std::thread::spawn(move || {
            let result = child.spawn();
            drop((pid_out, go_in));
            result
        });
        let mut pid = [0; 4];
        pid_in.read_exact(&mut pid).with_context(|| format!("Failed to fork for {}", command[0]))?;
        Ok(Held { pid: u32::from_ne_bytes(pid), command: command.to_vec(), go, spawn })
    }

    /// Lets the command go.
    pub fn release(mut self) -> Result<Running, SpawnError> {
        let fail = |source| SpawnError { command: self.command[0].clone(), source };
        self.go.write_all(&[1]).map_err(fail)?;
        let child = self
            .spawn
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the spawning thread panicked")))
            .map_err(|source| SpawnError { command: self.command[0].clone(), source })?;
        Ok(Running { child, status: None })
    }
}

fn pipe() -> Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error()).context("Failed to make a pipe");
    }
    // SAFETY: fresh descriptors nobody else owns.
    Ok(unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) })
}

/// The command, running.
pub struct Running {
    child: Child,
    status: Option<ExitStatus>,
}

impl Running {
    /// Its status, once it has ended.
    pub fn try_status(&mut self) -> Option<i32> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.map(shell_status)
    }

    /// Passes a signal on: the user's Ctrl-C reaches the command through the terminal, SIGTERM does not.
    pub fn signal(&self, signal: i32) {
        // SAFETY: not reaped yet (the status is unknown), so the pid is still the child's.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }
}

fn shell_status(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(125)
}

/// The file that exec will find, if any; checked before anything is loaded.
pub fn find_command(name: &str) -> Result<PathBuf, SpawnError> {
    let fail = |source| Err(SpawnError { command: name.to_string(), source });
    let executable = |path: &std::path::Path| {
        let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) else { return false };
        // SAFETY: a NUL-terminated path.
        unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
    };
    if name.contains('/') {
        let path = std::path::Path::new(name);
        if let Err(err) = std::fs::metadata(path) {
            return fail(err);
        }
        if !executable(path) || path.is_dir() {
            return fail(io::Error::from_raw_os_error(libc::EACCES));
        }
        return Ok(path.to_path_buf());
    }
    let paths = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    match std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| executable(path)) {
        Some(path) => Ok(path),
        None => fail(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}
