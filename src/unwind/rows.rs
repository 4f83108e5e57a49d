//! `.eh_frame` → rows: from this address on, the caller's registers are found like that.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, LittleEndian, Operation, RegisterRule,
    UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};

/// How to get from a frame to its caller; the return address is always just below the CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// cfa = rsp + offset
    Rsp = 1,
    /// cfa = rbp + offset
    Rbp = 2,
    /// The return address is undefined: the first function of a thread.
    End = 3,
    /// Nothing is known here, or it is too complicated.
    Unsupported = 4,
    /// The trampoline a signal handler returns to; the registers are in a ucontext.
    Signal = 5,
    /// An entry of the PLT: cfa = rsp + 8, or + 16 from its 11th byte on.
    Plt = 6,
    /// cfa = *(rbp - offset), rbp = *rbp: a function that aligned its stack.
    Realigned = 7,
}

/// `struct unwind_rule` of lockprof.h: kind in bits 0..8, rbp 8..16, cfa 16..32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Rule(u32);

impl Rule {
    pub(super) const END: Rule = Rule(Kind::End as u32);
    pub(super) const UNSUPPORTED: Rule = Rule(Kind::Unsupported as u32);
    pub(super) const SIGNAL: Rule = Rule(Kind::Signal as u32);

    /// `cfa` is the offset, positive; rbp lies at cfa - `rbp`, or is unchanged (0).
    pub(super) fn new(kind: Kind, cfa: i64, rbp: i64) -> Rule {
        let words = |bytes: i64, max: i64| {
            (bytes >= 0 && bytes % 8 == 0 && bytes / 8 <= max).then_some((bytes / 8) as u32)
        };
        match (words(cfa, 0xffff), words(rbp, 0xff)) {
            (Some(cfa), Some(rbp)) => Rule(kind as u32 | rbp << 8 | cfa << 16),
            _ => Rule::UNSUPPORTED,
        }
    }

    pub fn is_supported(self) -> bool {
        self != Rule::UNSUPPORTED
    }

    pub(super) fn kind(self) -> Kind {
        match self.0 & 0xff {
            1 => Kind::Rsp,
            2 => Kind::Rbp,
            3 => Kind::End,
            5 => Kind::Signal,
            6 => Kind::Plt,
            7 => Kind::Realigned,
            _ => Kind::Unsupported,
        }
    }

    /// In bytes; what it is added to, the kind says.
    pub(super) fn cfa_offset(self) -> u64 {
        u64::from(self.0 >> 16) * 8
    }

    /// rbp was saved so many bytes below the CFA; 0: it is unchanged.
    pub(super) fn rbp_below_cfa(self) -> u64 {
        u64::from(self.0 >> 8 & 0xff) * 8
    }

    /// Kind, and the offsets in words.
    #[cfg(test)]
    pub fn parts(self) -> (u32, u32, u32) {
        (self.0 & 0xff, self.0 >> 8 & 0xff, self.0 >> 16)
    }
}

/// `struct unwind_row` of lockprof.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Row {
    /// As the file is linked.
    pub pc: u32,
    pub rule: Rule,
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

struct Entry {
    start: u64,
    end: u64,
    rows: Vec<(u64, Rule)>,
}

/// The rows of a section, sorted; what no entry covers is unsupported. Entries that make no sense, or
/// lie above 4 GB, are left out.
pub fn of_section(bytes: &[u8], vaddr: u64) -> Vec<Row> {
    let section = EhFrame::new(bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(vaddr);
    let mut context = UnwindContext::new();
    let mut found = Vec::new();
    let mut entries = section.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(fde) = partial.parse(EhFrame::cie_from_offset) else { continue };
        let (start, end) = (fde.initial_address(), fde.end_address());
        // 0: a function the linker threw away.
        if start == 0 || start >= end || end > u64::from(u32::MAX) {
            continue;
        }
        let mut rows = Vec::new();
        if fde.is_signal_trampoline() {
            rows.push((start, Rule::SIGNAL));
        } else if let Ok(mut table) = fde.rows(&section, &bases, &mut context) {
            loop {
                match table.next_row() {
                    Ok(Some(row)) => rows.push((row.start_address(), rule(&section, row))),
                    Ok(None) => break,
                    Err(_) => {
                        rows = vec![(start, Rule::UNSUPPORTED)];
                        break;
                    }
                }
            }
        }
        found.push(Entry { start, end, rows });
    }
    join(found)
}

fn join(mut entries: Vec<Entry>) -> Vec<Row> {
    entries.sort_by_key(|entry| entry.start);
    let mut joined: Vec<Row> = Vec::new();
    let mut push = |pc: u64, rule: Rule| {
        let row = Row { pc: pc as u32, rule };
        match joined.last_mut() {
            Some(last) if last.pc == row.pc => last.rule = rule,
            Some(last) if last.rule == rule || last.pc > row.pc => {}
            _ => joined.push(row),
        }
    };
    let mut covered = None;
    for entry in &entries {
        if let Some(covered) = covered
            && covered < entry.start
        {
            push(covered, Rule::UNSUPPORTED);
        }
        for (pc, rule) in &entry.rows {
            push(*pc, *rule);
        }
        covered = Some(covered.unwrap_or(0).max(entry.end));
    }
    if let Some(covered) = covered {
        push(covered, Rule::UNSUPPORTED);
    }
    joined
}

fn rule(section: &EhFrame<Slice<'_>>, row: &UnwindTableRow<usize>) -> Rule {
    match row.register(X86_64::RA) {
        Some(RegisterRule::Offset(-8)) => {}
        None | Some(RegisterRule::Undefined) => return Rule::END,
        _ => return Rule::UNSUPPORTED,
    }
    let rbp = row.register(X86_64::RBP);
    match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let kind = match *register {
                X86_64::RSP => Kind::Rsp,
                X86_64::RBP => Kind::Rbp,
                _ => return Rule::UNSUPPORTED,
            };
            let rbp = match rbp {
                None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => 0,
                // 0 would say unchanged, and at cfa - 8 is the return address.
                Some(RegisterRule::Offset(offset)) if offset <= -16 => -offset,
                _ => return Rule::UNSUPPORTED,
            };
            Rule::new(kind, *offset, rbp)
        }
        CfaRule::Expression(expression) => match operations(section, expression).as_deref() {
            Some(
                [Operation::RegisterOffset { register: X86_64::RBP, offset, .. }, Operation::Deref { .. }],
            ) if rbp_is_at_rbp(section, rbp) => Rule::new(Kind::Realigned, -offset, 0),
            // rsp + 8 + ((rip & 15) >= 11) << 3
            Some(
                [
                    Operation::RegisterOffset { register: X86_64::RSP, offset: 8, .. },
                    Operation::RegisterOffset { register: X86_64::RA, offset: 0, .. },
                    Operation::UnsignedConstant { value: 15 },
                    Operation::And,
                    Operation::UnsignedConstant { value: 11 },
                    Operation::Ge,
                    Operation::UnsignedConstant { value: 3 },
                    Operation::Shl,
                    Operation::Plus,
                ],
            ) => Rule::new(Kind::Plt, 8, 0),
            _ => Rule::UNSUPPORTED,
        },
    }
}

fn rbp_is_at_rbp(section: &EhFrame<Slice<'_>>, rule: Option<RegisterRule<usize>>) -> bool {
    let Some(RegisterRule::Expression(expression)) = rule else { return false };
    matches!(
        operations(section, &expression).as_deref(),
        Some([Operation::RegisterOffset { register: X86_64::RBP, offset: 0, .. }])
    )
}

fn operations<'a>(
    section: &EhFrame<Slice<'a>>,
    expression: &UnwindExpression<usize>,
) -> Option<Vec<Operation<Slice<'a>>>> {
    let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
    let mut operations = expression.get(section).ok()?.operations(encoding);
    let mut all = Vec::new();
    while let Some(operation) = operations.next().ok()? {
        all.push(operation);
    }
    Some(all)
}
