//! Time as the profiler sees it: CLOCK_MONOTONIC, which is also what `bpf_ktime_get_ns()` reads.

use std::time::{Duration, Instant};

/// Longest that any condition may take before the workload gives up with an error.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec; CLOCK_MONOTONIC exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The point after which waiting for a condition is an error.
pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// The pause between two looks at a condition that the kernel offers no way to wait for.
pub fn poll_pause() {
    std::thread::sleep(Duration::from_micros(50));
}
