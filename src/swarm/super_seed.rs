//! Super-seeding (BEP 16): the first seeder of a torrent shows each peer one piece at a time, and the next one once it
//! was seen to pass that on. Layer 2.
//!
//! Holds what each peer was shown and how far that went; who has what and what is said to whom is the torrent's. Two things
//! are never waited for: somebody who takes what nobody shares, since a swarm that stands still for `STALLED_AFTER` is
//! shown one piece more, and others who could have shared it, once there are none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::PeerKey;
use crate::base::{Bitfield, Now, PieceIndex};

/// With so many other connected peers that have everything, the torrent is seeded as any other. One may be a liar, or leave.
pub const SEEDS_ENOUGH: u32 = 2;
/// When nothing was sent or shown for so long, whoever waited longest is shown a piece that it did not earn.
const STALLED_AFTER: Duration = Duration::from_secs(20);
/// A peer that earned a piece while all were shown to somebody is shown one of those on their way to others after this time.
const SCARCE_AFTER: Duration = Duration::from_secs(10);
/// And after this one a piece that others have already: they seem not to give it to the peer.
const ANY_AFTER: Duration = Duration::from_secs(30);
/// A peer that does not want what it was shown, as it selected other files, is shown something else after this time.
const UNWANTED_AFTER: Duration = Duration::from_secs(10);
/// Peers that left without passing on what they were shown, and would be shown the same again: enough for those that
/// reconnect to be shown more.
const LEFT_MAX: usize = 64;

/// Which pieces may be shown now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Those that nobody else has or was shown.
    Fresh,
    /// Those that nobody else has.
    Scarce,
    /// All.
    Any,
}

/// How far a peer is with what it was shown last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Something else is to be shown to it.
    Earned { since: Now },
    Shown {
        piece: PieceIndex,
        since: Now,
        /// It said that it has it, or that it wants nothing more of what it was shown: some say nothing about a piece to those
        /// who have it.
        has_it: bool,
        /// Another peer said so.
        is_elsewhere: bool,
    },
}

/// One peer that takes us for somebody with few pieces.
#[derive(Clone, Debug)]
struct Veil {
    shown: Bitfield,
    step: Step,
}

/// What a torrent's peers were shown.
#[derive(Clone, Debug)]
pub struct SuperSeed {
    /// How many of the present peers were shown each piece.
    shown_counts: Vec<u16>,
    peers: BTreeMap<PeerKey, Veil>,
    /// Where the next piece is looked for.
    cursor: u32,
    /// When something was last sent or shown.
    moved_at: Now,
    left: Vec<(IpAddr, PieceIndex)>,
}

impl SuperSeed {
    /// Nobody is there; pieces are shown from `cursor` on.
    pub fn new(pieces: u32, cursor: u32, now: Now) -> Self {
        SuperSeed {
            shown_counts: vec![0; pieces as usize],
            peers: BTreeMap::new(),
            cursor: cursor % pieces.max(1),
            moved_at: now,
            left: Vec::new(),
        }
    }

    /// A peer came, and is told of no piece.
    pub fn on_peer(&mut self, key: PeerKey, now: Now) {
        let shown = Bitfield::new(self.shown_counts.len() as u32);
        let step = Step::Earned { since: now };
        self.peers.insert(key, Veil { shown, step });
    }

    /// It is gone: what it alone was shown is anybody's.
    pub fn on_gone(&mut self, key: PeerKey, ip: IpAddr) {
        if let Some(Step::Shown {
            piece,
            is_elsewhere: false,
            ..
        }) = self.lift(key)
        {
            self.left.retain(|(of, _)| *of != ip);
            if self.left.len() >= LEFT_MAX {
                self.left.remove(0);
            }
            self.left.push((ip, piece));
        }
    }

    /// From now on the peer may know of everything.
    pub fn open(&mut self, key: PeerKey) {
        self.lift(key);
    }

    fn lift(&mut self, key: PeerKey) -> Option<Step> {
        let veil = self.peers.remove(&key)?;
        for piece in veil.shown.iter() {
            self.shown_counts[piece.as_usize()] -= 1;
        }
        Some(veil.step)
    }

    /// True for a peer that does not know of everything.
    pub fn is_veiled(&self, key: PeerKey) -> bool {
        self.peers.contains_key(&key)
    }

    /// True when there are such peers.
    pub fn has_veiled(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Those peers.
    pub fn veiled(&self) -> impl Iterator<Item = PeerKey> + '_ {
        self.peers.keys().copied()
    }

    /// True for a piece that the peer may ask for, and be told of.
    pub fn is_shown(&self, key: PeerKey, piece: PieceIndex) -> bool {
        let veil = self.peers.get(&key);
        veil.is_none_or(|veil| veil.shown.has(piece))
    }

    /// Blocks were sent.
    pub fn on_sent(&mut self, now: Now) {
        self.moved_at = now;
    }

    /// The peer says that it has more, or with `is_first` what it came with; whoever has passed its piece on by that, the longest wait first.
    pub fn on_news(
        &mut self,
        by: PeerKey,
        is_first: bool,
        has: impl Fn(PieceIndex) -> bool,
        now: Now,
    ) -> Vec<PeerKey> {
        let mut earned = Vec::new();
        for (key, veil) in &mut self.peers {
            let Step::Shown {
                piece,
                since,
                has_it,
                is_elsewhere,
            } = &mut veil.step
            else {
                continue;
            };
            if !has(*piece) {
                continue;
            }
            match *key == by {
                true => *has_it = true,
                false => *is_elsewhere = true,
            }
            // Where others were shown it too, those may have passed it on; who comes with it has it from elsewhere.
            let is_its_own = !is_first && self.shown_counts[piece.as_usize()] == 1;
            if *is_elsewhere && (*has_it || is_its_own) {
                earned.push((*since, *key));
                veil.step = Step::Earned { since: now };
            }
        }
        earned.sort();
        earned.into_iter().map(|(_, key)| key).collect()
    }

    /// The peer wants nothing of what it was shown any more.
    pub fn on_satisfied(&mut self, key: PeerKey, now: Now) {
        let Some(veil) = self.peers.get_mut(&key) else {
            return;
        };
        if let Step::Shown {
            has_it,
            is_elsewhere,
            ..
        } = &mut veil.step
        {
            *has_it = true;
            if *is_elsewhere {
                veil.step = Step::Earned { since: now };
            }
        }
    }

    /// We lost the piece: it is as if nobody had been shown it.
    pub fn on_lost(&mut self, lost: PieceIndex, now: Now) {
        self.shown_counts[lost.as_usize()] = 0;
        for veil in self.peers.values_mut() {
            veil.shown.clear(lost);
            if matches!(veil.step, Step::Shown { piece, .. } if piece == lost) {
                veil.step = Step::Earned { since: now };
            }
        }
    }

    /// What may be shown to the peer now. `is_interested`: it wants something that it was shown. `is_alone`: nobody else
    /// is there who lacks anything.
    pub fn scope(
        &self,
        key: PeerKey,
        is_interested: bool,
        is_alone: bool,
        now: Now,
    ) -> Option<Scope> {
        match self.peers.get(&key)?.step {
            Step::Earned { .. } if is_alone => Some(Scope::Any),
            Step::Earned { since } => match now.since(since) {
                waited if waited >= ANY_AFTER => Some(Scope::Any),
                waited if waited >= SCARCE_AFTER => Some(Scope::Scarce),
                _ => Some(Scope::Fresh),
            },
            Step::Shown { has_it: true, .. } if is_alone => Some(Scope::Any),
            Step::Shown {
                has_it: false,
                since,
                ..
            } if !is_interested && now.since(since) >= UNWANTED_AFTER => Some(Scope::Fresh),
            Step::Shown { .. } => None,
        }
    }

    /// When all stands still: the peer that is shown a piece although it did not earn it, that waited longest.
    pub fn stalled(&self, now: Now) -> Option<PeerKey> {
        if now.since(self.moved_at) < STALLED_AFTER {
            return None;
        }
        let since = |veil: &Veil| match veil.step {
            Step::Earned { since } | Step::Shown { since, .. } => since,
        };
        let first = self
            .peers
            .iter()
            .min_by_key(|(key, veil)| (since(veil), **key));
        first.map(|(key, _)| *key)
    }

    /// Chooses a piece, and notes that the peer is shown it: one that it left with before, else the one that fewest have
    /// or were shown. `copies` of others.
    pub fn show(
        &mut self,
        key: PeerKey,
        ip: IpAddr,
        scope: Scope,
        choice: &Choice<'_>,
        now: Now,
    ) -> Option<PieceIndex> {
        let veil = self.peers.get(&key)?;
        let owed = self.left.iter().position(|(of, _)| *of == ip);
        let owed = owed.map(|at| self.left.remove(at).1);
        let is_possible = |piece: PieceIndex| choice.ours.has(piece) && !veil.shown.has(piece);
        let owed = owed.filter(|piece| is_possible(*piece) && (choice.copies)(*piece) == 0);
        let piece = match owed {
            Some(piece) => piece,
            None => self.rarest(veil, scope, choice)?,
        };
        let pieces = self.shown_counts.len() as u32;
        if owed.is_none() {
            self.cursor = (piece.get() + 1) % pieces;
        }
        let (has_it, copies) = ((choice.peer_has)(piece), (choice.copies)(piece));
        let veil = self.peers.get_mut(&key)?;
        veil.shown.set(piece);
        veil.step = Step::Shown {
            piece,
            since: now,
            has_it,
            is_elsewhere: copies > 0,
        };
        self.shown_counts[piece.as_usize()] += 1;
        self.moved_at = now;
        Some(piece)
    }

    /// From the cursor on: the first that nobody has or was shown, else the least of all.
    fn rarest(&self, veil: &Veil, scope: Scope, choice: &Choice<'_>) -> Option<PieceIndex> {
        let pieces = self.shown_counts.len() as u32;
        let mut best = None;
        for step in 0..pieces {
            let piece = PieceIndex::new((self.cursor + step) % pieces);
            if !choice.ours.has(piece) || veil.shown.has(piece) || (choice.peer_has)(piece) {
                continue;
            }
            let (copies, shown) = ((choice.copies)(piece), self.shown_counts[piece.as_usize()]);
            let rarity = (copies.min(1), shown, copies);
            let is_fit = match scope {
                Scope::Fresh => rarity == (0, 0, 0),
                Scope::Scarce => copies == 0,
                Scope::Any => true,
            };
            if is_fit && best.is_none_or(|(least, _)| rarity < least) {
                best = Some((rarity, piece));
            }
            if is_fit && rarity == (0, 0, 0) {
                break;
            }
        }
        best.map(|(_, piece)| piece)
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        assert!(self.left.len() <= LEFT_MAX);
        let mut counts = vec![0; self.shown_counts.len()];
        for veil in self.peers.values() {
            for piece in veil.shown.iter() {
                counts[piece.as_usize()] += 1;
            }
            if let Step::Shown { piece, .. } = veil.step {
                assert!(veil.shown.has(piece), "what it works on was shown");
            }
        }
        assert_eq!(counts, self.shown_counts, "pieces shown");
    }
}

/// What there is to choose from.
pub struct Choice<'a> {
    /// The pieces we have.
    pub ours: &'a Bitfield,
    /// What the peer has.
    pub peer_has: &'a dyn Fn(PieceIndex) -> bool,
    /// How many peers have a piece.
    pub copies: &'a dyn Fn(PieceIndex) -> u32,
}

#[cfg(test)]
mod tests;
