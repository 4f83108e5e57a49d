//! What a [`Profile`](crate::model::Profile) looks like: one file per output.
//!
//! A renderer is a function of the model only: `render(&Profile, &Options, &mut dyn Write)`. It reads
//! no clock, no terminal and no file, so the same profile gives the same bytes on every machine, and
//! `tests/golden.rs` compares them.
//!
//! | module | for |
//! |---|---|
//! | [`table`] | the default: one row per lock; what stands around the rows is in `notes`, `who`, `others`, `blame`, `queues` |
//! | [`holders`] | one row per holder: who made others wait |
//! | [`histogram`] | how the waits of the hottest locks are distributed |
//! | [`folded`] | one line per stack, for flame graph tools |
//! | [`flamegraph`] | SVG |
//! | [`json`] | everything, for programs; documented in `docs/json.md` |
//!
//! [`stacks`] is where folded and flame graph agree on what a stack is called; `text` fits text to
//! a width, `label` says what a lock is called. [`View`] chooses the rows: totals never mix contention
//! with waits that are something else. What is not known is printed as `-` (in JSON: null), never as 0.

mod blame;
pub mod flamegraph;
pub mod folded;
pub mod histogram;
pub mod holders;
pub mod json;
mod label;
mod notes;
mod others;
mod queues;
pub mod stacks;
pub mod table;
mod text;
mod who;

use crate::model::{FutexClass, Lock, Profile};

/// Which rows are shown; JSON has them all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Waits for locks that somebody else had.
    #[default]
    Contention,
    /// All others: threads that had nothing to do, one-time initialization, and what is not known.
    Idle,
}

impl View {
    pub fn shows(self, lock: &Lock) -> bool {
        lock.is_contention() == (self == View::Contention)
    }

    /// In the order of the profile: largest weight first.
    pub fn rows(self, profile: &Profile) -> impl Iterator<Item = &Lock> {
        profile.locks.iter().filter(move |lock| self.shows(lock))
    }

    /// What shares are taken of.
    pub fn weight_ns(self, profile: &Profile) -> u64 {
        let classes: &[FutexClass] = match self {
            View::Contention => &[FutexClass::Lock],
            View::Idle => &[FutexClass::Idle, FutexClass::Once, FutexClass::Unknown],
        };
        classes.iter().map(|class| profile.weight_ns_of(*class)).sum()
    }
}

/// What the rows of the table are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    #[default]
    Lock,
    /// Who made others wait; of contention only.
    Holder,
}

/// What the person who reads can choose; every renderer takes what concerns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub view: View,
    pub by: By,
    /// Columns of the terminal; `None`: it is none, and [`NOT_A_TERMINAL`] applies.
    pub width: Option<usize>,
    /// ANSI colours in the table.
    pub color: bool,
    /// Rows in the table; the rest is summed up in one line.
    pub max_rows: usize,
    /// How many locks get a histogram.
    pub histograms: usize,
    /// FlameGraph's suffixes in folded output: `_[k]` for kernel frames, `_[i]` for inlined functions.
    pub annotate: bool,
}

/// The width of output that goes to a file or a pipe.
pub const NOT_A_TERMINAL: usize = 120;
/// Below this the text is laid out as for this.
pub const NARROWEST: usize = 40;

impl Default for Options {
    fn default() -> Options {
        Options {
            view: View::default(),
            by: By::default(),
            width: None,
            color: false,
            max_rows: 20,
            histograms: 3,
            annotate: false,
        }
    }
}

impl Options {
    fn columns(&self) -> usize {
        self.width.unwrap_or(NOT_A_TERMINAL).max(NARROWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The invented profile of the gallery, which holds one of everything.
    pub(super) fn profile() -> Profile {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/flamegraphs/synthetic-mix/profile.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn with_hostile_names(mut profile: Profile) -> Profile {
        let names = [
            "锁竞争分析器::互斥锁::等待::很长的名字::很长的名字",
            "👩‍👩‍👧‍👧❤\u{fe0f}👩‍👩‍👧‍👧",
            "a\u{1b}[2Jb\nc;d",
            &"x".repeat(400),
            "",
        ];
        for (index, lock) in profile.locks.iter_mut().enumerate() {
            let name = names[index % names.len()].to_string();
            if index % 2 == 0 {
                lock.name = Some(name.clone());
            }
            lock.call_site = Some(name.clone());
            lock.in_flight.iter_mut().for_each(|wait| wait.comm = name.clone());
            let Some(blame) = &mut lock.blame else { continue };
            let threads = blame.holders.iter_mut().map(|holder| &mut holder.thread);
            let threads =
                threads.chain(blame.unattributed.iter_mut().filter_map(|part| part.thread.as_mut()));
            let threads = threads.chain(blame.chains.iter_mut().map(|chain| &mut chain.through));
            threads.chain(&mut blame.unreleased_by).for_each(|thread| thread.comm = name.clone());
            for pair in &mut blame.pairs {
                pair.waiter.comm = name.clone();
                pair.holder.comm = name.clone();
            }
        }
        for frame in &mut profile.frames {
            frame
                .functions
                .iter_mut()
                .for_each(|function| function.name = names[frame.addr as usize % 5].into());
        }
        profile.meta.target.comms = vec![names[0].into()];
        profile.losses[0].meaning = names[3].into();
        profile.plan[4].blind = Some(names[1].repeat(30));
        profile.meta.hold = true;
        profile
    }

    fn variants() -> Vec<Profile> {
        let mut silent = profile();
        silent.locks.clear();
        let mut dead = silent.clone();
        dead.events = Default::default();
        dead.plan.clear();
        let mut everything = profile();
        for lock in &mut everything.locks {
            lock.wait.aborted = u64::MAX >> 8;
            lock.wait.contended = lock.wait.contended.max(1) << 30;
        }
        let mut unbalanced = profile();
        let mut other_way = profile();
        let mut no_blame = profile();
        for lock in &mut unbalanced.locks {
            let blame = lock.blame.take().unwrap_or_default();
            lock.blame = Some(crate::model::Blame { holders: vec![], chains: vec![], ..blame });
        }
        for lock in &mut other_way.locks {
            lock.blame.iter_mut().for_each(|blame| blame.handoff_ns = u64::MAX >> 9);
        }
        no_blame.locks.iter_mut().for_each(|lock| lock.blame = None);
        let mut only_idle = profile();
        only_idle.locks.retain(|lock| !lock.is_contention());
        let mut no_idle = profile();
        no_idle.locks.retain(Lock::is_contention);
        vec![
            profile(),
            with_hostile_names(profile()),
            silent,
            dead,
            everything,
            unbalanced,
            other_way,
            no_blame,
            only_idle,
            no_idle,
        ]
    }

    fn views(columns: Option<usize>) -> [Options; 2] {
        [View::Contention, View::Idle].map(|view| Options { view, width: columns, ..Options::default() })
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for profile in variants() {
            for options in (40..=200).flat_map(|columns| views(Some(columns))) {
                let mut out = Vec::new();
                table::render(&profile, &options, &mut out).unwrap();
                holders::render(&profile, &options, &mut out).unwrap();
                histogram::render(&profile, &options, &mut out).unwrap();
                let columns = options.columns();
                for line in String::from_utf8(out).unwrap().lines() {
                    assert!(text::width(line) <= columns, "{} > {columns}: {line}", text::width(line));
                    assert!(!line.chars().any(char::is_control), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn a_folded_line_is_a_stack_and_a_number_whatever_functions_are_called() {
        for (profile, options) in variants().iter().flat_map(|p| views(None).map(|options| (p, options))) {
            let mut out = Vec::new();
            folded::render(profile, &options, &mut out).unwrap();
            let mut total = 0;
            for line in String::from_utf8(out).unwrap().lines() {
                let (stack, ns) = line.rsplit_once(' ').unwrap();
                total += ns.parse::<u64>().unwrap();
                assert!(stack.split(';').all(|frame| !frame.is_empty()), "{line}");
            }
            if profile.locks.iter().all(|lock| lock.wait.aborted < 1000) {
                assert_eq!(total, options.view.weight_ns(profile));
            }
        }
    }

    #[test]
    fn every_variant_can_be_drawn_and_serialized() {
        for (profile, options) in variants().iter().flat_map(|p| views(None).map(|options| (p, options))) {
            flamegraph::render(profile, &options, &mut std::io::sink()).unwrap();
            flamegraph::render_blame(profile, &options, &mut std::io::sink()).unwrap();
            json::render(profile, &options, &mut std::io::sink()).unwrap();
        }
    }

    #[test]
    fn every_row_is_in_one_view() {
        let profile = profile();
        let rows = |view: View| view.rows(&profile).count();
        assert_eq!(rows(View::Contention) + rows(View::Idle), profile.locks.len());
        assert!(rows(View::Contention) > 0 && rows(View::Idle) > 0);
    }
}
