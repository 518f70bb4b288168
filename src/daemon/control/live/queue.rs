//! Places in the queue: how they are counted, and moves from one to another. Layer 6, pure.

use std::collections::BTreeSet;

use crate::base::InfoHash;
use crate::daemon::control::backend::QueueMove;

/// The place of each in the queue, from 0, in the order in which they are given. Each comes with its number in the queue
/// and its own.
pub fn places(numbers: impl Iterator<Item = (i64, u64)>) -> Vec<u64> {
    let mut order: Vec<_> = numbers.zip(0_usize..).collect();
    order.sort_unstable();
    let mut places = vec![0; order.len()];
    for (place, (_, at)) in (0..).zip(order) {
        if let Some(slot) = places.get_mut(at) {
            *slot = place;
        }
    }
    places
}

/// Moves some within the queue; they keep their order among each other.
pub fn shift(all: &mut [InfoHash], some: &[InfoHash], to: QueueMove) {
    let some: BTreeSet<InfoHash> = some.iter().copied().collect();
    let is_moved = |info_hash: &InfoHash| some.contains(info_hash);
    match to {
        QueueMove::Top => all.sort_by_key(|info_hash| !is_moved(info_hash)),
        QueueMove::Bottom => all.sort_by_key(is_moved),
        QueueMove::Up => {
            // One that stands behind another that moves stays behind it.
            for place in 1..all.len() {
                if is_moved(&all[place]) && !is_moved(&all[place - 1]) {
                    all.swap(place, place - 1);
                }
            }
        }
        QueueMove::Down => {
            for place in (1..all.len()).rev() {
                if is_moved(&all[place - 1]) && !is_moved(&all[place]) {
                    all.swap(place, place - 1);
                }
            }
        }
    }
}

/// Puts one at that place, from 0; beyond the end is the end.
pub fn put(all: &mut Vec<InfoHash>, one: InfoHash, place: u64) {
    let before = all.len();
    all.retain(|info_hash| *info_hash != one);
    if all.len() < before {
        let place = usize::try_from(place).unwrap_or(usize::MAX).min(all.len());
        all.insert(place, one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(names: &str) -> Vec<InfoHash> {
        let hash = |name: u8| InfoHash::new([name; 20]);
        names.bytes().map(hash).collect()
    }

    fn moved(names: &str, some: &str, to: QueueMove) -> Vec<InfoHash> {
        let mut all = hashes(names);
        shift(&mut all, &hashes(some), to);
        all
    }

    #[test]
    fn moves_keep_the_order_of_those_that_move() {
        use QueueMove::{Bottom, Down, Top, Up};
        assert_eq!(moved("abcde", "db", Top), hashes("bdace"));
        assert_eq!(moved("abcde", "ca", Bottom), hashes("bdeac"));
        assert_eq!(moved("abcde", "cd", Up), hashes("acdbe"));
        assert_eq!(moved("abcde", "bc", Down), hashes("adbce"));
        assert_eq!(moved("abcde", "ab", Up), hashes("abcde"));
        assert_eq!(moved("abcde", "de", Down), hashes("abcde"));
        assert_eq!(moved("abcde", "ace", Up), hashes("acbed"));
    }

    #[test]
    fn a_place_beyond_the_end_is_the_end() {
        let mut all = hashes("abc");
        put(&mut all, hashes("a")[0], 1);
        assert_eq!(all, hashes("bac"));
        put(&mut all, hashes("b")[0], 99);
        assert_eq!(all, hashes("acb"));
        put(&mut all, hashes("z")[0], 0);
        assert_eq!(all, hashes("acb"));
    }
}
