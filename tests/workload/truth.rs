//! What really happened, in the form that the tests read: the `truth` line.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// One attempt of one waiter, timed by the waiter itself.
#[derive(Clone, Copy)]
pub struct Attempt {
    pub wait_ns: u64,
    /// The waiter gave up without the lock.
    pub aborted: bool,
}

/// The sum over attempts that were provably contended.
#[derive(Clone, Default)]
pub struct Tally {
    contended: u64,
    total_ns: u64,
    min_ns: Option<u64>,
    max_ns: Option<u64>,
    aborted: u64,
    aborted_ns: u64,
    unproven: u64,
}

impl Tally {
    pub fn add(&mut self, attempt: Attempt) {
        if attempt.aborted {
            self.aborted += 1;
            self.aborted_ns += attempt.wait_ns;
            return;
        }
        self.contended += 1;
        self.total_ns += attempt.wait_ns;
        self.min_ns = Some(self.min_ns.map_or(attempt.wait_ns, |min| min.min(attempt.wait_ns)));
        self.max_ns = Some(self.max_ns.map_or(attempt.wait_ns, |max| max.max(attempt.wait_ns)));
    }

    /// Counts an acquisition that nobody saw blocked.
    pub fn add_unproven(&mut self) {
        self.unproven += 1;
    }

    pub fn merge(&mut self, other: &Tally) {
        self.contended += other.contended;
        self.total_ns += other.total_ns;
        self.min_ns = self.min_ns.into_iter().chain(other.min_ns).min();
        self.max_ns = self.max_ns.into_iter().chain(other.max_ns).max();
        self.aborted += other.aborted;
        self.aborted_ns += other.aborted_ns;
        self.unproven += other.unproven;
    }

    pub fn contended(&self) -> u64 {
        self.contended
    }
}

/// What a user lock is to whoever reads futex waits: the names of `src/model/futex.rs`.
#[derive(Clone, Copy)]
pub struct FutexUse {
    /// "lock", "idle" or "once"
    pub class: &'static str,
    pub kind: &'static str,
    pub side: Option<&'static str>,
}

impl FutexUse {
    pub const GLIBC_MUTEX: FutexUse = FutexUse::new("lock", "glibc mutex", None);
    pub const PI_MUTEX: FutexUse = FutexUse::new("lock", "PI mutex", None);
    pub const RUST_MUTEX: FutexUse = FutexUse::new("lock", "Rust Mutex", None);
    pub const RUST_RWLOCK_READ: FutexUse = FutexUse::new("lock", "Rust RwLock", Some("read"));
    pub const RUST_RWLOCK_WRITE: FutexUse = FutexUse::new("lock", "Rust RwLock", Some("write"));
    pub const RUST_CONDVAR: FutexUse = FutexUse::new("idle", "Rust Condvar", None);
    pub const RUST_PARK: FutexUse = FutexUse::new("idle", "Rust thread::park", None);
    pub const RUST_ONCE: FutexUse = FutexUse::new("once", "Rust Once", None);
    pub const PARKING_LOT_MUTEX: FutexUse = FutexUse::new("lock", "parking_lot Mutex", None);
    pub const PARKING_LOT_RWLOCK_READ: FutexUse = FutexUse::new("lock", "parking_lot RwLock", Some("read"));
    pub const PARKING_LOT_RWLOCK_WRITE: FutexUse = FutexUse::new("lock", "parking_lot RwLock", Some("write"));
    pub const PARKING_LOT_CONDVAR: FutexUse = FutexUse::new("idle", "parking_lot Condvar", None);

    const fn new(class: &'static str, kind: &'static str, side: Option<&'static str>) -> FutexUse {
        FutexUse { class, kind, side }
    }
}

/// One row of `locks`: one lock as waited for from one call site. What is unknown is null, never 0.
#[derive(Serialize)]
pub struct LockRow {
    pub kind: &'static str,
    /// Of user locks only: see [`FutexUse`].
    pub class: Option<&'static str>,
    pub futex_kind: Option<&'static str>,
    pub side: Option<&'static str>,
    /// The ELF symbol of a user lock, or `struct.member` of a kernel lock.
    pub name: Option<String>,
    pub addr: Option<String>,
    /// The lock itself, where that is known; the futex word need not be inside.
    pub object: Option<String>,
    pub contended: Option<u64>,
    pub wait_total_ns: Option<u64>,
    pub wait_min_ns: Option<u64>,
    pub wait_max_ns: Option<u64>,
    pub aborted: Option<u64>,
    pub aborted_ns: Option<u64>,
    /// Acquisitions that may or may not have waited; they are in none of the other numbers.
    pub unproven: Option<u64>,
    /// Another lock that the waiters may meet at afterwards, unknown how often.
    pub also_contended: Option<String>,
    pub call_site: Option<String>,
    /// Of user locks: who owned it when the waits began.
    pub holder_tid: Option<i32>,
    pub tids: Vec<i32>,
}

impl LockRow {
    /// A lock that exists but about which nothing was measured.
    pub fn unknown(kind: &'static str, name: &str) -> LockRow {
        LockRow {
            kind,
            class: None,
            futex_kind: None,
            side: None,
            name: Some(name.to_string()),
            addr: None,
            object: None,
            contended: None,
            wait_total_ns: None,
            wait_min_ns: None,
            wait_max_ns: None,
            aborted: None,
            aborted_ns: None,
            unproven: None,
            also_contended: None,
            call_site: None,
            holder_tid: None,
            tids: Vec::new(),
        }
    }

    pub fn user(futex: FutexUse, name: &str, tally: &Tally) -> LockRow {
        LockRow {
            class: Some(futex.class),
            futex_kind: Some(futex.kind),
            side: futex.side,
            ..LockRow::measured("futex", name, tally)
        }
    }

    pub fn measured(kind: &'static str, name: &str, tally: &Tally) -> LockRow {
        LockRow {
            contended: Some(tally.contended),
            wait_total_ns: Some(tally.total_ns),
            wait_min_ns: tally.min_ns,
            wait_max_ns: tally.max_ns,
            aborted: Some(tally.aborted),
            aborted_ns: Some(tally.aborted_ns),
            unproven: Some(tally.unproven),
            ..LockRow::unknown(kind, name)
        }
    }
}

/// What a scenario hands back: its rows, and fields that only this scenario has.
#[derive(Default)]
pub struct Outcome {
    pub rounds: u64,
    pub waiters: u64,
    /// The chosen hold time; `None` where a scenario has no single one.
    pub hold_ns: Option<u64>,
    pub locks: Vec<LockRow>,
    pub extra: Map<String, Value>,
}

impl Outcome {
    /// Whoever waited began to while this thread held the lock.
    pub fn held_by(mut self, tid: i32) -> Outcome {
        self.extra.insert("holder_tid".to_string(), json!(tid));
        self
    }
}

/// The last line on standard output.
pub fn print_truth(scenario: &str, outcome: &Outcome, start_ns: u64, end_ns: u64) -> Result<()> {
    let mut line = json!({
        "event": "truth",
        "scenario": scenario,
        "pid": std::process::id(),
        "rounds": outcome.rounds,
        "waiters": outcome.waiters,
        "hold_ns": outcome.hold_ns,
        "start_ns": start_ns,
        "end_ns": end_ns,
        "locks": outcome.locks,
    });
    if let Value::Object(fields) = &mut line {
        fields.extend(outcome.extra.clone());
    }
    print_line(&line)
}

/// Writes one JSON line and flushes it; a closed standard output is an error, not a panic.
pub fn print_line(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write to standard output")
}

pub fn hex(addr: u64) -> String {
    format!("{addr:#x}")
}
