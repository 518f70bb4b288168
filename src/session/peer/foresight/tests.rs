use super::*;
use crate::base::{BLOCK_BYTES, Geometry, PieceIndex};
use crate::uring::buffers::Pool;

/// Where the blocks of one piece go, and what is received.
struct World {
    geometry: Geometry,
    pool: Pool,
    places: Segment,
}

impl World {
    /// A piece of three whole blocks and one of 1,000 bytes.
    fn new() -> World {
        let pool = Pool::plain(1 << 20).unwrap();
        let mut places = pool.alloc(256 * 1024).unwrap();
        places.as_mut_slice().fill(0);
        let bytes = 3 * u64::from(BLOCK_BYTES) + 1_000;
        World {
            geometry: Geometry::new(bytes, 65_536).unwrap(),
            pool,
            places,
        }
    }

    fn block(&self, number: u32) -> BlockRef {
        self.geometry.block(PieceIndex::new(0), number).unwrap()
    }

    /// The message that brings a block, whose bytes all are its number.
    fn message(&self, number: u32) -> Vec<u8> {
        let block = self.block(number);
        let payload = vec![number as u8; block.length() as usize];
        [&header(block)[..], &payload].concat()
    }

    fn land(&mut self, block: BlockRef, offset: u32) -> Landing {
        let range = (block.begin() + offset) as usize..block.end() as usize;
        self.places.land(range).unwrap()
    }

    /// Receives `stream` where the rest of block 0 from `begun` on, if any, and then blocks 1 to 3 are foreseen. Returns
    /// what agreed, and how much of what came follows that.
    fn receive(&mut self, begun: Option<u32>, stream: &[u8]) -> (Agreed, usize) {
        let rest = begun.map(|offset| self.land(self.block(0), offset));
        let blocks = [1, 2, 3].map(|number| {
            let block = self.block(number);
            (block, self.land(block, 0))
        });
        let foresight = Foresight {
            rest,
            blocks: blocks.into(),
            spare_bytes: 500,
        };
        let (layout, mut scatter) = foresight.scatter(self.pool.alloc(16_384).unwrap());
        let bytes = stream.len().min(scatter.len());
        let mut left = &stream[..bytes];
        scatter.change(bytes, |part| {
            let (now, later) = left.split_at(part.len());
            part.copy_from_slice(now);
            left = later;
        });
        let seen: Vec<u8> = scatter.slices(bytes).flatten().copied().collect();
        assert!(seen == stream[..bytes], "parts are in the stream's order");
        let agreed = layout.agreed(scatter.slices(bytes));
        (agreed, bytes - agreed.bytes)
    }

    fn place_is_filled(&self, number: u32) -> bool {
        let block = self.block(number);
        let range = block.begin() as usize..block.end() as usize;
        self.places.as_slice()[range]
            .iter()
            .all(|byte| u32::from(*byte) == number)
    }
}

#[test]
fn what_comes_in_order_agrees_wherever_it_ends_and_lies_in_its_place() {
    let stream = {
        let world = World::new();
        [1, 2, 3].map(|number| world.message(number)).concat()
    };
    let cuts = (1..=40).chain(16_380..16_420).chain(32_780..32_830);
    for cut in cuts.chain(stream.len() - 20..=stream.len()) {
        let mut world = World::new();
        let (agreed, rest) = world.receive(None, &stream[..cut]);
        assert_eq!((agreed.bytes, rest), (cut, 0));
        assert!(!agreed.is_broken, "cut at {cut}");
        let ends = [16_397, 2 * 16_397, 3 * 16_397];
        for (number, end) in (1..).zip(ends) {
            assert_eq!(
                world.place_is_filled(number),
                cut >= end.min(stream.len()),
                "{number}"
            );
        }
    }
}

#[test]
fn the_rest_of_a_block_agrees_whatever_follows() {
    for following in [0, 1, 3] {
        let mut world = World::new();
        let begun = BLOCK_BYTES - 7;
        let mut stream = vec![0; 7];
        if following > 0 {
            stream.extend(world.message(following));
        }
        let (agreed, rest) = world.receive(Some(begun), &stream);
        assert_eq!(agreed.is_broken, following == 3);
        let is_next = following == 1;
        assert_eq!(agreed.bytes, if is_next { 7 + 16_397 } else { 7 });
        assert_eq!(agreed.bytes + rest, stream.len());
    }
}

#[test]
fn nothing_behind_another_message_agrees() {
    let world = World::new();
    let [one, two, three] = [1, 2, 3].map(|number| world.message(number));
    let have = [0, 0, 0, 5, 4, 0, 0, 0, 1];
    let keep_alive = [0; 4];
    let reject = [
        &[0, 0, 0, 13, 16][..],
        &one[5..13],
        &16_384_u32.to_be_bytes(),
    ]
    .concat();
    let foreign = [&have[..], &keep_alive, &reject, &three, &two];
    for other in foreign {
        for before in [0, 1, 2] {
            // Twice the second block: a duplicate is no better than another one.
            let order = [&one, &two, &two];
            let head: Vec<u8> = order[..before].iter().flat_map(|m| m.to_vec()).collect();
            if before == 1 && other == two {
                continue;
            }
            if before == 2 && other == three {
                continue;
            }
            let stream = [&head[..], other, &three].concat();
            let mut world = World::new();
            let (agreed, rest) = world.receive(None, &stream);
            assert_eq!(agreed.bytes, head.len(), "{before} before");
            assert!(agreed.is_broken && rest > 0);
        }
    }
}

#[test]
fn every_byte_of_a_header_counts() {
    let whole = {
        let world = World::new();
        [world.message(1), world.message(2)].concat()
    };
    for at in 0..PIECE_HEADER_BYTES {
        let mut stream = whole.clone();
        stream[16_397 + at] ^= 1;
        // As soon as the wrong byte is there.
        for end in 16_397 + at + 1..16_397 + 14 {
            let (agreed, _) = World::new().receive(None, &stream[..end]);
            assert!(agreed.is_broken, "byte {at}, received up to {end}");
            assert_eq!(agreed.bytes, 16_397);
        }
        let (agreed, _) = World::new().receive(None, &stream[..16_397 + at]);
        assert!(!agreed.is_broken);
    }
}

#[test]
fn what_follows_all_that_is_foreseen_is_not_broken() {
    let mut world = World::new();
    let all = [1, 2, 3].map(|number| world.message(number)).concat();
    let stream = [&all[..], &[0; 4], &[0; 4]].concat();
    let (agreed, rest) = world.receive(None, &stream);
    assert_eq!((agreed.bytes, rest), (all.len(), 8));
    assert!(!agreed.is_broken);
}
