//! Who made others wait, and that every nanosecond waited is charged once.

use super::*;
use crate::model::{BlameGap, Evidence, LockId, RawBlame, RawHolder};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

const WRITE: u64 = 4;
const OTHER_LOCK: u64 = LOCK + 0x100;

/// A thread that runs programs when it is told to.
struct Actor {
    orders: Option<Sender<(RawFd, Vec<u64>)>>,
    done: Receiver<u32>,
    thread: Option<JoinHandle<()>>,
    tid: u32,
}

impl Actor {
    fn new() -> Actor {
        let (orders, inbox) = channel::<(RawFd, Vec<u64>)>();
        let (report, done) = channel();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // A name of its own, by which parties are told apart.
        let named =
            std::thread::Builder::new().name(format!("actor-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let thread = named.spawn(move || {
            // SAFETY: gettid takes nothing.
            report.send(unsafe { libc::gettid() } as u32).expect("the test listens");
            for (program, args) in inbox {
                run(program, &args);
                report.send(0).expect("the test listens");
            }
        });
        let thread = thread.expect("a thread starts");
        let tid = done.recv().expect("the thread starts");
        Actor { orders: Some(orders), done, thread: Some(thread), tid }
    }

    fn run(&self, bench: &Bench, program: &str, args: &[u64]) {
        let orders = self.orders.as_ref().expect("it lives");
        orders.send((bench.program(program), args.to_vec())).expect("it lives");
        self.done.recv().expect("it lives");
    }

    fn begin(&self, bench: &Bench, lock: u64, flags: u64) {
        self.run(bench, "contention_begin__tp", &[lock, flags]);
    }

    fn end(&self, bench: &Bench, lock: u64) {
        self.run(bench, "contention_end__tp", &[lock, 0]);
    }

    fn give_up(&self, bench: &Bench, lock: u64) {
        self.run(bench, "contention_end__tp", &[lock, -i64::from(libc::EINTR) as u64]);
    }

    fn release(&self, bench: &Bench, lock: u64, kind: LockKind) {
        self.run(bench, "release__selftest", &[lock, wire::kind_bit(kind).trailing_zeros().into()]);
    }

    fn unlock(&self, bench: &Bench, lock: u64) {
        self.release(bench, lock, LockKind::Mutex);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn actors<const N: usize>() -> [Actor; N] {
    std::array::from_fn(|_| Actor::new())
}

fn mutex(addr: u64) -> LockId {
    LockId { kind: LockKind::Mutex, addr, pid: None }
}

fn waited_ns(capture: &RawCapture, queue: LockId) -> u64 {
    let sites = capture.sites.iter().filter(|(site, _)| site.lock.queue() == queue);
    let ended: u64 = sites.map(|(_, wait)| wait.wait_total_ns + wait.aborted_total_ns).sum();
    let going_on = capture.in_flight.iter().filter(|wait| wait.site.lock.queue() == queue);
    ended + going_on.map(|wait| capture.stop_ns - wait.begin_ns).sum::<u64>()
}

fn accounted_ns(blame: &RawBlame) -> u64 {
    blame.holders.iter().map(|holder| holder.blamed_ns).sum::<u64>()
        + blame.handoff_ns
        + blame.unattributed.iter().map(|part| part.waited_ns).sum::<u64>()
        + blame.unreleased_ns
}

/// The account of a lock, which is checked.
fn blame_of(capture: &RawCapture, queue: LockId) -> RawBlame {
    let blame = capture.blames.get(&queue).cloned().unwrap_or_default();
    assert_eq!(accounted_ns(&blame), waited_ns(capture, queue) + blame.uncounted_ns, "{blame:#?}");
    blame
}

fn holder<'b>(blame: &'b RawBlame, actor: &Actor) -> &'b RawHolder {
    let mut holders = blame.holders.iter().filter(|holder| holder.thread.tid == actor.tid);
    holders.next().unwrap_or_else(|| panic!("{} is charged with nothing: {blame:#?}", actor.tid))
}

#[test]
#[ignore = "needs root"]
fn what_accrued_is_charged_to_who_releases_and_the_rest_is_handoff() {
    let bench = Bench::new(64);
    let [owner, first, second] = actors();
    first.begin(&bench, LOCK, MUTEX);
    second.begin(&bench, LOCK, MUTEX);
    owner.unlock(&bench, LOCK);
    first.end(&bench, LOCK);
    first.unlock(&bench, LOCK);
    second.end(&bench, LOCK);
    let capture = bench.capture();
    let blame = blame_of(&capture, mutex(LOCK));
    assert_eq!(blame.holders.len(), 2);
    assert!(blame.holders.iter().all(|holder| holder.evidence == Evidence::Release && holder.holds == 1));
    let (owner, first) = (holder(&blame, &owner), holder(&blame, &first));
    assert!(owner.blamed_ns > 0 && first.blamed_ns > 0 && blame.handoff_ns > 0);
    assert_eq!(blame.handoffs, 2);
    assert_eq!((blame.unreleased_ns, blame.unattributed.len()), (0, 0));
    // One waiter: its time and the wall's are one.
    assert_eq!(first.blamed_ns, first.wanted_ns);
    assert!(matches!(owner.kernel_stack, crate::model::RawStack::Id(_)));
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn who_waited_for_whom_adds_up_to_what_holders_are_charged_with() {
    let bench = Bench::new(64);
    let [owner, first, second] = actors();
    first.begin(&bench, LOCK, MUTEX);
    second.begin(&bench, LOCK, MUTEX);
    owner.unlock(&bench, LOCK);
    first.end(&bench, LOCK);
    first.unlock(&bench, LOCK);
    second.end(&bench, LOCK);
    let blame = blame_of(&bench.capture(), mutex(LOCK));
    let pairs: u64 = blame.pairs.iter().map(|(_, _, waited_ns)| waited_ns).sum();
    assert_eq!(pairs, blame.holders.iter().map(|holder| holder.blamed_ns).sum::<u64>(), "{blame:#?}");
}

#[test]
#[ignore = "needs root"]
fn a_holder_whose_release_is_not_seen_is_charged_where_it_acquired() {
    let bench = Bench::new(64);
    let [first, second, third] = actors();
    first.begin(&bench, LOCK, MUTEX);
    first.end(&bench, LOCK);
    second.begin(&bench, LOCK, MUTEX);
    second.end(&bench, LOCK);
    third.begin(&bench, LOCK, MUTEX);
    let capture = bench.capture();
    let blame = blame_of(&capture, mutex(LOCK));
    // Who held it before the first one is known to nobody: the made-up lock has no owner word.
    assert!(blame.unattributed.iter().all(|part| part.reason == BlameGap::ReleaseNotSeen), "{blame:#?}");
    assert!(blame.holders.is_empty() && !blame.unattributed.is_empty());
    assert!(blame.unreleased_ns > 0, "the third one waits");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn of_waiters_that_follow_each_other_each_is_charged_by_its_acquisition() {
    let bench = Bench::new(64);
    let [first, second, third] = actors();
    for waiter in [&first, &second, &third] {
        waiter.begin(&bench, LOCK, MUTEX);
    }
    for waiter in [&first, &second, &third] {
        waiter.end(&bench, LOCK);
    }
    let blame = blame_of(&bench.capture(), mutex(LOCK));
    for waiter in [&first, &second] {
        assert_eq!(holder(&blame, waiter).evidence, Evidence::Acquire);
        assert_ne!(holder(&blame, waiter).kernel_stack, crate::model::RawStack::NotTaken);
    }
}

#[test]
#[ignore = "needs root"]
fn a_release_that_comes_after_the_next_acquisition_takes_what_is_its_own() {
    let bench = Bench::new(64);
    let [owner, waiter, next] = actors();
    waiter.begin(&bench, LOCK, MUTEX);
    next.begin(&bench, LOCK, MUTEX);
    waiter.end(&bench, LOCK);
    owner.unlock(&bench, LOCK);
    waiter.unlock(&bench, LOCK);
    next.end(&bench, LOCK);
    let blame = blame_of(&bench.capture(), mutex(LOCK));
    assert!(blame.unattributed.is_empty(), "{blame:#?}");
    assert!(holder(&blame, &owner).blamed_ns > 0 && holder(&blame, &waiter).blamed_ns > 0);
    assert!(blame.holders.iter().all(|holder| holder.evidence == Evidence::Release));
}

#[test]
#[ignore = "needs root"]
fn waits_that_were_given_up_are_charged_like_others() {
    let bench = Bench::new(64);
    let [owner, waiter, impatient] = actors();
    waiter.begin(&bench, LOCK, MUTEX);
    impatient.begin(&bench, LOCK, MUTEX);
    impatient.give_up(&bench, LOCK);
    owner.unlock(&bench, LOCK);
    waiter.end(&bench, LOCK);
    impatient.begin(&bench, OTHER_LOCK, MUTEX);
    impatient.give_up(&bench, OTHER_LOCK);
    owner.unlock(&bench, OTHER_LOCK);
    let capture = bench.capture();
    let blame = blame_of(&capture, mutex(LOCK));
    assert_eq!(blame.holders.len(), 1);
    let alone = blame_of(&capture, mutex(OTHER_LOCK));
    assert_eq!(holder(&alone, &owner).blamed_ns, waited_ns(&capture, mutex(OTHER_LOCK)));
}

#[test]
#[ignore = "needs root"]
fn readers_that_are_let_in_together_are_one_holder_and_the_last_one_out_is_charged() {
    let bench = Bench::new(64);
    let rwsem = LockId { kind: LockKind::RwsemWrite, addr: LOCK, pid: None };
    let [owner, first, second, writer] = actors();
    first.begin(&bench, LOCK, READ);
    second.begin(&bench, LOCK, READ);
    owner.release(&bench, LOCK, LockKind::RwsemWrite);
    first.end(&bench, LOCK);
    writer.begin(&bench, LOCK, WRITE);
    second.end(&bench, LOCK);
    second.release(&bench, LOCK, LockKind::RwsemWrite);
    writer.end(&bench, LOCK);
    let blame = blame_of(&bench.capture(), rwsem);
    assert!(blame.unattributed.is_empty(), "{blame:#?}");
    assert!(holder(&blame, &owner).blamed_ns > 0 && holder(&blame, &second).blamed_ns > 0);
    assert!(blame.holders.iter().all(|holder| holder.thread.tid != first.tid));
}

#[test]
#[ignore = "needs root"]
fn a_holder_that_waits_itself_is_a_link_of_a_chain() {
    let bench = Bench::new(64);
    let [root, middle, victim, late] = actors();
    middle.begin(&bench, LOCK, MUTEX);
    victim.begin(&bench, LOCK, MUTEX);
    root.unlock(&bench, LOCK);
    middle.end(&bench, LOCK);
    middle.begin(&bench, OTHER_LOCK, MUTEX);
    late.begin(&bench, LOCK, MUTEX);
    root.unlock(&bench, OTHER_LOCK);
    middle.end(&bench, OTHER_LOCK);
    middle.unlock(&bench, LOCK);
    victim.end(&bench, LOCK);
    late.end(&bench, LOCK);
    let capture = bench.capture();
    let blame = blame_of(&capture, mutex(LOCK));
    let [(through, other, waited_ns)] = &blame.chains[..] else { panic!("{blame:#?}") };
    assert_eq!((through.tid, *other), (middle.tid, mutex(OTHER_LOCK)));
    let charged = holder(&blame, &middle);
    assert_eq!(charged.chained_ns, *waited_ns);
    assert!(charged.chained_ns > 0 && charged.chained_ns < charged.blamed_ns);
    assert!(blame_of(&capture, mutex(OTHER_LOCK)).chains.is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_wait_whose_end_was_missed_is_charged_to_nobody() {
    let bench = Bench::new(64);
    let [owner, waiter, other] = actors();
    other.begin(&bench, LOCK, MUTEX);
    waiter.begin(&bench, LOCK, MUTEX);
    // It waits for another lock already.
    waiter.begin(&bench, OTHER_LOCK, MUTEX);
    owner.unlock(&bench, LOCK);
    other.end(&bench, LOCK);
    waiter.end(&bench, OTHER_LOCK);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "unpaired_begin"), 1);
    blame_of(&capture, mutex(LOCK));
    blame_of(&capture, mutex(OTHER_LOCK));
}

#[test]
#[ignore = "needs root"]
fn whatever_happens_in_whatever_order_nothing_is_charged_twice_or_never() {
    let bench = Bench::new(1024);
    let crew: [Actor; 5] = actors();
    for seed in 1..=20u64 {
        let (one, other) = (LOCK + seed * 0x1000, OTHER_LOCK + seed * 0x1000);
        let locks = [(one, MUTEX, LockKind::Mutex), (other, WRITE, LockKind::RwsemWrite)];
        let mut waits: [Option<u64>; 5] = [None; 5];
        let mut state = seed;
        let mut dice = |sides: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % sides
        };
        for _ in 0..200 {
            let who = dice(crew.len());
            let (lock, flags, kind) = locks[dice(2)];
            match (dice(4), waits[who]) {
                (0, _) => crew[who].release(&bench, lock, kind),
                (1, Some(lock)) => {
                    crew[who].give_up(&bench, lock);
                    waits[who] = None;
                }
                (_, Some(lock)) => {
                    crew[who].end(&bench, lock);
                    waits[who] = None;
                }
                (_, None) => {
                    // Writers, and readers of the same lock.
                    let flags = if flags == WRITE && dice(2) == 0 { READ } else { flags };
                    crew[who].begin(&bench, lock, flags);
                    waits[who] = Some(lock);
                }
            }
        }
        let capture = bench.capture();
        for (addr, _, kind) in locks {
            blame_of(&capture, LockId { kind, addr, pid: None });
        }
        // For the next seed.
        for (actor, lock) in crew.iter().zip(waits) {
            lock.inspect(|lock| actor.end(&bench, *lock));
        }
        clean(&capture);
    }
}

/// Rust's Mutex, whose word names no owner: FUTEX_WAIT_BITSET for 2.
fn futex_args(word: u64) -> [u64; 8] {
    [0, word, 0x89, 2, word + 4096, 0, 0, 0]
}

#[test]
#[ignore = "needs root"]
fn a_woken_thread_that_lost_the_race_is_not_charged_for_the_thief() {
    const KIND: LockKind = LockKind::Futex;
    let bench = Bench::new(64);
    let [owner, thief, loser, other] = actors();
    let word = Box::new(2u32);
    let addr = std::ptr::from_ref(&*word) as u64;
    let futex = |actor: &Actor, args: &[u64]| actor.run(&bench, "futex__selftest", args);
    let release = |actor: &Actor| {
        futex(actor, &[2, addr, wire::kind_bit(KIND).trailing_zeros().into(), 1]);
    };
    futex(&loser, &futex_args(addr));
    release(&owner);
    futex(&loser, &[1, 0]);
    // Somebody took it without a wait: it waits again, and others come.
    futex(&loser, &futex_args(addr));
    futex(&other, &futex_args(addr));
    release(&thief);
    futex(&loser, &[1, 0]);
    release(&loser);
    futex(&other, &[1, 0]);
    release(&other);
    let capture = bench.capture();
    assert_eq!(capture.events.futex_merged, 1);
    let blame = blame_of(&capture, LockId { kind: KIND, addr, pid: Some(std::process::id()) });
    assert!(blame.holders.iter().all(|holder| holder.evidence == Evidence::Release), "{blame:#?}");
    assert!(blame.unattributed.is_empty(), "{blame:#?}");
    let [owner, thief, loser] = [&owner, &thief, &loser].map(|actor| holder(&blame, actor));
    // Of the thief's hold both waited for a part, of the loser's only the other.
    assert!(owner.holds == 1 && thief.holds == 1 && loser.holds == 1, "{blame:#?}");
    assert_eq!(loser.blamed_ns, loser.wanted_ns);
}

fn spinlock(addr: u64) -> LockId {
    LockId { kind: LockKind::Spinlock, addr, pid: None }
}

fn spins(bench: &Bench, actor: &Actor, program: &str, what: u64, lock: u64) {
    let kind = wire::kind_bit(LockKind::Spinlock).trailing_zeros().into();
    actor.run(bench, program, &[what, lock, kind]);
}

#[test]
#[ignore = "needs root"]
fn a_spinlocks_holder_is_charged_where_its_releases_are_seen() {
    let bench = Bench::new(64);
    let [owner, waiter] = actors();
    spins(&bench, &owner, "spinhold__selftest", 0, LOCK);
    spins(&bench, &waiter, "spin__selftest", 0, LOCK);
    spins(&bench, &owner, "spinhold__selftest", 1, LOCK);
    spins(&bench, &waiter, "spin__selftest", 1, LOCK);
    let capture = bench.capture();
    let blame = blame_of(&capture, spinlock(LOCK));
    let charged = holder(&blame, &owner);
    assert_eq!((charged.evidence, charged.holds, blame.handoffs), (Evidence::Release, 1, 1));
    assert!(charged.blamed_ns > 0 && charged.blamed_ns == charged.wanted_ns, "{blame:#?}");
    assert!(matches!(charged.kernel_stack, crate::model::RawStack::Id(_)));
    assert!(blame.handoff_ns > 0 && blame.unattributed.is_empty(), "{blame:#?}");
    clean(&capture);
}

#[test]
#[ignore = "needs root"]
fn whatever_spins_in_whatever_order_nothing_is_charged_twice_or_never() {
    let bench = Bench::new(1024);
    let crew: [Actor; 3] = actors();
    let mut state = 7u64;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % sides
    };
    let locks: Vec<u64> = (0..4).map(|lock| LOCK + lock * 64).collect();
    for _ in 0..600 {
        let (actor, lock) = (&crew[dice(3) as usize], locks[dice(4) as usize]);
        match dice(5) {
            0 => spins(&bench, actor, "spinhold__selftest", 1, lock),
            // One CPU: whatever began later has ended or never will.
            1 | 2 => spins(&bench, actor, "spin__selftest", 1, lock),
            _ => spins(&bench, actor, "spin__selftest", 0, lock),
        }
    }
    let capture = bench.capture();
    assert!(lost(&capture, "unpaired_begin") > 0, "some ends were missed on purpose");
    let charged: usize = locks.iter().map(|lock| blame_of(&capture, spinlock(*lock)).holders.len()).sum();
    assert!(charged > 0);
}

#[test]
#[ignore = "needs root"]
fn loss_spin_queues_full_and_spin_blames_full() {
    const ROOM: u32 = 4;
    let bench = Bench::new(ROOM);
    // One place for the waiters of spinlocks: a quarter of the entries.
    let crew: [Actor; 2 * ROOM as usize] = actors();
    spins(&bench, &crew[0], "spin__selftest", 0, LOCK);
    for actor in &crew {
        spins(&bench, actor, "spinhold__selftest", 1, LOCK);
    }
    spins(&bench, &crew[0], "spin__selftest", 0, OTHER_LOCK);
    let capture = bench.capture();
    assert_eq!(lost(&capture, "spin_queues_full"), 1);
    assert!(lost(&capture, "spin_blames_full") > 0);
    blame_of(&capture, spinlock(LOCK));
}

#[test]
#[ignore = "needs root"]
fn loss_watched_map_full() {
    const ROOM: usize = 4;
    let bench = Bench::new(ROOM as u32);
    bench.begin(LOCK, MUTEX);
    let crew: [Actor; 2 * ROOM] = actors();
    for actor in &crew {
        actor.unlock(&bench, LOCK);
    }
    let capture = bench.capture();
    let blame = blame_of(&capture, mutex(LOCK));
    // The waiter is watched too.
    assert_eq!(lost(&capture, "watched_map_full"), ROOM as u64 + 1);
    assert_eq!(blame.holders.len(), ROOM - 1);
    assert_eq!(blame.unattributed.len(), 1);
    assert_eq!(blame.unattributed[0].reason, BlameGap::NoRoom);
}

#[test]
#[ignore = "needs root"]
fn loss_pairs_map_full() {
    const ROOM: u32 = 8;
    let bench = Bench::new(ROOM);
    let (waiters, holders): ([Actor; 2], [Actor; 6]) = (actors(), actors());
    waiters.iter().for_each(|waiter| waiter.begin(&bench, LOCK, MUTEX));
    holders.iter().for_each(|holder| holder.unlock(&bench, LOCK));
    waiters.iter().for_each(|waiter| waiter.end(&bench, LOCK));
    let capture = bench.capture();
    let blame = blame_of(&capture, mutex(LOCK));
    assert_eq!(blame.holders.iter().filter(|holder| holder.evidence == Evidence::Release).count(), 6);
    assert_eq!(blame.pairs.len(), ROOM as usize);
    // Six each, and one for the waiter that came second: the first one had the lock.
    assert!(lost(&capture, "pairs_map_full") >= 4);
}

#[test]
#[ignore = "needs root"]
fn loss_blames_map_full() {
    const ROOM: u32 = 8;
    let bench = Bench::new(ROOM);
    let holders: [Actor; 6] = actors();
    // As many locks as fit into a quarter of the entries.
    for lock in [LOCK, OTHER_LOCK] {
        bench.begin(lock, MUTEX);
        holders.iter().for_each(|holder| holder.unlock(&bench, lock));
        bench.end(lock, 0);
    }
    let capture = bench.capture();
    assert_eq!(lost(&capture, "blames_map_full"), 2 * 6 - u64::from(ROOM));
    blame_of(&capture, mutex(LOCK));
    let without_room = blame_of(&capture, mutex(OTHER_LOCK));
    assert!(without_room.unattributed.iter().any(|part| part.reason == BlameGap::NoRoom));
}
