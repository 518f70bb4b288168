//! Who gets the upload slots and the connections that others hold and do not use (HOSTILE.md C6, H4).

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::rate::{BLOCK, seed};
use crate::support::raw_peer::*;

/// A newcomer must have been served by then.
const SERVED_WITHIN: Duration = Duration::from_secs(45);

/// How the crowd that came first reads.
#[derive(Clone, Copy, Debug)]
enum Reads {
    Nothing,
    AByteNowAndThen,
    /// Everything, and each asks for a block now and then.
    Little,
}

fn a_newcomer_is_served_in_spite_of_readers_that_read(reads: Reads) {
    let world = seed(&[]);
    let hello = || Hello::new(world.sample.info_hash);
    let narrow = Narrow {
        receive_bytes: 4_096,
        segment_bytes: 536,
    };
    let narrow = Some(narrow).filter(|_| !matches!(reads, Reads::Little));
    let mut crowd: Vec<RawPeer> = (0..40)
        .map(|at| {
            let from = [127, 0, 1, 1 + at];
            let stream = dial_from(from.into(), world.addr, narrow).unwrap();
            RawPeer::greet(stream, &hello()).unwrap()
        })
        .collect();
    let asks: Vec<u8> = (0..15)
        .flat_map(|block| request(0, block * BLOCK, BLOCK))
        .collect();
    for peer in &mut crowd {
        peer.send(&message(HAVE_NONE, &[]));
        peer.send(&message(INTERESTED, &[]));
    }
    for peer in &crowd {
        // What is not there yet is not waited for.
        peer.stream.set_nonblocking(true).unwrap();
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut byte, mut buffer) = ([0; 1], vec![0; 65_536]);
            while !is_over.load(Ordering::Relaxed) {
                for peer in &mut crowd {
                    // Asked again and again: it is refused while choked, and owed once it is not.
                    match reads {
                        Reads::Nothing => peer.send(&asks),
                        Reads::AByteNowAndThen => {
                            peer.send(&asks);
                            let _ = peer.stream.read(&mut byte);
                        }
                        Reads::Little => {
                            peer.send(&request(0, 0, BLOCK));
                            while peer.stream.read(&mut buffer).is_ok_and(|got| got > 0) {}
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let mut honest = RawPeer::dial_at([127, 0, 2, 1], world.addr, &hello()).unwrap();
        honest.send(&message(INTERESTED, &[]));
        let deadline = Instant::now() + SERVED_WITHIN;
        let mut is_served = false;
        while !is_served {
            let left = deadline.saturating_duration_since(Instant::now());
            match honest.next_within(left) {
                Ok(Some(frame)) if frame.id == UNCHOKE => honest.send(&asks),
                Ok(Some(frame)) => is_served = frame.id == PIECE,
                Ok(None) | Err(_) => break,
            }
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(is_served, "{reads:?}: nothing in {SERVED_WITHIN:?}");
    });
}

#[test]
fn readers_that_read_nothing_do_not_keep_the_slots() {
    a_newcomer_is_served_in_spite_of_readers_that_read(Reads::Nothing);
}

#[test]
fn readers_that_drip_do_not_keep_the_slots() {
    a_newcomer_is_served_in_spite_of_readers_that_read(Reads::AByteNowAndThen);
}

#[test]
fn peers_that_ask_for_a_block_now_and_then_do_not_keep_the_slots() {
    a_newcomer_is_served_in_spite_of_readers_that_read(Reads::Little);
}

#[test]
fn strangers_that_connect_and_say_nothing_do_not_keep_newcomers_out() {
    let world = seed(&[]);
    let mut silent = Vec::new();
    for at in 0..700_u16 {
        let from = [127, 0, 3 + (at / 60) as u8, 1];
        silent.push(dial_from(from.into(), world.addr, None).unwrap());
    }
    let hello = Hello::new(world.sample.info_hash);
    let mut honest = RawPeer::dial_at([127, 0, 2, 1], world.addr, &hello).unwrap();
    honest.get_unchoked();
    assert_eq!(honest.fetch(0, 0, BLOCK).len(), BLOCK as usize);
}

#[test]
fn two_addresses_do_not_keep_all_places() {
    let world = seed(&["--max-peers", "24"]);
    let dial = |from| RawPeer::dial_at(from, world.addr, &Hello::new(world.sample.info_hash));
    let mut crowd = Vec::new();
    for at in 0..24_u8 {
        let mut peer = dial([127, 0, 1, 1 + at % 2]).unwrap();
        // The first message tells that it was taken in.
        assert!(peer.next().is_some());
        peer.send(&message(INTERESTED, &[]));
        crowd.push(peer);
    }
    let mut honest = dial([127, 0, 2, 1]).unwrap();
    assert!(honest.next().is_some(), "no place was made");
    // Those who come again find their share taken and push nobody out.
    for _ in 0..10 {
        if let Ok(mut peer) = dial([127, 0, 1, 1]) {
            peer.expect_close("its address has half of all places");
        }
    }
    honest.get_unchoked();
    assert_eq!(honest.fetch(0, 0, BLOCK).len(), BLOCK as usize);
}
