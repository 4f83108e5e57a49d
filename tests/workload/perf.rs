//! `perf_event_open`, as far as it is needed to attach probes and to count them.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Count only while the event is on (bit `disabled`).
pub const DISABLED: u64 = 1;
/// Threads and processes that are born later count too.
pub const INHERIT: u64 = 1 << 1;
/// Start with the next execve, also that of a child which has inherited the event.
pub const ENABLE_ON_EXEC: u64 = DISABLED | 1 << 12;
pub const TYPE_TRACEPOINT: u32 = 2;

/// The first 72 bytes of `struct perf_event_attr` (PERF_ATTR_SIZE_VER1); the kernel takes the rest as 0.
#[repr(C)]
#[derive(Default)]
pub struct PerfEventAttr {
    pub kind: u32,
    pub size: u32,
    pub config: u64,
    pub sample_period: u64,
    pub sample_type: u64,
    pub read_format: u64,
    pub flags: u64,
    pub wakeup_events: u32,
    pub bp_type: u32,
    pub config1: u64,
    pub config2: u64,
}

impl PerfEventAttr {
    /// For one task (0: the caller) on any CPU (-1), or for every task (-1) on one CPU.
    pub fn open(mut self, pid: i32, cpu: i32) -> io::Result<OwnedFd> {
        const CLOEXEC: libc::c_ulong = 8;
        self.size = std::mem::size_of::<PerfEventAttr>() as u32;
        let attr = &raw const self;
        // SAFETY: the kernel reads `size` bytes of `self`, and strings that the caller keeps alive.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr, pid, cpu, -1, CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
    }
}
