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
    /// Runs when a lock is released, and says something only when somebody waits for it. Always on.
    Release,
    /// Runs when a thread wakes those who wait for a futex, or might. Always on.
    Wake,
    /// Runs at every acquire or release. Only with `--hold`.
    Hold,
    /// Runs at every operation on a file lock. Only with `--file-locks`.
    FileLock,
}

/// A kernel function, hooked by fentry or a kprobe.
#[derive(Debug)]
pub struct LockFn {
    pub name: &'static str,
    pub kind: LockKind,
    pub level: Level,
    /// What is not seen without this hook, as a user would say it.
    pub blind: &'static str,
    /// Kernels without it lose nothing by that: it belongs to another version or configuration.
    pub optional: bool,
    /// Only by fentry: there is no kprobe program.
    pub fentry_only: bool,
    /// `name.isra.0` and `name.constprop.0` do as well: the lock is their first argument too.
    pub by_suffix: bool,
    /// Of no use without this function (an unlock that may be inlined).
    pub needs: Option<&'static str>,
}

impl LockFn {
    /// A task can sleep between the function's entry and its return, for as long as it likes.
    ///
    /// A return probe then needs an instance per sleeping task, of all processes.
    pub fn sleeps(&self) -> bool {
        if self.level == Level::Wake {
            return false;
        }
        const NEVER: [&str; 12] = [
            "mutex_unlock",
            "up_write",
            "up_read",
            "up_read_non_owner",
            "downgrade_write",
            "rt_mutex_unlock",
            "rt_spin_unlock",
            "rt_read_unlock",
            "rt_write_unlock",
            "percpu_up_write",
            "native_queued_spin_lock_slowpath",
            "__pv_queued_spin_lock_slowpath",
        ];
        !(NEVER.contains(&self.name) || self.name.contains("trylock") || self.name.starts_with("queued_"))
    }

    const fn by_suffix(self) -> LockFn {
        LockFn { by_suffix: true, ..self }
    }

    const fn optional(self) -> LockFn {
        LockFn { optional: true, ..self }
    }

    const fn spins(self) -> LockFn {
        let unlock = match self.kind {
            LockKind::RwlockRead => "_raw_read_unlock",
            LockKind::RwlockWrite => "_raw_write_unlock",
            _ => "_raw_spin_unlock",
        };
        LockFn { fentry_only: true, needs: Some(unlock), ..self }
    }
}

/// A raw tracepoint.
#[derive(Debug)]
pub struct Tracepoint {
    pub name: &'static str,
    pub since: &'static str,
}

const NOTHING_SPECIAL: LockFn = LockFn {
    name: "",
    kind: LockKind::Mutex,
    level: Level::Contended,
    blind: "",
    optional: false,
    fentry_only: false,
    by_suffix: false,
    needs: None,
};

const fn contended(name: &'static str, kind: LockKind, blind: &'static str) -> LockFn {
    LockFn { name, kind, level: Level::Contended, blind, ..NOTHING_SPECIAL }
}

const fn hold(name: &'static str, kind: LockKind, blind: &'static str) -> LockFn {
    LockFn { name, kind, level: Level::Hold, blind, ..NOTHING_SPECIAL }
}

const fn wake(name: &'static str, kind: LockKind, blind: &'static str) -> LockFn {
    LockFn { name, kind, level: Level::Wake, blind, ..NOTHING_SPECIAL }
}

const fn release(name: &'static str, kind: LockKind) -> LockFn {
    let blind = "releases of locks somebody waits for";
    LockFn { name, kind, level: Level::Release, blind, ..NOTHING_SPECIAL }
}

pub const FUNCTIONS: &[LockFn] = &[
    // kernel/locking/mutex.c: entered when the fast path's compare-and-exchange failed
    contended("__mutex_lock_slowpath", LockKind::Mutex, "waits for a mutex"),
    contended("__mutex_lock_killable_slowpath", LockKind::Mutex, "killable waits for a mutex"),
    contended("__mutex_lock_interruptible_slowpath", LockKind::Mutex, "interruptible waits for a mutex"),
    contended("__ww_mutex_lock_slowpath", LockKind::Mutex, "waits for a ww_mutex"),
    contended(
        "__ww_mutex_lock_interruptible_slowpath",
        LockKind::Mutex,
        "interruptible waits for a ww_mutex",
    ),
    // kernel/locking/rwsem.c
    contended("rwsem_down_read_slowpath", LockKind::RwsemRead, "waits to read an rw_semaphore"),
    contended("rwsem_down_write_slowpath", LockKind::RwsemWrite, "waits to write an rw_semaphore"),
    // kernel/locking/qspinlock.c, qrwlock.c
    contended("native_queued_spin_lock_slowpath", LockKind::Spinlock, "waits for a spinlock"),
    contended(
        "__pv_queued_spin_lock_slowpath",
        LockKind::Spinlock,
        "waits for a spinlock under a hypervisor with paravirtual spinlocks",
    )
    .optional(),
    contended("queued_read_lock_slowpath", LockKind::RwlockRead, "waits to read an rwlock"),
    contended("queued_write_lock_slowpath", LockKind::RwlockWrite, "waits to write an rwlock"),
    // kernel/locking/semaphore.c
    contended("__down", LockKind::Semaphore, "waits for a semaphore"),
    contended("__down_interruptible", LockKind::Semaphore, "interruptible waits for a semaphore"),
    contended("__down_killable", LockKind::Semaphore, "killable waits for a semaphore"),
    contended("__down_timeout", LockKind::Semaphore, "waits for a semaphore with a timeout"),
    // kernel/locking/percpu-rwsem.c
    contended("percpu_rwsem_wait", LockKind::PercpuRwsemRead, "waits to read a percpu_rw_semaphore"),
    contended("percpu_down_write", LockKind::PercpuRwsemWrite, "waits to write a percpu_rw_semaphore"),
    // kernel/locking/rtmutex.c, up to 5.14
    contended("rt_mutex_slowlock", LockKind::RtMutex, "waits for an rt_mutex").optional(),
    // kernel/futex/waitwake.c, pi.c
    contended("futex_wait", LockKind::Futex, "futex waits"),
    contended("futex_lock_pi", LockKind::FutexPi, "waits for a priority-inheriting futex"),
    // FUTEX_WAIT_REQUEUE_PI; 5.10 has a copy with constant arguments, and none of them is looked at
    contended(
        "futex_wait_requeue_pi",
        LockKind::Futex,
        "waits for condition variables that hand over a priority-inheriting mutex",
    )
    .by_suffix(),
    // futex_waitv(2), 5.16; futex_wait(2), 6.7
    contended("futex_wait_multiple", LockKind::Futex, "waits for several futexes at once").optional(),
    contended("__x64_sys_futex_wait", LockKind::Futex, "waits by futex_wait(2)").optional(),
    wake("futex_wake", LockKind::Futex, "futex wakes, and with them the holds that began with a wait"),
    wake("futex_wake_op", LockKind::Futex, "the stacks of wakes by FUTEX_WAKE_OP").optional(),
    wake("futex_requeue", LockKind::Futex, "the stacks of wakes by requeueing"),
    // 5.10 inlines it
    wake("futex_unlock_pi", LockKind::FutexPi, "releases of priority-inheriting futexes"),
    // who woke whom; the second is its name before 5.16
    wake("futex_wake_mark", LockKind::Futex, "which thread woke which").optional(),
    wake("mark_wake_futex", LockKind::Futex, "which thread woke which").optional(),
    // What a holder runs when it finds waiters; up() whether it does or not.
    release("__mutex_unlock_slowpath", LockKind::Mutex).by_suffix(),
    release("rwsem_wake", LockKind::RwsemWrite).by_suffix(),
    release("up", LockKind::Semaphore),
    // --file-locks: fs/locks.c
    LockFn {
        name: "locks_lock_inode_wait",
        kind: LockKind::Flock,
        level: Level::FileLock,
        blind: "the ends of waits for flock() that a signal ended",
        ..NOTHING_SPECIAL
    },
    // --hold
    hold("mutex_lock", LockKind::Mutex, "mutex acquisitions"),
    hold("mutex_lock_interruptible", LockKind::Mutex, "interruptible mutex acquisitions"),
    hold("mutex_lock_killable", LockKind::Mutex, "killable mutex acquisitions"),
    hold("mutex_trylock", LockKind::Mutex, "mutex acquisitions by trylock"),
    hold("mutex_unlock", LockKind::Mutex, "mutex hold times"),
    hold("ww_mutex_lock", LockKind::Mutex, "ww_mutex acquisitions"),
    hold("ww_mutex_lock_interruptible", LockKind::Mutex, "interruptible ww_mutex acquisitions"),
    // 5.18; before it a ww_mutex was taken by mutex_trylock()
    hold("ww_mutex_trylock", LockKind::Mutex, "ww_mutex acquisitions by trylock").optional(),
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
    hold("percpu_up_write", LockKind::PercpuRwsemWrite, "percpu_rw_semaphore write hold times"),
    hold("rt_mutex_lock", LockKind::RtMutex, "rt_mutex acquisitions"),
    hold("rt_mutex_lock_interruptible", LockKind::RtMutex, "interruptible rt_mutex acquisitions"),
    hold("rt_mutex_lock_killable", LockKind::RtMutex, "killable rt_mutex acquisitions").optional(),
    hold("rt_mutex_trylock", LockKind::RtMutex, "rt_mutex acquisitions by trylock"),
    hold("rt_mutex_unlock", LockKind::RtMutex, "rt_mutex hold times"),
    // CONFIG_DEBUG_LOCK_ALLOC: kernel/locking/mutex.c, rwsem.c, spinlock.c
    hold("mutex_lock_nested", LockKind::Mutex, "mutex acquisitions").optional(),
    hold("mutex_lock_interruptible_nested", LockKind::Mutex, "interruptible mutex acquisitions").optional(),
    hold("mutex_lock_killable_nested", LockKind::Mutex, "killable mutex acquisitions").optional(),
    hold("mutex_lock_io_nested", LockKind::Mutex, "mutex acquisitions by mutex_lock_io").optional(),
    hold("_mutex_lock_nest_lock", LockKind::Mutex, "mutex acquisitions by mutex_lock_nest_lock").optional(),
    hold("down_write_nested", LockKind::RwsemWrite, "nested rw_semaphore acquisitions for writing")
        .optional(),
    hold(
        "down_write_killable_nested",
        LockKind::RwsemWrite,
        "killable nested rw_semaphore acquisitions for writing",
    )
    .optional(),
    hold(
        "_down_write_nest_lock",
        LockKind::RwsemWrite,
        "rw_semaphore acquisitions for writing by down_write_nest_lock",
    )
    .optional(),
    hold("down_read_nested", LockKind::RwsemRead, "nested rw_semaphore acquisitions for reading").optional(),
    hold(
        "down_read_killable_nested",
        LockKind::RwsemRead,
        "killable nested rw_semaphore acquisitions for reading",
    )
    .optional(),
    hold(
        "down_read_non_owner",
        LockKind::RwsemRead,
        "rw_semaphore acquisitions for reading without an owner",
    )
    .optional(),
    hold("up_read_non_owner", LockKind::RwsemRead, "rw_semaphore read holds without an owner").optional(),
    hold("_raw_spin_lock_nested", LockKind::Spinlock, "nested spinlock acquisitions").spins().optional(),
    hold("_raw_spin_lock_irqsave_nested", LockKind::Spinlock, "nested spinlock acquisitions by lock_irqsave")
        .spins()
        .optional(),
    hold("_raw_spin_lock_nest_lock", LockKind::Spinlock, "spinlock acquisitions by spin_lock_nest_lock")
        .spins()
        .optional(),
    // kernel/locking/spinlock_rt.c: PREEMPT_RT
    hold("rt_spin_lock", LockKind::Spinlock, "spinlock acquisitions").optional(),
    hold("rt_spin_trylock", LockKind::Spinlock, "spinlock acquisitions by trylock").optional(),
    hold("rt_spin_trylock_bh", LockKind::Spinlock, "spinlock acquisitions by trylock_bh").optional(),
    hold("rt_spin_unlock", LockKind::Spinlock, "spinlock hold times").optional(),
    hold("rt_read_lock", LockKind::RwlockRead, "rwlock acquisitions for reading").optional(),
    hold("rt_read_trylock", LockKind::RwlockRead, "rwlock acquisitions for reading by trylock").optional(),
    hold("rt_read_unlock", LockKind::RwlockRead, "rwlock read hold times").optional(),
    hold("rt_write_lock", LockKind::RwlockWrite, "rwlock acquisitions for writing").optional(),
    hold("rt_write_trylock", LockKind::RwlockWrite, "rwlock acquisitions for writing by trylock").optional(),
    hold("rt_write_unlock", LockKind::RwlockWrite, "rwlock write hold times").optional(),
    // kernel/locking/spinlock.c
    hold("_raw_spin_lock", LockKind::Spinlock, "spinlock acquisitions").spins(),
    hold("_raw_spin_lock_bh", LockKind::Spinlock, "spinlock acquisitions by lock_bh").spins(),
    hold("_raw_spin_lock_irq", LockKind::Spinlock, "spinlock acquisitions by lock_irq").spins(),
    hold("_raw_spin_lock_irqsave", LockKind::Spinlock, "spinlock acquisitions by lock_irqsave").spins(),
    hold("_raw_spin_trylock", LockKind::Spinlock, "spinlock acquisitions by trylock").spins(),
    hold("_raw_spin_trylock_bh", LockKind::Spinlock, "spinlock acquisitions by trylock_bh").spins(),
    hold("_raw_spin_unlock", LockKind::Spinlock, "spinlock hold times").spins(),
    hold("_raw_spin_unlock_bh", LockKind::Spinlock, "spinlock holds that end in unlock_bh").spins(),
    hold("_raw_spin_unlock_irq", LockKind::Spinlock, "spinlock holds that end in unlock_irq").spins(),
    hold("_raw_spin_unlock_irqrestore", LockKind::Spinlock, "spinlock holds that end in unlock_irqrestore")
        .spins(),
    hold("_raw_read_lock", LockKind::RwlockRead, "rwlock acquisitions for reading").spins(),
    hold("_raw_read_lock_bh", LockKind::RwlockRead, "rwlock acquisitions for reading by lock_bh").spins(),
    hold("_raw_read_lock_irq", LockKind::RwlockRead, "rwlock acquisitions for reading by lock_irq").spins(),
    hold("_raw_read_lock_irqsave", LockKind::RwlockRead, "rwlock acquisitions for reading by lock_irqsave")
        .spins(),
    hold("_raw_read_trylock", LockKind::RwlockRead, "rwlock acquisitions for reading by trylock").spins(),
    hold("_raw_read_unlock", LockKind::RwlockRead, "rwlock read hold times").spins(),
    hold("_raw_read_unlock_bh", LockKind::RwlockRead, "rwlock read holds that end in unlock_bh").spins(),
    hold("_raw_read_unlock_irq", LockKind::RwlockRead, "rwlock read holds that end in unlock_irq").spins(),
    hold(
        "_raw_read_unlock_irqrestore",
        LockKind::RwlockRead,
        "rwlock read holds that end in unlock_irqrestore",
    )
    .spins(),
    hold("_raw_write_lock", LockKind::RwlockWrite, "rwlock acquisitions for writing").spins(),
    hold("_raw_write_lock_nested", LockKind::RwlockWrite, "rwlock nested acquisitions for writing")
        .spins()
        .optional(),
    hold("_raw_write_lock_bh", LockKind::RwlockWrite, "rwlock acquisitions for writing by lock_bh").spins(),
    hold("_raw_write_lock_irq", LockKind::RwlockWrite, "rwlock acquisitions for writing by lock_irq").spins(),
    hold("_raw_write_lock_irqsave", LockKind::RwlockWrite, "rwlock acquisitions for writing by lock_irqsave")
        .spins(),
    hold("_raw_write_trylock", LockKind::RwlockWrite, "rwlock acquisitions for writing by trylock").spins(),
    hold("_raw_write_unlock", LockKind::RwlockWrite, "rwlock write hold times").spins(),
    hold("_raw_write_unlock_bh", LockKind::RwlockWrite, "rwlock write holds that end in unlock_bh").spins(),
    hold("_raw_write_unlock_irq", LockKind::RwlockWrite, "rwlock write holds that end in unlock_irq").spins(),
    hold(
        "_raw_write_unlock_irqrestore",
        LockKind::RwlockWrite,
        "rwlock write holds that end in unlock_irqrestore",
    )
    .spins(),
];

/// Families whose acquisitions and holds can be traced, with `--hold`; and what `--hold` alone means.
pub const HOLD_FAMILIES: &[Family] =
    &[Family::Mutex, Family::Rwsem, Family::PercpuRwsem, Family::RtMutex, Family::Spinlock, Family::Rwlock];
pub const HOLD_BY_DEFAULT: &[Family] = &[Family::Mutex, Family::Rwsem, Family::PercpuRwsem, Family::RtMutex];

pub const CONTENTION: [Tracepoint; 2] = [
    Tracepoint { name: "contention_begin", since: "5.19" },
    Tracepoint { name: "contention_end", since: "5.19" },
];

pub const SYSCALL: [Tracepoint; 2] =
    [Tracepoint { name: "sys_enter", since: "2.6" }, Tracepoint { name: "sys_exit", since: "2.6" }];

/// With `--file-locks`.
pub const FILE_LOCKS: [Tracepoint; 3] = [
    Tracepoint { name: "flock_lock_inode", since: "a kernel before 5.10" },
    Tracepoint { name: "posix_lock_inode", since: "a kernel before 5.10" },
    Tracepoint { name: "fcntl_setlk", since: "a kernel before 5.10" },
];

/// Processes are followed by these; no lock depends on them.
pub const LIFECYCLE: [&str; 3] = ["sched_process_fork", "sched_process_exec", "sched_process_exit"];

/// What holders of wanted locks do, and when waiters run after they were woken; no lock depends on them either.
pub const SCHEDULER: [&str; 2] = ["sched_switch", "sched_waking"];

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

pub fn function(name: &str) -> Option<&'static LockFn> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// The functions that may be hooked when the holds of these families, and file locks, are wanted.
pub fn functions_for(hold: &[Family], file_locks: bool) -> impl Iterator<Item = &'static LockFn> {
    FUNCTIONS.iter().filter(move |function| match function.level {
        Level::Contended | Level::Release | Level::Wake => true,
        Level::Hold => hold.contains(&function.kind.family()),
        Level::FileLock => file_locks,
    })
}

pub fn tracepoint_names() -> Vec<&'static str> {
    CONTENTION
        .iter()
        .chain(&SYSCALL)
        .chain(&FILE_LOCKS)
        .map(|tracepoint| tracepoint.name)
        .chain(LIFECYCLE)
        .chain(SCHEDULER)
        .collect()
}
