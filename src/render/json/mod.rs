//! `--json`: everything a profile knows, for programs. `docs/json.md` documents it for people and
//! `docs/report.schema.json` for validators; additions keep the schema's number.
//!
//! The structs here are the format and nothing else uses them, so that the model can change without
//! the format changing behind a reader's back.

mod blame;
mod layout;
mod lock;
mod stack;

use super::Options;
use crate::model::{
    Account, Backend, Conservation, EndReason, FutexClass, HookLine, Lock, Loss, Named, Profile, TargetKind,
    WaitStats, accounts,
};
use blame::ConservationRow;
use layout::RowFormatter;
use lock::LockRow;
use serde::Serialize;
use std::collections::HashMap;
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
    idle_totals: ClassTotals,
    once_totals: ClassTotals,
    unknown_totals: ClassTotals,
    conservation: Option<ConservationRow>,
    naming: Option<NamingRow<'a>>,
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
    futex_merged: u64,
    foreign_releases: u64,
}

#[derive(Serialize)]
struct LossLine<'a> {
    reason: &'a str,
    count: u64,
    meaning: &'a str,
}

/// Of contention.
#[derive(Serialize)]
struct Totals {
    #[serde(flatten)]
    contention: ClassTotals,
    lost: u64,
}

#[derive(Serialize)]
struct ClassTotals {
    locks: u64,
    weight_ns: u64,
    contended: u64,
    wait_total_ns: u64,
    aborted: u64,
    aborted_total_ns: u64,
    in_flight: u64,
    in_flight_ns: u64,
}

/// How many kernel locks, and how much of what happened to them, could be named.
#[derive(Serialize)]
struct NamingRow<'a> {
    all: NamedRow,
    /// One name.
    named: NamedRow,
    /// Several names, one of which is right.
    ambiguous: NamedRow,
    unavailable: &'a [String],
}

#[derive(Serialize)]
struct NamedRow {
    locks: u64,
    waits: u64,
    weight_ns: u64,
    acquired: Option<u64>,
}

impl NamedRow {
    fn of(named: Named) -> NamedRow {
        let Named { locks, waits, wait_ns, acquired } = named;
        NamedRow { locks, waits, weight_ns: wait_ns, acquired }
    }
}

impl<'a> NamingRow<'a> {
    fn of(profile: &'a Profile) -> Option<NamingRow<'a>> {
        let naming = profile.naming.as_ref()?;
        Some(NamingRow {
            all: NamedRow::of(profile.kernel_locks(|_| true)),
            named: NamedRow::of(profile.kernel_locks(Lock::has_one_name)),
            ambiguous: NamedRow::of(profile.kernel_locks(|lock| !lock.name_candidates.is_empty())),
            unavailable: &naming.unavailable,
        })
    }
}

impl<'a> Report<'a> {
    fn of(profile: &'a Profile) -> Report<'a> {
        let meta = &profile.meta;
        let target = &meta.target;
        let events = &profile.events;
        let totals = |class| ClassTotals::of(profile, class);
        let accounts = accounts(profile);
        let rows = accounts.iter().flat_map(|account| account.rows.iter().map(move |row| (*row, account)));
        let account_of: HashMap<*const Lock, &Account> =
            rows.map(|(row, account)| (std::ptr::from_ref(row), account)).collect();
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
                futex_merged: events.futex_merged,
                foreign_releases: events.foreign_releases,
            },
            losses: profile.losses.iter().map(LossLine::of).collect(),
            totals: Totals { contention: totals(FutexClass::Lock), lost: profile.lost_total() },
            idle_totals: totals(FutexClass::Idle),
            once_totals: totals(FutexClass::Once),
            unknown_totals: totals(FutexClass::Unknown),
            naming: NamingRow::of(profile),
            conservation: Conservation::of(profile).map(ConservationRow::of),
            locks: profile
                .locks
                .iter()
                .map(|lock| {
                    let account = account_of.get(&std::ptr::from_ref(lock)).copied();
                    LockRow::of(profile, &accounts, account, lock)
                })
                .collect(),
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

impl ClassTotals {
    fn of(profile: &Profile, class: FutexClass) -> ClassTotals {
        let locks: Vec<&Lock> = profile.locks.iter().filter(|lock| lock.wait_class() == class).collect();
        let mut wait = WaitStats::default();
        locks.iter().for_each(|lock| wait.merge(&lock.wait));
        ClassTotals {
            locks: locks.len() as u64,
            weight_ns: profile.weight_ns_of(class),
            contended: wait.contended,
            wait_total_ns: wait.wait_total_ns,
            aborted: wait.aborted,
            aborted_total_ns: wait.aborted_total_ns,
            in_flight: locks.iter().map(|lock| lock.in_flight.len() as u64).sum(),
            in_flight_ns: locks.iter().map(|lock| lock.in_flight_ns()).sum(),
        }
    }
}

/// JSON numbers end at 2^53, addresses do not.
fn hex(value: u64) -> String {
    format!("{value:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::View;
    use crate::render::tests::profile;
    use serde_json::Value;

    fn report(view: View) -> Value {
        let mut out = Vec::new();
        render(&profile(), &Options { view, ..Options::default() }, &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn every_view_has_every_row() {
        assert_eq!(report(View::Contention), report(View::Idle));
        assert_eq!(report(View::Idle)["locks"].as_array().unwrap().len(), profile().locks.len());
    }

    #[test]
    fn accounts_add_up_and_chains_end_in_roots() {
        let report = report(View::Contention);
        assert_eq!(report["conservation"]["difference_ns"], 0);
        assert_eq!(report["conservation"]["waited_ns"], report["totals"]["weight_ns"]);
        let mut chains = 0;
        for row in report["locks"].as_array().unwrap() {
            assert_eq!(row["queue"].is_null(), row["class"].as_str().is_some_and(|class| class != "lock"));
            for chain in row["blame"]["chains"].as_array().unwrap_or(&Vec::new()) {
                let roots = chain["roots"].as_array().unwrap();
                let sum: u64 = roots.iter().map(|root| root["waited_ns"].as_u64().unwrap()).sum();
                assert_eq!(chain["waited_ns"], sum);
                chains += 1;
            }
        }
        assert_eq!(chains, 2);
    }

    #[test]
    fn shares_and_totals_are_of_one_class_each() {
        let report = report(View::Contention);
        for (class, totals) in [
            ("lock", "totals"),
            ("idle", "idle_totals"),
            ("once", "once_totals"),
            ("unknown", "unknown_totals"),
        ] {
            let rows: Vec<&Value> = report["locks"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|row| row["class"].as_str().unwrap_or("lock") == class)
                .collect();
            let shares: f64 = rows.iter().map(|row| row["wait_share"].as_f64().unwrap()).sum();
            assert!((shares - 1.0).abs() < 1e-9, "{class}: {shares}");
            let sum = |field: &str| rows.iter().map(|row| row[field].as_u64().unwrap()).sum::<u64>();
            for field in ["weight_ns", "contended", "wait_total_ns", "aborted", "aborted_total_ns"] {
                assert_eq!(report[totals][field], sum(field), "{totals}.{field}");
            }
            assert_eq!(report[totals]["locks"], rows.len());
        }
    }
}
