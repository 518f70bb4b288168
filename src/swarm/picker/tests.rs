use super::*;

/// `avail` gives the copies of each openable piece, `-` one that is not openable.
fn picker(avail: &str) -> Picker {
    let avail: Vec<&str> = avail.split(' ').collect();
    let geometry = Geometry::new(avail.len() as u64, 1).unwrap();
    let mut picker = Picker::new(&geometry, 1);
    for (piece, copies) in avail.iter().enumerate() {
        let piece = PieceIndex::new(piece as u32);
        if let Ok(copies) = copies.parse::<u16>() {
            picker.set_openable(piece, true);
            for _ in 0..copies {
                picker.on_copy_added(piece);
            }
        }
    }
    picker.check();
    picker
}

/// `x` marks the pieces a peer has.
fn has(pieces: &str) -> PeerHave {
    let pieces: Vec<&str> = pieces.split(' ').collect();
    let mut bits = Bitfield::new(pieces.len() as u32);
    for (piece, _) in pieces.iter().enumerate().filter(|(_, mark)| **mark == "x") {
        bits.set(PieceIndex::new(piece as u32));
    }
    PeerHave::Some(bits)
}

fn piece(index: u32) -> Option<PieceIndex> {
    Some(PieceIndex::new(index))
}

#[test]
fn the_rarest_openable_piece_the_peer_has_comes_first() {
    let mut p = picker("3 1 2 - 1");
    assert_eq!(p.pick(&has("x . x x ."), PickOrder::Rarest), piece(2));
    assert_eq!(p.pick(&has(". . . x ."), PickOrder::Rarest), None);
    p.on_peer_has(&has(". . x . ."));
    p.on_peer_has(&has(". . x . ."));
    p.check();
    assert_eq!(p.pick(&has("x . x . ."), PickOrder::Rarest), piece(0));
    p.on_peer_gone(&has(". . x . ."));
    p.on_peer_gone(&has(". . x . ."));
    p.check();
    assert_eq!(p.pick(&has("x . x . ."), PickOrder::Rarest), piece(2));
}

#[test]
fn ties_are_broken_at_random_by_the_seed() {
    let geometry = Geometry::new(64, 1).unwrap();
    let first = |seed| {
        let mut p = Picker::new(&geometry, seed);
        geometry
            .pieces()
            .for_each(|piece| p.set_openable(piece, true));
        p.pick(&PeerHave::All, PickOrder::Rarest)
    };
    assert_eq!(first(5), first(5));
    assert!((0..8).any(|seed| first(seed) != first(5)));
}

#[test]
fn sequential_takes_the_lowest_and_follows_what_comes_back() {
    let mut p = picker("- 5 0 1");
    assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(1));
    p.set_openable(PieceIndex::new(1), false);
    assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(2));
    p.set_openable(PieceIndex::new(0), true);
    assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(0));
    p.check();
}

/// `h` marks pieces wanted first, `l` those wanted last.
fn levels(marks: &str) -> Option<Vec<Level>> {
    let level = |mark: &str| match mark {
        "h" => Level::First,
        "l" => Level::Last,
        _ => Level::Usual,
    };
    Some(marks.split(' ').map(level).collect())
}

#[test]
fn pieces_wanted_first_come_before_rarer_ones_and_those_wanted_last_behind_all() {
    let mut p = picker("1 9 0 5 2");
    p.set_levels(levels(". h l h ."));
    p.check();
    let mut order = Vec::new();
    while let Some(piece) = p.pick(&PeerHave::All, PickOrder::Rarest) {
        p.set_openable(piece, false);
        p.check();
        order.push(piece.get());
    }
    assert_eq!(order, [3, 1, 0, 4, 2]);
}

#[test]
fn a_peer_without_pieces_wanted_first_is_asked_for_others() {
    for order in [PickOrder::Rarest, PickOrder::Random, PickOrder::Sequential] {
        let mut p = picker("1 1 1 1");
        p.set_levels(levels("h . l l"));
        assert_eq!(p.pick(&has("x x x x"), order), piece(0), "{order:?}");
        assert_eq!(p.pick(&has(". x x x"), order), piece(1), "{order:?}");
        assert_eq!(p.pick(&has(". . . x"), order), piece(3), "{order:?}");
    }
}

#[test]
fn levels_may_change_and_go_and_nothing_is_lost_by_it() {
    let mut p = picker("2 1 - 0");
    p.set_levels(levels("h . h l"));
    assert_eq!(p.openable_count(), 3);
    assert_eq!(p.reachable_count(), 2);
    assert!(p.is_of_first_level(PieceIndex::new(0)));
    assert!(!p.is_of_first_level(PieceIndex::new(1)));
    p.set_openable(PieceIndex::new(2), true);
    p.on_copy_added(PieceIndex::new(3));
    p.check();
    p.set_levels(levels("l l l h"));
    p.check();
    assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(3));
    p.set_levels(None);
    p.check();
    assert_eq!(p.openable_count(), 4);
    assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(0));
    assert!(p.is_of_first_level(PieceIndex::new(1)));
}

#[test]
fn a_web_seed_begins_at_the_longest_stretch_of_what_is_wanted_first() {
    let mut p = picker("0 0 0 0 0 0");
    p.set_levels(levels(". . . . h h"));
    assert_eq!(
        p.longest_stretch(&PeerHave::All),
        Some((PieceIndex::new(4), 2))
    );
    assert_eq!(
        p.longest_stretch(&has("x x x . . .")),
        Some((PieceIndex::new(0), 3))
    );
}

#[test]
fn a_peer_with_one_rare_match_among_many_is_found_after_the_walk() {
    let geometry = Geometry::new(100_003, 1).unwrap();
    let mut p = Picker::new(&geometry, 9);
    geometry
        .pieces()
        .for_each(|piece| p.set_openable(piece, true));
    for index in [0, 63, 64, 50_000, 100_002] {
        let mut bits = Bitfield::new(100_003);
        bits.set(PieceIndex::new(index));
        let have = PeerHave::Some(bits);
        assert_eq!(p.pick(&have, PickOrder::Rarest), piece(index));
        assert_eq!(p.pick(&have, PickOrder::Random), piece(index));
    }
}

#[test]
fn nothing_openable_picks_nothing() {
    let mut p = picker("- - -");
    for order in [PickOrder::Rarest, PickOrder::Random, PickOrder::Sequential] {
        assert_eq!(p.pick(&PeerHave::All, order), None);
        assert_eq!(p.pick(&PeerHave::None, order), None);
    }
}
