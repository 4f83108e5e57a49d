//! What a stack is called, for folded output and the flame graphs: of waiters, or of those they waited for.
//!
//! Root first: process, user frames, kernel frames, and the lock waited for as an invented leaf
//! (`[mutex pipe_write]`), so that waits for different locks at the same site stay apart.

use super::View;
use crate::model::{Evidence, Frame, Lock, Profile, Space, Stack, StackRef, accounts};
use crate::symbolize::callsite;

/// What a frame of a [`WaitPath`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    Process,
    User,
    /// A function inlined into the user frame before it.
    UserInlined,
    Kernel,
    /// A function inlined into the kernel frame before it.
    KernelInlined,
    /// Stands for frames that are missing.
    Missing,
    /// Instead of a holder: why there is none.
    NoHolder,
    Lock,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFrame {
    /// Without `;` and line breaks.
    pub name: String,
    pub kind: PathKind,
}

/// Time waited at one place for one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitPath {
    /// Root first.
    pub frames: Vec<PathFrame>,
    /// Never 0.
    pub weight_ns: u64,
}

/// Every wait of a view: contended, aborted (marked) and those still going on (marked).
///
/// Unsorted, and the same path can come more than once.
pub fn wait_paths(profile: &Profile, view: View) -> Vec<WaitPath> {
    let mut paths = Vec::new();
    for lock in view.rows(profile) {
        let mut add = |pid, kernel_stack, user_stack, weight_ns, suffix: &str| {
            if weight_ns > 0 {
                let mut frames = frames_of(profile, pid, kernel_stack, user_stack);
                frames.push(lock_leaf(lock, suffix));
                paths.push(WaitPath { frames, weight_ns });
            }
        };
        for site in &lock.sites {
            let (kernel, user) = (site.kernel_stack, site.user_stack);
            add(site.pid, kernel, user, site.wait.wait_total_ns, "");
            add(site.pid, kernel, user, site.wait.aborted_total_ns, " (aborted)");
        }
        for wait in &lock.in_flight {
            add(wait.pid, wait.kernel_stack, wait.user_stack, wait.age_ns, " (still waiting)");
        }
    }
    paths
}

/// Every wait for a lock again, at the stack of whoever held it meanwhile; what nobody is charged with is
/// below a frame that says why, so that the weights add up to the waits.
///
/// Unsorted, and the same path can come more than once.
pub fn blame_paths(profile: &Profile) -> Vec<WaitPath> {
    let mut paths = Vec::new();
    for account in accounts(profile) {
        let Some(blame) = account.blame else {
            add_without_holder(
                &mut paths,
                "[no account of holders]",
                None,
                account.rows[0],
                account.waited_ns(),
            );
            continue;
        };
        let lock = account.rows[0];
        for holder in blame.holders.iter().filter(|holder| holder.blamed_ns > 0) {
            let mut frames = frames_of(profile, holder.thread.pid, holder.kernel_stack, holder.user_stack);
            let suffix = match holder.evidence {
                Evidence::Release => "",
                Evidence::Acquire => " (where it was taken)",
            };
            frames.push(lock_leaf(lock, suffix));
            paths.push(WaitPath { frames, weight_ns: holder.blamed_ns });
        }
        let mut add = |why: &str, thread: Option<&str>, ns| {
            add_without_holder(&mut paths, why, thread, lock, ns);
        };
        add("[handoff, nobody held it]", None, blame.handoff_ns);
        for part in &blame.unattributed {
            let why = format!("[not attributed: {}]", part.reason.words());
            add(&why, part.thread.as_ref().map(|thread| thread.comm.as_str()), part.waited_ns);
        }
        let by = blame.unreleased_by.as_ref().map(|thread| thread.comm.as_str());
        add("[not released at the end]", by, blame.unreleased_ns);
        add("[in no account]", None, account.missing_ns());
    }
    paths
}

fn add_without_holder(
    paths: &mut Vec<WaitPath>,
    why: &str,
    thread: Option<&str>,
    lock: &Lock,
    weight_ns: u64,
) {
    if weight_ns == 0 {
        return;
    }
    let mut frames = vec![PathFrame { name: folded_name(why), kind: PathKind::NoHolder }];
    frames.extend(thread.map(|name| PathFrame { name: folded_name(name), kind: PathKind::Process }));
    frames.push(lock_leaf(lock, ""));
    paths.push(WaitPath { frames, weight_ns });
}

fn lock_leaf(lock: &Lock, suffix: &str) -> PathFrame {
    let name = format!("[{} {}]{suffix}", lock.type_name(), folded_name(&lock.label()));
    PathFrame { name, kind: PathKind::Lock }
}

fn frames_of(profile: &Profile, pid: u32, kernel: StackRef, user: StackRef) -> Vec<PathFrame> {
    let mut frames = vec![PathFrame { name: process_name(profile, pid), kind: PathKind::Process }];
    let missing = |name: &str, frames: &mut Vec<PathFrame>| {
        frames.push(PathFrame { name: name.to_string(), kind: PathKind::Missing });
    };
    match user {
        StackRef::Lost => missing("[user stack lost]", &mut frames),
        StackRef::NotTaken => {}
        StackRef::Stack(_) => {
            if stack_of(profile, user).is_some_and(|stack| stack.incomplete) {
                missing("[unwind incomplete]", &mut frames);
            }
            for frame in frames_innermost_first(profile, user).into_iter().rev() {
                push_functions(frame, &mut frames);
            }
        }
    }
    match kernel {
        StackRef::Lost => missing("[kernel stack lost]", &mut frames),
        StackRef::NotTaken => {}
        StackRef::Stack(_) => {
            if stack_of(profile, kernel).is_some_and(|stack| stack.incomplete) {
                missing("[kernel stack incomplete]", &mut frames);
            }
            for frame in frames_innermost_first(profile, kernel).into_iter().rev() {
                push_functions(frame, &mut frames);
            }
        }
    }
    frames
}

fn push_functions(frame: &Frame, frames: &mut Vec<PathFrame>) {
    let (own, inlined) = match frame.space {
        Space::Kernel => (PathKind::Kernel, PathKind::KernelInlined),
        Space::User => (PathKind::User, PathKind::UserInlined),
    };
    if frame.functions.is_empty() {
        frames.push(PathFrame { name: folded_name(&frame.place()), kind: own });
    }
    for (depth, function) in frame.functions.iter().enumerate() {
        let kind = if depth == 0 { own } else { inlined };
        frames.push(PathFrame { name: folded_name(&function.name), kind });
    }
}

/// The process's name where the profile knows it, else `pid 1234`.
fn process_name(profile: &Profile, pid: u32) -> String {
    let target = &profile.meta.target;
    let comm = target.pids.iter().position(|p| *p == pid).and_then(|index| target.comms.get(index));
    match comm {
        // A line that starts with `# ` is a comment to tools that read folded stacks.
        Some(comm) if !comm.is_empty() => folded_name(comm).replace("# ", "#"),
        _ => format!("pid {pid}"),
    }
}

/// `;` separates frames and a line break separates stacks, so neither may be in a name; `[u8; 4]` becomes `[u8, 4]`.
fn folded_name(name: &str) -> String {
    let name: String = name
        .chars()
        .map(|c| {
            if c == ';' {
                ','
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect();
    let name = name.trim();
    if name.is_empty() { "[unnamed]".to_string() } else { name.to_string() }
}

pub(super) fn stack_of(profile: &Profile, stack: StackRef) -> Option<&Stack> {
    match stack {
        StackRef::Stack(index) => profile.stacks.get(index as usize),
        StackRef::Lost | StackRef::NotTaken => None,
    }
}

/// The frames of a stack without the profiler's own; empty when there is no stack.
pub(super) fn frames_innermost_first(profile: &Profile, stack: StackRef) -> Vec<&Frame> {
    let Some(stack) = stack_of(profile, stack) else { return Vec::new() };
    let frames: Vec<&Frame> =
        stack.frames.iter().filter_map(|index| profile.frames.get(*index as usize)).collect();
    let hook = hook_frames(&frames);
    frames[hook..].to_vec()
}

/// How many innermost frames belong to the hook and not to the waiter.
///
/// Trampolines and BPF programs may have no symbol. Such a bare address is taken for one of them only
/// next to a frame that is known to be the hook's; otherwise it could be the lock function itself.
fn hook_frames(frames: &[&Frame]) -> usize {
    let run = frames.iter().take_while(|frame| is_hook(frame) || is_bare(frame)).count();
    if frames[..run].iter().any(|frame| is_hook(frame)) { run } else { 0 }
}

fn is_bare(frame: &Frame) -> bool {
    frame.space == Space::Kernel && frame.functions.is_empty() && frame.module.is_none()
}

fn is_hook(frame: &Frame) -> bool {
    const PREFIXES: [&str; 12] = [
        "bpf_prog_",
        "bpf_trampoline_",
        "bpf_trace_run",
        "__bpf_",
        "trace_event_raw",
        "__traceiter_",
        "ftrace_",
        "arch_ftrace_",
        "kprobe_",
        "fprobe_",
        "optprobe",
        "opt_pre_handler",
    ];
    frame.space == Space::Kernel
        && frame
            .functions
            .first()
            .is_some_and(|function| PREFIXES.iter().any(|prefix| function.name.starts_with(prefix)))
}

/// Functions from a lock's call site outwards, at the site that waited longest: `pipe_write`,
/// `vfs_write`, `ksys_write`. Empty when the lock has no call site.
pub(super) fn call_path(profile: &Profile, lock: &Lock) -> Vec<String> {
    let Some(call_site) = &lock.call_site else { return Vec::new() };
    let waiters = lock
        .sites
        .iter()
        .map(|site| (site.kernel_stack, site.user_stack))
        .chain(lock.in_flight.iter().map(|wait| (wait.kernel_stack, wait.user_stack)));
    for (kernel, user) in waiters {
        if let Some(path) = path_from(profile, kernel, user, call_site) {
            return path;
        }
    }
    vec![call_site.clone()]
}

/// Functions of a holder (or one who waited for it) from where it left the locking code outwards, as in
/// [`call_path`]. Empty without a stack.
pub(super) fn place_of(profile: &Profile, lock: &Lock, kernel: StackRef, user: StackRef) -> Vec<String> {
    // A user lock is taken and released by user code, whatever the kernel did below it.
    let order = if lock.kind.is_user() { [user, kernel] } else { [kernel, user] };
    let call_site = order.iter().find_map(|stack| {
        callsite::of_stack(stack_of(profile, *stack)?, &profile.frames).filter(|site| !site.is_empty())
    });
    let Some(call_site) = call_site else { return Vec::new() };
    path_from(profile, kernel, user, &call_site).unwrap_or_else(|| vec![call_site])
}

fn path_from(profile: &Profile, kernel: StackRef, user: StackRef, call_site: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for stack in [kernel, user] {
        for frame in frames_innermost_first(profile, stack) {
            if frame.functions.is_empty() {
                names.push(frame.place());
            }
            names.extend(frame.functions.iter().rev().map(|function| function.name.clone()));
        }
    }
    let at = names.iter().position(|name| name == call_site)?;
    Some(names.split_off(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Function;

    fn kernel(name: Option<&str>) -> Frame {
        let mut frame = Frame::unsymbolized(Space::Kernel, None, 0xffff_ffff_8100_0000, false);
        frame.functions.extend(name.map(|name| Function { name: name.into(), file: None, line: None }));
        frame
    }

    fn hidden(names: &[Option<&str>]) -> usize {
        let frames: Vec<Frame> = names.iter().map(|name| kernel(*name)).collect();
        hook_frames(&frames.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_hooks_own_frames_are_not_the_waiters() {
        assert_eq!(
            hidden(&[
                Some("bpf_prog_1a_mutex_lock__fentry"),
                Some("bpf_trampoline_64_0"),
                Some("mutex_lock")
            ]),
            2
        );
        assert_eq!(
            hidden(&[
                Some("bpf_prog_2b"),
                Some("bpf_trace_run2"),
                Some("__bpf_trace_contention_begin"),
                Some("__traceiter_contention_begin"),
                Some("__mutex_lock.constprop.0"),
            ]),
            4
        );
        assert_eq!(
            hidden(&[Some("kprobe_ftrace_handler"), Some("ftrace_regs_caller"), Some("down_read")]),
            2
        );
    }

    #[test]
    fn a_bare_address_is_the_hooks_only_beside_a_known_hook_frame() {
        assert_eq!(hidden(&[Some("bpf_prog_1"), None, Some("mutex_lock")]), 2);
        assert_eq!(hidden(&[None, Some("bpf_trampoline_1"), Some("mutex_lock")]), 2);
        assert_eq!(hidden(&[None, Some("mutex_lock")]), 0);
    }

    #[test]
    fn only_innermost_hook_frames_are_hidden() {
        assert_eq!(hidden(&[Some("mutex_lock"), Some("ftrace_set_hash"), Some("bpf_prog_attach")]), 0);
        assert_eq!(hidden(&[]), 0);
    }

    #[test]
    fn names_cannot_break_the_folded_format() {
        assert_eq!(folded_name("f<[u8; 4]>\n"), "f<[u8, 4]>");
        assert_eq!(folded_name(" \n"), "[unnamed]");
    }
}
