//! What standard error shows while a run goes on.

use super::Args;
use crate::attach::plan::Plan;
use crate::session::{Config, Progress, Scope};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

pub struct Bar {
    quiet: bool,
    what: String,
    duration: Option<Duration>,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub fn new(args: &Args, config: &Config) -> Bar {
        let what = match &config.scope {
            Scope::System => "the whole system".to_string(),
            Scope::Pids(pids) if pids.len() == 1 => format!("process {}", pids[0]),
            Scope::Pids(pids) => format!("{} processes", pids.len()),
            Scope::Command(command) => format!("'{}'", command.join(" ")),
        };
        Bar { quiet: args.quiet, what, duration: config.duration, bar: None }
    }
}

impl Progress for Bar {
    fn started(&mut self, plan: &Plan) {
        if self.quiet {
            return;
        }
        let hooks = plan.used().count();
        let until = match self.duration {
            Some(duration) => format!("for {}", crate::units::duration(duration.as_nanos() as u64)),
            None => "until Ctrl-C".to_string(),
        };
        eprintln!("lockprof: tracing {} with {hooks} hooks, {until}", self.what);
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = match self.duration {
            Some(duration) => ProgressBar::new(duration.as_millis() as u64).with_style(
                ProgressStyle::with_template("{wide_bar} {msg}").expect("a constant template is valid"),
            ),
            None => ProgressBar::new_spinner(),
        };
        self.bar = Some(bar);
    }

    fn elapsed(&mut self, elapsed: Duration) {
        let Some(bar) = &self.bar else { return };
        bar.set_message(crate::units::duration(elapsed.as_secs() * 1_000_000_000));
        match self.duration {
            Some(_) => bar.set_position(elapsed.as_millis() as u64),
            None => bar.tick(),
        }
    }

    fn stopped(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
