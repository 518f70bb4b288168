//! Every parser and the swarm core under damaged input (HOSTILE.md): nothing panics, and nothing takes long.
//!
//! Inputs are drawn from a seed, so that a failure tells all that is needed to repeat it. `GYRE_FUZZ_RUNS` sets how many
//! are tried of each parser; a tenth of it is tried of the swarm.

mod corpus;
mod mutate;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use gyre::base::Rng;

const RUNS: u64 = 100_000;
/// No input may take longer.
const INPUT_TIME_MAX: Duration = Duration::from_millis(100);
/// A slow input is tried so often before it counts: another program may have had the processor.
const SLOW_TRIES: usize = 4;

fn runs() -> u64 {
    let wanted = std::env::var("GYRE_FUZZ_RUNS").ok();
    wanted.map_or(RUNS, |text| {
        text.parse().expect("GYRE_FUZZ_RUNS is a number")
    })
}

fn hammer(name: &str, runs: u64, corpus: &[Vec<u8>], words: &[&[u8]], target: fn(&[u8])) {
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    corpus.iter().for_each(|input| target(input));
    for number in 0..runs {
        let mut rng = Rng::new(number);
        let input = mutate::mutate(corpus, words, &mut rng);
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let took = begun.elapsed();
        assert!(
            outcome.is_ok(),
            "{name}: input {number} panics: {}",
            hex(&input)
        );
        slowest = slowest.max(took);
        if took > INPUT_TIME_MAX {
            let again = || {
                let begun = Instant::now();
                target(&input);
                begun.elapsed()
            };
            let best = (0..SLOW_TRIES).map(|_| again()).min().unwrap_or(took);
            assert!(
                best <= INPUT_TIME_MAX,
                "{name}: input {number} takes {best:?}: {}",
                hex(&input)
            );
        }
    }
    println!(
        "{name}: {runs} inputs in {:.1?}, the slowest took {slowest:.1?}",
        started.elapsed()
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

macro_rules! parsers {
    ($($test:ident: $target:ident;)*) => {
        $(#[test]
        fn $test() {
            let (corpus, words) = corpus::$target();
            hammer(stringify!($target), runs(), &corpus, words, targets::$target);
        })*
    };
}

parsers! {
    damaged_bencode_is_read_or_refused: bencode;
    damaged_torrents_are_read_or_refused_and_lead_nowhere: metainfo;
    damaged_handshakes_are_read_or_refused: handshake;
    damaged_messages_are_the_same_events_however_they_are_cut: decoder;
    damaged_extension_handshakes_are_read_or_refused: extended;
    damaged_peer_exchange_is_read_or_refused: pex;
    damaged_metadata_messages_are_read_or_refused: metadata;
    damaged_http_answers_are_the_same_body_however_they_are_cut: http_response;
    damaged_announce_answers_are_read_or_refused: announce_answer;
    damaged_udp_answers_are_read_or_refused: udp_answer;
    damaged_requests_to_the_tracker_are_read_or_refused: tracker_request;
    damaged_datagrams_to_the_tracker_are_read_or_refused: udp_request;
    damaged_magnet_links_are_read_or_refused: magnet;
    damaged_urls_are_read_or_refused: url;
    damaged_answers_of_name_servers_are_read_or_refused: dns_answer;
    damaged_utp_datagrams_are_refused: utp_refusal;
    damaged_records_are_read_or_refused: record;
}

#[test]
fn a_swarm_under_any_order_of_events_keeps_its_accounts() {
    let (corpus, words) = corpus::swarm();
    hammer("swarm", runs() / 10, &corpus, words, targets::swarm);
}
