//! Names of user addresses, from the files that [`Images`] keeps open. One batch per file.

use super::images::{FileId, Images, Mapping};
use super::perfmap::PerfMap;
use super::without_compiler_suffix;
use crate::model::{Frame, Function, Space};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Reason, Sym, Symbolized, Symbolizer};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsRawFd;

/// What happened to the files of [`symbolize`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Files that have addresses in the profile and could not be read as ELF.
    pub unreadable_files: u64,
}

/// Fills the frames of user space that have no functions yet.
pub fn symbolize(symbolizer: &Symbolizer, frames: &mut [Frame], images: &Images) -> Outcome {
    let mut wanted: BTreeMap<FileId, Vec<u64>> = BTreeMap::new();
    let mut pending: Vec<(usize, FileId, u64)> = Vec::new();
    let mut perf_maps: HashMap<u32, PerfMap> = HashMap::new();
    for (index, frame) in frames.iter_mut().enumerate() {
        let Some((mapping, addr)) = place(frame, images) else { continue };
        frame.module = Some(mapping.module().to_string());
        // Of the return address itself, as a disassembly shows it.
        frame.module_offset = Some(mapping.offset_of(addr) + (frame.addr - addr));
        if let Some(file) = mapping.file {
            let offset = mapping.offset_of(addr);
            wanted.entry(file).or_default().push(offset);
            pending.push((index, file, offset));
        } else if mapping.module() == "[jit]"
            && let Some(pid) = frame.pid
            && let Some(file) = images.perf_map(pid)
        {
            let map = perf_maps.entry(pid).or_insert_with(|| PerfMap::read(file));
            let function = |name: &str| Function { name: name.to_string(), file: None, line: None };
            frame.functions.extend(map.name(addr).map(function));
        }
    }

    let mut outcome = Outcome::default();
    let mut found: HashMap<(FileId, u64), Vec<Function>> = HashMap::new();
    for (file, mut offsets) in wanted {
        offsets.sort_unstable();
        offsets.dedup();
        match symbolize_file(symbolizer, images, file, &offsets) {
            Some(functions) => {
                found.extend(offsets.iter().map(|offset| (file, *offset)).zip(functions));
            }
            None => outcome.unreadable_files += 1,
        }
    }
    for (index, file, offset) in pending {
        if let Some(functions) = found.get(&(file, offset)) {
            frames[index].functions = functions.clone();
        }
    }
    outcome
}

/// Keeps what it has read of every file: one for all that is to be named.
pub fn symbolizer() -> Symbolizer {
    Symbolizer::builder().enable_auto_reload(false).build()
}

/// By which blazesym opens a kept file.
pub fn path_of(images: &Images, file: FileId) -> String {
    format!("/proc/self/fd/{}", images.file(file).as_raw_fd())
}

/// Where to look a frame up; `None` for frames that are done, of the kernel, or outside every mapping.
fn place<'a>(frame: &Frame, images: &'a Images) -> Option<(&'a Mapping, u64)> {
    if frame.space != Space::User || !frame.functions.is_empty() {
        return None;
    }
    // A call that never returns is the last instruction of its function, so its return address may
    // belong to the next one.
    let addr = if frame.leaf { frame.addr } else { frame.addr.checked_sub(1)? };
    Some((images.mapping(frame.pid?, addr)?, addr))
}

/// The functions at each offset; `None` when the file cannot be read.
fn symbolize_file(
    symbolizer: &Symbolizer,
    images: &Images,
    file: FileId,
    offsets: &[u64],
) -> Option<Vec<Vec<Function>>> {
    let path = path_of(images, file);
    let look_up = |debug_syms, offsets: &[u64]| {
        let mut source = Elf::new(&path);
        source.debug_syms = debug_syms;
        let found = symbolizer.symbolize(&Source::Elf(source), Input::FileOffset(offsets));
        // An error that blazesym folds into one address is most often the whole file's all the same.
        found.ok().filter(|found| {
            found.is_empty()
                || !found.iter().all(|found| matches!(found, Symbolized::Unknown(Reason::IgnoredError)))
        })
    };
    // Broken debug information must not cost the names of the symbol table.
    let Some(symbols) = look_up(true, offsets) else {
        let symbols = look_up(false, offsets)?;
        return Some(symbols.iter().map(|symbol| functions(symbol.as_sym(), None)).collect());
    };
    // The name of the symbol table as well, where the first one came from DWARF (it has a line then)
    // and may be short, or where there was none.
    let again: Vec<usize> = (0..offsets.len())
        .filter(|index| symbols[*index].as_sym().is_none_or(|sym| sym.code_info.is_some()))
        .collect();
    let again_offsets: Vec<u64> = again.iter().map(|index| offsets[*index]).collect();
    let mut elf_names: HashMap<usize, String> = HashMap::new();
    for (index, symbol) in again.iter().zip(look_up(false, &again_offsets).into_iter().flatten()) {
        if let Symbolized::Sym(sym) = symbol {
            elf_names.insert(*index, sym.name.into_owned());
        }
    }
    let named = symbols
        .iter()
        .enumerate()
        .map(|(index, symbol)| functions(symbol.as_sym(), elf_names.get(&index).map(String::as_str)));
    Some(named.collect())
}

fn functions(sym: Option<&Sym>, elf_name: Option<&str>) -> Vec<Function> {
    let Some(sym) = sym else {
        return elf_name.map(|name| function(name, None)).into_iter().collect();
    };
    let name = match elf_name {
        Some(elf_name) if is_short_form(&sym.name, elf_name) => elf_name,
        _ => &sym.name,
    };
    let mut functions = vec![function(name, sym.code_info.as_deref())];
    functions.extend(sym.inlined.iter().map(|inlined| function(&inlined.name, inlined.code_info.as_ref())));
    functions.retain(|function| !function.name.is_empty());
    functions
}

fn function(name: &str, code: Option<&CodeInfo>) -> Function {
    Function {
        name: clean(name).to_string(),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()).filter(|file| !file.is_empty()),
        line: code.and_then(|code| code.line).filter(|line| *line != 0),
    }
}

/// A demangled name without what the compiler added to it.
pub fn clean(name: &str) -> &str {
    strip_rust_hash(without_clone(name))
}

/// DWARF gives members of unnamed namespaces and of lambdas only their last name (`_M_run`,
/// `operator()`), because they have no linkage name. The symbol table has the whole.
fn is_short_form(dwarf_name: &str, elf_name: &str) -> bool {
    if dwarf_name.is_empty() {
        return true;
    }
    !dwarf_name.contains("::")
        && (elf_name.contains("::") || elf_name.contains('('))
        && elf_name.len() > dwarf_name.len()
        && elf_name.contains(dwarf_name.split(['<', '(']).next().unwrap_or(dwarf_name))
}

/// Which copy the compiler made differs with every build and says nothing to the reader.
/// `f() [clone .constprop.0]` is how the demangler shows `f().constprop.0`.
fn without_clone(name: &str) -> &str {
    without_compiler_suffix(name.split(" [clone ").next().unwrap_or(name))
}

/// `core::ptr::drop_in_place::h0123456789abcdef` without the hash: it differs with every build.
fn strip_rust_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((rest, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => rest,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_hashes_are_stripped() {
        assert_eq!(strip_rust_hash("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(strip_rust_hash("a::b::h012345678"), "a::b::h012345678");
        assert_eq!(strip_rust_hash("a::b::hello_world_1234"), "a::b::hello_world_1234");
        assert_eq!(strip_rust_hash("main"), "main");
    }

    #[test]
    fn clones_have_the_name_of_their_original() {
        assert_eq!(without_clone("take.constprop.0.isra.0"), "take");
        assert_eq!(
            without_clone("f()::{lambda()#1}::operator()() const [clone .constprop.0]"),
            "f()::{lambda()#1}::operator()() const"
        );
        assert_eq!(without_clone("operator()"), "operator()");
    }

    #[test]
    fn the_symbol_table_names_what_dwarf_names_in_short() {
        assert!(is_short_form("_M_run", "std::thread::_State_impl<X>::_M_run()"));
        assert!(is_short_form("operator()", "take(int)::{lambda()#1}::operator()() const"));
        assert!(is_short_form("helper", "(anonymous namespace)::helper(int)"));
        assert!(is_short_form("lock_contended", "std::sys::sync::mutex::futex::Mutex::lock_contended"));
        assert!(is_short_form("", "start_thread"));
        assert!(!is_short_form("pthread_mutex_lock", "___pthread_mutex_lock"), "C has one name");
        assert!(!is_short_form("foo", "foo.constprop.0"));
        assert!(!is_short_form("foo", "bar::baz()"), "another function");
        assert!(!is_short_form("Account::deposit(int)", "Account::deposit(int)"));
    }
}
