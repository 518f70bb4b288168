//! The disk side against one flat vector of bytes: random layouts, orders, spills, bad blocks and restarts.

mod disk_world;

use std::rc::Rc;

use disk_world::{Spec, World, on_ring, read, receive};
use gyre::base::{Bitfield, BlockRef, PieceIndex, Rng};
use gyre::session::disk::{DiskHub, DiskTorrent, Preallocate};
use gyre::session::resume_store::observe;
use gyre::storage::resume::{Reason, Record, judge};
use gyre::wire::merkle;
use proptest::prelude::*;

/// One torrent's life under test.
struct Life<'a> {
    world: &'a mut World,
    hub: Rc<DiskHub>,
    torrent: Option<Rc<DiskTorrent>>,
    have: Bitfield,
    record: Option<Record>,
    rng: Rng,
}

impl Life<'_> {
    fn torrent(&self) -> Rc<DiskTorrent> {
        Rc::clone(self.torrent.as_ref().unwrap())
    }

    fn chance(&mut self, of: u64) -> bool {
        self.rng.below(of) == 0
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.rng.below(end as u64 + 1) as usize;
            items.swap(end, other);
        }
    }

    async fn start(&mut self) {
        let config = self.world.config(true);
        self.torrent = Some(DiskTorrent::open(&self.hub, config).await.unwrap());
    }

    /// Blocks in any order, copied or received in place, some of them while another receive is to write to their place;
    /// streamed pieces spill whenever chance says so.
    async fn fetch(&mut self, piece: PieceIndex) {
        let torrent = self.torrent();
        let mut blocks = self.world.blocks(piece);
        self.shuffle(&mut blocks);
        let is_streamed = self.chance(2);
        // Spoiled padding does no harm: it is not stored.
        let spoiled = self.chance(6).then(|| blocks[0]);
        let spoiled = spoiled.filter(|block| !self.world.begins_with_padding(*block));
        let mut flushes = Vec::new();
        let mut rivals = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            if self.chance(4) {
                let later = at as u64 + self.rng.below((blocks.len() - at) as u64);
                rivals.extend(torrent.land(blocks[later as usize], 0));
            }
            let mut bytes = self.world.bytes_of(*block).to_vec();
            if Some(*block) == spoiled {
                bytes[0] ^= 1;
            }
            // Half of it first, so that a spill meets a block that is still arriving.
            let middle = bytes.len() / 2;
            match self.chance(2).then(|| torrent.land(*block, 0)).flatten() {
                Some(mut place) => {
                    place.as_mut_slice()[..middle].copy_from_slice(&bytes[..middle]);
                    torrent.copy_in(*block, 0, &place.as_slice()[..middle]);
                }
                None => torrent.copy_in(*block, 0, &bytes[..middle]),
            }
            let rest = self.chance(2).then(|| torrent.land(*block, middle as u32));
            if is_streamed && self.chance(3) {
                let segment = block.begin() / gyre::base::SEGMENT_BYTES;
                flushes.push(gyre::uring::ring::spawn(
                    torrent.flush_segment(piece, segment),
                ));
                if self.chance(2) {
                    flushes.pop().unwrap().await.unwrap().unwrap();
                }
            }
            match rest.flatten() {
                Some(mut rest) => {
                    rest.as_mut_slice().copy_from_slice(&bytes[middle..]);
                    torrent.copy_in(*block, middle as u32, rest.as_slice());
                }
                None => torrent.copy_in(*block, middle as u32, &bytes[middle..]),
            }
            torrent.block_done(*block);
            for rival in &mut rivals {
                rival.as_mut_slice().fill(0x55);
            }
        }
        let is_good = torrent.hash_piece(piece).await.unwrap();
        for flush in flushes {
            flush.await.unwrap().unwrap();
        }
        assert_eq!(is_good, spoiled.is_none(), "{piece:?}");
        if is_good {
            torrent.write_piece(piece).await.unwrap();
            self.have.set(piece);
            return;
        }
        if self.chance(2) {
            return self.fetch_bad_blocks(piece).await;
        }
        let bad = torrent.digest_blocks(piece);
        torrent.discard(piece);
        let bad = bad.await.unwrap();
        for block in self.world.blocks(piece) {
            receive(&torrent, block, self.world.bytes_of(block));
        }
        let good = torrent.digest_blocks(piece).await.unwrap();
        let differing: Vec<usize> = (0..good.len()).filter(|at| good[*at] != bad[*at]).collect();
        let at = spoiled.unwrap().begin() / gyre::base::BLOCK_BYTES;
        assert_eq!(differing, [at as usize], "the spoiled block is found");
        assert!(torrent.hash_piece(piece).await.unwrap());
        torrent.write_piece(piece).await.unwrap();
        self.have.set(piece);
    }

    /// The bad blocks alone come again: those that are not what their leaves say.
    async fn fetch_bad_blocks(&mut self, piece: PieceIndex) {
        let torrent = self.torrent();
        let is_spilled = self.chance(2);
        let leaves = torrent.hash_leaves(piece).await.unwrap();
        let blocks = self.world.blocks(piece);
        let leaf = |block: &BlockRef| merkle::leaf(self.world.bytes_of(*block));
        let bad = (0u32..).zip(&blocks).zip(&leaves);
        let bad = bad.filter(|((_, block), ours)| leaf(block) != **ours);
        let bad: Vec<u32> = bad.map(|((number, _), _)| number).collect();
        assert_eq!(bad.len(), 1, "one was spoilt");
        torrent.drop_blocks(piece, &bad);
        let block = blocks[bad[0] as usize];
        receive(&torrent, block, self.world.bytes_of(block));
        if is_spilled {
            let segment = block.begin() / gyre::base::SEGMENT_BYTES;
            torrent.flush_segment(piece, segment).await.unwrap();
        }
        assert!(torrent.hash_piece(piece).await.unwrap());
        torrent.write_piece(piece).await.unwrap();
        let bytes = self.world.layout.geometry().piece_bytes(piece);
        let written = torrent
            .read_leaves(piece, bytes, || true, std::future::pending())
            .await;
        let good: Vec<_> = blocks.iter().map(leaf).collect();
        assert_eq!(written, Some(good));
        self.have.set(piece);
    }

    async fn checkpoint(&mut self, is_open: bool) {
        let have = self.have.clone();
        let torrent = self.torrent();
        torrent.sync().await.unwrap();
        let root = observe(self.world.output(), &self.world.layout, &self.world.parts);
        let root = root.unwrap().observed.root;
        let record = self.world.record(&torrent, root, &have, is_open);
        self.record = Some(Record::decode(&record.encode()).unwrap());
    }

    /// A clean stop, or a kill at any moment after a checkpoint; then what the record is worth.
    async fn restart(&mut self) {
        let is_clean = self.chance(2);
        if is_clean {
            self.checkpoint(false).await;
        }
        self.torrent = None;
        let world = &*self.world;
        let observed = observe(world.output(), &world.layout, &world.parts)
            .unwrap()
            .observed;
        let verdict = judge(self.record.as_ref(), &observed, &world.layout);
        assert!(verdict.missing.is_empty());
        if is_clean {
            assert_eq!(verdict.reason, Reason::Clean);
            assert_eq!(verdict.trusted, self.have);
            assert_eq!(verdict.to_hash.count(), 0);
        }
        let hashed = world.check(verdict.to_hash.clone());
        assert!(hashed.errors.is_empty());
        let mut found = verdict.trusted;
        hashed.good.iter().for_each(|piece| {
            found.set(piece);
        });
        for piece in self.have.iter() {
            assert!(found.has(piece), "{piece:?} is found again");
        }
        // A piece may hash right without being recorded: written by a spill just before the kill.
        self.have = found;
        if self.chance(3) {
            for at in 0..self.world.selected.len() {
                self.world.selected[at] |= self.chance(2);
            }
        }
        self.start().await;
    }

    /// Every piece we have reads as the flat bytes say, in runs of any shape.
    async fn read_all(&mut self, torrent: &DiskTorrent) {
        for piece in self.have.clone().iter() {
            let blocks = self.world.blocks(piece);
            let mut at = 0;
            while at < blocks.len() {
                let count = 1 + self.rng.below(16) as usize;
                let run = &blocks[at..(at + count).min(blocks.len())];
                let expected: Vec<u8> = run
                    .iter()
                    .flat_map(|block| self.world.bytes_of(*block))
                    .copied()
                    .collect();
                let got = read(torrent, run).await.unwrap();
                assert!(got == expected, "{piece:?} {run:?}");
                at += run.len();
            }
        }
    }
}

async fn live(world: &mut World, hub: Rc<DiskHub>, seed: u64) {
    let have = Bitfield::new(world.layout.geometry().piece_count());
    let mut life = Life {
        hub,
        torrent: None,
        have,
        record: None,
        rng: Rng::new(seed),
        world,
    };
    life.start().await;
    let never_selected = life.world.selected.clone();
    let mut rounds = 0;
    loop {
        let mut missing = life.world.wanted();
        missing.retain(|piece| !life.have.has(*piece));
        if missing.is_empty() {
            break;
        }
        life.shuffle(&mut missing);
        for piece in missing {
            life.fetch(piece).await;
            if life.chance(4) {
                life.checkpoint(true).await;
            }
            if life.chance(8) && rounds < 5 {
                rounds += 1;
                life.restart().await;
                break;
            }
        }
    }
    let torrent = life.torrent();
    life.read_all(&torrent).await;
    life.checkpoint(false).await;
    drop(torrent);
    life.torrent = None;
    assert_eq!(life.hub.open_files(), 0);
    let config = life.world.config(false);
    let seed = DiskTorrent::open(&life.hub, config).await.unwrap();
    life.read_all(&seed).await;
    let checked = life.world.check(life.world.all());
    for piece in life.world.layout.geometry().pieces() {
        let files = &life.world.layout;
        let is_padding = files
            .piece_spans(piece)
            .all(|span| files.files()[span.file].is_pad);
        assert_eq!(
            checked.good.has(piece),
            life.have.has(piece) || is_padding,
            "{piece:?}"
        );
    }
    files_are_as_selected(life.world, &never_selected);
}

fn files_are_as_selected(world: &World, selected_at_first: &[bool]) {
    for (index, file) in world.layout.files().iter().enumerate() {
        let start = usize::try_from(file.offset).unwrap();
        let end = usize::try_from(file.end()).unwrap();
        match std::fs::read(world.path(index)) {
            Ok(content) => {
                assert!(world.selected[index] && !file.is_pad);
                assert!(content == world.flat[start..end], "file {index}");
            }
            Err(_) => assert!(!world.selected[index] || file.is_pad, "file {index}"),
        }
        if selected_at_first[index] && !file.is_pad {
            assert!(world.path(index).exists());
        }
    }
}

fn files() -> impl Strategy<Value = Vec<Spec>> {
    let length = prop_oneof![
        Just(0),
        Just(1),
        1..100_u64,
        1..40_000_u64,
        1..700_000_u64,
        Just(262_144)
    ];
    let spec = (length, 0..6_u32, 0..4_u32).prop_map(|(length, pad, selected)| Spec {
        length,
        is_pad: pad == 0,
        is_selected: selected != 0,
    });
    let has_bytes = |files: &Vec<Spec>| files.iter().any(|file| file.length > 0);
    proptest::collection::vec(spec, 1..7).prop_filter("some byte", has_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn disk_agrees_with_flat_bytes_through_spills_and_restarts(
        files in files(),
        piece_length in prop_oneof![1_000..40_000_u64, 16_384..700_000_u64, Just(16_384), Just(524_288)],
        preallocate in prop_oneof![
            Just(Preallocate::None), Just(Preallocate::Sparse), Just(Preallocate::Full)
        ],
        seed: u64,
    ) {
        let mut world = World::new(piece_length, &files, seed);
        world.preallocate = preallocate;
        on_ring(async |hub| live(&mut world, hub, seed).await);
    }
}
