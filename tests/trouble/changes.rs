//! Files that others cut, rewrite, replace or remove under a seeder (HOSTILE.md L3).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::support::fake_peer::{Answer, BLOCK, Content, FakeLeecher};
use super::support::{Sample, machine};
use super::{Gyre, seed, start};

/// A file is looked at once a second; the rest is the way of a block that was being read.
const NOTICED_AFTER: Duration = Duration::from_millis(1_300);
const PIECES: u32 = 48;
const PIECE: u32 = 1 << 20;
/// These are spoilt by every change but a removal.
const SPOILT: std::ops::Range<u32> = 30..40;

/// Asks for blocks of spoilt and of whole pieces all the time, through a change, and looks at what comes.
fn served_through(last_look: Duration, engine: &str, change: impl FnOnce(&Path, &Content)) {
    let sample = Sample::file(PIECES as usize * PIECE as usize, PIECE, &[]);
    let content = Content::of(&sample);
    let data = sample.dir("copy");
    let path = data.join("sample.bin");
    machine::copy(&sample.content, &path);
    let mut seeder = start(seed(
        &sample,
        &data,
        &["--no-trackers", "--send-engine", engine],
    ));
    let addr = seeder.listening();
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let mut change = Some(change);
    let mut changed_at = None;
    let (mut leecher, mut round, mut good) = (None, 0, 0);
    let started = Instant::now();
    while changed_at.is_none_or(|at: Instant| at.elapsed() < last_look) {
        if started.elapsed() > Duration::from_millis(1_500)
            && let Some(change) = change.take()
        {
            change(&path, &content);
            changed_at = Some(Instant::now());
        }
        round += 1;
        let piece = match round % 2 {
            0 => SPOILT.start + round / 2 % SPOILT.len() as u32,
            _ => round % PIECES,
        };
        let begin = round % (PIECE / BLOCK) * BLOCK;
        let peer = leecher.get_or_insert_with(|| {
            let mut peer = FakeLeecher::connect(addr, &content).expect("it listens");
            assert!(peer.unchoked(Duration::from_secs(20)));
            peer
        });
        match peer.fetch(piece, begin, BLOCK, Duration::from_secs(5)) {
            Answer::Block(block) if block == content.block(piece, begin, BLOCK).unwrap() => {
                good += 1;
            }
            Answer::Block(_) => {
                let since = changed_at.map(|at| at.elapsed()).unwrap_or_default();
                assert!(since <= NOTICED_AFTER, "corrupt {since:?} after the change");
            }
            Answer::Rejected => {}
            Answer::Closed => leecher = None,
            Answer::Nothing => panic!("no answer to a request for piece {piece}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(good > 200, "{good} blocks came");
    let warning = seeder.event("warning");
    assert!(
        warning["message"].as_str().unwrap().contains("sample.bin"),
        "{warning}"
    );
    // What is not as it was is no longer offered, what is whole still is.
    let mut peer = FakeLeecher::connect(addr, &content).unwrap();
    peer.listen(Duration::from_millis(300));
    assert!(
        SPOILT
            .into_iter()
            .all(|piece| !peer.offered().contains(&piece))
    );
    let expected = whole_pieces(&path, &content);
    assert_eq!(
        peer.offered().len(),
        expected,
        "all that is whole is offered"
    );
    assert!(seeder.is_running());
}

fn whole_pieces(path: &Path, content: &Content) -> usize {
    let now = fs::read(path).unwrap_or_default();
    let is_whole = |piece: &u32| {
        let range = content.piece_range(*piece);
        now.get(range.clone()) == Some(&content.bytes[range])
    };
    (0..content.piece_count()).filter(is_whole).count()
}

fn spoil(file: &File, content: &Content) {
    for piece in SPOILT {
        let start = content.piece_range(piece).start as u64;
        file.write_all_at(&vec![0x55; PIECE as usize], start)
            .unwrap();
    }
}

#[test]
fn a_file_rewritten_under_a_seeder_is_not_served_wrong() {
    served_through(Duration::from_millis(2_600), "auto", |path, content| {
        spoil(&File::options().write(true).open(path).unwrap(), content);
    });
}

#[test]
fn a_file_cut_under_a_seeder_is_not_served_wrong() {
    served_through(Duration::from_millis(2_600), "mapped", |path, content| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(content.piece_range(SPOILT.start).start as u64)
            .unwrap();
    });
}

#[test]
fn a_file_cut_and_grown_again_under_a_seeder_is_not_served_wrong() {
    served_through(Duration::from_millis(2_600), "auto", |path, content| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(content.piece_range(SPOILT.start).start as u64)
            .unwrap();
        file.set_len(content.bytes.len() as u64).unwrap();
    });
}

#[test]
fn a_file_replaced_under_a_seeder_is_not_served_wrong() {
    served_through(Duration::from_millis(2_600), "copy", |path, content| {
        let other = path.with_extension("new");
        fs::copy(path, &other).unwrap();
        spoil(&File::options().write(true).open(&other).unwrap(), content);
        fs::rename(other, path).unwrap();
    });
}

#[test]
fn a_file_removed_under_a_seeder_is_offered_no_longer() {
    served_through(Duration::from_millis(2_600), "auto", |path, _| {
        fs::remove_file(path).unwrap()
    });
}

/// Asks for the first block of the piece, which must be right if it comes.
fn comes(peer: &mut FakeLeecher, content: &Content, piece: u32) -> Answer {
    let answer = peer.fetch(piece, 0, BLOCK, Duration::from_secs(5));
    if let Answer::Block(block) = &answer {
        assert_eq!(block, content.block(piece, 0, BLOCK).unwrap());
    }
    answer
}

#[test]
fn data_that_is_lost_and_comes_back_is_offered_again_and_told_once_a_change() {
    let files = [("a", 4 << 20), ("b", (4 << 20) + 7), ("c", 4 << 20)];
    let sample = Sample::tree(&files, 1 << 18, &[]);
    let content = Content::of(&sample);
    let data = sample.dir("copy");
    machine::copy(&sample.content, &data.join("sample"));
    let (path, away) = (data.join("sample/b"), sample.folder.path().join("away"));
    let mut seeder = start(seed(
        &sample,
        &data,
        &["--no-trackers", "--upload-slots", "20"],
    ));
    let addr = seeder.listening();
    let all = content.piece_count();
    seeder.wait_for("seeding", |event| event["pieces_have"] == all);
    let warnings = |seeder: &Gyre| {
        let seen = seeder.seen().iter();
        seen.filter(|event| event["event"] == "warning").count()
    };
    let connect = || {
        let mut peer = FakeLeecher::connect(addr, &content).expect("it listens");
        assert!(peer.unchoked(Duration::from_secs(20)));
        peer
    };
    // A rename back; then another copy that grows for a while, as when it is restored from elsewhere.
    for round in 1..=2 {
        fs::rename(&path, &away).unwrap();
        let mut peer = connect();
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            if comes(&mut peer, &content, 20 + round) == Answer::Closed {
                peer = connect();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let without = u64::from(all) - 17;
        seeder.wait_for("the rest", |event| event["pieces_have"] == without);
        let rest = comes(&mut peer, &content, 3);
        assert!(matches!(rest, Answer::Block(_)), "{rest:?}");
        if round == 1 {
            fs::rename(&away, &path).unwrap();
        } else {
            let bytes = fs::read(&away).unwrap();
            let copy = File::create(&path).unwrap();
            for (at, part) in bytes.chunks(1 << 20).enumerate() {
                copy.write_all_at(part, (at as u64) << 20).unwrap();
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        let back = Instant::now();
        seeder.wait_for("all", |event| event["pieces_have"] == all);
        let waited = back.elapsed();
        assert!(waited < Duration::from_secs(6), "{waited:?}");
        let again = comes(&mut connect(), &content, 20 + round);
        assert!(matches!(again, Answer::Block(_)), "{again:?}");
        assert_eq!(warnings(&seeder), round as usize);
    }
}
