//! Single kprobes through tracefs, because only there a return probe can be given room.
//!
//! Every task between a function's entry and its return needs an instance of the return probe. A
//! perf_event kretprobe has max(10, 2 × CPUs) of them (kernel/kprobes.c): ten idle threads
//! anywhere on the machine would use up the probe on futex_wait, and all later ends would be lost.
//! `kprobe_events` takes the number: up to 4096 (KRETPROBE_MAXACTIVE_MAX).

use anyhow::{Context, Result, bail};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const GROUP: &str = "lockprof";
const MAX_ACTIVE: u32 = 4096;

/// A kprobe event's definition; dropping it removes it. Detach the program first.
pub struct KprobeEvent {
    tracefs: PathBuf,
    name: String,
}

impl KprobeEvent {
    /// The definition, and the perf event to attach a program to. `symbol` is what kallsyms calls the function.
    pub fn new(function: &str, symbol: &str, retprobe: bool) -> Result<(KprobeEvent, OwnedFd)> {
        let tracefs = tracefs()?;
        let name = format!("{function}_{}_{}", if retprobe { "r" } else { "p" }, std::process::id());
        let definition = if retprobe {
            format!("r{MAX_ACTIVE}:{GROUP}/{name} {symbol}")
        } else {
            format!("p:{GROUP}/{name} {symbol}")
        };
        append(&tracefs, &definition)?;
        let definition = KprobeEvent { tracefs, name };
        let event = open_event(&definition.tracefs, &definition.name)?;
        Ok((definition, event))
    }

    /// Hits the kernel did not deliver, from `kprobe_profile`.
    pub fn missed(&self) -> Option<u64> {
        let profile = fs::read_to_string(self.tracefs.join("kprobe_profile")).ok()?;
        let line = profile.lines().find(|line| line.split_whitespace().next() == Some(&self.name))?;
        line.split_whitespace().nth(2)?.parse().ok()
    }
}

impl Drop for KprobeEvent {
    fn drop(&mut self) {
        let _ = append(&self.tracefs, &format!("-:{GROUP}/{}", self.name));
    }
}

fn tracefs() -> Result<PathBuf> {
    for path in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        if Path::new(path).join("kprobe_events").exists() {
            return Ok(path.into());
        }
    }
    bail!("tracefs is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)")
}

fn append(tracefs: &Path, line: &str) -> Result<()> {
    let path = tracefs.join("kprobe_events");
    let mut file = OpenOptions::new()
        .append(true)
        .open(&path)
        .with_context(|| format!("Failed to open {}", path.display()))?;
    file.write_all(format!("{line}\n").as_bytes())
        .with_context(|| format!("Failed to write '{line}' to {}", path.display()))
}

fn open_event(tracefs: &Path, name: &str) -> Result<OwnedFd> {
    let path = tracefs.join("events").join(GROUP).join(name).join("id");
    let id: u64 = fs::read_to_string(&path)
        .with_context(|| format!("Failed to read {}", path.display()))?
        .trim()
        .parse()
        .with_context(|| format!("{} is no number", path.display()))?;
    let mut attr = libbpf_sys::perf_event_attr {
        type_: libbpf_sys::PERF_TYPE_TRACEPOINT,
        size: size_of::<libbpf_sys::perf_event_attr>() as _,
        config: id,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = 1;
    // On one CPU only: the program hangs on the event's definition and runs on every CPU.
    // SAFETY: attr is as large as its size field says.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, 0, -1, libbpf_sys::PERF_FLAG_FD_CLOEXEC)
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("perf_event_open of a kprobe event");
    }
    // SAFETY: a fresh descriptor nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Removes what a killed lockprof left behind: definitions whose process is gone.
pub fn remove_leftovers() {
    let Ok(tracefs) = tracefs() else { return };
    let Ok(events) = fs::read_dir(tracefs.join("events").join(GROUP)) else { return };
    for name in events.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        let Some(pid) = name.rsplit_once('_').and_then(|(_, pid)| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            let _ = append(&tracefs, &format!("-:{GROUP}/{name}"));
        }
    }
}
