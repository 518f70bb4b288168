//! Times in buckets, mergeable over processes. Layer 0.

use serde::{Deserialize, Serialize};

/// Each power of two is cut into so many buckets: 3 % is finer than rounds differ.
const STEPS: u64 = 32;
const STEPS_BITS: u32 = STEPS.trailing_zeros();

/// Counts of times in µs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Trailing buckets without an entry are not there.
    counts: Vec<u64>,
    #[serde(default)]
    sum_us: u64,
}

impl Histogram {
    /// Adds one time.
    pub fn add(&mut self, us: u64) {
        self.sum_us = self.sum_us.saturating_add(us);
        let bucket = bucket_of(us);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Histogram) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// Entries.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All entries together, in µs.
    pub const fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Entries of at most `us` µs, as exactly as the buckets are fine.
    pub fn count_upto(&self, us: u64) -> u64 {
        let buckets = self.counts.iter().zip(0_u64..);
        let upto = buckets.take_while(|(_, bucket)| upper_bound(*bucket) <= us);
        upto.map(|(count, _)| count).sum()
    }

    /// The time below which the share `q` (0 to 1) of the entries lies, in µs; `None` without entries.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64 * q).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for (bucket, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Some(upper_bound(bucket as u64));
            }
        }
        None
    }
}

fn bucket_of(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let shift = us.ilog2() - STEPS_BITS;
    (u64::from(shift + 1) * STEPS + ((us >> shift) & (STEPS - 1))) as usize
}

/// The largest time of a bucket.
fn upper_bound(bucket: u64) -> u64 {
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    ((STEPS + bucket % STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_in_a_bucket_that_ends_within_four_percent_above_it() {
        for us in (0..5_000).chain([65_535, 65_536, 1_000_000, 123_456_789]) {
            let bound = upper_bound(bucket_of(us) as u64);
            assert!(bound >= us && bound <= us + us / 25, "{us} {bound}");
        }
    }

    #[test]
    fn quantiles_of_merged_histograms_are_those_of_all_entries() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        (1..=50).for_each(|_| low.add(10));
        (1..=50).for_each(|_| high.add(20));
        low.merge(&high);
        assert_eq!(low.count(), 100);
        assert_eq!(low.quantile(0.5), Some(10));
        assert_eq!(low.quantile(0.51), Some(20));
        assert_eq!((low.count_upto(19), low.count_upto(20)), (50, 100));
        assert_eq!(low.sum_us(), 1_500);
        assert_eq!(low.quantile(1.0), Some(20));
        assert_eq!(Histogram::default().quantile(0.5), None);
    }
}
