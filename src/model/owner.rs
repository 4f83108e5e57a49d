//! Who owned a lock when waits for it began.

use serde::{Deserialize, Serialize};

/// A thread, as it was named when it was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Thread {
    pub pid: u32,
    pub tid: u32,
    pub comm: String,
}

/// What the owner word of a lock said when one wait began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    Task(Thread),
    /// Readers; which of them, the lock does not say.
    Readers,
    /// Released just then, or given to a task that had not taken it yet.
    Nobody,
}

/// The owners of one lock over all waits that began, whether these ended or not.
///
/// Who owned it when a wait *began* is not to blame for the whole wait: the lock may have gone through
/// other hands since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owners {
    /// Waits that began while no task owned the lock.
    pub nobody: u64,
    /// … while readers held it.
    pub readers: u64,
    /// … while this thread owned it; the most frequent first.
    pub tasks: Vec<(Thread, u64)>,
}

impl Owners {
    pub fn waits(&self) -> u64 {
        self.nobody + self.readers + self.tasks.iter().map(|(_, waits)| waits).sum::<u64>()
    }

    pub fn merge(&mut self, other: Owners) {
        self.nobody += other.nobody;
        self.readers += other.readers;
        for (thread, waits) in other.tasks {
            match self.tasks.iter_mut().find(|(mine, _)| mine.tid == thread.tid) {
                Some((_, mine)) => *mine += waits,
                None => self.tasks.push((thread, waits)),
            }
        }
        self.rank();
    }

    pub fn rank(&mut self) {
        self.tasks.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(tid: u32) -> Thread {
        Thread { pid: 1, tid, comm: "x".into() }
    }

    #[test]
    fn owners_of_two_rows_of_one_lock_add_up_by_thread() {
        let mut mine = Owners { nobody: 1, readers: 2, tasks: vec![(thread(7), 5), (thread(8), 1)] };
        mine.merge(Owners { nobody: 3, readers: 0, tasks: vec![(thread(8), 6), (thread(9), 2)] });
        let tasks = vec![(thread(8), 7), (thread(7), 5), (thread(9), 2)];
        assert_eq!(mine, Owners { nobody: 4, readers: 2, tasks });
        assert_eq!(mine.waits(), 20);
    }
}
