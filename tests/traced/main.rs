//! lockprof against known truth, with real hooks. Needs root and a kernel that runs BPF; says so and
//! fails where that is missing.
//!
//! Runs natively (`cargo test --test traced`) and, as the same binary, in every guest kernel with
//! every method forced in turn: `LOCKPROF_BACKEND=fentry|kprobe|tracepoint` (tests/vm/matrix). What
//! a kernel cannot show by that method must be *said* to be blind; the tests insist on that too.

mod support;

mod blame;
mod coverage;
mod early;
mod families;
mod futexes;
mod hold;
mod life;
mod losses;
mod names;
mod spin;
mod truth;
