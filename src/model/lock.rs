//! A lock, its waits and its holds.

use super::{Blame, FutexCall, FutexClass, FutexLock, Hist, LockPlace, Owner, Owners, Releaser, StackRef};
use serde::{Deserialize, Serialize};

/// What kind of lock, and for reader-writer locks which side of it waited.
///
/// The names in [`LockKind::name`] are those of `perf lock contention` where perf has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LockKind {
    #[serde(rename = "mutex")]
    Mutex,
    #[serde(rename = "rwsem:R")]
    RwsemRead,
    #[serde(rename = "rwsem:W")]
    RwsemWrite,
    #[serde(rename = "spinlock")]
    Spinlock,
    #[serde(rename = "rwlock:R")]
    RwlockRead,
    #[serde(rename = "rwlock:W")]
    RwlockWrite,
    /// `contention_begin` with no flags: a `struct semaphore`.
    #[serde(rename = "semaphore")]
    Semaphore,
    #[serde(rename = "pcpu-sem:R")]
    PercpuRwsemRead,
    #[serde(rename = "pcpu-sem:W")]
    PercpuRwsemWrite,
    #[serde(rename = "rtmutex")]
    RtMutex,
    #[serde(rename = "futex")]
    Futex,
    /// FUTEX_LOCK_PI: the kernel knows this one is a lock.
    #[serde(rename = "futex-pi")]
    FutexPi,
    /// flock(2): of an inode, as the address says.
    #[serde(rename = "flock")]
    Flock,
    /// fcntl(2) F_SETLKW and F_OFD_SETLKW: some bytes of an inode.
    #[serde(rename = "posix-lock")]
    PosixLock,
}

impl LockKind {
    pub const ALL: [LockKind; 14] = [
        LockKind::Mutex,
        LockKind::RwsemRead,
        LockKind::RwsemWrite,
        LockKind::Spinlock,
        LockKind::RwlockRead,
        LockKind::RwlockWrite,
        LockKind::Semaphore,
        LockKind::PercpuRwsemRead,
        LockKind::PercpuRwsemWrite,
        LockKind::RtMutex,
        LockKind::Futex,
        LockKind::FutexPi,
        LockKind::Flock,
        LockKind::PosixLock,
    ];

    /// The short name shown in the TYPE column and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            LockKind::Mutex => "mutex",
            LockKind::RwsemRead => "rwsem:R",
            LockKind::RwsemWrite => "rwsem:W",
            LockKind::Spinlock => "spinlock",
            LockKind::RwlockRead => "rwlock:R",
            LockKind::RwlockWrite => "rwlock:W",
            LockKind::Semaphore => "semaphore",
            LockKind::PercpuRwsemRead => "pcpu-sem:R",
            LockKind::PercpuRwsemWrite => "pcpu-sem:W",
            LockKind::RtMutex => "rtmutex",
            LockKind::Futex => "futex",
            LockKind::FutexPi => "futex-pi",
            LockKind::Flock => "flock",
            LockKind::PosixLock => "posix-lock",
        }
    }

    pub fn family(self) -> Family {
        match self {
            LockKind::Mutex => Family::Mutex,
            LockKind::RwsemRead | LockKind::RwsemWrite => Family::Rwsem,
            LockKind::Spinlock => Family::Spinlock,
            LockKind::RwlockRead | LockKind::RwlockWrite => Family::Rwlock,
            LockKind::Semaphore => Family::Semaphore,
            LockKind::PercpuRwsemRead | LockKind::PercpuRwsemWrite => Family::PercpuRwsem,
            LockKind::RtMutex => Family::RtMutex,
            LockKind::Futex | LockKind::FutexPi => Family::Futex,
            LockKind::Flock | LockKind::PosixLock => Family::FileLock,
        }
    }

    /// A futex's address means something only inside its process.
    pub fn is_user(self) -> bool {
        self.family() == Family::Futex
    }
}

/// Locks that are hooked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    Mutex,
    Rwsem,
    Spinlock,
    Rwlock,
    Semaphore,
    PercpuRwsem,
    #[serde(rename = "rtmutex")]
    RtMutex,
    Futex,
    FileLock,
}

impl Family {
    pub const ALL: [Family; 9] = [
        Family::Mutex,
        Family::Rwsem,
        Family::Spinlock,
        Family::Rwlock,
        Family::Semaphore,
        Family::PercpuRwsem,
        Family::RtMutex,
        Family::Futex,
        Family::FileLock,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Family::Mutex => "mutex",
            Family::Rwsem => "rwsem",
            Family::Spinlock => "spinlock",
            Family::Rwlock => "rwlock",
            Family::Semaphore => "semaphore",
            Family::PercpuRwsem => "percpu-rwsem",
            Family::RtMutex => "rtmutex",
            Family::Futex => "futex",
            Family::FileLock => "file-lock",
        }
    }
}

/// Waits that ended inside the profile.
///
/// A *contended* wait ended with the lock acquired (for a futex: woken). An *aborted* wait ended
/// without it: EINTR, timeout, deadlock refused. The two are never added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitStats {
    pub contended: u64,
    pub wait_total_ns: u64,
    /// `None` while `contended` is 0.
    pub wait_min_ns: Option<u64>,
    pub wait_max_ns: Option<u64>,
    pub aborted: u64,
    pub aborted_total_ns: u64,
    /// The part of `wait_total_ns` that was spent spinning; the rest was slept. `None` where nothing
    /// tells the two apart.
    #[serde(default)]
    pub spin_total_ns: Option<u64>,
}

impl WaitStats {
    pub fn merge(&mut self, other: &WaitStats) {
        // An unknown part makes the sum unknown, and where nobody waited nothing is unknown.
        self.spin_total_ns = match (self.spin_total_ns, other.spin_total_ns) {
            (mine, _) if other.contended == 0 => mine,
            (_, theirs) if self.contended == 0 => theirs,
            (mine, theirs) => mine.zip(theirs).map(|(mine, theirs)| mine + theirs),
        };
        self.contended += other.contended;
        self.wait_total_ns += other.wait_total_ns;
        self.wait_min_ns = match (self.wait_min_ns, other.wait_min_ns) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.wait_max_ns = self.wait_max_ns.max(other.wait_max_ns);
        self.aborted += other.aborted;
        self.aborted_total_ns += other.aborted_total_ns;
    }

    /// Mean over contended waits; `None` when there was none.
    pub fn avg_wait_ns(&self) -> Option<u64> {
        self.wait_total_ns.checked_div(self.contended)
    }
}

/// Acquisitions and holds seen from acquire to release (`--hold`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStats {
    /// Every acquisition seen, contended or not.
    pub acquired: u64,
    /// Holds whose acquire *and* release were seen.
    pub holds: u64,
    pub hold_total_ns: u64,
    pub hold_max_ns: Option<u64>,
}

impl HoldStats {
    /// `None` when no hold was seen whole.
    pub fn avg_hold_ns(&self) -> Option<u64> {
        self.hold_total_ns.checked_div(self.holds)
    }

    pub fn merge(&mut self, other: &HoldStats) {
        self.acquired += other.acquired;
        self.holds += other.holds;
        self.hold_total_ns += other.hold_total_ns;
        self.hold_max_ns = self.hold_max_ns.max(other.hold_max_ns);
    }
}

/// FUTEX_WAKE calls on a futex that woke somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wakes {
    pub calls: u64,
    pub woken: u64,
    /// The calls among them that asked for everybody.
    #[serde(default)]
    pub all: u64,
}

/// One place that waits for a lock: its kernel and user stacks, in one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub pid: u32,
    pub kernel_stack: StackRef,
    pub user_stack: StackRef,
    /// What the waiting call asked for; `None` for kernel locks.
    #[serde(default)]
    pub futex: Option<FutexCall>,
    pub wait: WaitStats,
}

/// A wait that had not ended when the profile stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    pub pid: u32,
    pub tid: u32,
    pub comm: String,
    /// From the wait's begin (or the profile's, if that came later) to the profile's stop.
    pub age_ns: u64,
    /// When the wait began; `None` where the lock keeps no owner.
    #[serde(default)]
    pub owner: Option<Owner>,
    pub kernel_stack: StackRef,
    pub user_stack: StackRef,
    #[serde(default)]
    pub futex: Option<FutexCall>,
    /// It was waiting already when the profile started.
    #[serde(default)]
    pub from_before: bool,
}

/// One lock: an address and a kind (the two sides of an rwsem are two rows), per process for futexes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub kind: LockKind,
    pub addr: u64,
    /// The process the address belongs to; `None` for kernel locks.
    pub pid: Option<u32>,
    /// The lock's own name (a symbol); `None` until somebody finds one. See [`Lock::call_site`].
    pub name: Option<String>,
    /// All that a kernel lock may be, where that is not one thing; `name` has the first of them.
    #[serde(default)]
    pub name_candidates: Vec<String>,
    /// The structure that a kernel lock's memory was allocated as, where the name says another one, that is
    /// a part of it.
    #[serde(default)]
    pub object: Option<String>,
    /// Which lock it is in every profile, whatever its address; not unique, where locks can not be told
    /// apart. Empty: nobody has looked.
    #[serde(default)]
    pub key: String,
    /// The function that took the lock at the site that waited longest: what to show for a lock without a name.
    pub call_site: Option<String>,
    pub wait: WaitStats,
    /// Contended waits only; `None` when the histogram table was full.
    pub hist: Option<Hist>,
    pub hold: Option<HoldStats>,
    /// `None` for kernel locks, and where wakes were not traced.
    pub wakes: Option<Wakes>,
    /// Releases of the lock, by anybody, while a traced task waited for it on this side; `None` where
    /// they are not seen.
    #[serde(default)]
    pub contended_releases: Option<u64>,
    /// `None` for a lock that keeps no owner.
    #[serde(default)]
    pub owners: Option<Owners>,
    /// What kind of wait; `None` for kernel locks.
    #[serde(default)]
    pub futex: Option<FutexLock>,
    /// `None` for kernel locks, and where nothing is known about the address.
    #[serde(default)]
    pub place: Option<LockPlace>,
    /// How many addresses this row stands for: locks on the heap are one row for each contention site.
    #[serde(default = "one")]
    pub addresses: u64,
    /// More than one thread has waited for it.
    #[serde(default)]
    pub several_waiters: bool,
    /// Holds of a user lock that began with a wait, from its end to the holder's own wake; `None` where
    /// none was seen. Holds without a wait never reach the kernel.
    #[serde(default)]
    pub contended_hold: Option<HoldStats>,
    /// Most frequent first.
    #[serde(default)]
    pub releasers: Vec<Releaser>,
    /// Who made the waiters wait; `None` where nothing was accounted, and at the other side of a
    /// reader-writer lock whose account is at this one's.
    #[serde(default)]
    pub blame: Option<Blame>,
    /// Of its waits: from being woken to running, which is the scheduler's time; `None` where the scheduler was
    /// not watched.
    #[serde(default)]
    pub woken_to_running_ns: Option<u64>,
    /// Longest total wait first.
    pub sites: Vec<Site>,
    /// Oldest first.
    pub in_flight: Vec<InFlight>,
}

fn one() -> u64 {
    1
}

impl Lock {
    /// Without waits.
    pub fn new(kind: LockKind, addr: u64, pid: Option<u32>) -> Lock {
        Lock {
            kind,
            addr,
            pid,
            name: None,
            name_candidates: Vec::new(),
            object: None,
            key: String::new(),
            call_site: None,
            wait: WaitStats::default(),
            hist: None,
            hold: None,
            wakes: None,
            contended_releases: None,
            owners: None,
            futex: None,
            place: None,
            addresses: 1,
            several_waiters: false,
            contended_hold: None,
            releasers: Vec::new(),
            blame: None,
            woken_to_running_ns: None,
            sites: Vec::new(),
            in_flight: Vec::new(),
        }
    }

    /// What its waits are added up with: those of kernel locks, and of futexes that nobody classified
    /// (profiles of older versions), count as a lock's.
    pub fn wait_class(&self) -> FutexClass {
        self.futex.map_or(FutexClass::Lock, |futex| futex.class)
    }

    /// It is known what it is.
    pub fn has_one_name(&self) -> bool {
        self.name.is_some() && self.name_candidates.is_empty()
    }

    /// Whether its waits are contention: of kernel locks always, of futexes when they are locks.
    pub fn is_contention(&self) -> bool {
        self.wait_class() == FutexClass::Lock
    }

    /// For the TYPE column.
    pub fn type_name(&self) -> &'static str {
        self.futex.map_or(self.kind.name(), |futex| futex.kind.short_name(futex.side))
    }

    pub fn in_flight_ns(&self) -> u64 {
        self.in_flight.iter().map(|w| w.age_ns).sum()
    }

    /// Completed, aborted and ongoing waits.
    pub fn waits(&self) -> u64 {
        self.wait.contended + self.wait.aborted + self.in_flight.len() as u64
    }

    /// What a row is ranked by: completed, aborted and ongoing waits together.
    ///
    /// A lock that hangs has only ongoing waits and must still come first.
    pub fn weight_ns(&self) -> u64 {
        self.wait.wait_total_ns + self.wait.aborted_total_ns + self.in_flight_ns()
    }

    /// Holds seen: of a kernel lock all (`--hold`), of a user lock those that began with a wait.
    pub fn seen_holds(&self) -> Option<HoldStats> {
        self.hold.or(self.contended_hold)
    }

    /// Takes over another row of the same lock: its waits, holds and sites.
    pub fn merge(&mut self, other: Lock) {
        self.hist = match (self.hist.take(), other.hist) {
            (Some(mut mine), Some(theirs)) => {
                mine.merge(&theirs);
                Some(mine)
            }
            // A row of holds only has no histogram and lacks none.
            (mine, _) if other.wait.contended == 0 => mine,
            (_, theirs) if self.wait.contended == 0 => theirs,
            _ => None,
        };
        self.wait.merge(&other.wait);
        self.hold = match (self.hold, other.hold) {
            (Some(mut mine), Some(theirs)) => {
                mine.merge(&theirs);
                Some(mine)
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.contended_releases = match (self.contended_releases, other.contended_releases) {
            (Some(mine), Some(theirs)) => Some(mine + theirs),
            (mine, theirs) => mine.or(theirs),
        };
        self.owners = match (self.owners.take(), other.owners) {
            (Some(mut mine), Some(theirs)) => {
                mine.merge(theirs);
                Some(mine)
            }
            (mine, theirs) => mine.or(theirs),
        };
        for site in other.sites {
            let key = |site: &Site| (site.pid, site.kernel_stack, site.user_stack, site.futex);
            match self.sites.iter_mut().find(|mine| key(mine) == key(&site)) {
                Some(mine) => mine.wait.merge(&site.wait),
                None => self.sites.push(site),
            }
        }
        self.in_flight.extend(other.in_flight);
        self.several_waiters |= other.several_waiters;
        self.wakes = match (self.wakes, other.wakes) {
            (Some(a), Some(b)) => {
                Some(Wakes { calls: a.calls + b.calls, woken: a.woken + b.woken, all: a.all + b.all })
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.contended_hold = match (self.contended_hold, other.contended_hold) {
            (Some(mut mine), Some(theirs)) => {
                mine.merge(&theirs);
                Some(mine)
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.blame = match (self.blame.take(), other.blame) {
            (Some(mut mine), Some(theirs)) => {
                mine.merge(theirs);
                Some(mine)
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.woken_to_running_ns = match (self.woken_to_running_ns, other.woken_to_running_ns) {
            (Some(mine), Some(theirs)) => Some(mine + theirs),
            (mine, theirs) => mine.or(theirs),
        };
        for theirs in other.releasers {
            let same = |mine: &&mut Releaser| {
                (mine.waker.tid, mine.wakee_tid, mine.user_stack)
                    == (theirs.waker.tid, theirs.wakee_tid, theirs.user_stack)
            };
            match self.releasers.iter_mut().find(same) {
                Some(mine) => mine.woken += theirs.woken,
                None => self.releasers.push(theirs),
            }
        }
    }

    /// Puts locks, their sites and their ongoing waits in the order of a profile.
    pub fn rank(locks: &mut [Lock]) {
        for lock in locks.iter_mut() {
            lock.sites.sort_by_key(|site| {
                let waited = site.wait.wait_total_ns + site.wait.aborted_total_ns;
                (std::cmp::Reverse(waited), site.pid, site.kernel_stack, site.user_stack, site.futex)
            });
            lock.releasers.sort_by_key(|releaser| {
                (
                    std::cmp::Reverse(releaser.woken),
                    releaser.waker.tid,
                    releaser.wakee_tid,
                    releaser.user_stack,
                )
            });
            lock.in_flight.sort_by_key(|wait| (std::cmp::Reverse(wait.age_ns), wait.tid));
        }
        locks.sort_by_key(|lock| {
            let held = lock.hold.map_or(0, |hold| hold.hold_total_ns);
            (std::cmp::Reverse(lock.weight_ns()), std::cmp::Reverse(held), lock.kind, lock.addr, lock.pid)
        });
    }

    /// The name, else the call site, else the address.
    pub fn label(&self) -> String {
        match (&self.name, &self.call_site) {
            (Some(name), _) => name.clone(),
            (None, Some(site)) => site.clone(),
            (None, None) => format!("{:#x}", self.addr),
        }
    }
}
