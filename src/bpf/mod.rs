//! The only module that sees libbpf-rs and the generated skeleton.
//!
//! [`load`]: plan → loaded and attached programs. [`drain`]: maps → records. [`wire`], [`futex_wire`]: bytes → model.
//! [`blocked`]: one look, before that, at threads that wait already. [`memory`]: where the kernel keeps what.

mod already;
mod blame_wire;
mod blocked;
mod drain;
mod futex_wire;
mod load;
mod mapped;
mod memory;
#[cfg(test)]
mod selftest;
mod tracefs_kprobe;
mod wire;

use lockprof_skel as skel;

pub use already::{ThreadsByNumber, WaitingThread, Words};
pub use blocked::registers_of_blocked;
pub use load::{Notices, Settings, SlabLookup, TargetThread, Targets, Tracer};
pub use memory::MemoryReader;
