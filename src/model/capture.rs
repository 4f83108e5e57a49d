//! What one run left in the maps, as plain data: addresses and stack ids, nothing named yet.

use super::LockKind;
use std::collections::HashMap;

/// A stack as BPF reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RawStack {
    Id(u64),
    Lost,
    NotTaken,
}

impl LockId {
    /// Where the account of its waiters is: both sides of an rw_semaphore have one.
    pub fn queue(self) -> LockId {
        match self.kind {
            LockKind::RwsemRead => LockId { kind: LockKind::RwsemWrite, ..self },
            _ => self,
        }
    }
}

/// A lock, as BPF keys it; `pid` only for futexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockId {
    pub kind: LockKind,
    pub addr: u64,
    pub pid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId {
    pub lock: LockId,
    pub pid: u32,
    pub kernel_stack: RawStack,
    pub user_stack: RawStack,
    pub futex: Option<super::FutexCall>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawLock {
    /// Dense; empty when nothing ended.
    pub hist: Vec<u32>,
    pub wake_calls: u64,
    pub woken: u64,
    pub wake_all_calls: u64,
    pub several_waiters: bool,
    pub contended_releases: u64,
    /// Waits that began while no task owned it, and while readers did.
    pub begun_unowned: u64,
    pub begun_read_owned: u64,
}

/// The account of one queue of waiters: `model::Blame`, with stacks as BPF keys them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawBlame {
    pub holders: Vec<RawHolder>,
    pub handoff_ns: u64,
    pub handoffs: u64,
    pub unattributed: Vec<super::Unattributed>,
    pub unreleased_ns: u64,
    pub unreleased_by: Option<super::Thread>,
    pub uncounted_ns: u64,
    pub wanted_ns: u64,
    pub idle_while_wanted_ns: u64,
    pub woken_to_running_ns: u64,
    pub pairs: Vec<(RawParty, RawParty, u64)>,
    /// Through which thread, for which lock.
    pub chains: Vec<(super::Thread, LockId, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawHolder {
    pub thread: super::Thread,
    pub kernel_stack: RawStack,
    pub user_stack: RawStack,
    pub evidence: super::Evidence,
    pub blamed_ns: u64,
    pub chained_ns: u64,
    pub holds: u64,
    pub wanted_ns: u64,
    pub states: super::HolderStates,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawParty {
    pub pid: u32,
    pub comm: String,
    pub kernel_stack: RawStack,
    pub user_stack: RawStack,
}

/// Where in the kernel's slabs something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabPlace {
    /// Address of the cache, as far as it is one.
    pub cache: u64,
    /// How far into the slab; `None`: not known.
    pub offset: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWait {
    pub site: SiteId,
    pub tid: u32,
    pub comm: String,
    pub begin_ns: u64,
    pub owner: Option<super::Owner>,
    pub from_before: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawFrames {
    /// Innermost first.
    pub pcs: Vec<u64>,
    /// Callers are missing; why is counted in the losses.
    pub incomplete: bool,
}

/// Everything one run collected. Times are CLOCK_MONOTONIC ns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawCapture {
    pub sites: Vec<(SiteId, super::WaitStats)>,
    pub locks: HashMap<LockId, RawLock>,
    pub holds: HashMap<LockId, super::HoldStats>,
    /// Per lock and thread: waits that began while it was the owner.
    pub owners: Vec<(LockId, super::Thread, u64)>,
    /// Holds of futexes that began with a wait.
    pub contended_holds: HashMap<LockId, super::HoldStats>,
    /// Per lock: waker, tid of the woken thread, the waker's stack, how often.
    pub releasers: Vec<(LockId, super::Thread, u32, RawStack, u64)>,
    /// By the lock that stands for the whole queue: of a reader-writer lock the write side.
    pub blames: HashMap<LockId, RawBlame>,
    /// What threads did was seen by the scheduler's tracepoints.
    pub scheduler_watched: bool,
    /// Kinds of which contended releases are seen.
    pub kinds_with_releases: Vec<LockKind>,
    pub stacks: HashMap<u64, RawFrames>,
    /// Kernel locks by address.
    pub slab_places: HashMap<u64, SlabPlace>,
    pub in_flight: Vec<RawWait>,
    pub losses: Vec<super::Loss>,
    pub events: super::EventCounts,
    pub start_ns: u64,
    pub stop_ns: u64,
}
