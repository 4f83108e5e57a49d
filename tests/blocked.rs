//! Threads that wait already: found with what they wait for, and with exact stacks.
//!
//! The truth about stacks is the waiting program's own: each of its functions notes its return address.
//! Needs gcc, and no privileges beyond those over its children; with root, on kernels that allow iterators
//! of tasks, frame pointers are known too and more is asked for.

use lockprof::bpf::registers_of_blocked;
use lockprof::kernel::Facts;
use lockprof::model::FutexOp;
use lockprof::session::blocked::{
    AlreadyWaiting, Blocked, Found, Overlooked, blocked_in_futex, find, still_blocked,
};
use lockprof::symbolize::Images;
use lockprof::unwind::{Registers, Tables, WalkEnd};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Prints a line for each of its threads: name, tid, word, and the return addresses of its own functions,
/// innermost first. At a line of input everybody may go on.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <linux/futex.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, pi_mutex, of_cond = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t sem;
static volatile int sink, word;
static __thread void *returns[16];
static __thread int depth;
static __thread const char *name;

#define NOTE() (returns[depth++] = __builtin_return_address(0))
#define FUNCTION __attribute__((noinline, noclone))

static void say(void *what)
{
	char line[512];
	int n = sprintf(line, "%s %d %p", name, gettid(), what);
	while (depth)
		n += sprintf(line + n, " %p", returns[--depth]);
	line[n++] = '\n';
	sink += write(1, line, n);
}

FUNCTION int wait_for_mutex(int n)
{
	NOTE();
	say(&mutex);
	pthread_mutex_lock(&mutex);
	sink += n;
	pthread_mutex_unlock(&mutex);
	return n + 1;
}
FUNCTION int wait_for_pi_mutex(int n)
{
	NOTE();
	say(&pi_mutex);
	pthread_mutex_lock(&pi_mutex);
	sink += n;
	pthread_mutex_unlock(&pi_mutex);
	return n + 1;
}
FUNCTION int wait_for_rwlock(int n)
{
	NOTE();
	say(0);
	pthread_rwlock_rdlock(&rwlock);
	sink += n;
	pthread_rwlock_unlock(&rwlock);
	return n + 1;
}
FUNCTION int wait_for_cond(int n)
{
	NOTE();
	say(0);
	pthread_mutex_lock(&of_cond);
	while (!word)
		pthread_cond_wait(&cond, &of_cond);
	pthread_mutex_unlock(&of_cond);
	return n + 1;
}
FUNCTION int wait_for_sem(int n)
{
	struct timespec late;

	NOTE();
	say(0);
	clock_gettime(CLOCK_REALTIME, &late);
	late.tv_sec += 1000;
	sink += sem_timedwait(&sem, &late);
	return n + 1;
}
FUNCTION int wait_for_word(int n)
{
	struct timespec late = { .tv_sec = 1000 };

	NOTE();
	say((void *)&word);
	sink += syscall(SYS_futex, &word, FUTEX_WAIT, 0, &late, 0, 0);
	return n + 1;
}

FUNCTION int on_a_variable_frame(int (*wait)(int))
{
	NOTE();
	char *p = __builtin_alloca(100 + (sink & 15));
	memset(p, sink, 100);
	return wait(p[sink & 63]) + p[sink & 31];
}
FUNCTION int on_an_aligned_frame(int (*wait)(int))
{
	NOTE();
	_Alignas(64) char p[128];
	memset(p, sink, 128);
	return on_a_variable_frame(wait) + p[sink & 63];
}
FUNCTION int on_a_big_frame(int (*wait)(int))
{
	NOTE();
	char p[100000];
	memset(p, sink, sizeof p);
	return on_an_aligned_frame(wait) + p[sink & 63];
}

struct thread {
	const char *name;
	int (*wait)(int);
};
static void *begin(void *arg)
{
	struct thread *thread = arg;

	NOTE();
	name = thread->name;
	sink += on_a_big_frame(thread->wait);
	return arg;
}
static void *open_the_gate(void *arg)
{
	char c;

	sink += read(0, &c, 1);
	pthread_mutex_lock(&of_cond);
	word = 1;
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&of_cond);
	syscall(SYS_futex, &word, FUTEX_WAKE, 1, 0, 0, 0);
	sem_post(&sem);
	return arg;
}

int main(void)
{
	static struct thread threads[] = {
		{ "mutex", wait_for_mutex }, { "pi_mutex", wait_for_pi_mutex },
		{ "rwlock", wait_for_rwlock }, { "cond", wait_for_cond },
		{ "sem", wait_for_sem }, { "word", wait_for_word },
	};
	enum { THREADS = sizeof threads / sizeof *threads };
	pthread_t ids[THREADS], opener;
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&pi_mutex, &attr);
	pthread_mutex_lock(&mutex);
	pthread_mutex_lock(&pi_mutex);
	pthread_rwlock_wrlock(&rwlock);
	pthread_create(&opener, 0, open_the_gate, 0);
	for (int i = 0; i < THREADS; i++)
		pthread_create(&ids[i], 0, begin, &threads[i]);
	NOTE();
	name = "main";
	say(0);
	pthread_join(opener, 0);
	pthread_mutex_unlock(&mutex);
	pthread_mutex_unlock(&pi_mutex);
	pthread_rwlock_unlock(&rwlock);
	for (int i = 0; i < THREADS; i++)
		pthread_join(ids[i], 0);
	return 0;
}
"#;

/// What a thread of the program said about itself.
struct Truth {
    name: String,
    tid: u32,
    /// 0: the library's own business.
    word: u64,
    returns: Vec<u64>,
}

impl Truth {
    fn parse(line: &str) -> Truth {
        let mut words = line.split_whitespace();
        let (name, tid) = (words.next().expect("a name"), words.next().expect("a tid"));
        let mut numbers = words.map(|word| match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).expect("a number"),
            None => 0, // (nil)
        });
        Truth {
            name: name.to_string(),
            tid: tid.parse().expect("a number"),
            word: numbers.next().expect("a word"),
            returns: numbers.collect(),
        }
    }
}

/// A child with waiting threads. Killed when it goes out of scope.
struct Waiters {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Waiters {
    fn start(program: &Path, arguments: &[&str]) -> Waiters {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = BufReader::new(output.expect("a pipe"));
        Waiters { child, input: input.expect("a pipe"), output }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).expect("readable") > 0, "it ended");
        line
    }

    fn await_blocked(&self, enough: impl Fn(&[Blocked]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !enough(&blocked_in_futex(self.pid(), &mut Overlooked::default())) {
            assert!(Instant::now() < deadline, "they do not block");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: no pointers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid() as libc::pid_t, signal) }, 0);
    }

    fn find(&self, registers: &HashMap<u32, Registers>) -> Found {
        let mut images = Images::new();
        images.snapshot(self.pid()).expect("it lives");
        let mut tables = Tables::new(1 << 20);
        find(&[self.pid()], Some(&mut tables), &images, registers)
    }

    /// `None`: this kernel, or being nobody special, does not allow it.
    fn registers(&self) -> Option<HashMap<u32, Registers>> {
        // The kernel's BTF is megabytes, and parsing them takes seconds in a guest.
        static FACTS: OnceLock<Facts> = OnceLock::new();
        let facts = FACTS.get_or_init(|| Facts::gather(&["mutex_lock"], &[]).expect("facts"));
        let begin = Instant::now();
        let registers = registers_of_blocked(facts, &[self.pid()]);
        let took = begin.elapsed();
        let tracing = facts.functions["mutex_lock"].fentry.works();
        // The reverse does not hold: 6.18 kernels exist that refuse fentry and allow this.
        assert!(registers.is_ok() || !tracing, "where fentry is allowed, iterators are: {registers:?}");
        let told = registers.as_ref().map(HashMap::len).map_err(|err| format!("{err:#}"));
        eprintln!("iterator of tasks: {told:?} in {took:?}");
        registers.ok()
    }

    /// Whether the address is of the program itself.
    fn is_own_code(&self, pc: u64) -> bool {
        let mut images = Images::new();
        images.snapshot(self.pid()).expect("it lives");
        let exe = images.exe(self.pid()).expect("a program").to_string_lossy().into_owned();
        images.mapping(self.pid(), pc).is_some_and(|mapping| mapping.path == exe)
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compile(dir: &Path, flags: &[&str]) -> PathBuf {
    let (source, program) = (dir.join("waiters.c"), dir.join("waiters"));
    std::fs::write(&source, PROGRAM).expect("the source is writable");
    let mut gcc = Command::new("gcc");
    gcc.args(flags).args(["-fno-optimize-sibling-calls", "-pthread", "-o"]);
    assert!(gcc.arg(&program).arg(&source).status().expect("gcc runs").success());
    program
}

fn of_thread(found: &Found, tid: u32) -> &AlreadyWaiting {
    found.waiting.iter().find(|waiting| waiting.tid == tid).expect("it is found")
}

/// Library, the program's function that called it, the noted return addresses, the library again.
fn assert_exact(waiters: &Waiters, waiting: &AlreadyWaiting, truth: &Truth, context: &str) {
    let hex: Vec<String> = waiting.pcs.iter().map(|pc| format!("{pc:#x}")).collect();
    let context = format!("{context} {}: {hex:?} {:?}", truth.name, waiting.end);
    assert_eq!(waiting.end, WalkEnd::Complete, "{context}");
    let library = waiting.pcs.iter().take_while(|pc| !waiters.is_own_code(**pc)).count();
    assert!((1..=4).contains(&library), "{context}");
    let own = &waiting.pcs[library + 1..];
    assert_eq!(&own[..truth.returns.len()], truth.returns, "{context}");
    let below = &own[truth.returns.len()..];
    if truth.name == "main" {
        // __libc_start_main between what main returned to and _start.
        assert!(below.len() == 2 && waiters.is_own_code(below[1]), "{context}");
    } else {
        assert!(below.len() == 1 && !waiters.is_own_code(below[0]), "clone3; {context}");
    }
}

#[test]
fn threads_of_a_c_program_are_found_with_exact_stacks_and_what_they_wait_for() {
    for flags in [["-O2", "-fomit-frame-pointer"], ["-O2", "-fno-omit-frame-pointer"], ["-O0", "-g"]] {
        let dir = tempfile::tempdir().expect("there is room");
        let mut waiters = Waiters::start(&compile(dir.path(), &flags), &[]);
        let truths: Vec<Truth> = (0..7).map(|_| Truth::parse(&waiters.line())).collect();
        waiters.await_blocked(|blocked| blocked.len() == 7);

        let with_registers = waiters.registers();
        for registers in [Some(HashMap::new()), with_registers].into_iter().flatten() {
            let context = format!("{flags:?}, frame pointers of {}", registers.len());
            let begin = Instant::now();
            let found = waiters.find(&registers);
            eprintln!("{context}: found in {:?}, tables included", begin.elapsed());
            assert_eq!(found.overlooked, Overlooked::default(), "{context}");
            assert_eq!(found.waiting.len(), 7, "{context}");
            for truth in &truths {
                let waiting = of_thread(&found, truth.tid);
                assert!(still_blocked(waiters.pid(), truth.tid, waiting));
                if registers.is_empty() && waiting.incomplete() {
                    // Only if a frame needs what is not known, and never with a wrong frame.
                    assert_eq!(waiting.end, WalkEnd::NoRule, "{context} {}", truth.name);
                    eprintln!("{context} {}: incomplete after {}", truth.name, waiting.pcs.len());
                    continue;
                }
                assert_exact(&waiters, waiting, truth, &context);
            }
            let of = |name: &str| {
                let truth = truths.iter().find(|truth| truth.name == name).expect("it said so");
                (of_thread(&found, truth.tid), truth.word)
            };
            let (mutex, address) = of("mutex");
            assert_eq!((mutex.op, mutex.uaddr, mutex.val), (FutexOp::Wait, address, 2));
            let (pi_mutex, address) = of("pi_mutex");
            assert_eq!((pi_mutex.op, pi_mutex.uaddr), (FutexOp::LockPi, address));
            let (word, address) = of("word");
            assert_eq!((word.op, word.uaddr, word.val), (FutexOp::Wait, address, 0));
            assert_eq!((of("cond").0.op, of("main").0.op), (FutexOp::WaitBitset, FutexOp::WaitBitset));
            for (name, timeout) in [("mutex", false), ("word", true), ("sem", true), ("cond", false)] {
                assert_eq!(of(name).0.timeout, timeout, "{name}");
            }
            assert_eq!(of("main").0.comm, "waiters");
        }

        // Stopped, nobody waits. Continued, waits with a timeout go on as restart_syscall(2).
        waiters.signal(libc::SIGSTOP);
        waiters.await_blocked(|blocked| blocked.is_empty());
        waiters.signal(libc::SIGCONT);
        waiters.await_blocked(|blocked| blocked.len() == 5);
        let deadline = Instant::now() + Duration::from_secs(10);
        while waiters.find(&HashMap::new()).overlooked != (Overlooked { restarted: 2, ..Default::default() })
        {
            assert!(Instant::now() < deadline, "{:?}", waiters.find(&HashMap::new()).overlooked);
            std::thread::sleep(Duration::from_millis(20));
        }

        // After the gate was opened nobody is where he was.
        let before = waiters.find(&HashMap::new());
        waiters.input.write_all(b"\n").expect("it reads");
        assert!(waiters.child.wait().expect("it ends").success());
        for waiting in &before.waiting {
            assert!(!still_blocked(waiters.pid(), waiting.tid, waiting));
        }
        let mut overlooked = Overlooked::default();
        assert!(blocked_in_futex(waiters.pid(), &mut overlooked).is_empty());
        assert_eq!(overlooked, Overlooked::default());
    }
}

fn workload() -> PathBuf {
    // Guests have copies (tests/vm/binaries).
    let lockprof = std::env::var_os("LOCKPROF_BIN");
    let lockprof = lockprof.unwrap_or_else(|| env!("CARGO_BIN_EXE_lockprof").into());
    let path = Path::new(&lockprof).with_file_name("examples/lockprof-workload");
    assert!(path.exists(), "cargo build --example lockprof-workload makes {}", path.display());
    path
}

/// Where a function of the process is, by `nm`.
fn function_of(pid: u32, program: &Path, name: &str) -> std::ops::Range<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    let base = maps.lines().find(|line| line.contains("lockprof-workload")).expect("it is mapped");
    let base = u64::from_str_radix(base.split('-').next().expect("a start"), 16).expect("a number");
    let output = Command::new("nm").arg("-S").arg(program).output().expect("nm runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.ends_with(&format!(" {name}"))).expect("it has that function");
    let mut numbers = line.split(' ').map_while(|word| u64::from_str_radix(word, 16).ok());
    let (start, size) = (numbers.next().expect("an address"), numbers.next().expect("a size"));
    base + start..base + start + size
}

#[test]
fn threads_of_a_rust_program_have_whole_stacks_with_the_frame_pointer_and_honest_ones_without() {
    for (arguments, call_site, op) in [
        (&["hung"][..], "wait_for_pthread_mutex", FutexOp::Wait),
        (&["rust-mutex", "--rounds", "1", "--hold-ms", "100000"], "wait_for_rust_mutex", FutexOp::WaitBitset),
    ] {
        let program = workload();
        let waiters = Waiters::start(&program, arguments);
        let at_call_site = |found: &Found| {
            let range = function_of(waiters.pid(), &program, call_site);
            let all = found.waiting.iter().filter(|waiting| waiting.op == op);
            all.filter(|waiting| waiting.pcs[1..].iter().any(|pc| range.contains(pc))).count()
        };
        // The three waiters wait for one word; others of its threads may wait for each other as well.
        waiters.await_blocked(|blocked| {
            let words = blocked.iter().map(|one| one.call.args[0]);
            words.clone().any(|word| words.clone().filter(|other| *other == word).count() == 3)
        });

        let without = waiters.find(&HashMap::new());
        assert_eq!(without.overlooked, Overlooked::default());
        let incomplete = without.waiting.iter().filter(|waiting| waiting.incomplete()).count();
        eprintln!("{arguments:?}: {incomplete} of {} incomplete without rbp", without.waiting.len());
        for waiting in &without.waiting {
            assert!(matches!(waiting.end, WalkEnd::Complete | WalkEnd::NoRule), "{waiting:?}");
        }

        let Some(registers) = waiters.registers() else { continue };
        let with = waiters.find(&registers);
        assert_eq!(with.overlooked, Overlooked::default());
        assert!(with.waiting.iter().all(|waiting| !waiting.incomplete()), "{with:?}");
        assert_eq!(at_call_site(&with), 3, "{with:?}");
        for waiting in &without.waiting {
            let whole = of_thread(&with, waiting.tid);
            assert!(whole.pcs.starts_with(&waiting.pcs), "{waiting:?} {whole:?}");
        }
        for waiting in &with.waiting {
            eprintln!("{}: {} frames", waiting.comm, waiting.pcs.len());
            assert_eq!(registers[&waiting.tid].sp, waiting.sp);
        }
    }
}
