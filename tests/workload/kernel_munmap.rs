//! `munmap`: proves that an rw_semaphore that its writer downgrades is released for writing and held for reading.
//!
//! munmap takes mmap_lock for writing, takes the mapping out of the tree, and frees its pages with the lock
//! downgraded (mm/mmap.c, from 5.0 on). One thread does so again and again; nobody waits.

use std::io;

use anyhow::{Context, Result};
use serde_json::json;

use crate::Options;
use crate::truth::Outcome;

pub fn run(options: &Options) -> Result<Outcome> {
    const LENGTH: usize = 1 << 16;
    for _ in 0..options.operations {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        // SAFETY: the whole mapping that was made above, and nothing refers to it.
        if unsafe { libc::munmap(place, LENGTH) } != 0 {
            return Err(io::Error::last_os_error()).context("munmap");
        }
    }
    let mut outcome = Outcome { hold_ns: None, rounds: 1, ..options.outcome(Vec::new()) };
    outcome.extra.insert("munmaps".to_string(), json!(options.operations));
    Ok(outcome)
}
