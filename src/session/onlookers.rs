//! Which processes to look at while they live, so that their frames can be named when they are gone and
//! their stacks unwound while they run.

use super::blocked;
use crate::bpf::{Notices, Tracer};
use crate::model::{Loss, RawCapture};
use crate::symbolize::Images;
use crate::unwind::Registers;
use crate::unwind::Tables;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that just began is looked at again after this time, then after three times that, and so
/// on: first it has no libraries, then it waits for its first lock, and the table should be there before.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(300);

pub struct Onlookers {
    pub images: Images,
    pids: BTreeSet<u32>,
    /// `None`: user stacks are not unwound by tables.
    tables: Option<Tables>,
    young: BTreeMap<u32, Look>,
    processes_over_capacity: u64,
    overlooked: blocked::Overlooked,
}

/// A thread that is gone waits for nothing: the end of its last wait came when its process was no target any more,
/// in the middle of exiting.
pub fn leave_out_the_dead(capture: &mut RawCapture) {
    let mut gone = 0;
    let RawCapture { in_flight, blames, start_ns, stop_ns, .. } = capture;
    in_flight.retain(|wait| {
        // Kernel threads and interrupts wait in the name of whom they interrupted: tid 0 is the idle task.
        let there =
            wait.tid == 0 || Path::new(&format!("/proc/{}/task/{}", wait.site.pid, wait.tid)).exists();
        if !there {
            gone += 1;
            if let Some(blame) = blames.get_mut(&wait.site.lock.queue()) {
                let age_ns = stop_ns.saturating_sub(wait.begin_ns.max(*start_ns));
                blame.uncounted_ns += age_ns.saturating_sub(blame.unreleased_ns);
                blame.unreleased_ns = blame.unreleased_ns.saturating_sub(age_ns);
            }
        }
        there
    });
    let loss = capture.losses.iter_mut().find(|loss| loss.reason == "unpaired_begin");
    loss.expect("BPF counts it too").count += gone;
}

#[derive(Clone, Copy)]
struct Look {
    due: Instant,
    again_after: Duration,
}

impl Onlookers {
    pub fn new(tables: Option<Tables>) -> Onlookers {
        Onlookers {
            images: Images::default(),
            pids: BTreeSet::new(),
            tables,
            young: BTreeMap::new(),
            processes_over_capacity: 0,
            overlooked: blocked::Overlooked::default(),
        }
    }

    /// Reads the tables of the libraries nearly every program has, which are also ours: one less thing
    /// to do when a process has begun and is about to wait for its first lock. And that of the program
    /// that is about to run: reading a big one can take longer than the program runs, and meanwhile
    /// nobody looks at what it maps.
    pub fn prepare(&mut self, program: Option<&Path>) {
        let Some(tables) = &mut self.tables else { return };
        let own = std::process::id();
        if self.images.snapshot(own).is_ok() {
            tables.preload_libraries(&self.images, own);
        }
        if let Some(file) = program.and_then(|path| self.images.keep_program(path)) {
            tables.preload(&self.images, file);
        }
    }

    /// Without a tracer it only prepares the tables.
    pub fn look_at(
        &mut self,
        pids: impl IntoIterator<Item = u32>,
        mut tracer: Option<&mut Tracer>,
    ) -> Result<()> {
        for pid in pids {
            // It may be gone: then the earlier snapshot stays, and what is missing shows as
            // unsymbolized or as a missed process, both counted.
            if self.images.snapshot(pid).is_err() {
                if self.pids.remove(&pid)
                    && let Some(tracer) = &mut tracer
                {
                    tracer.remove_process_table(pid);
                }
                continue;
            }
            self.pids.insert(pid);
            let Some(tables) = &mut self.tables else { continue };
            let table = tables.of_process(&self.images, pid);
            if let Some(tracer) = &mut tracer
                && !table.spans.is_empty()
                && !tracer.set_process_table(pid, &table, tables.rows())?
            {
                self.processes_over_capacity += 1;
            }
        }
        Ok(())
    }

    /// The threads of these processes that wait for a futex already.
    pub fn already_waiting(
        &mut self,
        pids: &[u32],
        registers: &HashMap<u32, Registers>,
    ) -> Result<blocked::Found> {
        // System-wide nearly all processes are still unknown: only those that have something to show are looked at.
        let mut ignored = blocked::Overlooked::default();
        for pid in pids {
            if !self.pids.contains(pid) && !blocked::blocked_in_futex(*pid, &mut ignored).is_empty() {
                self.look_at([*pid], None)?;
            }
        }
        let found = blocked::find(pids, self.tables.as_mut(), &self.images, registers);
        self.overlooked = found.overlooked;
        Ok(found)
    }

    /// Looks at those who asked for it, and at those whose time has come.
    pub fn attend(&mut self, notices: Notices, tracer: &mut Tracer) -> Result<()> {
        let now = Instant::now();
        let mut pids = notices.seen;
        for (pid, look) in &mut self.young {
            if look.due <= now {
                pids.insert(*pid);
                look.again_after *= 3;
                look.due = now + look.again_after;
            }
        }
        for pid in &notices.begun {
            self.young.insert(*pid, Look { due: now + FIRST_LOOK, again_after: FIRST_LOOK });
        }
        self.look_at(pids, Some(tracer))?;
        self.young.retain(|pid, look| look.again_after <= LAST_LOOK && self.pids.contains(pid));
        Ok(())
    }

    /// Time until [`Onlookers::attend`] has something to do by itself.
    pub fn next_look(&self) -> Duration {
        let next = self.young.values().map(|look| look.due).min();
        // Polls take milliseconds: rounded down, the last one would be spent spinning.
        let rounded_up = Duration::from_micros(999);
        next.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()) + rounded_up)
    }

    /// Looks at every known process again: libraries are loaded late, and notices can be lost.
    pub fn refresh(&mut self, tracer: Option<&mut Tracer>) -> Result<()> {
        self.look_at(self.pids.clone(), tracer)
    }

    /// What the tables had no room for.
    pub fn losses(&self) -> Vec<Loss> {
        let loss = |reason: &str, count, meaning: &str| Loss {
            reason: reason.into(),
            count,
            meaning: meaning.into(),
        };
        let mut losses = vec![
            loss(
                "early_waits_unreadable",
                self.overlooked.unreadable,
                "threads that perhaps waited for a futex before the start: their files in /proc may not be read",
            ),
            loss(
                "early_waits_restarted",
                self.overlooked.restarted,
                "threads that perhaps waited for a futex before the start: a signal had interrupted them",
            ),
            loss(
                "early_waits_compat",
                self.overlooked.compat,
                "threads of 32-bit programs that waited for a futex before the start",
            ),
        ];
        let Some(tables) = &self.tables else { return losses };
        losses.extend([
            loss(
                "unwind_table_full",
                tables.files_over_capacity,
                "mapped files whose unwind tables did not fit: user stacks end where they come to one",
            ),
            loss(
                "unwind_processes_full",
                self.processes_over_capacity,
                "times a process got no unwind table because too many have one: its user stacks are taken by frame pointers",
            ),
            loss(
                "unwind_mappings_full",
                tables.processes_with_too_many_mappings,
                "times a process had more executable mappings than there is room for: user stacks end in those left out",
            ),
        ]);
        losses
    }
}
