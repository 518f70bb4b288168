use super::*;
use crate::base::Slots;

const START: Now = Now::from_secs(100);

/// Peers and what they have, a line each, as `x.x`.
struct Swarm {
    of: SuperSeed,
    keys: Vec<PeerKey>,
    have: Vec<Vec<bool>>,
    now: Now,
}

fn swarm(lines: &[&str]) -> Swarm {
    let pieces = lines[0].len() as u32;
    let mut slots = Slots::new();
    let mut of = SuperSeed::new(pieces, 0, START);
    let keys: Vec<_> = lines.iter().map(|_| PeerKey(slots.insert(()))).collect();
    keys.iter().for_each(|key| of.on_peer(*key, START));
    let have = lines
        .iter()
        .map(|line| line.chars().map(|c| c == 'x').collect());
    Swarm {
        of,
        keys,
        have: have.collect(),
        now: START,
    }
}

impl Swarm {
    fn ip(peer: usize) -> IpAddr {
        [1, 0, 0, peer as u8].into()
    }

    fn show(&mut self, peer: usize, scope: Scope) -> Option<u32> {
        let have = self.have.clone();
        let copies =
            |piece: PieceIndex| have.iter().filter(|line| line[piece.as_usize()]).count() as u32;
        let ours = Bitfield::full(have[0].len() as u32);
        let choice = Choice {
            ours: &ours,
            peer_has: &|piece| have[peer][piece.as_usize()],
            copies: &copies,
        };
        let (key, ip) = (self.keys[peer], Swarm::ip(peer));
        let shown = self.of.show(key, ip, scope, &choice, self.now);
        self.of.check();
        shown.map(PieceIndex::get)
    }

    /// Who earned something by that.
    fn has(&mut self, peer: usize, piece: u32) -> Vec<usize> {
        self.have[peer][piece as usize] = true;
        let is_it = |at: PieceIndex| at.get() == piece;
        let earned = self.of.on_news(self.keys[peer], false, is_it, self.now);
        self.of.check();
        let place = |key| self.keys.iter().position(|of| *of == key).unwrap();
        earned.into_iter().map(place).collect()
    }

    fn scope(&self, peer: usize, is_alone: bool) -> Option<Scope> {
        self.of.scope(self.keys[peer], true, is_alone, self.now)
    }
}

#[test]
fn each_peer_is_shown_a_piece_that_nobody_else_was() {
    let mut s = swarm(&["....", "...x"]);
    assert_eq!(s.show(0, Scope::Fresh), Some(0));
    assert_eq!(s.show(1, Scope::Fresh), Some(1));
    let (first, zero) = (s.keys[0], PieceIndex::new(0));
    assert!(s.of.is_shown(first, zero) && !s.of.is_shown(s.keys[1], zero));
}

#[test]
fn the_next_piece_is_earned_when_the_peer_and_another_have_the_last_one() {
    let mut s = swarm(&["....", "...."]);
    s.show(0, Scope::Fresh);
    assert_eq!(s.scope(0, false), None);
    assert!(s.has(0, 0).is_empty(), "it may keep it for itself");
    assert_eq!(s.scope(0, false), None);
    assert_eq!(s.has(1, 0), [0]);
    assert_eq!(s.scope(0, false), Some(Scope::Fresh));
    assert_eq!(s.show(0, Scope::Fresh), Some(1));
}

#[test]
fn a_peer_that_says_nothing_of_its_piece_earns_by_what_others_say() {
    let mut s = swarm(&["....", "...."]);
    s.show(0, Scope::Fresh);
    assert_eq!(s.has(1, 0), [0], "nobody else could have it from us");
    let mut s = swarm(&[".", ".", "."]);
    s.show(0, Scope::Fresh);
    s.show(1, Scope::Scarce);
    assert!(s.has(2, 0).is_empty(), "either may have passed it on");
    s.of.on_satisfied(s.keys[1], s.now);
    assert_eq!(s.scope(0, false), None);
    assert_eq!(s.scope(1, false), Some(Scope::Fresh));
}

#[test]
fn who_passes_nothing_on_is_shown_nothing_while_others_move() {
    let mut s = swarm(&["......", "......", "......"]);
    s.show(0, Scope::Fresh);
    s.has(0, 0);
    for second in 0..60 {
        s.now = START + Duration::from_secs(second);
        s.of.on_sent(s.now);
        assert_eq!(s.scope(0, false), None);
        assert_eq!(s.of.stalled(s.now), None);
    }
    s.now = s.now + STALLED_AFTER;
    assert_eq!(s.of.stalled(s.now), Some(s.keys[0]));
    assert_eq!(s.show(0, Scope::Any), Some(1));
    assert_eq!(s.of.stalled(s.now), None, "one at a time");
}

#[test]
fn a_peer_alone_is_shown_one_piece_after_the_other() {
    let mut s = swarm(&["..."]);
    for piece in 0..3 {
        assert_eq!(s.scope(0, true), Some(Scope::Any));
        assert_eq!(s.show(0, Scope::Any), Some(piece));
        assert_eq!(s.scope(0, true), None, "it has not got it yet");
        s.has(0, piece);
    }
    assert_eq!(s.show(0, Scope::Any), None);
}

#[test]
fn what_was_shown_to_others_comes_after_what_was_not_and_with_patience() {
    let mut s = swarm(&["..", ".."]);
    assert_eq!(s.show(0, Scope::Fresh), Some(0));
    assert_eq!(s.show(1, Scope::Fresh), Some(1));
    s.has(0, 0);
    assert_eq!(s.has(1, 0), [0]);
    assert_eq!(
        s.show(0, Scope::Fresh),
        None,
        "1 is on its way to the other"
    );
    s.now = s.now + SCARCE_AFTER;
    assert_eq!(s.scope(0, false), Some(Scope::Scarce));
    assert_eq!(s.show(0, Scope::Scarce), Some(1));
}

#[test]
fn a_peer_that_does_not_want_its_piece_is_shown_another() {
    let mut s = swarm(&["...", "..."]);
    s.show(0, Scope::Fresh);
    let uninterested = |s: &Swarm| s.of.scope(s.keys[0], false, false, s.now);
    assert_eq!(uninterested(&s), None);
    s.now = s.now + UNWANTED_AFTER;
    assert_eq!(s.scope(0, false), None, "one that wants it waits");
    assert_eq!(uninterested(&s), Some(Scope::Fresh));
}

#[test]
fn who_leaves_and_comes_back_is_shown_the_same_piece() {
    let mut s = swarm(&["....", "...."]);
    assert_eq!(s.show(0, Scope::Fresh), Some(0));
    s.has(0, 0);
    s.of.on_gone(s.keys[0], Swarm::ip(0));
    s.have[0] = vec![false; 4];
    s.of.on_peer(s.keys[0], s.now);
    assert_eq!(s.show(0, Scope::Fresh), Some(0));
    assert_eq!(s.show(1, Scope::Fresh), Some(1));
}

#[test]
fn a_piece_that_was_lost_was_shown_to_nobody() {
    let mut s = swarm(&["..", ".."]);
    s.show(0, Scope::Fresh);
    s.of.on_lost(PieceIndex::new(0), s.now);
    s.of.check();
    assert!(!s.of.is_shown(s.keys[0], PieceIndex::new(0)));
    assert_eq!(s.scope(0, false), Some(Scope::Fresh));
}
