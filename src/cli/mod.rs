//! The command line: clap types and one conversion to the library's configuration.

mod args;
mod progress;
mod report;

pub use args::Args;

use crate::attach::catalog::HOLD_FAMILIES;
use crate::attach::plan::{Plan, Wishes};
use crate::doctor;
use crate::failure::{Exit, Failure};
use crate::session::{self, Config, Scope, SpawnError};
use anyhow::Result;
use args::Action;
use clap::Parser;

/// Parses, runs, reports; returns the exit status.
pub fn main() -> u8 {
    // `lockprof … | head` ends quietly, as it does for every other tool.
    // SAFETY: no preconditions.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            let code = if err.use_stderr() { Exit::Usage.code(false) } else { 0 };
            let _ = err.print();
            return code;
        }
    };
    let with_command = !args.command.is_empty();
    run(args).unwrap_or_else(|err| complain(&err, with_command))
}

fn run(args: Args) -> Result<u8> {
    match args.action()? {
        Action::Doctor => {
            let outputs = report::DoctorOutputs::open(&args)?;
            let facts = doctor::gather(HOLD_FAMILIES, true)?;
            let diagnosis = doctor::Diagnosis::new(&facts, args.only());
            outputs.write(&facts, &diagnosis)?;
            let ok = diagnosis.refusal.is_none();
            Ok(if ok { 0 } else { Exit::CannotTrace.code(false) })
        }
        Action::Profile(config) => profile(&args, &config),
    }
}

fn profile(args: &Args, config: &Config) -> Result<u8> {
    // Before anything slow: an output that cannot be written must not cost a measurement.
    let outputs = report::Outputs::open(args)?;
    let facts = doctor::gather(&config.hold, config.file_locks)?;
    let wishes = Wishes {
        only: config.only,
        hold: config.hold.clone(),
        file_locks: config.file_locks,
        follow_forks: matches!(config.scope, Scope::Command(_)),
    };
    let plan = Plan::new(&facts, &wishes);
    if let Some(failure) = doctor::refusal(&facts, &plan).or_else(|| doctor::hold_refusal(&facts, &wishes)) {
        return Err(failure.into());
    }
    let mut progress = progress::Bar::new(args, config);
    let outcome = session::run(config, &facts, &mut progress)?;
    let mut profile = outcome.profile;
    crate::symbolize::symbolize(&mut profile, &outcome.images, &outcome.kernel);
    crate::futexes::classify(&mut profile, &outcome.runtimes);
    crate::naming::name(&mut profile, &outcome.kernel, &outcome.memory);
    let written = outputs.write(&profile);
    let status = match outcome.command {
        Some(left) => Some(left.wait()),
        None => profile.meta.target.exit_status,
    };
    written?;
    Ok(status.map_or(0, |status| status as u8))
}

/// One line for what failed and why, one for what to do.
fn complain(err: &anyhow::Error, with_command: bool) -> u8 {
    eprintln!("lockprof: {err:#}");
    if let Some(failed) = err.chain().find_map(|cause| cause.downcast_ref::<SpawnError>()) {
        return failed.exit_code();
    }
    let failure = err.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    if let Some(hint) = failure.and_then(|failure| failure.hint.as_ref()) {
        eprintln!("hint: {hint}");
    }
    failure.map_or(Exit::Runtime, |failure| failure.exit).code(with_command)
}
