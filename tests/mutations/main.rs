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
        let begun = cpu_time();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let took = cpu_time() - begun;
        assert!(
            outcome.is_ok(),
            "{name}: input {number} panics: {}",
            hex(&input)
        );
        slowest = slowest.max(took);
        if took > INPUT_TIME_MAX {
            let again = || {
                let begun = cpu_time();
                target(&input);
                cpu_time() - begun
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

/// What this thread has used: a busy machine makes no input slow.
fn cpu_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
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
