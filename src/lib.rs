//! lockprof: a lock and futex contention profiler for Linux on eBPF. Start here.
//!
//! Five words: **Facts** (what this kernel allows) → **Plan** (how each function is hooked) →
//! **Profile** (the result of one capture); later **Delta** (two profiles) → **Verdict**.
//!
//! ```text
//! main → cli → session → {kernel, attach, bpf};  session → aggregate → model
//!              cli → {doctor, symbolize, futexes, naming, render} → model
//! attach → {kernel::facts, model}     bpf → {attach::plan, unwind, model}     unwind → symbolize
//! {futexes, render} → {symbolize::callsite, model};  naming → {kernel, symbolize, model}
//! model → nothing of ours
//! ```
//!
//! | module | is |
//! |---|---|
//! | [`cli`] | clap types, one conversion to the library's configuration, progress, output files |
//! | [`session`] | the story of one run: start → wait → stop → capture |
//! | [`kernel`] | Facts: trial loads, BTF, kallsyms; types, slab caches |
//! | [`attach`] | the catalog of hooks, and the Plan as a pure function of (Facts, wishes) |
//! | [`bpf`] | load, attach, activate, drain; the only module that sees libbpf-rs |
//! | [`aggregate`] | raw capture → Profile with addresses |
//! | [`model`] | plain data: Profile, Lock, Stack, Hist |
//! | [`unwind`] | `.eh_frame` → the tables BPF walks user stacks with; a walk from outside |
//! | [`symbolize`] | Profile with addresses → Profile with names |
//! | [`futexes`] | what each futex wait was for: a lock, or nothing to do |
//! | [`naming`] | what kernel locks are called, and a key for every lock that lasts |
//! | [`render`] | Profile → table by lock or holder, histogram, folded, flamegraphs of waiters and holders, JSON |
//! | [`doctor`] | Facts and Plan in human words |
//!
//! One door per heavy crate, checked by `tests/layering.rs`: libbpf-rs only in `bpf/` (and
//! `kernel/facts.rs` for trial loads), blazesym only in `symbolize/`, inferno only in
//! `render/flamegraph.rs`, hdrhistogram only in `model/hist.rs`, gimli only in `unwind/`, clap only in `cli/`.
//!
//! Everything from [`aggregate`] on runs without privileges.

pub mod aggregate;
pub mod attach;
pub mod bpf;
pub mod cli;
pub mod doctor;
pub mod failure;
pub mod futexes;
pub mod kernel;
pub mod model;
pub mod naming;
pub mod render;
pub mod session;
pub mod symbolize;
pub mod units;
pub mod unwind;
