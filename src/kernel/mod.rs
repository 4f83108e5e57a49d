//! What this kernel and these privileges allow, and what its memory is made of.

pub mod btf;
pub mod facts;
mod memory;

pub use facts::{Facts, FunctionFacts, Trial};
pub use memory::{Bases, Cache, Caches, Variables, general_size};
