//! Speed of Message Stream Encryption: the cipher over runs as they are sent, and whole handshakes.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gyre::base::InfoHash;
use gyre::wire::mse::{Initiator, Payloads, RANDOM_BYTES, Random, Rc4, Responder, Step};
use std::hint::black_box;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("encryption");
    for (name, bytes) in [("a block of 16 KiB", 16_384), ("a run of 256 KiB", 262_144)] {
        let mut run = vec![0x5a; bytes];
        let mut cipher = Rc4::new(&[7; 20]);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |b| b.iter(|| cipher.apply(black_box(&mut run))));
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("a handshake, both sides", |b| b.iter(handshake));
    group.finish();
}

fn handshake() {
    let info_hash = InfoHash::new([9; 20]);
    let random = |byte: u8| Random::new([byte; RANDOM_BYTES]);
    let mut a = Initiator::new(info_hash, Payloads::Rc4Only, &[7; 68], random(1));
    let mut b = Responder::new(Payloads::Both);
    b.feed(&a.take_out());
    loop {
        match b.advance().expect("a good handshake") {
            Step::Bytes => {
                a.feed(&b.take_out()).expect("a good handshake");
                b.feed(&a.take_out());
            }
            Step::Exchange => b.exchange(random(2)).expect("a good key"),
            Step::Torrent(_) => b.set_torrent(Some(info_hash)).expect("it is here"),
            Step::Done => break,
        }
    }
    a.feed(&b.take_out()).expect("a good handshake");
    black_box((a.finish(), b.finish()));
}

criterion_group!(benches, bench);
criterion_main!(benches);
