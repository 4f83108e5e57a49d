//! The rule table (lock-semantics.md D.1): one waiting call and the history of its address → what it is.
//!
//! One call seldom tells. glibc's mutex, Rust's and musl's condition variable all wait for a 2, and a
//! counter passes every value once; so each rule asks what else was seen at that address.

use super::names::{Called, Names, is_libc_module};
use super::{Libc, Runtime};
use crate::model::{
    FutexCall, FutexKind, FutexLock, FutexOp, FutexPlace, FutexValue, LockPlace, ParkToken, Side,
};
use std::collections::BTreeSet;

/// Everything seen at one address.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub values: BTreeSet<FutexValue>,
    pub glibc_mutex: bool,
    pub glibc_rwlock_phase: bool,
    pub glibc_rwlock_writers: bool,
    pub glibc_cond: bool,
    pub glibc_sem: bool,
    pub glibc_barrier: bool,
    pub rust_rwlock_writers: bool,
    /// parking_lot's mutex was seen locked, with parked threads.
    pub parked_mutex: bool,
    /// FUTEX_WAKE calls that woke somebody, and those of them for everybody.
    pub wake_calls: u64,
    pub wakes_all: u64,
    pub several_waiters: bool,
    /// A waiter later woke others at the same word.
    pub released_by_waiters: bool,
    /// The word named a living thread.
    pub owned: bool,
    /// Of those stacks that name a library, all name this.
    pub library: Option<(FutexKind, Option<Side>)>,
    pub libraries_differ: bool,
}

impl History {
    pub fn add(&mut self, call: &FutexCall) {
        // A restarted call says nothing of its own.
        if call.op == FutexOp::Other {
            return;
        }
        let words = &call.words;
        self.values.insert(call.value);
        self.glibc_mutex |= words.glibc_mutex && call.value == FutexValue::Two;
        self.glibc_rwlock_phase |= words.glibc_rwlock_phase;
        self.glibc_rwlock_writers |= words.glibc_rwlock_writers;
        self.glibc_cond |= words.glibc_cond;
        self.glibc_sem |= words.glibc_sem;
        self.glibc_barrier |= words.glibc_barrier;
        self.rust_rwlock_writers |= words.rust_rwlock_writers;
        self.parked_mutex |= words.parked == Some(ParkToken::Mutex);
    }

    pub fn add_library(&mut self, library: (FutexKind, Option<Side>)) {
        self.libraries_differ |= self.library.is_some_and(|known| known != library);
        self.library = Some(library);
    }

    fn only(&self, values: &[FutexValue]) -> bool {
        self.values.iter().all(|value| values.contains(value))
    }

    fn has(&self, value: FutexValue) -> bool {
        self.values.contains(&value)
    }
}

/// What one call is, and where its lock is from the futex: `lock = futex - back`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict {
    pub futex: FutexLock,
    pub back: u64,
}

fn is(kind: FutexKind) -> Verdict {
    Verdict { futex: FutexLock::new(kind, None), back: 0 }
}

impl Verdict {
    pub const fn new(futex: FutexLock, back: u64) -> Verdict {
        Verdict { futex, back }
    }

    fn side(kind: FutexKind, side: Side) -> Verdict {
        Verdict { futex: FutexLock::new(kind, Some(side)), back: 0 }
    }

    fn back(self, back: u64) -> Verdict {
        Verdict { back, ..self }
    }
}

/// What there is to judge one call by.
pub struct Evidence<'e> {
    pub call: &'e FutexCall,
    pub names: Names,
    pub history: &'e History,
    pub runtime: Runtime,
    pub addr: u64,
    pub place: Option<&'e LockPlace>,
}

/// The first rule that fits. `None`: the call says nothing.
pub fn judge(evidence: &Evidence) -> Option<Verdict> {
    let rules: [fn(&Evidence) -> Option<Verdict>; 8] =
        [by_operation, parking_lot, by_library, glibc, rust, go_and_openmp, musl, by_called];
    if evidence.call.op == FutexOp::Other {
        return None;
    }
    Some(rules.iter().find_map(|rule| rule(evidence)).unwrap_or_else(|| by_priors(evidence)))
}

/// Row 1, and what only one thing uses.
fn by_operation(e: &Evidence) -> Option<Verdict> {
    match e.call.op {
        FutexOp::LockPi => Some(is(FutexKind::PiMutex)),
        // glibc before 2.25, and programs of their own: nothing else requeues to a PI mutex.
        FutexOp::WaitRequeuePi => Some(is(FutexKind::GlibcCond)),
        FutexOp::Waitv => Some(is(FutexKind::Waitv)),
        FutexOp::Wait | FutexOp::WaitBitset | FutexOp::Other => None,
    }
}

/// Row 18 (parking_lot_core/src/parking_lot.rs): the address is the key already.
fn parking_lot(e: &Evidence) -> Option<Verdict> {
    let named = e.names.library.map(|(kind, _)| kind);
    let mutex_or_condvar = |is_mutex: bool| match named {
        Some(FutexKind::ParkingLotCondvar) => is(FutexKind::ParkingLotCondvar),
        Some(FutexKind::ParkingLotMutex) => is(FutexKind::ParkingLotMutex),
        _ if is_mutex => is(FutexKind::ParkingLotMutex),
        _ => is(FutexKind::ParkingLotCondvar),
    };
    // A writer that waits for the readers to leave parks on lock + 1 (RawRwLock::wait_for_readers).
    let rwlock = |side| Verdict::side(FutexKind::ParkingLotRwlock, side).back(e.addr & 1);
    Some(match e.call.words.parked? {
        ParkToken::Read => rwlock(Side::Read),
        ParkToken::Write => rwlock(Side::Write),
        ParkToken::Mutex => mutex_or_condvar(true),
        ParkToken::MutexOrCondvar => mutex_or_condvar(e.history.parked_mutex),
    })
}

/// Rows 25 to 31, and Rust's where the stack has its names.
fn by_library(e: &Evidence) -> Option<Verdict> {
    use FutexKind::*;
    // A stack without any name is one of the address's others.
    let of_others = e.history.library.filter(|_| !e.names.known && !e.history.libraries_differ);
    let (kind, side) = e.names.library.or(of_others)?;
    let is_bitset = e.call.op == FutexOp::WaitBitset;
    let back = match (kind, side) {
        // std always passes a bitset (library/std/src/sys/pal/unix/futex.rs).
        (RustMutex | RustRwlock | RustCondvar | RustPark | RustOnce, _) if !is_bitset => return None,
        // Both sides go through `state`; a writer sleeps at `writer_notify`, which follows it.
        (RustRwlock, Some(Side::Write)) => 4,
        // ObjectMonitor, Parker and the GIL wait at a pthread_cond_t.
        (HotspotMonitor | HotspotPark | PythonGil, _) => cond_group(e),
        _ => 0,
    };
    Some(Verdict { futex: FutexLock::new(kind, side), back })
}

/// Waiters of one condition variable are at two words in turn (nptl/pthread_cond_wait.c, `__g_signals`): at
/// +40 and +44, since 2.41 at +32 and +36. It is aligned to 8, so the second is told by its address; in a
/// 32-bit program to 4 only.
fn cond_group(e: &Evidence) -> u64 {
    if e.call.compat { 0 } else { e.addr & 4 }
}

/// Rows 2 to 12.
fn glibc(e: &Evidence) -> Option<Verdict> {
    use FutexValue::*;
    let (call, history) = (e.call, e.history);
    if e.runtime.libc == Libc::Musl {
        return None;
    }
    let is_glibc = e.runtime.libc == Libc::Glibc;
    let plain = call.op == FutexOp::Wait;
    let timed_bitset = call.op == FutexOp::WaitBitset && call.timeout;
    let realtime_bitset = call.op == FutexOp::WaitBitset && call.realtime;
    let mutex_shaped = plain || timed_bitset;
    // 2, 3: the owner is 0 for a moment after each acquisition, so one site that saw it is enough.
    if call.value == Two && mutex_shaped && history.glibc_mutex {
        return Some(is(FutexKind::GlibcMutex));
    }
    // 4: __owner is kept too. Without it the C library decides between this and musl's typed mutexes.
    if call.value == OwnedByThread && mutex_shaped && (is_glibc || call.words.glibc_mutex) {
        return Some(is(FutexKind::GlibcRobustMutex));
    }
    // 5
    if call.value == Ceiling && mutex_shaped {
        return Some(is(FutexKind::GlibcCeilingMutex));
    }
    // 7: sysdeps/nptl/bits/struct_rwlock.h; 3 is "write phase" or "a writer", 2 "read phase", both with
    // waiters. Aligned to 8, so +8 and +12 are told apart where the words fit both.
    if matches!(call.value, Two | Three) && (realtime_bitset || timed_bitset) {
        let by_address = history.glibc_rwlock_phase && history.glibc_rwlock_writers && !call.compat;
        let phase = if by_address { e.addr & 4 == 0 } else { history.glibc_rwlock_phase };
        let writers = if by_address { e.addr & 4 != 0 } else { history.glibc_rwlock_writers };
        if phase {
            let side = if call.value == Three { Side::Read } else { Side::Write };
            return Some(Verdict::side(FutexKind::GlibcRwlock, side).back(8));
        }
        if writers && call.value == Three {
            return Some(Verdict::side(FutexKind::GlibcRwlock, Side::Write).back(12));
        }
    }
    // 10, before 8 because a thread's record can look like anything: the kernel clears the tid without knowing
    // of private futexes, so this one is shared. One that is gone when its number is looked up is no thread any
    // more; in memory that is not shared nothing else leaves the private flag out.
    let may_be_gone =
        call.value == Other && realtime_bitset && !matches!(e.place, Some(LockPlace::Shared { .. }));
    if (call.value == Thread || may_be_gone) && !call.private && (realtime_bitset || timed_bitset || plain) {
        return Some(is(FutexKind::Join));
    }
    // 8: since 2.33 with a bitset, and a clock even without a timeout; before that a plain wait for 0.
    let clocked = realtime_bitset || timed_bitset;
    let cond_shaped = clocked || plain && call.value == Zero;
    if cond_shaped && history.glibc_cond {
        return Some(is(FutexKind::GlibcCond).back(cond_group(e)));
    }
    // 9
    if clocked && call.value == Zero && history.glibc_sem {
        return Some(is(FutexKind::GlibcSem));
    }
    // 11: the value is the round, so any.
    if plain && !call.timeout && history.glibc_barrier {
        return Some(is(FutexKind::GlibcBarrier));
    }
    // 12: __fork_generation | 1, woken for everybody; before a fork that is 1.
    if plain
        && call.private
        && !call.timeout
        && history.only(&[One])
        && history.wakes_all > 0
        && !e.runtime.openmp
    {
        return Some(is(FutexKind::GlibcOnce));
    }
    // 6: lll_lock's waiters, whose neighbours are no mutex's.
    if plain && call.value == Two && call.private && is_glibc {
        if matches!(e.names.called, Some(Called::Mutex | Called::MutexAfterCond)) {
            return Some(is(FutexKind::GlibcMutex));
        }
        if e.names.called == Some(Called::Internal) || is_in_libc(e.place) {
            return Some(is(FutexKind::GlibcInternal));
        }
    }
    // 8 again: nothing else waits for the realtime clock and lets it run, other than a sem_t, which is idle as well.
    let cond_value = !matches!(call.value, Two | Three | Thread | AllOnes | Negative | Bit31);
    if is_glibc && realtime_bitset && call.private && cond_value && e.names.called.is_none() {
        return Some(is(FutexKind::GlibcCond).back(cond_group(e)));
    }
    None
}

fn is_in_libc(place: Option<&LockPlace>) -> bool {
    match place {
        Some(LockPlace::Global { module, .. } | LockPlace::Module { module, .. }) => is_libc_module(module),
        _ => false,
    }
}

/// Rows 13 to 17: a bitset, never the realtime clock without a timeout (library/std/src/sys/sync).
fn rust(e: &Evidence) -> Option<Verdict> {
    use FutexValue::*;
    let (call, history) = (e.call, e.history);
    let in_libc = e.names.called.is_some_and(|called| called != Called::Internal);
    if call.op != FutexOp::WaitBitset || !call.private || call.realtime || in_libc {
        return None;
    }
    // 16: PARKED is -1.
    if call.value == AllOnes {
        return Some(is(FutexKind::RustPark));
    }
    if !call.timeout {
        // 14: READERS_WAITING is bit 30, WRITERS_WAITING bit 31; readers wait behind writers.
        if call.value == Bit30 || call.value == Negative && history.only(&[Bit30, Negative]) {
            return Some(Verdict::side(FutexKind::RustRwlock, Side::Read));
        }
        if history.rust_rwlock_writers && !matches!(call.value, Negative | Bit31) {
            return Some(Verdict::side(FutexKind::RustRwlock, Side::Write).back(4));
        }
        // 17: RUNNING or INCOMPLETE, and QUEUED. Whoever completes it wakes everybody.
        if history.only(&[Five, Seven]) && (history.wakes_all > 0 || history.wake_calls == 0) {
            return Some(is(FutexKind::RustOnce));
        }
        // 13: CONTENDED is 2, and nobody waits for anything else.
        if history.only(&[Two]) && history.wakes_all == 0 {
            return Some(is(FutexKind::RustMutex));
        }
    }
    // 15: a counter, of which the classes are what it passed.
    let is_counter = matches!(call.value, Zero | One | Two | Three | Five | Seven | Other | Thread);
    is_counter.then(|| is(FutexKind::RustCondvar))
}

/// Rows 19, 20 and 31.
fn go_and_openmp(e: &Evidence) -> Option<Verdict> {
    use FutexValue::*;
    let call = e.call;
    if call.op != FutexOp::Wait || !call.private {
        return None;
    }
    if e.runtime.go {
        return match call.value {
            Zero => Some(is(FutexKind::GoNote)),
            // m.waitsema; to 1.23 mutex_sleeping, in the lock
            AllOnes | Two => Some(is(FutexKind::GoRuntimeLock)),
            _ => None,
        };
    }
    if e.runtime.openmp && !call.timeout {
        // libgomp/config/linux/mutex.c
        if call.value == AllOnes && e.history.wakes_all == 0 {
            return Some(is(FutexKind::OpenmpLock));
        }
        if e.history.wakes_all > 0 {
            return Some(is(FutexKind::OpenmpBarrier));
        }
    }
    None
}

/// Rows 21 to 24 (src/thread/*.c, src/stdio/__lockfile.c).
fn musl(e: &Evidence) -> Option<Verdict> {
    use FutexValue::*;
    let (call, history) = (e.call, e.history);
    if call.op != FutexOp::Wait {
        return None;
    }
    // 21: _m_lock is the second word. Only musl waits for EBUSY, so a static program is told by it.
    if e.runtime.libc != Libc::Glibc && matches!(call.value, MuslBusy | OwnedByThread) {
        return Some(is(FutexKind::MuslMutex).back(4));
    }
    if e.runtime.libc != Libc::Musl {
        return None;
    }
    let own_stack = matches!(call.place, FutexPlace::OwnStack | FutexPlace::OwnStackOrThreadLocal);
    let on_stack = own_stack || e.place == Some(&LockPlace::Stack);
    let called = e.names.called;
    let rwlock = |side| Verdict { futex: FutexLock::new(FutexKind::MuslRwlock, side), back: 0 };
    let by_name = match called {
        Some(Called::Read) => Some(rwlock(Some(Side::Read))),
        Some(Called::Write) => Some(rwlock(Some(Side::Write))),
        Some(Called::Sem) => Some(is(FutexKind::MuslSem)),
        _ => None,
    };
    match call.value {
        // 24: the list of threads, whose owner is a tid (__tl_lock)
        Thread if !call.private => Some(is(FutexKind::MuslInternal)),
        // … which may be gone when its number is looked up.
        FutexValue::Other if !call.private && is_list_of_threads(e.place) => {
            Some(is(FutexKind::MuslInternal))
        }
        // 22: the waiter's own node
        Two if own_stack => Some(is(FutexKind::MuslCond)),
        // 24: detach_state, for which one thread may wait
        Two if call.private
            && history.only(&[Two])
            && !history.several_waiters
            && !history.released_by_waiters =>
        {
            Some(is(FutexKind::Join))
        }
        // 22: the instance of the first to come, on its stack
        Zero | One if on_stack && !call.timeout => Some(is(FutexKind::MuslBarrier)),
        // 24
        Three if call.private && history.only(&[Three]) => Some(is(FutexKind::MuslOnce)),
        Bit30 => Some(is(FutexKind::MuslInternal)),
        // 23: both use -1 in 1.2.3. The last to leave a rwlock wakes INT_MAX, sem_post wakes one; a
        // count of readers is negative as well, in a semaphore nothing is.
        AllOnes | Bit31 | Negative if by_name.is_some() => by_name,
        AllOnes if history.has(Negative) || history.wakes_all > 0 || history.released_by_waiters => {
            Some(rwlock(None))
        }
        AllOnes if history.wake_calls > 0 => Some(is(FutexKind::MuslSem)),
        AllOnes => Some(is(FutexKind::Unknown)),
        Bit31 => Some(is(FutexKind::MuslSem)),
        // __lock() counts waiters below INT_MIN.
        Negative if history.has(AllOnes) => Some(rwlock(None)),
        Negative => Some(is(FutexKind::MuslInternal)),
        _ => None,
    }
}

/// src/thread/pthread_create.c
fn is_list_of_threads(place: Option<&LockPlace>) -> bool {
    matches!(place, Some(LockPlace::Global { symbol, .. }) if symbol == "__thread_list_lock")
}

/// Where words and values left it open, the C library's own function.
fn by_called(e: &Evidence) -> Option<Verdict> {
    use FutexKind::*;
    let is_musl = e.runtime.libc == Libc::Musl;
    let of = |glibc, musl| if is_musl { musl } else { glibc };
    let (kind, side) = match e.names.called? {
        Called::Mutex | Called::MutexAfterCond => (of(GlibcMutex, MuslMutex), None),
        Called::Cond => (of(GlibcCond, MuslCond), None),
        Called::Sem => (of(GlibcSem, MuslSem), None),
        Called::Join => (Join, None),
        Called::Barrier => (of(GlibcBarrier, MuslBarrier), None),
        Called::Once => (of(GlibcOnce, MuslOnce), None),
        Called::Read => (of(GlibcRwlock, MuslRwlock), Some(Side::Read)),
        Called::Write => (of(GlibcRwlock, MuslRwlock), Some(Side::Write)),
        // That it has a lock is no proof that this is it.
        Called::Internal => return None,
    };
    let back = match kind {
        GlibcCond => cond_group(e),
        GlibcRwlock => {
            if e.addr & 4 == 0 {
                8
            } else {
                12
            }
        }
        MuslMutex => 4,
        _ => 0,
    };
    Some(Verdict { futex: FutexLock::new(kind, side), back })
}

/// Row 32, and what is likely of any futex.
fn by_priors(e: &Evidence) -> Verdict {
    let (call, history) = (e.call, e.history);
    let may_be_mutex = history.wakes_all == 0;
    let is_wait = matches!(call.op, FutexOp::Wait | FutexOp::WaitBitset);
    let acts_like_mutex = may_be_mutex && (history.released_by_waiters || history.owned);
    if call.place == FutexPlace::OwnStack && !history.released_by_waiters {
        return is(FutexKind::OwnStack);
    }
    // 0, 1, 2: "Futexes are tricky". A counter passes 2 and goes on.
    if call.op == FutexOp::Wait
        && may_be_mutex
        && history.only(&[FutexValue::One, FutexValue::Two])
        && history.has(FutexValue::Two)
    {
        return is(FutexKind::MutexLike);
    }
    if is_wait && acts_like_mutex {
        return is(FutexKind::MutexLike);
    }
    if is_wait && !history.several_waiters {
        return is(FutexKind::Parker);
    }
    is(FutexKind::Unknown)
}
