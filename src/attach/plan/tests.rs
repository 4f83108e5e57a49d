//! Kernels that do not exist, and what is planned for them.

use super::*;
use crate::kernel::{FunctionFacts, Trial};
use std::collections::{BTreeMap, BTreeSet};

/// A kernel with every function and every tracepoint, on which everything works.
fn kernel() -> Facts {
    let functions = catalog::FUNCTIONS.iter().map(|function| {
        let about =
            FunctionFacts { in_kallsyms: true, variant: None, arguments: Some(1), fentry: Trial::Works };
        (function.name.to_string(), about)
    });
    Facts {
        release: "6.1.0".into(),
        arch: "x86_64".into(),
        root: true,
        capabilities: BTreeSet::new(),
        lockdown: None,
        btf: true,
        kallsyms: true,
        realtime: false,
        raw_tracepoint: Trial::Works,
        kprobe: Trial::Works,
        kprobe_multi: refused(),
        functions: functions.collect(),
        tracepoints: catalog::tracepoint_names().into_iter().map(String::from).collect(),
    }
}

fn refused() -> Trial {
    Trial::Refused("refused".into())
}

fn function<'f>(facts: &'f mut Facts, name: &str) -> &'f mut FunctionFacts {
    facts.functions.get_mut(name).expect("a function of the catalog")
}

fn hook<'p>(plan: &'p Plan, name: &str) -> &'p Hook {
    plan.hooks.iter().find(|hook| hook.function == name).unwrap_or_else(|| panic!("{name} is not planned"))
}

fn backends(plan: &Plan) -> BTreeMap<&'static str, Option<Backend>> {
    plan.hooks.iter().map(|hook| (hook.function, hook.backend)).collect()
}

#[test]
fn fentry_comes_first_and_the_tracepoints_account_for_the_rest() {
    let plan = Plan::new(&kernel(), &Wishes::default());
    assert_eq!(hook(&plan, "__mutex_lock_slowpath").backend, Some(Backend::Fentry));
    assert!(!plan.tracepoint_kinds.contains(&LockKind::Mutex), "it would be counted twice");
    assert_eq!(hook(&plan, "sys_enter").backend, None, "it taxes every system call");
    assert!(plan.hooks.iter().all(|hook| hook.backend.is_some() || !hook.reason.is_empty()));
}

#[test]
fn a_function_of_seven_arguments_is_hooked_by_fentry_since_6_6_only() {
    for (release, backend) in [("6.1.0", Backend::Kprobe), ("6.6.0", Backend::Fentry)] {
        let mut facts = kernel();
        facts.release = release.into();
        function(&mut facts, "futex_requeue").arguments = Some(7);
        let plan = Plan::new(&facts, &Wishes::default());
        assert_eq!(hook(&plan, "futex_requeue").backend, Some(backend), "{release}");
    }
}

#[test]
fn one_refused_function_costs_that_function_only() {
    let mut facts = kernel();
    let before = backends(&Plan::new(&facts, &Wishes::default()));
    let about = function(&mut facts, "rwsem_down_read_slowpath");
    about.fentry = refused();
    about.in_kallsyms = false;
    let plan = Plan::new(&facts, &Wishes::default());
    let skipped = hook(&plan, "rwsem_down_read_slowpath");
    assert_eq!(skipped.backend, None);
    assert!(skipped.reason.contains("no function of this name"), "{}", skipped.reason);
    // Its waits are left to the tracepoints, and what these miss is said.
    assert!(plan.tracepoint_kinds.contains(&LockKind::RwsemRead));
    assert!(!plan.tracepoint_kinds.contains(&LockKind::RwsemWrite));
    assert_eq!(skipped.blind.as_deref(), catalog::tracepoint_holes(Family::Rwsem));
    let mut after = backends(&plan);
    let mut others = before;
    others.remove("rwsem_down_read_slowpath");
    after.remove("rwsem_down_read_slowpath");
    assert_eq!(after, others, "every other hook is as it was");
}

#[test]
fn without_fentry_kprobes_serve_and_without_these_tracepoints() {
    let mut facts = kernel();
    for about in facts.functions.values_mut() {
        about.fentry = refused();
    }
    let plan = Plan::new(&facts, &Wishes::default());
    assert_eq!(hook(&plan, "__mutex_lock_slowpath").backend, Some(Backend::Kprobe));
    facts.kprobe = refused();
    let plan = Plan::new(&facts, &Wishes::default());
    assert!(plan.used().all(|hook| hook.backend == Some(Backend::Tracepoint)));
    assert!(plan.tracepoint_kinds.contains(&LockKind::Mutex));
    assert_eq!(hook(&plan, "sys_enter").backend, Some(Backend::Tracepoint), "for futexes");
    facts.raw_tracepoint = refused();
    let plan = Plan::new(&facts, &Wishes::default());
    assert!(!plan.sees_anything());
    assert!(hook(&plan, "__mutex_lock_slowpath").blind.is_some(), "nothing serves instead");
}

#[test]
fn a_kernel_without_the_tracepoints_is_blind_for_what_has_no_function() {
    let mut facts = kernel();
    facts.tracepoints.retain(|name| !name.starts_with("contention_"));
    let about = function(&mut facts, "__mutex_lock_slowpath");
    about.fentry = refused();
    about.in_kallsyms = false;
    let plan = Plan::new(&facts, &Wishes::default());
    assert!(plan.tracepoint_kinds.is_empty());
    assert_eq!(hook(&plan, "__mutex_lock_slowpath").blind.as_deref(), Some("waits for a mutex"));
    assert!(!plan.tells_spinning(LockKind::Mutex), "nothing says when a waiter goes to sleep");
}

#[test]
fn a_release_function_under_another_name_is_reached_by_a_kprobe() {
    let mut facts = kernel();
    let about = function(&mut facts, "rwsem_wake");
    about.in_kallsyms = false;
    about.variant = Some("rwsem_wake.isra.0".into());
    // BTF has the plain name, and a trial load says nothing of whether the function exists.
    about.fentry = Trial::Works;
    let plan = Plan::new(&facts, &Wishes::default());
    let release = hook(&plan, "rwsem_wake");
    assert_eq!((release.backend, release.symbol()), (Some(Backend::Kprobe), "rwsem_wake.isra.0"));
    assert!(
        plan.sees_contended_releases(LockKind::RwsemRead)
            && plan.sees_contended_releases(LockKind::RwsemWrite)
    );
    assert!(!plan.sees_contended_releases(LockKind::Spinlock));
    // Of a slow path nobody knows whether the lock still is the first argument.
    let about = function(&mut facts, "__mutex_lock_slowpath");
    about.in_kallsyms = false;
    about.variant = Some("__mutex_lock_slowpath.constprop.0".into());
    assert_eq!(hook(&Plan::new(&facts, &Wishes::default()), "__mutex_lock_slowpath").backend, None);
}

#[test]
fn a_kernel_that_inlines_a_release_says_so() {
    let mut facts = kernel();
    function(&mut facts, "rwsem_wake").in_kallsyms = false;
    let plan = Plan::new(&facts, &Wishes::default());
    assert!(hook(&plan, "rwsem_wake").blind.is_some());
    assert!(!plan.sees_contended_releases(LockKind::RwsemWrite));
    assert!(plan.sees_contended_releases(LockKind::Mutex));
}

#[test]
fn holds_and_file_locks_are_hooked_only_when_they_are_wanted() {
    let facts = kernel();
    let plan = Plan::new(&facts, &Wishes::default());
    let names = |plan: &Plan| plan.hooks.iter().map(|hook| hook.function).collect::<BTreeSet<_>>();
    for name in ["mutex_lock", "_raw_spin_lock", "flock_lock_inode", "locks_lock_inode_wait"] {
        assert!(!names(&plan).contains(name), "{name}");
    }
    let wishes = Wishes { hold: vec![Family::Mutex], file_locks: true, ..Wishes::default() };
    let plan = Plan::new(&facts, &wishes);
    assert_eq!(hook(&plan, "mutex_lock").backend, Some(Backend::Fentry));
    assert_eq!(hook(&plan, "flock_lock_inode").backend, Some(Backend::Tracepoint));
    assert!(!names(&plan).contains("down_read"), "of a family that was not asked for");
    assert!(!plan.tracepoint_kinds.contains(&LockKind::Flock), "no contention_begin is said for a file");
}

#[test]
fn holds_of_spinlocks_need_an_unlock_that_is_not_inlined() {
    let mut facts = kernel();
    function(&mut facts, "_raw_spin_unlock").in_kallsyms = false;
    let wishes = Wishes { hold: vec![Family::Spinlock], ..Wishes::default() };
    let plan = Plan::new(&facts, &wishes);
    assert!(!plan.times_spin_holds());
    assert!(hook(&plan, "_raw_spin_unlock").reason.contains("inlines"));
    assert!(
        plan.hooks.iter().all(|hook| hook.function != "_raw_spin_lock"),
        "an acquire alone times nothing"
    );
}

#[test]
fn a_debug_kernels_nested_variants_stand_for_the_functions_that_are_macros_there() {
    let macros = ["mutex_lock", "mutex_lock_interruptible", "mutex_lock_killable"];
    let mut facts = kernel();
    for name in macros {
        function(&mut facts, name).in_kallsyms = false;
    }
    let wishes = Wishes { hold: vec![Family::Mutex], ..Wishes::default() };
    let plan = Plan::new(&facts, &wishes);
    assert!(plan.hooks.iter().all(|hook| !macros.contains(&hook.function)), "nothing is missing");
    assert_eq!(hook(&plan, "mutex_lock_nested").backend, Some(Backend::Fentry));
    // Without a variant it is missing, and said to be.
    function(&mut facts, "mutex_lock_nested").in_kallsyms = false;
    let plan = Plan::new(&facts, &wishes);
    assert_eq!(hook(&plan, "mutex_lock").blind.as_deref(), Some("mutex acquisitions"));
}

#[test]
fn a_forced_method_is_the_only_one() {
    let facts = kernel();
    for (only, allowed) in [
        (Only::Fentry, Backend::Fentry),
        (Only::Kprobe, Backend::Kprobe),
        (Only::Tracepoint, Backend::Tracepoint),
    ] {
        let plan = Plan::new(&facts, &Wishes { only: Some(only), ..Wishes::default() });
        assert!(plan.used().count() > 0 && plan.used().all(|hook| hook.backend == Some(allowed)), "{only:?}");
    }
}

#[test]
fn on_preempt_rt_sleeping_locks_are_left_to_the_tracepoints() {
    let mut facts = kernel();
    facts.realtime = true;
    for (name, about) in &mut facts.functions {
        // Raw spinlocks are queued there too.
        about.in_kallsyms = !name.contains("slow") || name.contains("queued_spin");
    }
    let plan = Plan::new(&facts, &Wishes::default());
    for kind in [LockKind::Mutex, LockKind::RwsemRead, LockKind::RwsemWrite, LockKind::RtMutex] {
        assert!(plan.tracepoint_kinds.contains(&kind), "{kind:?}");
    }
    assert!(
        plan.hooks.iter().all(|hook| hook.function != "__mutex_lock_slowpath"),
        "RT has no such function"
    );
    assert_eq!(plan.tracepoint_holes(Family::Rwsem), None, "nobody spins for it there");
}
