//! Running lockprof and the workload beside each other, always waiting for a condition.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// One budget for everything that is waited for; guests under software emulation are slow.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The binary under test; the guests use a copy, so that a build meanwhile does not pull it away.
fn lockprof_path() -> PathBuf {
    std::env::var_os("LOCKPROF_BIN").map_or_else(|| env!("CARGO_BIN_EXE_lockprof").into(), PathBuf::from)
}

pub fn lockprof() -> Command {
    Command::new(lockprof_path())
}

/// The example binary beside the one under test.
pub fn workload_path() -> PathBuf {
    let path = lockprof_path().with_file_name("examples").join("lockprof-workload");
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

/// A program of tests/futexes; beside the workload, and built once where this is no copy for guests.
pub fn futexes_path(program: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let dir = lockprof_path().with_file_name("examples");
    if !in_guest() {
        BUILT.get_or_init(|| {
            let build = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/futexes/build");
            let status = Command::new(build).arg(&dir).status().expect("a shell script runs");
            assert!(status.success(), "{build} fails");
        });
    }
    let path = dir.join(program);
    assert!(path.exists(), "{} is missing: tests/vm/binaries", path.display());
    path
}

/// Copies of everything, on a kernel of tests/vm.
pub fn in_guest() -> bool {
    std::env::var_os("LOCKPROF_BIN").is_some()
}

/// A path for one output file; tests run in one process and in guests whose root is read-only.
pub fn scratch(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let dir = std::env::temp_dir().join(format!("lockprof-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
    dir.join(format!("{}-{name}", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Auto,
    Fentry,
    Kprobe,
    Tracepoint,
}

pub fn method() -> Method {
    match std::env::var("LOCKPROF_BACKEND").as_deref() {
        Err(_) | Ok("") => Method::Auto,
        Ok("fentry") => Method::Fentry,
        Ok("kprobe") => Method::Kprobe,
        Ok("tracepoint") => Method::Tracepoint,
        Ok(other) => panic!("LOCKPROF_BACKEND={other} is no method"),
    }
}

pub fn method_args() -> Vec<String> {
    match method() {
        Method::Auto => vec![],
        method => vec!["--backend".into(), format!("{method:?}").to_lowercase()],
    }
}

/// (major, minor) of the running kernel.
pub fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs is mounted");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The machine this is developed on has neither fentry nor kprobes.
pub fn only_tracepoints() -> bool {
    !std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists()
}

/// Functions are hooked, not only tracepoints.
pub fn hooks_functions() -> bool {
    !only_tracepoints() && method() != Method::Tracepoint
}

/// PREEMPT_RT: every sleeping lock is made of an rt_mutex, whose slow path nothing but the tracepoints
/// shows (it is inlined where it is used).
pub fn realtime() -> bool {
    std::fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Mutex,
    Rwsem,
    Spinlock,
    Semaphore,
    PercpuRwsem,
    Futex,
}

/// What the facts (kernels.md) say a method shows on this kernel. Typed by hand on purpose: the
/// tests hold lockprof's plan against it.
pub fn should_see(family: Family) -> bool {
    let tracepoints = kernel() >= (5, 19);
    let functions = !only_tracepoints();
    match (method(), family) {
        (Method::Tracepoint, Family::Futex) => true,
        (Method::Tracepoint, _) => tracepoints,
        // 5.10's futex functions are static and its verifier refuses them (EACCES).
        (Method::Fentry, Family::Futex) => functions && kernel() >= (5, 16),
        (Method::Kprobe, Family::Futex) => functions,
        // PREEMPT_RT has other functions for these, and their slow paths can not be hooked.
        (Method::Fentry | Method::Kprobe, Family::Mutex | Family::Rwsem) => functions && !realtime(),
        (Method::Fentry | Method::Kprobe, _) => functions,
        (Method::Auto, Family::Futex) => true,
        (Method::Auto, _) => tracepoints || functions && !realtime(),
    }
}

/// The function that wakes is hooked, or the system call is seen.
pub fn should_see_wakes(futex_kind: &str) -> bool {
    // 5.10's futex_unlock_pi is inlined.
    futex_kind != "PI mutex" || !hooks_old_futex_functions()
}

/// 5.10 has futex_wake_op inlined: who wakes is seen, not from where.
pub fn should_see_where_wakes_come_from(scenario: &str) -> bool {
    scenario != "raw-wake-op" || !hooks_old_futex_functions()
}

fn hooks_old_futex_functions() -> bool {
    !only_tracepoints() && method() != Method::Tracepoint && kernel() < (5, 16)
}

/// Whether releases of contended locks of a kind are seen without --hold, by what kallsyms of the matrix say.
pub fn should_see_releases(kind: &str) -> bool {
    // All of them exist under a name like rwsem_wake.isra.0 only, which fentry does not find.
    let functions = !only_tracepoints() && matches!(method(), Method::Auto | Method::Kprobe) && !realtime();
    match kind {
        "mutex" => functions,
        // 5.10 inlines rwsem_wake().
        "rwsem:R" | "rwsem:W" => functions && kernel() >= (5, 11),
        _ => unreachable!("{kind} has no truth about releases"),
    }
}

/// The workload, with its gate closed.
pub struct Workload {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
    pub pid: u32,
}

impl Workload {
    pub fn gated(args: &[&str]) -> Workload {
        Workload::gated_program(&workload_path(), args)
    }

    /// Any program that speaks the workload's protocol.
    pub fn gated_program(program: &Path, args: &[&str]) -> Workload {
        let mut child = Command::new(program)
            .args(args)
            .arg("--gate")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the workload starts");
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let ready = read_event(&mut lines, "ready");
        let pid = ready["pid"].as_u64().expect("ready has a pid") as u32;
        Workload { child, stdin, lines, pid }
    }

    pub fn open_gate(&mut self) {
        self.say_line();
    }

    pub fn say_line(&mut self) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(b"go\n").expect("the workload reads its input");
        stdin.flush().expect("the workload reads its input");
    }

    pub fn event(&mut self, name: &str) -> Value {
        read_event(&mut self.lines, name)
    }

    pub fn finish(mut self) -> Value {
        let truth = self.event("truth");
        drop(self.stdin.take());
        assert!(self.child.wait().expect("the workload ends").success());
        truth
    }

    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn read_event(lines: &mut impl BufRead, name: &str) -> Value {
    loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line).expect("the workload's output is text");
        assert!(read > 0, "the workload ended without saying {name}");
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && event["event"] == name
        {
            return event;
        }
    }
}

/// lockprof, tracing.
pub struct Profiler {
    pub child: Child,
    report: PathBuf,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Profiler {
    /// Returns when every hook is in place. `@REPORT@` in an argument is the report's path.
    #[expect(clippy::zombie_processes, reason = "finish() waits for it")]
    pub fn start(args: &[&str]) -> Profiler {
        let report = scratch("report.json");
        let mut child = lockprof()
            .args(method_args())
            .arg("--json")
            .arg(&report)
            .args(args.iter().map(|arg| arg.replace("@REPORT@", &report.display().to_string())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("lockprof starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let read = stderr.read_line(&mut line).expect("stderr is text");
            said.push_str(&line);
            if read == 0 {
                let status = child.wait().expect("it is our child");
                panic!("lockprof ended before it traced, with {status}:\n{said}");
            }
            if line.starts_with("lockprof: tracing") {
                return Profiler { child, report, stderr };
            }
        }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: no pointers; the child is not reaped yet.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits for its end and reads its report.
    pub fn finish(mut self) -> Report {
        let status = wait(&mut self.child, "lockprof");
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).expect("stderr is text");
        let mut table = String::new();
        let stdout = self.child.stdout.as_mut().expect("stdout is a pipe");
        stdout.read_to_string(&mut table).expect("the table is text");
        let text = std::fs::read_to_string(&self.report).unwrap_or_default();
        assert!(!text.is_empty(), "no report; lockprof said: {stderr}\n{table}");
        let json = serde_json::from_str(&text).expect("the report is JSON");
        Report { json, table, status }
    }
}

pub fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub struct Report {
    pub json: Value,
    pub table: String,
    pub status: ExitStatus,
}

impl Report {
    pub fn locks(&self, kind: &str) -> Vec<&Value> {
        let locks = self.json["locks"].as_array().expect("locks is a list");
        locks.iter().filter(|lock| lock["type"] == kind).collect()
    }

    /// The lock of a kind that waited longest.
    pub fn lock(&self, kind: &str) -> &Value {
        self.locks(kind).first().unwrap_or_else(|| panic!("no {kind} in:\n{}", self.table))
    }

    /// What the workload said, where it was lockprof's command and shared its standard output.
    pub fn truth(&self) -> Value {
        read_event(&mut self.table.as_bytes(), "truth")
    }

    /// The same of several workloads.
    pub fn truths(&self) -> Vec<Value> {
        let lines = self.table.lines().filter(|line| line.starts_with('{'));
        let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["event"] == "truth").collect()
    }

    /// The futex the workload made contended: not its main thread's join, which waits for longer.
    pub fn futex(&self, truth: &Value) -> &Value {
        let (pid, addr) = (&truth["pid"], &truth["locks"][0]["addr"]);
        self.find_futex(truth).unwrap_or_else(|| panic!("no futex {addr} of {pid} in:\n{}", self.table))
    }

    pub fn sees_futex(&self, truth: &Value) -> bool {
        self.find_futex(truth).is_some()
    }

    fn find_futex(&self, truth: &Value) -> Option<&Value> {
        let (pid, addr) = (&truth["pid"], &truth["locks"][0]["addr"]);
        let mut locks = self.json["locks"].as_array().expect("locks is a list").iter();
        locks.find(|lock| lock["family"] == "futex" && lock["pid"] == *pid && lock["addr"] == *addr)
    }

    pub fn loss(&self, reason: &str) -> u64 {
        self.known_loss(reason).unwrap_or_else(|| panic!("no loss is called {reason}"))
    }

    /// `None`: this kernel does not tell.
    pub fn known_loss(&self, reason: &str) -> Option<u64> {
        let losses = self.json["losses"].as_array().expect("losses is a list");
        losses.iter().find(|loss| loss["reason"] == reason)?["count"].as_u64()
    }

    /// Program runs the kernel skipped, each of which can cost one wait, begin or end.
    ///
    /// fentry, kprobe.multi and (7.x) raw tracepoint programs can be preempted; while one is, the
    /// same program does not run for another task on that CPU. Under software emulation a program
    /// takes milliseconds and this happens; 0 is usual, and then counts must be equal.
    pub fn skipped_runs(&self) -> u64 {
        self.loss("recursion_misses")
    }

    /// `field` of a row says `truth`, less what the kernel is known to have skipped.
    pub fn assert_counted(&self, row: &Value, field: &str, truth: u64) {
        let got = number(row, field);
        let least = truth.saturating_sub(self.skipped_runs());
        assert!((least..=truth).contains(&got), "{field} is {got}, truth {truth}\n{}", self.table);
    }

    /// Some hook is said to be blind for the family, or a tracepoint to serve it.
    pub fn says_blind(&self, family: &str) -> bool {
        let plan = self.json["plan"].as_array().expect("plan is a list");
        plan.iter().any(|hook| {
            hook["families"].as_array().is_some_and(|families| families.iter().any(|f| f == family))
                && hook["backend"].is_null()
                && hook["blind"].is_string()
        })
    }
}

pub fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} is no number in {value}"))
}

/// Profiles one gated scenario by process id.
///
/// Again, at most twice, when the kernel skipped programs (`Report::skipped_runs`): such a run proves less.
/// The last one is judged, with what it lost.
pub fn profile_scenario(workload_args: &[&str], lockprof_args: &[&str]) -> (Value, Report) {
    let run = || {
        let mut workload = Workload::gated(workload_args);
        let pid = workload.pid.to_string();
        let mut args = vec!["-p", &pid];
        args.extend(lockprof_args);
        let profiler = Profiler::start(&args);
        workload.open_gate();
        let truth = workload.finish();
        (truth, profiler.finish())
    };
    again_when_skipped(run, |(_, report)| report)
}

pub fn again_when_skipped<R>(run: impl Fn() -> R, report_of: impl Fn(&R) -> &Report) -> R {
    for _ in 0..2 {
        let result = run();
        if report_of(&result).skipped_runs() == 0 {
            return result;
        }
    }
    run()
}

/// What the workload knows of some waits.
pub struct Truth {
    pub waits: u64,
    pub total_ns: u64,
    pub shortest_ns: u64,
    pub longest_ns: u64,
}

/// The sum of `waits` waits: within 5 %, or two scheduler ticks of 4 ms for each wait where that is more, five
/// ticks in a guest under software emulation: the workload's own clock reading after a wait comes when its
/// thread is scheduled again.
///
/// A wait the kernel skipped (`Report::skipped_runs`) is missing from the sum, and nobody knows which:
/// it was no shorter than the shortest and no longer than the longest.
pub fn assert_close(got: u64, waits: u64, truth: &Truth, what: &str) {
    let ticks = truth.waits * if only_tracepoints() { 8_000_000 } else { 20_000_000 };
    let allowed = (truth.total_ns / 20).max(ticks);
    let missing = truth.waits.saturating_sub(waits);
    let least = truth.total_ns.saturating_sub(missing * truth.longest_ns + allowed);
    let most = (truth.total_ns + allowed).saturating_sub(missing * truth.shortest_ns);
    assert!(
        (least..=most).contains(&got),
        "{what}: {got} ns in {waits} waits, truth {} ns in {}, so {least} to {most} is allowed",
        truth.total_ns,
        truth.waits
    );
}

/// `lockprof-workload count-calls`: the entries of kernel functions by one process, counted with kprobe
/// events and perf counters and nothing of lockprof's.
pub struct Counter {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
}

impl Counter {
    /// Returns when it counts.
    pub fn start(functions: &[&str], pid: u32) -> Counter {
        let mut child = Command::new(workload_path())
            .args(["count-calls", &functions.join(","), "--pid", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the workload starts");
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        read_event(&mut lines, "ready");
        Counter { child, stdin, lines }
    }

    /// (entries, entries of anybody that the kernel could not count) of each function, in order.
    pub fn finish(mut self) -> Vec<(u64, u64)> {
        drop(self.stdin.take());
        let counts = read_event(&mut self.lines, "counts");
        assert!(self.child.wait().expect("the counter ends").success());
        let rows = counts["functions"].as_array().expect("a list");
        rows.iter().map(|row| (number(row, "hits"), number(row, "missed"))).collect()
    }
}
