//! Which files of a torrent lie on the disk already under other names, by their lengths and a sample of piece hashes.
//! Layer 3. Pure: whoever asks opens the files that are offered and hashes what each round names.
//!
//! A file is taken once a piece that it lies in is good. Then the first and last pieces of taken files are looked at, and a
//! few between, so many in all that a sample stays one. What a sample does not show is proven when it is first sent.

use std::collections::BTreeSet;

use crate::base::{Bitfield, PieceIndex, Rng};
use crate::storage::layout::FileLayout;

/// Files tried in the place of one: that many of one length are rarely the same.
pub const OFFERS_MAX: usize = 8;
/// Pieces of the sample, besides one for each file.
const SAMPLE_PIECES_MAX: usize = 64;
/// And what they have together, unless that is less than [`SAMPLE_PIECES_MIN`].
const SAMPLE_BYTES_MAX: u64 = 256 << 20;
const SAMPLE_PIECES_MIN: usize = 4;
/// Of these, the ones that nobody can foresee.
const RANDOM_PIECES: usize = 4;

/// What is known of a file's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// This offer is looked at.
    Open(usize),
    /// This one is it.
    Taken(usize),
    /// None is.
    Nowhere,
}

/// Finds the files of one torrent, in rounds.
#[derive(Debug)]
pub struct Matcher<'a> {
    layout: &'a FileLayout,
    /// One a file: how many others have its length.
    offers: Vec<usize>,
    choices: Vec<Choice>,
    /// Pieces hashed and good.
    good: Bitfield,
    /// Pieces of the round under way.
    round: BTreeSet<PieceIndex>,
    is_sampled: bool,
    hashed_count: u32,
    rng: Rng,
}

impl<'a> Matcher<'a> {
    /// `offers` tells for each file of the layout how many others may be it, the likeliest first.
    pub fn new(layout: &'a FileLayout, offers: Vec<usize>, rng: Rng) -> Matcher<'a> {
        let choice = |offers: &usize| match offers {
            0 => Choice::Nowhere,
            _ => Choice::Open(0),
        };
        Matcher {
            choices: offers.iter().map(choice).collect(),
            good: Bitfield::new(layout.geometry().piece_count()),
            layout,
            offers,
            round: BTreeSet::new(),
            is_sampled: false,
            hashed_count: 0,
            rng,
        }
    }

    /// The offer that stands for the file now, or is it.
    pub fn offer_of(&self, file: usize) -> Option<usize> {
        match self.choices.get(file)? {
            Choice::Open(offer) | Choice::Taken(offer) => Some(*offer),
            Choice::Nowhere => None,
        }
    }

    /// Pieces to hash next, with every file in its present place; empty when all is known.
    pub fn next_round(&mut self) -> Vec<PieceIndex> {
        self.round.clear();
        for file in 0..self.choices.len() {
            if matches!(self.choices.get(file), Some(Choice::Open(_))) {
                match self.test_piece(file) {
                    Some(piece) => drop(self.round.insert(piece)),
                    None => self.choose(file, Choice::Nowhere),
                }
            }
        }
        if self.round.is_empty() && !self.is_sampled {
            self.is_sampled = true;
            self.round = self.sample();
        }
        self.round.iter().copied().collect()
    }

    /// What the round brought: those of its pieces that are good.
    pub fn judge(&mut self, good: &Bitfield) {
        for piece in std::mem::take(&mut self.round) {
            self.hashed_count += 1;
            let is_good = good.has(piece);
            if is_good {
                self.good.set(piece);
            }
            for file in self.layout.files_of_piece(piece) {
                let next = match (self.choices.get(file).copied(), is_good) {
                    (Some(Choice::Open(offer)), true) => Choice::Taken(offer),
                    // All that are in doubt go on together: those of one source stay beside each other.
                    (Some(Choice::Open(offer)), false) => self.offer_behind(file, offer),
                    (Some(Choice::Taken(_)), false) if self.is_sampled => Choice::Nowhere,
                    _ => continue,
                };
                self.choose(file, next);
            }
        }
    }

    /// The file is not to be had after all.
    pub fn forget(&mut self, file: usize) {
        self.choose(file, Choice::Nowhere);
    }

    /// The files found, and which of their offers they are.
    pub fn taken(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let choices = self.choices.iter().enumerate();
        choices.filter_map(|(file, choice)| match choice {
            Choice::Taken(offer) => Some((file, *offer)),
            _ => None,
        })
    }

    /// The pieces that lie wholly in files found.
    pub fn pieces(&self) -> Bitfield {
        let mut pieces = Bitfield::new(self.layout.geometry().piece_count());
        for piece in self.layout.geometry().pieces() {
            if self.is_found(piece) {
                pieces.set(piece);
            }
        }
        pieces
    }

    /// Of these, the ones that were hashed.
    pub fn proven(&self) -> &Bitfield {
        &self.good
    }

    /// Pieces hashed so far.
    pub fn hashed_count(&self) -> u32 {
        self.hashed_count
    }

    fn choose(&mut self, file: usize, choice: Choice) {
        if let Some(place) = self.choices.get_mut(file) {
            *place = choice;
        }
    }

    fn offer_behind(&self, file: usize, offer: usize) -> Choice {
        let count = self.offers.get(file).copied().unwrap_or(0);
        match offer + 1 < count.min(OFFERS_MAX) {
            true => Choice::Open(offer + 1),
            false => Choice::Nowhere,
        }
    }

    fn is_stored(&self, file: usize) -> bool {
        let file = self.layout.files().get(file);
        file.is_some_and(|file| file.is_regular() && file.length_bytes > 0)
    }

    /// All files with bytes of the piece are somewhere.
    fn can_hash(&self, piece: PieceIndex) -> bool {
        let mut files = self.layout.files_of_piece(piece);
        files.all(|file| !self.is_stored(file) || self.offer_of(file).is_some())
    }

    fn is_found(&self, piece: PieceIndex) -> bool {
        let is_taken = |file| matches!(self.choices.get(file), Some(Choice::Taken(_)));
        let mut files = self.layout.files_of_piece(piece);
        files.all(|file| !self.is_stored(file) || is_taken(file))
    }

    /// The piece that tells most of a file: one that lies in it alone, else one of its ends.
    fn test_piece(&self, file: usize) -> Option<PieceIndex> {
        let pieces = self.layout.pieces_of_file(file);
        let (first, last) = (pieces.start, pieces.end.checked_sub(1)?);
        let is_alone = |piece: &PieceIndex| {
            let mut files = self.layout.files_of_piece(*piece);
            files.all(|other| other == file || !self.is_stored(other))
        };
        // A piece in the middle is never shared: two looks are enough.
        let middle = [first, first.saturating_add(1).min(last), last];
        let pieces = middle.map(PieceIndex::new);
        let alone = pieces.into_iter().find(is_alone);
        alone.or_else(|| pieces.into_iter().find(|piece| self.can_hash(*piece)))
    }

    /// Ends of files found, and a few pieces that no maker of a torrent can foresee.
    fn sample(&mut self) -> BTreeSet<PieceIndex> {
        let piece_bytes = u64::from(self.layout.geometry().piece_length_bytes());
        let by_bytes = usize::try_from(SAMPLE_BYTES_MAX / piece_bytes).unwrap_or(usize::MAX);
        let count_max = by_bytes.clamp(SAMPLE_PIECES_MIN, SAMPLE_PIECES_MAX);
        let mut ends = BTreeSet::new();
        for (file, _) in self.taken() {
            let pieces = self.layout.pieces_of_file(file);
            let last = pieces.end.saturating_sub(1);
            ends.extend([pieces.start, last].map(PieceIndex::new));
        }
        let is_wanted = |piece: &PieceIndex| self.is_found(*piece) && !self.good.has(*piece);
        let mut ends: Vec<PieceIndex> = ends.into_iter().filter(is_wanted).collect();
        let others = self.pieces();
        let others: Vec<PieceIndex> = others.iter().filter(is_wanted).collect();
        self.rng.shuffle(&mut ends);
        ends.truncate(count_max.saturating_sub(RANDOM_PIECES));
        let mut sample: BTreeSet<PieceIndex> = ends.into_iter().collect();
        for _ in 0..RANDOM_PIECES {
            sample.extend(self.rng.pick(&others));
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Geometry;
    use crate::wire::metainfo::{FileAttributes, FileEntry, Info, Kind, PieceHashes};

    /// Files by their lengths in pieces' tenths: a piece has 10.
    fn layout(lengths: &[u64]) -> FileLayout {
        let file = |(number, length): (usize, &u64)| FileEntry {
            path: vec![format!("f{number}").into_bytes()],
            length_bytes: *length * 1_638,
            attributes: FileAttributes::default(),
            symlink_target: Vec::new(),
            pieces_root: None,
        };
        let files: Vec<FileEntry> = lengths.iter().enumerate().map(file).collect();
        let total = files.iter().map(|file| file.length_bytes).sum();
        let geometry = Geometry::new(total, 16_380).unwrap();
        let hashes = vec![0; 20 * geometry.piece_count() as usize];
        let info = Info {
            name: "r".to_owned(),
            geometry,
            piece_hashes: PieceHashes::new(&hashes).unwrap(),
            files,
            is_multi_file: true,
            is_private: false,
            source: None,
            kind: Kind::V1,
        };
        FileLayout::new(&info).unwrap()
    }

    /// Runs to the end in a world where these offers are the files; which are taken, and how many pieces were hashed.
    fn find(
        layout: &FileLayout,
        offers: &[usize],
        right: &[Option<usize>],
        bad: &[u32],
    ) -> (Vec<Option<usize>>, u32) {
        let mut matcher = Matcher::new(layout, offers.to_vec(), Rng::new(1));
        for _ in 0..100 {
            let round = matcher.next_round();
            if round.is_empty() {
                let mut taken = vec![None; offers.len()];
                for (file, offer) in matcher.taken() {
                    taken[file] = Some(offer);
                }
                return (taken, matcher.hashed_count());
            }
            let mut good = Bitfield::new(layout.geometry().piece_count());
            for piece in round {
                let mut files = layout.files_of_piece(piece);
                let is_right = files.all(|file| matcher.offer_of(file) == right[file]);
                if is_right && !bad.contains(&piece.get()) {
                    good.set(piece);
                }
            }
            matcher.judge(&good);
        }
        panic!("it never ends");
    }

    #[test]
    fn files_are_found_among_others_of_their_length() {
        let layout = layout(&[35, 2, 3, 40, 100]);
        let right = [Some(0), Some(2), Some(2), Some(1), Some(7)];
        let (taken, hashed) = find(&layout, &[1, 3, 3, 2, 8], &right, &[]);
        assert_eq!(taken, right);
        assert!(hashed <= 8 + 2 + 3 + 1 + 14, "{hashed}");
    }

    #[test]
    fn what_is_nowhere_takes_only_pieces_that_it_shares_with_it() {
        let layout = layout(&[35, 2, 3, 40, 100]);
        let right = [Some(0), None, None, Some(0), Some(0)];
        let offers = [1, 1, 0, 1, 1];
        let (taken, _) = find(&layout, &offers, &right, &[]);
        assert_eq!(taken, right);
        let mut matcher = Matcher::new(&layout, offers.to_vec(), Rng::new(1));
        while !matcher.next_round().is_empty() {
            let mut good = Bitfield::full(18);
            good.clear(PieceIndex::new(3));
            matcher.judge(&good);
        }
        let pieces = matcher.pieces();
        assert!(
            !pieces.has(PieceIndex::new(3)),
            "with what is nowhere in it"
        );
        assert_eq!(pieces.count(), 17);
    }

    #[test]
    fn a_sample_of_a_large_file_is_a_small_part_of_it_with_both_its_ends() {
        let layout = layout(&[100_000]);
        let (taken, hashed) = find(&layout, &[1], &[Some(0)], &[]);
        assert_eq!(taken, [Some(0)]);
        assert!(hashed <= 6, "{hashed} of 10000");
        for end in [0, 9_999] {
            let (taken, _) = find(&layout, &[1], &[Some(0)], &[end]);
            assert_eq!(taken, [None], "its piece {end} is another");
        }
    }

    #[test]
    fn many_files_take_a_piece_each_and_a_bounded_sample() {
        let lengths = vec![40; 1_000];
        let right = vec![Some(0); 1_000];
        let (taken, hashed) = find(&layout(&lengths), &[1; 1_000], &right, &[]);
        assert_eq!(taken, right);
        assert!(hashed <= 1_064, "{hashed} of 4000");
    }
}
