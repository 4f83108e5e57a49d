//! The registers of threads that wait in a futex call already: bpf/blocked.bpf.c, loaded, read, unloaded.

use super::load::{lift_memory_limit, remember};
use super::skel::blocked::BlockedSkelBuilder;
use super::skel::blocked::types::blocked_registers;
use super::wire;
use crate::kernel::Facts;
use crate::unwind::Registers;
use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, PrintLevel};
use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::mem::MaybeUninit;

/// By thread id, of the processes `pids`.
///
/// An error means that this kernel does not let us (some refuse every program of type TRACING): without
/// these registers all but the frame pointer is known from /proc.
pub fn registers_of_blocked(facts: &Facts, pids: &[u32]) -> Result<HashMap<u32, Registers>> {
    libbpf_rs::set_print(Some((PrintLevel::Warn, remember)));
    lift_memory_limit();
    let mut storage = MaybeUninit::uninit();
    let mut open =
        BlockedSkelBuilder::default().open(&mut storage).context("Failed to open blocked.bpf.c")?;
    let rodata = open.maps.rodata_data.as_deref_mut().context("blocked.bpf.c has no .rodata")?;
    rodata.have_task_pt_regs = (facts.version() >= (5, 15)).into();
    rodata.only_tgid = if let [pid] = pids { *pid } else { 0 };
    let skel = open.load().context("The kernel refuses iterators of tasks")?;
    let link =
        skel.progs.dump_blocked.attach().context("The kernel refuses to attach an iterator of tasks")?;
    let mut bytes = Vec::new();
    Iter::new(&link)
        .context("Failed to open the iterator of tasks")?
        .read_to_end(&mut bytes)
        .context("Failed to read the iterator of tasks")?;

    let wanted: BTreeSet<u32> = pids.iter().copied().collect();
    let records = bytes.chunks_exact(size_of::<blocked_registers>()).map(wire::read::<blocked_registers>);
    Ok(records
        .filter(|record| wanted.contains(&record.tgid))
        .map(|record| (record.tid, Registers { ip: record.ip, sp: record.sp, bp: Some(record.bp) }))
        .collect())
}
