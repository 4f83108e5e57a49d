//! Symbolization against programs built here, killed and deleted before their frames are named.

use lockprof::model::*;
use lockprof::symbolize::{Images, KernelSymbols, symbolize};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const C_SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

__attribute__((noinline)) void report(const char *name)
{
	printf("%s %p\n", name, __builtin_return_address(0));
	__asm__ volatile("" ::: "memory");
}

static inline __attribute__((always_inline)) void innermost(void)
{
	report("innermost"); // LINE innermost
}

static inline __attribute__((always_inline)) void middle(void)
{
	innermost(); // LINE middle
	__asm__ volatile("" ::: "memory");
}

__attribute__((noinline)) void take_lock(void)
{
	report("take_lock"); // LINE take_lock
	middle(); // LINE outer
	__asm__ volatile("" ::: "memory");
}

int main(int argc, char **argv)
{
	int text = open(argv[1], O_RDONLY);
	void *no_elf = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, text, 0);
	void *jit = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	take_lock();
	printf("entry %p\n", (void *)take_lock);
	printf("libc %p\n", (void *)pthread_mutex_lock);
	printf("no_elf %p\njit %p\nready 0x0\n", no_elf, jit);
	fflush(stdout);
	pause();
	return argc;
}
"#;

const CPP_SOURCE: &str = r#"
#include <cstdio>
#include <unistd.h>

__attribute__((noinline)) void report(const char *name)
{
	std::printf("%s %p\n", name, __builtin_return_address(0));
	__asm__ volatile("" ::: "memory");
}

namespace bank {
struct Account {
	__attribute__((noinline)) void deposit(int amount);
	template <class T> __attribute__((noinline)) void convert(T amount);
};
void Account::deposit(int amount)
{
	report("deposit"); // LINE deposit
	__asm__ volatile("" :: "r"(amount) : "memory");
}
template <class T> void Account::convert(T amount)
{
	report("convert");
	__asm__ volatile("" :: "r"(amount) : "memory");
}
}

namespace {
struct Hidden {
	__attribute__((noinline)) static void work()
	{
		report("hidden");
		__asm__ volatile("" ::: "memory");
	}
};
}

int main()
{
	bank::Account account;
	account.deposit(1);
	account.convert<long>(2);
	Hidden::work();
	auto lambda = [](int n) __attribute__((noinline)) { report("lambda"); __asm__ volatile("" :: "r"(n) : "memory"); };
	lambda(1);
	std::puts("ready 0x0");
	std::fflush(stdout);
	pause();
}
"#;

const RUST_SOURCE: &str = r#"
use std::io::Write;
use std::sync::Mutex;

#[inline(always)]
fn pc() -> usize {
    let pc: usize;
    #[cfg(target_arch = "x86_64")]
    unsafe { std::arch::asm!("2: lea {}, [rip + 2b]", out(reg) pc) };
    #[cfg(target_arch = "aarch64")]
    unsafe { std::arch::asm!("adr {}, .", out(reg) pc) };
    pc // LINE pc
}

mod bank {
    pub struct Account<T>(pub T);
    pub trait Deposit { fn deposit(&self) -> usize; }
    impl<T: Copy> Deposit for Account<T> {
        #[inline(never)]
        fn deposit(&self) -> usize { std::hint::black_box(0) ^ super::pc() } // Unlike transfer: LLVM merges equals.
    }
    #[inline(never)]
    pub fn transfer() -> usize { super::pc() } // LINE transfer
}

fn main() {
    use bank::Deposit;
    println!("transfer {:#x}", bank::transfer());
    println!("deposit {:#x}", bank::Account(7u32).deposit());
    let closure = std::hint::black_box(|n: usize| std::hint::black_box(n) + pc() - n);
    println!("closure {:#x}", closure(1));
    let lock: fn(&Mutex<Vec<String>>) -> bool = |lock| lock.lock().is_ok();
    std::hint::black_box(lock)(&Mutex::new(Vec::new()));
    println!("ready 0x0");
    std::io::stdout().flush().unwrap();
    loop { std::thread::park(); }
}
"#;

/// Locks wherever a program can have them; the library beside it has two more.
const PLACES_SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct { int before[4]; pthread_mutex_t lock; } table = { { 1 }, PTHREAD_MUTEX_INITIALIZER };
// Larger than the page that the file and the anonymous memory share.
static char before[100000];
static struct { char before[16]; pthread_mutex_t lock; } cache;
pthread_mutex_t plain;

static volatile sig_atomic_t last_signal;
static void note(int signal) { last_signal = signal; }

int main(int argc, char **argv)
{
	pthread_mutex_t on_stack;
	char path[4096];
	void *library, *hidden = 0;
	int file;

	signal(SIGUSR1, note);
	signal(SIGUSR2, note);
	snprintf(path, sizeof(path), "%s/library.so", argv[1]);
	library = dlopen(path, RTLD_NOW);
	if (library) {
		printf("exported %p\n", dlsym(library, "exported"));
		hidden = ((void *(*)(void))dlsym(library, "address_of_hidden"))();
		printf("hidden %p\n", hidden);
	}
	snprintf(path, sizeof(path), "%s/shared", argv[1]);
	file = open(path, O_RDWR);
	if (file >= 0) {
		char *memory = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		char *half = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 4096);
		printf("shared %p\nhalf %p\n", memory + 4096 + 0x40, half + 0x40);
	}
	file = memfd_create("ring", 0);
	ftruncate(file, 4096);
	printf("memfd %p\n", mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	printf("anonymous %p\n", mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	printf("table %p\ncache %p\n", (void *)&table.lock, (void *)&cache.lock);
	printf("plain %p\n", (void *)&plain);
	printf("heap %p\n", malloc(40));
	printf("mapped %p\n", mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	printf("stack %p\nready 0x0\n", (void *)&on_stack);
	memset(before, argc, sizeof(before));
	fflush(stdout);
	while (last_signal != SIGUSR1)
		pause();
	dlclose(library);
	while (last_signal != SIGUSR2)
		pause();
	mmap((void *)((long)hidden & -4096), 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	for (;;)
		pause();
}
"#;

const LIBRARY_SOURCE: &str = r#"
#include <pthread.h>

// As exported variables are, in .bss, and at an offset like those inside of the program.
pthread_mutex_t exported;
static struct { long before[100]; pthread_mutex_t lock; } hidden;

void *address_of_hidden(void) { return &hidden.lock; }
"#;

const CPP_PLACES_SOURCE: &str = r#"
#include <cstdio>
#include <mutex>
#include <unistd.h>

namespace bank { struct Vault { long id; std::mutex door; } vault; }
namespace { std::mutex secret; }

std::mutex &once() { static std::mutex inside; return inside; }

int main()
{
	std::printf("vault %p\nsecret %p\ninside %p\nready 0x0\n", (void *)&bank::vault.door, (void *)&secret, (void *)&once());
	std::fflush(stdout);
	pause();
}
"#;

const RUST_PLACES_SOURCE: &str = r#"
use std::io::Write;
use std::sync::Mutex;

mod bank { pub static CACHE: super::Mutex<u64> = super::Mutex::new(1); }

fn main() {
    println!("cache {:p}\nready 0x0", &bank::CACHE);
    std::io::stdout().flush().unwrap();
    *bank::CACHE.lock().unwrap() += 1;
    loop { std::thread::park(); }
}
"#;

/// Line of a `LINE name` comment.
fn line(source: &str, name: &str) -> Option<u32> {
    let mark = format!("// LINE {name}");
    let line = source.lines().position(|line| line.ends_with(&mark)).expect("the mark is in the source");
    Some(line as u32 + 1)
}

fn compile(compiler: &str, variable: &str, dir: &Path, file: &str, source: &str, args: &[&str]) -> PathBuf {
    let compiler = std::env::var(variable).unwrap_or_else(|_| compiler.to_string());
    std::fs::write(dir.join(file), source).unwrap();
    let program = dir.join("program");
    let output = Command::new(&compiler)
        .current_dir(dir)
        .args(args)
        .arg(file)
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap_or_else(|error| {
            panic!("this test needs a compiler, `{compiler}` (or set {variable}): {error}")
        });
    assert!(output.status.success(), "{compiler} failed: {}", String::from_utf8_lossy(&output.stderr));
    program
}

/// A running program and the addresses it reported.
struct Running {
    child: Child,
    addrs: HashMap<String, u64>,
}

impl Running {
    fn start(program: &Path, arg: &Path) -> Running {
        let mut child = Command::new(program).arg(arg).stdout(Stdio::piped()).spawn().unwrap();
        let mut addrs = HashMap::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let (name, addr) = line.split_once(' ').unwrap();
            addrs.insert(name.to_string(), u64::from_str_radix(addr.trim_start_matches("0x"), 16).unwrap());
            if name == "ready" {
                return Running { child, addrs };
            }
        }
        panic!("the program ended early: {:?}", child.wait());
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn frame(&self, name: &str, leaf: bool) -> Frame {
        Frame::unsymbolized(Space::User, Some(self.pid()), self.addrs[name], leaf)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        assert!(!Path::new(&format!("/proc/{}", self.pid())).exists());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes the snapshot, kills the program, deletes its directory, and only then names the frames.
fn symbolize_after_death(
    mut running: Running,
    dir: tempfile::TempDir,
    mut profile: Profile,
) -> (Profile, Images) {
    let pid = running.pid();
    let mut images = Images::new();
    images.snapshot(pid).unwrap();
    running.kill();
    dir.close().unwrap();
    assert_eq!(images.snapshot(pid).unwrap_err().kind(), ErrorKind::NotFound);
    symbolize(&mut profile, &images, &KernelSymbols::default());
    (profile, images)
}

fn profile(frames: Vec<Frame>) -> Profile {
    let stack = Stack { frames: (0..frames.len() as u32).collect(), incomplete: false };
    Profile {
        schema: SCHEMA.to_string(),
        meta: Meta {
            version: String::new(),
            command: Vec::new(),
            hostname: String::new(),
            kernel: String::new(),
            arch: String::new(),
            cpus: 1,
            start_unix_s: 0,
            duration_ns: 0,
            target: Target {
                kind: TargetKind::System,
                pids: Vec::new(),
                comms: Vec::new(),
                command: Vec::new(),
                exit_status: None,
            },
            ended_by: EndReason::Duration,
            hold: false,
            hold_families: vec![],
        },
        plan: Vec::new(),
        events: EventCounts::default(),
        losses: Vec::new(),
        locks: Vec::new(),
        stacks: vec![stack],
        frames,
        naming: None,
    }
}

/// A lock that was waited for once, with the profile's one stack.
fn lock(kind: LockKind, addr: u64, pid: u32) -> Lock {
    let wait = WaitStats { contended: 1, wait_total_ns: 1000, ..WaitStats::default() };
    let (user, kernel) = match kind.is_user() {
        true => (StackRef::Stack(0), StackRef::NotTaken),
        false => (StackRef::NotTaken, StackRef::Stack(0)),
    };
    Lock {
        wait,
        sites: vec![Site { pid, kernel_stack: kernel, user_stack: user, futex: None, wait }],
        ..Lock::new(kind, addr, kind.is_user().then_some(pid))
    }
}

fn names(frame: &Frame) -> Vec<&str> {
    frame.functions.iter().map(|function| function.name.as_str()).collect()
}

fn lines(frame: &Frame) -> Vec<Option<u32>> {
    frame.functions.iter().map(|function| function.line).collect()
}

fn loss(profile: &Profile, reason: &str) -> u64 {
    let loss = profile.losses.iter().find(|loss| loss.reason == reason);
    loss.unwrap_or_else(|| panic!("no loss {reason}")).count
}

fn c_program(args: &[&str]) -> (tempfile::TempDir, Running) {
    let dir = tempfile::tempdir().unwrap();
    let program = compile("cc", "CC", dir.path(), "program.c", C_SOURCE, args);
    let text = dir.path().join("no-elf");
    std::fs::write(&text, "not an ELF file").unwrap();
    let running = Running::start(&program, &text);
    (dir, running)
}

#[test]
fn exited_process_with_deleted_binary_is_still_symbolized() {
    let (dir, running) = c_program(&["-g", "-O2", "-pthread"]);
    let mut profile = profile(vec![
        running.frame("libc", true),
        running.frame("take_lock", false),
        running.frame("entry", true),
        running.frame("no_elf", false),
        running.frame("jit", true),
    ]);
    profile.frames[3].addr += 2;
    profile.locks = vec![lock(LockKind::Futex, 0x1000, running.pid())];
    let pid = running.pid();
    let (profile, images) = symbolize_after_death(running, dir, profile);
    let [libc, take_lock, entry, no_elf, jit] = profile.frames.as_slice() else { unreachable!() };

    assert!(names(libc)[0].ends_with("pthread_mutex_lock"), "{libc:?}");
    assert!(libc.module.as_deref().unwrap().starts_with("lib"), "{libc:?}");
    assert_eq!(names(take_lock), ["take_lock"]);
    assert_eq!(lines(take_lock), [line(C_SOURCE, "take_lock")]);
    assert!(take_lock.functions[0].file.as_deref().unwrap().ends_with("program.c"));
    assert_eq!(take_lock.module.as_deref(), Some("program"));
    assert_eq!(names(entry), ["take_lock"]);
    // take_lock's own offset and the call inside it lie close together in the file.
    let inside = take_lock.module_offset.unwrap() - entry.module_offset.unwrap();
    assert_eq!(inside, take_lock.addr - entry.addr);
    assert_eq!(profile.locks[0].call_site.as_deref(), Some("take_lock"));

    // One file that is none of ours to read costs only its own frame.
    assert_eq!((names(no_elf).len(), no_elf.place().as_str()), (0, "no-elf+0x2"));
    assert_eq!((names(jit).len(), jit.module.as_deref()), (0, Some("[jit]")));
    assert_eq!(loss(&profile, "unsymbolized_user_frames"), 2);
    assert_eq!(loss(&profile, "unsymbolized_kernel_frames"), 0);
    assert_eq!(loss(&profile, "image_files_unreadable"), 1);
    assert_eq!(loss(&profile, "image_files_unopened"), 0);
    assert_eq!(images.comm(pid), Some("program"));
    assert!(images.covers(pid, entry.addr));
}

#[test]
fn without_debug_information_functions_still_have_names() {
    let (dir, running) = c_program(&["-O2", "-pthread"]);
    let profile = profile(vec![running.frame("take_lock", false), running.frame("innermost", false)]);
    let (profile, _) = symbolize_after_death(running, dir, profile);
    assert_eq!(names(&profile.frames[0]), ["take_lock"]);
    assert_eq!(names(&profile.frames[1]), ["take_lock"]);
    assert_eq!(lines(&profile.frames[0]), [None]);
}

#[test]
fn a_stripped_program_shows_places_and_counts_them() {
    let (dir, running) = c_program(&["-s", "-O2", "-pthread"]);
    let mut profile = profile(vec![running.frame("libc", true), running.frame("take_lock", false)]);
    profile.locks = vec![lock(LockKind::Futex, 0x1000, running.pid())];
    let (profile, _) = symbolize_after_death(running, dir, profile);
    let place = profile.frames[1].place();
    assert!(place.starts_with("program+0x"), "{place}");
    assert_eq!(profile.locks[0].call_site, Some(place));
    assert_eq!(loss(&profile, "unsymbolized_user_frames"), 1);
}

#[test]
fn inlined_functions_appear_as_frames() {
    let (dir, running) = c_program(&["-g", "-O2", "-pthread"]);
    let profile = profile(vec![running.frame("innermost", false)]);
    let (profile, _) = symbolize_after_death(running, dir, profile);
    let frame = &profile.frames[0];
    assert_eq!(names(frame), ["take_lock", "middle", "innermost"]);
    assert_eq!(
        lines(frame),
        [line(C_SOURCE, "outer"), line(C_SOURCE, "middle"), line(C_SOURCE, "innermost")]
    );
}

#[test]
fn rust_and_cpp_names_are_demangled() {
    for args in [&["-g", "-O2"][..], &["-O2"]] {
        let dir = tempfile::tempdir().unwrap();
        let program = compile("g++", "CXX", dir.path(), "program.cc", CPP_SOURCE, args);
        let running = Running::start(&program, dir.path());
        let reported = ["deposit", "convert", "hidden", "lambda"];
        let profile = profile(reported.iter().map(|name| running.frame(name, false)).collect());
        let (profile, _) = symbolize_after_death(running, dir, profile);
        let found: Vec<&str> = profile.frames.iter().map(|frame| names(frame)[0]).collect();
        assert_eq!(found[0], "bank::Account::deposit(int)", "{args:?}");
        assert_eq!(found[1], "void bank::Account::convert<long>(long)", "{args:?}");
        assert_eq!(found[2], "(anonymous namespace)::Hidden::work()", "{args:?}");
        assert_eq!(found[3], "main::{lambda(int)#1}::operator()(int) const", "{args:?}");
        if args.contains(&"-g") {
            assert_eq!(profile.frames[0].functions[0].line, line(CPP_SOURCE, "deposit"));
        }
    }
    // The default mangling is legacy or v0, by the compiler's version.
    for mangling in [None, Some("-Csymbol-mangling-version=v0")] {
        for debug in ["0", "line-tables-only", "2"] {
            let dir = tempfile::tempdir().unwrap();
            let debug_arg = format!("-Cdebuginfo={debug}");
            let mut args = vec!["-O", "--edition=2021", debug_arg.as_str()];
            args.extend(mangling);
            let program = compile("rustc", "RUSTC", dir.path(), "program.rs", RUST_SOURCE, &args);
            let running = Running::start(&program, dir.path());
            let reported = ["transfer", "deposit", "closure"];
            let profile = profile(reported.iter().map(|name| running.frame(name, true)).collect());
            let (profile, _) = symbolize_after_death(running, dir, profile);
            let case = format!("{mangling:?}, debuginfo={debug}: {:#?}", profile.frames);
            assert_eq!(names(&profile.frames[0])[0], "program::bank::transfer", "{case}");
            let deposit = names(&profile.frames[1])[0];
            assert!(deposit.contains("program::bank::Account<") && deposit.ends_with(">::deposit"), "{case}");
            assert_eq!(names(&profile.frames[2])[0], "program::main", "{case}");
            if debug == "2" {
                assert_eq!(*names(&profile.frames[0]).last().unwrap(), "program::pc", "{case}");
                assert_eq!(profile.frames[0].functions[0].line, line(RUST_SOURCE, "transfer"), "{case}");
            }
        }
    }
}

#[test]
fn an_exec_keeps_old_mappings_and_adds_the_new_program() {
    let dir = tempfile::tempdir().unwrap();
    let script = "read line; exec sleep 60";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .current_dir(dir.path())
        .spawn()
        .unwrap();
    let pid = child.id();
    let is = |comm: &str| {
        let now = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        now.trim_end() == comm
    };
    // The name changes first in an exec; the mappings are complete only once the program runs.
    let runs = |comm: &str| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        is(comm) && maps.contains("libc")
    };
    while !runs("sh") {
        std::thread::yield_now();
    }
    let mut images = Images::new();
    images.snapshot(pid).unwrap();
    let before = images.mappings(pid).to_vec();
    let shell =
        before.iter().find(|mapping| mapping.path.ends_with("sh")).expect("the shell is mapped").clone();
    drop(child.stdin.take());
    while !runs("sleep") {
        std::thread::yield_now();
    }
    images.snapshot(pid).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(images.comm(pid), Some("sleep"));
    assert!(images.mappings(pid).iter().any(|mapping| mapping.path.ends_with("/sleep")));
    let starts: Vec<u64> = images.mappings(pid).iter().map(|mapping| mapping.start).collect();
    assert!(starts.is_sorted());
    // Address randomization lets the two programs overlap only by rare chance.
    let at_shell = images.mapping(pid, shell.start).expect("the old mapping or a newer one in its place");
    assert!(at_shell.path == shell.path || !before.contains(at_shell));
}

#[test]
fn kernel_frames_are_named_from_kallsyms() {
    let text = std::fs::read_to_string("/proc/kallsyms").expect("this kernel has kallsyms");
    let addr_of = |name: &str| {
        let line = text.lines().find(|line| line.split(' ').nth(2) == Some(name));
        let line = line.unwrap_or_else(|| panic!("{name} is in kallsyms"));
        u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
    };
    let functions = ["mutex_lock", "vfs_write", "ksys_write"];
    let frames = functions
        .iter()
        .enumerate()
        .map(|(index, name)| Frame::unsymbolized(Space::Kernel, None, addr_of(name) + 5, index == 0));
    let mut profile = profile(frames.collect());
    profile.locks = vec![lock(LockKind::Mutex, 0xffff_8880_0000_1000, 1)];
    symbolize(&mut profile, &Images::new(), &KernelSymbols::load().expect("kallsyms is readable"));
    if KernelSymbols::load().unwrap().hidden {
        assert_eq!(loss(&profile, "unsymbolized_kernel_frames"), 3);
        return;
    }
    let found: Vec<_> = profile.frames.iter().map(names).collect();
    assert_eq!(found, functions.map(|name| vec![name]));
    assert!(profile.frames.iter().all(|frame| frame.module.is_none()));
    assert_eq!(loss(&profile, "unsymbolized_kernel_frames"), 0);
    assert_eq!(profile.locks[0].call_site.as_deref(), Some("vfs_write"));
    assert_eq!(profile.locks[0].name, None, "the heap has no symbols");
}

/// The program of [`PLACES_SOURCE`] with its library, running.
fn places(args: &[&str], dir: tempfile::TempDir) -> (tempfile::TempDir, Running) {
    let program = compile("cc", "CC", dir.path(), "library.c", LIBRARY_SOURCE, &["-shared", "-fPIC"]);
    std::fs::rename(program, dir.path().join("library.so")).unwrap();
    let args = [&["-O1", "-Wno-unused-result"], args, &["-pthread", "-ldl"]].concat();
    let program = compile("cc", "CC", dir.path(), "program.c", PLACES_SOURCE, &args);
    let running = Running::start(&program, dir.path());
    (dir, running)
}

fn call(private: bool, place: FutexPlace) -> FutexCall {
    FutexCall {
        op: FutexOp::Wait,
        private,
        realtime: false,
        timeout: false,
        value: FutexValue::Two,
        place,
        words: FutexWords::default(),
        compat: false,
    }
}

const PRIVATE: (bool, FutexPlace) = (true, FutexPlace::Elsewhere);
const NOT_PRIVATE: (bool, FutexPlace) = (false, FutexPlace::Elsewhere);

impl Running {
    /// A row of the lock that the program reported by this name.
    fn lock(&self, name: &str, (private, place): (bool, FutexPlace)) -> Lock {
        let mut lock = lock(LockKind::Futex, self.addrs[name], self.pid());
        lock.sites[0].futex = Some(call(private, place));
        lock
    }

    fn locks(&self, names: &[&str]) -> Profile {
        Profile {
            locks: names.iter().map(|name| self.lock(name, PRIVATE)).collect(),
            ..profile(vec![Frame::unsymbolized(Space::User, Some(self.pid()), 0x1000, true)])
        }
    }
}

fn lock_names(profile: &Profile) -> Vec<Option<&str>> {
    profile.locks.iter().map(|lock| lock.name.as_deref()).collect()
}

fn lock_places(profile: &Profile) -> Vec<LockPlace> {
    profile.locks.iter().map(|lock| lock.place.clone().expect("the process is known")).collect()
}

#[test]
fn a_mutex_in_data_or_bss_is_named_by_its_variable() {
    // Position-independent or not, with debug information or none.
    for args in [&["-pie", "-fPIE"][..], &["-no-pie", "-fno-pie"], &["-g"]] {
        let (dir, running) = places(args, tempfile::tempdir().unwrap());
        let profile = running.locks(&["table", "cache", "plain"]);
        let (profile, _) = symbolize_after_death(running, dir, profile);
        let names = [Some("program`table+0x10"), Some("program`cache+0x10"), Some("program`plain")];
        assert_eq!(lock_names(&profile), names, "{args:?}");
        let global = |symbol: &str, offset| LockPlace::Global {
            module: "program".into(),
            symbol: symbol.into(),
            offset,
        };
        let expected = [global("table", 16), global("cache", 16), global("plain", 0)];
        assert_eq!(lock_places(&profile), expected, "{args:?}");
    }
}

#[test]
fn a_mutex_of_a_shared_library_is_named_by_its_variable() {
    let (dir, running) = places(&[], tempfile::tempdir().unwrap());
    let profile = running.locks(&["exported", "hidden"]);
    let (profile, _) = symbolize_after_death(running, dir, profile);
    assert_eq!(lock_names(&profile), [Some("library.so`exported"), Some("library.so`hidden+0x320")]);
}

#[test]
fn a_variable_is_no_part_of_the_stack_or_thread_storage_beside_it() {
    let (dir, running) = places(&[], tempfile::tempdir().unwrap());
    let mut profile = running.locks(&[]);
    // All that the waiters can tell is that the address is near.
    profile.locks = vec![
        running.lock("hidden", (true, FutexPlace::OwnStack)),
        running.lock("exported", (false, FutexPlace::ThreadLocal)),
    ];
    let (profile, _) = symbolize_after_death(running, dir, profile);
    assert_eq!(lock_names(&profile), [Some("library.so`hidden+0x320"), Some("library.so`exported")]);
}

#[test]
fn a_global_without_a_symbol_is_known_by_its_address_in_the_file() {
    // Linked where it runs, so that the address of the process is that of the file.
    let (dir, running) = places(&["-s", "-no-pie", "-fno-pie"], tempfile::tempdir().unwrap());
    let vaddr = running.addrs["cache"];
    let profile = running.locks(&["cache"]);
    let (profile, _) = symbolize_after_death(running, dir, profile);
    assert_eq!(lock_names(&profile), [Some(format!("program+{vaddr:#x}").as_str())]);
    assert_eq!(lock_places(&profile), [LockPlace::Module { module: "program".into(), vaddr }]);
}

#[test]
fn rust_and_cpp_variables_are_demangled() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile("g++", "CXX", dir.path(), "program.cc", CPP_PLACES_SOURCE, &["-O2"]);
    let running = Running::start(&program, dir.path());
    let profile = running.locks(&["vault", "secret", "inside"]);
    let (profile, _) = symbolize_after_death(running, dir, profile);
    let names = [
        Some("program`bank::vault+0x8"),
        Some("program`(anonymous namespace)::secret"),
        Some("program`once()::inside"),
    ];
    assert_eq!(lock_names(&profile), names);
    for mangling in [None, Some("-Csymbol-mangling-version=v0")] {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<&str> = ["--edition=2021"].into_iter().chain(mangling).collect();
        let program = compile("rustc", "RUSTC", dir.path(), "program.rs", RUST_PLACES_SOURCE, &args);
        let running = Running::start(&program, dir.path());
        let profile = running.locks(&["cache"]);
        let (profile, _) = symbolize_after_death(running, dir, profile);
        let name = lock_names(&profile)[0].unwrap();
        assert_eq!(name.split('+').next(), Some("program`program::bank::CACHE"), "{mangling:?}");
    }
}

#[test]
fn a_lock_in_a_shared_file_is_one_place_in_all_processes() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is writable");
    let shared = dir.path().join("shared");
    std::fs::write(&shared, [0; 8192]).unwrap();
    let (dir, mut first) = places(&[], dir);
    let mut second = Running::start(&dir.path().join("program"), dir.path());
    let mut images = Images::new();
    let mut profile = first.locks(&[]);
    for running in [&first, &second] {
        images.snapshot(running.pid()).unwrap();
        profile.locks.push(running.lock("shared", NOT_PRIVATE));
        profile.locks.push(running.lock("half", NOT_PRIVATE));
        // The kernel keeps these apart by process.
        profile.locks.push(running.lock("shared", PRIVATE));
    }
    first.kill();
    second.kill();
    let path = shared.to_str().unwrap().to_string();
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&shared).unwrap());
    dir.close().unwrap();
    symbolize(&mut profile, &images, &KernelSymbols::default());
    let name = format!("{path}+0x1040");
    let found = lock_places(&profile);
    for (index, place) in found.iter().enumerate() {
        if index % 3 == 2 {
            assert_eq!((place, &profile.locks[index].name), (&LockPlace::Heap, &None));
            continue;
        }
        assert_eq!(profile.locks[index].name.as_ref(), Some(&name));
        assert_eq!(place, &found[0]);
        let LockPlace::Shared { inode: found, offset, path: shown, .. } = place else { panic!("{place:?}") };
        assert_eq!((*found, *offset, shown), (inode, 0x1040, &path));
    }
}

#[test]
fn shared_memory_without_a_file_is_named_as_the_kernel_shows_it() {
    let (dir, running) = places(&[], tempfile::tempdir().unwrap());
    let mut profile = running.locks(&[]);
    profile.locks = vec![running.lock("memfd", NOT_PRIVATE), running.lock("anonymous", NOT_PRIVATE)];
    profile.locks[1].addr += 0x80;
    let (profile, _) = symbolize_after_death(running, dir, profile);
    assert_eq!(lock_names(&profile), [Some("/memfd:ring"), Some("/dev/zero+0x80")]);
}

#[test]
fn allocated_locks_and_those_of_a_thread_have_a_place_and_no_name() {
    let (dir, running) = places(&[], tempfile::tempdir().unwrap());
    let mut profile = running.locks(&["heap", "mapped", "stack"]);
    // Not private, as the C library waits for the end of a thread.
    profile.locks.push(running.lock("mapped", (false, FutexPlace::ThreadLocal)));
    profile.locks.push(running.lock("mapped", (true, FutexPlace::OwnStack)));
    // One of the waiters says otherwise, so it is not the others' own.
    let mut mixed = running.lock("mapped", (true, FutexPlace::ThreadLocal));
    mixed.sites.extend(running.lock("mapped", PRIVATE).sites);
    profile.locks.push(mixed);
    let (profile, _) = symbolize_after_death(running, dir, profile);
    use LockPlace::{Heap, Stack, ThreadLocal};
    assert_eq!(lock_places(&profile), [Heap, Heap, Stack, ThreadLocal, Stack, Heap]);
    assert_eq!(lock_names(&profile), [None; 6]);
}

#[test]
fn a_lock_of_a_process_without_a_snapshot_has_no_place() {
    let mut profile = profile(vec![]);
    profile.locks = vec![lock(LockKind::Futex, 0x1000, 1 << 30)];
    symbolize(&mut profile, &Images::new(), &KernelSymbols::default());
    assert_eq!((&profile.locks[0].place, &profile.locks[0].name), (&None, &None));
}

#[test]
fn a_mutex_of_a_closed_library_keeps_its_name_until_its_place_is_taken() {
    let (_dir, running) = places(&[], tempfile::tempdir().unwrap());
    let pid = running.pid();
    let mut images = Images::new();
    images.snapshot(pid).unwrap();
    let page = format!("{:x}-", running.addrs["hidden"] & !0xfff);
    let wait_until = |signal, reached: &dyn Fn(&str) -> bool| {
        while !reached(&std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()) {
            // Again and again: one that comes just before its pause is lost.
            // SAFETY: a signal to our own child.
            assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let names = |images: &Images| {
        let mut profile = running.locks(&["hidden", "cache"]);
        symbolize(&mut profile, images, &KernelSymbols::default());
        profile.locks.into_iter().map(|lock| lock.name).collect::<Vec<_>>()
    };
    let [hidden, cache] =
        ["library.so`hidden+0x320", "program`cache+0x10"].map(|name| Some(name.to_string()));
    wait_until(libc::SIGUSR1, &|maps| !maps.contains("library.so"));
    images.snapshot(pid).unwrap();
    assert_eq!(names(&images), [hidden, cache.clone()]);
    wait_until(libc::SIGUSR2, &|maps| maps.lines().any(|line| line.starts_with(&page)));
    images.snapshot(pid).unwrap();
    assert_eq!(names(&images), [None, cache]);
}
