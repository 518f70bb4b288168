//! Buddy allocation of one memory region in units of 4 KiB (layer 4). Pure: numbers only.

use std::collections::BTreeSet;

/// Smallest allocation: what a peer that only asks sends at a time, and the least of a direct read or write.
pub const UNIT_BYTES: usize = 4 * 1024;
/// Largest order: 2^8 units = 1 MiB, the longest single disk write.
pub const ORDER_MAX: u8 = 8;

/// Free lists of a region; allocations are `2^order` units, aligned to their size.
#[derive(Debug)]
pub struct Buddy {
    /// First units of free runs, by order.
    free: [BTreeSet<u32>; ORDER_MAX as usize + 1],
    units: u32,
    units_free: u32,
}

impl Buddy {
    /// A region of `units` units, all free.
    pub fn new(units: u32) -> Buddy {
        let mut buddy = Buddy {
            free: Default::default(),
            units,
            units_free: units,
        };
        let mut unit = 0;
        while unit < units {
            let order = (0..=ORDER_MAX)
                .rev()
                .find(|&o| unit % (1 << o) == 0 && unit + (1 << o) <= units)
                .unwrap_or(0);
            buddy.list(order).insert(unit);
            unit += 1 << order;
        }
        buddy
    }

    /// Order whose runs hold `bytes`, if one does.
    pub fn order_of(bytes: usize) -> Option<u8> {
        (0..=ORDER_MAX).find(|&order| UNIT_BYTES << order >= bytes)
    }

    /// Takes a run; lowest address of the tightest fit, so that memory never needed is never touched.
    pub fn alloc(&mut self, order: u8) -> Option<u32> {
        let mut from = (order..=ORDER_MAX).find(|&o| !self.list(o).is_empty())?;
        let unit = self.list(from).pop_first()?;
        while from > order {
            from -= 1;
            self.list(from).insert(unit + (1 << from));
        }
        self.units_free -= 1 << order;
        Some(unit)
    }

    /// Gives a run back and joins it with its free neighbours.
    ///
    /// # Panics
    ///
    /// If the run lies outside the region or is already free (a mistake of ours).
    pub fn free(&mut self, unit: u32, order: u8) {
        assert!(unit + (1 << order) <= self.units, "run outside the region");
        let (mut unit, mut at) = (unit, order);
        while at < ORDER_MAX && self.list(at).remove(&(unit ^ (1 << at))) {
            unit &= !(1 << at);
            at += 1;
        }
        assert!(self.list(at).insert(unit), "run freed twice");
        self.units_free += 1 << order;
    }

    /// Units not handed out.
    pub fn units_free(&self) -> u32 {
        self.units_free
    }

    /// Checks that free runs are aligned, disjoint, inside the region and add up.
    pub fn check(&self) {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (order, list) in (0u8..).zip(&self.free) {
            for &unit in list {
                assert_eq!(unit % (1 << order), 0, "free run out of alignment");
                runs.push((unit, 1 << order));
            }
        }
        runs.sort_unstable();
        let mut end = 0;
        for &(unit, units) in &runs {
            assert!(unit >= end, "free runs overlap");
            end = unit + units;
        }
        assert!(end <= self.units, "free run outside the region");
        assert_eq!(runs.iter().map(|r| r.1).sum::<u32>(), self.units_free);
    }

    fn list(&mut self, order: u8) -> &mut BTreeSet<u32> {
        &mut self.free[usize::from(order)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn orders_hold_what_they_are_asked_for() {
        assert_eq!(Buddy::order_of(0), Some(0));
        assert_eq!(Buddy::order_of(4 << 10), Some(0));
        assert_eq!(Buddy::order_of((4 << 10) + 1), Some(1));
        assert_eq!(Buddy::order_of(1 << 20), Some(8));
        assert_eq!(Buddy::order_of((1 << 20) + 1), None);
    }

    #[test]
    fn low_addresses_are_handed_out_first() {
        let mut buddy = Buddy::new(128);
        assert_eq!(buddy.alloc(4), Some(0));
        assert_eq!(buddy.alloc(0), Some(16));
        assert_eq!(buddy.alloc(6), Some(64));
        assert_eq!(buddy.alloc(6), None);
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_coalescing_gives_back_all(
            units in 1u32..300,
            steps in prop::collection::vec((any::<bool>(), 0u8..=ORDER_MAX, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut buddy = Buddy::new(units);
            let fresh = buddy.free.clone();
            let mut taken: Vec<(u32, u8)> = Vec::new();
            for (is_alloc, order, which) in steps {
                if is_alloc || taken.is_empty() {
                    if let Some(unit) = buddy.alloc(order) {
                        prop_assert_eq!(unit % (1 << order), 0);
                        for &(other, o) in &taken {
                            prop_assert!(unit + (1 << order) <= other || other + (1 << o) <= unit);
                        }
                        taken.push((unit, order));
                    }
                } else {
                    let (unit, order) = taken.swap_remove(which.index(taken.len()));
                    buddy.free(unit, order);
                }
                buddy.check();
            }
            for (unit, order) in taken {
                buddy.free(unit, order);
            }
            buddy.check();
            prop_assert_eq!(buddy.units_free(), units);
            prop_assert_eq!(buddy.free, fresh);
        }
    }
}
