//! The skeleton that libbpf-cargo generates from ../bpf: maps, programs, and the types of the wire.
//!
//! A crate of its own, compiled without optimisation (../Cargo.toml): the skeleton has a field for each of
//! hundreds of programs, and to optimise the few functions that fill them takes two minutes and 6 GB.

use plain::Plain;

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case, non_upper_case_globals)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/lockprof.skel.rs"));
}

pub use generated::*;

/// That of blocked.bpf.c, which is an object of its own.
#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case, non_upper_case_globals)]
pub mod blocked {
    include!(concat!(env!("OUT_DIR"), "/blocked.skel.rs"));
}

/// That of memory.bpf.c, likewise.
#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case, non_upper_case_globals)]
pub mod memory {
    include!(concat!(env!("OUT_DIR"), "/memory.skel.rs"));
}

// SAFETY: plain C structs of integers, for which every bit pattern is valid.
unsafe impl Plain for types::site_key {}
unsafe impl Plain for types::site_stats {}
unsafe impl Plain for types::lock_key {}
unsafe impl Plain for types::lock_stats {}
unsafe impl Plain for types::hold_stats {}
unsafe impl Plain for types::futex_wait {}
unsafe impl Plain for types::thread_key {}
unsafe impl Plain for types::thread {}
unsafe impl Plain for types::release_key {}
unsafe impl Plain for types::release_stats {}
unsafe impl Plain for types::spin_queue {}
unsafe impl Plain for types::spin_blame {}
unsafe impl Plain for types::blame_key {}
unsafe impl Plain for types::blame_stats {}
unsafe impl Plain for types::pair_key {}
unsafe impl Plain for types::chain_key {}
unsafe impl Plain for types::chain_stats {}
unsafe impl Plain for types::wait_key {}
unsafe impl Plain for types::wait {}
unsafe impl Plain for types::owner_key {}
unsafe impl Plain for types::owner_stats {}
unsafe impl Plain for types::spin_waits {}
unsafe impl Plain for types::spin_site {}
unsafe impl Plain for types::spin_lock {}
unsafe impl Plain for types::spin_stack {}
unsafe impl Plain for types::spin_hold {}
unsafe impl Plain for types::stack {}
unsafe impl Plain for types::process {}
unsafe impl Plain for types::counters {}
unsafe impl Plain for types::notice {}
unsafe impl Plain for blocked::types::blocked_registers {}
