//! Kernel symbols: one sorted table of `/proc/kallsyms`, for code and for static locks.
//!
//! Own table instead of blazesym's kernel source, because that one knows neither modules nor where a
//! symbol ends (it names any address above a data symbol after it), and would be a second parser of
//! the same five megabytes beside the one that data symbols need anyway.

use std::{fs, io, ops::Range};

/// Kernel addresses have the top bit set; per-CPU offsets, which kallsyms lists too, do not.
const KERNEL_HALF: u64 = 1 << 63;
/// Nothing is further from its symbol than this; the gap after a module's last symbol is.
const MAX_DISTANCE: u64 = 1 << 20;
const MAX_DISTANCE_IN_MODULE: u64 = 64 << 10;

#[derive(Clone, Debug)]
struct Symbol {
    addr: u64,
    kind: u8,
    name: Range<u32>,
    /// Empty: the kernel proper.
    module: Range<u32>,
}

/// A function found for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSymbol<'a> {
    pub name: &'a str,
    /// `None`: the kernel proper. `bpf` for BPF programs and trampolines.
    pub module: Option<&'a str>,
    pub offset: u64,
}

#[derive(Debug, Default)]
pub struct KernelSymbols {
    text: String,
    /// By address; of several at one address the best name comes first.
    symbols: Vec<Symbol>,
    /// Per-CPU variables where those are linked at 0 (x86 before 6.15), by address.
    per_cpu: Vec<Symbol>,
    /// Where those of the kernel itself are linked: `__per_cpu_start`, `__per_cpu_end`.
    per_cpu_range: Range<u64>,
    /// `_sdata` to `_end`. 7.x lists variables of some sections in there as if they were code.
    data_range: Range<u64>,
    /// Code in the middle of it, that is gone after the start.
    init_code: Range<u64>,
    /// The kernel lists its symbols but shows all of them at address 0 (kptr_restrict).
    pub hidden: bool,
    /// The kernel lists its variables (CONFIG_KALLSYMS_ALL); without that static locks have no names.
    pub has_variables: bool,
}

impl KernelSymbols {
    /// The running kernel's.
    pub fn load() -> io::Result<KernelSymbols> {
        let text = String::from_utf8(fs::read("/proc/kallsyms")?);
        Ok(KernelSymbols::parse(text.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?))
    }

    /// From the text of a `/proc/kallsyms`.
    pub fn parse(text: String) -> KernelSymbols {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len() / 40);
        let mut listed = false;
        let mut shown = false;
        let mut has_variables = false;
        let mut line_start = 0;
        let mut per_cpu = Vec::new();
        let mut per_cpu_range = 0..0;
        let mut data_range = 0..0;
        let mut init_code = 0..0;
        for line in text.split_inclusive('\n') {
            let start = line_start;
            line_start += line.len();
            let Some(symbol) = parse_line(line, start as u32) else { continue };
            listed = true;
            shown |= symbol.addr != 0;
            has_variables |= matches!(symbol.kind, b'd' | b'b') && symbol.module.is_empty();
            match &text[symbol.name.start as usize..symbol.name.end as usize] {
                "__per_cpu_start" => per_cpu_range.start = symbol.addr,
                "__per_cpu_end" => per_cpu_range.end = symbol.addr,
                "_sdata" => data_range.start = symbol.addr,
                "_end" => data_range.end = symbol.addr,
                "_sinittext" => init_code.start = symbol.addr,
                "_einittext" => init_code.end = symbol.addr,
                _ => {}
            }
            if symbol.addr >= KERNEL_HALF {
                symbols.push(symbol);
            } else if symbol.module.is_empty() {
                per_cpu.push(symbol);
            }
        }
        per_cpu.retain(|symbol| per_cpu_range.contains(&symbol.addr));
        let name_of = |symbol: &Symbol| &text[symbol.name.start as usize..symbol.name.end as usize];
        let order = |a: &Symbol, b: &Symbol| {
            a.addr
                .cmp(&b.addr)
                .then_with(|| alias_rank(a.kind, name_of(a)).cmp(&alias_rank(b.kind, name_of(b))))
        };
        symbols.sort_by(order);
        per_cpu.sort_by(order);
        KernelSymbols {
            symbols,
            per_cpu,
            per_cpu_range,
            data_range,
            init_code,
            hidden: listed && !shown,
            has_variables,
            text,
        }
    }

    /// The function an instruction belongs to.
    pub fn function(&self, addr: u64) -> Option<KernelSymbol<'_>> {
        self.find(addr, |kind| matches!(kind, b't' | b'T' | b'w' | b'W' | b'i'))
    }

    /// The name of a static variable, `tasklist_lock` or `foo+0x10`.
    ///
    /// Only within [symbol, next symbol) and near it: memory of the heap must not be named after
    /// whatever variable precedes it.
    pub fn data_symbol(&self, addr: u64) -> Option<String> {
        let symbol = self.variable(addr)?;
        Some(match symbol.offset {
            0 => symbol.name.to_string(),
            offset => format!("{}+{offset:#x}", symbol.name),
        })
    }

    /// … with the module it is of.
    pub fn variable(&self, addr: u64) -> Option<KernelSymbol<'_>> {
        if !self.has_variables {
            return None; // What is listed then are the linker's section marks.
        }
        let any_kind = self.data_range.contains(&addr) && !self.init_code.contains(&addr);
        self.find(addr, |kind| {
            any_kind
                || matches!(
                    kind,
                    b'd' | b'D' | b'b' | b'B' | b'r' | b'R' | b'v' | b'V' | b'g' | b'G' | b's' | b'S'
                )
        })
    }

    /// The per-CPU variable that is linked at an address, and how far into it that is.
    pub fn per_cpu(&self, addr: u64) -> Option<(&str, u64)> {
        if !self.per_cpu_range.contains(&addr) {
            return None;
        }
        let symbols = if self.per_cpu_range.start < KERNEL_HALF { &self.per_cpu } else { &self.symbols };
        let after = symbols.partition_point(|symbol| symbol.addr <= addr);
        let start = symbols[..after].last()?.addr;
        let first = symbols[..after].partition_point(|symbol| symbol.addr < start);
        let symbol = symbols[first..after].iter().find(|symbol| !is_section_mark(self.name(&symbol.name)))?;
        (start >= self.per_cpu_range.start).then(|| (self.name(&symbol.name), addr - start))
    }

    fn find(&self, addr: u64, wanted: impl Fn(u8) -> bool) -> Option<KernelSymbol<'_>> {
        let after = self.symbols.partition_point(|symbol| symbol.addr <= addr);
        let start = self.symbols[..after].last()?.addr;
        let first = self.symbols[..after].partition_point(|symbol| symbol.addr < start);
        let symbol = self.symbols[first..after]
            .iter()
            .find(|symbol| wanted(symbol.kind) && !is_section_mark(self.name(&symbol.name)))?;
        let module = Some(self.name(&symbol.module)).filter(|module| !module.is_empty());
        let max =
            if module.is_some_and(|module| module != "bpf") { MAX_DISTANCE_IN_MODULE } else { MAX_DISTANCE };
        let offset = addr - start;
        (offset < max).then(|| KernelSymbol {
            name: self.name(&symbol.name),
            module: module.filter(|module| !module.starts_with("__builtin__")),
            offset,
        })
    }

    fn name(&self, range: &Range<u32>) -> &str {
        &self.text[range.start as usize..range.end as usize]
    }
}

/// `ffffffffc0201000 t ftrace_trampoline [__builtin__ftrace]`
fn parse_line(line: &str, start: u32) -> Option<Symbol> {
    let bytes = line.as_bytes();
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let addr = u64::from_str_radix(&line[..space], 16).ok()?;
    let kind = *bytes.get(space + 1)?;
    let name_start = space + 3;
    let end = line.trim_end().len();
    let name_end = line.get(name_start..end)?.find(['\t', ' ']).map_or(end, |len| name_start + len);
    let rest = &line[name_end..end];
    let module = match rest.find('[') {
        Some(open) if rest.ends_with(']') => name_end + open + 1..end - 1,
        _ => end..end,
    };
    let shift = |range: Range<usize>| start + range.start as u32..start + range.end as u32;
    (name_end > name_start).then(|| Symbol {
        addr,
        kind,
        name: shift(name_start..name_end),
        module: shift(module),
    })
}

/// Which of several names at one address to prefer: the smallest.
fn alias_rank(kind: u8, name: &str) -> (bool, bool, bool, usize, &str) {
    let underscores = name.len() - name.trim_start_matches('_').len();
    let internal = name.starts_with("__pi_") || name.starts_with("__cfi_") || name.starts_with(".L");
    (is_section_mark(name), internal, !kind.is_ascii_uppercase(), underscores, name)
}

/// Names the linker gives to the bounds of sections.
fn is_section_mark(name: &str) -> bool {
    matches!(
        name,
        "_text"
            | "_stext"
            | "_etext"
            | "_sinittext"
            | "_einittext"
            | "_sdata"
            | "_edata"
            | "_end"
            | "__bss_start"
            | "__bss_stop"
            | "__init_begin"
            | "__init_end"
            | "__brk_base"
            | "__brk_limit"
            | "__nosave_begin"
            | "__nosave_end"
            | "__end_rodata"
            | "__end_rodata_aligned"
            | "__end_of_kernel_reserve"
            | "__per_cpu_start"
            | "__per_cpu_end"
    ) || name.starts_with("__start_")
        || name.starts_with("__stop_")
        || name.ends_with("_text_start")
        || name.ends_with("_text_end")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
0000000000000000 D __per_cpu_start
0000000000021000 d runqueues
ffffffff81000000 T _stext
ffffffff81000000 T __pi_startup_64
ffffffff81000000 T startup_64
ffffffff81001000 t __do_work
ffffffff81001000 T do_work
ffffffff81002000 T _etext
ffffffff82000000 D _sdata
ffffffff82000000 D init_task
ffffffff82002000 D tasklist_lock
ffffffff82002040 d cgroup_mutex
ffffffff82003000 B __bss_start
ffffffff82103000 b far
ffffffff82900000 B _end
ffffffffc0201000 t ext4_write_begin\t[ext4]
ffffffffc0201400 d ext4_lock\t[ext4]
ffffffffc0501000 t bpf_prog_5f6c6d_lockprof\t[bpf]
ffffffffc0601000 t ftrace_trampoline\t[__builtin__ftrace]
";

    fn table() -> KernelSymbols {
        KernelSymbols::parse(KALLSYMS.to_string())
    }

    #[test]
    fn functions_are_found_with_their_module() {
        let table = table();
        let found = |addr| table.function(addr).map(|symbol| (symbol.name, symbol.module, symbol.offset));
        assert_eq!(found(0xffffffff81001010), Some(("do_work", None, 0x10)));
        assert_eq!(found(0xffffffff81000fff), Some(("startup_64", None, 0xfff)));
        assert_eq!(found(0xffffffffc0201020), Some(("ext4_write_begin", Some("ext4"), 0x20)));
        assert_eq!(found(0xffffffffc0501020), Some(("bpf_prog_5f6c6d_lockprof", Some("bpf"), 0x20)));
        assert_eq!(found(0xffffffffc0601020), Some(("ftrace_trampoline", None, 0x20)));
        assert_eq!(found(0xffffffff81002000), None, "past the end of the text");
        assert_eq!(found(0xffffffff82002000), None, "a variable is no function");
        assert_eq!(found(0xffff888000000000), None, "below every symbol");
        assert_eq!(found(0x21010), None);
    }

    #[test]
    fn static_variables_are_named_only_within_their_bounds() {
        let table = table();
        let found = |addr| table.data_symbol(addr);
        assert_eq!(found(0xffffffff82002000).as_deref(), Some("tasklist_lock"));
        assert_eq!(found(0xffffffff82002010).as_deref(), Some("tasklist_lock+0x10"));
        assert_eq!(found(0xffffffff82000000).as_deref(), Some("init_task"));
        assert_eq!(found(0xffffffff82002fff).as_deref(), Some("cgroup_mutex+0xfbf"));
        assert_eq!(found(0xffffffff82003000), None, "only a section mark");
        assert_eq!(found(0xffffffff82103008).as_deref(), Some("far+0x8"));
        assert_eq!(found(0xffffffff82300000), None, "too far");
        assert_eq!(found(0xffffffff82900000), None, "past the image");
        assert_eq!(found(0xffffffffc0201410).as_deref(), Some("ext4_lock+0x10"));
        assert_eq!(found(0xffffffffc0221400), None, "past the module");
        assert_eq!(found(0xffffffff81001010), None, "a function is no variable");
        assert_eq!(found(0x21010), None, "a per-CPU offset is no address");
        assert_eq!(found(0xffff888000021010), None, "the heap");
    }

    #[test]
    fn per_cpu_variables_are_found_where_they_are_linked() {
        let old = "0 A fixed_percpu_data\n0 D __per_cpu_start\n21000 d runqueues\n22000 D other\n30000 A __per_cpu_end\n\
                   40000 A beyond\nffffffff82000000 D x\n";
        let new = "ffffffff83000000 D __per_cpu_start\nffffffff83000000 D cpu_hot\nffffffff83021000 d runqueues\n\
                   ffffffff83022000 D other\nffffffff83030000 D __per_cpu_end\nffffffff84000000 D x\n";
        for (text, base) in [(old, 0), (new, 0xffffffff83000000)] {
            let table = KernelSymbols::parse(text.to_string());
            assert_eq!(table.per_cpu(base + 0x21040), Some(("runqueues", 0x40)));
            assert_eq!(table.per_cpu(base + 0x2ffff), Some(("other", 0xdfff)));
            assert_eq!(table.per_cpu(base + 0x30000), None);
            assert_eq!(
                table.per_cpu(0x10000),
                if base == 0 { Some(("fixed_percpu_data", 0x10000)) } else { None }
            );
        }
        assert_eq!(KernelSymbols::default().per_cpu(0), None);
    }

    #[test]
    fn variables_listed_as_code_are_variables_all_the_same() {
        let text = "ffffffff81000000 T _stext\nffffffff81001000 T do_work\nffffffff82000000 D _sdata\n\
                    ffffffff82000000 D init_task\nffffffff82006080 T tasklist_lock\nffffffff82006100 t rcu_state\n\
                    ffffffff83000000 T _sinittext\nffffffff83000000 t start\nffffffff83001000 T _einittext\n\
                    ffffffff83001000 b last\nffffffff83002000 B _end\n";
        let table = KernelSymbols::parse(text.to_string());
        assert_eq!(table.data_symbol(0xffffffff82006080).as_deref(), Some("tasklist_lock"));
        assert_eq!(table.data_symbol(0xffffffff82006140).as_deref(), Some("rcu_state+0x40"));
        assert_eq!(table.data_symbol(0xffffffff81001000), None);
        assert_eq!(table.data_symbol(0xffffffff83000010), None);
        assert_eq!(table.data_symbol(0xffffffff83001000).as_deref(), Some("last"));
    }

    #[test]
    fn a_kernel_that_lists_no_variables_names_no_lock() {
        let text = "ffffffff82000000 D __start_rodata\nffffffff82000000 D some_table\n";
        let table = KernelSymbols::parse(text.to_string());
        assert!(!table.has_variables);
        assert_eq!(table.data_symbol(0xffffffff82000000), None);
    }

    #[test]
    fn hidden_addresses_are_noticed() {
        let table = KernelSymbols::parse("0000000000000000 T _text\n0000000000000000 t foo\n".to_string());
        assert!(table.hidden);
        assert_eq!(table.function(0xffffffff81000000), None);
        assert!(!self::table().hidden);
        assert!(!KernelSymbols::parse(String::new()).hidden);
    }
}
