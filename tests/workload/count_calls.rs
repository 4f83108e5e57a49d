//! `count-calls`: counts calls of kernel functions without BPF and without any of the profiler's code.
//!
//! For each function a kprobe event of tracefs, with a perf counter on it that never samples: exact, and per
//! process if asked. No kernel here has CONFIG_FUNCTION_PROFILER, and 5.10 has no hist triggers. `missed` is
//! the kernel's own count of hits that it could not handle (a probe hit inside another probe's handler).

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::{Value, json};

use crate::perf::{ENABLE_ON_EXEC, INHERIT, PerfEventAttr, TYPE_TRACEPOINT};
use crate::truth::print_line;

/// Counts calls of kernel functions, by kprobes and perf counters, and prints the counts as JSON.
#[derive(Parser)]
#[command(name = "lockprof-workload count-calls")]
struct CountOptions {
    /// Kernel functions; those that this kernel has not are reported with "hits": null
    #[arg(required = true, value_delimiter = ',')]
    functions: Vec<String>,
    /// Only while this process runs, with the threads and children it makes from now on
    #[arg(long, required_unless_present_any = ["all", "command"], conflicts_with_all = ["all", "command"])]
    pid: Option<i32>,
    /// Whoever runs, interrupts included
    #[arg(long)]
    all: bool,
    /// Count for so long, instead of until a line on standard input or its end
    #[arg(long, conflicts_with = "command")]
    seconds: Option<f64>,
    /// Count until this command ends, and without --all only it and its children. Its output comes first
    #[arg(last = true)]
    command: Vec<String>,
}

/// The arguments are those of the program, `count-calls` included.
pub fn run(arguments: Vec<std::ffi::OsString>) -> Result<ExitCode> {
    let options = CountOptions::parse_from(arguments.into_iter().skip(1));
    let tracefs = find_tracefs()?;
    let whom =
        if options.all { Whom::Everybody } else { options.pid.map_or(Whom::NextCommand, Whom::Process) };
    let probes: Vec<Result<Probe>> =
        options.functions.iter().map(|function| Probe::new(&tracefs, function, &whom)).collect();
    let mut code = ExitCode::SUCCESS;
    if let [program, arguments @ ..] = options.command.as_slice() {
        let status =
            Command::new(program).args(arguments).status().with_context(|| format!("run {program}"))?;
        code = ExitCode::from(crate::exit_code(status));
    } else {
        print_line(&json!({ "event": "ready", "pid": std::process::id() }))?;
        match options.seconds {
            Some(seconds) => std::thread::sleep(Duration::try_from_secs_f64(seconds).context("--seconds")?),
            None => drop(crate::read_line()?),
        }
    }
    let mut rows = Vec::new();
    for (function, probe) in options.functions.iter().zip(&probes) {
        rows.push(match probe {
            Ok(probe) => probe.row(&tracefs)?,
            Err(error) => {
                json!({ "function": function, "hits": null, "missed": null, "why": format!("{error:#}") })
            }
        });
    }
    print_line(&json!({ "event": "counts", "functions": rows }))?;
    Ok(code)
}

enum Whom {
    Everybody,
    Process(i32),
    /// What this process executes next, not this process itself.
    NextCommand,
}

struct Probe {
    function: String,
    event: String,
    definitions: PathBuf,
    counters: Vec<File>,
}

const GROUP: &str = "lockprof_count";

impl Probe {
    fn new(tracefs: &Path, function: &str, whom: &Whom) -> Result<Probe> {
        let name: String =
            function.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        // More than one of us may count at the same time.
        let event = format!("{name}_{}", std::process::id());
        let definitions = tracefs.join("kprobe_events");
        define(&definitions, &format!("p:{GROUP}/{event} {function}"))
            .with_context(|| format!("no kprobe on {function}"))?;
        let mut probe = Probe { function: function.to_string(), event, definitions, counters: Vec::new() };
        let id = tracefs.join("events").join(GROUP).join(&probe.event).join("id");
        let id = fs::read_to_string(&id).with_context(|| format!("read {}", id.display()))?;
        let id: u64 = id.trim().parse().context("the id of the event")?;
        probe.counters = counters(id, whom).with_context(|| format!("count {function}"))?;
        Ok(probe)
    }

    fn row(&self, tracefs: &Path) -> Result<Value> {
        let mut hits = 0;
        for mut counter in self.counters.iter() {
            let mut number = [0; 8];
            counter.read_exact(&mut number).context("read a counter")?;
            hits += u64::from_ne_bytes(number);
        }
        // Lines are: event, hits, misses.
        let profile = fs::read_to_string(tracefs.join("kprobe_profile")).context("read kprobe_profile")?;
        let line = profile.lines().find(|line| line.split_whitespace().next() == Some(&self.event));
        let missed = line.and_then(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        Ok(json!({ "function": self.function, "hits": hits, "missed": missed }))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.counters.clear();
        // Nothing depends on the clean-up, and there is nobody to tell.
        let _ = define(&self.definitions, &format!("-:{GROUP}/{}", self.event));
    }
}

fn define(definitions: &Path, line: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .open(definitions)
        .with_context(|| format!("open {} (no kprobes here, or not root)", definitions.display()))?;
    Ok(file.write_all(line.as_bytes())?)
}

fn counters(id: u64, whom: &Whom) -> Result<Vec<File>> {
    let open = |flags, pid, cpu| {
        let attr = PerfEventAttr { kind: TYPE_TRACEPOINT, config: id, flags, ..PerfEventAttr::default() };
        attr.open(pid, cpu).map(|fd: OwnedFd| File::from(fd)).context("perf_event_open")
    };
    match whom {
        Whom::Everybody => online_cpus()?.into_iter().map(|cpu| open(0, -1, cpu)).collect(),
        Whom::NextCommand => Ok(vec![open(ENABLE_ON_EXEC | INHERIT, 0, -1)?]),
        Whom::Process(pid) => {
            let tasks = format!("/proc/{pid}/task");
            let tids = fs::read_dir(&tasks).with_context(|| format!("no process {pid}"))?;
            let tids = tids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
            tids.map(|tid| open(INHERIT, tid, -1)).collect()
        }
    }
}

/// From a list such as `0-2,5`.
fn online_cpus() -> Result<Vec<i32>> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").context("read the list of CPUs")?;
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (i32, i32) = (first.parse().context("a CPU")?, last.parse().context("a CPU")?);
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

fn find_tracefs() -> Result<PathBuf> {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    match places.iter().map(Path::new).find(|place| place.join("kprobe_events").exists()) {
        Some(place) => Ok(place.to_path_buf()),
        None => {
            bail!("count-calls: no kprobe_events in {} (no kprobes here, or no tracefs)", places.join(" or "))
        }
    }
}
