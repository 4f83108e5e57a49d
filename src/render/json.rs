//! `--json`: everything a profile knows, for programs. `docs/json.md` documents it for people and
//! `docs/report.schema.json` for validators; additions keep the schema's number.
//!
//! The structs here are the format and nothing else uses them, so that the model can change without
//! the format changing behind a reader's back.

use super::{Options, stacks};
use crate::model::{
    Backend, EndReason, Frame, HookLine, InFlight, Lock, Loss, Owner, Owners, Profile, Site, Space, StackRef,
    TargetKind, WaitStats, bucket_range,
};
use serde::Serialize;
use std::io::{self, Write};

/// Identifies the format.
pub const SCHEMA: &str = "lockprof.report/1";

pub fn render(profile: &Profile, _options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let report = Report::of(profile);
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, RowFormatter::default());
    report.serialize(&mut serializer)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    meta: Meta<'a>,
    target: Target<'a>,
    plan: Vec<Hook<'a>>,
    events: Events,
    losses: Vec<LossLine<'a>>,
    totals: Totals,
    locks: Vec<LockRow<'a>>,
}

#[derive(Serialize)]
struct Meta<'a> {
    version: &'a str,
    command: &'a [String],
    hostname: &'a str,
    kernel: &'a str,
    arch: &'a str,
    cpus: u32,
    start_unix_s: u64,
    duration_ns: u64,
    ended_by: EndReason,
    hold: bool,
    hold_families: Vec<&'static str>,
}

#[derive(Serialize)]
struct Target<'a> {
    kind: TargetKind,
    pids: &'a [u32],
    comms: &'a [String],
    command: &'a [String],
    exit_status: Option<i32>,
}

#[derive(Serialize)]
struct Hook<'a> {
    function: &'a str,
    families: Vec<&'static str>,
    backend: Option<&'static str>,
    reason: &'a str,
    blind: Option<&'a str>,
}

#[derive(Serialize)]
struct Events {
    hooks_attached: u64,
    events_seen: u64,
    waits_begun: u64,
    waits_ended: u64,
    futex_retries: u64,
    foreign_releases: u64,
}

#[derive(Serialize)]
struct LossLine<'a> {
    reason: &'a str,
    count: u64,
    meaning: &'a str,
}

#[derive(Serialize)]
struct Totals {
    locks: u64,
    weight_ns: u64,
    contended: u64,
    wait_total_ns: u64,
    aborted: u64,
    aborted_total_ns: u64,
    in_flight: u64,
    in_flight_ns: u64,
    lost: u64,
}

#[derive(Serialize)]
struct LockRow<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    family: &'static str,
    addr: String,
    pid: Option<u32>,
    name: Option<&'a str>,
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
    wakes: Option<Wakes>,
    contended_releases: Option<u64>,
    owners: Option<OwnersRow<'a>>,
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
struct Wakes {
    calls: u64,
    woken: u64,
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
    kernel_stack: StackRow<'a>,
    user_stack: StackRow<'a>,
}

#[derive(Serialize)]
struct Waiter<'a> {
    pid: u32,
    tid: u32,
    comm: &'a str,
    age_ns: u64,
    owner: Option<OwnerRow<'a>>,
    kernel_stack: StackRow<'a>,
    user_stack: StackRow<'a>,
}

#[derive(Serialize)]
struct StackRow<'a> {
    status: StackStatus,
    frames: Option<Vec<FrameRow<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum StackStatus {
    Complete,
    Incomplete,
    Lost,
    NotTaken,
}

#[derive(Serialize)]
struct FrameRow<'a> {
    function: Option<&'a str>,
    module: Option<&'a str>,
    module_offset: Option<String>,
    addr: String,
    file: Option<&'a str>,
    line: Option<u32>,
    inlined: bool,
    kernel: bool,
}

impl<'a> Report<'a> {
    fn of(profile: &'a Profile) -> Report<'a> {
        let meta = &profile.meta;
        let target = &meta.target;
        let events = &profile.events;
        let total_ns = profile.total_weight_ns();
        Report {
            schema: SCHEMA,
            meta: Meta {
                version: &meta.version,
                command: &meta.command,
                hostname: &meta.hostname,
                kernel: &meta.kernel,
                arch: &meta.arch,
                cpus: meta.cpus,
                start_unix_s: meta.start_unix_s,
                duration_ns: meta.duration_ns,
                ended_by: meta.ended_by,
                hold: meta.hold,
                hold_families: meta.hold_families.iter().map(|family| family.name()).collect(),
            },
            target: Target {
                kind: target.kind,
                pids: &target.pids,
                comms: &target.comms,
                command: &target.command,
                exit_status: target.exit_status,
            },
            plan: profile.plan.iter().map(Hook::of).collect(),
            events: Events {
                hooks_attached: events.hooks_attached,
                events_seen: events.events_seen,
                waits_begun: events.waits_begun,
                waits_ended: events.waits_ended,
                futex_retries: events.futex_retries,
                foreign_releases: events.foreign_releases,
            },
            losses: profile.losses.iter().map(LossLine::of).collect(),
            totals: Totals::of(profile),
            locks: profile.locks.iter().map(|lock| LockRow::of(profile, lock, total_ns)).collect(),
        }
    }
}

impl<'a> Hook<'a> {
    fn of(line: &'a HookLine) -> Hook<'a> {
        Hook {
            function: &line.function,
            families: line.families.iter().map(|family| family.name()).collect(),
            backend: line.backend.map(Backend::name),
            reason: &line.reason,
            blind: line.blind.as_deref(),
        }
    }
}

impl<'a> LossLine<'a> {
    fn of(loss: &'a Loss) -> LossLine<'a> {
        LossLine { reason: &loss.reason, count: loss.count, meaning: &loss.meaning }
    }
}

impl Totals {
    fn of(profile: &Profile) -> Totals {
        let mut wait = WaitStats::default();
        profile.locks.iter().for_each(|lock| wait.merge(&lock.wait));
        Totals {
            locks: profile.locks.len() as u64,
            weight_ns: profile.total_weight_ns(),
            contended: wait.contended,
            wait_total_ns: wait.wait_total_ns,
            aborted: wait.aborted,
            aborted_total_ns: wait.aborted_total_ns,
            in_flight: profile.locks.iter().map(|lock| lock.in_flight.len() as u64).sum(),
            in_flight_ns: profile.locks.iter().map(Lock::in_flight_ns).sum(),
            lost: profile.lost_total(),
        }
    }
}

impl<'a> LockRow<'a> {
    fn of(profile: &'a Profile, lock: &'a Lock, total_ns: u64) -> LockRow<'a> {
        let percentile =
            |percent| lock.hist.as_ref().and_then(|h| h.percentile_ns(percent, lock.wait.wait_max_ns));
        LockRow {
            kind: lock.kind.name(),
            family: lock.kind.family().name(),
            addr: hex(lock.addr),
            pid: lock.pid,
            name: lock.name.as_deref(),
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
            wakes: lock.wakes.map(|wakes| Wakes { calls: wakes.calls, woken: wakes.woken }),
            contended_releases: lock.contended_releases,
            owners: lock.owners.as_ref().map(OwnersRow::of),
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
    fn of(hold: &crate::model::HoldStats) -> Hold {
        Hold {
            acquired: hold.acquired,
            holds: hold.holds,
            hold_total_ns: hold.hold_total_ns,
            hold_max_ns: hold.hold_max_ns,
            avg_hold_ns: hold.hold_total_ns.checked_div(hold.holds),
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
            owner: wait.owner.as_ref().map(OwnerRow::of),
            kernel_stack: StackRow::of(profile, wait.kernel_stack),
            user_stack: StackRow::of(profile, wait.user_stack),
        }
    }
}

impl<'a> StackRow<'a> {
    fn of(profile: &'a Profile, stack: StackRef) -> StackRow<'a> {
        let status = match stack {
            StackRef::NotTaken => return StackRow { status: StackStatus::NotTaken, frames: None },
            StackRef::Lost => return StackRow { status: StackStatus::Lost, frames: None },
            StackRef::Stack(_) => match stacks::stack_of(profile, stack) {
                None => return StackRow { status: StackStatus::Lost, frames: None },
                Some(stack) if stack.incomplete => StackStatus::Incomplete,
                Some(_) => StackStatus::Complete,
            },
        };
        let frames =
            stacks::frames_innermost_first(profile, stack).into_iter().flat_map(FrameRow::all_of).collect();
        StackRow { status, frames: Some(frames) }
    }
}

impl<'a> FrameRow<'a> {
    /// One per function, innermost first like the stack; one without a function when there is no symbol.
    fn all_of(frame: &'a Frame) -> Vec<FrameRow<'a>> {
        let row = |function: Option<&'a crate::model::Function>, inlined| FrameRow {
            function: function.map(|function| function.name.as_str()),
            module: frame.module.as_deref(),
            module_offset: frame.module_offset.map(hex),
            addr: hex(frame.addr),
            file: function.and_then(|function| function.file.as_deref()),
            line: function.and_then(|function| function.line),
            inlined,
            kernel: frame.space == Space::Kernel,
        };
        if frame.functions.is_empty() {
            return vec![row(None, false)];
        }
        frame
            .functions
            .iter()
            .enumerate()
            .rev()
            .map(|(depth, function)| row(Some(function), depth > 0))
            .collect()
    }
}

/// JSON numbers end at 2^53, addresses do not.
fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// Indented, but a histogram's `[low, high, count]` stays on one line: for a reader and for `diff`.
#[derive(Default)]
struct RowFormatter {
    pretty: serde_json::ser::PrettyFormatter<'static>,
    /// Open containers, outermost first: is it an array?
    open: Vec<bool>,
    /// Depth of the array that is written on one line.
    row: Option<usize>,
}

impl serde_json::ser::Formatter for RowFormatter {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.row.is_none() && self.open.last() == Some(&true) {
            self.row = Some(self.open.len());
        }
        self.open.push(true);
        if self.row.is_some() { out.write_all(b"[") } else { self.pretty.begin_array(out) }
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open.pop();
        if self.row.is_none() {
            return self.pretty.end_array(out);
        }
        if self.row == Some(self.open.len()) {
            self.row = None;
        }
        out.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        match self.row {
            Some(_) if first => Ok(()),
            Some(_) => out.write_all(b", "),
            None => self.pretty.begin_array_value(out, first),
        }
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.row.is_some() { Ok(()) } else { self.pretty.end_array_value(out) }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open.push(false);
        self.pretty.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open.pop();
        self.pretty.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_inside_arrays_are_written_on_one_line() {
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, RowFormatter::default());
        serde_json::json!({"a": [], "h": [[1, 2, 3], [4, 5, 6]], "n": [1]})
            .serialize(&mut serializer)
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "{\n  \"a\": [],\n  \"h\": [\n    [1, 2, 3],\n    [4, 5, 6]\n  ],\n  \"n\": [\n    1\n  ]\n}"
        );
    }
}
