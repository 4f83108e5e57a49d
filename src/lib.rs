//! lockprof: a lock and futex contention profiler for Linux on eBPF. Start here.
//!
//! Five words: **Facts** (what this kernel allows) → **Plan** (how each function is hooked) →
//! **Profile** (the result of one capture); later **Delta** (two profiles) → **Verdict**.
//!
//! ```text
//! main → cli → session → {kernel, attach, bpf};  session → aggregate → model
//!              cli → {symbolize, render} → model
//! attach → {kernel::facts, model}     bpf → {attach::plan, model}     model → nothing of ours
//! ```
//!
//! One door per heavy crate, checked by `tests/layering.rs`: libbpf-rs only in `bpf/` (and
//! `kernel/facts.rs` for trial loads), blazesym only in `symbolize/`, inferno only in
//! `render/flamegraph.rs`, hdrhistogram only in `model/hist.rs`, clap only in `cli/`.

pub mod attach;
pub mod bpf;
pub mod kernel;
pub mod model;
pub mod symbolize;
