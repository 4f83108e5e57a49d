//! Every function and tracepoint lockprof may hook: what it shows, and what is not seen without it.
//!
//! The BPF programs are found by name: `FUNCTION__fentry`, `__fexit`, `__kprobe`, `__kretprobe`,
//! `__tp` (bpf/README.md); there is no second list. Kernel sources are cited from 6.12.

use crate::model::{Family, LockKind};

/// What a hook is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Runs only when somebody waits. Always on.
    Contended,
    /// Runs at every acquire or release. Only with `--hold`.
    Hold,
}

/// A kernel function, hooked by fentry or a kprobe.
#[derive(Debug)]
pub struct LockFn {
    pub name: &'static str,
    pub kind: LockKind,
    pub level: Level,
    /// What is not seen without this hook, as a user would say it.
    pub blind: &'static str,
}

impl LockFn {
    /// A task can sleep between the function's entry and its return, for as long as it likes.
    ///
    /// A return probe then needs an instance per sleeping task, of all processes.
    pub fn sleeps(&self) -> bool {
        let never = ["futex_wake", "mutex_unlock", "up_write", "up_read", "downgrade_write"];
        !never.contains(&self.name) && !self.name.ends_with("_trylock")
    }
}

/// A raw tracepoint.
#[derive(Debug)]
pub struct Tracepoint {
    pub name: &'static str,
    pub families: &'static [Family],
    pub since: &'static str,
}

const fn contended(name: &'static str, kind: LockKind, blind: &'static str) -> LockFn {
    LockFn { name, kind, level: Level::Contended, blind }
}

const fn hold(name: &'static str, kind: LockKind, blind: &'static str) -> LockFn {
    LockFn { name, kind, level: Level::Hold, blind }
}

pub const FUNCTIONS: &[LockFn] = &[
    // kernel/locking/mutex.c: entered when the fast path's compare-and-exchange failed
    contended("__mutex_lock_slowpath", LockKind::Mutex, "waits for a mutex"),
    contended("__mutex_lock_killable_slowpath", LockKind::Mutex, "killable waits for a mutex"),
    contended("__mutex_lock_interruptible_slowpath", LockKind::Mutex, "interruptible waits for a mutex"),
    // kernel/locking/rwsem.c
    contended("rwsem_down_read_slowpath", LockKind::RwsemRead, "waits to read an rw_semaphore"),
    contended("rwsem_down_write_slowpath", LockKind::RwsemWrite, "waits to write an rw_semaphore"),
    // kernel/futex/waitwake.c, pi.c
    contended("futex_wait", LockKind::Futex, "futex waits"),
    contended("futex_lock_pi", LockKind::FutexPi, "waits for a priority-inheriting futex"),
    contended("futex_wake", LockKind::Futex, "futex wakes"),
    // --hold
    hold("mutex_lock", LockKind::Mutex, "mutex acquisitions"),
    hold("mutex_lock_interruptible", LockKind::Mutex, "interruptible mutex acquisitions"),
    hold("mutex_lock_killable", LockKind::Mutex, "killable mutex acquisitions"),
    hold("mutex_trylock", LockKind::Mutex, "mutex acquisitions by trylock"),
    hold("mutex_unlock", LockKind::Mutex, "mutex hold times"),
    hold("down_write", LockKind::RwsemWrite, "rw_semaphore acquisitions for writing"),
    hold("down_write_killable", LockKind::RwsemWrite, "killable rw_semaphore acquisitions for writing"),
    hold("down_write_trylock", LockKind::RwsemWrite, "rw_semaphore acquisitions for writing by trylock"),
    hold("up_write", LockKind::RwsemWrite, "rw_semaphore write hold times"),
    hold("down_read", LockKind::RwsemRead, "rw_semaphore acquisitions for reading"),
    hold(
        "down_read_interruptible",
        LockKind::RwsemRead,
        "interruptible rw_semaphore acquisitions for reading",
    ),
    hold("down_read_killable", LockKind::RwsemRead, "killable rw_semaphore acquisitions for reading"),
    hold("down_read_trylock", LockKind::RwsemRead, "rw_semaphore acquisitions for reading by trylock"),
    hold("up_read", LockKind::RwsemRead, "rw_semaphore read hold times"),
    hold("downgrade_write", LockKind::RwsemWrite, "rw_semaphore downgrades"),
];

/// Families only the contention tracepoints show in this version.
pub const TRACEPOINT_ONLY: &[Family] =
    &[Family::Spinlock, Family::Rwlock, Family::Semaphore, Family::PercpuRwsem, Family::RtMutex];

pub const CONTENTION: [Tracepoint; 2] = [
    Tracepoint {
        name: "contention_begin",
        families: &[
            Family::Mutex,
            Family::Rwsem,
            Family::Spinlock,
            Family::Rwlock,
            Family::Semaphore,
            Family::PercpuRwsem,
            Family::RtMutex,
        ],
        since: "5.19",
    },
    Tracepoint {
        name: "contention_end",
        families: &[
            Family::Mutex,
            Family::Rwsem,
            Family::Spinlock,
            Family::Rwlock,
            Family::Semaphore,
            Family::PercpuRwsem,
            Family::RtMutex,
        ],
        since: "5.19",
    },
];

pub const SYSCALL: [Tracepoint; 2] = [
    Tracepoint { name: "sys_enter", families: &[Family::Futex], since: "2.6" },
    Tracepoint { name: "sys_exit", families: &[Family::Futex], since: "2.6" },
];

/// Processes are followed by these; no lock depends on them.
pub const LIFECYCLE: [&str; 3] = ["sched_process_fork", "sched_process_exec", "sched_process_exit"];

/// What the contention tracepoints miss of a family even where they exist (measured, see
/// docs/coverage.md); `None`: nothing known.
pub fn tracepoint_holes(family: Family) -> Option<&'static str> {
    match family {
        Family::Rwsem => Some("writers that get an rw_semaphore while spinning, readers that steal it"),
        Family::Spinlock => {
            Some("the first waiter for a spinlock (pending bit); on 2 CPUs that is 94-97 % of them")
        }
        Family::PercpuRwsem => Some("writers of a percpu rw_semaphore that wait for readers only"),
        _ => None,
    }
}

pub fn function_names() -> Vec<&'static str> {
    FUNCTIONS.iter().map(|function| function.name).collect()
}

pub fn tracepoint_names() -> Vec<&'static str> {
    CONTENTION.iter().chain(&SYSCALL).map(|tracepoint| tracepoint.name).chain(LIFECYCLE).collect()
}
