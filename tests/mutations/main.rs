//! Every parser and the swarm core under damaged input (HOSTILE.md): nothing panics, and nothing takes long.
//!
//! Inputs are drawn from a seed, so that a failure tells all that is needed to repeat it. `GYRE_FUZZ_RUNS` sets how many
//! are tried of each parser; a tenth of it is tried of the swarm.

#[path = "../fuzz/assembly.rs"]
mod assembly;
mod corpus;
#[path = "../fuzz/dht.rs"]
mod dht;
#[path = "../fuzz/foreign.rs"]
mod foreign;
#[path = "../fuzz/form.rs"]
mod form;
#[path = "../fuzz/gateway.rs"]
mod gateway;
mod heap;
#[path = "../fuzz/layout.rs"]
mod layout;
mod mutate;
#[path = "../fuzz/proxy.rs"]
mod proxy;
#[path = "../fuzz/registry.rs"]
mod registry;
#[path = "../fuzz/search.rs"]
mod search;
#[path = "../fuzz/targets.rs"]
mod targets;
mod tree;
#[path = "../fuzz/utp.rs"]
mod utp;
#[path = "../fuzz/web_seed.rs"]
mod web_seed;

#[macro_use]
#[path = "../fuzz/list.rs"]
mod list;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use gyre::base::Rng;
use nix::time::ClockId;

const RUNS: u64 = 100_000;
/// No input may take longer.
const INPUT_TIME_MAX: Duration = Duration::from_millis(100);
/// Nor take more of the heap at once.
const INPUT_BYTES_MAX: u64 = 64 << 20;
/// What took longest so far is tried so often again: another program may have had the processor.
const SLOW_TRIES: usize = 4;

fn runs() -> u64 {
    let wanted = std::env::var("GYRE_FUZZ_RUNS").ok();
    wanted.map_or(RUNS, |text| {
        text.parse().expect("GYRE_FUZZ_RUNS is a number")
    })
}

fn hammer(name: &str, runs: u64, corpus: &[Vec<u8>], words: &[&[u8]], target: fn(&[u8])) {
    let started = Instant::now();
    let (mut slowest, mut peak_bytes) = (Duration::ZERO, 0);
    corpus.iter().for_each(|input| target(input));
    for number in 0..runs {
        let mut rng = Rng::new(number);
        let input = mutate::mutate(corpus, words, &mut rng);
        let begun = Instant::now();
        let attempt = || catch_unwind(AssertUnwindSafe(|| target(&input)));
        let (outcome, bytes) = heap::peak_bytes_of(attempt);
        let took = begun.elapsed();
        let what = || format!("{name}: input {number}: {}", hex(&input));
        assert!(outcome.is_ok(), "a panic at {}", what());
        assert!(bytes <= INPUT_BYTES_MAX, "{bytes} bytes for {}", what());
        peak_bytes = peak_bytes.max(bytes);
        if took > slowest {
            let tries = (0..SLOW_TRIES).map(|_| cpu_time_of(|| target(&input)));
            let took = tries.min().map_or(took, |used| used.min(took));
            assert!(took <= INPUT_TIME_MAX, "{took:?} for {}", what());
            slowest = slowest.max(took);
        }
    }
    println!(
        "{name}: {runs} inputs in {:.1} s, the slowest took {:.3} ms, the largest {} KiB of the heap",
        started.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3,
        peak_bytes.div_ceil(1024)
    );
}

/// What this thread uses for it: a busy machine makes no input slow.
fn cpu_time_of(what: impl FnOnce()) -> Duration {
    let now = || Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap());
    let begun = now();
    what();
    now() - begun
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

every_target!(hammered);
