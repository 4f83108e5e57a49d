//! The log-linear histogram that BPF fills, and its percentiles.
//!
//! Values below 256 ns fall into 16 linear buckets of 16 ns. From there every power of two is cut
//! into 16 equal buckets, up to 2^42 ns (73 minutes); longer waits land in the last bucket. A value
//! taken from the middle of its bucket is wrong by at most 1/32 = 3.1 %.
//! `bpf/lockprof.h` states the same layout; a test in `bpf/wire.rs` holds the two together.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const SUB_BITS: u32 = 4;
const SUB: u64 = 1 << SUB_BITS;
const MIN_EXP: u32 = 8;
const MAX_EXP: u32 = 42;
/// Number of buckets.
pub const BUCKETS: usize = (SUB + (MAX_EXP - MIN_EXP) as u64 * SUB) as usize;

/// The bucket a value in ns falls into.
pub fn bucket_of(ns: u64) -> usize {
    if ns < 1 << MIN_EXP {
        return (ns >> (MIN_EXP - SUB_BITS)) as usize;
    }
    let exp = ns.ilog2();
    if exp >= MAX_EXP {
        return BUCKETS - 1;
    }
    let sub = (ns >> (exp - SUB_BITS)) & (SUB - 1);
    (SUB + (exp - MIN_EXP) as u64 * SUB + sub) as usize
}

/// The values of a bucket, in ns: from the first to one past the last.
pub fn bucket_range(bucket: usize) -> (u64, u64) {
    let bucket = bucket as u64;
    if bucket < SUB {
        let width = 1 << (MIN_EXP - SUB_BITS);
        return (bucket * width, (bucket + 1) * width);
    }
    let exp = MIN_EXP as u64 + (bucket - SUB) / SUB;
    let sub = (bucket - SUB) % SUB;
    let width = 1 << (exp - SUB_BITS as u64);
    let low = (1 << exp) + sub * width;
    (low, low + width)
}

/// A histogram of contended waits, in ns. Sparse: (bucket, count), ascending, no zero counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hist {
    pub buckets: Vec<(u16, u64)>,
}

impl Hist {
    pub fn from_dense(counts: &[u32]) -> Hist {
        let buckets = counts
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(bucket, n)| (bucket as u16, u64::from(*n)))
            .collect();
        Hist { buckets }
    }

    /// For tests and for synthetic profiles.
    pub fn from_values(values: impl IntoIterator<Item = u64>) -> Hist {
        let mut dense = vec![0u32; BUCKETS];
        for ns in values {
            dense[bucket_of(ns)] += 1;
        }
        Hist::from_dense(&dense)
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, n)| n).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    pub fn merge(&mut self, other: &Hist) {
        let mut all = std::collections::BTreeMap::new();
        for (bucket, n) in self.buckets.iter().chain(&other.buckets) {
            *all.entry(*bucket).or_insert(0) += n;
        }
        self.buckets = all.into_iter().collect();
    }

    /// The smallest value a member of the highest bucket can have; `None` when empty.
    pub fn highest_low_ns(&self) -> Option<u64> {
        self.buckets.last().map(|(bucket, _)| bucket_range(usize::from(*bucket)).0)
    }

    /// As an HdrHistogram (3 significant digits over the middle of each bucket).
    pub fn to_hdr(&self) -> Histogram<u64> {
        let mut hdr = Histogram::new_with_bounds(1, 1 << 44, 3).expect("constant bounds are valid");
        for (bucket, n) in &self.buckets {
            let (low, high) = bucket_range(usize::from(*bucket));
            hdr.record_n(((low + high) / 2).max(1), *n).expect("every bucket lies within the bounds");
        }
        hdr
    }

    /// The value below which `percent` (0–100) of the waits lie, in ns, never above the exact maximum
    /// `max_ns`; `None` when there were no waits.
    pub fn percentile_ns(&self, percent: f64, max_ns: Option<u64>) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        if percent >= 100.0 && max_ns.is_some() {
            return max_ns;
        }
        let value = self.to_hdr().value_at_quantile(percent / 100.0);
        Some(value.min(max_ns.unwrap_or(u64::MAX)))
    }

    /// Counts per power of two, for drawing: (exponent, count) with value in [2^exponent, 2^(exponent+1)).
    pub fn per_octave(&self) -> Vec<(u32, u64)> {
        let mut octaves: std::collections::BTreeMap<u32, u64> = Default::default();
        for (bucket, n) in &self.buckets {
            let (low, high) = bucket_range(usize::from(*bucket));
            *octaves.entry(((low + high) / 2).max(1).ilog2()).or_insert(0) += n;
        }
        octaves.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_the_range_of_its_bucket() {
        let mut values: Vec<u64> = (0..5000).collect();
        for exp in 8..MAX_EXP {
            for near in [-1i64, 0, 1, 7] {
                values.push(((1i64 << exp) + near) as u64);
                values.push(((1i64 << exp) + (1i64 << (exp - 1)) + near) as u64);
            }
        }
        for ns in values {
            let (low, high) = bucket_range(bucket_of(ns));
            assert!(low <= ns && ns < high, "{ns} is outside [{low}, {high})");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        for bucket in 1..BUCKETS {
            assert_eq!(bucket_range(bucket - 1).1, bucket_range(bucket).0);
        }
        assert_eq!(bucket_range(BUCKETS - 1).1, 1 << MAX_EXP);
    }

    #[test]
    fn the_middle_of_a_bucket_is_within_3_2_percent() {
        for bucket in 16..BUCKETS {
            let (low, high) = bucket_range(bucket);
            let middle = (low + high) / 2;
            assert!((middle - low) as f64 / low as f64 <= 1.0 / 32.0);
        }
    }

    #[test]
    fn percentiles_of_a_known_distribution() {
        // 1..=1000 microseconds, once each
        let hist = Hist::from_values((1..=1000).map(|us| us * 1000));
        for (percent, truth_ns) in [(50.0, 500_000.0), (90.0, 900_000.0), (99.0, 990_000.0)] {
            let got = hist.percentile_ns(percent, Some(1_000_000)).unwrap() as f64;
            assert!((got - truth_ns).abs() / truth_ns < 0.035, "p{percent}: {got}");
        }
        assert_eq!(hist.percentile_ns(100.0, Some(1_000_000)), Some(1_000_000));
    }

    #[test]
    fn merging_adds_counts() {
        let mut a = Hist::from_values([100, 5000]);
        a.merge(&Hist::from_values([5000, 1 << 50]));
        assert_eq!(a.count(), 4);
        assert_eq!(a.buckets.last().unwrap().0 as usize, BUCKETS - 1);
    }

    #[test]
    fn an_empty_histogram_has_no_percentile() {
        assert_eq!(Hist::default().percentile_ns(50.0, None), None);
    }
}
