//! Walks the user stack of a thread that stands still, from outside: what bpf/unwind.bpf.c does for the
//! current task, rule by rule. A change there is a change here.

use super::rows::Kind;
use super::{ProcessTable, Row, Rule};

/// The longest stack kept, in frames. `MAX_FRAMES` of lockprof.h.
pub const MAX_FRAMES: usize = 127;

/// Where a thread is in user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub ip: u64,
    pub sp: u64,
    /// `None`: not known, and a frame that needs it ends the walk, unless one before it had it saved.
    pub bp: Option<u64>,
}

/// Why a walk went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalkEnd {
    /// It came to where the thread began.
    Complete,
    /// [`MAX_FRAMES`] were not enough.
    Truncated,
    /// No mapping or no row has the address, its rule is too complicated, or needs a register that is not
    /// known.
    NoRule,
    /// The stack could not be read.
    ReadFailed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Innermost first: where the thread is, then return addresses.
    pub pcs: Vec<u64>,
    pub end: WalkEnd,
}

/// Reads memory of the process: false if not all of it can be.
pub type ReadMemory<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> bool;

/// `rows` are those of all files, which the spans of the table point into.
pub fn walk(table: &ProcessTable, rows: &[Row], registers: Registers, read: ReadMemory<'_>) -> Walked {
    let mut pcs = vec![registers.ip];
    let mut frame = Frame { registers, is_return: false };
    loop {
        if pcs.len() >= MAX_FRAMES {
            return Walked { pcs, end: WalkEnd::Truncated };
        }
        match frame.caller(table, rows, read) {
            Ok(caller) => frame = caller,
            Err(end) => return Walked { pcs, end },
        }
        pcs.push(frame.registers.ip);
    }
}

struct Frame {
    registers: Registers,
    /// ip is a return address, not where execution stopped.
    is_return: bool,
}

impl Frame {
    fn caller(&self, table: &ProcessTable, rows: &[Row], read: ReadMemory<'_>) -> Result<Frame, WalkEnd> {
        let Registers { ip, sp, mut bp } = self.registers;
        // A return address belongs to the call before it, which may be its function's last instruction.
        let found = find(table, rows, ip.wrapping_sub(self.is_return.into())).ok_or(WalkEnd::NoRule)?;
        let (cfa, saved_bp) = match found {
            Found::FramePointer => match bp.ok_or(WalkEnd::NoRule)? {
                0 => return Err(WalkEnd::Complete),
                bp => (bp.wrapping_add(16), 16),
            },
            Found::Rule(rule) => {
                let (cfa, saved_bp) = (rule.cfa_offset(), rule.rbp_below_cfa());
                match rule.kind() {
                    Kind::End => return Err(WalkEnd::Complete),
                    Kind::Unsupported => return Err(WalkEnd::NoRule),
                    Kind::Signal => return above_signal_frame(sp, read),
                    Kind::Rsp => (sp.wrapping_add(cfa), saved_bp),
                    Kind::Rbp => (bp.ok_or(WalkEnd::NoRule)?.wrapping_add(cfa), saved_bp),
                    Kind::Plt => (sp.wrapping_add(if ip & 15 >= 11 { 16 } else { 8 }), saved_bp),
                    Kind::Realigned => {
                        let at = bp.ok_or(WalkEnd::NoRule)?;
                        bp = Some(word(at, read)?);
                        (word(at.wrapping_sub(cfa), read)?, saved_bp)
                    }
                }
            }
        };
        // Stacks grow down: also what ends a walk that goes in circles.
        if cfa <= sp {
            return Err(WalkEnd::NoRule);
        }
        let ip = word(cfa.wrapping_sub(8), read)?;
        if saved_bp != 0 {
            bp = Some(word(cfa.wrapping_sub(saved_bp), read)?);
        }
        above(Registers { ip, sp: cfa, bp }, true)
    }
}

/// The kernel's rt_sigframe: sp is at its ucontext, whose gregs begin at 40. The handler may have a stack
/// of its own: the one before need not be above it.
fn above_signal_frame(sp: u64, read: ReadMemory<'_>) -> Result<Frame, WalkEnd> {
    let ip = word(sp.wrapping_add(168), read)?;
    let bp = Some(word(sp.wrapping_add(120), read)?);
    above(Registers { ip, sp: word(sp.wrapping_add(160), read)?, bp }, false)
}

fn above(registers: Registers, is_return: bool) -> Result<Frame, WalkEnd> {
    if registers.ip == 0 { Err(WalkEnd::Complete) } else { Ok(Frame { registers, is_return }) }
}

fn word(at: u64, read: ReadMemory<'_>) -> Result<u64, WalkEnd> {
    let mut bytes = [0; 8];
    if read(at, &mut bytes) { Ok(u64::from_ne_bytes(bytes)) } else { Err(WalkEnd::ReadFailed) }
}

enum Found {
    Rule(Rule),
    /// Code without rows.
    FramePointer,
}

fn find(table: &ProcessTable, rows: &[Row], pc: u64) -> Option<Found> {
    let after = table.spans.partition_point(|span| span.start <= pc);
    let span = &table.spans[after.checked_sub(1)?];
    let into = u32::try_from(pc - span.start).ok().filter(|into| *into < span.length)?;
    if span.rows == 0 {
        return Some(Found::FramePointer);
    }
    let pc = span.pc.wrapping_add(into);
    let rows = rows.get(span.first_row as usize..)?.get(..span.rows as usize)?;
    let after = rows.partition_point(|row| row.pc <= pc);
    Some(Found::Rule(rows[after.checked_sub(1)?].rule))
}

#[cfg(test)]
mod tests {
    use super::super::Span;
    use super::*;

    const CODE: u64 = 0x5555_0000_0000;
    const JIT: u64 = 0x6666_0000_0000;
    const STACK: u64 = 0x7fff_0000_0000;

    /// Rules for 16 addresses each: `CODE` has the first, `CODE + 16` the second; behind it code without rows.
    struct World {
        table: ProcessTable,
        rows: Vec<Row>,
        memory: Vec<(u64, u64)>,
    }

    impl World {
        fn new(rules: &[Rule]) -> World {
            // In front of them another file's row, and linked at another address than it is mapped at.
            let mut rows = vec![Row { pc: 0, rule: Rule::END }];
            rows.extend(
                rules.iter().enumerate().map(|(n, rule)| Row { pc: 0x1000 + 16 * n as u32, rule: *rule }),
            );
            let length = 16 * rules.len() as u32;
            let code = Span { start: CODE, length, pc: 0x1000, first_row: 1, rows: rules.len() as u32 };
            let jit = Span { start: JIT, length: 0x1000, pc: 0, first_row: 0, rows: 0 };
            let table = ProcessTable { generation: 1, spans: vec![code, jit] };
            World { table, rows, memory: Vec::new() }
        }

        fn with(mut self, at: u64, value: u64) -> World {
            self.memory.push((at, value));
            self
        }

        fn walk(&self, ip: u64, bp: Option<u64>) -> Walked {
            self.walk_from(Registers { ip, sp: STACK, bp })
        }

        fn walk_from(&self, registers: Registers) -> Walked {
            walk(&self.table, &self.rows, registers, &mut |at, to| {
                let found = self.memory.iter().find(|(known, _)| *known == at);
                found.is_some_and(|(_, value)| {
                    to.copy_from_slice(&value.to_ne_bytes());
                    true
                })
            })
        }
    }

    fn function(n: u64) -> u64 {
        CODE + 16 * n
    }

    fn rsp(cfa: i64, rbp: i64) -> Rule {
        Rule::new(Kind::Rsp, cfa, rbp)
    }

    fn rbp(cfa: i64, rbp: i64) -> Rule {
        Rule::new(Kind::Rbp, cfa, rbp)
    }

    #[track_caller]
    fn assert_walked(walked: Walked, pcs: &[u64], end: WalkEnd) {
        assert_eq!(walked, Walked { pcs: pcs.to_vec(), end });
    }

    #[test]
    fn a_stack_goes_down_to_the_function_without_a_return_address() {
        let world = World::new(&[rsp(8, 0), rsp(24, 0), Rule::END])
            .with(STACK, function(1) + 5)
            .with(STACK + 8 + 16, function(2) + 5);
        let pcs = [function(0), function(1) + 5, function(2) + 5];
        assert_walked(world.walk(function(0), None), &pcs, WalkEnd::Complete);
    }

    #[test]
    fn a_return_address_belongs_to_the_function_before_it_and_the_innermost_address_to_its_own() {
        // The call is the last instruction of function 1, behind which nothing is supported.
        let world = World::new(&[rsp(8, 0), Rule::END, Rule::UNSUPPORTED]).with(STACK, function(2));
        assert_walked(world.walk(function(0), None), &[function(0), function(2)], WalkEnd::Complete);
        assert_walked(world.walk(function(2), None), &[function(2)], WalkEnd::NoRule);
    }

    #[test]
    fn a_return_address_of_zero_is_the_end() {
        let world = World::new(&[rsp(8, 0)]).with(STACK, 0);
        assert_walked(world.walk(function(0), None), &[function(0)], WalkEnd::Complete);
    }

    #[test]
    fn an_unknown_rbp_ends_the_walk_where_it_is_needed() {
        for needs_it in [rbp(16, 16), Rule::new(Kind::Realigned, 8, 0)] {
            let world = World::new(&[rsp(8, 0), needs_it, Rule::END])
                .with(STACK, function(1) + 5)
                .with(STACK + 64 - 8, STACK + 80)
                .with(STACK + 64, 0)
                .with(STACK + 72, function(2) + 5);
            let pcs = [function(0), function(1) + 5];
            assert_walked(world.walk(function(0), None), &pcs, WalkEnd::NoRule);
            let pcs = [function(0), function(1) + 5, function(2) + 5];
            assert_walked(world.walk(function(0), Some(STACK + 64)), &pcs, WalkEnd::Complete);
        }
        assert_walked(World::new(&[]).walk(JIT, None), &[JIT], WalkEnd::NoRule);
    }

    #[test]
    fn an_unknown_rbp_is_known_again_above_the_frame_that_saved_it() {
        for offset in [16, 24] {
            let world = World::new(&[rsp(32, offset), rbp(16, 16), Rule::END])
                .with(STACK + 32 - 8, function(1) + 5)
                .with(STACK + 32 - offset as u64, STACK + 64)
                .with(STACK + 64, 0)
                .with(STACK + 72, function(2) + 5);
            let pcs = [function(0), function(1) + 5, function(2) + 5];
            assert_walked(world.walk(function(0), None), &pcs, WalkEnd::Complete);
        }
    }

    #[test]
    fn a_realigned_frame_has_its_caller_s_stack_in_memory() {
        let world = World::new(&[Rule::new(Kind::Realigned, 8, 0), rbp(16, 16), Rule::END])
            .with(STACK + 64 - 8, STACK + 128)
            .with(STACK + 64, STACK + 256)
            .with(STACK + 128 - 8, function(1) + 5)
            .with(STACK + 256, 0)
            .with(STACK + 256 + 8, function(2) + 5);
        let pcs = [function(0), function(1) + 5, function(2) + 5];
        assert_walked(world.walk(function(0), Some(STACK + 64)), &pcs, WalkEnd::Complete);
    }

    #[test]
    fn an_entry_of_the_plt_has_pushed_a_word_from_its_11th_byte_on() {
        let world = World::new(&[Rule::new(Kind::Plt, 8, 0), Rule::END])
            .with(STACK, function(1) + 1)
            .with(STACK + 8, function(1) + 2);
        for (into, caller) in [(0, 1), (10, 1), (11, 2), (15, 2)] {
            let pcs = [function(0) + into, function(1) + caller];
            assert_walked(world.walk(function(0) + into, None), &pcs, WalkEnd::Complete);
        }
    }

    #[test]
    fn below_a_signal_handler_is_the_interrupted_instruction_on_whatever_stack() {
        // The handler's stack is above the one it interrupted; the interrupted address is at the very
        // beginning of function 2, and must not be taken for a return address into function 1.
        let world = World::new(&[Rule::SIGNAL, Rule::UNSUPPORTED, rbp(16, 16), Rule::END])
            .with(STACK + 168, function(2))
            .with(STACK + 160, STACK - 4096)
            .with(STACK + 120, STACK - 2048)
            .with(STACK - 2048, 0)
            .with(STACK - 2040, function(3) + 5);
        let pcs = [function(0), function(2), function(3) + 5];
        assert_walked(world.walk(function(0), None), &pcs, WalkEnd::Complete);
    }

    #[test]
    fn code_without_rows_is_walked_by_frame_pointers_until_there_is_none() {
        let world = World::new(&[])
            .with(STACK + 16, STACK + 64)
            .with(STACK + 24, JIT + 100)
            .with(STACK + 64, 0)
            .with(STACK + 72, JIT + 200);
        let pcs = [JIT, JIT + 100, JIT + 200];
        assert_walked(world.walk(JIT, Some(STACK + 16)), &pcs, WalkEnd::Complete);
    }

    #[test]
    fn addresses_outside_every_mapping_have_no_rule() {
        let world = World::new(&[rsp(8, 0)]);
        for pc in [0, CODE - 1, CODE + 16, JIT - 1, JIT + 0x1000, u64::MAX] {
            assert_walked(world.walk(pc, Some(0)), &[pc], WalkEnd::NoRule);
        }
        let none = ProcessTable::default();
        let registers = Registers { ip: CODE, sp: STACK, bp: None };
        assert_eq!(walk(&none, &[], registers, &mut |_, _| true).end, WalkEnd::NoRule);
    }

    #[test]
    fn memory_that_can_not_be_read_ends_the_walk() {
        let world = World::new(&[rsp(8, 0), rsp(24, 16), Rule::SIGNAL]);
        for n in 0..3 {
            assert_walked(world.walk(function(n), None), &[function(n)], WalkEnd::ReadFailed);
        }
    }

    #[test]
    fn a_stack_that_would_go_up_or_in_circles_ends() {
        let world = World::new(&[rbp(16, 16)]).with(STACK, STACK).with(STACK + 8, function(0) + 5);
        let pcs = [function(0), function(0) + 5];
        assert_walked(world.walk(function(0), Some(STACK)), &pcs, WalkEnd::NoRule);
        assert_walked(world.walk(function(0), Some(STACK - 4096)), &[function(0)], WalkEnd::NoRule);
    }

    #[test]
    fn what_is_deeper_than_127_frames_is_truncated() {
        let mut world = World::new(&[rsp(8, 0), Rule::END]);
        for n in 0..125 {
            world = world.with(STACK + 8 * n, function(0) + 5);
        }
        let world = world.with(STACK + 8 * 125, function(1) + 5);
        let walked = world.walk(function(0), None);
        assert_eq!((walked.pcs.len(), walked.end), (127, WalkEnd::Truncated));
        let walked = world.walk_from(Registers { ip: function(0), sp: STACK + 8, bp: None });
        assert_eq!((walked.pcs.len(), walked.end), (126, WalkEnd::Complete));
    }
}
