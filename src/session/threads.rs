//! The threads that targets have when the profile starts; later ones are seen when they are born.

use crate::bpf::TargetThread;
use std::fs;
use std::os::linux::fs::MetadataExt;

/// The living threads of a process; none when it is gone or may not be looked at.
pub fn of_process(pid: u32) -> Vec<TargetThread> {
    let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/pid")) else { return Vec::new() };
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let tids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok());
    tids.filter_map(|tid| {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        Some(TargetThread {
            pid_namespace: namespace.st_ino() as u32,
            tid_in_namespace: field(&status, "NSpid:")?.split_whitespace().last()?.parse().ok()?,
            pid,
            tid,
            comm: field(&status, "Name:")?.trim().to_string(),
        })
    })
    .collect()
}

/// Every process there is.
pub fn all_processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_threads_are_found_with_their_numbers() {
        // SAFETY: gettid takes nothing.
        let own = unsafe { libc::gettid() } as u32;
        let threads = of_process(std::process::id());
        let thread = threads.iter().find(|thread| thread.tid == own).expect("this thread");
        assert_eq!(thread.pid, std::process::id());
        assert!(thread.pid_namespace > 0 && thread.tid_in_namespace > 0);
        assert!(of_process(1 << 30).is_empty());
        assert!(all_processes().contains(&std::process::id()));
    }
}
