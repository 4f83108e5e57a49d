//! What the kernel-lock scenarios share: timed system calls, and rows that name the kernel function seen.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::clock::now_ns;
use crate::crew::{self, Waiter};
use crate::truth::{Attempt, LockRow};

/// Times one system call. `call` returns what libc returns; a negative value is an error.
pub fn timed(name: &'static str, call: impl FnOnce() -> i64) -> Result<(Attempt, i64)> {
    let before = now_ns();
    let result = call();
    let after = now_ns();
    if result < 0 {
        return Err(io::Error::last_os_error()).context(name);
    }
    Ok((Attempt { wait_ns: after - before, aborted: false }, result))
}

/// The row of some waiters of one lock that wait in the same kernel function.
pub fn row<'a>(kind: &'static str, name: &str, waiters: impl Iterator<Item = &'a Waiter> + Clone) -> LockRow {
    let (tally, tids) = crew::sum(waiters.clone());
    let mut callers: Vec<&str> = waiters.filter_map(|waiter| waiter.kernel_caller.as_deref()).collect();
    callers.sort();
    callers.dedup();
    let call_site = (!callers.is_empty()).then(|| callers.join("|"));
    LockRow { call_site, tids, ..LockRow::measured(kind, name, &tally) }
}

/// A directory on tmpfs that is removed on drop. Declare it before the crew that uses it: on errors the crew
/// must be dropped, and its holder let go, before the locks that removal takes are free.
pub struct TmpfsDir(PathBuf);

impl TmpfsDir {
    pub fn new() -> Result<TmpfsDir> {
        const TMPFS_MAGIC: libc::c_long = 0x0102_1994;
        for base in ["/dev/shm", "/tmp", "/run"] {
            let c_path = c_path(Path::new(base))?;
            // SAFETY: all-zero bytes are a valid statfs.
            let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
            // SAFETY: the path is NUL-terminated and `stat` is a valid place for the answer.
            let ok = unsafe { libc::statfs(c_path.as_ptr(), &mut stat) } == 0;
            if ok && stat.f_type as libc::c_long == TMPFS_MAGIC {
                let path =
                    Path::new(base).join(format!("lockprof-workload-{}-{}", std::process::id(), now_ns()));
                std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
                return Ok(TmpfsDir(path));
            }
        }
        bail!("no tmpfs at /dev/shm, /tmp or /run")
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TmpfsDir {
    fn drop(&mut self) {
        // Nothing depends on the clean-up, and there is nobody to tell.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("{} contains NUL", path.display()))
}
