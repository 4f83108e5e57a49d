//! What there is already when a profile starts: threads, which lock words may name as owners, and waits for futexes
//! that no hook saw begin.

use super::blocked::{self, AlreadyWaiting};
use super::config::Scope;
use super::onlookers::Onlookers;
use super::threads;
use crate::bpf::{TargetThread, ThreadsByNumber, Tracer, WaitingThread, registers_of_blocked};
use crate::kernel::Facts;
use anyhow::Result;
use std::collections::HashMap;

pub struct Early {
    threads: Vec<TargetThread>,
    waiting: Vec<AlreadyWaiting>,
}

impl Early {
    /// A command that is held before it runs: one thread, which waits for us alone.
    pub fn of_command(pid: u32, tracer: &mut Tracer) -> Result<Early> {
        Early::with_threads(&[pid], tracer)
    }

    pub fn of_processes(
        scope: &Scope,
        facts: &Facts,
        onlookers: &mut Onlookers,
        tracer: &mut Tracer,
    ) -> Result<Early> {
        let pids = match scope {
            Scope::Pids(pids) => pids.clone(),
            Scope::Command(_) | Scope::System => {
                let mut pids = threads::all_processes();
                pids.retain(|pid| *pid != std::process::id());
                pids
            }
        };
        let mut early = Early::with_threads(&pids, tracer)?;
        // Without these registers all but the frame pointer is known.
        let registers = registers_of_blocked(facts, &pids).unwrap_or_default();
        early.waiting = onlookers.already_waiting(&pids, &registers)?.waiting;
        Ok(early)
    }

    fn with_threads(pids: &[u32], tracer: &mut Tracer) -> Result<Early> {
        let threads: Vec<_> = pids.iter().copied().flat_map(threads::of_process).collect();
        for thread in &threads {
            tracer.remember_thread(thread)?;
        }
        Ok(Early { threads, waiting: Vec::new() })
    }

    /// Before the hooks are active: what they see must not be counted twice.
    pub fn add(&self, tracer: &mut Tracer, start_ns: u64) -> Result<()> {
        let by_number: ThreadsByNumber = self
            .threads
            .iter()
            .map(|thread| ((thread.pid_namespace, thread.tid_in_namespace), thread))
            .collect();
        let namespaces: HashMap<u32, u32> =
            self.threads.iter().map(|thread| (thread.tid, thread.pid_namespace)).collect();
        for waiting in &self.waiting {
            // Born after the list was made: its waits begin before the hooks' eyes.
            let Some(namespace) = namespaces.get(&waiting.tid) else { continue };
            let thread = WaitingThread {
                pid: waiting.pid,
                tid: waiting.tid,
                comm: &waiting.comm,
                uaddr: waiting.uaddr,
                op: waiting.op_bits,
                value: waiting.val,
                timeout: waiting.timeout,
                sp: waiting.sp,
                words: waiting.words.as_ref(),
                pcs: &waiting.pcs,
                end: waiting.end,
            };
            tracer.add_waiting(&thread, start_ns, *namespace, &by_number)?;
        }
        Ok(())
    }

    /// Right after the hooks became active: a wait that ended before that has no end.
    pub fn forget_those_who_went_on(&self, tracer: &mut Tracer) -> Result<()> {
        for waiting in &self.waiting {
            if !blocked::still_blocked(waiting.pid, waiting.tid, waiting) {
                tracer.forget_waiting(waiting.tid)?;
            }
        }
        Ok(())
    }
}
