//! Which functions matter ([`catalog`]) and how each is hooked on this kernel ([`plan`]).

pub mod catalog;
pub mod plan;
