//! Resume files of other programs: read or refused, and never worth more pieces than the torrent has.

use gyre::base::{Geometry, PieceIndex};
use gyre::wire::foreign::{
    Foreign, LABEL_CHARS_MAX, LABELS_MAX, PATH_BYTES_MAX, Place, parse_qbittorrent, parse_rtorrent,
    parse_transmission,
};

/// Torrents that the file may be held against: of one piece, of pieces with blocks of their own, and of such without.
const SHAPES: [(u64, u64); 3] = [(1, 16_384), (100_000, 32_768), (70_001, 20_000)];

/// The file, then which program it is of: what begins as bencode is damaged as such.
pub fn foreign(data: &[u8]) {
    let [file @ .., which] = data else { return };
    let parsed = match which % 4 {
        0 => parse_qbittorrent(file),
        1 => parse_transmission(file),
        2 => parse_rtorrent(Some(file), None, false),
        _ => parse_rtorrent(None, Some(file), true),
    };
    if let Ok(foreign) = parsed {
        check(&foreign, file.len());
    }
}

fn check(foreign: &Foreign, file_bytes: usize) {
    assert!(foreign.labels.len() <= LABELS_MAX);
    for label in &foreign.labels {
        assert!((1..=LABEL_CHARS_MAX).contains(&label.chars().count()));
    }
    if let Place::Beside(path) | Place::Root(path) = &foreign.place {
        assert!((1..=PATH_BYTES_MAX).contains(&path.len()));
    }
    let lists = [
        foreign.looks.len(),
        foreign.uncertain.len(),
        foreign.unwanted.len(),
        foreign.renamed.len(),
        foreign.more_trackers.len(),
    ];
    assert!(
        lists.iter().all(|length| *length <= file_bytes),
        "{lists:?}"
    );
    assert!(
        foreign
            .seed_ratio
            .is_none_or(|ratio| ratio.is_finite() && ratio > 0.0)
    );
    for (total_bytes, piece_length) in SHAPES {
        let geometry = Geometry::new(total_bytes, piece_length).unwrap();
        let Ok(pieces) = foreign.have.pieces(&geometry) else {
            continue;
        };
        assert_eq!(pieces.have.len(), geometry.piece_count());
        assert_eq!(pieces.uncertain.len(), geometry.piece_count());
        let both = |piece: &PieceIndex| pieces.have.has(*piece) && pieces.uncertain.has(*piece);
        assert_eq!(geometry.pieces().find(both), None, "sure and not sure");
    }
}
