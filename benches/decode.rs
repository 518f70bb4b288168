//! Speed of the message decoder: blocks in large reads, requests alone, and both one message a read.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gyre::wire::decoder::{Decoder, Event, Limits};
use gyre::wire::message::{Message, RawBlock, encode, piece_header};
use std::hint::black_box;

const BLOCK_BYTES: u32 = 16_384;
/// How much the runtime receives at once.
const READ_BYTES: usize = 262_144;
const LIMITS: Limits = Limits::for_bitfield(128);

/// 4 MiB of `piece` messages.
fn blocks() -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in 0..256 {
        bytes.extend(piece_header(
            block / 16,
            block % 16 * BLOCK_BYTES,
            BLOCK_BYTES,
        ));
        bytes.resize(bytes.len() + BLOCK_BYTES as usize, 0x5a);
    }
    bytes
}

fn requests(count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in 0..count {
        let request = Message::Request(RawBlock {
            piece: block / 16,
            begin: block % 16 * BLOCK_BYTES,
            length: BLOCK_BYTES,
        });
        encode(&request, &mut bytes);
    }
    bytes
}

/// Decodes in reads of the given size; adds up what a runtime would look at.
fn decode(decoder: &mut Decoder, bytes: &[u8], read_bytes: usize) -> usize {
    let mut seen = 0;
    for mut read in bytes.chunks(read_bytes) {
        while let Some(event) = decoder.next(&mut read).expect("a good stream") {
            seen += match black_box(event) {
                Event::Payload { bytes, .. } => bytes.len(),
                Event::PieceHeader(_) | Event::Message(_) => 1,
            };
        }
    }
    seen
}

fn bench(c: &mut Criterion) {
    let blocks = blocks();
    let requests = requests(10_000);
    let mut group = c.benchmark_group("decode");
    let mut run = |name: &str, bytes: &[u8], messages: u64, read_bytes: usize| {
        group.throughput(Throughput::Elements(messages));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || Decoder::new(LIMITS),
                |decoder| decode(decoder, black_box(bytes), read_bytes),
                BatchSize::SmallInput,
            );
        });
    };
    run("256 blocks in 256 KiB reads", &blocks, 256, READ_BYTES);
    run("256 blocks in 1,460 byte reads", &blocks, 256, 1_460);
    run(
        "10,000 requests in 256 KiB reads",
        &requests,
        10_000,
        READ_BYTES,
    );
    run("10,000 requests split over reads", &requests, 10_000, 11);
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
