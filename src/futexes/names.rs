//! What the functions at the leaf of a waiter's stack say.
//!
//! Only those between the system call and the first function of the application count: further out a name
//! is about another wait, `Once::call` around an initializer that takes a mutex, say. Of two that
//! tell, the inner one is right: a condition variable takes its mutex again from inside its own wait.

use crate::model::{Frame, FutexKind, Profile, Side, Space, StackRef};

/// What the C library was called for. A stripped one gives its inner functions wrong names, so this never
/// overrules the words around a futex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    Mutex,
    /// The mutex of a condition variable, taken again after the wait.
    MutexAfterCond,
    Cond,
    Sem,
    Join,
    Barrier,
    Once,
    Read,
    Write,
    /// Something that has a lock of its own: malloc, stdio, the dynamic linker.
    Internal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub called: Option<Called>,
    /// Of a library above the C library, or beside it: as good as the words, and what was wanted.
    pub library: Option<(FutexKind, Option<Side>)>,
    /// Some frame had a name: that nothing tells is then an answer.
    pub known: bool,
}

impl Names {
    pub fn of(stack: StackRef, profile: &Profile) -> Names {
        let mut names = Names::default();
        let StackRef::Stack(index) = stack else { return names };
        let Some(stack) = profile.stacks.get(index as usize) else { return names };
        let frames = stack.frames.iter().filter_map(|index| profile.frames.get(*index as usize));
        // Until something further out says what an abseil slow path is for.
        let mut absl_lock = false;
        'stack: for frame in frames.filter(|frame| frame.space == Space::User) {
            if frame.functions.is_empty() && !is_machinery_module(frame) {
                break;
            }
            for function in frame.functions.iter().rev() {
                names.known = true;
                let name = plain(&function.name);
                if names.called.is_none() {
                    names.called = called(&name, frame);
                }
                if name.starts_with("absl::Mutex::LockSlow") || name.starts_with("absl::Mutex::Block") {
                    // Block() alone is also how a condition is awaited.
                    absl_lock |= name.starts_with("absl::Mutex::LockSlow");
                    continue;
                }
                if absl_lock && name.starts_with("absl::CondVar::") {
                    break 'stack;
                }
                if let Some(found) = library(&name) {
                    names.library = Some(found);
                    return names;
                }
                let is_machinery = names.called.is_some() && is_libc_frame(frame)
                    || is_machinery_module(frame)
                    || is_machinery(&name);
                if !is_machinery {
                    break 'stack;
                }
            }
        }
        if absl_lock {
            names.library = Some((FutexKind::AbseilMutex, None));
        }
        names
    }
}

/// A demangled name without what differs between versions and manglings.
fn plain(name: &str) -> String {
    let name = name.trim_start_matches(['<', '&', '*']);
    // Not of C++ functions' parameters, which name types of anything.
    let name = match name.find('(') {
        Some(at) if at > 0 => &name[..at],
        _ => name,
    };
    if !name.contains("::") {
        // `f.constprop.0`, `f@@GLIBC_2.34`; in Go a dot parts package and function.
        let end = if name.starts_with("runtime.") { '@' } else { '.' };
        return name.split(['@', end]).next().unwrap_or(name).to_string();
    }
    let name = without_return_type(name);
    let is_version = |part: &str| part == "__1" || part == "_V2" || part.starts_with("lts_");
    name.split("::").filter(|part| !is_version(part)).collect::<Vec<_>>().join("::")
}

/// `void std::f<unsigned int>` → `std::f<unsigned int>`: templates are demangled with it.
fn without_return_type(name: &str) -> &str {
    let mut depth = 0i32;
    let mut start = 0;
    for (index, byte) in name.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            // In Rust's `A as B>::f` the first `<` is gone: nothing there is a return type.
            b'>' if depth == 0 => return name,
            b'>' => depth -= 1,
            b' ' if depth == 0 => start = index + 1,
            _ => {}
        }
    }
    &name[start..]
}

fn begins(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

fn is_libc_frame(frame: &Frame) -> bool {
    frame.module.as_deref().is_some_and(is_libc_module)
}

/// The C library and its loader.
pub fn is_libc_module(module: &str) -> bool {
    const NAMES: &[&str] = &[
        "libc.so",
        "libc-2.",
        "libc.musl-",
        "libpthread.so",
        "libpthread-2.",
        "ld-linux",
        "ld-musl",
        "ld-2.",
    ];
    begins(module, NAMES)
}

/// Code between the system call and whoever wanted a lock, with or without symbols.
fn is_machinery_module(frame: &Frame) -> bool {
    const LIBRARIES: &[&str] =
        &["libstdc++.so", "libc++.so", "libgomp", "libomp.so", "libjvm.so", "libpython", "python3", "[vdso]"];
    frame.module.as_deref().is_some_and(|module| is_libc_module(module) || begins(module, LIBRARIES))
}

fn is_machinery(name: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "pthread_",
        "__pthread_",
        "___pthread_",
        "__gthread",
        "lll_",
        "__lll_",
        "___lll_",
        "futex",
        "__futex",
        "__new_sem_",
        "__old_sem_",
        "do_futex_wait",
        "__timedwait",
        "syscall",
        "__syscall",
        "__cp_",
        "__wait",
        "__lock",
        "sem_",
        "mtx_",
        "cnd_",
        "_L_lock_",
        "std::",
        "core::",
        "alloc::",
        "lock_api::",
        "parking_lot",
        "absl::",
        "Absl",
        "gomp_",
        "os::",
        "_Py",
        "PyMutex",
        "PyThread_",
        "runtime.",
    ];
    begins(name, PREFIXES)
}

fn called(name: &str, frame: &Frame) -> Option<Called> {
    let name = name.trim_start_matches('_');
    let name = name.strip_prefix("GI_").unwrap_or(name).trim_start_matches('_');
    let table: [(&[&str], Called); 9] = [
        (&["pthread_mutex_cond_lock"], Called::MutexAfterCond),
        (
            &[
                "pthread_mutex_lock",
                "pthread_mutex_timedlock",
                "pthread_mutex_clocklock",
                "mtx_lock",
                "mtx_timedlock",
            ],
            Called::Mutex,
        ),
        (&["pthread_cond_", "cnd_wait", "cnd_timedwait"], Called::Cond),
        (&["sem_wait", "sem_timedwait", "sem_clockwait", "new_sem_wait"], Called::Sem),
        (&["pthread_join", "pthread_timedjoin", "pthread_clockjoin", "thrd_join"], Called::Join),
        (&["pthread_barrier_wait"], Called::Barrier),
        (&["pthread_once", "call_once"], Called::Once),
        (
            &["pthread_rwlock_rdlock", "pthread_rwlock_timedrdlock", "pthread_rwlock_clockrdlock"],
            Called::Read,
        ),
        (
            &["pthread_rwlock_wrlock", "pthread_rwlock_timedwrlock", "pthread_rwlock_clockwrlock"],
            Called::Write,
        ),
    ];
    if let Some((_, called)) = table.iter().find(|(prefixes, _)| begins(name, prefixes)) {
        return Some(*called);
    }
    // Another library's malloc has locks of its own making (tcmalloc's spinlock sleeps at 2, too).
    let is_other_library =
        frame.module.as_deref().is_some_and(|module| module.contains(".so") && !is_libc_module(module));
    (!is_other_library && is_internal(name)).then_some(Called::Internal)
}

/// By the name of a function of glibc that takes an `lll_lock` (malloc/, libio/, elf/, stdlib/, time/,
/// nptl/allocatestack.c), without leading underscores.
fn is_internal(name: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "int_malloc",
        "int_free",
        "int_realloc",
        "int_memalign",
        "arena_get",
        "tcache_",
        "malloc_consolidate",
        "sysmalloc",
        "IO_",
        "dl_",
        "run_exit_handlers",
        "new_exitfn",
        "cxa_",
        "nptl_deallocate_stack",
        "nptl_free_stacks",
        "allocate_stack",
        "get_cached_stack",
        "libc_fork",
        "libc_malloc",
        "libc_free",
        "libc_calloc",
        "libc_realloc",
        "libc_memalign",
        "tz_",
    ];
    const EXACT: &[&str] = &[
        "malloc",
        "free",
        "calloc",
        "realloc",
        "memalign",
        "posix_memalign",
        "aligned_alloc",
        "malloc_trim",
        "mallopt",
        "mallinfo",
        "mallinfo2",
        "fork",
        "exit",
        "atexit",
        "getenv",
        "setenv",
        "unsetenv",
        "putenv",
        "fwrite",
        "fread",
        "fputs",
        "puts",
        "fputc",
        "putc",
        "putchar",
        "fgets",
        "fgetc",
        "getc",
        "getline",
        "fflush",
        "fopen",
        "fopen64",
        "fclose",
        "printf",
        "fprintf",
        "vfprintf",
        "vfprintf_internal",
        "printf_chk",
        "fprintf_chk",
        "vfprintf_chk",
        "perror",
        "dlopen",
        "dlsym",
        "dlclose",
        "rand",
        "random",
        "srand",
        "localtime",
        "localtime_r",
        "mktime",
        "strftime",
        "setlocale",
        "syslog",
        "vsyslog",
        "pthread_create",
        "flockfile",
    ];
    begins(name, PREFIXES) || EXACT.contains(&name)
}

/// Libraries that are told by name only, or better by name.
fn library(name: &str) -> Option<(FutexKind, Option<Side>)> {
    use FutexKind::*;
    let sides = |read: &str, write: &str| {
        if name.contains(read) {
            Some(Side::Read)
        } else if name.contains(write) {
            Some(Side::Write)
        } else {
            None
        }
    };
    // library/std/src/sys/sync/*/futex.rs, and where these were before 1.78
    if name.starts_with("std::sys") {
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        return if has(&["mutex::futex::", "futex_mutex::"]) {
            Some((RustMutex, None))
        } else if has(&["rwlock::futex::", "futex_rwlock::"]) {
            Some((RustRwlock, sides("read", "write")))
        } else if has(&["condvar::futex::", "futex_condvar::"]) {
            Some((RustCondvar, None))
        } else if has(&["once::futex::"]) {
            Some((RustOnce, None))
        } else if has(&["thread_parking::", "thread_parker::"]) {
            Some((RustPark, None))
        } else {
            None
        };
    }
    let table: [(&[&str], FutexKind); 19] = [
        (&["std::sync::mutex::Mutex", "std::sync::poison::mutex::Mutex"], RustMutex),
        (
            &[
                "std::sync::condvar::Condvar",
                "std::sync::poison::condvar::Condvar",
                "std::sync::nonpoison::condvar::Condvar",
            ],
            RustCondvar,
        ),
        (&["std::thread::park", "std::thread::functions::park", "std::thread::Thread::park"], RustPark),
        (&["parking_lot::condvar::Condvar"], ParkingLotCondvar),
        (&["parking_lot::raw_mutex::RawMutex"], ParkingLotMutex),
        (
            &[
                "absl::Mutex::Await",
                "absl::Mutex::LockWhen",
                "absl::Mutex::ReaderLockWhen",
                "absl::Mutex::WriterLockWhen",
                "absl::CondVar::",
                "absl::Notification::",
                "absl::BlockingCounter::",
                "absl::Barrier::",
            ],
            AbseilWait,
        ),
        (
            &["absl::Mutex::Lock", "absl::Mutex::ReaderLock", "absl::Mutex::WriterLock", "absl::Mutex::lock"],
            AbseilMutex,
        ),
        // bits/atomic_wait.h, which is a header: without debug information often inlined and not seen
        (
            &[
                "std::__atomic_wait",
                "std::__detail::__waiter",
                "std::__detail::__wait_impl",
                "std::__detail::__platform_wait",
                "std::__platform_wait",
                // bits/atomic_futex.h: std::future
                "std::__atomic_futex",
                "std::__atomic_impl::wait",
                "std::__atomic_wait_address",
            ],
            CppAtomicWait,
        ),
        (
            &[
                "std::__libcpp_atomic_wait",
                "std::__libcpp_atomic_monitor",
                "std::__cxx_atomic_wait",
                "std::__libcpp_platform_wait",
            ],
            CppAtomicWait,
        ),
        // src/hotspot/share/runtime/objectMonitor.cpp
        (&["ObjectMonitor::wait", "Parker::park", "Unsafe_Park", "ObjectMonitor::Wait"], HotspotPark),
        (
            &[
                "ObjectMonitor::enter",
                "ObjectMonitor::EnterI",
                "ObjectMonitor::ReenterI",
                "ObjectMonitor::reenter",
                "ObjectSynchronizer::enter",
            ],
            HotspotMonitor,
        ),
        (&["take_gil"], PythonGil),
        // Python/lock.c
        (&["PyMutex_Lock", "_PyMutex_Lock", "_PyMutex_LockTimed", "_PyMutex_LockSlow"], PythonMutex),
        (
            &[
                "gomp_mutex_lock",
                "gomp_ptrlock_get",
                "GOMP_critical_start",
                "GOMP_atomic_start",
                "omp_set_lock",
                "omp_set_nest_lock",
            ],
            OpenmpLock,
        ),
        (
            &["gomp_barrier_", "gomp_team_barrier_", "gomp_team_end", "gomp_sem_wait", "GOMP_barrier"],
            OpenmpBarrier,
        ),
        (&["__kmp_acquire_", "__kmpc_set_lock", "__kmpc_critical"], OpenmpLock),
        (
            &[
                "__kmp_fork_barrier",
                "__kmp_join_barrier",
                "__kmp_barrier",
                "__kmp_hyper_barrier",
                "__kmp_suspend",
            ],
            OpenmpBarrier,
        ),
        (&["runtime.lock2", "runtime.semasleep"], GoRuntimeLock),
        (&["runtime.notesleep", "runtime.notetsleep"], GoNote),
    ];
    if name.starts_with("parking_lot::raw_rwlock::RawRwLock") {
        return Some((ParkingLotRwlock, sides("shared", "exclusive")));
    }
    table.iter().find(|(prefixes, _)| begins(name, prefixes)).map(|(_, kind)| (*kind, None))
}
