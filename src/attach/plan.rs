//! Plan: per hooked function the method, or the reason it is skipped. A pure function of
//! ([`Facts`], [`Wishes`]).
//!
//! Preference per function: fentry, kprobe.multi, kprobe. The contention tracepoints serve the
//! kinds none of whose functions could be hooked, and the kinds that have no function here; the
//! syscall tracepoints serve futexes when futex_wait could not be hooked, because they tax every
//! system call.

use super::catalog::{self, Level, LockFn, Tracepoint};
use crate::kernel::Facts;
use crate::model::{Backend, Family, HookLine, LockKind};

/// `--backend`: use this method only, so that each can be tested and a bad one avoided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    Fentry,
    /// kprobe.multi where the kernel has it, else single kprobes.
    Kprobe,
    Tracepoint,
}

impl Only {
    fn name(self) -> &'static str {
        match self {
            Only::Fentry => "fentry",
            Only::Kprobe => "kprobe",
            Only::Tracepoint => "tracepoint",
        }
    }
}

/// What the user asked for, as far as hooks depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    pub only: Option<Only>,
    /// Families of which every acquire and release is traced.
    pub hold: Vec<Family>,
    /// Waits for flock() and POSIX locks are traced.
    pub file_locks: bool,
    /// Children of the target are followed.
    pub follow_forks: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub function: &'static str,
    /// The copy of the function that the kernel has under another name.
    pub variant: Option<String>,
    pub families: Vec<Family>,
    pub backend: Option<Backend>,
    pub reason: String,
    pub blind: Option<String>,
}

impl Hook {
    /// What kallsyms calls it.
    pub fn symbol(&self) -> &str {
        self.variant.as_deref().unwrap_or(self.function)
    }

    pub fn to_line(&self) -> HookLine {
        HookLine {
            function: self.function.to_string(),
            families: self.families.clone(),
            backend: self.backend,
            reason: self.reason.clone(),
            blind: self.blind.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub hooks: Vec<Hook>,
    /// Kinds that contention_begin/_end account for.
    pub tracepoint_kinds: Vec<LockKind>,
    /// Kinds whose slow path is hooked and for which contention_begin says when a waiter stops spinning.
    pub phase_kinds: Vec<LockKind>,
    /// Tracepoints of processes' lives and of the scheduler to attach.
    pub lifecycle: Vec<&'static str>,
    /// PREEMPT_RT: nobody spins for an rw_semaphore or a spinlock_t, and the tracepoints see every wait.
    pub realtime: bool,
}

impl Plan {
    pub fn new(facts: &Facts, wishes: &Wishes) -> Plan {
        let mut hooks = Vec::new();
        for function in catalog::functions_for(&wishes.hold, wishes.file_locks) {
            let absent = |name: &str| facts.functions.get(name).is_none_or(|about| !about.in_kallsyms);
            let has_variant =
                |name: &str| facts.functions.get(name).is_some_and(|about| about.variant.is_some());
            // PREEMPT_RT has other functions for the same locks; what nothing shows there is said below.
            // With CONFIG_DEBUG_LOCK_ALLOC it is a macro for this one.
            let nested = format!("{}_nested", function.name);
            let elsewhere = (function.optional || facts.realtime || !absent(&nested))
                && absent(function.name)
                && !(function.by_suffix && has_variant(function.name));
            // One line is enough to say that holds can not be timed without their end.
            let useless = function.needs.is_some_and(|needs| needs != function.name && absent(needs));
            if !(elsewhere || useless) {
                hooks.push(plan_function(facts, wishes, function));
            }
        }

        let hooked: Vec<&str> =
            hooks.iter().filter(|hook| hook.backend.is_some()).map(|hook| hook.function).collect();
        let kind_is_hooked = |kind: LockKind| {
            catalog::FUNCTIONS.iter().any(|function| {
                function.kind == kind && function.level == Level::Contended && hooked.contains(&function.name)
            })
        };
        let futex_is_hooked = hooked.contains(&"futex_wait");

        // There spinlock_t is an rt_mutex, and only raw_spinlock_t has the slow path of other kernels.
        let is_made_of_rt_mutex =
            |kind| facts.realtime && kind == LockKind::Spinlock && !kind_is_hooked(LockKind::RtMutex);
        let mut unhooked: Vec<Family> = Vec::new();
        for kind in LockKind::ALL {
            if !kind.is_user()
                && kind.family() != Family::FileLock
                && (!kind_is_hooked(kind) || is_made_of_rt_mutex(kind))
                && !unhooked.contains(&kind.family())
            {
                unhooked.push(kind.family());
            }
        }
        let tracepoints = plan_tracepoints(facts, wishes, &catalog::CONTENTION, &unhooked);
        let contention = tracepoints.iter().all(|hook| hook.backend.is_some());
        let tracepoint_kinds: Vec<LockKind> = LockKind::ALL
            .into_iter()
            .filter(|kind| !kind.is_user() && kind.family() != Family::FileLock)
            .filter(|kind| contention && !kind_is_hooked(*kind))
            .collect();
        let phase_kinds: Vec<LockKind> = [LockKind::Mutex, LockKind::RwsemRead, LockKind::RwsemWrite]
            .into_iter()
            .filter(|kind| contention && kind_is_hooked(*kind))
            .collect();
        let syscalls = plan_tracepoints(facts, wishes, &catalog::SYSCALL, &[Family::Futex]);

        // Both would count every wake twice.
        if !futex_is_hooked && syscalls.iter().all(|hook| hook.backend.is_some()) {
            for hook in hooks.iter_mut().filter(|hook| hook.families == [Family::Futex]) {
                if hook.backend.take().is_some() {
                    hook.reason = "not needed without futex_wait".into();
                }
            }
        }
        // What the tracepoints see is not lost with the function that would also have seen it.
        for hook in &mut hooks {
            if hook.backend.is_some() {
                continue;
            }
            let Some(function) = catalog::FUNCTIONS.iter().find(|f| f.name == hook.function) else {
                continue;
            };
            if !matches!(function.level, Level::Contended | Level::Wake) {
                continue;
            }
            if tracepoint_kinds.contains(&function.kind) {
                hook.blind = catalog::tracepoint_holes(function.kind.family()).map(String::from);
                hook.reason.push_str("; contention_begin/_end serve instead");
            } else if function.kind.is_user()
                && !futex_is_hooked
                && syscalls.iter().all(|hook| hook.backend.is_some())
            {
                hook.blind = None;
                hook.reason.push_str("; sys_enter/sys_exit serve instead");
            }
        }
        hooks.extend(tracepoints);
        if wishes.file_locks {
            hooks.extend(plan_tracepoints(facts, wishes, &catalog::FILE_LOCKS, &[Family::FileLock]));
        }
        if !futex_is_hooked {
            hooks.extend(syscalls);
        } else {
            // Needed no more: attaching them would tax every system call.
            hooks.extend(syscalls.into_iter().map(|hook| Hook {
                backend: None,
                reason: "not needed: futex_wait is hooked, and this taxes every system call".into(),
                blind: None,
                ..hook
            }));
        }

        let lifecycle = catalog::LIFECYCLE
            .into_iter()
            .chain(catalog::SCHEDULER)
            .filter(|name| facts.tracepoints.contains(*name) && facts.raw_tracepoint.works())
            .collect();
        Plan { hooks, tracepoint_kinds, phase_kinds, lifecycle, realtime: facts.realtime }
    }

    /// Hooks that will be attached.
    pub fn used(&self) -> impl Iterator<Item = &Hook> {
        self.hooks.iter().filter(|hook| hook.backend.is_some())
    }

    /// Whether the time a waiter for this kind spins is told apart from the time it sleeps.
    ///
    /// The tracepoints alone see a mutex's spinning, and nothing of a spinning rw_semaphore writer.
    pub fn tells_spinning(&self, kind: LockKind) -> bool {
        match kind {
            LockKind::Spinlock | LockKind::RwlockRead | LockKind::RwlockWrite => true,
            LockKind::Semaphore | LockKind::PercpuRwsemRead | LockKind::PercpuRwsemWrite => true,
            LockKind::Flock | LockKind::PosixLock => true,
            LockKind::Mutex => self.phase_kinds.contains(&kind) || self.tracepoint_kinds.contains(&kind),
            LockKind::RwsemRead | LockKind::RwsemWrite => self.phase_kinds.contains(&kind),
            LockKind::RtMutex | LockKind::Futex | LockKind::FutexPi => false,
        }
    }

    /// Some wait of some family can be seen.
    pub fn sees_anything(&self) -> bool {
        self.used().any(|hook| {
            catalog::function(hook.function)
                .is_none_or(|function| !matches!(function.level, Level::Release | Level::Wake))
        })
    }

    /// Waits for locks that spin are seen.
    pub fn sees_spinning(&self) -> bool {
        let spins = [LockKind::Spinlock, LockKind::RwlockRead, LockKind::RwlockWrite];
        spins
            .iter()
            .any(|kind| self.tracepoint_kinds.contains(kind) || self.is_hooked(*kind, Level::Contended))
    }

    /// Holds of locks that spin are timed.
    pub fn times_spin_holds(&self) -> bool {
        self.used().any(|hook| hook.function.starts_with("_raw_"))
    }

    /// Holds of locks that sleep are timed.
    pub fn times_sleeping_holds(&self) -> bool {
        let mut used = self.used().filter_map(|hook| catalog::function(hook.function));
        used.any(|function| function.level == Level::Hold && !function.fentry_only)
    }

    /// A release of a lock of this kind is seen while somebody waits for it, whichever side that is.
    pub fn sees_contended_releases(&self, kind: LockKind) -> bool {
        let mut used = self.used().filter_map(|hook| catalog::function(hook.function));
        used.any(|function| function.level == Level::Release && function.kind.family() == kind.family())
    }

    /// Some function of this kind and level is hooked.
    pub fn is_hooked(&self, kind: LockKind, level: Level) -> bool {
        let mut used = self.used().filter_map(|hook| catalog::function(hook.function));
        used.any(|function| function.kind == kind && function.level == level)
    }

    /// What the contention tracepoints miss of the waits for a family on this kernel.
    pub fn tracepoint_holes(&self, family: Family) -> Option<&'static str> {
        let sees_all = match family {
            Family::Rwsem => self.realtime,
            Family::Spinlock => self.realtime && self.is_hooked(LockKind::Spinlock, Level::Contended),
            _ => false,
        };
        catalog::tracepoint_holes(family).filter(|_| !sees_all)
    }

    /// How the waits of a family are seen: the method, or the reason they are not.
    pub fn family(&self, family: Family) -> Vec<&Hook> {
        self.hooks.iter().filter(|hook| hook.families.contains(&family)).collect()
    }
}

fn plan_function(facts: &Facts, wishes: &Wishes, function: &LockFn) -> Hook {
    let (backend, reason) = choose(facts, wishes, function);
    let variant = facts.functions.get(function.name).and_then(|about| about.variant.clone());
    let exact = facts.functions.get(function.name).is_some_and(|about| about.in_kallsyms);
    Hook {
        function: function.name,
        variant: variant.filter(|_| function.by_suffix && !exact),
        families: vec![function.kind.family()],
        backend,
        reason,
        blind: backend.is_none().then(|| function.blind.to_string()),
    }
}

fn choose(facts: &Facts, wishes: &Wishes, function: &LockFn) -> (Option<Backend>, String) {
    let allowed = |only| wishes.only.is_none() || wishes.only == Some(only);
    let Some(about) = facts.functions.get(function.name) else {
        return (None, "nothing is known about it".into());
    };
    if function.needs == Some(function.name) && !about.in_kallsyms {
        return (None, "this kernel inlines it: the end of a hold can not be seen".into());
    }
    let has_symbol = about.in_kallsyms || (function.by_suffix && about.variant.is_some());
    let mut reasons = Vec::new();
    if allowed(Only::Fentry) {
        match &about.fentry {
            // BTF lists functions that exist only as name.isra.0: kernels.md section 2.
            _ if !about.in_kallsyms => {}
            // It loads, and to attach it is ENOTSUPP: the trampoline passes six arguments, since 6.6
            // (473e3150e30a) twelve.
            crate::kernel::Trial::Works if about.arguments > Some(6) && facts.version() < (6, 6) => {
                reasons.push("fentry takes no function of more than six arguments before 6.6".into());
            }
            crate::kernel::Trial::Works => return (Some(Backend::Fentry), "a trial load worked".into()),
            crate::kernel::Trial::Refused(why) => reasons.push(why.clone()),
        }
    }
    if function.fentry_only {
        reasons.push("it is hooked by fentry only".into());
    } else if allowed(Only::Kprobe) && has_symbol {
        match (&facts.kprobe, &facts.kprobe_multi) {
            (crate::kernel::Trial::Refused(why), _) => reasons.push(why.clone()),
            (_, crate::kernel::Trial::Works) if matches!(function.level, Level::Release | Level::Wake) => {
                reasons.push("programs of kprobe.multi can be preempted, and others are then skipped".into());
                return (Some(Backend::Kprobe), reasons.join("; "));
            }
            (_, crate::kernel::Trial::Works) => {
                // Its return probes come from a pool of a few per CPU before 6.14 (4346ba160409),
                // which the waiters of one busy lock use up. On 7.3 its programs can be preempted, and
                // the kernel skips them for the next task on that CPU: 4 of 100 ends were lost.
                if !function.sleeps() {
                    reasons.push("a trial link worked".into());
                    return (Some(Backend::KprobeMulti), reasons.join("; "));
                }
                reasons.push("kprobe.multi loses returns of functions that sleep".into());
                return (Some(Backend::Kprobe), reasons.join("; "));
            }
            (_, crate::kernel::Trial::Refused(why)) => {
                reasons.push(why.clone());
                return (Some(Backend::Kprobe), reasons.join("; "));
            }
        }
    }
    if !has_symbol {
        reasons.push("this kernel has no function of this name".into());
    }
    if let Some(only) = wishes.only
        && reasons.is_empty()
    {
        reasons.push(format!("--backend {} does not hook functions", only.name()));
    }
    (None, reasons.join("; "))
}

/// `families`: those that nothing else shows.
fn plan_tracepoints(
    facts: &Facts,
    wishes: &Wishes,
    tracepoints: &[Tracepoint],
    families: &[Family],
) -> Vec<Hook> {
    let mut hooks = Vec::new();
    for tracepoint in tracepoints {
        let (backend, reason) = if let Some(only @ (Only::Fentry | Only::Kprobe)) = wishes.only {
            (None, format!("--backend {} excludes tracepoints", only.name()))
        } else if !facts.tracepoints.contains(tracepoint.name) {
            (None, format!("this kernel has no such tracepoint (it came with {})", tracepoint.since))
        } else if let crate::kernel::Trial::Refused(why) = &facts.raw_tracepoint {
            (None, why.clone())
        } else {
            (Some(Backend::Tracepoint), "raw tracepoint".to_string())
        };
        let blind = (backend.is_none() && !families.is_empty()).then(|| {
            let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
            format!("waits for {}", names.join(", "))
        });
        hooks.push(Hook {
            function: tracepoint.name,
            variant: None,
            families: families.to_vec(),
            backend,
            reason,
            blind,
        });
    }
    // One without its other half is worth nothing.
    if hooks.iter().any(|hook| hook.backend.is_none()) {
        for hook in hooks.iter_mut().filter(|hook| hook.backend.is_some()) {
            hook.backend = None;
            hook.reason = "its other half is missing".into();
        }
    }
    hooks
}

#[cfg(test)]
mod tests;
