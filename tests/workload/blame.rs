//! `two-holders`, `chain`, `slow-holder`: prove who made the others wait, and why it was slow.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::Options;
use crate::blocked::WaitsIn;
use crate::clock::now_ns;
use crate::crew::{Crew, Hold, Job, Member, OrderedHold, Waiter};
use crate::kernel::{TmpfsDir, row, timed};
use crate::pthread::{PthreadMutex, wait_for_pthread_mutex};
use crate::truth::{Attempt, FutexUse, LockRow, Outcome, Tally};
use crate::userfault::FaultPage;

/// A clock reading that another thread looks at later.
#[derive(Clone, Default)]
struct Moment(Arc<AtomicU64>);

impl Moment {
    fn is_now(&self) {
        self.0.store(now_ns(), Ordering::Release);
    }

    fn ns(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A waiter, and when it began to wait.
struct TimedWaiter {
    waiter: Waiter,
    began: Moment,
}

fn cost_of(waiters: &[TimedWaiter], released_ns: u64) -> u64 {
    waiters.iter().map(|timed| released_ns.saturating_sub(timed.began.ns())).sum()
}

fn queue(waiters: &mut [TimedWaiter]) -> Result<()> {
    for timed in waiters {
        timed.waiter.member.start()?;
        timed.waiter.member.await_blocked(&timed.waiter.place)?.context("a waiter did not have to wait")?;
    }
    Ok(())
}

fn all_done(waiters: &mut [TimedWaiter]) -> Result<()> {
    for timed in waiters {
        timed.waiter.tally.add(timed.waiter.member.await_done()?);
    }
    Ok(())
}

fn holder_truth(member: &Member, comm: &str, blamed_ns: u64) -> Value {
    json!({ "tid": member.tid(), "comm": comm, "blamed_ns": blamed_ns })
}

/// One of two threads that read the same file by turns, each into a page that stops it.
struct Turn {
    name: &'static str,
    holder: Member,
    page: FaultPage,
    released: Moment,
    keep: Duration,
    blamed_ns: u64,
}

impl Turn {
    fn new(name: &'static str, file: &Arc<File>, keep: Duration) -> Result<Turn> {
        let page = FaultPage::new()?;
        let (stop, file, released) = (page.buffer(), Arc::clone(file), Moment::default());
        let end = released.clone();
        let holder = Member::spawn(
            name,
            Box::new(move || {
                // SAFETY: the kernel writes at most 64 bytes to the page, which no Rust value lives in.
                let read = || unsafe { libc::read(file.as_raw_fd(), stop.ptr(), 64) as i64 };
                let attempt = timed("read", read)?.0;
                end.is_now();
                Ok(attempt)
            }),
        )?;
        Ok(Turn { name, holder, page, released, keep, blamed_ns: 0 })
    }
}

/// `file->f_pos_lock` held for long by one thread and shortly by another, while innocent threads seek.
pub fn run_two_holders(options: &Options) -> Result<Outcome> {
    let dir = TmpfsDir::new()?;
    let path = dir.path().join("shared");
    let mut file =
        OpenOptions::new().create_new(true).read(true).write(true).open(&path).context("create")?;
    file.write_all(&[b'x'; 64]).context("write to tmpfs")?;
    let file = Arc::new(file);
    let mut turns = [
        Turn::new("long-holder", &file, options.hold())?,
        Turn::new("short-holder", &file, options.hold() / 3)?,
    ];
    let mut waiters = Vec::new();
    for index in 0..options.waiters {
        let (theirs, began) = (Arc::clone(&file), Moment::default());
        let begin = began.clone();
        let job: Job = Box::new(move || {
            begin.is_now();
            // SAFETY: no pointers are passed.
            let seek = || unsafe { libc::lseek(theirs.as_raw_fd(), 0, libc::SEEK_SET) };
            Ok(timed("lseek", seek)?.0)
        });
        let place = WaitsIn::KernelLock(libc::SYS_lseek);
        waiters.push(TimedWaiter { waiter: Waiter::spawn(&format!("innocent-{index}"), place, job)?, began });
    }
    for _ in 0..options.rounds {
        for turn in &mut turns {
            (&*file).seek(SeekFrom::Start(0)).context("seek")?;
            turn.page.prepare()?;
            turn.holder.start()?;
            turn.page.await_held()?;
            queue(&mut waiters)?;
            std::thread::sleep(turn.keep);
            turn.page.release()?;
            turn.holder.await_done()?;
            turn.blamed_ns += cost_of(&waiters, turn.released.ns());
            all_done(&mut waiters)?;
        }
    }
    let mut outcome =
        options.outcome(vec![row("mutex", "file.f_pos_lock", waiters.iter().map(|timed| &timed.waiter))]);
    let holders: Vec<Value> =
        turns.iter().map(|turn| holder_truth(&turn.holder, turn.name, turn.blamed_ns)).collect();
    outcome.extra.insert("holders".into(), holders.into());
    for turn in turns {
        turn.holder.dismiss()?;
    }
    waiters.into_iter().try_for_each(|timed| timed.waiter.member.dismiss())?;
    Ok(outcome)
}

#[unsafe(no_mangle)]
static WORKLOAD_CHAIN_OUTER: PthreadMutex = PthreadMutex::new();
#[unsafe(no_mangle)]
static WORKLOAD_CHAIN_INNER: PthreadMutex = PthreadMutex::new();

fn mutex_waiters(mutex: &'static PthreadMutex, name: &str, options: &Options) -> Result<Vec<TimedWaiter>> {
    (0..options.waiters)
        .map(|index| {
            let began = Moment::default();
            let begin = began.clone();
            let job: Job = Box::new(move || {
                let mut wait_ns = 0;
                begin.is_now();
                wait_for_pthread_mutex(mutex, &mut wait_ns);
                mutex.unlock()?;
                Ok(Attempt { wait_ns, aborted: false })
            });
            Ok(TimedWaiter { waiter: Waiter::spawn(&format!("{name}-{index}"), mutex.place(), job)?, began })
        })
        .collect()
}

/// The middle thread holds the outer lock and waits for the inner one, which the root holds.
pub fn run_chain(options: &Options) -> Result<Outcome> {
    let hold = OrderedHold::new()?;
    let (theirs, root_released) = (Arc::clone(&hold), Moment::default());
    let end = root_released.clone();
    let root = Member::spawn(
        "root",
        Box::new(move || {
            WORKLOAD_CHAIN_INNER.lock()?;
            theirs.keep()?;
            end.is_now();
            WORKLOAD_CHAIN_INNER.unlock()?;
            Ok(Attempt { wait_ns: 0, aborted: false })
        }),
    )?;
    let middle_released = Moment::default();
    let end = middle_released.clone();
    let middle = Member::spawn(
        "middle",
        Box::new(move || {
            let mut wait_ns = 0;
            WORKLOAD_CHAIN_OUTER.lock()?;
            wait_for_pthread_mutex(&WORKLOAD_CHAIN_INNER, &mut wait_ns);
            WORKLOAD_CHAIN_INNER.unlock()?;
            end.is_now();
            WORKLOAD_CHAIN_OUTER.unlock()?;
            Ok(Attempt { wait_ns, aborted: false })
        }),
    )?;
    let mut waiters = mutex_waiters(&WORKLOAD_CHAIN_OUTER, "victim", options)?;
    let (mut blamed_ns, mut chained_ns) = (0, 0);
    let mut hold = hold;
    for _ in 0..options.rounds {
        root.start()?;
        hold.await_held()?;
        middle.start()?;
        middle.await_blocked(&WORKLOAD_CHAIN_INNER.place())?.context("the middle did not have to wait")?;
        queue(&mut waiters)?;
        std::thread::sleep(options.hold());
        hold.release()?;
        root.await_done()?;
        middle.await_done()?;
        blamed_ns += cost_of(&waiters, middle_released.ns());
        chained_ns += cost_of(&waiters, root_released.ns());
        all_done(&mut waiters)?;
    }
    let mut tally = Tally::default();
    waiters.iter().for_each(|timed| tally.merge(&timed.waiter.tally));
    let mut outcome =
        options.outcome(vec![LockRow::user(FutexUse::GLIBC_MUTEX, "WORKLOAD_CHAIN_OUTER", &tally)]);
    outcome.extra.insert("holders".into(), json!([holder_truth(&middle, "middle", blamed_ns)]));
    outcome.extra.insert("chained_ns".into(), chained_ns.into());
    outcome.extra.insert("root_tid".into(), root.tid().into());
    root.dismiss()?;
    middle.dismiss()?;
    waiters.into_iter().try_for_each(|timed| timed.waiter.member.dismiss())?;
    Ok(outcome)
}

/// What keeps the holder of `slow-holder` from letting go.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Why {
    Sleep,
    Spin,
    /// Another thread wants the same CPU
    Preempted,
    /// Reads from a disk, past the page cache
    Io,
}

fn spin_until(end: Instant) {
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn pin_to(cpu: usize) -> Result<()> {
    // SAFETY: a zeroed cpu_set_t is an empty one.
    let done = unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut cpus);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &cpus)
    };
    if done != 0 {
        return Err(io::Error::last_os_error()).context("sched_setaffinity");
    }
    Ok(())
}

/// What the kernel says about a thread: on a CPU, and ready for one that it did not get.
/// (Documentation/scheduler/sched-stats.rst)
fn cpu_and_delay_ns() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("schedstat")?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(cpu_ns)), Some(Ok(delay_ns))) => Ok((cpu_ns, delay_ns)),
        _ => Err(anyhow!("schedstat says {text:?}")),
    }
}

/// Sums over the slow parts of all holds.
#[derive(Default)]
struct Slow {
    wall_ns: AtomicU64,
    cpu_ns: AtomicU64,
    delay_ns: AtomicU64,
}

impl Slow {
    fn time(&self, what: impl FnOnce() -> Result<()>) -> Result<()> {
        let (begin_ns, (cpu_ns, delay_ns)) = (now_ns(), cpu_and_delay_ns()?);
        what()?;
        let (more_cpu_ns, more_delay_ns) = cpu_and_delay_ns()?;
        self.wall_ns.fetch_add(now_ns() - begin_ns, Ordering::Relaxed);
        self.cpu_ns.fetch_add(more_cpu_ns - cpu_ns, Ordering::Relaxed);
        self.delay_ns.fetch_add(more_delay_ns - delay_ns, Ordering::Relaxed);
        Ok(())
    }
}

/// The holder and a thread that does nothing but run share CPU 0.
fn be_preempted(hold: Duration) -> Result<()> {
    pin_to(0)?;
    let over = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&over);
    let rival = std::thread::spawn(move || {
        pin_to(0).expect("what one thread may do, another may");
        while !theirs.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    spin_until(Instant::now() + hold);
    over.store(true, Ordering::Relaxed);
    rival.join().expect("it only spins");
    Ok(())
}

/// A file on a disk, removed on drop.
struct DiskFile(PathBuf);

impl Drop for DiskFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn read_from_disk(hold: Duration) -> Result<()> {
    const BLOCK: usize = 4096;
    const BLOCKS: usize = 2048;
    // Not /tmp, which may be in memory.
    let path = PathBuf::from("/var/tmp").join(format!("lockprof-workload-{}", std::process::id()));
    std::fs::write(&path, vec![1u8; BLOCK * BLOCKS]).with_context(|| format!("write {}", path.display()))?;
    let guard = DiskFile(path);
    File::open(&guard.0).and_then(|file| file.sync_all()).context("fsync")?;
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&guard.0).context("O_DIRECT")?;
    let layout = std::alloc::Layout::from_size_align(BLOCK, BLOCK).expect("a page");
    // SAFETY: the layout has a size.
    let buffer = unsafe { std::alloc::alloc(layout) };
    let end = Instant::now() + hold;
    let mut block = 0usize;
    while Instant::now() < end {
        // Not in order, so that no disk reads ahead.
        block = (block + 911) % BLOCKS;
        // SAFETY: the buffer is one block long.
        let got =
            unsafe { libc::pread(file.as_raw_fd(), buffer.cast(), BLOCK, (block * BLOCK) as libc::off_t) };
        if got < 0 {
            return Err(io::Error::last_os_error()).context("read past the page cache");
        }
    }
    // SAFETY: as it was allocated.
    unsafe { std::alloc::dealloc(buffer, layout) };
    Ok(())
}

#[unsafe(no_mangle)]
static WORKLOAD_SLOW_HOLDER: PthreadMutex = PthreadMutex::new();

/// A holder that is slow for a chosen reason, from when the last waiter has come.
pub fn run_slow_holder(options: &Options) -> Result<Outcome> {
    let hold = OrderedHold::new()?;
    let (theirs, why, keep) = (Arc::clone(&hold), options.why, options.hold());
    let slow = Arc::new(Slow::default());
    let clock = Arc::clone(&slow);
    let holder = Member::spawn(
        "holder",
        Box::new(move || {
            WORKLOAD_SLOW_HOLDER.lock()?;
            theirs.keep()?;
            clock.time(|| match why {
                Why::Sleep => {
                    std::thread::sleep(keep);
                    Ok(())
                }
                Why::Spin => {
                    spin_until(Instant::now() + keep);
                    Ok(())
                }
                Why::Preempted => be_preempted(keep),
                Why::Io => read_from_disk(keep),
            })?;
            WORKLOAD_SLOW_HOLDER.unlock()?;
            Ok(Attempt { wait_ns: 0, aborted: false })
        }),
    )?;
    let waiters = mutex_waiters(&WORKLOAD_SLOW_HOLDER, "waiter", options)?;
    let waiters = waiters.into_iter().map(|timed| timed.waiter).collect();
    let mut crew = Crew { hold, holder, waiters };
    for _ in 0..options.rounds {
        crew.block()?;
        crew.unblock()?;
    }
    let (tally, _) = crate::crew::sum(crew.waiters.iter());
    let mut outcome =
        options.outcome(vec![LockRow::user(FutexUse::GLIBC_MUTEX, "WORKLOAD_SLOW_HOLDER", &tally)]);
    let slow = json!({
        "tid": crew.holder.tid(),
        "wall_ns": slow.wall_ns.load(Ordering::Relaxed),
        "cpu_ns": slow.cpu_ns.load(Ordering::Relaxed),
        "delay_ns": slow.delay_ns.load(Ordering::Relaxed),
    });
    outcome.extra.insert("slow_holder".into(), slow);
    crew.dismiss()?;
    Ok(outcome)
}
