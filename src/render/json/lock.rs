//! A lock of a report, with its sites and waiters.

use super::blame::{BlameRow, QueueRow};
use super::hex;
use super::stack::StackRow;
use crate::model::{
    Account, FutexCall, FutexKind, FutexLock, HoldStats, InFlight, Lock, LockPlace, Owner, Owners, Profile,
    Queue, Releaser, Side, Site, WaitStats, bucket_range,
};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct LockRow<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    class: Option<&'static str>,
    futex: Option<FutexRow>,
    family: &'static str,
    addr: String,
    pid: Option<u32>,
    place: Option<PlaceRow<'a>>,
    addresses: u64,
    key: Option<&'a str>,
    name: Option<&'a str>,
    name_candidates: &'a [String],
    object: Option<&'a str>,
    call_site: Option<&'a str>,
    weight_ns: u64,
    wait_share: Option<f64>,
    #[serde(flatten)]
    wait: Wait,
    wait_p50_ns: Option<u64>,
    wait_p90_ns: Option<u64>,
    wait_p99_ns: Option<u64>,
    wait_p999_ns: Option<u64>,
    histogram: Option<Vec<[u64; 3]>>,
    hold: Option<Hold>,
    contended_hold: Option<ContendedHold>,
    wakes: Option<Wakes>,
    contended_releases: Option<u64>,
    owners: Option<OwnersRow<'a>>,
    releasers: Vec<ReleaserRow<'a>>,
    blame: Option<BlameRow<'a>>,
    queue: Option<QueueRow>,
    woken_to_running_ns: Option<u64>,
    sites: Vec<SiteRow<'a>>,
    in_flight: Vec<Waiter<'a>>,
}

#[derive(Serialize)]
struct Wait {
    contended: u64,
    wait_total_ns: u64,
    wait_min_ns: Option<u64>,
    wait_max_ns: Option<u64>,
    avg_wait_ns: Option<u64>,
    aborted: u64,
    aborted_total_ns: u64,
    wait_spin_total_ns: Option<u64>,
}

#[derive(Serialize)]
struct Hold {
    acquired: u64,
    holds: u64,
    hold_total_ns: u64,
    hold_max_ns: Option<u64>,
    avg_hold_ns: Option<u64>,
}

#[derive(Serialize)]
struct ContendedHold {
    contended_holds: u64,
    hold_total_ns: u64,
    hold_max_ns: Option<u64>,
    avg_hold_ns: Option<u64>,
}

#[derive(Serialize)]
struct FutexRow {
    kind: &'static str,
    kind_id: FutexKind,
    side: Option<Side>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum PlaceRow<'a> {
    Global {
        module: &'a str,
        symbol: &'a str,
        offset: String,
    },
    Module {
        module: &'a str,
        vaddr: String,
    },
    ThreadLocal,
    Stack,
    Heap,
    Shared {
        dev: &'a str,
        /// In decimal; some file systems use all 64 bits.
        inode: String,
        offset: String,
        path: &'a str,
    },
}

#[derive(Serialize)]
struct Wakes {
    calls: u64,
    woken: u64,
    all: u64,
}

#[derive(Serialize)]
struct ReleaserRow<'a> {
    pid: u32,
    tid: u32,
    comm: &'a str,
    wakee_tid: u32,
    woken: u64,
    user_stack: StackRow<'a>,
}

#[derive(Serialize)]
struct OwnersRow<'a> {
    nobody: u64,
    readers: u64,
    tasks: Vec<OwnerTask<'a>>,
}

#[derive(Serialize)]
struct OwnerTask<'a> {
    pid: u32,
    tid: u32,
    comm: &'a str,
    waits_begun: u64,
}

#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum OwnerRow<'a> {
    Task { pid: u32, tid: u32, comm: &'a str },
    Readers,
    Nobody,
}

#[derive(Serialize)]
struct SiteRow<'a> {
    pid: u32,
    #[serde(flatten)]
    wait: Wait,
    futex: Option<FutexCall>,
    kernel_stack: StackRow<'a>,
    user_stack: StackRow<'a>,
}

#[derive(Serialize)]
struct Waiter<'a> {
    pid: u32,
    tid: u32,
    comm: &'a str,
    age_ns: u64,
    from_before: bool,
    owner: Option<OwnerRow<'a>>,
    kernel_stack: StackRow<'a>,
    user_stack: StackRow<'a>,
}

impl<'a> LockRow<'a> {
    /// With the account that the lock is in; `None` for what is no contention.
    pub(super) fn of(
        profile: &'a Profile,
        accounts: &[Account<'a>],
        account: Option<&Account<'a>>,
        lock: &'a Lock,
    ) -> LockRow<'a> {
        let total_ns = profile.weight_ns_of(lock.wait_class());
        let percentile =
            |percent| lock.hist.as_ref().and_then(|h| h.percentile_ns(percent, lock.wait.wait_max_ns));
        LockRow {
            kind: lock.kind.name(),
            class: lock.futex.map(|futex| futex.class.name()),
            futex: lock.futex.map(FutexRow::of),
            family: lock.kind.family().name(),
            addr: hex(lock.addr),
            pid: lock.pid,
            place: lock.place.as_ref().map(PlaceRow::of),
            addresses: lock.addresses,
            key: Some(lock.key.as_str()).filter(|key| !key.is_empty()),
            name: lock.name.as_deref(),
            name_candidates: &lock.name_candidates,
            object: lock.object.as_deref(),
            call_site: lock.call_site.as_deref(),
            weight_ns: lock.weight_ns(),
            wait_share: (total_ns > 0).then(|| lock.weight_ns() as f64 / total_ns as f64),
            wait: Wait::of(&lock.wait),
            wait_p50_ns: percentile(50.0),
            wait_p90_ns: percentile(90.0),
            wait_p99_ns: percentile(99.0),
            wait_p999_ns: percentile(99.9),
            histogram: lock.hist.as_ref().map(|hist| {
                hist.buckets
                    .iter()
                    .map(|(bucket, count)| {
                        let (low, high) = bucket_range(usize::from(*bucket));
                        [low, high, *count]
                    })
                    .collect()
            }),
            hold: lock.hold.as_ref().map(Hold::of),
            contended_hold: lock.contended_hold.as_ref().map(ContendedHold::of),
            wakes: lock.wakes.map(|wakes| Wakes { calls: wakes.calls, woken: wakes.woken, all: wakes.all }),
            contended_releases: lock.contended_releases,
            owners: lock.owners.as_ref().map(OwnersRow::of),
            releasers: lock.releasers.iter().map(|releaser| ReleaserRow::of(profile, releaser)).collect(),
            blame: lock.blame.as_ref().map(|blame| BlameRow::of(profile, accounts, lock, blame)),
            queue: account
                .and_then(|account| Queue::of(lock, account, profile.meta.duration_ns))
                .map(QueueRow::of),
            woken_to_running_ns: lock.woken_to_running_ns,
            sites: lock.sites.iter().map(|site| SiteRow::of(profile, site)).collect(),
            in_flight: lock.in_flight.iter().map(|wait| Waiter::of(profile, wait)).collect(),
        }
    }
}

impl Wait {
    fn of(wait: &WaitStats) -> Wait {
        Wait {
            contended: wait.contended,
            wait_total_ns: wait.wait_total_ns,
            wait_min_ns: wait.wait_min_ns,
            wait_max_ns: wait.wait_max_ns,
            avg_wait_ns: wait.avg_wait_ns(),
            aborted: wait.aborted,
            aborted_total_ns: wait.aborted_total_ns,
            wait_spin_total_ns: wait.spin_total_ns,
        }
    }
}

impl Hold {
    fn of(hold: &HoldStats) -> Hold {
        Hold {
            acquired: hold.acquired,
            holds: hold.holds,
            hold_total_ns: hold.hold_total_ns,
            hold_max_ns: hold.hold_max_ns,
            avg_hold_ns: hold.avg_hold_ns(),
        }
    }
}

impl ContendedHold {
    fn of(hold: &HoldStats) -> ContendedHold {
        ContendedHold {
            contended_holds: hold.holds,
            hold_total_ns: hold.hold_total_ns,
            hold_max_ns: hold.hold_max_ns,
            avg_hold_ns: hold.avg_hold_ns(),
        }
    }
}

impl FutexRow {
    fn of(futex: FutexLock) -> FutexRow {
        FutexRow { kind: futex.kind.name(), kind_id: futex.kind, side: futex.side }
    }
}

impl<'a> PlaceRow<'a> {
    fn of(place: &'a LockPlace) -> PlaceRow<'a> {
        match place {
            LockPlace::Global { module, symbol, offset } => {
                PlaceRow::Global { module, symbol, offset: hex(*offset) }
            }
            LockPlace::Module { module, vaddr } => PlaceRow::Module { module, vaddr: hex(*vaddr) },
            LockPlace::ThreadLocal => PlaceRow::ThreadLocal,
            LockPlace::Stack => PlaceRow::Stack,
            LockPlace::Heap => PlaceRow::Heap,
            LockPlace::Shared { dev, inode, offset, path } => {
                PlaceRow::Shared { dev, inode: inode.to_string(), offset: hex(*offset), path }
            }
        }
    }
}

impl<'a> ReleaserRow<'a> {
    fn of(profile: &'a Profile, releaser: &'a Releaser) -> ReleaserRow<'a> {
        ReleaserRow {
            pid: releaser.waker.pid,
            tid: releaser.waker.tid,
            comm: &releaser.waker.comm,
            wakee_tid: releaser.wakee_tid,
            woken: releaser.woken,
            user_stack: StackRow::of(profile, releaser.user_stack),
        }
    }
}

impl<'a> OwnersRow<'a> {
    fn of(owners: &'a Owners) -> OwnersRow<'a> {
        let tasks = owners.tasks.iter().map(|(thread, waits)| OwnerTask {
            pid: thread.pid,
            tid: thread.tid,
            comm: &thread.comm,
            waits_begun: *waits,
        });
        OwnersRow { nobody: owners.nobody, readers: owners.readers, tasks: tasks.collect() }
    }
}

impl<'a> OwnerRow<'a> {
    fn of(owner: &'a Owner) -> OwnerRow<'a> {
        match owner {
            Owner::Task(thread) => OwnerRow::Task { pid: thread.pid, tid: thread.tid, comm: &thread.comm },
            Owner::Readers => OwnerRow::Readers,
            Owner::Nobody => OwnerRow::Nobody,
        }
    }
}

impl<'a> SiteRow<'a> {
    fn of(profile: &'a Profile, site: &'a Site) -> SiteRow<'a> {
        SiteRow {
            pid: site.pid,
            wait: Wait::of(&site.wait),
            futex: site.futex,
            kernel_stack: StackRow::of(profile, site.kernel_stack),
            user_stack: StackRow::of(profile, site.user_stack),
        }
    }
}

impl<'a> Waiter<'a> {
    fn of(profile: &'a Profile, wait: &'a InFlight) -> Waiter<'a> {
        Waiter {
            pid: wait.pid,
            tid: wait.tid,
            comm: &wait.comm,
            age_ns: wait.age_ns,
            from_before: wait.from_before,
            owner: wait.owner.as_ref().map(OwnerRow::of),
            kernel_stack: StackRow::of(profile, wait.kernel_stack),
            user_stack: StackRow::of(profile, wait.user_stack),
        }
    }
}
