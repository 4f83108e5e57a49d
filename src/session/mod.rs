//! The story of one run: start → wait (time, Ctrl-C, target's end) → stop → raw capture.

pub mod blocked;
mod clock;
mod config;
mod early;
mod memory;
mod onlookers;
mod run;
mod runtimes;
mod signals;
mod target;
mod threads;

pub use config::{Config, Scope};
pub use run::{CommandLeft, Outcome, Progress, run};
pub use target::SpawnError;
