//! Blocks that are received straight into their places, from peers that answer in order and from those that do not: every
//! byte ends up where it belongs, and nobody is banned (HOSTILE.md W16, C1).

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::raw_peer::*;
use support::sample::text;
use support::{Gyre, Sample};

/// Requests answered together at most.
const BATCH: usize = 40;
/// A pause in the requests that ends a batch.
const PAUSE: Duration = Duration::from_millis(2);

/// How a peer answers a batch of requests.
#[derive(Clone, Copy, Debug)]
enum Manner {
    InOrder,
    /// Keep-alives and `have`s between the blocks.
    Chatty,
    /// Neighbours change places now and then.
    Swapping,
    Reversed,
    /// Some requests are rejected.
    Rejecting,
    /// Some blocks are sent twice.
    Twice,
    /// Some answers are cut in the middle of a header, with a pause before the rest.
    Cut,
}

/// A seeder that writes its answers to a batch at once; it ends with the test.
fn seeder(last_byte: u8, sample: &Sample, manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, last_byte], 0))).unwrap();
    let addr = listener.local_addr().unwrap();
    let content = Arc::new(std::fs::read(&sample.content).unwrap());
    let (info_hash, piece_length) = (sample.info_hash, sample.piece_length as usize);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = content.clone();
            std::thread::spawn(move || serve(stream, info_hash, piece_length, &content, manner));
        }
    });
    addr
}

fn serve(
    stream: TcpStream,
    info_hash: [u8; 20],
    piece_length: usize,
    content: &[u8],
    manner: Manner,
) {
    let Ok(mut peer) = RawPeer::greet(stream, &Hello::new(info_hash)) else {
        return;
    };
    peer.send(&[message(HAVE_ALL, &[]), message(UNCHOKE, &[])].concat());
    let mut served = 0;
    loop {
        let mut batch: Vec<Vec<u32>> = Vec::new();
        while batch.len() < BATCH {
            match peer.next_within(if batch.is_empty() {
                Duration::from_secs(60)
            } else {
                PAUSE
            }) {
                Ok(Some(frame)) if frame.id == REQUEST => batch.push(frame.numbers()),
                Ok(Some(frame)) if frame.id == CANCEL => {
                    let cancelled = frame.numbers();
                    if batch.contains(&cancelled) {
                        batch.retain(|request| *request != cancelled);
                        peer.send(&numbers(REJECT, &cancelled));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => break,
            }
        }
        let answers = batch.iter().map(|request| {
            let [index, begin, length] = request[..] else {
                panic!("a request has three numbers");
            };
            let at = index as usize * piece_length + begin as usize;
            piece(index, begin, &content[at..at + length as usize])
        });
        let mut answers: Vec<Vec<u8>> = answers.collect();
        let mut cut = None;
        match manner {
            Manner::InOrder => {}
            Manner::Chatty => {
                for (at, answer) in answers.iter_mut().enumerate() {
                    match (served + at) % 9 {
                        3 => answer.extend([0; 4]),
                        7 => answer.extend(numbers(HAVE, &[0])),
                        _ => {}
                    }
                }
            }
            Manner::Swapping => {
                for at in (served % 5 + 1..answers.len()).step_by(7) {
                    answers.swap(at - 1, at);
                }
            }
            Manner::Reversed => answers.reverse(),
            Manner::Rejecting => {
                for (at, answer) in answers.iter_mut().enumerate() {
                    if (served + at) % 11 == 5 {
                        *answer = numbers(REJECT, &batch[at]);
                    }
                }
            }
            Manner::Twice => {
                for at in (0..answers.len()).rev() {
                    if (served + at) % 13 == 4 {
                        answers.insert(at, answers[at].clone());
                    }
                }
            }
            Manner::Cut => {
                let before = answers.len() / 2;
                let bytes: usize = answers[..before].iter().map(Vec::len).sum();
                cut = Some(bytes + served % 14);
            }
        }
        served += answers.len();
        let bytes = answers.concat();
        let (first, second) = bytes.split_at(cut.unwrap_or(0).min(bytes.len()));
        peer.send(first);
        if !first.is_empty() {
            std::thread::sleep(PAUSE);
        }
        peer.send(second);
    }
}

/// Downloads from peers of these manners; the number of bytes that were received in place.
fn download(sample: &Sample, manners: &[Manner], more: &[&str]) -> usize {
    let (out, log) = (sample.dir("out"), sample.dir("logs").join("log"));
    let mut arguments = vec!["download".to_owned(), text(&sample.torrent)];
    arguments.extend(["-o".to_owned(), text(&out)]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port", "0", "--no-trackers", "--no-utp", "-vvv"].map(String::from));
    arguments.extend(["--log-file".to_owned(), text(&log)]);
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    for (last_byte, manner) in (71..).zip(manners) {
        let addr = seeder(last_byte, sample, *manner);
        arguments.extend(["--peer".to_owned(), addr.to_string()]);
    }
    let mut gyre = Gyre::start(&arguments);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out), "{manners:?}: the copy differs");
    let mut seen = gyre.seen().iter();
    assert!(seen.all(|event| event["event"] != "banned"), "{manners:?}");
    in_place(&log)
}

/// What a log says was received in place, in bytes.
fn in_place(log: &Path) -> usize {
    let log = std::fs::read_to_string(log).unwrap();
    let lines = log
        .lines()
        .filter(|line| line.contains("received in place"));
    lines
        .map(|line| {
            let (_, rest) = line.split_once("agreed_bytes=").unwrap();
            let digits = rest.split(' ').next().unwrap();
            digits.parse::<usize>().unwrap()
        })
        .sum()
}

#[test]
fn blocks_of_a_peer_that_answers_in_order_are_received_in_place() {
    const BYTES: usize = 24 << 20;
    let sample = Sample::file(BYTES, 1 << 20, &[]);
    let bytes = download(&sample, &[Manner::InOrder], &[]);
    assert!(bytes > BYTES / 2, "{bytes} bytes were received in place");
}

#[test]
fn whatever_comes_between_blocks_no_byte_goes_astray() {
    for manners in [
        &[Manner::Chatty][..],
        &[Manner::Swapping],
        &[Manner::Reversed],
        &[Manner::Twice],
        &[Manner::Cut],
        // Alone it would be left alone with what it rejected.
        &[Manner::Rejecting, Manner::InOrder],
    ] {
        let sample = Sample::file(6_000_001, 262_144, &[]);
        let bytes = download(&sample, manners, &[]);
        println!("{manners:?}: {bytes} bytes in place");
    }
}

#[test]
fn peers_of_all_manners_share_pieces_of_every_size() {
    let manners = [
        Manner::InOrder,
        Manner::Chatty,
        Manner::InOrder,
        Manner::Swapping,
        Manner::Twice,
        Manner::Cut,
    ];
    // Less than a block, less than a segment, whole ones, and one that is written segment by segment.
    for piece_length in [16_384, 131_072, 1 << 20, 4 << 20] {
        let sample = Sample::file(12_345_678, piece_length, &[]);
        let bytes = download(&sample, &manners, &["--buffers", "8MiB"]);
        println!("pieces of {piece_length}: {bytes} bytes in place");
    }
}
