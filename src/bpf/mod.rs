//! The only module that sees libbpf-rs and the generated skeleton.
//!
//! [`load`]: plan → loaded and attached programs. [`drain`]: maps → records. [`wire`]: bytes → model.

mod drain;
mod load;
mod mapped;
#[cfg(test)]
mod selftest;
mod tracefs_kprobe;
mod wire;

pub use load::{Notices, Settings, Targets, Tracer};

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case, non_upper_case_globals)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/lockprof.skel.rs"));
}
