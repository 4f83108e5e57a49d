//! `storm`: as much traffic on the kernel's own locks as a few threads can make, for soaks.
//!
//! In the spirit of hackbench: a ring of threads that pass a byte on through UNIX sockets, and between two bytes
//! each goes through what takes the hot spinlocks, mutexes and rwsems: the directory cache and inodes of one
//! directory, one shared pipe, the address space, process birth and death, a futex. Nothing is held for a chosen
//! time and nothing is proven; the truth is how many operations of each kind were done.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::Options;
use crate::truth::Outcome;

/// One fork in so many rounds: it costs as much as all the rest of them.
const ROUNDS_PER_FORK: u64 = 8;
const MAPPING_BYTES: usize = 16 * 4096;

/// The one user lock, for the futex calls.
static TOLL: Mutex<u64> = Mutex::new(0);

/// Operations done, by kind.
#[derive(Clone, Copy, Default)]
struct Operations {
    open: u64,
    create: u64,
    stat: u64,
    pipe: u64,
    socket: u64,
    map: u64,
    fork: u64,
    futex: u64,
}

impl Operations {
    fn add(&mut self, other: Operations) {
        self.open += other.open;
        self.create += other.create;
        self.stat += other.stat;
        self.pipe += other.pipe;
        self.socket += other.socket;
        self.map += other.map;
        self.fork += other.fork;
        self.futex += other.futex;
    }
}

/// Where the threads meet.
struct Place {
    dir: PathBuf,
    shared: PathBuf,
    pipe_in: File,
    pipe_out: File,
}

impl Place {
    fn new() -> Result<Place> {
        let dir = std::env::temp_dir().join(format!("lockprof-storm-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let shared = dir.join("shared");
        fs::write(&shared, [0; 4096]).with_context(|| format!("write {}", shared.display()))?;
        let mut ends = [0i32; 2];
        // SAFETY: `ends` has room for the two descriptors.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
        ensure!(made == 0, "create a pipe: {}", std::io::Error::last_os_error());
        // SAFETY: both are new and nobody else's.
        let (pipe_out, pipe_in) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
        Ok(Place { dir, shared, pipe_in, pipe_out })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn touch_files(place: &Place, own: &Path, done: &mut Operations) -> Result<()> {
    let mut page = [0; 64];
    File::open(&place.shared)?.read_exact(&mut page)?;
    done.open += 1;
    fs::metadata(&place.shared)?;
    done.stat += 1;
    drop(File::create(own)?);
    fs::remove_file(own)?;
    done.create += 1;
    Ok(())
}

/// Never blocks for good: who reads has written first, so there are never more readers than bytes.
fn use_pipe(place: &Place, done: &mut Operations) -> Result<()> {
    (&place.pipe_in).write_all(&[1])?;
    (&place.pipe_out).read_exact(&mut [0])?;
    done.pipe += 1;
    Ok(())
}

fn map_memory(done: &mut Operations) -> Result<()> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, of which every page is written once before it goes.
    unsafe {
        let place = libc::mmap(std::ptr::null_mut(), MAPPING_BYTES, access, flags, -1, 0);
        ensure!(place != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        for offset in (0..MAPPING_BYTES).step_by(4096) {
            place.cast::<u8>().add(offset).write_volatile(1);
        }
        ensure!(libc::munmap(place, MAPPING_BYTES) == 0, "munmap: {}", std::io::Error::last_os_error());
    }
    done.map += 1;
    Ok(())
}

fn fork_child(done: &mut Operations) -> Result<()> {
    // SAFETY: the child calls nothing but _exit, which is async-signal-safe.
    unsafe {
        let child = libc::fork();
        ensure!(child >= 0, "fork: {}", std::io::Error::last_os_error());
        if child == 0 {
            libc::_exit(0);
        }
        ensure!(libc::waitpid(child, std::ptr::null_mut(), 0) == child, "the child is lost");
    }
    done.fork += 1;
    Ok(())
}

fn pay_toll(done: &mut Operations) {
    let mut toll = TOLL.lock().unwrap_or_else(PoisonError::into_inner);
    // Gives the others time to come and wait.
    thread::yield_now();
    *toll += 1;
    done.futex += 1;
}

/// Hands one byte on and waits for one. `false`: a neighbour has ended.
fn pass_byte(next: &mut UnixStream, previous: &mut UnixStream, done: &mut Operations) -> Result<bool> {
    let passed = next.write_all(&[1]).and_then(|()| previous.read_exact(&mut [0]));
    match passed {
        Ok(()) => done.socket += 1,
        Err(error) => match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                return Ok(false);
            }
            _ => return Err(error).context("pass a byte on"),
        },
    }
    Ok(true)
}

fn run_thread(
    place: &Place,
    number: usize,
    until: Instant,
    mut next: UnixStream,
    mut previous: UnixStream,
) -> Result<Operations> {
    let own = place.dir.join(number.to_string());
    let mut done = Operations::default();
    let mut work = || -> Result<()> {
        for round in 0u64.. {
            if Instant::now() >= until || !pass_byte(&mut next, &mut previous, &mut done)? {
                return Ok(());
            }
            touch_files(place, &own, &mut done)?;
            use_pipe(place, &mut done)?;
            map_memory(&mut done)?;
            pay_toll(&mut done);
            if round.is_multiple_of(ROUNDS_PER_FORK) {
                fork_child(&mut done)?;
            }
        }
        Ok(())
    };
    let result = work();
    // Not by closing: a child of another thread's may still have the socket open. The neighbours end by it.
    let _ = next.shutdown(Shutdown::Both);
    let _ = previous.shutdown(Shutdown::Both);
    result.map(|()| done)
}

pub fn run(options: &Options) -> Result<Outcome> {
    let threads = options.waiters as usize;
    let seconds = Duration::try_from_secs_f64(options.seconds).context("--seconds")?;
    let place = Place::new()?;
    let (mut nexts, mut previouses) = (Vec::new(), Vec::new());
    for _ in 0..threads {
        let (next, previous) = UnixStream::pair().context("create a socket pair")?;
        nexts.push(next);
        previouses.push(previous);
    }
    previouses.rotate_right(1);

    let until = Instant::now() + seconds;
    let done = thread::scope(|scope| -> Result<Operations> {
        let place = &place;
        let running: Vec<_> = nexts
            .into_iter()
            .zip(previouses)
            .enumerate()
            .map(|(number, (next, previous))| {
                scope.spawn(move || run_thread(place, number, until, next, previous))
            })
            .collect();
        let mut done = Operations::default();
        for thread in running {
            done.add(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        Ok(done)
    })?;

    let mut outcome = Outcome { waiters: options.waiters, ..Outcome::default() };
    let operations = json!({
        "open": done.open, "create": done.create, "stat": done.stat, "pipe": done.pipe,
        "socket": done.socket, "map": done.map, "fork": done.fork, "futex": done.futex,
    });
    outcome.extra.insert("operations".to_string(), operations);
    Ok(outcome)
}
