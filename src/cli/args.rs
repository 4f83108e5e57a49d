//! What clap parses. Defaults come from `session::Config`; nothing here decides anything.

use crate::attach::catalog::{HOLD_BY_DEFAULT, HOLD_FAMILIES};
use crate::attach::plan::Only;
use crate::failure::{Exit, Failure};
use crate::model::Family;
use crate::session::{Config, Scope};
use crate::units;
use crate::unwind::UserStacks;
use anyhow::Result;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Which lock is slowing this down, and from which code.
#[derive(Debug, Parser)]
#[command(
    name = "lockprof",
    version,
    about = "A lock and futex contention profiler for Linux on eBPF",
    override_usage = "lockprof [OPTIONS] -p PID[,PID…] [DURATION]\n       \
                      lockprof [OPTIONS] -a [DURATION]\n       \
                      lockprof [OPTIONS] [DURATION] -- COMMAND [ARGS…]\n       \
                      lockprof doctor",
    after_help = "Exit status: 0 done, 2 usage, 4 failed, 77 cannot trace here;\n\
                  with COMMAND its own status, or 125 (lockprof failed), 126, 127 (COMMAND cannot run).",
    max_term_width = 100
)]
pub struct Args {
    /// How long: 10 (seconds), 500ms, 2m. Without it until Ctrl-C, or until the target ends.
    /// `doctor` instead shows what can be traced on this kernel, and why not the rest.
    #[arg(value_name = "DURATION|doctor")]
    pub what: Option<String>,

    /// Trace these processes, with all their threads, later ones too.
    #[arg(short, long, value_name = "PID[,PID…]", value_delimiter = ',')]
    pub pid: Vec<String>,

    /// Trace every process.
    #[arg(short, long)]
    pub all: bool,

    /// Run COMMAND and trace it and its children. It starts when every hook is in place.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,

    /// Count every acquisition and time every hold, contended or not: costs at every lock and unlock.
    /// FAMILY is mutex, rwsem, percpu-rwsem, rtmutex (these without =FAMILY), spinlock, rwlock, or all.
    #[arg(long, value_name = "FAMILY[,FAMILY…]", num_args = 0..=1, require_equals = true,
          value_delimiter = ',', default_missing_value = "default")]
    pub hold: Vec<String>,

    /// Trace waits for flock() and POSIX locks (fcntl) too: costs at every operation on such a lock.
    #[arg(long)]
    pub file_locks: bool,

    /// Write a flamegraph of wait time by stack; - for standard output.
    #[arg(long, value_name = "FILE.svg")]
    pub flamegraph: Option<PathBuf>,

    /// Write folded stacks (wait ns); - for standard output.
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,

    /// Write a flamegraph of the same time by the stacks of those who held the locks; - for standard output.
    #[arg(long, value_name = "FILE.svg")]
    pub blame_flamegraph: Option<PathBuf>,

    /// Write the holders' stacks folded (wait ns they caused); - for standard output.
    #[arg(long, value_name = "FILE")]
    pub blame_folded: Option<PathBuf>,

    /// Write everything as JSON (docs/json.md); - for standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the profile as the renderers take it: what flamegraphs/*/profile.json is made with.
    #[arg(long, value_name = "FILE", hide = true)]
    pub save_profile: Option<PathBuf>,

    /// Show the waits that are no contention instead: condition variables, joins, parked threads,
    /// one-time initialization, futexes of unknown kind. Without it only contention is shown.
    #[arg(long)]
    pub idle: bool,

    /// Rows of the table: locks, or the holders that made others wait (docs/blame.md).
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = ByArg::Lock, conflicts_with = "idle")]
    pub by: ByArg,

    /// How many rows the table has.
    #[arg(short = 'E', long, value_name = "N", default_value_t = crate::render::Options::default().max_rows)]
    pub entries: usize,

    /// Hook by this method only, instead of the best for each function.
    #[arg(long, value_enum, value_name = "METHOD")]
    pub backend: Option<BackendArg>,

    /// How user stacks are taken: auto unwinds by .eh_frame and needs no frame pointers.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = UserStackArg::Auto)]
    pub user_stack: UserStackArg,

    /// Room for this many waiting sites, stacks and waiting threads; a quarter of it for locks.
    #[arg(short = 'M', long, value_name = "N", default_value_t = Config::default().map_entries,
          value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub map_entries: u32,

    /// Bytes of the ring buffer for notices about processes; a power of two.
    #[arg(long, value_name = "BYTES", default_value_t = Config::default().notice_bytes, hide = true,
          value_parser = ring_buffer_bytes)]
    pub ring_bytes: u32,

    /// Colours: when standard output is a terminal, always, never. NO_COLOR is respected.
    #[arg(long, value_enum, default_value_t = ColorArg::Auto)]
    pub color: ColorArg,

    /// No progress on standard error.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ByArg {
    Lock,
    Holder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    Fentry,
    Kprobe,
    Tracepoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UserStackArg {
    Auto,
    /// By frame pointers.
    Fp,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorArg {
    Auto,
    Always,
    Never,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Doctor,
    Profile(Config),
}

fn ring_buffer_bytes(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && (4096..=1 << 28).contains(&bytes) => Ok(bytes),
        _ => Err("want a power of two from 4096 to 268435456".into()),
    }
}

impl Args {
    pub fn only(&self) -> Option<Only> {
        self.backend.map(|backend| match backend {
            BackendArg::Fentry => Only::Fentry,
            BackendArg::Kprobe => Only::Kprobe,
            BackendArg::Tracepoint => Only::Tracepoint,
        })
    }

    /// The one conversion to the library's terms.
    pub fn action(&self) -> Result<Action> {
        let usage = |message: String, hint: &str| Failure::new(Exit::Usage, message, hint);
        if self.what.as_deref() == Some("doctor") {
            return Ok(Action::Doctor);
        }
        let duration = match &self.what {
            Some(text) => Some(parse_duration(text)?),
            None => None,
        };
        let scopes = [!self.pid.is_empty(), self.all, !self.command.is_empty()];
        let scope = match scopes {
            [true, false, false] => Scope::Pids(self.pids()?),
            [false, true, false] => Scope::System,
            [false, false, true] => Scope::Command(self.command.clone()),
            [false, false, false] => {
                return Err(usage(
                    "Nothing to trace".into(),
                    "say what: -p PID, -a for the whole system, or -- COMMAND",
                )
                .into());
            }
            _ => {
                return Err(
                    usage("-p, -a and -- COMMAND exclude each other".into(), "give one of them").into()
                );
            }
        };
        let outputs = [
            &self.flamegraph,
            &self.folded,
            &self.blame_flamegraph,
            &self.blame_folded,
            &self.json,
            &self.save_profile,
        ];
        if outputs.iter().filter(|path| path.as_ref().is_some_and(|path| path.as_os_str() == "-")).count() > 1
        {
            return Err(usage(
                "Only one output can go to standard output".into(),
                "give the others a file name",
            )
            .into());
        }
        Ok(Action::Profile(Config {
            scope,
            duration,
            only: self.only(),
            hold: self.hold_families()?,
            file_locks: self.file_locks,
            map_entries: self.map_entries,
            notice_bytes: self.ring_bytes,
            user_stacks: match self.user_stack {
                UserStackArg::Auto => Config::default().user_stacks,
                UserStackArg::Fp => UserStacks::FramePointers,
                UserStackArg::Off => UserStacks::Off,
            },
        }))
    }

    /// In the order of the catalog, each once.
    fn hold_families(&self) -> Result<Vec<Family>> {
        let mut wanted = Vec::new();
        for word in &self.hold {
            match word.trim() {
                "default" => wanted.extend(HOLD_BY_DEFAULT),
                "all" => wanted.extend(HOLD_FAMILIES),
                "spin" => wanted.push(Family::Spinlock),
                name => match HOLD_FAMILIES.iter().find(|family| family.name() == name) {
                    Some(family) => wanted.push(*family),
                    None => {
                        let names: Vec<&str> = HOLD_FAMILIES.iter().map(|family| family.name()).collect();
                        return Err(Failure::new(
                            Exit::Usage,
                            format!("'{name}' is no family whose holds can be traced"),
                            format!("--hold=FAMILY[,FAMILY] takes {}, all", names.join(", ")),
                        )
                        .into());
                    }
                },
            }
        }
        Ok(HOLD_FAMILIES.iter().copied().filter(|family| wanted.contains(family)).collect())
    }

    fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for text in &self.pid {
            match text.trim().parse::<u32>() {
                Ok(pid) if pid > 0 && i32::try_from(pid).is_ok() => pids.push(pid),
                _ => {
                    return Err(Failure::new(
                        Exit::Usage,
                        format!("'{text}' is no process id"),
                        "pgrep NAME prints the ids of a program's processes",
                    )
                    .into());
                }
            }
        }
        pids.sort_unstable();
        pids.dedup();
        if pids.contains(&std::process::id()) {
            return Err(Failure::new(
                Exit::Usage,
                "lockprof does not trace itself",
                "give another process's id",
            )
            .into());
        }
        Ok(pids)
    }
}

fn parse_duration(text: &str) -> Result<Duration> {
    units::parse_duration(text).map_err(|why| {
        Failure::new(
            Exit::Usage,
            format!("'{text}' is neither a duration nor 'doctor': {why}"),
            "a duration is 10 (seconds), 500ms, 2m; a command comes after --",
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(line: &str) -> Result<Action> {
        Args::try_parse_from(std::iter::once("lockprof").chain(line.split_whitespace()))?.action()
    }

    fn config(line: &str) -> Config {
        match action(line) {
            Ok(Action::Profile(config)) => config,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_forms_of_the_manual_parse() {
        assert_eq!(config("-p 42 10").scope, Scope::Pids(vec![42]));
        assert_eq!(config("-p 42 10").duration, Some(Duration::from_secs(10)));
        assert_eq!(config("-p 42,7").scope, Scope::Pids(vec![7, 42]));
        assert_eq!(config("-a 500ms").duration, Some(Duration::from_millis(500)));
        assert_eq!(config("2m -- ls -l").scope, Scope::Command(vec!["ls".into(), "-l".into()]));
        assert_eq!(action("doctor").unwrap(), Action::Doctor);
    }

    #[test]
    fn defaults_are_those_of_the_library() {
        let expected = Config { scope: Scope::System, ..Config::default() };
        assert_eq!(config("-a"), expected);
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in
            ["", "10", "-a -p 1", "-p 1 -- ls", "-a recrod", "-p 0", "-p x", "-p -1", "-a 0", "-a 10x"]
        {
            let exit = match action(line) {
                Ok(action) => panic!("'{line}' was taken: {action:?}"),
                Err(err) => err.downcast_ref::<Failure>().map(|failure| failure.exit),
            };
            assert!(matches!(exit, Some(Exit::Usage) | None), "'{line}'");
        }
    }

    #[test]
    fn hold_takes_families_and_has_a_default() {
        assert_eq!(config("-a").hold, []);
        assert_eq!(config("-a --hold").hold, HOLD_BY_DEFAULT);
        assert_eq!(config("-a --hold 10").duration, Some(Duration::from_secs(10)));
        assert_eq!(config("-a --hold=spin,mutex").hold, [Family::Mutex, Family::Spinlock]);
        assert_eq!(config("-a --hold=all").hold, HOLD_FAMILIES);
        assert!(action("-a --hold=futex").is_err());
    }

    #[test]
    fn two_outputs_cannot_share_standard_output() {
        assert!(action("-a --json - --folded -").is_err());
        assert!(action("-a --json - --folded f").is_ok());
        assert!(action("-a --blame-flamegraph - --blame-folded -").is_err());
    }

    #[test]
    fn rows_are_locks_or_holders() {
        let by = |line: &str| {
            let words = std::iter::once("lockprof").chain(line.split_whitespace());
            Args::try_parse_from(words).map(|args| args.by)
        };
        assert_eq!(by("-a").unwrap(), ByArg::Lock);
        assert_eq!(by("-a --by holder").unwrap(), ByArg::Holder);
        // Nobody holds what an idle thread waits for.
        assert!(by("-a --by holder --idle").is_err());
        assert!(by("-a --idle").is_ok());
    }
}
