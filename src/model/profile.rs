//! One capture, whole.

use super::{Family, Frame, FutexClass, HoldStats, Lock, Stack};
use serde::{Deserialize, Serialize};

/// Identifies the serialized form of [`Profile`]. Additions keep the number.
pub const SCHEMA: &str = "lockprof.profile/1";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub schema: String,
    pub meta: Meta,
    /// One line per function or tracepoint that was considered, in catalog order.
    pub plan: Vec<HookLine>,
    pub events: EventCounts,
    /// Every loss reason there is, those with count 0 too.
    pub losses: Vec<Loss>,
    /// Largest [`Lock::weight_ns`] first.
    pub locks: Vec<Lock>,
    pub stacks: Vec<Stack>,
    pub frames: Vec<Frame>,
    /// `None`: nobody has looked for the names of its kernel locks.
    #[serde(default)]
    pub naming: Option<Naming>,
}

/// What was known when the kernel locks of a profile were named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// What could not be read, and why.
    pub unavailable: Vec<String>,
}

/// Kernel locks, their waits and their acquisitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub locks: u64,
    pub waits: u64,
    pub wait_ns: u64,
    /// `None`: acquisitions were not traced.
    pub acquired: Option<u64>,
}

impl Named {
    fn add(&mut self, lock: &Lock) {
        self.locks += 1;
        self.waits += lock.waits();
        self.wait_ns += lock.weight_ns();
        let more = lock.hold.map(|HoldStats { acquired, .. }| acquired);
        self.acquired = self.acquired.map(|sum| sum + more.unwrap_or(0)).or(more);
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// lockprof's own version.
    pub version: String,
    /// lockprof's own command line.
    pub command: Vec<String>,
    pub hostname: String,
    /// `uname -r`.
    pub kernel: String,
    pub arch: String,
    pub cpus: u32,
    /// Wall clock at the start, seconds since 1970.
    pub start_unix_s: u64,
    /// From "active" to "stopped".
    pub duration_ns: u64,
    pub target: Target,
    pub ended_by: EndReason,
    /// `--hold` was given: acquisitions and holds were traced.
    pub hold: bool,
    /// Of which families.
    #[serde(default)]
    pub hold_families: Vec<Family>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub kind: TargetKind,
    /// The processes named by the user, or CMD's; empty system-wide.
    pub pids: Vec<u32>,
    /// Names of those processes, in the same order.
    pub comms: Vec<String>,
    /// CMD and its arguments.
    pub command: Vec<String>,
    /// CMD's exit status as a shell would give it (128+N for signal N).
    pub exit_status: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    Pids,
    Command,
    System,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    Duration,
    Signal,
    TargetExited,
}

/// How one hooked function is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    Fentry,
    #[serde(rename = "kprobe.multi")]
    KprobeMulti,
    Kprobe,
    /// A raw tracepoint.
    Tracepoint,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Backend::Fentry => "fentry",
            Backend::KprobeMulti => "kprobe.multi",
            Backend::Kprobe => "kprobe",
            Backend::Tracepoint => "tracepoint",
        }
    }
}

/// What the plan decided for one function or tracepoint, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookLine {
    /// `mutex_lock`, `contention_begin`, `sys_enter`.
    pub function: String,
    pub families: Vec<Family>,
    /// `None`: skipped.
    pub backend: Option<Backend>,
    /// Why this backend, or why none.
    pub reason: String,
    /// What is not seen because it is skipped; `None` when nothing is lost by it.
    pub blind: Option<String>,
}

/// How much happened, so that "no contention" cannot be confused with "nothing worked".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCounts {
    pub hooks_attached: u64,
    /// Times any of lockprof's programs passed the target filter while active.
    pub events_seen: u64,
    pub waits_begun: u64,
    pub waits_ended: u64,
    /// Futex calls that returned at once because the word had changed (EAGAIN): no wait.
    pub futex_retries: u64,
    /// Futex waits that went on with an acquisition instead of beginning one: the woken thread had lost the
    /// race for the lock, or a signal came, or a time slice was over.
    #[serde(default)]
    pub futex_merged: u64,
    /// Exclusive locks released by another task than the one that acquired them: legal, and counted.
    #[serde(default)]
    pub foreign_releases: u64,
}

/// Something that happened and is not in the numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Stable name: `stack_map_full`.
    pub reason: String,
    pub count: u64,
    /// What it means, and what to do about it.
    pub meaning: String,
}

impl Profile {
    /// Waits of one class: completed, aborted and in flight; what shares are taken of.
    pub fn weight_ns_of(&self, class: FutexClass) -> u64 {
        self.locks.iter().filter(|lock| lock.wait_class() == class).map(Lock::weight_ns).sum()
    }

    /// The kernel locks of which a condition holds.
    pub fn kernel_locks(&self, which: impl Fn(&Lock) -> bool) -> Named {
        let mut named = Named { acquired: self.meta.hold.then_some(0), ..Named::default() };
        let kernel = self.locks.iter().filter(|lock| !lock.kind.is_user());
        kernel.filter(|lock| which(lock)).for_each(|lock| named.add(lock));
        named
    }

    pub fn lost_total(&self) -> u64 {
        self.losses.iter().map(|loss| loss.count).sum()
    }
}
