//! Which processes to look at while they live, so that their frames can be named when they are gone.

use crate::symbolize::Images;
use std::collections::BTreeSet;

#[derive(Default)]
pub struct Onlookers {
    pub images: Images,
    pids: BTreeSet<u32>,
}

impl Onlookers {
    pub fn look_at(&mut self, pids: impl IntoIterator<Item = u32>) {
        for pid in pids {
            self.pids.insert(pid);
            // It may be gone: then the earlier snapshot stays, and what is missing shows as
            // unsymbolized or as a missed process, both counted.
            let _ = self.images.snapshot(pid);
        }
    }

    /// Looks at every known process again: libraries are loaded late, and notices can be lost.
    pub fn refresh(&mut self) {
        let pids = std::mem::take(&mut self.pids);
        for pid in pids {
            if self.images.snapshot(pid).is_ok() {
                self.pids.insert(pid);
            }
        }
    }
}
