//! Who took the lock: the first frame, from the leaf outwards, that is neither the profiler, nor the
//! locking code, nor its library. Told by name, never by counting frames: how many there are differs
//! with the hook, the kernel and the optimizer.

use super::without_compiler_suffix;
use crate::model::{Frame, Function, Lock, Profile, Space, Stack, StackRef};
use std::collections::HashMap;

/// The function that took the lock where it was waited for longest.
///
/// Of ongoing waits when no wait ended. Equal weights: the first name in order.
pub fn of_lock(lock: &Lock, profile: &Profile) -> Option<String> {
    let user = lock.kind.is_user();
    let name_of = |kernel: StackRef, user_stack: StackRef| {
        let StackRef::Stack(index) = (if user { user_stack } else { kernel }) else { return None };
        of_stack(profile.stacks.get(index as usize)?, &profile.frames)
    };
    let ended = lock.sites.iter().filter(|site| site.wait.contended + site.wait.aborted > 0);
    let ended = ended.map(|site| {
        (
            name_of(site.kernel_stack, site.user_stack),
            site.wait.wait_total_ns.saturating_add(site.wait.aborted_total_ns),
        )
    });
    let ongoing =
        lock.in_flight.iter().map(|wait| (name_of(wait.kernel_stack, wait.user_stack), wait.age_ns));
    let quiet = lock.sites.iter().map(|site| (name_of(site.kernel_stack, site.user_stack), 0));
    heaviest(ended).or_else(|| heaviest(ongoing)).or_else(|| heaviest(quiet))
}

fn heaviest(sites: impl Iterator<Item = (Option<String>, u64)>) -> Option<String> {
    let mut weights: HashMap<String, u64> = HashMap::new();
    for (name, weight) in sites {
        if let Some(name) = name {
            let sum = weights.entry(name).or_default();
            *sum = sum.saturating_add(weight);
        }
    }
    weights.into_iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0))).map(|(name, _)| name)
}

/// The function that took the lock in this stack; `None` for an empty stack.
pub fn of_stack(stack: &Stack, frames: &[Frame]) -> Option<String> {
    let stack: Vec<&Frame> = stack.frames.iter().filter_map(|index| frames.get(*index as usize)).collect();
    match stack.first()?.space {
        Space::Kernel => of_kernel_stack(&stack),
        Space::User => of_user_stack(&stack),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KernelClass {
    /// The profiler's way into the kernel: its programs, and what calls them.
    Profiler,
    /// Code that hooks put between a function and its caller: may appear anywhere.
    Trampoline,
    Lock,
    Other,
    /// No symbol.
    Unknown,
}

/// The names of the locking code at the leaf of a kernel stack, innermost first: the last is what the
/// taker of the lock called.
pub(super) fn lock_functions<'f>(stack: &Stack, frames: &'f [Frame]) -> Vec<&'f str> {
    let stack: Vec<&Frame> = stack.frames.iter().filter_map(|index| frames.get(*index as usize)).collect();
    let classes = classes(&stack);
    let end = taker(&classes).unwrap_or(stack.len());
    let lock_code = stack[..end].iter().zip(&classes).filter(|(_, class)| **class == KernelClass::Lock);
    let functions = lock_code.filter_map(|(frame, _)| frame.functions.last());
    functions.map(|function| without_compiler_suffix(&function.name)).collect()
}

/// Return addresses and names of so many functions, from the taker of the lock outwards.
pub fn kernel_callers(stack: &Stack, frames: &[Frame], count: usize) -> Vec<(u64, String)> {
    let stack: Vec<&Frame> = stack.frames.iter().filter_map(|index| frames.get(*index as usize)).collect();
    let classes = classes(&stack);
    let Some(first) = taker(&classes) else { return vec![] };
    let callers = stack[first..].iter().zip(&classes[first..]);
    let callers = callers.filter(|(_, class)| **class == KernelClass::Other);
    callers.take(count).map(|(frame, _)| (frame.addr, kernel_name(frame))).collect()
}

/// Names of so many functions outside the runtime, innermost first.
pub fn user_functions(stack: &Stack, frames: &[Frame], count: usize) -> Vec<String> {
    let frames = stack.frames.iter().filter_map(|index| frames.get(*index as usize));
    let functions = frames.filter(|frame| frame.space == Space::User).flat_map(|frame| {
        let functions = frame.functions.iter().rev().filter(|function| !is_runtime(frame, function));
        functions.map(|function| function.name.clone())
    });
    functions.take(count).collect()
}

fn of_kernel_stack(stack: &[&Frame]) -> Option<String> {
    let classes = classes(stack);
    if let Some(index) = taker(&classes) {
        return Some(kernel_name(stack[index]));
    }
    // Nothing but locking code: the outermost of it that has a name.
    let outermost = stack.iter().zip(&classes).rev().find(|(_, class)| **class == KernelClass::Lock);
    Some(kernel_name(outermost.map_or(stack[0], |(frame, _)| frame)))
}

fn classes(stack: &[&Frame]) -> Vec<KernelClass> {
    stack
        .iter()
        .map(|frame| match frame.functions.last() {
            Some(function) if frame.space == Space::Kernel => kernel_class(&function.name),
            _ => KernelClass::Unknown,
        })
        .collect()
}

/// The frame that took the lock.
fn taker(classes: &[KernelClass]) -> Option<usize> {
    let mut in_lock = false;
    for (index, class) in classes.iter().enumerate() {
        match class {
            KernelClass::Lock => in_lock = true,
            KernelClass::Trampoline => {}
            // ftrace and kprobes have locks of their own, taken by functions named like their hooks.
            KernelClass::Profiler if !in_lock => {}
            // Between the profiler's frames or inside the lock: one of them, not the caller.
            KernelClass::Unknown if is_inside(&classes[index + 1..], in_lock) => {}
            _ => return Some(index),
        }
    }
    None
}

/// Whether more of the profiler or of the lock follows before anything else does.
fn is_inside(outer: &[KernelClass], in_lock: bool) -> bool {
    match outer.iter().find(|class| **class != KernelClass::Unknown) {
        Some(KernelClass::Lock | KernelClass::Trampoline) => true,
        Some(KernelClass::Profiler) => !in_lock,
        _ => false,
    }
}

fn kernel_name(frame: &Frame) -> String {
    frame
        .functions
        .last()
        .map_or_else(|| frame.place(), |function| without_compiler_suffix(&function.name).to_string())
}

fn kernel_class(name: &str) -> KernelClass {
    const PROFILER: &[&str] = &[
        "bpf_prog_",
        "__bpf_prog_",
        "__bpf_",
        "bpf_trace_run",
        "bpf_dispatcher_",
        "bpf_get_stack",
        "__traceiter_",
        "trace_call_bpf",
        "trace_event_raw_",
        "perf_trace_",
        "perf_call_bpf",
        "ftrace",
        "kprobe",
        "__kprobe",
        "fprobe",
        "__fprobe",
        "rethook",
        "kretprobe",
        "__kretprobe",
        "opt_pre_handler",
        "optimized_callback",
    ];
    // What int3 kprobes go through.
    const PROFILER_EXACT: &[&str] = &["asm_exc_int3", "exc_int3", "do_int3"];
    const TRAMPOLINE: &[&str] = &[
        "bpf_trampoline_",
        "bpf_tramp_image_",
        "ftrace_trampoline",
        "ftrace_caller",
        "ftrace_regs_c",
        "arch_ftrace_ops",
        "arch_rethook",
        "__kretprobe_trampoline",
        "kretprobe_trampoline",
        "return_to_handler",
    ];
    let name = without_compiler_suffix(name);
    if starts_with_any(name, TRAMPOLINE) {
        KernelClass::Trampoline
    } else if starts_with_any(name, PROFILER) || PROFILER_EXACT.contains(&name) {
        KernelClass::Profiler
    } else if is_kernel_lock_code(name) {
        KernelClass::Lock
    } else {
        KernelClass::Other
    }
}

fn is_kernel_lock_code(name: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "mutex_",
        "__mutex_",
        "ww_mutex",
        "__ww_mutex",
        "rwsem_",
        "__rwsem_",
        "_raw_spin_",
        "_raw_read_",
        "_raw_write_",
        "__raw_",
        "raw_spin_",
        "do_raw_",
        "native_queued_",
        "queued_spin_",
        "queued_read_",
        "queued_write_",
        "resilient_queued_",
        "resilient_tas_",
        "__pv_queued_",
        "__pv_",
        "pv_wait_",
        "osq_lock",
        "rt_mutex_",
        "__rt_mutex",
        "rt_spin_",
        "rt_read_",
        "rt_write_",
        "rtlock_",
        "rwbase_",
        "__rwbase_",
        "percpu_down_",
        "percpu_up_",
        "percpu_rwsem_",
        "__percpu_down_",
        "__percpu_up_",
        "__percpu_rwsem_",
        "__down_",
        "___down_",
        "flock_lock_inode",
        "posix_lock_inode",
        "locks_lock_inode_wait",
        "do_lock_file_wait",
        "vfs_lock_file",
        "fcntl_setlk",
        "schedule_timeout",
        "schedule_hrtimeout",
    ];
    // Listed whole, because `down`, `up` and `schedule` begin many other names.
    const EXACT: &[&str] = &[
        "down",
        "down_interruptible",
        "down_killable",
        "down_timeout",
        "down_trylock",
        "down_read",
        "down_read_interruptible",
        "down_read_killable",
        "down_read_killable_nested",
        "down_read_nested",
        "down_read_non_owner",
        "down_read_trylock",
        "down_write",
        "down_write_killable",
        "down_write_killable_nested",
        "down_write_nested",
        "down_write_trylock",
        "_down_write_nest_lock",
        "downgrade_write",
        "up",
        "up_read",
        "up_read_non_owner",
        "up_write",
        "__down",
        "__up",
        "__up_read",
        "__up_write",
        "__schedule",
        "schedule",
        "schedule_idle",
        "schedule_preempt_disabled",
        "schedule_rtlock",
        "__schedule_loop",
        "io_schedule",
        "io_schedule_timeout",
        "preempt_schedule",
        "preempt_schedule_common",
        "preempt_schedule_irq",
        "task_blocks_on_rt_mutex",
        "kvm_wait",
        "xen_qlock_wait",
        "cpus_read_lock",
        "cpus_write_lock",
    ];
    starts_with_any(name, PREFIXES) || EXACT.contains(&name)
}

fn of_user_stack(stack: &[&Frame]) -> Option<String> {
    for frame in stack {
        // A frame without a symbol is the runtime's only if its file is.
        if frame.functions.is_empty() && !is_runtime_module(frame) {
            return Some(frame.place());
        }
        let taker = frame.functions.iter().rev().find(|function| !is_runtime(frame, function));
        if let Some(taker) = taker {
            return Some(taker.name.clone());
        }
    }
    // Nothing but the runtime, so callers are missing: the outermost that says what was called.
    let named = stack.iter().rev().filter_map(|frame| frame.functions.first());
    let outermost = named.map(|function| &function.name).find(|name| !starts_a_thread(name));
    Some(outermost.cloned().unwrap_or_else(|| stack[0].place()))
}

/// The C library, its loader, and the C++ ones.
fn is_runtime_module(frame: &Frame) -> bool {
    const PREFIXES: &[&str] = &[
        "libc.so",
        "libc-2.",
        "libc.musl-",
        "libpthread.so",
        "libpthread-2.",
        "ld-linux",
        "ld-musl",
        "ld-2.",
        "ld.so",
        "ld64.so",
        "libstdc++.so",
        "libc++.so",
        "libc++abi.so",
        "libgcc_s.so",
        "[vdso]",
    ];
    frame.module.as_deref().is_some_and(|module| starts_with_any(module, PREFIXES))
}

fn is_runtime(frame: &Frame, function: &Function) -> bool {
    is_runtime_module(frame)
        || function.file.as_deref().is_some_and(is_runtime_source)
        || is_runtime_name(&function.name)
}

/// Inlined functions of the standard libraries: their names come without their namespace where debug
/// information has only line tables.
fn is_runtime_source(file: &str) -> bool {
    const RUST: [&str; 4] =
        ["/library/std/src/sys/", "/library/std/src/sync/", "/library/core/src/", "/library/alloc/src/"];
    RUST.iter().any(|dir| file.contains(dir)) && (file.contains("/rustc/") || file.contains("/rustlib/"))
        || file.contains("/include/c++/")
}

fn is_runtime_name(name: &str) -> bool {
    const C: &[&str] = &[
        "pthread_",
        "__pthread_",
        "___pthread_",
        "__gthread",
        "lll_",
        "__lll_",
        "futex",
        "__futex",
        "__libc_start_",
        "__new_sem_",
        "__old_sem_",
        "do_futex_wait",
        "__timedwait",
        "___lll_",
        "_L_lock_",
        "_L_unlock_",
    ];
    const C_EXACT: &[&str] = &[
        "syscall",
        "__syscall",
        "__syscall_cp",
        "__syscall_cp_c",
        "__syscall_cp_asm",
        "__cp_end",
        "__lock",
        "__unlock",
        "__wait",
        "__wake",
        "sem_wait",
        "sem_timedwait",
        "sem_clockwait",
        "sem_post",
        "mtx_lock",
        "mtx_timedlock",
        "cnd_wait",
        "cnd_timedwait",
        "start_thread",
        "clone",
        "clone3",
        "__clone",
        "__clone3",
        "_start",
    ];
    const CPP: &[&str] = &[
        "std::mutex",
        "std::timed_mutex",
        "std::recursive_mutex",
        "std::recursive_timed_mutex",
        "std::shared_mutex",
        "std::shared_timed_mutex",
        "std::shared_lock",
        "std::unique_lock",
        "std::lock_guard",
        "std::scoped_lock",
        "std::lock",
        "std::try_lock",
        "std::condition_variable",
        "std::call_once",
        "std::once_flag",
        "std::thread",
        "std::this_thread",
        "std::jthread",
        "std::atomic",
        "std::counting_semaphore",
        "std::latch",
        "std::barrier",
        "std::invoke",
        "std::function",
        "std::_",
        "__gnu_cxx::",
        "absl::Mutex",
        "absl::ReaderMutexLock",
        "absl::WriterMutexLock",
        "absl::ReleasableMutexLock",
        "absl::CondVar",
        "absl::Notification",
        "absl::synchronization_internal::",
        "absl::base_internal::",
        "AbslInternal",
    ];
    const RUST: &[&str] = &[
        "std::sys::",
        "std::sys_common::",
        "std::sync::",
        "std::thread::",
        "std::panic::",
        "std::panicking::",
        "std::rt::",
        "core::",
        "alloc::",
        "lock_api::",
        "parking_lot::",
        "parking_lot_core::",
        "__rust_try",
        "__rustc",
    ];
    let (path, has_parameters) = path_of(name);
    let path = without_versions(path);
    let path = without_compiler_suffix(&path);
    starts_with_any(path, C)
        || C_EXACT.contains(&path)
        || starts_with_any(path, CPP)
        // `core::` may well be a namespace of a C++ program.
        || !has_parameters && starts_with_any(path, RUST)
}

/// The qualified name in a demangled one, and whether parameters follow it (so it is C++):
/// `void app::f<int>(char)` → `app::f<int>`; `<app::T as core::fmt::Display>::fmt` → `app::T as …`,
/// because a method belongs to its type, not to its trait.
fn path_of(name: &str) -> (&str, bool) {
    let mut depth = 0i32;
    let mut start = 0;
    let mut end = name.len();
    let mut before = b' ';
    for (index, byte) in name.bytes().enumerate() {
        match byte {
            b'(' if depth == 0 && index > start && !name[..index].ends_with("operator") && before != b':' => {
                end = index;
                break;
            }
            b'<' | b'(' | b'{' | b'[' => depth += 1,
            b'>' if before == b'-' => {}
            b'>' | b')' | b'}' | b']' => depth = (depth - 1).max(0),
            b' ' if depth == 0 && !name[..index].ends_with("operator") => start = index + 1,
            _ => {}
        }
        before = byte;
    }
    let has_parameters = end < name.len();
    let path = name[start.min(end)..end].trim_start_matches(['<', '&', '*']);
    let path = ["mut ", "const ", "dyn "].iter().fold(path, |path, word| path.trim_start_matches(word));
    (path.trim_start_matches(['<', '&']), has_parameters)
}

/// Without the inline namespaces of versions: `absl::lts_20230802::Mutex`, `std::__cxx11::`, `std::__1::`.
fn without_versions(path: &str) -> String {
    let is_version = |part: &str| {
        part == "__cxx11"
            || part == "__1"
            || part == "_V2"
            || part.strip_prefix("lts_").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if !path.starts_with("absl::") && !path.starts_with("std::_") {
        return path.to_string();
    }
    path.split("::").filter(|part| !is_version(part)).collect::<Vec<_>>().join("::")
}

/// Where threads begin: true of every stack, so it says nothing.
fn starts_a_thread(name: &str) -> bool {
    matches!(name, "start_thread" | "clone" | "clone3" | "__clone" | "__clone3" | "_start")
        || name.starts_with("__libc_start_")
}

fn starts_with_any(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InFlight, LockKind, Site, WaitStats};

    fn function(name: &str) -> Function {
        Function { name: name.to_string(), file: None, line: None }
    }

    /// `module!outer|inlined|innermost`; the module may be left out; `?` is a frame without a symbol.
    fn frame(space: Space, text: &str) -> Frame {
        let (module, functions) = match text.split_once('!') {
            Some((module, functions)) => (Some(module.to_string()), functions),
            None => (None, text),
        };
        let mut frame = Frame::unsymbolized(space, None, 0xffffffffc0001234, false);
        frame.module_offset = module.as_ref().map(|_| 0x1234);
        frame.module = module;
        if functions != "?" {
            frame.functions = functions.split('|').map(function).collect();
        }
        frame
    }

    fn site_of(space: Space, stack: &str) -> String {
        let frames: Vec<Frame> = stack.split(';').map(|text| frame(space, text.trim())).collect();
        let stack = Stack { frames: (0..frames.len() as u32).collect(), incomplete: false };
        of_stack(&stack, &frames).unwrap()
    }

    #[test]
    fn kernel_stacks_name_the_caller_of_the_lock_function() {
        for (stack, site) in [
            // fentry
            (
                "bpf_prog_1f_x; bpf_trampoline_6442_0; __mutex_lock_slowpath; pipe_write; vfs_write; ksys_write; do_syscall_64",
                "pipe_write",
            ),
            // fexit: the trampoline calls the lock function, and stands between it and its caller
            (
                "bpf_prog_1; bpf_trampoline_1; __mutex_lock_slowpath; mutex_lock; bpf_trampoline_2; pipe_read; vfs_read",
                "pipe_read",
            ),
            // a tracepoint
            (
                "bpf_prog_1_contention_begin; bpf_trace_run2; __traceiter_contention_begin; __mutex_lock.constprop.0; tty_ioctl.isra.0; do_syscall_64",
                "tty_ioctl",
            ),
            // kprobe by ftrace, by kprobe.multi, and its return
            (
                "bpf_prog_1; trace_call_bpf; kprobe_perf_func; kprobe_ftrace_handler; ?; down_read; do_user_addr_fault",
                "do_user_addr_fault",
            ),
            (
                "bpf_prog_1; kprobe_multi_link_prog_run; fprobe_handler; ftrace_trampoline; down_write_killable; vm_mmap_pgoff",
                "vm_mmap_pgoff",
            ),
            (
                "bpf_prog_1; kprobe_multi_link_exit_handler; rethook_trampoline_handler; arch_rethook_trampoline_callback; arch_rethook_trampoline; vm_mmap_pgoff",
                "vm_mmap_pgoff",
            ),
            (
                "bpf_prog_1; bpf_trace_run2; __traceiter_contention_begin; __pv_queued_spin_lock_slowpath; _raw_spin_lock_irqsave; __wake_up_common_lock; pipe_write",
                "__wake_up_common_lock",
            ),
            (
                "bpf_prog_1; ?; bpf_trampoline_2; rwsem_down_read_slowpath; down_read; walk_component",
                "walk_component",
            ),
            // names that only look like lock functions
            ("__down_common; down_timeout; download_firmware; probe", "download_firmware"),
            ("up_read; upload_pages; x", "upload_pages"),
            ("mutex_lock; schedule_delayed_work; y", "schedule_delayed_work"),
            ("_raw_spin_lock; __percpu_counter_sum; y", "__percpu_counter_sum"),
            // the tracer's own locks
            ("bpf_prog_1; bpf_trampoline_1; mutex_lock; ftrace_set_hash; vfs_write", "ftrace_set_hash"),
            ("_raw_spin_lock; htab_map_update_elem; bpf_prog_theirs", "htab_map_update_elem"),
            // real time
            (
                "rt_mutex_slowlock_block.constprop.0; rtlock_slowlock_locked; rt_spin_lock; try_to_wake_up; x",
                "try_to_wake_up",
            ),
            (
                "__schedule; schedule_rtlock; rwbase_read_lock; rt_read_lock; ep_poll_callback; x",
                "ep_poll_callback",
            ),
            // nothing else
            ("bpf_prog_1; bpf_trampoline_1; __mutex_lock_slowpath; mutex_lock", "mutex_lock"),
            // no symbols
            ("?; ?; ?", "0xffffffffc0001234"),
            ("mutex_lock; ?; vfs_write", "0xffffffffc0001234"),
        ] {
            assert_eq!(site_of(Space::Kernel, stack), site, "{stack}");
        }
    }

    #[test]
    fn user_stacks_name_the_first_function_outside_the_lock_runtime() {
        for (stack, site) in [
            // C, with and without the C library's debug symbols
            (
                "libc.so.6!__lll_lock_wait; libc.so.6!___pthread_mutex_lock|lll_mutex_lock_optimized; app!take_a; app!worker; libc.so.6!start_thread; libc.so.6!clone3",
                "take_a",
            ),
            ("libc.so.6!?; libc.so.6!?; app!worker; libc.so.6!?", "worker"),
            ("libc.so.6!?; app!?; libc.so.6!?", "app+0x1234"),
            (
                "static!futex_wait; static!__lll_lock_wait; static!pthread_mutex_lock; static!spend; static!main",
                "spend",
            ),
            (
                "libpthread-2.31.so!?; libpthread-2.31.so!pthread_rwlock_rdlock; app!lookup(int)",
                "lookup(int)",
            ),
            ("ld-musl-x86_64.so.1!__timedwait; ld-musl-x86_64.so.1!?; app!job", "job"),
            // C++
            (
                "libc.so.6!__lll_lock_wait; libc.so.6!pthread_mutex_lock; app!Account::deposit(int)|std::lock_guard<std::mutex>::lock_guard|std::mutex::lock|__gthread_mutex_lock; app!main",
                "Account::deposit(int)",
            ),
            (
                "libc.so.6!pthread_mutex_lock; app!__gthread_mutex_lock(pthread_mutex_t*); app!std::mutex::lock(); app!std::unique_lock<std::mutex>::lock(); app!core::Engine::run(std::string const&)",
                "core::Engine::run(std::string const&)",
            ),
            (
                "libc.so.6!futex_wait; app!void std::__invoke_impl<void, main::{lambda()#1}>(std::__invoke_other, main::{lambda()#1}&&); app!main::{lambda()#1}::operator()() const",
                "main::{lambda()#1}::operator()() const",
            ),
            (
                "app!absl::lts_20230802::Mutex::Lock(); app!(anonymous namespace)::work()",
                "(anonymous namespace)::work()",
            ),
            // Rust
            (
                "libc.so.6!syscall; app!std::sys::pal::unix::futex::futex_wait; app!std::sys::sync::mutex::futex::Mutex::lock_contended; app!std::sync::poison::mutex::Mutex<T>::lock|std::sys::sync::mutex::futex::Mutex::lock; app!bank::transfer|core::cell::Cell<T>::get; app!std::sys::backtrace::__rust_begin_short_backtrace",
                "bank::transfer",
            ),
            (
                "libc.so.6!syscall; app!parking_lot::raw_mutex::RawMutex::lock_slow; app!<parking_lot::Mutex<T> as lock_api::RawMutex>::lock; app!<app::Job as core::ops::function::FnOnce<()>>::call_once",
                "<app::Job as core::ops::function::FnOnce<()>>::call_once",
            ),
            (
                "libc.so.6!syscall; app!<alloc::boxed::Box<F,A> as core::ops::function::FnOnce<Args>>::call_once; app!worker::run::{{closure}}",
                "worker::run::{{closure}}",
            ),
            // only the runtime: the stack was cut
            ("libc.so.6!__lll_lock_wait; libc.so.6!pthread_mutex_lock", "pthread_mutex_lock"),
            (
                "libc.so.6!__lll_lock_wait; libc.so.6!pthread_join; libc.so.6!start_thread; libc.so.6!clone3",
                "pthread_join",
            ),
            ("libc.so.6!?; libc.so.6!?", "libc.so.6+0x1234"),
        ] {
            assert_eq!(site_of(Space::User, stack), site, "{stack}");
        }
    }

    #[test]
    fn an_inlined_function_with_a_short_name_is_told_by_its_file() {
        let mut frame = frame(Space::User, "app!app::work|lock");
        frame.functions[1].file = Some("/rustc/59807616e/library/std/src/sync/poison/mutex.rs".to_string());
        let stack = Stack { frames: vec![0], incomplete: false };
        assert_eq!(of_stack(&stack, &[frame]).as_deref(), Some("app::work"));
    }

    #[test]
    fn qualified_names_are_found_in_demangled_ones() {
        for (name, path) in [
            ("main", ("main", false)),
            ("void std::__invoke_impl<void, f(int)>(g, h&&)", ("std::__invoke_impl<void, f(int)>", true)),
            ("(anonymous namespace)::f(int)", ("(anonymous namespace)::f", true)),
            ("a::{lambda()#1}::operator()() const", ("a::{lambda()#1}::operator()", true)),
            ("a::(anonymous namespace)::f()", ("a::(anonymous namespace)::f", true)),
            ("a::operator new(unsigned long)", ("a::operator new", true)),
            ("<a::T as core::fmt::Display>::fmt", ("a::T as core::fmt::Display>::fmt", false)),
            ("<&mut dyn a::T>::f", ("a::T>::f", false)),
            ("core::ops::FnOnce<fn() -> T>::call_once", ("core::ops::FnOnce<fn() -> T>::call_once", false)),
        ] {
            assert_eq!(path_of(name), path, "{name}");
        }
    }

    fn profile(stacks: &[&str]) -> Profile {
        let mut profile = crate::symbolize::tests::empty_profile();
        for text in stacks {
            let first = profile.frames.len() as u32;
            profile.frames.extend(text.split(';').map(|text| frame(Space::Kernel, text.trim())));
            let frames = (first..profile.frames.len() as u32).collect();
            profile.stacks.push(Stack { frames, incomplete: false });
        }
        profile
    }

    fn site(stack: u32, wait_ns: u64) -> Site {
        let wait =
            WaitStats { contended: u64::from(wait_ns > 0), wait_total_ns: wait_ns, ..Default::default() };
        let kernel_stack = StackRef::Stack(stack);
        Site { pid: 1, kernel_stack, user_stack: StackRef::NotTaken, futex: None, wait }
    }

    fn ongoing(stack: u32, age_ns: u64) -> InFlight {
        let (kernel_stack, user_stack) = (StackRef::Stack(stack), StackRef::NotTaken);
        InFlight {
            pid: 1,
            tid: 1,
            comm: "x".to_string(),
            age_ns,
            owner: None,
            kernel_stack,
            user_stack,
            futex: None,
            from_before: false,
        }
    }

    #[test]
    fn the_call_site_with_most_waiting_wins() {
        let profile = profile(&["mutex_lock; b", "mutex_lock; a", "mutex_lock; sys; b", "down_read; c"]);
        let mut lock = crate::symbolize::tests::lock(LockKind::Mutex, 0xffff888000001000);
        let mut of = |sites: Vec<Site>, in_flight: Vec<InFlight>| {
            (lock.sites, lock.in_flight) = (sites, in_flight);
            of_lock(&lock, &profile)
        };
        assert_eq!(of(vec![site(0, 10), site(1, 20)], vec![]).as_deref(), Some("a"));
        assert_eq!(of(vec![site(0, 20), site(1, 20)], vec![]).as_deref(), Some("a"), "a tie");
        assert_eq!(of(vec![site(0, 20), site(1, 20), site(0, 1)], vec![]).as_deref(), Some("b"), "summed");
        assert_eq!(of(vec![site(0, 20)], vec![ongoing(3, 900)]).as_deref(), Some("b"));
        assert_eq!(of(vec![], vec![ongoing(1, 5), ongoing(3, 900)]).as_deref(), Some("c"));
        assert_eq!(of(vec![site(0, 0)], vec![ongoing(3, 1)]).as_deref(), Some("c"), "b never waited");
        assert_eq!(of(vec![site(0, 0)], vec![]).as_deref(), Some("b"));
        assert_eq!(of(vec![site(99, 5)], vec![]), None);
        assert_eq!(of(vec![], vec![]), None);
    }
}
