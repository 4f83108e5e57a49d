//! The futexes of the invented profile: one of each class, and of each way to be somewhere.

use super::{Stacks, function, lock, site, spread, thread, user, waits};
use lockprof::model::*;

const CALL: FutexCall = FutexCall {
    op: FutexOp::Wait,
    private: true,
    realtime: false,
    timeout: false,
    value: FutexValue::Two,
    place: FutexPlace::Elsewhere,
    words: FutexWords {
        glibc_mutex: false,
        glibc_rwlock_phase: false,
        glibc_rwlock_writers: false,
        glibc_cond: false,
        glibc_sem: false,
        glibc_barrier: false,
        rust_rwlock_writers: false,
        parked: None,
    },
    compat: false,
};

/// A futex that waited at one site.
fn futex(
    addr: u64,
    names: (Option<&str>, &str),
    kind: (FutexKind, Option<Side>),
    call: FutexCall,
    user_stack: StackRef,
    values: &[u64],
) -> Lock {
    let (wait, hist) = waits(values);
    Lock {
        futex: Some(FutexLock::new(kind.0, kind.1)),
        place: Some(LockPlace::Heap),
        wait,
        hist: Some(hist),
        sites: vec![Site { futex: Some(call), ..site(StackRef::NotTaken, user_stack, wait) }],
        ..lock(LockKind::Futex, addr, names.0, Some(names.1))
    }
}

fn waiting(tid: u32, comm: &str, age_ns: u64, from_before: bool, user_stack: StackRef) -> InFlight {
    InFlight {
        pid: 4242,
        tid,
        comm: comm.into(),
        age_ns,
        owner: None,
        kernel_stack: StackRef::NotTaken,
        user_stack,
        // Nobody saw the call of a wait that had begun before.
        futex: (!from_before).then_some(CALL),
        from_before,
    }
}

pub(super) fn rows(
    stacks: &mut Stacks,
    cache_user: StackRef,
    bare_user: StackRef,
    thread_start: &[Frame],
) -> Vec<Lock> {
    let mut at = |offset: u64, names: &[&str]| {
        let mut frames = vec![user("libc.so.6", 0x91117, vec![function("syscall", None)])];
        for (depth, name) in names.iter().enumerate() {
            let place = ("src/main.rs", 40 + depth as u32);
            let offset = offset + 0x100 * depth as u64;
            frames.push(user("demo", offset, vec![function(name, Some(place))]));
        }
        frames.extend(thread_start.to_vec());
        stacks.add(false, frames)
    };
    let book = at(0x5100, &["demo::book::Shard::update", "demo::book::Book::on_tick"]);
    let feed = at(0x5400, &["demo::feed::publish", "demo::feed::run"]);
    let pop = at(0x5700, &["demo::queue::Queue::pop", "demo::worker::run_loop"]);
    let join = at(0x5a00, &["demo::shutdown", "demo::main"]);
    let park = at(0x5d00, &["demo::timer::sleep_until", "demo::timer::run"]);
    let select = at(0x6000, &["demo::io::select", "demo::io::run"]);
    let init = at(0x6300, &["demo::tables::TABLES", "demo::book::Book::on_tick"]);

    vec![
        cache(cache_user, bare_user),
        // Three locks that the same code allocates.
        Lock {
            addresses: 3,
            several_waiters: true,
            ..futex(
                0x7f00_2001_0010,
                (None, "demo::book::Shard::update"),
                (FutexKind::RustRwlock, Some(Side::Write)),
                CALL,
                book,
                &spread(41_000, 310),
            )
        },
        // Of several processes; a robust mutex says who has it, in the word.
        Lock {
            pid: None,
            place: Some(LockPlace::Shared {
                dev: "00:1a".into(),
                inode: 1_114,
                offset: 0x40,
                path: "/dev/shm/ticks".into(),
            }),
            several_waiters: true,
            in_flight: vec![waiting(4261, "demo-feed", 10_002_000_000, true, feed)],
            ..futex(
                0x40,
                (Some("/dev/shm/ticks+0x40"), "demo::feed::publish"),
                (FutexKind::GlibcRobustMutex, None),
                FutexCall { private: false, value: FutexValue::OwnedByThread, ..CALL },
                feed,
                &spread(52_000, 120),
            )
        },
        condvar(pop),
        Lock {
            place: Some(LockPlace::ThreadLocal),
            in_flight: vec![waiting(4242, "demo", 10_002_000_000, true, join)],
            ..futex(
                0x7f00_3000_0990,
                (None, "demo::shutdown"),
                (FutexKind::Join, None),
                FutexCall { private: false, value: FutexValue::Thread, ..CALL },
                join,
                &[4_840_000, 2_400_000],
            )
        },
        futex(
            0x7f00_2004_0030,
            (None, "demo::timer::sleep_until"),
            (FutexKind::RustPark, None),
            FutexCall { value: FutexValue::AllOnes, ..CALL },
            park,
            &spread(600_000, 16),
        ),
        futex(
            0x7f00_2005_0000,
            (None, "demo::io::select"),
            (FutexKind::Waitv, None),
            FutexCall { op: FutexOp::Waitv, value: FutexValue::Other, ..CALL },
            select,
            &spread(70_000, 9),
        ),
        Lock {
            place: Some(LockPlace::Module { module: "libfancy.so".into(), vaddr: 0x4010 }),
            ..futex(
                0x7f11_0000_4010,
                (Some("libfancy.so+0x4010"), "libfancy.so+0x1a30"),
                (FutexKind::Unknown, None),
                FutexCall { value: FutexValue::Seven, ..CALL },
                bare_user,
                &[812_000, 1_020_000, 377_000],
            )
        },
        Lock {
            place: Some(LockPlace::Global { module: "demo".into(), symbol: "TABLES".into(), offset: 0 }),
            ..futex(
                0x5581_0004_f100,
                (Some("demo`TABLES"), "demo::tables::TABLES"),
                (FutexKind::RustOnce, None),
                FutexCall { value: FutexValue::Three, ..CALL },
                init,
                &[3_100_000, 3_080_000, 2_950_000],
            )
        },
    ]
}

/// A global with everything that is known of a user lock.
fn cache(cache_user: StackRef, bare_user: StackRef) -> Lock {
    let values = spread(180_000, 1400);
    let (at_cache, _) = waits(&values[..1200]);
    let (at_bare, _) = waits(&values[1200..]);
    let sites = [(cache_user, at_cache), (bare_user, at_bare)];
    let releaser = |waker, wakee_tid, user_stack, woken| Releaser { waker, wakee_tid, user_stack, woken };
    Lock {
        place: Some(LockPlace::Global { module: "demo".into(), symbol: "CACHE".into(), offset: 0x10 }),
        wakes: Some(Wakes { calls: 1522, woken: 1401, all: 2 }),
        several_waiters: true,
        contended_hold: Some(HoldStats {
            acquired: 1400,
            holds: 1386,
            hold_total_ns: 3_742_000_000,
            hold_max_ns: Some(96_300_000),
        }),
        releasers: vec![
            releaser(thread(4252, "demo-io-2"), 4253, cache_user, 512),
            releaser(thread(4253, "demo-io-3"), 4252, cache_user, 340),
            releaser(thread(4252, "demo-io-2"), 4254, bare_user, 291),
            releaser(thread(4254, "demo-io-4"), 4252, StackRef::Lost, 158),
            releaser(thread(4255, "demo-io-5"), 4252, cache_user, 100),
        ],
        sites: sites
            .map(|(stack, wait)| Site { futex: Some(CALL), ..site(StackRef::NotTaken, stack, wait) })
            .to_vec(),
        ..futex(
            0x5581_0004_f0c0,
            (
                Some("demo`CACHE+0x10"),
                "demo::cache::Cache<alloc::string::String, demo::cache::Entry>::get_or_insert_with",
            ),
            (FutexKind::RustMutex, None),
            CALL,
            cache_user,
            &values,
        )
    }
}

/// A queue of work that two threads wait at, one of them with a time limit.
fn condvar(pop: StackRef) -> Lock {
    let call = FutexCall {
        op: FutexOp::WaitBitset,
        value: FutexValue::Other,
        words: FutexWords { glibc_cond: true, ..CALL.words },
        ..CALL
    };
    let mut lock = futex(
        0x7f00_2003_0028,
        (None, "demo::queue::Queue::pop"),
        (FutexKind::GlibcCond, None),
        call,
        pop,
        &spread(900_000, 420),
    );
    for wait in [&mut lock.wait, &mut lock.sites[0].wait] {
        wait.aborted = 12;
        wait.aborted_total_ns = 1_200_000_000;
    }
    let waker = thread(4249, "demo-main");
    Lock {
        several_waiters: true,
        wakes: Some(Wakes { calls: 421, woken: 420, all: 0 }),
        releasers: vec![Releaser { waker, wakee_tid: 4256, user_stack: StackRef::Lost, woken: 420 }],
        in_flight: vec![
            waiting(4256, "demo-pool-0", 3_310_000_000, false, pop),
            waiting(4257, "demo-pool-1", 907_000_000, false, pop),
        ],
        ..lock
    }
}
