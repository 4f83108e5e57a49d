//! Plan → open → read-only data and map sizes → autoload by plan → load → attach → activate.

use super::mapped::Mapped;
use super::skel::{LockprofSkel, LockprofSkelBuilder, types};
use super::tracefs_kprobe::{self, KprobeEvent};
use super::wire;
use crate::attach::catalog;
use crate::attach::plan::{Hook, Plan};
use crate::kernel::Facts;
use crate::model::{Backend, LockKind, Loss};
use crate::unwind::{ProcessTable, Row, UserStacks};
use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{
    KprobeMultiOpts, Link, MapCore, MapFlags, OpenObject, PrintLevel, ProgramAttachType, ProgramMut,
    RingBufferBuilder,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

/// Which processes are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// All but lockprof itself.
    All,
    Pids(Vec<u32>),
}

/// What of session::Config the BPF side needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub targets: Targets,
    pub follow_forks: bool,
    /// Entries of the maps of sites, stacks, waits and holds; a quarter of it for locks with histograms.
    pub map_entries: u32,
    /// Bytes of the ring buffer of notices: a power of two, at least a page.
    pub notice_bytes: u32,
    pub user_stacks: UserStacks,
    /// Room for unwind tables: rows of all files, and processes.
    pub unwind_rows: u32,
    pub unwind_processes: u32,
    pub slabs: SlabLookup,
}

/// How to tell in which slab a lock lives. All 0: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabLookup {
    /// The kernel has bpf_get_kmem_cache().
    pub by_kernel: bool,
    pub page_offset: u64,
    pub vmemmap: u64,
}

/// Processes that user space should look at.
#[derive(Debug, Default)]
pub struct Notices {
    pub seen: BTreeSet<u32>,
    /// Those of them that were forked or ran another program.
    pub begun: BTreeSet<u32>,
}

/// A thread as it is known inside and outside of its pid namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetThread {
    /// Inode of the namespace.
    pub pid_namespace: u32,
    pub tid_in_namespace: u32,
    pub pid: u32,
    pub tid: u32,
    pub comm: String,
}

/// Loaded and attached programs. Dropping it detaches them.
pub struct Tracer {
    // Links go first: nothing may run while the maps go away.
    links: Vec<Attached>,
    skel: Box<LockprofSkel<'static>>,
    /// Processes that user space should look at, filled by `poll`.
    noticed: Rc<RefCell<Notices>>,
    notices: libbpf_rs::RingBuffer<'static>,
    /// 5.10 counts a miss for nearly every hit of a function that sleeps, although all of 100 waits
    /// of 100 threads arrived (tests/traced/truth.rs); its numbers are not used.
    kprobe_misses_are_known: bool,
    unwind_rows: Mapped,
    unwind_rows_written: usize,
    spin_tables: SpinTables,
    kinds_that_tell_spinning: Vec<LockKind>,
    kinds_with_releases: Vec<LockKind>,
    threads_not_remembered: u64,
    early_waits_without_room: u64,
    early_waits: i64,
    epoch_ns: u64,
    watches_scheduler: bool,
}

/// What spin waits came to, each CPU's part after the other.
pub(super) struct SpinTables {
    pub sites: Mapped,
    pub locks: Mapped,
    pub stacks: Mapped,
    pub holds: Mapped,
    pub queues: Mapped,
    pub blames: Mapped,
}

struct Attached {
    program: String,
    // Before the event: a definition in use can not be removed.
    link: Link,
    event: Option<KprobeEvent>,
}

/// The last lines libbpf said, for the error message; it writes the verifier's log there.
static LIBBPF_SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(super) fn remember(_level: PrintLevel, text: String) {
    let mut said = LIBBPF_SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    said.extend(text.lines().map(String::from));
    let keep = 12;
    let drop = said.len().saturating_sub(keep);
    said.drain(..drop);
}

/// Before 5.11 BPF memory counts against this limit.
pub(super) fn lift_memory_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a valid rlimit for the duration of the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited) };
}

fn forget_what_libbpf_said() {
    LIBBPF_SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
}

/// The program that libbpf gave up on, and the kernel's error: `prog 'NAME': failed to load: -EACCES`.
fn refused_program() -> Option<(String, String)> {
    let said = LIBBPF_SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    said.iter().rev().find_map(|line| {
        let (_, rest) = line.split_once("prog '")?;
        let (program, rest) = rest.split_once("': ")?;
        let why = rest.split_once("failed to load: ").or_else(|| rest.split_once("load failed: "))?.1;
        Some((program.to_string(), why.trim().to_string()))
    })
}

/// A hook that does not work here after all.
fn strike(plan: &mut Plan, function: &str, reason: &str) {
    for hook in plan.hooks.iter_mut().filter(|hook| hook.function == function) {
        hook.backend = None;
        hook.reason = reason.to_string();
        hook.blind.get_or_insert_with(|| {
            catalog::function(function)
                .map_or_else(|| format!("what {function} shows"), |function| function.blind.to_string())
        });
    }
}

/// Run by hand, attached to nothing.
const FORGET_EARLY_WAIT: &str = "forget_early_wait__run";

/// `mutex_lock__fexit` → (`mutex_lock`, `fexit`)
fn split_name(program: &str) -> (&str, &str) {
    program.rsplit_once("__").unwrap_or((program, ""))
}

fn suffixes(backend: Backend) -> &'static [&'static str] {
    match backend {
        Backend::Fentry => &["fentry", "fexit"],
        Backend::Kprobe | Backend::KprobeMulti => &["kprobe", "kretprobe"],
        Backend::Tracepoint => &["tp"],
    }
}

/// The plan's hook that a program belongs to.
fn hook_of<'p>(plan: &'p Plan, program: &str) -> Option<&'p Hook> {
    let (function, suffix) = split_name(program);
    plan.used().find(|hook| {
        hook.function == function && hook.backend.is_some_and(|backend| suffixes(backend).contains(&suffix))
    })
}

fn is_lifecycle(plan: &Plan, program: &str) -> bool {
    let (function, suffix) = split_name(program);
    suffix == "tp" && plan.lifecycle.contains(&function)
}

impl Tracer {
    /// Loads and attaches everything the plan uses; nothing is counted before [`Tracer::activate`].
    ///
    /// A hook that loads and then cannot be attached is struck out of the plan, with the reason.
    pub fn start(plan: &mut Plan, facts: &Facts, settings: &Settings) -> Result<Tracer> {
        let mut tracer = Tracer::load_what_loads(plan, facts, settings)?;
        tracer.attach(plan)?;
        Ok(tracer)
    }

    /// One program that this kernel refuses must not cost the others: its hook is struck out, with the reason.
    fn load_what_loads(plan: &mut Plan, facts: &Facts, settings: &Settings) -> Result<Tracer> {
        loop {
            forget_what_libbpf_said();
            let err = match Tracer::load(plan, facts, settings, &|_| false) {
                Ok(tracer) => return Ok(tracer),
                Err(err) => err,
            };
            let Some((program, why)) = refused_program() else { return Err(err) };
            let Some(hook) = hook_of(plan, &program) else { return Err(err) };
            strike(plan, hook.function, &format!("Failed to load {program}: {why}"));
        }
    }

    /// For BPF_PROG_TEST_RUN: loaded with the entry points of bpf/selftest.bpf.c, nothing attached.
    #[cfg(test)]
    pub(super) fn load_selftest(plan: &Plan, facts: &Facts, settings: &Settings) -> Result<Tracer> {
        Tracer::load(plan, facts, settings, &|program| split_name(program).1 == "selftest")
    }

    fn load(
        plan: &Plan,
        facts: &Facts,
        settings: &Settings,
        besides: &dyn Fn(&str) -> bool,
    ) -> Result<Tracer> {
        libbpf_rs::set_print(Some((PrintLevel::Warn, remember)));
        lift_memory_limit();
        // Lives until the process ends: the skeleton borrows it, and there is one per run.
        let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open =
            LockprofSkelBuilder::default().open(storage).context("Failed to open the BPF object")?;

        let rodata = open.maps.rodata_data.as_deref_mut().context("The BPF object has no .rodata")?;
        configure(&mut rodata.cfg, plan, facts, settings);
        SpinSizes::new(plan, settings.map_entries).configure(&mut rodata.cfg);

        let entries = settings.map_entries.max(1);
        open.maps.sites.set_max_entries(entries)?;
        open.maps.stacks.set_max_entries(entries)?;
        open.maps.waits.set_max_entries(entries)?;
        open.maps.owners.set_max_entries(entries)?;
        open.maps.futex_waits.set_max_entries(entries)?;
        open.maps.threads.set_max_entries(entries)?;
        open.maps.releases.set_max_entries(entries)?;
        open.maps.watched.set_max_entries(entries)?;
        open.maps.blames.set_max_entries(entries)?;
        open.maps.pairs.set_max_entries(entries)?;
        open.maps.chains.set_max_entries(entries)?;
        open.maps.locks.set_max_entries((entries / 4).max(1))?;
        // Not asked for, not paid for: preallocated maps take memory.
        let hold = cfg!(test) || plan.times_sleeping_holds();
        let holds = if hold { entries } else { 1 };
        open.maps.held.set_max_entries(holds)?;
        open.maps.holds.set_max_entries(holds)?;
        open.maps.calls.set_max_entries(entries)?;
        open.maps.notices.set_max_entries(settings.notice_bytes)?;
        open.maps.rows.set_max_entries(settings.unwind_rows.max(1))?;
        open.maps.processes.set_max_entries(settings.unwind_processes.max(1))?;
        let spin = SpinSizes::new(plan, entries);
        let cpus = spin.cpus;
        open.maps.spin_sites.set_max_entries(cpus << spin.sites_log2)?;
        open.maps.spin_locks.set_max_entries(cpus << spin.locks_log2)?;
        open.maps.spin_stacks.set_max_entries(cpus << spin.stacks_log2)?;
        open.maps.spin_holds.set_max_entries(cpus << spin.holds_log2)?;
        open.maps.spin_queues.set_max_entries(1 << spin.queues_log2)?;
        open.maps.spin_blames.set_max_entries(cpus << spin.blames_log2)?;
        let target_entries = match &settings.targets {
            Targets::All => 1,
            Targets::Pids(pids) => entries.max(pids.len() as u32),
        };
        open.maps.targets.set_max_entries(target_entries)?;

        for mut program in open.open_object_mut().progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            let hook = hook_of(plan, &name);
            let wanted = hook.is_some() || is_lifecycle(plan, &name) || name == FORGET_EARLY_WAIT;
            program.set_autoload(wanted || besides(&name));
            if hook.is_some_and(|hook| hook.backend == Some(Backend::KprobeMulti)) {
                program.set_attach_type(ProgramAttachType::KprobeMulti);
            }
        }
        let skel = open.load().map_err(|err| {
            let said = LIBBPF_SAID.lock().map(|said| said.join("\n  ")).unwrap_or_default();
            anyhow!("{err}\n  {said}").context("Failed to load the BPF programs")
        })?;

        if let Targets::Pids(pids) = &settings.targets {
            for pid in pids {
                let one = 1u32.to_ne_bytes();
                skel.maps
                    .targets
                    .update(&pid.to_ne_bytes(), &one, MapFlags::ANY)
                    .context("Failed to write the map of targets")?;
            }
        }
        let noticed = Rc::new(RefCell::new(Notices::default()));
        let mut builder = RingBufferBuilder::new();
        let sink = Rc::clone(&noticed);
        builder
            .add(&skel.maps.notices, move |bytes| {
                let notice = wire::read::<types::notice>(bytes);
                let mut notices = sink.borrow_mut();
                notices.seen.insert(notice.tgid);
                if types::notice_kind(notice.kind) != types::notice_kind::NOTICE_STACK {
                    notices.begun.insert(notice.tgid);
                }
                0
            })
            .context("Failed to open the ring buffer")?;
        let notices = builder.build().context("Failed to open the ring buffer")?;

        let kprobe_misses_are_known = facts.version() >= (5, 11);
        let unwind_rows = Mapped::new(&skel.maps.rows).context("Failed to map the unwind rows")?;
        let spin_table = |map: &libbpf_rs::MapMut<'_>| Mapped::new(map).context("Failed to map a spin table");
        let spin_tables = SpinTables {
            sites: spin_table(&skel.maps.spin_sites)?,
            locks: spin_table(&skel.maps.spin_locks)?,
            stacks: spin_table(&skel.maps.spin_stacks)?,
            holds: spin_table(&skel.maps.spin_holds)?,
            queues: spin_table(&skel.maps.spin_queues)?,
            blames: spin_table(&skel.maps.spin_blames)?,
        };
        Ok(Tracer {
            links: Vec::new(),
            skel: Box::new(skel),
            noticed,
            notices,
            kprobe_misses_are_known,
            unwind_rows,
            unwind_rows_written: 0,
            spin_tables,
            kinds_that_tell_spinning: LockKind::ALL
                .into_iter()
                .filter(|kind| plan.tells_spinning(*kind))
                .collect(),
            kinds_with_releases: Vec::new(),
            threads_not_remembered: 0,
            early_waits_without_room: 0,
            early_waits: 0,
            epoch_ns: 0,
            watches_scheduler: catalog::SCHEDULER.iter().all(|name| plan.lifecycle.contains(name)),
        })
    }

    fn attach(&mut self, plan: &mut Plan) -> Result<()> {
        if plan.used().any(|hook| hook.backend == Some(Backend::Kprobe)) {
            tracefs_kprobe::remove_leftovers();
        }
        let mut failed: Vec<(String, String)> = Vec::new();
        let mut links = Vec::new();
        // Return probes first: the kernel runs the probes of one function latest first, and a return
        // probe that came before would show the entry probe a trampoline instead of the caller. 5.10
        // cannot unwind through that, and every stack would end there.
        let mut programs: Vec<_> = libbpf_rs::skel::Skel::object_mut(&mut *self.skel).progs_mut().collect();
        programs.sort_by_key(|program| !program.name().to_string_lossy().ends_with("__kretprobe"));
        for program in programs {
            let name = program.name().to_string_lossy().into_owned();
            if is_lifecycle(plan, &name) {
                let link = program
                    .attach_raw_tracepoint(split_name(&name).0)
                    .with_context(|| format!("Failed to attach {}", split_name(&name).0))?;
                links.push(Attached { program: name, link, event: None });
                continue;
            }
            let Some(hook) = hook_of(plan, &name) else { continue };
            match attach_one(&program, hook) {
                Ok((link, event)) => links.push(Attached { program: name, link, event }),
                Err(err) => failed.push((hook.function.to_string(), format!("{err:#}"))),
            }
        }
        for (function, why) in failed {
            // Half a pair would count begins without ends.
            links.retain(|attached| split_name(&attached.program).0 != function);
            strike(plan, &function, &format!("Failed to attach {function}: {why}"));
        }
        self.links = links;
        self.kinds_with_releases =
            LockKind::ALL.into_iter().filter(|kind| plan.sees_contended_releases(*kind)).collect();
        Ok(())
    }

    /// When the profile begins; before [`Tracer::activate`].
    pub fn set_epoch(&mut self, epoch_ns: u64) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_deref_mut().context("The BPF object has no .bss")?;
        // SAFETY: as in set_active().
        unsafe { std::ptr::write_volatile(&mut bss.epoch_ns, epoch_ns) };
        self.epoch_ns = epoch_ns;
        Ok(())
    }

    pub(super) fn epoch_ns(&self) -> u64 {
        self.epoch_ns
    }

    pub(super) fn watches_scheduler(&self) -> bool {
        self.watches_scheduler
    }

    /// A wait that was going on when the list of them was made had ended before the hooks were active. Done by
    /// BPF, for the lock's record changes meanwhile. False: it was not there any more.
    pub(super) fn forget_early_wait(&self, tid: u32) -> Result<bool> {
        let object = libbpf_rs::skel::Skel::object(&*self.skel);
        let program = object.progs().find(|program| program.name() == FORGET_EARLY_WAIT);
        let program = program.context("The BPF object has no program that forgets waits")?;
        let context = u64::from(tid).to_ne_bytes();
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            ctx_in: context.as_ptr().cast(),
            ctx_size_in: context.len() as u32,
            ..Default::default()
        };
        // SAFETY: the context outlives the call, and its size is given.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_fd().as_raw_fd(), &mut options) };
        if result != 0 {
            return Err(std::io::Error::from_raw_os_error(-result).into());
        }
        Ok(options.retval == 1)
    }

    /// From now on events count.
    pub fn activate(&mut self) -> Result<()> {
        self.set_active(1)
    }

    /// From now on nothing is written into the maps any more.
    pub fn deactivate(&mut self) -> Result<()> {
        self.set_active(0)
    }

    fn set_active(&mut self, value: u32) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_deref_mut().context("The BPF object has no .bss")?;
        // SAFETY: a live, writable mapping of the program's globals; BPF reads it as volatile.
        unsafe { std::ptr::write_volatile(&mut bss.active, value) };
        Ok(())
    }

    /// Gives a process its unwind table; `rows` are those of all files so far, and only ever grow.
    /// False: there is no room for another process.
    pub fn set_process_table(&mut self, pid: u32, table: &ProcessTable, rows: &[Row]) -> Result<bool> {
        let key = pid.to_ne_bytes();
        let processes = &self.skel.maps.processes;
        // BPF removes it at exec and copies it at fork: only the map itself knows.
        let known = processes.lookup(&key, MapFlags::ANY)?;
        if known.is_some_and(|known| wire::read::<types::process>(&known).generation == table.generation) {
            return Ok(true);
        }
        // The list only grows, and nobody reads what is new before a process's list says so.
        let new = &rows[self.unwind_rows_written.min(rows.len())..rows.len().min(self.unwind_rows.len())];
        self.unwind_rows.write(self.unwind_rows_written, new);
        self.unwind_rows_written += new.len();
        let process = wire::process(table);
        // SAFETY: a plain C struct of integers without padding.
        let value = unsafe { plain::as_bytes(&process) };
        match processes.update(&key, value, MapFlags::ANY) {
            Ok(()) => Ok(true),
            Err(err) if err.kind() == libbpf_rs::ErrorKind::TooBig => Ok(false),
            Err(err) => Err(err).context("Failed to write the unwind table of a process"),
        }
    }

    /// The process is gone; usually BPF saw its end.
    pub fn remove_process_table(&mut self, pid: u32) {
        let _ = self.skel.maps.processes.delete(&pid.to_ne_bytes());
    }

    /// A living thread of a target: locks that name it are believed.
    pub fn remember_thread(&mut self, thread: &TargetThread) -> Result<()> {
        let key = types::thread_key { pid_namespace: thread.pid_namespace, tid: thread.tid_in_namespace };
        let mut value = types::thread { tid: thread.tid, tgid: thread.pid, ..Default::default() };
        for (to, from) in value.comm.iter_mut().zip(thread.comm.bytes().take(15)) {
            *to = from as i8;
        }
        // SAFETY: plain C structs of integers without padding.
        let (key, value) = unsafe { (plain::as_bytes(&key), plain::as_bytes(&value)) };
        match self.skel.maps.threads.update(key, value, MapFlags::NO_EXIST) {
            // The fork hook was faster.
            Err(err) if err.kind() == libbpf_rs::ErrorKind::AlreadyExists => Ok(()),
            // Counted there too, but these are lost before anything counts.
            Err(err) if err.kind() == libbpf_rs::ErrorKind::TooBig => {
                self.threads_not_remembered += 1;
                Ok(())
            }
            result => result.context("Failed to write the map of threads"),
        }
    }

    /// Waits up to `timeout` for notices; returns the processes to look at.
    pub fn poll(&self, timeout: Duration) -> Result<Notices> {
        match self.notices.poll(timeout) {
            Ok(()) => {}
            Err(err) if err.kind() == libbpf_rs::ErrorKind::Interrupted => {}
            Err(err) => return Err(err).context("Failed to poll the ring buffer"),
        }
        Ok(std::mem::take(&mut self.noticed.borrow_mut()))
    }

    pub(super) fn spin_tables(&self) -> &SpinTables {
        &self.spin_tables
    }

    pub(super) fn tells_spinning(&self, kind: LockKind) -> bool {
        self.kinds_that_tell_spinning.contains(&kind)
    }

    pub(super) fn kinds_with_releases(&self) -> &[LockKind] {
        &self.kinds_with_releases
    }

    pub(super) fn count_wait_without_room(&mut self) {
        self.early_waits_without_room += 1;
    }

    pub(super) fn count_early_wait(&mut self, more: i64) {
        self.early_waits += more;
    }

    /// Waits that no program saw begin.
    pub(super) fn early_waits(&self) -> u64 {
        self.early_waits.max(0) as u64
    }

    /// What found no room before the programs counted.
    pub(super) fn add_early_losses(&self, counters: &mut types::counters) {
        use types::loss_reason as L;
        counters.lost[L::LOSS_THREADS_MAP_FULL.0 as usize] += self.threads_not_remembered;
        counters.lost[L::LOSS_FUTEX_WAITS_MAP_FULL.0 as usize] += self.early_waits_without_room;
    }

    pub(super) fn skel(&self) -> &LockprofSkel<'static> {
        &self.skel
    }

    /// Hooked functions and tracepoints that count waits; a pair of programs is one hook.
    pub(super) fn hooks_attached(&self) -> u64 {
        let functions: BTreeSet<&str> = self
            .links
            .iter()
            .map(|attached| split_name(&attached.program).0)
            .filter(|function| !function.starts_with("sched_"))
            .collect();
        functions.len() as u64
    }

    /// Events the kernel did not deliver, as far as it counts them.
    pub(super) fn misses(&self) -> Vec<Loss> {
        let mut recursion = 0;
        for program in libbpf_rs::skel::Skel::object(&*self.skel).progs() {
            if program.autoload() {
                recursion += recursion_misses(program.as_fd().as_raw_fd()).unwrap_or(0);
            }
        }
        let mut kprobe = 0;
        for attached in &self.links {
            kprobe += match &attached.event {
                Some(event) => event.missed().unwrap_or(0),
                None => attached.link.info().map_or(0, |info| missed_of(&info.info)),
            };
        }
        let mut losses = vec![Loss {
            reason: "recursion_misses".into(),
            count: recursion,
            meaning:
                "program runs the kernel skipped because the program was running on that CPU (of any process)"
                    .into(),
        }];
        if self.kprobe_misses_are_known {
            losses.push(Loss {
                reason: "kprobe_misses".into(),
                count: kprobe,
                meaning: "kprobe hits the kernel did not deliver (of any process)".into(),
            });
        }
        losses
    }
}

/// Room for spin waits. Each CPU has a part of its own, as a power of two of entries; all parts
/// together are about as large as the maps for the waits that sleep, however many CPUs there are.
struct SpinSizes {
    cpus: u32,
    sites_log2: u32,
    locks_log2: u32,
    stacks_log2: u32,
    holds_log2: u32,
    /// One table for all CPUs.
    queues_log2: u32,
    blames_log2: u32,
}

impl SpinSizes {
    /// Entries per CPU, however small --map-entries / CPUs is: 256 CPUs then take 90 MiB.
    const LEAST_LOG2: u32 = 8;

    fn new(plan: &Plan, map_entries: u32) -> SpinSizes {
        let cpus = libbpf_rs::num_possible_cpus().map_or(1, |cpus| cpus.max(1) as u32);
        let share = (map_entries / cpus).max(1).ilog2();
        // Fewer entries were asked for (to see what then is lost): no least size.
        let least = if map_entries < 1 << 10 { 0 } else { SpinSizes::LEAST_LOG2 };
        let sees_spins = cfg!(test) || plan.sees_spinning();
        let sites_log2 = if sees_spins { share.max(least) } else { 0 };
        let locks_log2 = sites_log2.saturating_sub(2).max(least.min(sites_log2));
        // Small entries, and many locks that nobody ever waits for.
        let holds_log2 = if cfg!(test) || plan.times_spin_holds() { sites_log2 + 1 } else { 0 };
        let sees_releases = cfg!(test) || plan.times_spin_holds();
        let queues_log2 = if sees_releases { (map_entries / 4).max(1).ilog2() } else { 0 };
        let blames_log2 = if sees_releases { sites_log2 } else { 0 };
        SpinSizes {
            cpus,
            sites_log2,
            locks_log2,
            stacks_log2: sites_log2,
            holds_log2,
            queues_log2,
            blames_log2,
        }
    }

    fn configure(&self, cfg: &mut types::config) {
        cfg.spin_sites_log2 = self.sites_log2;
        cfg.spin_locks_log2 = self.locks_log2;
        cfg.spin_stacks_log2 = self.stacks_log2;
        cfg.spin_holds_log2 = self.holds_log2;
        cfg.spin_queues_log2 = self.queues_log2;
        cfg.spin_blames_log2 = self.blames_log2;
    }
}

fn missed_of(info: &libbpf_rs::query::LinkTypeInfo) -> u64 {
    use libbpf_rs::query::{LinkTypeInfo, PerfEventType};
    match info {
        LinkTypeInfo::KprobeMulti(info) => info.missed,
        LinkTypeInfo::PerfEvent(info) => match &info.event_type {
            PerfEventType::Kprobe { missed, .. } => *missed,
            _ => 0,
        },
        _ => 0,
    }
}

fn recursion_misses(fd: i32) -> Option<u64> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: info is as large as size says.
    let result = unsafe { libbpf_sys::bpf_obj_get_info_by_fd(fd, (&raw mut info).cast(), &mut size) };
    (result == 0).then_some(info.recursion_misses)
}

fn configure(cfg: &mut types::config, plan: &Plan, facts: &Facts, settings: &Settings) {
    let arguments = |function: &str, usual: u32| {
        facts.functions.get(function).and_then(|about| about.arguments).unwrap_or(usual)
    };
    cfg.self_tgid = std::process::id();
    cfg.follow_forks = settings.follow_forks.into();
    (cfg.filter, cfg.target_tgid) = match &settings.targets {
        Targets::All => (types::filter::FILTER_ALL.0, 0),
        Targets::Pids(pids) if pids.len() == 1 && !settings.follow_forks => {
            (types::filter::FILTER_ONE.0, pids[0])
        }
        Targets::Pids(_) => (types::filter::FILTER_SET.0, 0),
    };
    cfg.tracepoint_kinds =
        plan.tracepoint_kinds.iter().map(|kind| wire::kind_bit(*kind)).fold(0, |a, b| a | b);
    cfg.phase_kinds = plan.phase_kinds.iter().map(|kind| wire::kind_bit(*kind)).fold(0, |a, b| a | b);
    cfg.spin_blame = (cfg!(test) || plan.times_spin_holds()).into();
    cfg.hold_percpu_rwsem = plan.used().any(|hook| hook.function == "percpu_up_write").into();
    // Only fexit programs use these, and those exist only where BTF has the function.
    cfg.rwsem_read_nargs = arguments("rwsem_down_read_slowpath", 3);
    cfg.rwsem_write_nargs = arguments("rwsem_down_write_slowpath", 2);
    cfg.futex_wait_nargs = arguments("futex_wait", 5);
    cfg.futex_lock_pi_nargs = arguments("futex_lock_pi", 4);
    cfg.futex_wait_multiple_nargs = arguments("futex_wait_multiple", 3);
    cfg.futex_wait_requeue_pi_nargs = arguments("futex_wait_requeue_pi", 6);
    cfg.have_wake_mark =
        plan.used().any(|hook| ["futex_wake_mark", "mark_wake_futex"].contains(&hook.function)).into();
    cfg.user_stacks = wire::user_stacks(settings.user_stacks);
    cfg.slab_by_kernel = settings.slabs.by_kernel.into();
    cfg.page_offset = settings.slabs.page_offset;
    cfg.vmemmap = settings.slabs.vmemmap;
    cfg.have_task_pt_regs = (facts.version() >= (5, 15)).into();
}

fn attach_one(program: &ProgramMut<'_>, hook: &Hook) -> Result<(Link, Option<KprobeEvent>)> {
    let name = program.name().to_string_lossy().into_owned();
    let retprobe = name.ends_with("__kretprobe");
    let link = match hook.backend {
        Some(Backend::Fentry) => program.attach_trace()?,
        Some(Backend::Kprobe) => {
            let (definition, event) = KprobeEvent::new(hook.function, hook.symbol(), retprobe)?;
            let link = program.attach_perf_event(event.as_raw_fd())?;
            // The link owns the descriptor from here on and closes it.
            let _ = event.into_raw_fd();
            return Ok((link, Some(definition)));
        }
        Some(Backend::KprobeMulti) => program.attach_kprobe_multi_with_opts(KprobeMultiOpts {
            symbols: vec![hook.symbol().to_string()],
            retprobe,
            ..Default::default()
        })?,
        Some(Backend::Tracepoint) => program.attach_raw_tracepoint(hook.function)?,
        None => unreachable!("hook_of() returns used hooks only"),
    };
    Ok((link, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Vec<String> {
        let mut storage = MaybeUninit::uninit();
        let open =
            LockprofSkelBuilder::default().open(&mut storage).expect("the object opens without privileges");
        open.open_object().progs().map(|program| program.name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn every_program_belongs_to_the_catalog() {
        let known: BTreeSet<&str> = catalog::FUNCTIONS
            .iter()
            .map(|function| function.name)
            .chain(catalog::tracepoint_names())
            .collect();
        for program in programs() {
            if ["selftest", "run"].contains(&split_name(&program).1) {
                continue;
            }
            assert!(known.contains(split_name(&program).0), "{program} is in no catalog");
        }
    }

    #[test]
    fn every_function_of_the_catalog_has_programs_for_fentry_and_for_kprobes() {
        let programs = programs();
        for function in catalog::FUNCTIONS {
            for backend in [Backend::Fentry, Backend::Kprobe] {
                if function.fentry_only && backend == Backend::Kprobe {
                    continue;
                }
                let function = function.name;
                let found = suffixes(backend)
                    .iter()
                    .any(|suffix| programs.contains(&format!("{function}__{suffix}")));
                assert!(found, "{function} has no program for {}", backend.name());
            }
        }
        for tracepoint in catalog::tracepoint_names() {
            assert!(programs.contains(&format!("{tracepoint}__tp")), "{tracepoint} has no program");
        }
    }
}
