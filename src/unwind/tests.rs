use super::rows::{Rule, of_section};
use super::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const C_SOURCE: &str = r#"
#include <stdlib.h>
#include <string.h>
volatile int sink;
__attribute__((noinline)) int leaf(int n) { return n + sink; }
__attribute__((noinline)) int saves_registers(int a, int b, int c) { return leaf(a) * leaf(b) + leaf(c); }
__attribute__((noinline)) int on_the_stack(int n) { char big[5000]; memset(big, n, sizeof big); return leaf(big[n]); }
__attribute__((noinline)) int variable(int n) { char *p = __builtin_alloca(n); memset(p, n, n); return leaf(p[0]); }
__attribute__((noinline)) int aligned(int n) { _Alignas(64) char p[64]; memset(p, n, 64); return leaf(p[n]); }
static int compare(const void *a, const void *b) { return leaf(*(const int *)a - *(const int *)b); }
int main(int argc, char **argv)
{
	int v[9] = { 3, 1, 2 };
	qsort(v, 9, sizeof *v, compare);
	return saves_registers(argc, 2, 3) + on_the_stack(argc) + variable(argc + 50) + aligned(argc);
}
"#;

fn compile(dir: &Path, flags: &[&str]) -> PathBuf {
    let (source, program) = (dir.join("program.c"), dir.join("program"));
    std::fs::write(&source, C_SOURCE).expect("the source is writable");
    let status = Command::new("gcc").args(flags).arg("-o").arg(&program).arg(&source).status();
    assert!(status.expect("gcc runs").success());
    program
}

fn rows_of(path: &Path) -> Vec<Row> {
    let mut tables = Tables::new(1 << 20);
    let file = File::open(path).expect("the file opens");
    let size = file.metadata().expect("it has a size").len();
    let table = tables.build(&|offset, length| {
        if offset + length as u64 > size {
            return None;
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    });
    assert!(matches!(table, FileTable::Rows { .. }), "{table:?}");
    tables.rows
}

fn rule_at(rows: &[Row], pc: u64) -> Option<Rule> {
    let after = rows.partition_point(|row| u64::from(row.pc) <= pc);
    Some(rows[..after].last()?.rule)
}

/// What binutils makes of the file: (cfa, rbp) from this address on, as `readelf` prints them.
fn by_readelf(path: &Path) -> BTreeMap<u64, (String, String)> {
    let output = Command::new("readelf").args(["-W", "--debug-dump=frames-interp"]).arg(path).output();
    let text = String::from_utf8_lossy(&output.expect("readelf runs").stdout).into_owned();
    let (mut known, mut rbp_column, mut is_fde) = (BTreeMap::new(), None, false);
    for line in text.lines() {
        // `r10 (r10)` is one column.
        let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with('(')).collect();
        if line.contains(" FDE ") || line.contains(" CIE ") {
            is_fde = line.contains(" FDE ");
        } else if words.first() == Some(&"LOC") {
            rbp_column = words.iter().position(|word| *word == "rbp");
        } else if let Some(pc) = words.first().and_then(|word| u64::from_str_radix(word, 16).ok())
            && is_fde
            && words.len() >= 2
            && words[0].len() == 16
        {
            let rbp = rbp_column.and_then(|column| words.get(column)).unwrap_or(&"u");
            let ra = words.last().expect("there are words");
            let cfa = if *ra == "c-8" { words[1] } else { *ra };
            known.insert(pc, (cfa.to_string(), rbp.to_string()));
        }
    }
    known
}

/// A rule in readelf's words; `None` for what it shows as `exp`.
fn words(rule: Rule) -> Option<(String, String)> {
    let (kind, rbp, cfa) = rule.parts();
    let rbp = if rbp == 0 { "u".to_string() } else { format!("c-{}", rbp * 8) };
    match kind {
        1 => Some((format!("rsp+{}", cfa * 8), rbp)),
        2 => Some((format!("rbp+{}", cfa * 8), rbp)),
        3 => Some(("u".to_string(), rbp)),
        _ => None,
    }
}

/// Compares all rows; returns how many readelf knows, and how many of them have no rule with us.
fn compare(path: &Path) -> (usize, usize) {
    let (rows, known) = (rows_of(path), by_readelf(path));
    let mut unsupported = 0;
    for (pc, wanted) in &known {
        let rule = rule_at(&rows, *pc).expect("there is a row");
        match words(rule) {
            Some(words) => assert_eq!(&words, wanted, "at {pc:#x} of {}", path.display()),
            None if rule.is_supported() => assert_eq!(wanted.0, "exp", "at {pc:#x} of {}", path.display()),
            None => unsupported += 1,
        }
    }
    (known.len(), unsupported)
}

fn libc_path() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps is readable");
    let line = maps.lines().find(|line| line.contains("/libc.so")).expect("we use libc");
    PathBuf::from(&line[line.find('/').expect("it has a path")..])
}

#[test]
fn rows_say_what_readelf_says_with_and_without_frame_pointers() {
    for flags in [["-O2", "-fomit-frame-pointer"], ["-O2", "-fno-omit-frame-pointer"], ["-O0", "-g"]] {
        let dir = tempfile::tempdir().expect("there is room");
        let (known, unsupported) = compare(&compile(dir.path(), &flags));
        assert!(known > 10, "{flags:?}: {known}");
        assert_eq!(unsupported, 0, "{flags:?}");
    }
}

#[test]
fn rows_of_libc_say_what_readelf_says_and_nearly_all_are_supported() {
    let (known, unsupported) = compare(&libc_path());
    assert!(known > 20_000, "{known}");
    assert!(unsupported * 200 < known, "{unsupported} of {known} have no rule");
}

#[test]
fn a_file_without_section_headers_is_read_through_its_segments() {
    let dir = tempfile::tempdir().expect("there is room");
    let program = compile(dir.path(), &["-O2", "-fomit-frame-pointer"]);
    let with = rows_of(&program);
    let mut bytes = std::fs::read(&program).expect("the program is readable");
    bytes[40..48].fill(0);
    bytes[58..64].fill(0);
    let stripped = dir.path().join("stripped");
    std::fs::write(&stripped, bytes).expect("there is room");
    assert_eq!(rows_of(&stripped), with);
}

#[test]
fn every_address_of_main_has_a_rule_and_the_gap_behind_the_last_function_none() {
    let dir = tempfile::tempdir().expect("there is room");
    let program = compile(dir.path(), &["-O2", "-fomit-frame-pointer"]);
    let rows = rows_of(&program);
    let output = Command::new("nm").arg("-S").arg(&program).output().expect("nm runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.ends_with(" main")).expect("there is a main");
    let mut numbers = line.split(' ').map_while(|word| u64::from_str_radix(word, 16).ok());
    let (start, size) = (numbers.next().expect("an address"), numbers.next().expect("a size"));
    assert!((start..start + size).all(|pc| rule_at(&rows, pc).is_some_and(Rule::is_supported)));
    assert!(!rows.last().expect("there are rows").rule.is_supported());
    assert!(rows.windows(2).all(|pair| pair[0].pc < pair[1].pc));
}

#[test]
fn damaged_files_give_no_rows_and_do_not_panic() {
    let dir = tempfile::tempdir().expect("there is room");
    let program = std::fs::read(compile(dir.path(), &["-O2"])).expect("the program is readable");
    let mut seed = 1u64;
    for _ in 0..2000 {
        let mut bytes = program.clone();
        for _ in 0..8 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let length = if seed & 1 == 0 { 1024 } else { bytes.len() };
            let at = (seed >> 33) as usize % length;
            bytes[at] = (seed >> 8) as u8;
        }
        bytes.truncate((seed >> 20) as usize % program.len() * 4);
        Tables::new(1 << 20).build(&|offset, length| {
            let offset = usize::try_from(offset).ok()?;
            Some(bytes.get(offset..offset.checked_add(length)?)?.to_vec())
        });
    }
    assert!(of_section(&[], 0).is_empty());
}

#[test]
fn the_vdso_and_all_libraries_of_a_process_have_spans() {
    let mut images = Images::new();
    let pid = std::process::id();
    images.snapshot(pid).expect("we live");
    let mut tables = Tables::new(1 << 20);
    let table = tables.of_process(&images, pid);
    assert_eq!(table.spans.len(), images.mappings(pid).iter().filter(|m| m.module() != "[vsyscall]").count());
    assert!(table.spans.is_sorted_by_key(|span| span.start));
    assert_eq!(table, tables.of_process(&images, pid), "looking again changes nothing");
    // Ours must be found where we are.
    let here = rows_of as *const () as u64;
    let span = table.spans.iter().rfind(|span| span.start <= here).expect("we are mapped");
    let rows = &tables.rows()[span.first_row as usize..][..span.rows as usize];
    let rule = rule_at(rows, here - span.start + u64::from(span.pc)).expect("there is a row");
    assert_eq!(words(rule).expect("a function's entry is simple").0, "rsp+8");
}

#[test]
fn a_file_that_does_not_fit_is_left_out_and_counted() {
    let mut images = Images::new();
    let pid = std::process::id();
    images.snapshot(pid).expect("we live");
    let mut tables = Tables::new(100);
    tables.of_process(&images, pid);
    tables.of_process(&images, pid);
    assert!(tables.files_over_capacity > 0 && tables.rows().len() <= 100);
    assert!(tables.files_over_capacity as usize <= images.open_files(), "counted once each");
}
