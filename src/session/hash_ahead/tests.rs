use super::*;
use sha1::{Digest, Sha1};
use std::io::Write;

/// Pieces over one file and zeros, as lengths and places given.
struct Sample {
    plans: VecDeque<(PieceIndex, Vec<(Place, u64)>)>,
    done: Vec<(u32, Result<PieceHash, usize>)>,
    read_bytes: u64,
}

impl Work for Sample {
    type Failure = usize;

    fn next(&mut self) -> Option<PieceIndex> {
        self.plans.front().map(|(piece, _)| *piece)
    }

    fn plan(&mut self, _: PieceIndex) -> Result<Plan, usize> {
        let (_, spans) = self.plans.pop_front().unwrap();
        match spans.as_slice() {
            [] => Err(99),
            [(Place::Zeros, _)] => Ok(Plan::Known(PieceHash::Sha1([7; 20]))),
            _ => Ok(Plan::Read(spans)),
        }
    }

    fn tree_height(&self, _: PieceIndex) -> Option<u32> {
        None
    }

    fn failure(&mut self, _: PieceIndex, span: usize, _: io::Error) -> usize {
        span
    }

    fn on_bytes(&mut self, bytes: u64) {
        self.read_bytes += bytes;
    }

    fn done(&mut self, piece: PieceIndex, hash: Result<PieceHash, usize>, _: bool) {
        self.done.push((piece.get(), hash));
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

fn sample_file(is_dropped: bool) -> (AheadFile, Vec<u8>) {
    let content: Vec<u8> = (0..3_500_000_u32)
        .map(|at| ((at * 31) >> 7) as u8)
        .collect();
    let mut file = tempfile::tempfile_in(".").unwrap();
    file.write_all(&content).unwrap();
    if is_dropped {
        file.sync_all().unwrap();
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
    }
    (AheadFile::new(file.into()), content)
}

fn hashed(plans: Vec<Vec<(Place, u64)>>) -> Sample {
    let plans = (0..).map(PieceIndex::new).zip(plans).collect();
    let mut sample = Sample {
        plans,
        done: Vec::new(),
        read_bytes: 0,
    };
    run(&mut sample);
    sample
}

#[test]
fn pieces_small_and_large_hash_as_the_bytes_do() {
    for (is_dropped, piece_bytes) in [
        (true, 3_000),
        (false, 3_000),
        (true, 1_700_000),
        (false, 16_384),
    ] {
        let (file, content) = sample_file(is_dropped);
        let chunks: Vec<&[u8]> = content.chunks(piece_bytes).collect();
        let plan = |at: usize, length: u64| {
            vec![(Place::At(file.clone(), (at * piece_bytes) as u64), length)]
        };
        let plans = chunks.iter().enumerate();
        let sample = hashed(
            plans
                .map(|(at, chunk)| plan(at, chunk.len() as u64))
                .collect(),
        );
        assert_eq!(sample.read_bytes, content.len() as u64);
        assert_eq!(sample.done.len(), chunks.len());
        for (piece, hash) in sample.done {
            let expected: [u8; 20] = Sha1::digest(chunks[piece as usize]).into();
            assert_eq!(
                hash,
                Ok(PieceHash::Sha1(expected)),
                "piece {piece} of {piece_bytes}"
            );
        }
    }
}

#[test]
fn spans_of_several_files_and_zeros_come_in_order() {
    let (one, content) = sample_file(true);
    let (other, _) = sample_file(false);
    let plan = vec![
        (Place::At(one, 5), 1_500_000),
        (Place::Zeros, 1_200_000),
        (Place::Zeros, 0),
        (Place::At(other, 3_000_001), 70_000),
    ];
    let sample = hashed(vec![plan, vec![(Place::Zeros, 5)]]);
    let mut sha1 = Sha1::new();
    sha1.update(&content[5..1_500_005]);
    sha1.update(vec![0; 1_200_000]);
    sha1.update(&content[3_000_001..3_070_001]);
    let expected: [u8; 20] = sha1.finalize().into();
    let mut done = sample.done;
    done.sort_by_key(|(piece, _)| *piece);
    let [expected, known] = [expected, [7; 20]].map(|hash| Ok(PieceHash::Sha1(hash)));
    assert_eq!(done, [(0, expected), (1, known)]);
}

#[test]
fn what_ends_early_fails_its_pieces_and_no_others() {
    for is_dropped in [true, false] {
        let (file, content) = sample_file(is_dropped);
        let length = content.len() as u64;
        let at = |offset: u64| (Place::At(file.clone(), offset), 50_000);
        let sample = hashed(vec![
            vec![at(length - 100_000)],
            vec![at(length - 50_000)],
            vec![(Place::Zeros, 9), at(length)],
            vec![],
            vec![at(0)],
        ]);
        let mut done = sample.done;
        done.sort_by_key(|(piece, _)| *piece);
        let outcomes: Vec<Option<usize>> = done.into_iter().map(|(_, hash)| hash.err()).collect();
        assert_eq!(
            outcomes,
            [None, None, Some(1), Some(99), None],
            "{is_dropped}"
        );
    }
}
