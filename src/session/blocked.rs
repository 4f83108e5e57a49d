//! Threads that waited in a futex call before the profile began. No hook saw them enter; who they are,
//! what they wait for and their user stacks are found from outside, without stopping anybody.
//!
//! `/proc/PID/task/TID/syscall` has the call, its arguments and where the stack is; the stack is read with
//! process_vm_readv(2) and walked by the same rules as in BPF ([`crate::unwind::walk`]). Only the frame
//! pointer is not in /proc: an iterator of tasks has it, where the kernel allows one
//! ([`crate::bpf::registers_of_blocked`]). C is walked well without, Rust's standard library is not.

use crate::bpf::Words;
use crate::model::FutexOp;
use crate::symbolize::Images;
use crate::unwind::{Registers, Tables, WalkEnd, walk};
use std::collections::HashMap;
use std::fs;
use std::io;

/// Linux 6.7; the libc crate does not have it everywhere.
const SYS_FUTEX_WAIT: i64 = 455;
/// arch/x86/entry/syscalls/syscall_32.tbl
const COMPAT_SYS_FUTEX: i64 = 240;
/// FUTEX_PRIVATE_FLAG, FUTEX2_PRIVATE
const PRIVATE: u32 = 128;
/// bpf/futex.bpf.h's own number for futex_waitv(2)
const WAITV: u32 = 0x7f;

/// A system call that has not returned, as /proc shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub nr: i64,
    pub args: [u64; 6],
    pub sp: u64,
    pub pc: u64,
}

/// A thread in a futex call that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub tid: u32,
    pub comm: String,
    pub call: Call,
}

/// The same, with what it waits for and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlreadyWaiting {
    pub pid: u32,
    pub tid: u32,
    pub comm: String,
    pub nr: i64,
    pub op: FutexOp,
    /// The command and its flags as of futex(2); 0x7f is futex_waitv(2).
    pub op_bits: u32,
    /// What is in memory around the word.
    pub words: Option<Words>,
    /// Of futex_waitv(2): the first of its words.
    pub uaddr: u64,
    pub val: u32,
    pub timeout: bool,
    pub args: [u64; 6],
    pub sp: u64,
    /// Innermost first.
    pub pcs: Vec<u64>,
    pub end: WalkEnd,
}

impl AlreadyWaiting {
    pub fn incomplete(&self) -> bool {
        self.end != WalkEnd::Complete
    }
}

/// Threads that perhaps wait and are not among those found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlooked {
    /// Threads, or whole processes, whose /proc files or memory may not be read.
    pub unreadable: u64,
    /// Threads whose wait has a timeout, was interrupted (stopped and continued, traced) and goes on as
    /// restart_syscall(2): which call that restarts, its number does not say.
    pub restarted: u64,
    /// Threads of 32-bit programs.
    pub compat: u64,
    /// Threads that went on while their stack was read: it may be half of one wait and half of another.
    pub went_on: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub waiting: Vec<AlreadyWaiting>,
    pub overlooked: Overlooked,
}

/// The threads of these processes that wait in a futex call now.
///
/// Stacks are walked with the mappings `images` has of a process; without `tables` they are the innermost
/// address alone. `registers` are by thread id; those that are not there, or are not of the same wait any
/// more, are done without.
pub fn find(
    pids: &[u32],
    mut tables: Option<&mut Tables>,
    images: &Images,
    registers: &HashMap<u32, Registers>,
) -> Found {
    let mut found = Found::default();
    for pid in pids {
        let blocked = blocked_in_futex(*pid, &mut found.overlooked);
        if blocked.is_empty() {
            continue;
        }
        let table = tables.as_mut().map(|tables| tables.of_process(images, *pid)).unwrap_or_default();
        let rows = tables.as_ref().map_or(&[][..], |tables| tables.rows());
        for Blocked { tid, comm, call } in blocked {
            let mut memory = Memory::new(tid);
            let Some(asked) = Asked::of(&call, &mut memory) else {
                found.overlooked.unreadable += 1;
                continue;
            };
            let same_place = registers.get(&tid).filter(|known| (known.ip, known.sp) == (call.pc, call.sp));
            let from = same_place.copied().unwrap_or(Registers { ip: call.pc, sp: call.sp, bp: None });
            let walked = walk(&table, rows, from, &mut |at, to| memory.read(at, to));
            let waiting = AlreadyWaiting {
                pid: *pid,
                tid,
                comm,
                nr: call.nr,
                op: asked.op,
                op_bits: asked.op_bits,
                words: read_words(&mut memory, asked.uaddr),
                uaddr: asked.uaddr,
                val: asked.val,
                timeout: asked.timeout,
                args: call.args,
                sp: call.sp,
                pcs: walked.pcs,
                end: walked.end,
            };
            if still_blocked(*pid, tid, &waiting) {
                found.waiting.push(waiting);
            } else {
                found.overlooked.went_on += 1;
            }
        }
    }
    found
}

/// Whether it is in the same call with the same arguments from the same place. That it returned and came
/// back meanwhile can not be told.
pub fn still_blocked(pid: u32, tid: u32, waiting: &AlreadyWaiting) -> bool {
    let AlreadyWaiting { nr, args, sp, .. } = *waiting;
    let was = waiting.pcs.first().map(|pc| Call { nr, args, sp, pc: *pc });
    was.is_some() && read_task(pid, tid, "syscall").is_ok_and(|line| Call::parse(&line) == was)
}

/// The threads of a process that wait in a futex call, in no particular order.
pub fn blocked_in_futex(pid: u32, overlooked: &mut Overlooked) -> Vec<Blocked> {
    let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(err) => {
            overlooked.unreadable += u64::from(!is_gone(&err));
            return Vec::new();
        }
    };
    let tids = tasks.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    tids.filter_map(|tid| blocked_thread(pid, tid, overlooked)).collect()
}

fn blocked_thread(pid: u32, tid: u32, overlooked: &mut Overlooked) -> Option<Blocked> {
    let line = match read_task(pid, tid, "syscall") {
        Ok(line) => line,
        Err(err) => {
            // Kernels without CONFIG_HAVE_ARCH_TRACEHOOK, and what only looks like Linux, lack the file.
            let exists = fs::exists(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or(false);
            overlooked.unreadable += u64::from(!is_gone(&err) || exists);
            return None;
        }
    };
    let call = Call::parse(&line)?;
    match call.waits_in_futex() {
        Kind::No => return None,
        Kind::Waits => {}
        Kind::Compat => {
            overlooked.compat += 1;
            return None;
        }
        Kind::Restarted => {
            // Most calls that are restarted are sleeps; where the kernel does not say, it may be a futex.
            let at = read_task(pid, tid, "wchan").unwrap_or_default();
            overlooked.restarted += u64::from(at.contains("futex") || at.trim() == "0" || at.is_empty());
            return None;
        }
    }
    let stat = read_task(pid, tid, "stat").ok()?;
    // What is stopped in a futex call enters it anew when it is continued, and a hook sees that.
    let (comm, state) = comm_and_state(&stat)?;
    matches!(state, 'S' | 'D').then(|| Blocked { tid, comm: comm.to_string(), call })
}

fn read_task(pid: u32, tid: u32, file: &str) -> io::Result<String> {
    // A name can have any bytes.
    Ok(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/task/{tid}/{file}"))?).into_owned())
}

fn is_gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(libc::ESRCH)
}

/// `12 (a name) S …`: the name may itself contain blanks and parentheses.
fn comm_and_state(stat: &str) -> Option<(&str, char)> {
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    Some((stat.get(start + 1..end)?, stat.get(end + 1..)?.trim_start().chars().next()?))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    No,
    Waits,
    Restarted,
    Compat,
}

impl Call {
    /// `202 0x7f… 0x80 0x2 0x0 0x0 0x0 SP PC`; `None` for a thread that runs, or waits outside system calls.
    fn parse(line: &str) -> Option<Call> {
        let mut words = line.split_ascii_whitespace();
        let nr = words.next()?.parse().ok().filter(|nr| *nr >= 0)?;
        let mut number = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = number()?;
        }
        Some(Call { nr, args, sp: number()?, pc: number()? })
    }

    fn waits_in_futex(&self) -> Kind {
        // 32-bit programs number their calls otherwise; nothing of a 64-bit one is down there.
        let compat = cfg!(target_arch = "x86_64") && self.sp >> 32 == 0 && self.pc >> 32 == 0;
        match self.nr {
            COMPAT_SYS_FUTEX if compat && futex_op(self.args[1]).is_some() => Kind::Compat,
            libc::SYS_futex_waitv | SYS_FUTEX_WAIT if compat => Kind::Compat,
            libc::SYS_futex if !compat && futex_op(self.args[1]).is_some() => Kind::Waits,
            libc::SYS_futex_waitv | SYS_FUTEX_WAIT => Kind::Waits,
            libc::SYS_restart_syscall if !compat => Kind::Restarted,
            _ => Kind::No,
        }
    }
}

/// The operation of futex(2), if it waits. FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME go beside it.
fn futex_op(op: u64) -> Option<FutexOp> {
    match op as i32 & 0x7f {
        libc::FUTEX_WAIT => Some(FutexOp::Wait),
        libc::FUTEX_WAIT_BITSET => Some(FutexOp::WaitBitset),
        libc::FUTEX_LOCK_PI | libc::FUTEX_LOCK_PI2 => Some(FutexOp::LockPi),
        libc::FUTEX_WAIT_REQUEUE_PI => Some(FutexOp::WaitRequeuePi),
        _ => None,
    }
}

/// What a call asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    op: FutexOp,
    op_bits: u32,
    uaddr: u64,
    val: u32,
    timeout: bool,
}

impl Asked {
    /// `None`: its first word is in memory that can not be read.
    fn of(call: &Call, memory: &mut Memory) -> Option<Asked> {
        let [first, second, third, fourth, fifth, _] = call.args;
        Some(match call.nr {
            SYS_FUTEX_WAIT => {
                let op_bits = libc::FUTEX_WAIT_BITSET as u32 | fourth as u32 & PRIVATE;
                let (op, val, timeout) = (FutexOp::WaitBitset, second as u32, fifth != 0);
                Asked { op, op_bits, uaddr: first, val, timeout }
            }
            libc::SYS_futex_waitv => {
                // struct futex_waitv: the value, the address, the flags, 64 bits each.
                let mut words = [[0; 8]; 3];
                if !memory.read(first, words.as_flattened_mut()) {
                    return None;
                }
                let [val, uaddr, flags] = words.map(u64::from_ne_bytes);
                let op_bits = WAITV | flags as u32 & PRIVATE;
                Asked { op: FutexOp::Waitv, op_bits, uaddr, val: val as u32, timeout: fourth != 0 }
            }
            _ => {
                let op = futex_op(second)?;
                Asked { op, op_bits: second as u32, uaddr: first, val: third as u32, timeout: fourth != 0 }
            }
        })
    }
}

/// The words of 40 bytes before and after; the page before may not be there.
fn read_words(memory: &mut Memory, uaddr: u64) -> Option<Words> {
    let mut bytes = [[0; 4]; 20];
    if !memory.read(uaddr.wrapping_sub(40), bytes.as_flattened_mut()) {
        bytes = [[0; 4]; 20];
        if !memory.read(uaddr, bytes[10..].as_flattened_mut()) {
            return None;
        }
    }
    Some(bytes.map(u32::from_ne_bytes))
}

const PAGE: usize = 4096;

/// The memory of a process, by way of one of its threads: the first may be gone.
///
/// Read in pages, each once: a stack is few pages and many frames, and a page is all there or not at all.
struct Memory {
    tid: u32,
    pages: HashMap<u64, Option<Box<[u8; PAGE]>>>,
}

impl Memory {
    fn new(tid: u32) -> Memory {
        Memory { tid, pages: HashMap::new() }
    }

    /// False: not all of it can be read.
    fn read(&mut self, mut at: u64, mut to: &mut [u8]) -> bool {
        while !to.is_empty() {
            let offset = at as usize % PAGE;
            let page = at - offset as u64;
            let tid = self.tid;
            let Some(bytes) = self.pages.entry(page).or_insert_with(|| read_page(tid, page)) else {
                return false;
            };
            let length = to.len().min(PAGE - offset);
            let (head, rest) = to.split_at_mut(length);
            head.copy_from_slice(&bytes[offset..offset + length]);
            (at, to) = (at.wrapping_add(length as u64), rest);
        }
        true
    }
}

fn read_page(tid: u32, page: u64) -> Option<Box<[u8; PAGE]>> {
    let mut bytes = Box::new([0; PAGE]);
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: PAGE };
    let remote = libc::iovec { iov_base: page as *mut libc::c_void, iov_len: PAGE };
    // SAFETY: `local` is all of `bytes`; the other process's addresses are the kernel's to check.
    let read = unsafe { libc::process_vm_readv(tid as libc::pid_t, &local, 1, &remote, 1, 0) };
    (read == PAGE as isize).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: &str = "202 0x7f0000001000 0x80 0x2 0x0 0x0 0x5555 0x7ffd00001000 0x7f0000002000\n";

    #[test]
    fn a_line_of_numbers_is_a_call_and_everything_else_is_not() {
        let call = Call::parse(WAIT).expect("a call");
        assert_eq!((call.nr, call.args[0], call.args[2], call.args[5]), (202, 0x7f00_0000_1000, 2, 0x5555));
        assert_eq!((call.sp, call.pc), (0x7ffd_0000_1000, 0x7f00_0000_2000));
        for line in ["running\n", "-1 0x7ffd00001000 0x7f0000002000\n", "", "202 0x1 0x2\n"] {
            assert_eq!(Call::parse(line), None, "{line}");
        }
    }

    #[test]
    fn only_operations_that_wait_are_waits_whatever_flags_they_have() {
        let call =
            |nr, op| Call { args: [0x7f00_0000_1000, op, 2, 0, 0, 0], nr, ..Call::parse(WAIT).unwrap() };
        for (op, waits) in [(0, true), (6, true), (9, true), (11, true), (13, true), (1, false), (7, false)] {
            for flags in [0, 128, 256, 128 | 256] {
                let kind = if waits { Kind::Waits } else { Kind::No };
                assert_eq!(call(libc::SYS_futex, op | flags).waits_in_futex(), kind, "{op} {flags}");
            }
        }
        assert_eq!(call(449, 0).waits_in_futex(), Kind::Waits);
        assert_eq!(call(455, 0).waits_in_futex(), Kind::Waits);
        assert_eq!(call(libc::SYS_restart_syscall, 0).waits_in_futex(), Kind::Restarted);
        assert_eq!(call(libc::SYS_read, 0).waits_in_futex(), Kind::No);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_of_32_bit_programs_are_told_from_the_same_numbers_of_others() {
        let low = |nr| Call { nr, args: [0x1000, 0x80, 2, 0, 0, 0], sp: 0xffff_0000, pc: 0xf7f0_0000 };
        assert_eq!(low(240).waits_in_futex(), Kind::Compat);
        assert_eq!(low(455).waits_in_futex(), Kind::Compat);
        assert_eq!(low(202).waits_in_futex(), Kind::No, "getegid");
        let high = Call { nr: 240, ..Call::parse(WAIT).unwrap() };
        assert_eq!(high.waits_in_futex(), Kind::No, "mq_open");
    }

    #[test]
    fn names_with_blanks_and_parentheses_do_not_hide_the_state() {
        assert_eq!(comm_and_state("7 (a) (b c) S 1 2"), Some(("a) (b c", 'S')));
        assert_eq!(comm_and_state("7 nonsense"), None);
    }

    #[test]
    fn memory_is_read_across_pages_and_not_where_there_is_none() {
        let bytes: Vec<u8> = (0..3 * PAGE).map(|n| (n / 7) as u8).collect();
        // SAFETY: gettid has no preconditions.
        let mut memory = Memory::new(unsafe { libc::gettid() } as u32);
        let mut copy = vec![0; bytes.len()];
        assert!(memory.read(bytes.as_ptr() as u64, &mut copy));
        assert_eq!(copy, bytes);
        assert!(!memory.read(8, &mut copy[..8]) && !memory.read(u64::MAX - 3, &mut copy[..8]));
    }

    #[test]
    fn the_words_of_futex_waitv_are_read_from_the_caller() {
        let waiters = [3u64, 0x7f00_0000_3000, 2, 4, 0x7f00_0000_4000, 2];
        // SAFETY: gettid has no preconditions.
        let mut memory = Memory::new(unsafe { libc::gettid() } as u32);
        let args = [waiters.as_ptr() as u64, 2, 0, 1, 1, 0];
        let mut call = Call { nr: 449, args, ..Call::parse(WAIT).unwrap() };
        let (op, op_bits) = (FutexOp::Waitv, WAITV);
        let wanted = Asked { op, op_bits, uaddr: 0x7f00_0000_3000, val: 3, timeout: true };
        assert_eq!(Asked::of(&call, &mut memory), Some(wanted));
        call.args[0] = 8;
        assert_eq!(Asked::of(&call, &mut memory), None);
    }

    #[test]
    fn a_process_that_is_gone_has_nothing_overlooked() {
        let mut overlooked = Overlooked::default();
        assert!(blocked_in_futex(u32::MAX >> 1, &mut overlooked).is_empty());
        assert_eq!(overlooked, Overlooked::default());
    }
}
