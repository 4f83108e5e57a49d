//! What is known of the processes whose waits are judged.

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Libc {
    Glibc,
    Musl,
    #[default]
    Unknown,
}

/// What a process is made of; a `false` means "not known to be".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    pub libc: Libc,
    /// No file name tells: for a caller that reads `.go.buildinfo`.
    pub go: bool,
    pub hotspot: bool,
    pub python: bool,
    pub openmp: bool,
    /// No file name tells.
    pub rust: bool,
}

impl Runtime {
    /// By the names of the files that are mapped, with or without directories.
    ///
    /// A static program maps none of these: its C library stays unknown.
    pub fn of_files<'n>(names: impl Iterator<Item = &'n str>) -> Runtime {
        let mut runtime = Runtime::default();
        for name in names {
            let name = name.rsplit('/').next().unwrap_or(name);
            let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
            // musl's one file goes by both names; glibc's loader is no proof, gcompat has one too.
            if begins(&["ld-musl-", "libc.musl-"]) {
                runtime.libc = Libc::Musl;
            } else if begins(&["libc.so.6", "libc-2.", "libpthread.so.0", "libpthread-2."])
                && runtime.libc == Libc::Unknown
            {
                runtime.libc = Libc::Glibc;
            }
            runtime.hotspot |= name == "libjvm.so";
            runtime.python |= begins(&["libpython", "python3"]);
            runtime.openmp |= begins(&["libgomp.so", "libgomp-", "libomp.so", "libiomp5.so"]);
            runtime.rust |= begins(&["libstd-"]) && name.ends_with(".so");
        }
        runtime
    }
}

/// By process; one that is not here is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtimes(pub BTreeMap<u32, Runtime>);

impl Runtimes {
    pub fn of(&self, pid: u32) -> Runtime {
        self.0.get(&pid).copied().unwrap_or_default()
    }
}
