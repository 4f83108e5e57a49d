//! `lockprof-workload`: makes lock contention of a known shape and prints what it did.
//!
//! The protocol and the scenarios are described in README.md next to this file.

mod blame;
mod blocked;
mod busy;
mod clock;
mod count_calls;
mod crew;
mod event;
mod file_locks;
mod kernel;
mod kernel_console;
mod kernel_foreign;
mod kernel_fpos;
mod kernel_killed;
mod kernel_munmap;
mod kernel_percpu;
mod kernel_pipe;
mod kernel_rwsem;
mod kernel_spin;
mod kernel_tty;
mod kernel_unix;
mod parking;
mod perf;
mod pthread;
mod rust_std;
mod rust_sync;
mod storm;
mod swarm;
mod truth;
mod user_locks;
mod userfault;

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde_json::json;

use truth::{LockRow, Outcome};

/// Standard input ended while the gate was closed.
const EXIT_GATE_CLOSED: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    PthreadMutex,
    RustMutex,
    RustRwlockRead,
    RustRwlockWrite,
    RustCondvar,
    RustPark,
    RustOnce,
    RustBarrier,
    ParkingLotMutex,
    ParkingLotRwlockRead,
    ParkingLotRwlockWrite,
    ParkingLotCondvar,
    PthreadTimed,
    PiMutex,
    Hung,
    PipeMutex,
    RwsemWrite,
    RwsemRead,
    FposMutex,
    PercpuRwsem,
    Semaphore,
    Interrupted,
    Trylock,
    Munmap,
    UnixSocket,
    ForeignMmap,
    Killed,
    Spin,
    Rwlock,
    AcpiSemaphore,
    Flock,
    PosixLock,
    Busy,
    Storm,
    Swarm,
    Short,
    TwoHolders,
    Chain,
    SlowHolder,
}

/// When the gate is passed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GateAt {
    /// Before anything is contended
    Start,
    /// In the first round, when the lock is held and nobody waits for it yet
    Held,
    /// In the first round, when everybody waits
    Blocked,
}

/// Makes lock contention of a known shape and prints what it did as JSON.
#[derive(Parser)]
#[command(
    name = "lockprof-workload",
    after_help = "`lockprof-workload count-calls --help`: counts calls of kernel functions, for comparison."
)]
pub struct Options {
    scenario: Scenario,
    /// Threads that wait (busy: that trade; storm: that work)
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    waiters: u64,
    /// Rounds of contention; each waiter waits once in each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// How long the lock is held after the last waiter has blocked [default: 20; swarm: 0]
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    hold_ms: Option<u64>,
    /// pthread-mutex, pi-mutex, rust-mutex, rust-rwlock-*, parking-lot-mutex, parking-lot-rwlock-*: how long each waiter holds the lock in its turn
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    waiter_hold_ms: u64,
    /// Print a "ready" line and wait for a line on standard input before anything is contended
    #[arg(long)]
    gate: bool,
    /// Pass the gate later; for scenarios in which one thread holds the lock for a chosen time
    #[arg(long, value_enum, default_value_t = GateAt::Start, conflicts_with = "children")]
    gate_at: GateAt,
    /// Do the work in a child process
    #[arg(long)]
    children: bool,
    /// busy, storm: how long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// busy: length of the critical sections of the main call path
    #[arg(long, default_value_t = 200)]
    hold_us: u64,
    /// spin, rwlock, acpi-semaphore, trylock, munmap: what each thread does so often
    #[arg(long, default_value_t = 100_000)]
    operations: u64,
    /// swarm: number of mutexes, each contended once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    locks: u64,
    /// swarm: number of distinct call stacks that lead to them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    stacks: u64,
    /// slow-holder: what keeps it from letting go
    #[arg(long, value_enum, default_value_t = blame::Why::Sleep)]
    why: blame::Why,
    /// short: status to exit with
    #[arg(long, default_value_t = 0)]
    exit_code: u8,
}

impl Options {
    fn hold(&self) -> Duration {
        let default = if self.scenario == Scenario::Swarm { 0 } else { 20 };
        Duration::from_millis(self.hold_ms.unwrap_or(default))
    }

    /// Passes the gate if this is the time for it.
    pub fn pass_gate_at(&self, time: GateAt) -> Result<()> {
        if self.gate && self.gate_at == time && !pass_gate()? {
            // Somebody may be stopped inside the kernel: no way back through the callers.
            std::process::exit(EXIT_GATE_CLOSED.into());
        }
        Ok(())
    }

    fn waiter_hold(&self) -> Duration {
        Duration::from_millis(self.waiter_hold_ms)
    }

    /// What most scenarios report.
    fn outcome(&self, locks: Vec<LockRow>) -> Outcome {
        Outcome {
            rounds: self.rounds,
            waiters: self.waiters,
            hold_ns: Some(self.hold().as_nanos() as u64),
            locks,
            ..Outcome::default()
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let counts = arguments.get(1).is_some_and(|first| first == "count-calls");
    match if counts { count_calls::run(arguments) } else { run(Options::parse()) } {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lockprof-workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut options: Options) -> Result<ExitCode> {
    let has_no_held_lock = matches!(
        options.scenario,
        Scenario::Hung
            | Scenario::Semaphore
            | Scenario::Spin
            | Scenario::Rwlock
            | Scenario::Munmap
            | Scenario::ForeignMmap
            | Scenario::Busy
            | Scenario::Swarm
    );
    if options.gate_at != GateAt::Start && (has_no_held_lock || !options.gate) {
        bail!("--gate-at needs --gate, and a scenario in which one thread holds the lock for a chosen time");
    }
    options.pass_gate_at(GateAt::Start)?;
    if options.children {
        return run_in_child();
    }
    if options.scenario == Scenario::Short {
        options.rounds = 1;
    }
    let start_ns = clock::now_ns();
    let outcome = match options.scenario {
        Scenario::PthreadMutex | Scenario::Short => pthread::run(&options),
        Scenario::RustMutex => rust_std::run(&options),
        Scenario::RustRwlockRead => rust_sync::run_rwlock_read(&options),
        Scenario::RustRwlockWrite => rust_sync::run_rwlock_write(&options),
        Scenario::RustCondvar => rust_sync::run_condvar(&options),
        Scenario::RustPark => rust_sync::run_park(&options),
        Scenario::RustOnce => rust_sync::run_once(&options),
        Scenario::RustBarrier => rust_sync::run_barrier(&options),
        Scenario::ParkingLotMutex => parking::run_mutex(&options),
        Scenario::ParkingLotRwlockRead => parking::run_rwlock_read(&options),
        Scenario::ParkingLotRwlockWrite => parking::run_rwlock_write(&options),
        Scenario::ParkingLotCondvar => parking::run_condvar(&options),
        Scenario::PthreadTimed => pthread::run_timed(&options),
        Scenario::PiMutex => pthread::run_pi(&options),
        Scenario::Hung => pthread::run_hung(&options),
        Scenario::PipeMutex => kernel_pipe::run(&options),
        Scenario::RwsemWrite => kernel_rwsem::run_write(&options),
        Scenario::RwsemRead => kernel_rwsem::run_read(&options),
        Scenario::FposMutex => kernel_fpos::run(&options),
        Scenario::PercpuRwsem => kernel_percpu::run(&options),
        Scenario::Semaphore => kernel_console::run(&options),
        Scenario::Interrupted => kernel_tty::run(&options),
        Scenario::Trylock => kernel_tty::run_trylock(&options),
        Scenario::Munmap => kernel_munmap::run(&options),
        Scenario::UnixSocket => kernel_unix::run(&options),
        Scenario::ForeignMmap => kernel_foreign::run(&options),
        Scenario::Killed => kernel_killed::run(&options),
        Scenario::Spin => kernel_spin::run_spin(&options),
        Scenario::Rwlock => kernel_spin::run_rwlock(&options),
        Scenario::AcpiSemaphore => kernel_spin::run_acpi(&options),
        Scenario::Flock => file_locks::run_flock(&options),
        Scenario::PosixLock => file_locks::run_posix(&options),
        Scenario::Busy => busy::run(&options),
        Scenario::Storm => storm::run(&options),
        Scenario::Swarm => swarm::run(&options),
        Scenario::TwoHolders => blame::run_two_holders(&options),
        Scenario::Chain => blame::run_chain(&options),
        Scenario::SlowHolder => blame::run_slow_holder(&options),
    }?;
    let name = options.scenario.to_possible_value().map(|value| value.get_name().to_string());
    truth::print_truth(&name.unwrap_or_default(), &outcome, start_ns, clock::now_ns())?;
    let code = if options.scenario == Scenario::Short { options.exit_code } else { 0 };
    Ok(ExitCode::from(code))
}

/// Tells that we are ready and waits for permission. `false`: there will be none.
fn pass_gate() -> Result<bool> {
    let mut tids: Vec<i32> = std::fs::read_dir("/proc/self/task")
        .context("read /proc/self/task")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    tids.sort();
    truth::print_line(&json!({ "event": "ready", "pid": std::process::id(), "tids": tids }))?;
    read_line()
}

/// Reads one line from standard input; `false` at its end. Unbuffered: what follows the line may be for a child.
pub fn read_line() -> Result<bool> {
    loop {
        let mut byte = 0u8;
        // SAFETY: at most one byte is written to `byte`.
        match unsafe { libc::read(libc::STDIN_FILENO, (&raw mut byte).cast(), 1) } {
            0 => return Ok(false),
            1 if byte == b'\n' => return Ok(true),
            1 => {}
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error).context("read from standard input");
                }
            }
        }
    }
}

/// Does the same in a child that is born only now, with our output as its output.
fn run_in_child() -> Result<ExitCode> {
    // The gate, if any, is behind us.
    let arguments = std::env::args_os().skip(1).filter(|arg| arg != "--children" && arg != "--gate");
    let mut command = Command::new(std::env::current_exe().context("find our own executable")?);
    command.args(arguments);
    // SAFETY: prctl is async-signal-safe, and the closure touches nothing else.
    unsafe {
        // A killed parent must not leave a hung child behind.
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let status = command.status().context("start the child")?;
    Ok(ExitCode::from(exit_code(status)))
}

/// The status of the child the way a shell reports it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
