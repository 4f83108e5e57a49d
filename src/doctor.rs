//! `lockprof doctor`: Facts and Plan in human words.

use crate::attach::catalog;
use crate::attach::plan::{Plan, Wishes};
use crate::failure::{Exit, Failure};
use crate::kernel::{Facts, Trial};
use crate::model::{Backend, Family};
use std::io::{self, Write};

/// Asks the kernel about everything the catalog may want.
pub fn gather() -> anyhow::Result<Facts> {
    Facts::gather(&catalog::function_names(), &catalog::tracepoint_names())
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

/// Writes the report; true when something can be traced.
pub fn report(facts: &Facts, wishes: &Wishes, out: &mut dyn Write) -> io::Result<bool> {
    let plan = Plan::new(facts, wishes);
    let with_hold = Plan::new(facts, &Wishes { hold: true, ..*wishes });

    writeln!(
        out,
        "Kernel      {} {}{}",
        facts.release,
        facts.arch,
        if facts.realtime { ", PREEMPT_RT" } else { "" }
    )?;
    writeln!(out, "Privileges  {}", privileges(facts))?;
    writeln!(out, "Lockdown    {}", facts.lockdown.as_deref().unwrap_or("none"))?;
    writeln!(out, "BTF         {}", if facts.btf { "yes" } else { "no: fentry is impossible" })?;
    writeln!(
        out,
        "Symbols     {}",
        match facts.kallsyms {
            true => "yes",
            false => "hidden: kernel frames stay addresses (sysctl kernel.kptr_restrict=0, or run as root)",
        }
    )?;
    writeln!(out)?;
    writeln!(out, "Methods")?;
    writeln!(out, "  fentry        {}", words(&fentry(facts)))?;
    writeln!(out, "  kprobe.multi  {}", words(&facts.kprobe_multi))?;
    writeln!(out, "  kprobe        {}", words(&facts.kprobe))?;
    writeln!(out, "  tracepoint    {}", words(&facts.raw_tracepoint))?;
    writeln!(out)?;
    writeln!(out, "Waits")?;
    for family in Family::ALL {
        for line in family_lines(&plan, family) {
            writeln!(out, "  {:<13} {line}", family.name())?;
        }
    }
    writeln!(out)?;
    writeln!(out, "Acquisitions and holds (--hold)")?;
    for family in [Family::Mutex, Family::Rwsem] {
        writeln!(out, "  {:<13} {}", family.name(), hold_line(&with_hold, family))?;
    }
    writeln!(out, "  {:<13} not in this version", "others")?;
    writeln!(out)?;
    writeln!(out, "Functions")?;
    for hook in &with_hold.hooks {
        let method = hook.backend.map_or("skipped", Backend::name);
        writeln!(out, "  {:<36} {:<13} {}", hook.function, method, hook.reason)?;
    }
    writeln!(out)?;
    match refusal(facts, &plan) {
        None => writeln!(out, "lockprof can trace here.")?,
        Some(failure) => {
            writeln!(out, "{}", failure.message)?;
            writeln!(out, "hint: {}", failure.hint.unwrap_or_default())?;
        }
    }
    Ok(plan.sees_anything())
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

fn family_lines(plan: &Plan, family: Family) -> Vec<String> {
    let hooks = plan.family(family);
    let used: Vec<_> = hooks.iter().filter(|hook| hook.backend.is_some()).collect();
    let mut lines = Vec::new();
    if used.is_empty() {
        let mut reasons: Vec<&str> = hooks.iter().map(|hook| hook.reason.as_str()).collect();
        reasons.dedup();
        lines.push(format!(
            "not seen: {}",
            if reasons.is_empty() { "no hook".into() } else { reasons.join("; ") }
        ));
        return lines;
    }
    let mut methods: Vec<String> = used
        .iter()
        .map(|hook| format!("{} {}", hook.backend.map_or("", Backend::name), hook.function))
        .collect();
    methods.dedup();
    lines.push(format!("seen by {}", methods.join(", ")));
    let by_tracepoint = used.iter().any(|hook| hook.function == "contention_begin");
    if by_tracepoint && let Some(holes) = catalog::tracepoint_holes(family) {
        lines.push(format!("  missing: {holes}"));
    }
    for hook in hooks.iter().filter(|hook| hook.backend.is_none()) {
        if let Some(blind) = &hook.blind
            && !by_tracepoint
        {
            lines.push(format!("  missing: {blind} ({})", hook.reason));
        }
    }
    lines
}

fn hold_line(plan: &Plan, family: Family) -> String {
    let hold: Vec<_> = plan
        .family(family)
        .into_iter()
        .filter(|hook| {
            catalog::FUNCTIONS
                .iter()
                .any(|function| function.name == hook.function && function.level == catalog::Level::Hold)
        })
        .collect();
    let used = hold.iter().filter(|hook| hook.backend.is_some()).count();
    match hold.iter().find(|hook| hook.backend.is_none()) {
        None => format!("seen, {used} functions hooked"),
        Some(missing) if used > 0 => format!("partly seen: {} is not ({})", missing.function, missing.reason),
        Some(missing) => format!("not seen: {}", missing.reason),
    }
}
