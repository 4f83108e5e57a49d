//! A lock as a queue: who comes, how long it is served, how many wait.

use super::{Account, Blame, Lock};

/// Figures of one row; with several addresses those of all its locks together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Queue {
    /// Waits that began, by second of the run; acquisitions without a wait do not queue.
    pub arrivals_per_s: f64,
    /// Time in the queue of one that came; `None`: nobody did.
    pub mean_wait_ns: Option<f64>,
    /// Waiter-time by wall time, which is arrivals × mean wait (Little 1961: L = λW).
    pub mean_length: f64,
    pub mean_hold: Option<MeanHold>,
    /// Of both rows of a reader-writer lock together; `None` where nobody saw it change hands.
    pub wanted: Option<Wanted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeanHold {
    /// Of all holds that `--hold` saw.
    Holds(u64),
    /// Of the holds that somebody waited for the part in which somebody did: a lower bound of theirs.
    Wanted(u64),
}

/// Shares of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// In which it was held, and somebody waited.
    pub held: f64,
    /// In which nobody held it, and somebody waited.
    pub idle: f64,
}

impl Wanted {
    /// The share of the run in which at least one thread waited for it. No change of this lock alone can
    /// take more than that out of the run.
    pub fn saves_at_most(&self) -> f64 {
        // The locks of one row can be wanted at the same time.
        (self.held + self.idle).min(1.0)
    }
}

impl Queue {
    /// `None` for a run without duration.
    pub fn of(lock: &Lock, account: &Account, duration_ns: u64) -> Option<Queue> {
        if duration_ns == 0 {
            return None;
        }
        let run = duration_ns as f64;
        let waits = lock.waits();
        let blame = account.blame;
        let of_holds = lock.hold.and_then(|hold| hold.avg_hold_ns()).map(MeanHold::Holds);
        let of_wanted = blame.and_then(|blame| {
            let holds: u64 = blame.holders.iter().map(|holder| holder.holds).sum();
            let wanted: u64 = blame.holders.iter().map(|holder| holder.wanted_ns).sum();
            wanted.checked_div(holds).map(MeanHold::Wanted)
        });
        Some(Queue {
            arrivals_per_s: waits as f64 * 1e9 / run,
            mean_wait_ns: (waits > 0).then(|| lock.weight_ns() as f64 / waits as f64),
            mean_length: lock.weight_ns() as f64 / run,
            mean_hold: of_holds.or(of_wanted),
            wanted: blame
                .and_then(Blame::wall_ns)
                .map(|(held, idle)| Wanted { held: held as f64 / run, idle: idle as f64 / run }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::blame::tests::{empty_profile, holder};
    use crate::model::{HoldStats, LockKind, Profile, accounts};

    #[test]
    fn the_length_of_a_queue_is_arrivals_by_the_time_each_waits() {
        let mut lock = Lock::new(LockKind::Mutex, 1, None);
        lock.wait.contended = 40;
        lock.wait.wait_total_ns = 3_000_000_000;
        lock.blame =
            Some(Blame { wanted_ns: 1_500_000_000, idle_while_wanted_ns: 250_000_000, ..Blame::default() });
        let mut profile = empty_profile();
        profile.locks = vec![lock];
        let accounts = accounts(&profile);
        let queue = Queue::of(&profile.locks[0], &accounts[0], 2_000_000_000).unwrap();
        assert_eq!(queue.arrivals_per_s, 20.0);
        assert_eq!(queue.mean_length, 1.5);
        assert_eq!(queue.arrivals_per_s * queue.mean_wait_ns.unwrap() / 1e9, queue.mean_length);
        assert_eq!(queue.mean_hold, None);
        assert_eq!(queue.wanted.unwrap().saves_at_most(), 0.875);
        assert_eq!(Queue::of(&profile.locks[0], &accounts[0], 0), None);
    }

    #[test]
    fn holds_that_were_timed_come_before_their_wanted_part() {
        let mut profile = empty_profile();
        let mut lock = Lock::new(LockKind::Mutex, 1, None);
        lock.blame = Some(Blame { holders: vec![holder(7, 100)], ..Blame::default() });
        profile.locks = vec![lock];
        let mean_hold =
            |profile: &Profile| Queue::of(&profile.locks[0], &accounts(profile)[0], 1).unwrap().mean_hold;
        assert_eq!(mean_hold(&profile), Some(MeanHold::Wanted(100)));
        profile.locks[0].hold =
            Some(HoldStats { acquired: 3, holds: 2, hold_total_ns: 50, hold_max_ns: None });
        assert_eq!(mean_hold(&profile), Some(MeanHold::Holds(25)));
    }
}
