//! What a waiting call looks like: its value, the place of the word, the words around it, and their owner.

use super::futexes::*;
use super::*;
use crate::bpf::load::TargetThread;
use crate::model::{FutexCall, FutexOp, FutexPlace, FutexValue, FutexWords, Owner, ParkToken, RawWait};

/// A process's memory around a futex: words by their distance from it in bytes.
struct Memory(Box<[u32; 64]>);

const MIDDLE: i32 = 32;

impl Memory {
    fn new(words: &[(i32, u32)]) -> Memory {
        let mut memory = Memory(Box::new([0; 64]));
        for (offset, word) in words {
            memory.0[(MIDDLE + offset / 4) as usize] = *word;
        }
        memory
    }

    fn futex(&self) -> u64 {
        &raw const self.0[MIDDLE as usize] as u64
    }

    fn call(&self, op: u32, value: u32) -> Call {
        Call::new(self.futex(), op, value)
    }
}

/// The call as it was seen; it ends as if the word had changed.
fn seen(bench: &Bench, call: Call) -> RawWait {
    let futexes = bench.futexes();
    futexes.begin(call);
    let capture = bench.capture();
    futexes.end(-libc::EAGAIN);
    in_flight(&capture).clone()
}

fn read(bench: &Bench, call: Call) -> FutexCall {
    seen(bench, call).site.futex.expect("every futex wait has its call")
}

fn flags(bench: &Bench, op: u32, value: u32, words: &[(i32, u32)]) -> FutexWords {
    read(bench, Memory::new(words).call(op, value)).words
}

/// The thread that owned it, if it is one; and what the words are.
fn owner(bench: &Bench, op: u32, value: u32, words: &[(i32, u32)]) -> (Option<u32>, FutexCall) {
    let wait = seen(bench, Memory::new(words).call(op, value));
    let tid = match wait.owner {
        Some(Owner::Task(thread)) => {
            assert_eq!(thread.pid, std::process::id());
            assert!(!thread.comm.is_empty());
            Some(thread.tid)
        }
        None => None,
        other => panic!("{other:?}"),
    };
    (tid, wait.site.futex.expect("every futex wait has its call"))
}

/// From PID_MAX_LIMIT on no thread has the number; the other one is just below it.
fn nobodys() -> [u32; 2] {
    [4 << 20, (4 << 20) - 1]
}

const PLAIN: u32 = WAIT | PRIVATE;
const BITSET: u32 = WAIT_BITSET | PRIVATE | REALTIME;

/// pthread_mutex_t: owner, users, kind.
fn glibc_mutex(tid: u32) -> Vec<(i32, u32)> {
    vec![(0, 2), (8, tid), (12, 1)]
}

/// pthread_rwlock_t with `readers` and the writer, for waits at +8 and at +12.
fn rwlock(at: i32, readers: u32, writer: u32) -> Vec<(i32, u32)> {
    vec![(-at, readers), (24 - at, writer)]
}

#[test]
#[ignore = "needs root"]
fn the_operation_and_its_flags_are_as_asked() {
    let bench = Bench::new(64);
    let memory = Memory::new(&[]);
    let of = |op| read(&bench, memory.call(op, 6));
    let ops = [WAIT, LOCK_PI, WAIT_BITSET, 11, 13, 0x7f, 14].map(|op| of(op).op);
    use FutexOp::*;
    assert_eq!(ops, [Wait, LockPi, WaitBitset, WaitRequeuePi, LockPi, Waitv, Other]);
    let flags = |call: FutexCall| (call.private, call.realtime, call.timeout, call.compat);
    assert_eq!(flags(of(WAIT)), (false, false, false, false));
    assert_eq!(flags(of(WAIT | PRIVATE)), (true, false, false, false));
    assert_eq!(flags(of(WAIT_BITSET | REALTIME)), (false, true, false, false));
    assert_eq!(flags(read(&bench, memory.call(WAIT, 6).timed())), (false, false, true, false));
    let compat = Call { compat: true, ..memory.call(WAIT, 6) };
    assert_eq!(flags(read(&bench, compat)), (false, false, false, true));
    assert_eq!(seen(&bench, memory.call(LOCK_PI, 0)).site.lock.kind, LockKind::FutexPi);
}

#[test]
#[ignore = "needs root"]
fn every_value_has_its_class() {
    let bench = Bench::new(64);
    bench.is_born();
    let memory = Memory::new(&[]);
    let own = gettid();
    use FutexValue::*;
    for (value, class) in [
        (0, Zero),
        (1, One),
        (2, Two),
        (3, Three),
        (4, Other),
        (5, Five),
        (7, Seven),
        (u32::MAX, AllOnes),
        (0x8000_0000 | own, OwnedByThread),
        (0xc000_0000 | own, OwnedByThread),
        (0x8000_0010, MuslBusy),
        (0x8000_0000, Bit31),
        (0x8000_0001, Negative),
        (0x4000_0000, Bit30),
        (0x7fff_ffff, Bit30),
        (1 << 19 | 2, Ceiling),
        (1 << 19 | 3, Other),
        (own, Other),
    ] {
        let call = read(&bench, memory.call(PLAIN, value));
        assert_eq!(call.value, class, "{value:#x}");
    }
    assert_eq!(read(&bench, memory.call(WAIT, own)).value, Thread, "pthread_join is not private");
    assert_eq!(read(&bench, memory.call(WAIT, nobodys()[0])).value, Other);
}

#[test]
#[ignore = "needs root"]
fn the_place_is_the_own_stack_or_thread_local_or_elsewhere() {
    let bench = Bench::new(64);
    let memory = Memory::new(&[]);
    let uaddr = memory.futex();
    let at = |sp, thread_pointer| {
        let call = Call { sp, thread_pointer, ..memory.call(PLAIN, 6) };
        read(&bench, call).place
    };
    use FutexPlace::*;
    let far = uaddr + (1 << 20);
    assert_eq!([at(uaddr, far), at(uaddr - 65535, far)], [OwnStack; 2]);
    assert_eq!([at(uaddr + 1, far), at(uaddr - 65536, far), at(far, 0)], [Elsewhere; 3]);
    assert_eq!([at(far, uaddr), at(far, uaddr - 4095), at(far, uaddr + 2048)], [ThreadLocal; 3]);
    assert_eq!([at(far, uaddr - 4096), at(far, uaddr + 2049)], [Elsewhere; 2]);
    assert_eq!(at(uaddr - 100, uaddr + 100), OwnStackOrThreadLocal);
}

#[test]
#[ignore = "needs root"]
fn a_glibc_mutex_says_who_owns_it() {
    let bench = Bench::new(64);
    bench.is_born();
    let own = gettid();
    for (op, timed) in [(PLAIN, false), (WAIT, false), (BITSET, true)] {
        let memory = Memory::new(&glibc_mutex(own));
        let call = memory.call(op, 2);
        let wait = seen(&bench, if timed { call.timed() } else { call });
        let Some(Owner::Task(thread)) = wait.owner else { panic!("{op:#x}: {:?}", wait.owner) };
        assert_eq!((thread.tid, thread.pid), (own, std::process::id()));
        let words = wait.site.futex.expect("a call").words;
        assert_eq!(words, FutexWords { glibc_mutex: true, ..Default::default() });
    }
    // Rust's waits with a bitset and without a timeout.
    assert_eq!(owner(&bench, WAIT_BITSET | PRIVATE, 2, &glibc_mutex(own)).0, None);
    for (offset, word) in [(8, 0), (12, 0), (12, 1 << 16), (16, 1 << 10)] {
        let mut words = glibc_mutex(own);
        words.push((offset, word));
        let (tid, call) = owner(&bench, PLAIN, 2, &words);
        assert_eq!((tid, call.words), (None, FutexWords::default()), "{word:#x} at {offset}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_thread_known_from_proc_owns_it_too_by_its_name_of_then() {
    let mut bench = Bench::new(64);
    bench.tracer.remember_thread(&own_thread()).expect("there is room");
    let wait = seen(&bench, Memory::new(&glibc_mutex(gettid())).call(PLAIN, 2));
    let Some(Owner::Task(thread)) = wait.owner else { panic!("{:?}", wait.owner) };
    assert_eq!((thread.tid, thread.comm.as_str()), (gettid(), "from proc"));
}

#[test]
#[ignore = "needs root"]
fn an_owner_that_is_no_living_thread_is_not_believed() {
    let mut bench = Bench::new(64);
    for tid in [gettid(), nobodys()[0], nobodys()[1]] {
        let (found, call) = owner(&bench, PLAIN, 2, &glibc_mutex(tid));
        assert_eq!((found, call.words), (None, FutexWords::default()), "{tid}");
        let (found, call) = owner(&bench, BITSET, 3, &rwlock(8, 3, tid));
        assert_eq!((found, call.words), (None, FutexWords::default()), "{tid}");
        assert_eq!(owner(&bench, LOCK_PI | PRIVATE, 0, &[(0, tid)]).0, None);
        assert_eq!(owner(&bench, PLAIN, 0x8000_0000 | tid, &[]).0, None);
    }
    // Of another process: only what processes share can be its.
    let other = TargetThread { pid: std::process::id() + 1, tid: gettid() + 1, ..own_thread() };
    bench.tracer.remember_thread(&other).expect("there is room");
    assert_eq!(owner(&bench, PLAIN, 2, &glibc_mutex(gettid())).0, None);
    let shared = seen(&bench, Memory::new(&glibc_mutex(gettid())).call(WAIT, 2));
    let Some(Owner::Task(thread)) = shared.owner else { panic!("{:?}", shared.owner) };
    assert_eq!((thread.pid, thread.tid), (other.pid, other.tid));
    // Of another pid namespace.
    let own = own_thread();
    let elsewhere = TargetThread { pid_namespace: own.pid_namespace ^ 1, tid_in_namespace: 77, ..own };
    bench.tracer.remember_thread(&elsewhere).expect("there is room");
    assert_eq!(owner(&bench, PLAIN, 2, &glibc_mutex(77)).0, None);
}

#[test]
#[ignore = "needs root"]
fn a_writer_owns_a_glibc_rwlock() {
    let bench = Bench::new(64);
    bench.is_born();
    let own = gettid();
    for value in [2, 3] {
        let (tid, call) = owner(&bench, BITSET, value, &rwlock(8, 3, own));
        assert_eq!(tid, Some(own));
        assert_eq!(call.words, FutexWords { glibc_rwlock_phase: true, ..Default::default() });
    }
    // The writers' futex: two words follow that stay 0.
    let (tid, call) = owner(&bench, BITSET, 3, &rwlock(12, 3, own));
    assert_eq!(tid, Some(own));
    assert_eq!(call.words, FutexWords { glibc_rwlock_writers: true, ..Default::default() });
}

#[test]
#[ignore = "needs root"]
fn readers_own_an_rwlock() {
    let bench = Bench::new(64);
    for (at, readers, found) in [(8, 3 << 3, true), (12, 1 << 3, true), (8, 2, false), (12, 2, false)] {
        let memory = Memory::new(&rwlock(at, readers, 0));
        let wait = seen(&bench, memory.call(BITSET, 3));
        assert_eq!(wait.owner, found.then_some(Owner::Readers), "{readers:#x} readers");
        let words = wait.site.futex.expect("a call").words;
        assert!(if at == 8 { words.glibc_rwlock_phase } else { words.glibc_rwlock_writers });
    }
    let call = Memory::new(&rwlock(8, 3 << 3, 0));
    let futexes = bench.futexes();
    futexes.wait(call.call(BITSET, 3));
    futexes.end(-libc::EAGAIN);
    let capture = bench.capture();
    let lock = capture.locks.iter().find(|(id, _)| id.addr == call.futex()).expect("it was waited for");
    assert_eq!((lock.1.begun_read_owned, lock.1.begun_unowned), (1, 0));
}

#[test]
#[ignore = "needs root"]
fn the_word_of_a_pi_robust_or_ceiling_mutex_says_who_owns_it() {
    let bench = Bench::new(64);
    bench.is_born();
    let own = gettid();
    // FUTEX_WAITERS, FUTEX_OWNER_DIED
    for flags in [0, 0x8000_0000, 0xc000_0000] {
        assert_eq!(owner(&bench, LOCK_PI | PRIVATE, 0, &[(0, own | flags)]).0, Some(own));
    }
    let (tid, call) = owner(&bench, PLAIN, 0x8000_0000 | own, &[]);
    assert_eq!((tid, call.value), (Some(own), FutexValue::OwnedByThread));
    let ceiling = 10 << 19 | 2;
    let (tid, call) = owner(&bench, PLAIN, ceiling, &[(0, ceiling), (8, own)]);
    assert_eq!((tid, call.value), (Some(own), FutexValue::Ceiling));
    // musl's FILE
    let (tid, call) = owner(&bench, PLAIN, 0x4000_0000 | own, &[]);
    assert_eq!((tid, call.value), (Some(own), FutexValue::Bit30));
    // A thread that is waited for owns nothing.
    let (tid, call) = owner(&bench, WAIT, own, &[]);
    assert_eq!((tid, call.value), (None, FutexValue::Thread));
}

#[test]
#[ignore = "needs root"]
fn thread_16_does_not_own_every_busy_musl_mutex() {
    let mut bench = Bench::new(64);
    for tid in [16, 17] {
        let thread = TargetThread { tid_in_namespace: tid, ..own_thread() };
        bench.tracer.remember_thread(&thread).expect("there is room");
    }
    let [busy, owned] = [0x8000_0010, 0x8000_0011].map(|value| owner(&bench, PLAIN, value, &[]));
    // Which of the two it is the C library tells.
    assert_eq!([busy.1.value, owned.1.value], [FutexValue::OwnedByThread; 2]);
    assert_eq!([busy.0, owned.0], [None, Some(gettid())]);
}

#[test]
#[ignore = "needs root"]
fn what_waited_for_a_thread_counts_for_its_owner() {
    let bench = Bench::new(64);
    bench.is_born();
    let memory = Memory::new(&glibc_mutex(gettid()));
    let futexes = bench.futexes();
    // One that BPF accounts for, and one that is pending.
    futexes.wait(memory.call(PLAIN, 2));
    futexes.wait(Memory::new(&[]).call(PLAIN, 6));
    futexes.wait(memory.call(PLAIN, 2));
    let capture = bench.capture();
    let of_it: Vec<_> = capture.owners.iter().filter(|(id, _, _)| id.addr == memory.futex()).collect();
    assert!(of_it.len() == 1 && (of_it[0].1.tid, of_it[0].2) == (gettid(), 2), "{of_it:?}");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn words_of_conditions_semaphores_barriers_and_rust_rwlocks_set_their_flags() {
    let bench = Bench::new(64);
    let of = |op, value, words: &[(i32, u32)]| flags(&bench, op, value, words);
    let none = FutexWords::default();
    let cond = FutexWords { glibc_cond: true, ..none };
    // pthread_cond_t: __wrefs, and then the two futexes.
    assert_eq!(of(BITSET, 0, &[(-4, 8)]), cond);
    assert_eq!(of(BITSET, 4, &[(-8, 3 << 3 | 1)]), cond);
    let sem = FutexWords { glibc_sem: true, ..none };
    assert_eq!([of(BITSET, 0, &[(4, 1)]), of(BITSET, 0, &[(4, 9), (8, 128)])], [sem; 2]);
    let barrier = FutexWords { glibc_barrier: true, ..none };
    assert_eq!([of(PLAIN, 0, &[(-4, 1), (4, 3)]), of(WAIT, 6, &[(-4, 3), (4, 3), (8, 128)])], [barrier; 2]);
    let rust = FutexWords { rust_rwlock_writers: true, ..none };
    assert_eq!(of(WAIT_BITSET | PRIVATE, 6, &[(-4, 0x8000_0001)]), rust);
}

#[test]
#[ignore = "needs root"]
fn words_of_none_set_no_flags() {
    let bench = Bench::new(64);
    for (op, value, words) in [
        (BITSET, 0, vec![]),
        // Another operation than the library's.
        (PLAIN, 0, vec![(-4, 8)]),
        (PLAIN, 0, vec![(4, 1)]),
        (BITSET, 0, vec![(-4, 1), (4, 3), (8, 1)]),
        // Too few or too many who wait, flags that are none.
        (BITSET, 0, vec![(-4, 7)]),
        (BITSET, 0, vec![(-8, 1 << 20)]),
        (BITSET, 4, vec![(4, 1)]),
        (BITSET, 0, vec![(4, 1 << 20)]),
        (BITSET, 0, vec![(4, 1), (8, 1)]),
        (PLAIN, 0, vec![(-4, 4), (4, 3)]),
        (PLAIN, 0, vec![(-4, 1), (4, 1 << 20)]),
        (PLAIN, 0, vec![(-4, 1), (4, 3), (8, 7)]),
        (PLAIN, 0, vec![(-4, 0x8000_0001)]),
        // pthread_rwlock_t has two words that stay 0.
        (BITSET, 3, vec![(-8, 8), (8, 1)]),
        (BITSET, 3, vec![(-12, 8), (4, 1)]),
        (BITSET, 3, vec![(-12, 8), (8, 1)]),
        (BITSET, 3, vec![(-12, 8), (16, 2)]),
    ] {
        let found = flags(&bench, op, value, &words);
        let rwlock = found.glibc_rwlock_phase || found.glibc_rwlock_writers;
        // A word can look like two things; what is asked is whether it looks like this one.
        let of_cond = found.glibc_cond && value != 3;
        assert!(
            !(rwlock || of_cond || found.glibc_sem || found.glibc_barrier || found.rust_rwlock_writers),
            "{op:#x} {value} {words:?}: {found:?}"
        );
    }
    let rust = Memory::new(&[(-4, 0x8000_0001)]);
    let timed = rust.call(WAIT_BITSET | PRIVATE, 6).timed();
    assert_eq!(read(&bench, timed).words, FutexWords::default(), "a Rust rwlock has no timeout");
}

#[test]
#[ignore = "needs root"]
fn the_lock_of_a_parked_thread_is_the_key_it_is_parked_on() {
    let bench = Bench::new(64);
    let state = Box::new(3u8);
    let unlocked = Box::new(0u8);
    let parked = |key: u64, token: u32, thread_pointer: fn(u64) -> u64| {
        let memory = Memory::new(&[(-32, key as u32), (-28, (key >> 32) as u32), (-8, token)]);
        let call = Call { thread_pointer: thread_pointer(memory.futex()), ..memory.call(PLAIN, 1) };
        let wait = seen(&bench, call);
        let own = wait.site.lock.addr == memory.futex();
        assert!(own || wait.site.lock.addr == key);
        (wait.site.futex.expect("a call").words.parked, own)
    };
    let above: fn(u64) -> u64 = |futex| futex + 4096;
    let key = &raw const *state as u64;
    assert_eq!(parked(key, 0, above), (Some(ParkToken::Mutex), false));
    assert_eq!(parked(key, 8, above), (Some(ParkToken::Write), false));
    assert_eq!(parked(key, 16, above), (Some(ParkToken::Read), false));
    assert_eq!(parked(key, 20, above), (Some(ParkToken::Read), false));
    let free = &raw const *unlocked as u64;
    assert_eq!(parked(free, 0, above), (Some(ParkToken::MutexOrCondvar), false));
    // No token, no key, not in thread-local storage.
    assert_eq!(parked(key, 28, above), (None, true));
    assert_eq!(parked(key, 3, above), (None, true));
    assert_eq!(parked(100, 0, above), (None, true));
    assert_eq!(parked(1 << 46, 0, above), (None, true), "nothing can be read there");
    assert_eq!(parked(key, 0, |futex| futex - 8), (None, true));
    assert_eq!(parked(key, 0, |futex| futex + 70_000), (None, true));
}

#[test]
#[ignore = "needs root"]
fn words_at_the_begin_of_a_mapping_are_read_without_those_before() {
    let bench = Bench::new(64);
    bench.is_born();
    // SAFETY: two new pages, the first of which is given back.
    let page = unsafe {
        let both = libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(both, libc::MAP_FAILED);
        assert_eq!(libc::munmap(both, 4096), 0);
        both.cast::<u32>().add(1024)
    };
    for (offset, word) in glibc_mutex(gettid()) {
        // SAFETY: within the page.
        unsafe { page.add(offset as usize / 4).write_volatile(word) };
    }
    let wait = seen(&bench, Call::new(page as u64, PLAIN, 2));
    assert!(wait.site.futex.expect("a call").words.glibc_mutex);
    // SAFETY: nobody uses it any more.
    unsafe { libc::munmap(page.cast(), 4096) };
}
