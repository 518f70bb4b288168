//! Lines of a tenth of a second there and back that lose both ways, and what a lost ack costs.

use super::*;

const LONG: Line = Line {
    delay_us: 50_000,
    ..QUICK
};
/// Bytes of data in one packet, once its length is found.
const PACKET_BYTES: f64 = 1_452.0;
/// Bytes that the window grows by in a round trip.
const GAIN_BYTES: f64 = 3_000.0;
/// Shorter than any timeout, longer than a round trip with all that an answer may be late by.
const SILENCE_US: u64 = 350_000;

/// What a window carries that grows by the gain in each round trip and is halved by each loss, where nothing is ever waited for.
fn halved_bytes_per_s(loss: f64) -> f64 {
    let packets = (1.5 * GAIN_BYTES / PACKET_BYTES / loss).sqrt();
    packets * PACKET_BYTES / 0.1
}

/// A transfer that fills the line, acknowledged in heaps as by a program that takes all that has come in one go.
fn bulk(seed: u64, line: Line) -> World {
    let mut world = World::new(seed, line, line);
    world.gathers_us = 1_000;
    world.sides[0].to_send = 400_000_000;
    world.dial();
    world
}

fn window_bytes(world: &World) -> u64 {
    let key = world.sides[0].key.unwrap();
    world.sides[0].utp.conns.get(key.0).unwrap().window_bytes()
}

/// Runs for so long; counts how often nothing was sent for longer than [`SILENCE_US`].
fn silences(world: &mut World, secs: u64) -> u32 {
    let until = world.us + secs * 1_000_000;
    let (mut count, mut sent, mut since) = (0, world.sides[0].datagrams, world.us);
    while world.step(until) {
        if world.sides[0].datagrams != sent {
            count += u32::from(world.us - since > SILENCE_US);
            (sent, since) = (world.sides[0].datagrams, world.us);
        }
    }
    count
}

#[test]
fn losses_both_ways_cost_a_long_line_no_timeouts_and_less_than_half_a_window_each() {
    for loss_percent in [1, 5] {
        let (mut read, mut waited) = (0, 0);
        let (runs, secs) = (4, 40);
        for seed in 0..runs {
            let mut world = bulk(
                seed,
                Line {
                    loss_percent,
                    ..LONG
                },
            );
            waited += silences(&mut world, secs);
            read += world.sides[1].read;
        }
        let rate = read as f64 / (runs * secs) as f64;
        let halved = halved_bytes_per_s(loss_percent as f64 / 100.0);
        assert!(
            rate > 1.25 * halved,
            "{rate:.0} of {halved:.0} bytes a second with {loss_percent} %"
        );
        assert!(waited <= 2, "{waited} timeouts with {loss_percent} %");
    }
}

#[test]
fn no_ack_of_a_whole_window_costs_neither_a_timeout_nor_the_window() {
    let mut world = bulk(1, LONG);
    world.sides[0].to_send = 5_000_000;
    silences(&mut world, 1);
    let before = window_bytes(&world);
    // Whatever answers the packets of a round trip, and is sent again after them.
    world.lines[1].loss_percent = 100;
    let until = world.us + 130_000;
    while world.step(until) {}
    world.lines[1].loss_percent = 0;
    let sent = world.sides[0].sent_bytes;
    assert_eq!(silences(&mut world, 1), 0);
    assert!(world.sides[0].sent_bytes > sent, "it goes on");
    assert!(window_bytes(&world) >= before, "nothing of it was lost");
}

#[test]
fn an_ack_of_many_packets_is_sent_once_more_when_nothing_follows() {
    let mut world = World::new(1, QUICK, QUICK);
    world.gathers_us = 1_000;
    world.dial();
    let until = world.us + 1_000_000;
    while world.step(until) {}
    let key = world.sides[0].key.unwrap();
    let acks_of = |world: &mut World, count: usize| {
        let first = world.sides[0].written;
        let bytes: Vec<u8> = (first..first + count).map(byte_at).collect();
        world.sides[0].written += count;
        let before = world.sides[1].datagrams;
        world.sides[0].utp.write(key, &bytes).unwrap();
        world.flush(0);
        let until = world.us + 1_000_000;
        while world.step(until) {}
        world.sides[1].datagrams - before
    };
    assert_eq!(acks_of(&mut world, 4 * 1_000), 2);
    assert_eq!(acks_of(&mut world, 100), 1, "the next one is as good");
}
