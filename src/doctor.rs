//! `lockprof doctor`: Facts and Plan in human words.

use crate::attach::catalog::{self, Level};
use crate::attach::plan::{Hook, Only, Plan, Wishes};
use crate::failure::{Exit, Failure};
use crate::kernel::{Facts, Trial};
use crate::model::{Backend, Family};
use serde::Serialize;
use std::io::{self, Write};

/// Asks the kernel about everything the catalog may want, with the holds of these families and file locks.
pub fn gather(hold: &[Family], file_locks: bool) -> anyhow::Result<Facts> {
    let functions: Vec<&str> =
        catalog::functions_for(hold, file_locks).map(|function| function.name).collect();
    Facts::gather(&functions, &catalog::tracepoint_names())
}

/// Why nothing can be traced here, as an error with a way out; `None` when something can.
pub fn refusal(facts: &Facts, plan: &Plan) -> Option<Failure> {
    if plan.sees_anything() {
        return None;
    }
    let capable = facts.capabilities.contains("CAP_SYS_ADMIN")
        || (facts.capabilities.contains("CAP_BPF") && facts.capabilities.contains("CAP_PERFMON"));
    let lockdown = facts.lockdown.as_deref().is_some_and(|mode| mode == "confidentiality");
    let (message, hint) = match &facts.raw_tracepoint {
        Trial::Refused(why) if !capable => (
            format!("Cannot trace: no permission to load BPF programs ({why})"),
            "run it as root (sudo lockprof …), or give it CAP_BPF and CAP_PERFMON".to_string(),
        ),
        Trial::Refused(why) if lockdown => (
            format!("Cannot trace: {why}"),
            "the kernel is locked down (confidentiality): boot without lockdown=confidentiality".to_string(),
        ),
        Trial::Refused(why) => (
            format!("Cannot trace: {why}"),
            "run `lockprof doctor` to see what this kernel allows; containers often forbid bpf()".to_string(),
        ),
        Trial::Works => (
            "Cannot trace: no lock function and no tracepoint can be hooked this way".to_string(),
            "run `lockprof doctor` for the reasons, or leave --backend out".to_string(),
        ),
    };
    Some(Failure::new(Exit::CannotTrace, message, hint))
}

/// Why the holds that were asked for cannot be timed at all here; `None` when they can.
pub fn hold_refusal(facts: &Facts, wishes: &Wishes) -> Option<Failure> {
    let exists = |name: &str| facts.functions.get(name).is_some_and(|about| about.in_kallsyms);
    let spinning = [
        (Family::Spinlock, "_raw_spin_unlock", "rt_spin_unlock"),
        (Family::Rwlock, "_raw_read_unlock", "rt_read_unlock"),
    ];
    for (family, unlock, realtime_unlock) in spinning {
        if wishes.hold.contains(&family) && !exists(unlock) && !exists(realtime_unlock) {
            return Some(Failure::new(
                Exit::CannotTrace,
                format!(
                    "Cannot time {} holds: this kernel inlines {unlock} (CONFIG_UNINLINE_SPIN_UNLOCK is off)",
                    family.name()
                ),
                format!("leave {0} out of --hold; waits for {0}s are seen without it", family.name()),
            ));
        }
    }
    None
}

/// What one aspect of a family shows on this kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sight {
    pub seen: Seen,
    /// The methods used: `fentry`, `tracepoint`, `owner word`.
    pub methods: Vec<&'static str>,
    /// What is not seen, and why.
    pub missing: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    Yes,
    Partly,
    No,
}

impl Sight {
    fn no(why: &str) -> Sight {
        Sight { seen: Seen::No, methods: vec![], missing: vec![why.into()] }
    }

    fn of(hooks: &[&Hook], mut missing: Vec<String>) -> Sight {
        let mut methods: Vec<&str> =
            hooks.iter().filter_map(|hook| hook.backend.map(Backend::name)).collect();
        methods.sort_unstable();
        methods.dedup();
        for hook in hooks.iter().filter(|hook| hook.backend.is_none()) {
            let what = match (&hook.blind, methods.is_empty()) {
                // Nothing at all is seen: the reasons are enough.
                (Some(_), true) => hook.reason.clone(),
                (Some(blind), false) => format!("{blind} ({})", hook.reason),
                (None, _) => continue,
            };
            if !missing.contains(&what) {
                missing.push(what);
            }
        }
        let seen = match (methods.is_empty(), missing.is_empty()) {
            (true, _) => Seen::No,
            (false, true) => Seen::Yes,
            (false, false) => Seen::Partly,
        };
        Sight { seen, methods, missing }
    }

    fn yes_or_no(&self) -> &'static str {
        match self.seen {
            Seen::Yes => "yes",
            Seen::Partly => "partly",
            Seen::No => "no",
        }
    }

    fn word(&self) -> String {
        let methods = self.methods.join(", ");
        match self.seen {
            Seen::Yes => methods,
            Seen::Partly => format!("partly: {methods}"),
            Seen::No => "no".into(),
        }
    }
}

/// A family on this kernel: who waits, for how long it is held, by whom, and who released it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FamilySight {
    pub family: &'static str,
    pub wait: Sight,
    pub hold: Sight,
    pub owner: Sight,
    pub release: Sight,
}

/// Locks that are no family of ours: where their waits appear, or why not.
pub fn elsewhere(facts: &Facts) -> Vec<(&'static str, String)> {
    let vma = match facts.version() {
        version if version < (6, 4) => "this kernel has none (they came with 6.4)",
        version if version < (6, 15) => {
            "a writer's waits are rwsem:W of vma_lock.lock; readers never wait, they take mmap_lock instead"
        }
        _ => {
            "not seen: since 6.15 a writer waits on a counter (vm_refcnt, rcuwait) without any lock event; \
             readers never wait, they take mmap_lock instead"
        }
    };
    vec![
        ("vma-lock", vma.into()),
        (
            "lockref",
            "waits are those for the spinlock inside it; its compare-and-exchange loop waits for nobody"
                .into(),
        ),
    ]
}

/// Facts, Plan and what follows from them.
pub struct Diagnosis {
    plan: Plan,
    pub families: Vec<FamilySight>,
    pub refusal: Option<Failure>,
    pub json: serde_json::Value,
}

impl Diagnosis {
    pub fn new(facts: &Facts, only: Option<Only>) -> Diagnosis {
        let wishes =
            Wishes { only, hold: catalog::HOLD_FAMILIES.to_vec(), file_locks: true, follow_forks: true };
        let plan = Plan::new(facts, &wishes);
        let families: Vec<FamilySight> =
            Family::ALL.into_iter().map(|family| family_sight(&plan, family)).collect();
        let elsewhere: serde_json::Map<String, serde_json::Value> =
            elsewhere(facts).into_iter().map(|(name, what)| (name.to_string(), what.into())).collect();
        let json = serde_json::json!({
            "schema": "lockprof.doctor/1",
            "kernel": facts.release,
            "arch": facts.arch,
            "realtime": facts.realtime,
            "families": families,
            "elsewhere": elsewhere,
            "hooks": plan.hooks.iter().map(|hook| serde_json::json!({
                "function": hook.function,
                "backend": hook.backend.map(Backend::name),
                "reason": hook.reason,
            })).collect::<Vec<_>>(),
        });
        Diagnosis { refusal: refusal(facts, &plan), plan, families, json }
    }

    /// The report in words.
    pub fn write(&self, facts: &Facts, out: &mut dyn Write) -> io::Result<()> {
        let realtime = if facts.realtime { ", PREEMPT_RT" } else { "" };
        writeln!(out, "Kernel      {} {}{realtime}", facts.release, facts.arch)?;
        writeln!(out, "Privileges  {}", privileges(facts))?;
        writeln!(out, "Lockdown    {}", facts.lockdown.as_deref().unwrap_or("none"))?;
        writeln!(out, "BTF         {}", if facts.btf { "yes" } else { "no: fentry is impossible" })?;
        writeln!(
            out,
            "Symbols     {}",
            match facts.kallsyms {
                true => "yes",
                false =>
                    "hidden: kernel frames stay addresses (sysctl kernel.kptr_restrict=0, or run as root)",
            }
        )?;
        writeln!(out)?;
        writeln!(out, "Methods")?;
        writeln!(out, "  fentry        {}", words(&fentry(facts)))?;
        writeln!(out, "  kprobe.multi  {}", words(&facts.kprobe_multi))?;
        writeln!(out, "  kprobe        {}", words(&facts.kprobe))?;
        writeln!(out, "  tracepoint    {}", words(&facts.raw_tracepoint))?;
        writeln!(out)?;
        self.write_families(facts, out)?;
        writeln!(out, "Functions")?;
        for hook in &self.plan.hooks {
            let method = hook.backend.map_or("skipped", Backend::name);
            writeln!(out, "  {:<38} {:<13} {}", hook.function, method, hook.reason)?;
        }
        writeln!(out)?;
        match &self.refusal {
            None => writeln!(out, "lockprof can trace here."),
            Some(failure) => {
                writeln!(out, "{}", failure.message)?;
                writeln!(out, "hint: {}", failure.hint.as_deref().unwrap_or_default())
            }
        }
    }

    fn write_families(&self, facts: &Facts, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{:<15}{:<24}{:<16}{:<8}release", "Families", "wait", "hold (--hold)", "owner")?;
        for sight in &self.families {
            writeln!(
                out,
                "  {:<13}{:<24}{:<16}{:<8}{}",
                sight.family,
                sight.wait.word(),
                sight.hold.word(),
                sight.owner.yes_or_no(),
                sight.release.word()
            )?;
        }
        for (name, what) in elsewhere(facts) {
            writeln!(out, "  {name:<13}{what}")?;
        }
        writeln!(out)?;
        writeln!(out, "Not seen")?;
        for sight in &self.families {
            let aspects = [
                ("wait", &sight.wait),
                ("hold", &sight.hold),
                ("owner", &sight.owner),
                ("release", &sight.release),
            ];
            for (aspect, sight_of) in aspects {
                for missing in &sight_of.missing {
                    writeln!(out, "  {} {aspect}: {missing}", sight.family)?;
                }
            }
        }
        writeln!(out)
    }
}

/// Contended is what a family's waits are seen by, whatever that is.
fn level_of(hook: &Hook) -> Level {
    match catalog::function(hook.function).map(|function| function.level) {
        None | Some(Level::FileLock) => Level::Contended,
        Some(level) => level,
    }
}

fn family_sight(plan: &Plan, family: Family) -> FamilySight {
    let hooks = plan.family(family);
    let of_level = |wanted: Level| -> Vec<&Hook> {
        hooks.iter().copied().filter(|hook| level_of(hook) == wanted).collect()
    };
    let waits = of_level(Level::Contended);
    let by_tracepoint =
        waits.iter().any(|hook| hook.function == "contention_begin" && hook.backend.is_some());
    // Functions that are not there are no hole where the tracepoints serve instead: the hole is theirs.
    let waits: Vec<&Hook> = waits
        .into_iter()
        .filter(|hook| {
            !(by_tracepoint && hook.backend.is_none() && catalog::function(hook.function).is_some())
        })
        .collect();
    let holes = plan.tracepoint_holes(family).filter(|_| by_tracepoint);
    let mut wait = Sight::of(&waits, holes.map(String::from).into_iter().collect());
    if family == Family::FileLock && wait.seen != Seen::No {
        wait.methods = vec!["--file-locks"];
    }

    let holds = of_level(Level::Hold);
    // The system call's tracepoints see the wakes too.
    let wakes = if family == Family::Futex && plan.used().any(|hook| hook.function == "sys_enter") {
        Sight { seen: Seen::Yes, methods: vec!["tracepoint"], missing: vec![] }
    } else {
        Sight::of(&of_level(Level::Wake), vec![])
    };
    let contended_releases =
        if family == Family::Futex { wakes } else { Sight::of(&of_level(Level::Release), vec![]) };
    let (hold, with_hold) = match family {
        Family::Futex => (
            Sight {
                seen: Seen::Partly,
                methods: vec!["wakes"],
                missing: vec![
                    "holds that did not begin with a wait: they never reach the kernel".to_string(),
                ],
            },
            Sight::no("wakes are not seen"),
        ),
        Family::FileLock => (
            Sight::no("not timed in this version; /proc/locks lists who holds them"),
            Sight::no("not seen in this version"),
        ),
        Family::Semaphore => (
            Sight::no("a semaphore has no holder: anybody may call up()"),
            Sight::no("anybody may call up(), and no release belongs to an acquisition"),
        ),
        _ => {
            let releases: Vec<&Hook> =
                holds.iter().copied().filter(|hook| is_release(hook.function)).collect();
            let readers = match family {
                Family::PercpuRwsem => {
                    vec!["readers: counted per CPU, inline, released by anybody".to_string()]
                }
                Family::Spinlock if plan.realtime && !times_raw_spinlocks(&holds) => {
                    vec!["holds of a raw_spinlock_t: this kernel inlines _raw_spin_unlock".to_string()]
                }
                _ => vec![],
            };
            (Sight::of(&holds, readers.clone()), Sight::of(&releases, readers))
        }
    };
    let release = match family {
        // Nothing to add by --hold.
        Family::Futex => contended_releases,
        _ => release_sight(plan, family, contended_releases, with_hold),
    };
    FamilySight { family: family.name(), owner: owner_sight(plan, family, &wait), wait, hold, release }
}

/// By the hooks that are always on; what `--hold` adds is said beside.
fn release_sight(plan: &Plan, family: Family, contended: Sight, with_hold: Sight) -> Sight {
    let by_hold: Vec<&str> = with_hold
        .methods
        .iter()
        .map(|method| match *method {
            "fentry" => "--hold: fentry",
            "kprobe" => "--hold: kprobe",
            "kprobe.multi" => "--hold: kprobe.multi",
            other => other,
        })
        .collect();
    if contended.seen == Seen::Yes {
        let methods = contended.methods.into_iter().chain(by_hold).collect();
        return Sight { seen: Seen::Yes, methods, missing: vec![] };
    }
    if by_hold.is_empty() {
        return with_hold;
    }
    let why = match family {
        Family::PercpuRwsem => "without --hold: percpu_up_write does not look for waiters",
        // All others are made of it there.
        _ if plan.realtime => {
            "without --hold: rt_mutex_slowunlock stands several times in this kernel, under one name"
        }
        Family::Spinlock | Family::Rwlock => {
            "without --hold: an unlock does not look for waiters (contended_release of 7.3 makes every unlock a call)"
        }
        Family::RtMutex => "without --hold: not hooked in this version",
        _ => "without --hold: this kernel inlines what a holder runs when it finds waiters",
    };
    let missing = std::iter::once(why.to_string()).chain(with_hold.missing).collect();
    Sight { seen: Seen::Partly, methods: by_hold, missing }
}

/// Read when a wait begins, from the lock itself (bpf/owner.bpf.h).
fn owner_sight(plan: &Plan, family: Family, wait: &Sight) -> Sight {
    let by_owner_word = |missing: &[&str]| Sight {
        seen: if missing.is_empty() { Seen::Yes } else { Seen::Partly },
        methods: vec!["owner word"],
        missing: missing.iter().map(|text| text.to_string()).collect(),
    };
    match family {
        _ if wait.seen == Seen::No => Sight::no("it is read when a wait begins, and waits are not seen"),
        Family::Mutex | Family::RtMutex => by_owner_word(&[]),
        Family::Rwsem => by_owner_word(&["readers: the lock does not say which of them"]),
        Family::Rwlock if plan.realtime => by_owner_word(&["readers: the lock does not say which of them"]),
        Family::Spinlock if plan.realtime => {
            by_owner_word(&["raw_spinlock_t: it keeps its waiters, not its owner"])
        }
        Family::Spinlock => Sight::no("a spinlock keeps its waiters, not its owner"),
        Family::Rwlock => Sight::no("an rwlock keeps its waiters, not its owner"),
        Family::Semaphore => Sight::no("a semaphore has no owner: anybody may call up()"),
        Family::PercpuRwsem => Sight::no("it keeps neither its readers nor its writer"),
        Family::FileLock => Sight::no("not read in this version; /proc/locks lists the owners"),
        Family::Futex => by_owner_word(&["only of glibc's and musl's mutexes and rwlocks, and PI futexes"]),
    }
}

/// The other spinlocks of PREEMPT_RT are of the kind that sleeps.
fn times_raw_spinlocks(holds: &[&Hook]) -> bool {
    holds.iter().any(|hook| hook.backend.is_some() && hook.function.starts_with("_raw_spin_"))
}

fn is_release(function: &str) -> bool {
    function.contains("unlock") || function.starts_with("up_") || function == "percpu_up_write"
}

fn privileges(facts: &Facts) -> String {
    let names: Vec<&str> = facts.capabilities.iter().map(String::as_str).collect();
    let user = if facts.root { "root" } else { "not root" };
    if names.is_empty() {
        format!("{user}, no capability that helps")
    } else {
        format!("{user}, {}", names.join(" "))
    }
}

/// One verdict over the trial loads of all functions.
fn fentry(facts: &Facts) -> Trial {
    let trials: Vec<&Trial> =
        facts.functions.values().filter(|about| about.in_kallsyms).map(|about| &about.fentry).collect();
    let works = trials.iter().filter(|trial| trial.works()).count();
    match trials.iter().find(|trial| !trial.works()) {
        None if trials.is_empty() => Trial::Refused("no known function in kallsyms".into()),
        None => Trial::Works,
        Some(Trial::Refused(why)) if works == 0 => Trial::Refused(why.clone()),
        Some(_) => Trial::Refused(format!("for {} of {} functions only", works, trials.len())),
    }
}

fn words(trial: &Trial) -> String {
    match trial {
        Trial::Works => "works".into(),
        Trial::Refused(why) => format!("no: {why}"),
    }
}
