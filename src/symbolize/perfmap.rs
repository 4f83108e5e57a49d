//! Names of code that was generated while the program ran, from the file in which its runtime lists it:
//! /tmp/perf-PID.map, lines of `START SIZE NAME` in hex (tools/perf/Documentation/jit-interface.txt of Linux).
//! node --perf-basic-prof, the JVM's perf-map agents and others write it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Longer files are read so far.
const LONGEST: u64 = 256 << 20;

/// The file of a living process, as that process names it: its own number, its own /tmp.
pub fn open(pid: u32) -> Option<File> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let own_number: u32 = field("NSpid:")?.split_whitespace().last()?.parse().ok()?;
    let user: u32 = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    let path = format!("/proc/{pid}/root/tmp/perf-{own_number}.map");
    // /tmp is everybody's: a pipe would be waited for, and somebody else's file is not believed.
    let meta = fs::symlink_metadata(&path).ok()?;
    if !meta.is_file() || (meta.uid() != user && meta.uid() != 0) {
        return None;
    }
    File::open(path).ok()
}

/// What is listed, by address. What was listed later at the same place counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PerfMap {
    /// (start, end, name)
    entries: Vec<(u64, u64, String)>,
}

impl PerfMap {
    pub fn read(file: &File) -> PerfMap {
        let Ok(size) = file.metadata().map(|meta| meta.len().min(LONGEST)) else { return PerfMap::default() };
        let mut bytes = vec![0; size as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => PerfMap::parse(&String::from_utf8_lossy(&bytes)),
            Err(_) => PerfMap::default(),
        }
    }

    fn parse(text: &str) -> PerfMap {
        let entry = |line: &str| {
            let (start, rest) = line.split_once(' ')?;
            let (size, name) = rest.split_once(' ')?;
            let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
            let start = number(start)?;
            Some((start, start.checked_add(number(size)?)?, name.trim().to_string()))
        };
        let mut entries: Vec<_> = text.lines().filter_map(entry).collect();
        // Stable: of the same start the last line stays last.
        entries.sort_by_key(|(start, ..)| *start);
        PerfMap { entries }
    }

    pub fn name(&self, addr: u64) -> Option<&str> {
        let after = self.entries.partition_point(|(start, ..)| *start <= addr);
        let (_, end, name) = self.entries[..after].last()?;
        (addr < *end).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_for_an_address_names_it_and_gaps_have_no_name() {
        let map =
            PerfMap::parse("1000 10 a b(c)\nnonsense\n0x2000 0x20 old\n2000 20 new\nffffffffffffffff 2 x\n");
        assert_eq!(map.name(0x1000), Some("a b(c)"));
        assert_eq!((map.name(0x100f), map.name(0x1010)), (Some("a b(c)"), None));
        assert_eq!(map.name(0x201f), Some("new"));
        assert_eq!((map.name(0), map.name(u64::MAX)), (None, None));
    }
}
