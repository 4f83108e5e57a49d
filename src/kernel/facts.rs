//! Facts: what this kernel and these privileges allow. No decisions.
//!
//! BTF being present proves nothing: kernels exist that have it and refuse every program of type
//! TRACING. So each candidate function gets a *trial load* of a two-instruction program, and
//! kprobe.multi a trial link (Debian 6.1 loads such programs and then says EOPNOTSUPP).

use anyhow::{Context, Result};
use libbpf_rs::btf::types::{Func, FuncProto, Typedef};
use libbpf_rs::btf::{Btf, BtfType};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Whether something worked when it was tried, and the kernel's or our words when it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    Works,
    Refused(String),
}

impl Trial {
    pub fn works(&self) -> bool {
        matches!(self, Trial::Works)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionFacts {
    /// Under exactly this name, not `name.constprop.0`.
    pub in_kallsyms: bool,
    /// `name.constprop.0` or `name.isra.0`, where that is the only one.
    pub variant: Option<String>,
    /// Number of arguments, from BTF.
    pub arguments: Option<u32>,
    /// A trial load of an fentry program for it.
    pub fentry: Trial,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`
    pub release: String,
    pub arch: String,
    pub root: bool,
    /// Effective capabilities out of those that matter here, by name.
    pub capabilities: BTreeSet<String>,
    /// Contents of the lockdown file's chosen word; `None` when the kernel has no lockdown.
    pub lockdown: Option<String>,
    pub btf: bool,
    /// Addresses are visible (`kernel.kptr_restrict` hides them as zeros).
    pub kallsyms: bool,
    /// CONFIG_PREEMPT_RT
    pub realtime: bool,
    pub raw_tracepoint: Trial,
    pub kprobe: Trial,
    pub kprobe_multi: Trial,
    /// Only the functions that were asked for.
    pub functions: BTreeMap<String, FunctionFacts>,
    /// Raw tracepoints the kernel has, out of those that were asked for.
    pub tracepoints: BTreeSet<String>,
}

/// linux/capability.h
const CAPABILITIES: [(u32, &str); 5] = [
    (2, "CAP_DAC_READ_SEARCH"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];

impl Facts {
    /// (6, 12) of `6.12.107+deb13-amd64`; (0, 0) when it does not start like that.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// Looks at the running kernel. `functions` and `tracepoints` are the ones somebody may want to hook.
    pub fn gather(functions: &[&str], tracepoints: &[&str]) -> Result<Facts> {
        let btf = Btf::from_vmlinux().ok();
        let symbols = kallsyms(functions)?;
        let raw_tracepoint = try_raw_tracepoint();
        let allowed = raw_tracepoint.works();

        let mut facts = Facts {
            release: uname_release(),
            arch: std::env::consts::ARCH.to_string(),
            // SAFETY: geteuid has no preconditions.
            root: unsafe { libc::geteuid() } == 0,
            capabilities: capabilities()?,
            lockdown: lockdown(),
            btf: btf.is_some(),
            kallsyms: symbols.values().any(|address| *address != 0),
            realtime: fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1"),
            raw_tracepoint,
            kprobe: try_kprobe(),
            kprobe_multi: Trial::Refused("not tried: single kprobes do not work".into()),
            functions: BTreeMap::new(),
            tracepoints: tracepoints
                .iter()
                .filter(|name| has_tracepoint(btf.as_ref(), name))
                .map(|name| name.to_string())
                .collect(),
        };
        if facts.kprobe.works()
            && let Some(victim) = functions.iter().find(|name| symbols.contains_key(**name))
        {
            facts.kprobe_multi = try_kprobe_multi(victim);
        }
        for name in functions {
            let function = btf.as_ref().and_then(|btf| btf.type_by_name::<Func<'_>>(name));
            let fentry = match (&function, allowed) {
                (_, false) => Trial::Refused("BPF itself is refused".into()),
                (None, _) => Trial::Refused("not in the kernel's BTF".into()),
                (Some(function), _) => try_fentry(btf_id(function)),
            };
            facts.functions.insert(
                name.to_string(),
                FunctionFacts {
                    in_kallsyms: symbols.contains_key(*name),
                    variant: variant_of(&symbols, name),
                    arguments: function.and_then(|f| argument_count(&f)),
                    fentry,
                },
            );
        }
        Ok(facts)
    }
}

fn btf_id(function: &Func<'_>) -> u32 {
    let function: &BtfType<'_> = function;
    function.type_id().into()
}

fn argument_count(function: &Func<'_>) -> Option<u32> {
    let prototype: FuncProto<'_> = function.next_type()?.try_into().ok()?;
    Some(prototype.len() as u32)
}

/// Every tracepoint's callback has a typedef `btf_trace_NAME`; without BTF tracefs is asked.
fn has_tracepoint(btf: Option<&Btf<'_>>, name: &str) -> bool {
    match btf {
        Some(btf) => btf.type_by_name::<Typedef<'_>>(&format!("btf_trace_{name}")).is_some(),
        None => ["lock", "raw_syscalls", "sched"]
            .iter()
            .any(|group| fs::metadata(format!("/sys/kernel/tracing/events/{group}/{name}")).is_ok()),
    }
}

fn uname_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "?".into(), |text| text.trim().to_string())
}

fn lockdown() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    text.split_whitespace().find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_string()))
}

fn capabilities() -> Result<BTreeSet<String>> {
    let status = fs::read_to_string("/proc/self/status").context("Failed to read /proc/self/status")?;
    let bits = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    Ok(CAPABILITIES
        .iter()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, name)| name.to_string())
        .collect())
}

/// Addresses of the wanted functions and of their variants (text symbols only), 0 where hidden.
fn kallsyms(wanted: &[&str]) -> Result<BTreeMap<String, u64>> {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    let text = fs::read_to_string("/proc/kallsyms").context("Failed to read /proc/kallsyms")?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let function = name.split_once('.').map_or(name, |(function, _)| function);
        if matches!(kind, "T" | "t" | "W" | "w") && wanted.contains(function) {
            found.insert(name.to_string(), u64::from_str_radix(address, 16).unwrap_or(0));
        }
    }
    Ok(found)
}

/// The copy of a function that the compiler made for its callers (gcc's IPA-SRA, constant propagation).
///
/// Not a part of it (`.part.0`, `.cold`), and not one of several.
fn variant_of(symbols: &BTreeMap<String, u64>, function: &str) -> Option<String> {
    let mut variants = symbols.keys().filter(|symbol| {
        let suffix = symbol.strip_prefix(function).and_then(|rest| rest.strip_prefix('.'));
        suffix.is_some_and(|suffix| {
            suffix
                .split('.')
                .all(|word| matches!(word, "constprop" | "isra") || word.chars().all(|c| c.is_ascii_digit()))
        })
    });
    variants.next().filter(|_| variants.next().is_none()).cloned()
}

/// `r0 = first word of the context; r0 = 0; exit`
///
/// The read matters: 5.10 loads an fentry program for futex_wait and then refuses to let it read
/// its first argument, a pointer to an integer.
fn trivial_program() -> [libbpf_sys::bpf_insn; 3] {
    // SAFETY: bpf_insn is plain bytes; all-zero is a valid value.
    let mut program: [libbpf_sys::bpf_insn; 3] = unsafe { std::mem::zeroed() };
    program[0].code = 0x79; // BPF_LDX | BPF_MEM | BPF_DW, into r0
    program[0].set_src_reg(1);
    program[1].code = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
    program[2].code = 0x95; // BPF_JMP | BPF_EXIT
    program
}

fn load(
    program_type: u32,
    set: impl FnOnce(&mut libbpf_sys::bpf_prog_load_opts),
) -> Result<OwnedFd, io::Error> {
    let program = trivial_program();
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as _,
        ..Default::default()
    };
    set(&mut opts);
    // SAFETY: name, licence and program outlive the call; opts is sized by its own sz field.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            program_type,
            c"lockprof_trial".as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            program.as_ptr(),
            program.len() as _,
            &mut opts,
        )
    };
    owned(fd)
}

fn owned(fd: i32) -> Result<OwnedFd, io::Error> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a fresh descriptor nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn trial(result: Result<OwnedFd, io::Error>, what: &str) -> Trial {
    match result {
        Ok(_) => Trial::Works,
        Err(err) => Trial::Refused(format!("{what}: {}", errno_name(&err))),
    }
}

fn errno_name(err: &io::Error) -> String {
    let name = match err.raw_os_error() {
        Some(libc::EPERM) => "EPERM",
        Some(libc::EACCES) => "EACCES",
        Some(libc::EINVAL) => "EINVAL",
        Some(libc::EOPNOTSUPP) => "EOPNOTSUPP",
        Some(libc::ENOENT) => "ENOENT",
        Some(libc::ENOSYS) => "ENOSYS",
        Some(524) => "ENOTSUPP",
        _ => return err.to_string(),
    };
    name.to_string()
}

fn try_raw_tracepoint() -> Trial {
    use std::os::fd::AsRawFd;
    let program = match load(libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT, |_| {}) {
        Ok(program) => program,
        Err(err) => return Trial::Refused(format!("the kernel refuses BPF programs: {}", errno_name(&err))),
    };
    // SAFETY: both arguments are valid for the call.
    let link =
        unsafe { libbpf_sys::bpf_raw_tracepoint_open(c"sched_process_exit".as_ptr(), program.as_raw_fd()) };
    trial(owned(link), "the kernel refuses to attach to a raw tracepoint")
}

fn try_fentry(btf_id: u32) -> Trial {
    let result = load(libbpf_sys::BPF_PROG_TYPE_TRACING, |opts| {
        opts.expected_attach_type = libbpf_sys::BPF_TRACE_FENTRY;
        opts.attach_btf_id = btf_id;
    });
    trial(result, "the kernel refuses fentry")
}

fn try_kprobe() -> Trial {
    if fs::metadata("/sys/bus/event_source/devices/kprobe").is_err() {
        return Trial::Refused("the kernel has no kprobes (CONFIG_KPROBES)".into());
    }
    trial(load(libbpf_sys::BPF_PROG_TYPE_KPROBE, |_| {}), "the kernel refuses kprobe programs")
}

fn try_kprobe_multi(function: &str) -> Trial {
    use std::os::fd::AsRawFd;
    let program = match load(libbpf_sys::BPF_PROG_TYPE_KPROBE, |opts| {
        opts.expected_attach_type = libbpf_sys::BPF_TRACE_KPROBE_MULTI;
    }) {
        Ok(program) => program,
        Err(err) => return Trial::Refused(format!("the kernel refuses kprobe.multi: {}", errno_name(&err))),
    };
    let symbol = CString::new(function).expect("function names have no NUL");
    let mut symbols = [symbol.as_ptr()];
    let mut opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        ..Default::default()
    };
    opts.__bindgen_anon_1.kprobe_multi.syms = symbols.as_mut_ptr();
    opts.__bindgen_anon_1.kprobe_multi.cnt = 1;
    // SAFETY: symbol and opts outlive the call; a link to 0 targets no other object.
    let link = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), 0, libbpf_sys::BPF_TRACE_KPROBE_MULTI, &opts)
    };
    trial(owned(link), "the kernel refuses to attach kprobe.multi")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_copy_of_a_function_stands_for_it() {
        let variant = |names: &[&str]| {
            let symbols = names.iter().map(|name| (name.to_string(), 1)).collect();
            variant_of(&symbols, "rwsem_wake")
        };
        assert_eq!(variant(&["rwsem_wake.isra.0"]).as_deref(), Some("rwsem_wake.isra.0"));
        let twice = "rwsem_wake.constprop.0.isra.0";
        assert_eq!(variant(&[twice, "rwsem_wake.cold"]).as_deref(), Some(twice));
        assert_eq!(variant(&["rwsem_wake", "rwsem_wake.part.0", "rwsem_wake.isra.0.cold"]), None);
        assert_eq!(variant(&["rwsem_wake.isra.0", "rwsem_wake.isra.1"]), None, "which of them?");
        assert_eq!(variant(&["rwsem_wake_other.isra.0"]), None);
    }
}
