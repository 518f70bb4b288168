//! How many peers came from where. Layer 2.

use crate::swarm::candidates::Source;

/// Peers by the word for their source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts([u32; SourceCounts::WORDS.len()]);

impl SourceCounts {
    /// The words, in the order in which they are shown.
    pub const WORDS: [&'static str; 6] = ["tracker", "dht", "pex", "lsd", "user", "incoming"];

    /// Nobody.
    pub const fn new() -> Self {
        SourceCounts([0; SourceCounts::WORDS.len()])
    }

    /// One more from there.
    pub fn add(&mut self, source: Source) {
        let word = source.as_str();
        let place = SourceCounts::WORDS.iter().position(|one| *one == word);
        if let Some(count) = place.and_then(|place| self.0.get_mut(place)) {
            *count = count.saturating_add(1);
        }
    }

    /// Each word with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        SourceCounts::WORDS.into_iter().zip(self.0)
    }

    /// All of them.
    pub fn total(&self) -> u32 {
        self.0
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }
}

impl FromIterator<Source> for SourceCounts {
    fn from_iter<I: IntoIterator<Item = Source>>(sources: I) -> Self {
        let mut counts = SourceCounts::new();
        sources.into_iter().for_each(|source| counts.add(source));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_has_its_word() {
        let all = [
            Source::User,
            Source::Tracker,
            Source::Lsd,
            Source::Inbound,
            Source::LocalPex,
            Source::LocalDht,
            Source::Dht,
            Source::Pex,
        ];
        let counts: SourceCounts = all.into_iter().collect();
        let expected = [("tracker", 1), ("dht", 2), ("pex", 2), ("lsd", 1)];
        assert_eq!(counts.iter().take(4).collect::<Vec<_>>(), expected);
        let sum: u32 = counts.iter().map(|(_, count)| count).sum();
        assert_eq!(sum as usize, all.len());
    }
}
