//! Which C library and runtimes the traced processes have: what a futex wait means depends on it.

use crate::futexes::{Libc, Runtime, Runtimes};
use crate::symbolize::Images;
use std::collections::BTreeSet;
use std::fs::File;

/// Static programs are looked into no further than this.
const LONGEST_LOOK: u64 = 64 << 20;

/// Of these processes, from the files they map; those that map no C library have it in the program itself.
pub fn of_processes(images: &Images, pids: &BTreeSet<u32>) -> Runtimes {
    let of = |pid: u32| {
        let mappings = images.mappings(pid);
        let mut runtime = Runtime::of_files(mappings.iter().map(|mapping| mapping.path.as_str()));
        if runtime.libc == Libc::Unknown
            && let Some(program) = mappings.iter().find_map(|mapping| mapping.file)
            && let Some(bytes) = beginning_of(images.file(program))
        {
            look_into(&bytes, &mut runtime);
        }
        runtime
    };
    Runtimes(pids.iter().map(|pid| (*pid, of(*pid))).collect())
}

fn beginning_of(file: &File) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let size = file.metadata().ok()?.len().min(LONGEST_LOOK);
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

fn look_into(program: &[u8], runtime: &mut Runtime) {
    let has = |text: &[u8]| contains(program, text);
    // debug/buildinfo: the magic of .go.buildinfo
    runtime.go = has(b"\xff Go buildinf:");
    // The banner that gnu_get_libc_version's library prints, in .rodata; src/thread/vmlock.c, in the symbols.
    if has(b"GNU C Library (") {
        runtime.libc = Libc::Glibc;
    } else if has(b"\0__vm_wait\0") && has(b"\0__tl_sync\0") {
        runtime.libc = Libc::Musl;
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((first, _)) = needle.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| byte == first) {
        if haystack[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_programs_are_told_by_what_their_libraries_leave_in_them() {
        let of = |program: &[u8]| {
            let mut runtime = Runtime::default();
            look_into(program, &mut runtime);
            (runtime.libc, runtime.go)
        };
        assert_eq!(of(b"x\0__vm_wait\0y\0__tl_sync\0"), (Libc::Musl, false));
        assert_eq!(of(b"..GNU C Library (Debian) stable"), (Libc::Glibc, false));
        assert_eq!(of(b"\xff\xff Go buildinf:"), (Libc::Unknown, true));
        assert_eq!(of(b""), (Libc::Unknown, false));
    }
}
