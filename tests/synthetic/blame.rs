//! Who made the others wait in the invented profile: each bucket of an account, and a chain of three locks.

use super::{Stacks, function, kernel, thread, user};
use lockprof::model::*;

/// Stacks of waiters that come again as those of holders.
pub(super) struct Known {
    pub cache_user: StackRef,
    pub pipe_user: StackRef,
    pub pipe_kernel: StackRef,
    pub mmap_kernel: StackRef,
    pub alloc_user: StackRef,
}

/// Divides what was waited for a lock; the first holder gets what is left over, so that it adds up exactly.
struct Division {
    waited_ns: u64,
    blame: Blame,
}

impl Division {
    fn part(&self, permille: u64) -> u64 {
        self.waited_ns / 1000 * permille
    }

    fn holder(
        &mut self,
        permille: u64,
        thread: Thread,
        stacks: (StackRef, StackRef),
        holds: u64,
        states: Option<[u64; 5]>,
    ) -> &mut Holder {
        let blamed_ns = self.part(permille);
        // Somewhat more than two threads waited at a time.
        let wanted_ns = blamed_ns / 22 * 10;
        let states = states.map(|percent| {
            let [runnable_ns, io_ns, lock_ns, blocked_ns] =
                [percent[1], percent[2], percent[3], percent[4]].map(|percent| wanted_ns / 100 * percent);
            let running_ns = wanted_ns - runnable_ns - io_ns - lock_ns - blocked_ns;
            HolderStates { running_ns, runnable_ns, io_ns, lock_ns, blocked_ns }
        });
        self.blame.holders.push(Holder {
            thread,
            kernel_stack: stacks.0,
            user_stack: stacks.1,
            evidence: Evidence::Release,
            blamed_ns,
            chained_ns: 0,
            holds,
            wanted_ns,
            states,
        });
        self.blame.holders.last_mut().unwrap()
    }

    fn handoff(&mut self, permille: u64, handoffs: u64) {
        self.blame.handoff_ns = self.part(permille);
        self.blame.handoffs = handoffs;
        self.blame.idle_while_wanted_ns = self.blame.handoff_ns / 18 * 10;
    }

    fn unattributed(&mut self, permille: u64, reason: BlameGap, thread: Option<Thread>) {
        self.blame.leave_unattributed(reason, thread, self.part(permille));
    }

    fn unreleased(&mut self, ns: u64, by: Option<Thread>) {
        self.blame.unreleased_ns = ns;
        self.blame.unreleased_by = by;
        self.blame.wanted_ns += ns;
    }

    fn pair(&mut self, permille: u64, waiter: Party, holder: Party) {
        let waited_ns = self.part(permille);
        self.blame.pairs.push(Pair { waiter, holder, waited_ns });
    }

    fn done(mut self) -> Blame {
        let left = self.waited_ns - self.blame.accounted_ns();
        match (self.blame.holders.first_mut(), self.blame.unattributed.first_mut()) {
            (Some(holder), _) => holder.blamed_ns += left,
            (None, Some(part)) => part.waited_ns += left,
            (None, None) => assert_eq!(left, 0),
        }
        self.blame.wanted_ns += self.blame.holders.iter().map(|holder| holder.wanted_ns).sum::<u64>();
        self.blame.rank();
        self.blame
    }
}

fn party(comm: &str, kernel_stack: StackRef, user_stack: StackRef) -> Party {
    Party { pid: 4242, comm: comm.into(), kernel_stack, user_stack }
}

fn find(locks: &mut [Lock], kind: LockKind, addr: u64) -> &mut Lock {
    locks.iter_mut().find(|lock| (lock.kind, lock.addr) == (kind, addr)).expect("the lock is in the profile")
}

const PIPE: u64 = 0xffff_9a01_0b20_2468;
const MMAP: u64 = 0xffff_9a01_0c30_0070;

pub(super) fn add(locks: &mut [Lock], stacks: &mut Stacks, known: &Known, thread_start: &[Frame]) {
    let mut at = |offset: u64, names: &[&str]| {
        let mut frames = vec![user("libc.so.6", 0x91117, vec![function("syscall", None)])];
        for (depth, name) in names.iter().enumerate() {
            let offset = offset + 0x100 * depth as u64;
            frames.push(user("demo", offset, vec![function(name, Some(("src/main.rs", 40)))]));
        }
        frames.extend(thread_start.to_vec());
        stacks.add(false, frames)
    };
    let evict = at(
        0xa100,
        &[
            "core::ptr::drop_in_place<std::sync::poison::mutex::MutexGuard<std::collections::hash::map::HashMap<alloc::string::String, demo::cache::Entry>>>",
            "demo::cache::Cache::evict",
            "demo::gc::sweep",
        ],
    );
    let insert = at(0xa500, &["demo::cache::Cache::get_or_insert_with", "demo::worker::run_loop"]);
    let shard = at(0xa900, &["demo::book::Shard::rebalance", "demo::book::Book::on_tick"]);
    let drain = at(0xad00, &["demo::log::drain", "demo::log::run"]);
    let release = |names: &[&str], at: u64| {
        let mut frames = vec![kernel("bpf_prog_4badcafe_unlock_slowpath__kprobe", 0xffff_ffff_c000_3000)];
        let names = names.iter().zip(1..);
        frames.extend(names.map(|(name, depth)| kernel(name, 0xffff_ffff_8140_0000 + at + 0x10 * depth)));
        frames.push(kernel("do_syscall_64", 0xffff_ffff_8180_0050));
        frames
    };
    let pipe_read =
        stacks.add(false, release(&["__mutex_unlock_slowpath.constprop.0", "pipe_read", "vfs_read"], 0));
    let pipe_write = stacks
        .add(false, release(&["__mutex_unlock_slowpath.constprop.0", "pipe_write", "vfs_write"], 0x100));
    let munmap = stacks.add(false, release(&["rwsem_wake", "up_write", "__vm_munmap"], 0x200));
    let fault = stacks.add(false, release(&["rwsem_wake", "up_read", "do_user_addr_fault"], 0x300));
    let none = StackRef::NotTaken;

    let division = |lock: &Lock| Division { waited_ns: lock.weight_ns(), blame: Blame::default() };

    // demo-io-2 waits for the pipe while it holds the cache, and who has the pipe waits for mmap_lock.
    let cache = find(locks, LockKind::Futex, 0x5581_0004_f0c0);
    let mut division_of_cache = division(cache);
    let d = &mut division_of_cache;
    d.holder(480, thread(4249, "demo-gc"), (none, evict), 41, Some([30, 8, 62, 0, 0]));
    let io_2 = d.holder(310, thread(4252, "demo-io-2"), (none, insert), 812, Some([38, 6, 0, 56, 0]));
    io_2.chained_ns = io_2.blamed_ns / 100 * 56;
    let chained_ns = io_2.chained_ns;
    d.holder(60, thread(4253, "demo-io-3"), (none, insert), 290, Some([96, 4, 0, 0, 0]));
    d.holder(25, thread(4254, "demo-io-4"), (none, insert), 121, Some([99, 1, 0, 0, 0]));
    d.handoff(90, 1264);
    d.unattributed(30, BlameGap::ReleaseNotSeen, None);
    let at_cache = |comm| party(comm, none, known.cache_user);
    d.pair(210, at_cache("demo-io-2"), party("demo-gc", none, evict));
    d.pair(160, at_cache("demo-io-3"), party("demo-gc", none, evict));
    d.pair(140, at_cache("demo-io-3"), party("demo-io-2", none, insert));
    d.pair(90, at_cache("demo-io-4"), party("demo-gc", none, evict));
    d.pair(80, at_cache("demo-io-4"), party("demo-io-2", none, insert));
    d.pair(40, at_cache("demo-io-2"), party("demo-io-3", none, insert));
    d.blame.chains.push(Chain {
        through: thread(4252, "demo-io-2"),
        kind: LockKind::Mutex,
        addr: PIPE,
        pid: None,
        waited_ns: chained_ns,
    });
    cache.blame = Some(division_of_cache.done());
    cache.woken_to_running_ns = Some(412_000_000);

    // Short holds: most of the time goes by between a release and the next acquisition.
    let pipe = find(locks, LockKind::Mutex, PIPE);
    let mut d = division(pipe);
    let log = d.holder(230, thread(4258, "demo-log"), (pipe_read, drain), 1420, Some([41, 4, 0, 55, 0]));
    log.chained_ns = log.blamed_ns / 100 * 55;
    let chained_ns = log.chained_ns;
    d.holder(140, thread(4250, "demo-io-0"), (pipe_write, known.pipe_user), 870, Some([92, 8, 0, 0, 0]));
    d.handoff(520, 2890);
    d.unattributed(110, BlameGap::ReleaseNotSeen, None);
    let at_pipe = |comm| party(comm, known.pipe_kernel, known.pipe_user);
    d.pair(150, at_pipe("demo-io-2"), party("demo-log", pipe_read, drain));
    d.pair(50, at_pipe("demo-io-2"), party("demo-io-0", pipe_write, known.pipe_user));
    d.pair(70, at_pipe("demo-io-1"), party("demo-io-0", pipe_write, known.pipe_user));
    d.blame.chains.push(Chain {
        through: thread(4258, "demo-log"),
        kind: LockKind::RwsemRead,
        addr: MMAP,
        pid: None,
        waited_ns: chained_ns,
    });
    pipe.blame = Some(d.done());
    pipe.woken_to_running_ns = Some(1_310_000_000);

    // One account for both sides; its readers are blamed for the last of them.
    let reads_ns = find(locks, LockKind::RwsemRead, MMAP).weight_ns();
    let mmap = find(locks, LockKind::RwsemWrite, MMAP);
    let mut d = Division { waited_ns: mmap.weight_ns() + reads_ns, blame: Blame::default() };
    d.holder(700, thread(4242, "demo"), (munmap, known.alloc_user), 240, Some([71, 3, 0, 0, 26]));
    d.holder(180, thread(4253, "demo-io-3"), (fault, known.cache_user), 96, Some([8, 0, 92, 0, 0]));
    d.handoff(120, 310);
    d.pair(450, party("demo-log", fault, drain), party("demo", munmap, known.alloc_user));
    d.pair(150, party("demo-log", fault, drain), party("demo-io-3", fault, known.cache_user));
    d.pair(
        80,
        party("demo-io-3", known.mmap_kernel, known.alloc_user),
        party("demo", munmap, known.alloc_user),
    );
    mmap.blame = Some(d.done());

    let other_pipe = find(locks, LockKind::Mutex, 0xffff_9a01_0b20_9468);
    let mut d = division(other_pipe);
    d.unattributed(700, BlameGap::OwnerWithoutStack, Some(thread(4258, "demo-log")));
    d.unattributed(200, BlameGap::NoRoom, None);
    d.unattributed(100, BlameGap::AddressReused, None);
    other_pipe.blame = Some(d.done());

    let hung = locks.iter_mut().find(|lock| lock.name.as_deref() == Some("rename_mutex")).unwrap();
    let mut d = division(hung);
    d.unreleased(hung.weight_ns(), Some(thread(4249, "demo-main")));
    // Two wait at once.
    d.blame.wanted_ns = 9_871_000_000;
    hung.blame = Some(d.done());

    // Another process has it, and when the profile stopped nobody knew who.
    let ticks = find(locks, LockKind::Futex, 0x40);
    let mut d = division(ticks);
    d.unreleased(ticks.in_flight_ns(), None);
    let ticker = Thread { pid: 5150, tid: 5150, comm: "ticker".into() };
    d.holder(5, ticker, (none, StackRef::Lost), 118, None);
    ticks.blame = Some(d.done());

    let shards = find(locks, LockKind::Futex, 0x7f00_2001_0010);
    let mut d = division(shards);
    d.holder(840, thread(4255, "demo-io-5"), (none, shard), 300, None).evidence = Evidence::Acquire;
    d.handoff(160, 280);
    shards.blame = Some(d.done());

    for kind in [LockKind::Spinlock, LockKind::PercpuRwsemRead] {
        let lock = locks.iter_mut().find(|lock| lock.kind == kind).unwrap();
        let mut d = division(lock);
        d.unattributed(1000, BlameGap::NoReleaseEvent, None);
        lock.blame = Some(d.done());
    }
}
