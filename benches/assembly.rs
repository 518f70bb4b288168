//! Speed of the bookkeeping of pieces in memory: blocks placed, arrived, borrowed for hashing and writing.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gyre::base::{Geometry, PieceIndex};
use gyre::storage::assembly::{Assembly, runs};
use std::hint::black_box;

/// Pieces on their way at once, as from 8 fast peers.
const ACTIVE: u32 = 8;

/// Takes all blocks of the first pieces through the assembly, the pieces side by side.
fn assemble(geometry: &Geometry, assembly: &mut Assembly<u32>) {
    let pieces: Vec<PieceIndex> = geometry.pieces().take(ACTIVE as usize).collect();
    let blocks = geometry.block_count(pieces[0]);
    for block in 0..blocks {
        for piece in &pieces {
            let Some(block) = geometry.block(*piece, block) else {
                continue;
            };
            let place = assembly.place(block);
            if let Some(bytes) = place.needs_buffer {
                assembly.insert_buffer(*piece, place.segment, bytes);
            }
            assembly.block_done(block);
        }
    }
    for piece in pieces {
        let taken = assembly.take_piece(piece);
        for loan in taken {
            let bytes = assembly.segment_bytes(piece, loan.ticket.segment);
            black_box(runs(loan.ticket.blocks, bytes).count());
            assembly.written(loan.ticket);
        }
        assembly.discard(piece);
    }
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("assembly");
    for (name, piece_length) in [
        ("8 pieces of 1 MiB side by side", 1 << 20),
        ("8 pieces of 16 MiB side by side", 16 << 20),
    ] {
        let geometry = Geometry::new(1 << 30, piece_length).expect("a good geometry");
        let blocks = u64::from(ACTIVE) * piece_length / 16_384;
        group.throughput(Throughput::Elements(blocks));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || Assembly::new(geometry.clone()),
                |assembly| assemble(&geometry, assembly),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
