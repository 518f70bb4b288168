//! Every parser and the swarm core under damaged input (HOSTILE.md): nothing panics, and nothing takes long.
//!
//! Inputs are drawn from a seed, so that a failure tells all that is needed to repeat it. `GYRE_FUZZ_RUNS` sets how many
//! are tried of each parser; a tenth of it is tried of the swarm.

#[path = "../fuzz/assembly.rs"]
mod assembly;
mod corpus;
#[path = "../fuzz/layout.rs"]
mod layout;
mod mutate;
#[path = "../fuzz/registry.rs"]
mod registry;
#[path = "../fuzz/targets.rs"]
mod targets;
mod tree;

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

macro_rules! hammered {
    ($($test:ident: $module:ident::$target:ident / $share:literal;)*) => {
        $(#[test]
        fn $test() {
            let (corpus, words) = corpus::$target();
            hammer(stringify!($target), runs() / $share, &corpus, words, $module::$target);
        })*
    };
}

hammered! {
    damaged_bencode_is_read_or_refused: targets::bencode / 1;
    damaged_torrents_are_read_or_refused_and_lead_nowhere: targets::metainfo / 1;
    damaged_handshakes_are_read_or_refused: targets::handshake / 1;
    damaged_messages_are_the_same_events_however_they_are_cut: targets::decoder / 1;
    damaged_extension_handshakes_are_read_or_refused: targets::extended / 1;
    damaged_peer_exchange_is_read_or_refused: targets::pex / 1;
    damaged_metadata_messages_are_read_or_refused: targets::metadata / 1;
    damaged_http_answers_are_the_same_body_however_they_are_cut: targets::http_response / 1;
    damaged_announce_answers_are_read_or_refused: targets::announce_answer / 1;
    damaged_udp_answers_are_read_or_refused: targets::udp_answer / 1;
    damaged_requests_to_the_tracker_are_read_or_refused: targets::tracker_request / 1;
    damaged_datagrams_to_the_tracker_are_read_or_refused: targets::udp_request / 1;
    damaged_magnet_links_are_read_or_refused: targets::magnet / 1;
    damaged_urls_are_read_or_refused: targets::url / 1;
    damaged_answers_of_name_servers_are_read_or_refused: targets::dns_answer / 1;
    damaged_utp_datagrams_are_refused: targets::utp_refusal / 1;
    damaged_records_are_read_or_refused: targets::record / 1;
    any_names_and_links_stay_below_the_root: layout::layout / 1;
    a_record_is_worth_no_more_than_the_disk: layout::verdict / 1;
    a_swarm_under_any_order_of_events_keeps_its_accounts: targets::swarm / 10;
    blocks_in_any_order_lie_where_they_belong: assembly::assembly / 10;
    a_tracker_under_any_announces_keeps_its_limits: registry::registry / 10;
}
