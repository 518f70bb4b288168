//! Speed of the piece picker: choosing and opening pieces, and following what peers announce.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gyre::base::{Bitfield, Geometry, PieceIndex, Rng};
use gyre::swarm::peer::PeerHave;
use gyre::swarm::picker::{PickOrder, Picker};
use std::hint::black_box;

/// A large torrent: 64 GiB in pieces of 1 MiB.
const PIECES: u32 = 65_536;
const PEERS: u64 = 50;

fn geometry() -> Geometry {
    Geometry::new(u64::from(PIECES) << 20, 1 << 20).expect("a good geometry")
}

/// A peer that has about `percent` of all pieces.
fn peer(percent: u64, seed: u64) -> PeerHave {
    let mut rng = Rng::new(seed);
    let mut have = Bitfield::new(PIECES);
    for piece in geometry().pieces() {
        if rng.chance(percent) {
            have.set(piece);
        }
    }
    PeerHave::Some(have)
}

/// Every piece is missing; 50 peers have half of them each.
fn swarm() -> Picker {
    let mut picker = Picker::new(&geometry(), 1);
    for piece in geometry().pieces() {
        picker.set_openable(piece, true);
    }
    for number in 0..PEERS {
        picker.on_peer_has(&peer(50, number));
    }
    picker
}

fn bench(c: &mut Criterion) {
    let swarm = swarm();
    let mut group = c.benchmark_group("picker");
    group.throughput(Throughput::Elements(1_000));
    for (name, order, percent) in [
        (
            "1,000 rarest pieces of a peer with half",
            PickOrder::Rarest,
            50,
        ),
        (
            "1,000 rarest pieces of a peer with 2 %",
            PickOrder::Rarest,
            2,
        ),
        (
            "1,000 random pieces of a peer with half",
            PickOrder::Random,
            50,
        ),
        (
            "1,000 pieces in order of a peer with half",
            PickOrder::Sequential,
            50,
        ),
    ] {
        let asker = peer(percent, 99);
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || swarm.clone(),
                |picker| {
                    for _ in 0..1_000 {
                        let Some(piece) = picker.pick(black_box(&asker), order) else {
                            return;
                        };
                        // Opened: it may not be chosen again.
                        picker.set_openable(piece, false);
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.bench_function("1,000 announcements", |b| {
        let mut rng = Rng::new(5);
        let pieces: Vec<PieceIndex> = (0..1_000)
            .filter_map(|_| geometry().piece(rng.below(PIECES.into()) as u32))
            .collect();
        b.iter_batched_ref(
            || swarm.clone(),
            |picker| pieces.iter().for_each(|piece| picker.on_copy_added(*piece)),
            BatchSize::LargeInput,
        );
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("a peer with half comes and goes", |b| {
        let have = peer(50, 77);
        let mut picker = swarm.clone();
        b.iter(|| {
            picker.on_peer_has(black_box(&have));
            picker.on_peer_gone(black_box(&have));
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
