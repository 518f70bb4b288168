//! Speed of SHA-1 as pieces are hashed: whole, in segments, and block by block.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gyre::uring::sha1_lanes::{LANES, Sha1State, update_all};
use std::hint::black_box;

const PIECE_BYTES: usize = 1 << 20;

fn bench(c: &mut Criterion) {
    let piece: Vec<u8> = (0..PIECE_BYTES).map(|at| (at * 31) as u8).collect();
    let mut group = c.benchmark_group("hash");
    group.throughput(Throughput::Bytes(PIECE_BYTES as u64));
    for (name, part_bytes) in [
        ("a piece of 1 MiB at once", PIECE_BYTES),
        ("a piece of 1 MiB in segments of 256 KiB", 262_144),
        ("a piece of 1 MiB in blocks of 16 KiB", 16_384),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut state = Sha1State::new();
                black_box(&piece)
                    .chunks(part_bytes)
                    .for_each(|part| state.update(part));
                state.finalize()
            });
        });
    }
    for count in [2, 4, 8, LANES] {
        group.throughput(Throughput::Bytes((count * PIECE_BYTES) as u64));
        group.bench_function(format!("{count} pieces of 1 MiB side by side"), |b| {
            b.iter(|| {
                let mut states = vec![Sha1State::new(); count];
                for part in black_box(&piece).chunks(131_072) {
                    let mut streams: Vec<_> =
                        states.iter_mut().map(|state| (state, part)).collect();
                    update_all(&mut streams);
                }
                states
                    .into_iter()
                    .map(Sha1State::finalize)
                    .collect::<Vec<_>>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
