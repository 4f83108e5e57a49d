//! stub
use crate::Options; use crate::truth::Outcome;
pub fn run(_o:&Options)->anyhow::Result<Outcome>{ anyhow::bail!("todo") }
