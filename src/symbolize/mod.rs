//! Addresses to names: the only module that sees blazesym.
//!
//! [`Images`] is filled while the targets live; [`symbolize`] then works from it and from this
//! kernel's symbols, whether or not the targets still exist.

pub mod callsite;
mod images;
mod kernel;
mod perfmap;
mod places;
mod realtime;
mod user;

pub use images::{FileId, Images, Mapping};
pub use kernel::{KernelSymbol, KernelSymbols};

use crate::model::{Frame, Function, Loss, Profile, Space};

/// Names the frames and the locks of a profile taken on this machine since it booted, and adds to its
/// losses what could not be named. Frames that have names keep them.
///
/// `kernel` is best loaded while the hooks are still attached: their trampolines are in the stacks,
/// and lose their names when they go.
pub fn symbolize(profile: &mut Profile, images: &Images, kernel: &KernelSymbols) {
    for frame in &mut profile.frames {
        if frame.space == Space::Kernel && frame.functions.is_empty() {
            symbolize_kernel_frame(frame, kernel);
        }
    }
    let symbolizer = user::symbolizer();
    let user = user::symbolize(&symbolizer, &mut profile.frames, images);

    realtime::refine(profile);
    for lock in &mut profile.locks {
        if lock.name.is_none() && !lock.kind.is_user() {
            lock.name = kernel.data_symbol(lock.addr);
        }
    }
    places::find(&symbolizer, &mut profile.locks, images);
    let call_sites: Vec<_> = profile.locks.iter().map(|lock| callsite::of_lock(lock, profile)).collect();
    for (lock, call_site) in profile.locks.iter_mut().zip(call_sites) {
        if call_site.is_some() {
            lock.call_site = call_site;
        }
    }
    note_losses(profile, images, kernel, user);
}

fn symbolize_kernel_frame(frame: &mut Frame, kernel: &KernelSymbols) {
    let addr = if frame.leaf { frame.addr } else { frame.addr.saturating_sub(1) };
    if let Some(symbol) = kernel.function(addr) {
        frame.module = symbol.module.map(str::to_string);
        frame.functions = vec![Function { name: symbol.name.to_string(), file: None, line: None }];
    }
}

fn note_losses(profile: &mut Profile, images: &Images, kernel: &KernelSymbols, user: user::Outcome) {
    let unnamed = |space| {
        let frames = profile.frames.iter().filter(|frame| frame.space == space);
        frames.filter(|frame| frame.functions.is_empty()).count() as u64
    };
    let kernel_meaning = if kernel.hidden {
        "kernel addresses without a name: this kernel hides its symbols; run as root, or set kernel.kptr_restrict to 0 or 1"
    } else {
        "kernel addresses without a name in /proc/kallsyms; many mean that it cannot be read (kernel.kptr_restrict, no CONFIG_KALLSYMS)"
    };
    let losses = [
        ("unsymbolized_kernel_frames", unnamed(Space::Kernel), kernel_meaning),
        (
            "unsymbolized_user_frames",
            unnamed(Space::User),
            "user addresses without a name, shown as file+offset; install the debug symbols of these files (libc6-dbg on Debian), or do not strip them",
        ),
        (
            "image_processes_missed",
            images.processes_missed,
            "processes that had exited before their memory map was read; their user frames have no names",
        ),
        (
            "image_processes_denied",
            images.processes_denied,
            "processes whose memory map may not be read; their user frames have no names; run as root",
        ),
        (
            "image_files_unopened",
            images.files_unopened,
            "mapped files that could not be opened; frames in them have no names; run as root",
        ),
        (
            "image_files_over_limit",
            images.files_over_limit,
            "mapped files left out because too many were open; frames in them have no names; raise the hard limit of open files (ulimit -Hn)",
        ),
        (
            "image_files_unreadable",
            user.unreadable_files,
            "mapped files that are not valid ELF files; frames in them have no names",
        ),
    ];
    for (reason, count, meaning) in losses {
        let loss = Loss { reason: reason.to_string(), count, meaning: meaning.to_string() };
        match profile.losses.iter_mut().find(|known| known.reason == reason) {
            Some(known) => *known = loss,
            None => profile.losses.push(loss),
        }
    }
}

/// `foo.constprop.0.isra.0` is `foo`.
fn without_compiler_suffix(name: &str) -> &str {
    const SUFFIXES: [&str; 6] = [".constprop.", ".isra.", ".part.", ".cold", ".llvm.", ".lto_priv."];
    let end = SUFFIXES.iter().filter_map(|suffix| name.find(suffix)).min().unwrap_or(name.len());
    &name[..end]
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::model::*;

    pub fn lock(kind: LockKind, addr: u64) -> Lock {
        Lock::new(kind, addr, None)
    }

    pub fn empty_profile() -> Profile {
        Profile {
            schema: SCHEMA.to_string(),
            meta: Meta {
                version: String::new(),
                command: Vec::new(),
                hostname: String::new(),
                kernel: String::new(),
                arch: String::new(),
                cpus: 1,
                start_unix_s: 0,
                duration_ns: 0,
                target: Target {
                    kind: TargetKind::System,
                    pids: Vec::new(),
                    comms: Vec::new(),
                    command: Vec::new(),
                    exit_status: None,
                },
                ended_by: EndReason::Duration,
                hold: false,
                hold_families: vec![],
            },
            plan: Vec::new(),
            events: EventCounts::default(),
            losses: Vec::new(),
            locks: Vec::new(),
            stacks: Vec::new(),
            frames: Vec::new(),
            naming: None,
        }
    }

    fn count(profile: &Profile, reason: &str) -> u64 {
        profile.losses.iter().find(|loss| loss.reason == reason).unwrap().count
    }

    fn kernel_profile() -> Profile {
        let mut profile = empty_profile();
        let frame = |addr, leaf| Frame::unsymbolized(Space::Kernel, None, addr, leaf);
        profile.frames = vec![
            frame(0xffffffff81001000, true),
            // A return address at the very end of its function.
            frame(0xffffffff81002000, false),
            frame(0xffffffffc0201010, false),
        ];
        profile.stacks = vec![Stack { frames: vec![0, 1, 2], incomplete: false }];
        let mut lock = lock(LockKind::Mutex, 0xffffffff82000008);
        lock.sites = vec![Site {
            pid: 1,
            kernel_stack: StackRef::Stack(0),
            user_stack: StackRef::NotTaken,
            futex: None,
            wait: WaitStats { contended: 1, wait_total_ns: 5, ..WaitStats::default() },
        }];
        profile.locks = vec![lock];
        profile
    }

    const KALLSYMS: &str = "\
ffffffff81001000 T mutex_lock
ffffffff81001800 t caller
ffffffff81002000 t neighbour
ffffffff82000000 d some_lock
ffffffffc0201000 t work\t[fs]
";

    #[test]
    fn kernel_frames_and_locks_are_named() {
        let mut profile = kernel_profile();
        symbolize(&mut profile, &Images::new(), &KernelSymbols::parse(KALLSYMS.to_string()));
        let names: Vec<_> = profile.frames.iter().map(|frame| frame.functions[0].name.as_str()).collect();
        assert_eq!(names, ["mutex_lock", "caller", "work"]);
        assert_eq!(profile.frames[2].module.as_deref(), Some("fs"));
        assert_eq!(profile.locks[0].name.as_deref(), Some("some_lock+0x8"));
        assert_eq!(profile.locks[0].call_site.as_deref(), Some("caller"));
        assert!(profile.losses.iter().all(|loss| loss.count == 0 && !loss.meaning.is_empty()));
        assert_eq!(profile.losses.len(), 7);
    }

    #[test]
    fn hidden_kernel_symbols_leave_frames_unnamed_and_counted() {
        let mut profile = kernel_profile();
        let hidden = KALLSYMS.lines().map(|line| format!("{:016x}{}\n", 0, &line[16..])).collect();
        symbolize(&mut profile, &Images::new(), &KernelSymbols::parse(hidden));
        assert_eq!(count(&profile, "unsymbolized_kernel_frames"), 3);
        let loss = profile.losses.iter().find(|loss| loss.reason == "unsymbolized_kernel_frames").unwrap();
        assert!(loss.meaning.contains("kptr_restrict"), "{}", loss.meaning);
        assert_eq!(profile.locks[0].name, None);
    }

    #[test]
    fn symbolizing_again_replaces_the_counts_and_keeps_the_names() {
        let mut profile = kernel_profile();
        let kernel = KernelSymbols::parse(KALLSYMS.to_string());
        symbolize(&mut profile, &Images::new(), &kernel);
        let first = profile.clone();
        symbolize(&mut profile, &Images::new(), &KernelSymbols::default());
        assert_eq!(profile, first);
    }

    #[test]
    fn a_frame_of_an_unknown_process_is_left_alone() {
        let mut profile = empty_profile();
        profile.frames = vec![Frame::unsymbolized(Space::User, Some(1 << 30), 0x1234, true)];
        let before = profile.frames.clone();
        symbolize(&mut profile, &Images::new(), &KernelSymbols::default());
        assert_eq!(profile.frames, before);
        assert_eq!(count(&profile, "unsymbolized_user_frames"), 1);
    }
}
