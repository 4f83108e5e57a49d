//! Ctrl-C and SIGTERM end a run early and it still reports; a second Ctrl-C aborts.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    pub fn install() -> Result<StopRequest> {
        let requested = Arc::new(AtomicBool::new(false));
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // Order matters: the second signal finds the flag set and ends us as a signal would.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requested))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&requested)))
                .context("Failed to install a signal handler")?;
        }
        Ok(StopRequest(requested))
    }

    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
