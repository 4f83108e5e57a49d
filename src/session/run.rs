//! One run, from the first look at the kernel to the raw capture.

use super::clock::monotonic_ns;
use super::config::{Config, Scope};
use super::early::Early;
use super::memory::MemoryLook;
use super::onlookers::{self, Onlookers};
use super::runtimes;
use super::signals::StopRequest;
use super::target::{self, Held, Running, Watched};
use crate::aggregate;
use crate::attach::plan::{Plan, Wishes};
use crate::bpf::{Settings, Targets, Tracer};
use crate::futexes::Runtimes;
use crate::kernel::Facts;
use crate::model::{EndReason, Meta, Profile, Target, TargetKind};
use crate::naming::Memory;
use crate::symbolize::{Images, KernelSymbols};
use crate::unwind::{Tables, UserStacks};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the run tells while it goes on; the command line shows it.
pub trait Progress {
    /// Every hook is in place and counting.
    fn started(&mut self, plan: &Plan);
    fn elapsed(&mut self, elapsed: Duration);
    /// The measuring is over; the rest is reading and naming.
    fn stopped(&mut self);
}

/// A finished run.
pub struct Outcome {
    /// Addresses only.
    pub profile: Profile,
    /// The files to name user frames with.
    pub images: Images,
    /// The kernel's symbols, with those of the hooks that were in place.
    pub kernel: KernelSymbols,
    /// What the traced processes are made of, to tell their futex waits apart.
    pub runtimes: Runtimes,
    /// What the kernel's memory was made of, to name its locks.
    pub memory: Memory,
    /// The command, when it outlives the profile: report first, then [`CommandLeft::wait`].
    pub command: Option<CommandLeft>,
}

/// A command that goes on after its profile ended.
pub struct CommandLeft {
    running: Running,
    stop: StopRequest,
    asked: bool,
}

impl CommandLeft {
    /// Waits for its end and returns its exit status; a signal to us is passed on.
    pub fn wait(mut self) -> i32 {
        loop {
            if let Some(status) = self.running.try_status() {
                return status;
            }
            if self.stop.requested() && !self.asked {
                // Ctrl-C reached it through the terminal already; SIGTERM reaches only us.
                self.running.signal(libc::SIGTERM);
                self.asked = true;
            }
            std::thread::sleep(TICK);
        }
    }
}

/// How often the target, the clock and the signals are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often the mappings of all known processes are read again.
const REFRESH: Duration = Duration::from_millis(1000);

/// Room for unwind rows: 8 MiB; a C program needs 30 000, a JVM ten times that.
const UNWIND_ROWS: u32 = 1 << 20;
/// Processes with unwind tables at one time: 6 MiB.
const UNWIND_PROCESSES: u32 = 1024;

enum Watch {
    System,
    Pids(Vec<Watched>),
    Command(Running),
}

pub fn run(config: &Config, facts: &Facts, progress: &mut dyn Progress) -> Result<Outcome> {
    let follow_forks = matches!(config.scope, Scope::Command(_));
    let wishes =
        Wishes { only: config.only, hold: config.hold.clone(), file_locks: config.file_locks, follow_forks };
    let mut plan = Plan::new(facts, &wishes);

    // Before the load: a signal during the seconds it takes must not leave half a run.
    let stop = StopRequest::install()?;
    let mut held = None;
    let mut program = None;
    let mut watched = Vec::new();
    let (targets, description) = match &config.scope {
        Scope::System => (Targets::All, describe(TargetKind::System, &[], &[])),
        Scope::Pids(pids) => {
            for pid in pids {
                watched.push(Watched::open(*pid)?);
            }
            (Targets::Pids(pids.clone()), describe(TargetKind::Pids, pids, &[]))
        }
        Scope::Command(command) => {
            program = Some(target::find_command(&command[0])?);
            let child = Held::spawn(command)?;
            let pid = child.pid;
            held = Some(child);
            (Targets::Pids(vec![pid]), describe(TargetKind::Command, &[pid], command))
        }
    };
    let with_tables = config.user_stacks == UserStacks::Tables;
    // The whole system maps far more files than one program does.
    let rows = if config.scope == Scope::System { 4 * UNWIND_ROWS } else { UNWIND_ROWS };
    let mut onlookers = Onlookers::new(with_tables.then(|| Tables::new(rows as usize)));
    // Reading their tables can take a while, and so can loading: as much as can be before the load.
    let pids: Vec<u32> = watched.iter().map(|watched| watched.pid).collect();
    if !matches!(config.scope, Scope::Pids(_)) {
        onlookers.prepare(program.as_deref());
    }
    onlookers.look_at(pids.iter().copied(), None)?;
    let memory = MemoryLook::begin();
    let settings = Settings {
        slabs: memory.slab_lookup(),
        targets,
        follow_forks,
        map_entries: config.map_entries,
        notice_bytes: config.notice_bytes,
        user_stacks: config.user_stacks,
        unwind_rows: if with_tables { rows } else { 1 },
        unwind_processes: match &config.scope {
            _ if !with_tables => 1,
            Scope::Pids(pids) => pids.len() as u32,
            Scope::Command(_) | Scope::System => UNWIND_PROCESSES,
        },
    };
    let mut tracer = Tracer::start(&mut plan, facts, &settings)?;
    onlookers.look_at(pids.iter().copied(), Some(&mut tracer))?;
    // After the hooks: a thread born now is seen by them.
    let early = match &held {
        Some(held) => Early::of_command(held.pid, &mut tracer)?,
        None => Early::of_processes(&config.scope, facts, &mut onlookers, &mut tracer)?,
    };

    let start_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let start_ns = monotonic_ns();
    tracer.set_epoch(start_ns)?;
    early.add(&mut tracer, start_ns)?;
    tracer.activate()?;
    early.forget_those_who_went_on(&mut tracer)?;
    let mut watch = match held {
        Some(held) => Watch::Command(held.release()?),
        None if watched.is_empty() => Watch::System,
        None => Watch::Pids(watched),
    };
    progress.started(&plan);
    let ended_by = wait(config, &mut tracer, &mut watch, &stop, &mut onlookers, start_ns, progress)?;
    tracer.deactivate()?;
    let stop_ns = monotonic_ns();
    progress.stopped();
    let notices = tracer.poll(Duration::ZERO)?;
    onlookers.attend(notices, &mut tracer)?;

    let mut capture = tracer.collect(stop_ns)?;
    capture.start_ns = start_ns;
    // Unreadable symbols are no reason to lose a profile: frames stay addresses, and that is counted.
    let kernel = KernelSymbols::load().unwrap_or_default();
    let memory = memory.end(std::mem::take(&mut capture.slab_places));
    capture.losses.extend(onlookers.losses());
    onlookers::leave_out_the_dead(&mut capture);
    // Detaching takes seconds on some kernels, and whoever is still alive should be free of us now.
    drop(tracer);
    onlookers.refresh(None)?;
    let unknown = capture.sites.iter().map(|(site, _)| site.pid);
    let unknown: BTreeSet<u32> = unknown.filter(|pid| onlookers.images.comm(*pid).is_none()).collect();
    onlookers.look_at(unknown, None)?;

    let mut description = description;
    let mut command = None;
    if let Watch::Command(mut running) = watch {
        description.exit_status = running.try_status();
        if description.exit_status.is_none() {
            command = Some(CommandLeft { running, stop, asked: false });
        }
    }
    let meta = Meta {
        version: env!("CARGO_PKG_VERSION").to_string(),
        command: std::env::args().collect(),
        hostname: read_trimmed("/proc/sys/kernel/hostname"),
        kernel: facts.release.clone(),
        arch: facts.arch.clone(),
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        start_unix_s,
        duration_ns: stop_ns - start_ns,
        target: description,
        ended_by,
        hold: !config.hold.is_empty(),
        hold_families: config.hold.clone(),
    };
    let lines = plan.hooks.iter().map(|hook| hook.to_line()).collect();
    let pids = capture.sites.iter().map(|(site, _)| site.pid);
    let pids = pids.chain(capture.in_flight.iter().map(|wait| wait.site.pid)).collect();
    Ok(Outcome {
        runtimes: runtimes::of_processes(&onlookers.images, &pids),
        profile: aggregate::profile(capture, meta, lines),
        images: onlookers.images,
        kernel,
        memory,
        command,
    })
}

fn wait(
    config: &Config,
    tracer: &mut Tracer,
    watch: &mut Watch,
    stop: &StopRequest,
    onlookers: &mut Onlookers,
    start_ns: u64,
    progress: &mut dyn Progress,
) -> Result<EndReason> {
    let mut refreshed = Duration::ZERO;
    loop {
        let elapsed = Duration::from_nanos(monotonic_ns() - start_ns);
        progress.elapsed(elapsed);
        if stop.requested() {
            return Ok(EndReason::Signal);
        }
        let gone = match watch {
            Watch::System => false,
            Watch::Pids(watched) => watched.iter().all(Watched::is_gone),
            Watch::Command(running) => running.try_status().is_some(),
        };
        if gone {
            return Ok(EndReason::TargetExited);
        }
        let left = match config.duration {
            Some(duration) if elapsed >= duration => return Ok(EndReason::Duration),
            Some(duration) => (duration - elapsed).min(TICK),
            None => TICK,
        };
        let notices = tracer.poll(left.min(onlookers.next_look()))?;
        onlookers.attend(notices, tracer)?;
        if elapsed - refreshed > REFRESH {
            refreshed = elapsed;
            onlookers.refresh(Some(tracer))?;
        }
    }
}

fn describe(kind: TargetKind, pids: &[u32], command: &[String]) -> Target {
    Target {
        kind,
        pids: pids.to_vec(),
        comms: pids
            .iter()
            .map(|pid| match command.first() {
                // Held before exec, it still has our own name.
                Some(command) => command.rsplit('/').next().unwrap_or(command).chars().take(15).collect(),
                None => target::comm(*pid).unwrap_or_default(),
            })
            .collect(),
        command: command.to_vec(),
        exit_status: None,
    }
}

fn read_trimmed(path: &str) -> String {
    std::fs::read_to_string(path).context("").map_or_else(|_| String::new(), |text| text.trim().to_string())
}
