//! What a futex wait asked for, and what that makes of it: a lock, or a thread that has nothing to do.
//!
//! The kernel sees one call for all of it. [`FutexCall`] is the evidence of one waiting site as BPF took it
//! when the wait began; `futexes` (the module) reads it by the rule table of the shared facts
//! (lock-semantics.md D.1), and [`FutexLock`] is its answer.

use serde::{Deserialize, Serialize};

/// The operation that waits, of futex(2) and the system calls beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FutexOp {
    /// FUTEX_WAIT
    Wait,
    /// FUTEX_WAIT_BITSET, and futex_wait(2) of Linux 6.7
    WaitBitset,
    /// FUTEX_LOCK_PI, FUTEX_LOCK_PI2
    LockPi,
    /// FUTEX_WAIT_REQUEUE_PI: a condition variable whose mutex inherits priority
    WaitRequeuePi,
    /// futex_waitv(2): several words at once; the address is that of the first
    Waitv,
    /// A wait that was restarted after a signal and whose call was not seen, or an operation newer than this
    Other,
}

/// The value the word was expected to have, as far as it tells implementations apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FutexValue {
    Zero,
    One,
    Two,
    Three,
    Five,
    Seven,
    /// 0xffffffff
    AllOnes,
    /// The id of a living thread, in the waiter's pid namespace
    Thread,
    /// The same with bit 31: robust mutexes of glibc, typed ones of musl
    OwnedByThread,
    /// 0x80000010: musl's normal mutex (EBUSY with waiters)
    MuslBusy,
    /// 0x80000000
    Bit31,
    /// Bit 31 and anything else
    Negative,
    /// Bit 30 and not bit 31: readers wait for a Rust RwLock
    Bit30,
    /// Bit 19 or above, and 2: a glibc mutex with a priority ceiling
    Ceiling,
    /// Anything else
    Other,
}

/// Where the word is, as seen from the thread that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FutexPlace {
    /// Within 64 KiB above the waiter's stack pointer
    OwnStack,
    /// Near its thread pointer: thread-local storage, or the C library's own record of the thread
    ThreadLocal,
    /// Both: the stack of a thread begins below its thread-local storage
    OwnStackOrThreadLocal,
    Elsewhere,
}

/// What the words around the futex look like: each true if they could be this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FutexWords {
    /// `pthread_mutex_t`: the word at +8 is a living thread of this process, the kind at +16 is one of glibc's
    pub glibc_mutex: bool,
    /// `pthread_rwlock_t`, the futex at +8, where readers wait, and the first writer
    pub glibc_rwlock_phase: bool,
    /// `pthread_rwlock_t`, the futex at +12, where writers wait
    pub glibc_rwlock_writers: bool,
    /// `pthread_cond_t` with the futex at +40 or +44
    pub glibc_cond: bool,
    /// `sem_t` with waiters
    pub glibc_sem: bool,
    /// `pthread_barrier_t`
    pub glibc_barrier: bool,
    /// Bit 31 of the word before: a Rust RwLock for which writers wait
    pub rust_rwlock_writers: bool,
    /// parking_lot's parker: the address of the lock is the key it is parked on
    pub parked: Option<ParkToken>,
}

/// What a thread that parking_lot parked waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParkToken {
    /// Token 0, and the byte at the key says locked with parked threads
    Mutex,
    /// Token 0, and it does not: a condition variable, or a mutex that was unlocked just then
    MutexOrCondvar,
    Read,
    Write,
}

/// A waiting call, as BPF saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FutexCall {
    pub op: FutexOp,
    /// FUTEX_PRIVATE_FLAG
    pub private: bool,
    /// FUTEX_CLOCK_REALTIME
    pub realtime: bool,
    pub timeout: bool,
    pub value: FutexValue,
    pub place: FutexPlace,
    pub words: FutexWords,
    /// By a 32-bit program, or through the 32-bit entry
    #[serde(default)]
    pub compat: bool,
}

/// What the waits are; totals never mix two of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FutexClass {
    /// Contention: somebody has what the waiter wants.
    Lock,
    /// Nothing to do: condition variables, semaphores, joins, parked threads.
    Idle,
    /// Initialization that another thread is at.
    Once,
    Unknown,
}

impl FutexClass {
    pub fn name(self) -> &'static str {
        match self {
            FutexClass::Lock => "lock",
            FutexClass::Idle => "idle",
            FutexClass::Once => "once",
            FutexClass::Unknown => "unknown",
        }
    }
}

/// Which implementation, of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FutexKind {
    PiMutex,
    GlibcMutex,
    GlibcRobustMutex,
    GlibcCeilingMutex,
    /// malloc's arenas, stdio, the dynamic linker
    GlibcInternal,
    GlibcRwlock,
    RustMutex,
    RustRwlock,
    ParkingLotMutex,
    ParkingLotRwlock,
    GoRuntimeLock,
    MuslMutex,
    MuslRwlock,
    MuslInternal,
    AbseilMutex,
    HotspotMonitor,
    PythonGil,
    PythonMutex,
    OpenmpLock,
    /// 0, 1, 2: the convention of most mutexes that are none of the above
    MutexLike,

    GlibcCond,
    GlibcSem,
    GlibcBarrier,
    Join,
    RustCondvar,
    RustPark,
    ParkingLotCondvar,
    GoNote,
    MuslCond,
    MuslSem,
    MuslBarrier,
    CppAtomicWait,
    AbseilWait,
    HotspotPark,
    OpenmpBarrier,
    /// A word on the waiter's own stack
    OwnStack,
    /// A word on which one thread only ever waits
    Parker,

    GlibcOnce,
    RustOnce,
    MuslOnce,

    Waitv,
    Unknown,
}

impl FutexKind {
    pub fn class(self) -> FutexClass {
        use FutexKind::*;
        match self {
            PiMutex | GlibcMutex | GlibcRobustMutex | GlibcCeilingMutex | GlibcInternal | GlibcRwlock
            | RustMutex | RustRwlock | ParkingLotMutex | ParkingLotRwlock | GoRuntimeLock | MuslMutex
            | MuslRwlock | MuslInternal | AbseilMutex | HotspotMonitor | PythonGil | PythonMutex
            | OpenmpLock | MutexLike => FutexClass::Lock,
            GlibcCond | GlibcSem | GlibcBarrier | Join | RustCondvar | RustPark | ParkingLotCondvar
            | GoNote | MuslCond | MuslSem | MuslBarrier | CppAtomicWait | AbseilWait | HotspotPark
            | OpenmpBarrier | OwnStack | Parker => FutexClass::Idle,
            GlibcOnce | RustOnce | MuslOnce => FutexClass::Once,
            Waitv | Unknown => FutexClass::Unknown,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        use FutexKind::*;
        match self {
            PiMutex => "PI mutex",
            GlibcMutex => "glibc mutex",
            GlibcRobustMutex => "glibc robust mutex",
            GlibcCeilingMutex => "glibc ceiling mutex",
            GlibcInternal => "glibc internal lock",
            GlibcRwlock => "glibc rwlock",
            RustMutex => "Rust Mutex",
            RustRwlock => "Rust RwLock",
            ParkingLotMutex => "parking_lot Mutex",
            ParkingLotRwlock => "parking_lot RwLock",
            GoRuntimeLock => "Go runtime lock",
            MuslMutex => "musl mutex",
            MuslRwlock => "musl rwlock",
            MuslInternal => "musl internal lock",
            AbseilMutex => "absl::Mutex",
            HotspotMonitor => "HotSpot monitor",
            PythonGil => "Python GIL",
            PythonMutex => "Python PyMutex",
            OpenmpLock => "OpenMP lock",
            MutexLike => "mutex (probable)",
            GlibcCond => "glibc condition variable",
            GlibcSem => "glibc semaphore",
            GlibcBarrier => "glibc barrier",
            Join => "thread join",
            RustCondvar => "Rust Condvar",
            RustPark => "Rust thread::park",
            ParkingLotCondvar => "parking_lot Condvar",
            GoNote => "Go note",
            MuslCond => "musl condition variable",
            MuslSem => "musl semaphore",
            MuslBarrier => "musl barrier",
            CppAtomicWait => "C++ atomic wait",
            AbseilWait => "absl condition",
            HotspotPark => "HotSpot park",
            OpenmpBarrier => "OpenMP barrier",
            OwnStack => "wait on own stack",
            Parker => "parked thread",
            GlibcOnce => "glibc once",
            RustOnce => "Rust Once",
            MuslOnce => "musl once",
            Waitv => "futex_waitv",
            Unknown => "unknown futex",
        }
    }

    /// For the TYPE column: at most 10 columns wide.
    pub fn short_name(self, side: Option<Side>) -> &'static str {
        use FutexKind::*;
        match (self, side) {
            (GlibcRwlock | RustRwlock | ParkingLotRwlock | MuslRwlock, Some(Side::Read)) => "urwlock:R",
            (GlibcRwlock | RustRwlock | ParkingLotRwlock | MuslRwlock, Some(Side::Write)) => "urwlock:W",
            (GlibcRwlock | RustRwlock | ParkingLotRwlock | MuslRwlock, None) => "urwlock",
            (PiMutex, _) => "upimutex",
            (
                GlibcMutex | GlibcRobustMutex | GlibcCeilingMutex | RustMutex | ParkingLotMutex | MuslMutex
                | AbseilMutex | PythonMutex | MutexLike,
                _,
            ) => "umutex",
            (GlibcInternal | MuslInternal | GoRuntimeLock | OpenmpLock, _) => "ulock",
            (HotspotMonitor, _) => "monitor",
            (PythonGil, _) => "GIL",
            (GlibcCond | RustCondvar | ParkingLotCondvar | MuslCond | AbseilWait, _) => "condvar",
            (GlibcSem | MuslSem, _) => "usem",
            (GlibcBarrier | MuslBarrier | OpenmpBarrier, _) => "barrier",
            (Join, _) => "join",
            (RustPark | HotspotPark | Parker | GoNote | OwnStack, _) => "park",
            (CppAtomicWait, _) => "atomicwait",
            (GlibcOnce | RustOnce | MuslOnce, _) => "once",
            (Waitv | Unknown, _) => "futex",
        }
    }
}

/// Of a reader-writer lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Read,
    Write,
}

/// What the waits of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FutexLock {
    pub class: FutexClass,
    pub kind: FutexKind,
    /// `None` where the kind has no sides.
    pub side: Option<Side>,
}

impl FutexLock {
    pub fn new(kind: FutexKind, side: Option<Side>) -> FutexLock {
        FutexLock { class: kind.class(), kind, side }
    }
}

/// Where a user lock lives: what stays the same when the program runs again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockPlace {
    /// A global with a symbol: `module` is the file's name.
    Global { module: String, symbol: String, offset: u64 },
    /// A global without one: the address as the file is linked.
    Module { module: String, vaddr: u64 },
    /// Thread-local storage or thread record.
    ThreadLocal,
    /// On the stack of a thread.
    Stack,
    /// Allocated; the contention site is its identity.
    Heap,
    /// Memory that processes share: one lock for all of them.
    Shared { dev: String, inode: u64, offset: u64, path: String },
}

/// Who woke whom, from where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Releaser {
    pub waker: super::Thread,
    /// The tid that was woken.
    pub wakee_tid: u32,
    /// Where the waker was when it woke.
    pub user_stack: super::StackRef,
    pub woken: u64,
}
