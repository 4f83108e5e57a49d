//! `busy`: a small trading program, for demos, flame graphs and overhead measurements.
//!
//! Order threads match orders against one ledger behind a lock that is much too hot, and keep a journal behind
//! another that is less so; the journal is flushed to a pipe that a journal thread drains. The hot lock is
//! reached over call paths of different weight and depth:
//!
//! ```text
//! handle_order > match_orders > fill_order > update_ledger      every order, holds --hold-us
//! handle_order > cancel_order > update_ledger                   every 5th, holds half of it
//! handle_order > check_risk                                     every order, holds an eighth
//! publish_snapshot > read_positions                             every 16th, holds twice
//! handle_order > record_event > append_journal                  JOURNAL, every order, holds a quarter
//! handle_order > record_event > flush_journal > write_journal   JOURNAL and the pipe, every 8th
//! ```
//!
//! Unlike in the other scenarios, contention is up to chance; the truth is what the threads measured, see
//! [`lock_counted`].

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use crate::Options;
use crate::clock::now_ns;
use crate::crew::gettid;
use crate::rust_std::place;
use crate::truth::{Attempt, FutexUse, LockRow, Outcome, Tally, hex};

struct Ledger {
    positions: [i64; 64],
    trades: u64,
}

struct Journal {
    pending: Vec<u8>,
    events: u64,
}

#[unsafe(no_mangle)]
static LEDGER: Mutex<Ledger> = Mutex::new(Ledger { positions: [0; 64], trades: 0 });
#[unsafe(no_mangle)]
static JOURNAL: Mutex<Journal> = Mutex::new(Journal { pending: Vec::new(), events: 0 });

/// The waits of one thread, by the function that waits.
#[derive(Default)]
struct Waits {
    update_ledger: Tally,
    check_risk: Tally,
    read_positions: Tally,
    append_journal: Tally,
    flush_journal: Tally,
}

/// What an order thread carries along.
struct Desk {
    random: u64,
    hold: Duration,
    orders: u64,
    waits: Waits,
    pipe: Arc<File>,
}

#[derive(Clone, Copy)]
struct Order {
    account: usize,
    quantity: i64,
}

/// Locks, and counts the acquisition as contended if the lock was taken at first sight.
///
/// That is an upper bound for the number of futex waits: a Rust mutex spins for a moment before it sleeps.
#[inline(always)]
fn lock_counted<T>(mutex: &'static Mutex<T>, waits: &mut Tally) -> MutexGuard<'static, T> {
    match mutex.try_lock() {
        Ok(guard) => return guard,
        Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {}
    }
    let before = now_ns();
    let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
    waits.add(Attempt { wait_ns: now_ns() - before, aborted: false });
    guard
}

/// Computes for some time. Really computes: a sleeping thread would look different in a profile.
#[inline(never)]
fn compute(time: Duration, seed: u64) -> u64 {
    let end = Instant::now() + time;
    let mut hash = seed | 1;
    while Instant::now() < end {
        for _ in 0..64 {
            hash = black_box(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
        }
    }
    hash
}

#[inline(never)]
fn handle_order(desk: &mut Desk) -> Result<()> {
    let order = next_order(desk);
    parse_order(desk, order);
    let allowed = check_risk(desk, order);
    // Work between the locks. Without it a thread would take the ledger again before its waiters have woken.
    price_order(desk, order);
    if desk.orders.is_multiple_of(5) {
        cancel_order(desk, order);
    }
    let filled = if allowed { match_orders(desk, order) } else { 0 };
    price_order(desk, order);
    record_event(desk, order, filled)?;
    desk.orders += 1;
    Ok(())
}

#[inline(never)]
fn parse_order(desk: &Desk, order: Order) {
    black_box(compute(desk.hold / 2, order.account as u64));
}

#[inline(never)]
fn acknowledge_order(desk: &Desk, order: Order) {
    black_box(compute(desk.hold / 4, order.quantity as u64));
}

#[inline(never)]
fn price_order(desk: &Desk, order: Order) {
    black_box(compute(desk.hold, order.quantity as u64));
}

fn next_order(desk: &mut Desk) -> Order {
    // xorshift: the same orders in every run.
    desk.random ^= desk.random << 13;
    desk.random ^= desk.random >> 7;
    desk.random ^= desk.random << 17;
    Order { account: (desk.random % 64) as usize, quantity: (desk.random >> 8) as i64 % 100 }
}

#[inline(never)]
fn check_risk(desk: &mut Desk, order: Order) -> bool {
    let ledger = lock_counted(&LEDGER, &mut desk.waits.check_risk);
    black_box(compute(desk.hold / 8, ledger.trades));
    ledger.positions[order.account].abs() < 1_000_000
}

#[inline(never)]
fn match_orders(desk: &mut Desk, order: Order) -> i64 {
    let mut left = order.quantity;
    let mut filled = 0;
    while left != 0 {
        let part = fill_order(desk, order.account, left);
        left -= part;
        filled += part;
    }
    filled
}

#[inline(never)]
fn fill_order(desk: &mut Desk, account: usize, quantity: i64) -> i64 {
    let hold = desk.hold;
    update_ledger(desk, account, quantity, hold);
    black_box(quantity)
}

#[inline(never)]
fn cancel_order(desk: &mut Desk, order: Order) {
    let hold = desk.hold / 2;
    update_ledger(desk, order.account, -order.quantity, hold);
    black_box(&order.quantity);
}

#[inline(never)]
fn update_ledger(desk: &mut Desk, account: usize, quantity: i64, hold: Duration) {
    let mut ledger = lock_counted(&LEDGER, &mut desk.waits.update_ledger);
    ledger.positions[account] += quantity;
    ledger.trades += 1;
    black_box(compute(hold, ledger.trades));
}

#[inline(never)]
fn publish_snapshot(desk: &mut Desk) -> i64 {
    let total = read_positions(desk);
    black_box(compute(desk.hold, total as u64));
    total
}

#[inline(never)]
fn read_positions(desk: &mut Desk) -> i64 {
    let ledger = lock_counted(&LEDGER, &mut desk.waits.read_positions);
    black_box(compute(desk.hold * 2, ledger.trades));
    ledger.positions.iter().sum()
}

#[inline(never)]
fn record_event(desk: &mut Desk, order: Order, filled: i64) -> Result<()> {
    append_journal(desk, order, filled);
    acknowledge_order(desk, order);
    if desk.orders % 8 == 7 {
        flush_journal(desk)?;
    }
    Ok(())
}

#[inline(never)]
fn append_journal(desk: &mut Desk, order: Order, filled: i64) {
    let mut journal = lock_counted(&JOURNAL, &mut desk.waits.append_journal);
    journal.events += 1;
    journal.pending.extend_from_slice(&order.account.to_le_bytes());
    journal.pending.extend_from_slice(&filled.to_le_bytes());
    black_box(compute(desk.hold / 4, journal.events));
}

#[inline(never)]
fn flush_journal(desk: &mut Desk) -> Result<()> {
    let batch = {
        let mut journal = lock_counted(&JOURNAL, &mut desk.waits.flush_journal);
        black_box(compute(desk.hold / 2, journal.events));
        std::mem::take(&mut journal.pending)
    };
    write_journal(&desk.pipe, &batch)
}

#[inline(never)]
fn write_journal(mut pipe: &File, batch: &[u8]) -> Result<()> {
    // Record by record, so that writer and reader meet in the pipe.
    for record in batch.chunks(16) {
        pipe.write_all(black_box(record)).context("write the journal to the pipe")?;
    }
    Ok(())
}

#[inline(never)]
fn trade(desk: &mut Desk, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        handle_order(desk)?;
        if desk.orders.is_multiple_of(16) {
            black_box(publish_snapshot(desk));
        }
    }
    Ok(())
}

/// Reads the pipe until its writers are gone; returns the number of bytes.
#[inline(never)]
fn drain_journal(mut pipe: File) -> Result<u64> {
    let mut buffer = [0u8; 512];
    let mut total = 0;
    loop {
        match pipe.read(&mut buffer).context("read the journal from the pipe")? {
            0 => return Ok(total),
            len => total += len as u64,
        }
    }
}

pub fn run(options: &Options) -> Result<Outcome> {
    let time = Duration::try_from_secs_f64(options.seconds).context("--seconds")?;
    let (reader, writer) = pipe()?;
    let writer = Arc::new(writer);
    let stop = Arc::new(AtomicBool::new(false));
    let journal = spawn("journald", move || drain_journal(reader))?;
    let mut threads = Vec::new();
    let mut tids = Vec::new();
    for index in 0..options.waiters {
        let mut desk = Desk {
            random: 0x2545_f491_4f6c_dd1d ^ (index + 1),
            hold: Duration::from_micros(options.hold_us),
            orders: 0,
            waits: Waits::default(),
            pipe: Arc::clone(&writer),
        };
        let tid = Arc::new(AtomicI32::new(0));
        let (stop, own_tid) = (Arc::clone(&stop), Arc::clone(&tid));
        threads.push(spawn(&format!("orders-{index}"), move || {
            own_tid.store(gettid(), Ordering::Release);
            trade(&mut desk, &stop).map(|()| desk)
        })?);
        tids.push(tid);
    }
    drop(writer);

    let ledger_word = AtomicU64::new(0);
    let journal_word = AtomicU64::new(0);
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        for tid in &tids {
            note_futex(tid.load(Ordering::Acquire), &ledger_word, &journal_word);
        }
    }
    stop.store(true, Ordering::Relaxed);

    let mut desks = Vec::new();
    for thread in threads {
        desks.push(thread.join().map_err(|_| anyhow!("an order thread panicked"))??);
    }
    let tids: Vec<i32> = tids.iter().map(|tid| tid.load(Ordering::Acquire)).collect();
    let operations: Vec<_> =
        desks.iter().zip(&tids).map(|(desk, tid)| json!({ "tid": tid, "operations": desk.orders })).collect();

    type Pick = fn(&Waits) -> &Tally;
    let sites: [(&str, &AtomicU64, &str, Pick); 5] = [
        ("LEDGER", &ledger_word, "update_ledger", |waits| &waits.update_ledger),
        ("LEDGER", &ledger_word, "check_risk", |waits| &waits.check_risk),
        ("LEDGER", &ledger_word, "read_positions", |waits| &waits.read_positions),
        ("JOURNAL", &journal_word, "append_journal", |waits| &waits.append_journal),
        ("JOURNAL", &journal_word, "flush_journal", |waits| &waits.flush_journal),
    ];
    let mut locks = Vec::new();
    for (name, word, call_site, pick) in sites {
        let mut tally = Tally::default();
        desks.iter().for_each(|desk| tally.merge(pick(&desk.waits)));
        let word = word.load(Ordering::Relaxed);
        locks.push(LockRow {
            addr: (word != 0).then(|| hex(word)),
            call_site: Some(call_site.to_string()),
            tids: tids.clone(),
            ..LockRow::user(FutexUse::RUST_MUTEX, name, &tally)
        });
    }
    // Contended too, but nobody can see from here how often.
    locks.push(LockRow::unknown("mutex", "pipe_inode_info.mutex"));

    drop(desks); // the last writers of the pipe
    let journal_bytes = journal.join().map_err(|_| anyhow!("the journal thread panicked"))??;
    let mut outcome = Outcome { rounds: 1, hold_ns: None, ..options.outcome(locks) };
    outcome.extra.insert("operations".to_string(), json!(operations));
    outcome.extra.insert("journal_bytes".to_string(), json!(journal_bytes));
    Ok(outcome)
}

/// Learns the futex words of the two locks from threads that are seen asleep on them.
fn note_futex(tid: i32, ledger: &AtomicU64, journal: &AtomicU64) {
    for (place, word) in [(place(&LEDGER), ledger), (place(&JOURNAL), journal)] {
        if let Some(sighting) = place.check(tid) {
            word.store(sighting.futex.unwrap_or(0), Ordering::Relaxed);
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_string())
        .spawn(body)
        .with_context(|| format!("start thread {name}"))
}

fn pipe() -> Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        bail!("pipe2: {}", std::io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and belong to nobody else.
    Ok(unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) })
}
