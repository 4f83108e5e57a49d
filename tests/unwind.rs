//! User stacks of whole runs: complete, and with the right frames, without frame pointers.
//!
//! Needs root and a kernel that takes BPF programs; gcc for programs with difficult frames.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

const HARD_CASES: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t contended = PTHREAD_MUTEX_INITIALIZER;
static volatile int sink;

__attribute__((noinline)) int wait_for_lock(int n)
{
	pthread_mutex_lock(&contended);
	sink += n;
	pthread_mutex_unlock(&contended);
	return n + 1;
}

/* libc in the middle of the stack. */
static int compare(const void *a, const void *b)
{
	static __thread int once;
	if (!once) {
		once = 1;
		sink += wait_for_lock(1);
	}
	return *(const int *)a - *(const int *)b;
}
static void *in_a_callback(void *arg)
{
	int v[3] = { 3, 1, 2 };
	qsort(v, 3, sizeof *v, compare);
	return arg;
}

static void handler(int signal) { sink += wait_for_lock(signal); }
static void *in_a_signal_handler(void *arg)
{
	pthread_kill(pthread_self(), SIGUSR1);
	sink++;
	return arg;
}

static void handler_elsewhere(int signal) { sink += wait_for_lock(signal); }
static void *on_another_stack(void *arg)
{
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
	sigaltstack(&stack, NULL);
	pthread_kill(pthread_self(), SIGUSR2);
	sink++;
	return arg;
}

static void *on_a_big_frame(void *arg)
{
	char big[300000];
	memset(big, sink, sizeof big);
	sink += wait_for_lock(big[sink & 1023]);
	return arg;
}

static void *on_a_variable_frame(void *arg)
{
	char *p = __builtin_alloca(100 + (sink & 15));
	memset(p, sink, 100);
	sink += wait_for_lock(p[sink & 63]);
	return arg;
}

static void *on_an_aligned_frame(void *arg)
{
	_Alignas(64) char p[128];
	char *q = __builtin_alloca(100 + (sink & 15));
	memset(p, sink, 128);
	memset(q, sink, 100);
	sink += wait_for_lock(p[sink & 63] + q[sink & 63]);
	return arg;
}

__attribute__((noinline)) static int recurse(int depth)
{
	return depth ? recurse(depth - 1) * 3 + sink : wait_for_lock(depth);
}
static void *at_depth_100(void *arg)
{
	sink += recurse(100);
	return arg;
}
static void *at_depth_200(void *arg)
{
	sink += recurse(200);
	return arg;
}

int main(void)
{
	static void *(*const cases[])(void *) = {
		in_a_callback, in_a_signal_handler, on_another_stack, on_a_big_frame,
		on_a_variable_frame, on_an_aligned_frame, at_depth_100, at_depth_200,
	};
	enum { CASES = sizeof cases / sizeof *cases };
	struct sigaction action = { .sa_handler = handler };
	sigaction(SIGUSR1, &action, NULL);
	action = (struct sigaction){ .sa_handler = handler_elsewhere, .sa_flags = SA_ONSTACK };
	sigaction(SIGUSR2, &action, NULL);
	usleep(500000);
	pthread_t threads[CASES];
	pthread_mutex_lock(&contended);
	for (int i = 0; i < CASES; i++)
		pthread_create(&threads[i], NULL, cases[i], NULL);
	usleep(1500000);
	pthread_mutex_unlock(&contended);
	for (int i = 0; i < CASES; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
"#;

/// A runtime that generates code: one function, which calls the one that waits, and its line in perf's map.
const JIT: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t contended = PTHREAD_MUTEX_INITIALIZER;
static volatile int sink;

__attribute__((noinline)) static void wait_for_lock(void)
{
	pthread_mutex_lock(&contended);
	sink++;
	pthread_mutex_unlock(&contended);
}

static void *calls_generated_code(void *code)
{
	((void (*)(void (*)(void)))code)(wait_for_lock);
	sink++;
	return NULL;
}

int main(void)
{
	/* push %rbp; mov %rsp,%rbp; call *%rdi; pop %rbp; ret */
	static const unsigned char bytes[] = { 0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3 };
	unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(code + 64, bytes, sizeof bytes);
	char name[64];
	snprintf(name, sizeof name, "/tmp/perf-%d.map", getpid());
	FILE *map = fopen(name, "w");
	fprintf(map, "%lx %lx js:generated (app.js:12)\n", (unsigned long)code + 64, sizeof bytes);
	fclose(map);
	usleep(500000);
	pthread_t thread;
	pthread_mutex_lock(&contended);
	pthread_create(&thread, NULL, calls_generated_code, code + 64);
	usleep(500000);
	pthread_mutex_unlock(&contended);
	pthread_join(thread, NULL);
	unlink(name);
	return 0;
}
"#;

struct Stack {
    waits: u64,
    status: String,
    /// Innermost first, inlined ones too.
    functions: Vec<String>,
}

impl Stack {
    fn has(&self, function: &str) -> bool {
        self.functions.iter().any(|name| name == function)
    }

    /// Down to where the thread began.
    fn is_whole(&self) -> bool {
        let first = self.functions.last().map_or("", String::as_str);
        self.status == "complete" && (first.contains("clone") || first == "_start")
    }
}

fn lockprof(arguments: &[&str], command: &[&str]) -> Value {
    lockprof_while(arguments, command, || ())
}

/// One at a time: the tables must be there in milliseconds, on machines with two processors too.
fn lockprof_while(arguments: &[&str], command: &[&str], meanwhile: impl FnOnce()) -> Value {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    assert_eq!(lockprof_uid(), 0, "these tests trace, for which they must be root");
    let dir = tempfile::tempdir().expect("there is room");
    let json = dir.path().join("profile.json");
    let child = Command::new(env!("CARGO_BIN_EXE_lockprof"))
        .arg("-q")
        .arg("--json")
        .arg(&json)
        .args(arguments)
        .args(if command.is_empty() { &[][..] } else { &["--"] })
        .args(command)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("lockprof runs");
    meanwhile();
    let output = child.wait_with_output().expect("lockprof ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(json).expect("it wrote its report")).expect("which is JSON")
}

fn lockprof_uid() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

fn workload() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_lockprof")).with_file_name("examples/lockprof-workload");
    assert!(path.exists(), "cargo build --example lockprof-workload makes {}", path.display());
    path
}

fn futex_stacks(report: &Value) -> Vec<Stack> {
    let locks = report["locks"].as_array().expect("locks").iter();
    let locks = locks.filter(|lock| lock["family"] == "futex");
    locks
        .flat_map(|lock| lock["sites"].as_array().expect("sites"))
        .map(|site| {
            let stack = &site["user_stack"];
            let frames = stack["frames"].as_array().map_or(&[][..], Vec::as_slice);
            Stack {
                waits: site["contended"].as_u64().unwrap_or(0) + site["aborted"].as_u64().unwrap_or(0),
                status: stack["status"].as_str().unwrap_or("?").to_string(),
                functions: frames
                    .iter()
                    .map(|frame| frame["function"].as_str().unwrap_or("?").to_string())
                    .collect(),
            }
        })
        .collect()
}

fn loss(report: &Value, reason: &str) -> u64 {
    let losses = report["losses"].as_array().expect("losses");
    let loss = losses.iter().find(|loss| loss["reason"] == reason);
    loss.unwrap_or_else(|| panic!("{reason} is among the losses"))["count"].as_u64().expect("a count")
}

fn assert_nearly_all_whole(report: &Value, at_least: u64) {
    let stacks = futex_stacks(report);
    let all: u64 = stacks.iter().map(|stack| stack.waits).sum();
    let whole: u64 = stacks.iter().filter(|stack| stack.is_whole()).map(|stack| stack.waits).sum();
    assert!(all >= at_least, "only {all} waits");
    let broken: Vec<_> = stacks.iter().filter(|stack| !stack.is_whole()).map(|s| &s.functions).collect();
    assert!(whole * 100 >= all * 95, "{whole} of {all} whole; broken: {broken:?}");
}

fn assert_call_site(report: &Value, function: &str) {
    let locks = report["locks"].as_array().expect("locks");
    let sites: Vec<_> = locks.iter().map(|lock| &lock["call_site"]).collect();
    let first = sites.first().and_then(|site| site.as_str()).unwrap_or_default();
    assert!(first.ends_with(function), "{sites:?}");
}

#[test]
fn waits_of_a_command_have_stacks_down_to_the_start_of_their_threads() {
    let workload = workload();
    let workload = workload.to_str().expect("UTF-8");
    for (scenario, call_site) in
        [("pthread-mutex", "wait_for_pthread_mutex"), ("rust-mutex", "wait_for_rust_mutex")]
    {
        // Many rounds: on a machine under load the table may come only after the first ones.
        let report = lockprof(&[], &[workload, scenario, "--rounds", "60", "--hold-ms", "10"]);
        assert_call_site(&report, call_site);
        assert_nearly_all_whole(&report, 180);
    }
}

#[test]
fn waits_of_a_busy_program_have_whole_stacks() {
    let workload = workload();
    let report = lockprof(&[], &[workload.to_str().expect("UTF-8"), "busy", "--seconds", "2"]);
    assert_nearly_all_whole(&report, 50);
}

#[test]
fn a_child_that_runs_another_program_gets_a_table_of_its_own() {
    let workload = workload();
    let workload = workload.to_str().expect("UTF-8");
    let command = [workload, "pthread-mutex", "--children", "--rounds", "60", "--hold-ms", "10"];
    let report = lockprof(&[], &command);
    assert_call_site(&report, "wait_for_pthread_mutex");
    assert_nearly_all_whole(&report, 180);
}

/// A workload that waits at its gate. Killed when it goes out of scope.
struct Gated {
    child: Child,
    gate: Option<ChildStdin>,
    _output: BufReader<ChildStdout>,
}

impl Gated {
    fn start(arguments: &[&str]) -> Gated {
        let mut child = Command::new(workload())
            .args(arguments)
            .arg("--gate")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the workload runs");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        output.read_line(&mut line).expect("it says that it is ready");
        assert!(line.contains("ready"), "{line}");
        let gate = child.stdin.take();
        Gated { child, gate, _output: output }
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_running_process_has_its_table_before_its_first_wait_is_seen() {
    let mut gated = Gated::start(&["pthread-mutex", "--rounds", "20", "--hold-ms", "5"]);
    let pid = gated.child.id().to_string();
    let mut gate = gated.gate.take().expect("a gate");
    let report = lockprof_while(&["-p", &pid, "5"], &[], || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        gate.write_all(b"\n").expect("the workload reads");
    });
    assert_call_site(&report, "wait_for_pthread_mutex");
    assert_nearly_all_whole(&report, 60);
    assert_eq!(loss(&report, "unwind_no_table"), 0);
}

#[test]
fn difficult_frames_are_walked_and_what_is_too_deep_is_said_to_be() {
    for flags in [["-O2", "-fomit-frame-pointer"], ["-O2", "-fno-omit-frame-pointer"]] {
        let dir = tempfile::tempdir().expect("there is room");
        let (source, program) = (dir.path().join("hard.c"), dir.path().join("hard"));
        std::fs::write(&source, HARD_CASES).expect("the source is writable");
        let mut gcc = Command::new("gcc");
        gcc.args(flags).args(["-g", "-fno-optimize-sibling-calls", "-pthread", "-o"]);
        assert!(gcc.arg(&program).arg(&source).status().expect("gcc runs").success());

        let report = lockprof(&[], &[program.to_str().expect("UTF-8")]);
        let stacks = futex_stacks(&report);
        for case in [
            "in_a_callback",
            "in_a_signal_handler",
            "on_another_stack",
            "on_a_big_frame",
            "on_a_variable_frame",
            "on_an_aligned_frame",
            "at_depth_100",
        ] {
            let found: Vec<_> = stacks.iter().filter(|s| s.has("wait_for_lock") && s.has(case)).collect();
            let all: Vec<_> = stacks.iter().map(|stack| &stack.functions).collect();
            assert_eq!(found.len(), 1, "{flags:?} {case}: {all:?}");
            assert!(found[0].is_whole(), "{flags:?} {case}: {:?}", found[0].functions);
        }
        let depth = |stack: &Stack| stack.functions.iter().filter(|name| *name == "recurse").count();
        assert!(stacks.iter().any(|stack| depth(stack) == 101 && stack.is_whole()), "{flags:?}");
        let deep = stacks.iter().find(|stack| depth(stack) > 101).expect("the deep one is there too");
        assert_eq!(deep.status, "incomplete", "{flags:?}");
        assert!(loss(&report, "stack_truncated") >= deep.waits, "{flags:?}");
    }
}

#[test]
fn generated_code_is_walked_by_frame_pointers_and_named_by_the_map_its_runtime_writes() {
    let dir = tempfile::tempdir().expect("there is room");
    let (source, program) = (dir.path().join("jit.c"), dir.path().join("jit"));
    std::fs::write(&source, JIT).expect("the source is writable");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-fno-optimize-sibling-calls", "-pthread", "-o"]);
    assert!(gcc.arg(&program).arg(&source).status().expect("gcc runs").success());
    let report = lockprof(&[], &[program.to_str().expect("UTF-8")]);
    let stacks = futex_stacks(&report);
    let all: Vec<_> = stacks.iter().map(|stack| &stack.functions).collect();
    let stack = stacks.iter().find(|stack| stack.has("wait_for_lock")).expect("the wait");
    let names: Vec<&str> = stack.functions.iter().map(String::as_str).collect();
    let at = names.iter().position(|name| *name == "wait_for_lock").expect("it is there");
    assert_eq!(names[at + 1..at + 3], ["js:generated (app.js:12)", "calls_generated_code"], "{all:?}");
    assert!(stack.is_whole(), "{all:?}");
}

#[test]
fn stacks_by_frame_pointers_are_never_called_complete() {
    let workload = workload();
    let command = [workload.to_str().expect("UTF-8"), "pthread-mutex"];
    let stacks = futex_stacks(&lockprof(&["--user-stack", "fp"], &command));
    assert!(!stacks.is_empty() && stacks.iter().all(|stack| stack.status == "incomplete"));
}

#[test]
fn user_stacks_can_be_left_out() {
    let workload = workload();
    let command = [workload.to_str().expect("UTF-8"), "pthread-mutex"];
    let stacks = futex_stacks(&lockprof(&["--user-stack", "off"], &command));
    assert!(!stacks.is_empty() && stacks.iter().all(|stack| stack.status == "not_taken"));
}
