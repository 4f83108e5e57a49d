//! What one run is asked to do. The defaults here are the only ones; the command line takes them
//! from here.

use crate::attach::plan::Only;
use crate::model::Family;
use crate::unwind::UserStacks;
use std::time::Duration;

/// Whose locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Pids(Vec<u32>),
    /// A command, held until every hook is in place; its children are followed.
    Command(Vec<String>),
    System,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub scope: Scope,
    /// `None`: until Ctrl-C, or until the target or the command ends.
    pub duration: Option<Duration>,
    pub only: Option<Only>,
    /// Families of which every acquire and release is traced.
    pub hold: Vec<Family>,
    /// Waits for flock() and POSIX locks are traced.
    pub file_locks: bool,
    /// Sites, stacks and ongoing waits there is room for; locks with histograms: a quarter.
    pub map_entries: u32,
    /// Bytes of the ring buffer for notices about processes; a power of two of at least 4096.
    pub notice_bytes: u32,
    pub user_stacks: UserStacks,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            scope: Scope::System,
            duration: None,
            only: None,
            hold: Vec::new(),
            file_locks: false,
            // 16 MiB of stacks, 9 MiB of histograms.
            map_entries: 16384,
            notice_bytes: 64 * 1024,
            user_stacks: UserStacks::best(),
        }
    }
}
