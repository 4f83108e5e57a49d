//! Which programs and scenarios, and how many of them run under one profile.

use crate::support::*;
use serde_json::Value;
use std::path::PathBuf;

pub const SHAPE: [&str; 6] = ["--waiters", "2", "--rounds", "2", "--hold-ms", "50"];
pub const WAITERS: u64 = 2;

pub const C: [&str; 35] = [
    "mutex",
    "mutex-recursive",
    "mutex-errorcheck",
    "mutex-adaptive",
    "mutex-timed",
    "mutex-timed-out",
    "mutex-robust",
    "mutex-pi",
    "mutex-ceiling",
    "mutex-heap",
    "mutex-stack",
    "mutex-thread-local",
    "rwlock-read",
    "rwlock-write-behind-reader",
    "rwlock-write-behind-writer",
    "cond-signal",
    "cond-broadcast",
    "cond-timed-out",
    "cond-timed-out-monotonic",
    "semaphore",
    "semaphore-timed",
    "barrier",
    "join",
    "pool",
    "mix",
    "once",
    "stdio",
    "raw-mutex",
    "raw-futex2",
    "raw-int80",
    "raw-wake-op",
    "raw-waitv",
    "raw-requeue",
    "raw-requeue-pi",
    "raw-unknown",
];

pub const CPP: [&str; 13] = [
    "std-mutex",
    "std-timed-mutex",
    "std-recursive-mutex",
    "std-shared-mutex-shared",
    "std-shared-mutex-unique",
    "account",
    "std-condition",
    "std-semaphore",
    "std-latch",
    "std-barrier",
    "std-atomic",
    "std-future",
    "std-once",
];

pub const RUST: [&str; 14] = [
    "pthread-mutex",
    "pthread-timed",
    "pi-mutex",
    "rust-mutex",
    "rust-rwlock-read",
    "rust-rwlock-write",
    "rust-condvar",
    "rust-park",
    "rust-once",
    "rust-barrier",
    "parking-lot-mutex",
    "parking-lot-rwlock-read",
    "parking-lot-rwlock-write",
    "parking-lot-condvar",
];

/// What a guest runs of them, unless LOCKPROF_VM_ALL asks for all: at least one of each call, of each side and of
/// each way to find an owner. Timeouts of 50 ms are over there before anybody has seen the waiter. What user space makes of the words does not depend on the kernel.
pub const IN_GUESTS: [(&str, &[&str]); 4] = [
    (
        "futexes-c",
        &[
            "mutex",
            "mutex-robust",
            "mutex-pi",
            "mutex-heap",
            "mutex-stack",
            "rwlock-read",
            "rwlock-write-behind-reader",
            "mix",
            "once",
            "raw-futex2",
            "raw-int80",
            "raw-wake-op",
            "raw-waitv",
            "raw-requeue",
            "raw-requeue-pi",
        ],
    ),
    ("futexes-cpp", &["std-shared-mutex-unique", "account", "std-atomic"]),
    (
        "lockprof-workload",
        &["rust-mutex", "rust-rwlock-write", "rust-condvar", "parking-lot-mutex", "parking-lot-rwlock-read"],
    ),
    ("futexes-musl", &["mutex", "mutex-errorcheck", "rwlock-read", "join"]),
];

/// With `--waiter-hold-ms`: the waiters own these one after another.
pub const CHAINS: [(&str, &[&str]); 4] = [
    (
        "futexes-c",
        &[
            "mutex",
            "mutex-recursive",
            "mutex-robust",
            "mutex-pi",
            "mutex-ceiling",
            "mutex-stack",
            "stdio",
            "raw-mutex",
            "raw-int80",
            "raw-wake-op",
        ],
    ),
    ("futexes-cpp", &["std-mutex", "account"]),
    ("futexes-musl", &["mutex", "mutex-errorcheck"]),
    ("lockprof-workload", &["rust-mutex", "pthread-mutex", "pi-mutex"]),
];

pub fn program_path(program: &str) -> PathBuf {
    if program == "lockprof-workload" { workload_path() } else { futexes_path(program) }
}

pub fn chosen<'s>(program: &str, all: &[&'s str]) -> Vec<&'s str> {
    let everything = !in_guest() || std::env::var_os("LOCKPROF_VM_ALL").is_some_and(|value| value == "1");
    let few = IN_GUESTS.iter().find(|(name, _)| *name == program).expect("every program has some").1;
    all.iter().copied().filter(|scenario| everything || few.contains(scenario)).collect()
}

/// What one process did: the truth it printed, and whether stacks of it can be taken to the end.
pub struct Made {
    pub program: String,
    pub truth: Value,
}

/// Many processes in one profile: all there before it starts, let through the gate one by one.
pub fn crowd(programs: &[(&str, &[&str])], more: &[&str], lockprof_args: &[&str]) -> (Vec<Made>, Report) {
    let mut waiting = Vec::new();
    for (program, scenarios) in programs {
        for scenario in chosen(program, scenarios) {
            let args: Vec<&str> =
                std::iter::once(scenario).chain(SHAPE).chain(more.iter().copied()).collect();
            waiting.push((*program, Workload::gated_program(&program_path(program), &args)));
        }
    }
    let pids: Vec<String> = waiting.iter().map(|(_, workload)| workload.pid.to_string()).collect();
    let pids = pids.join(",");
    let args: Vec<&str> = ["-p", &pids, "-E", "500"].iter().chain(lockprof_args).copied().collect();
    let profiler = Profiler::start(&args);
    let mut made = Vec::new();
    for (program, mut workload) in waiting {
        workload.open_gate();
        made.push(Made { program: program.to_string(), truth: workload.finish() });
    }
    (made, profiler.finish())
}
