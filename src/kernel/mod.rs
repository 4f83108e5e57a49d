//! What this kernel and these privileges allow.

pub mod facts;

pub use facts::{Facts, FunctionFacts, Trial};
