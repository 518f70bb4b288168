//! All targets in one libFuzzer program. `GYRE_FUZZ_TARGET` names the target; its good inputs are written to the folder
//! `GYRE_FUZZ_SEEDS` and its words to the file `GYRE_FUZZ_WORDS` before libFuzzer reads them.

#![no_main]

mod assembly;
#[path = "../mutations/corpus.rs"]
mod corpus;
mod dht;
mod form;
mod foreign;
mod gateway;
mod layout;
#[macro_use]
mod list;
mod proxy;
mod registry;
mod search;
mod targets;
mod utp;
mod web_seed;

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Target = (fn(&[u8]), fn() -> (Vec<Vec<u8>>, &'static [&'static [u8]]));

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

macro_rules! listed {
    ($($test:ident: $module:ident::$target:ident / $share:literal;)*) => {
        const TARGETS: &[(&str, Target)] = &[
            $((stringify!($target), ($module::$target, corpus::$target)),)*
        ];
    };
}

every_target!(listed);

fuzz_target!(
    init: choose(),
    |data: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            target(data);
        }
    }
);

/// Without a name the names are printed.
fn choose() {
    let name = std::env::var("GYRE_FUZZ_TARGET").unwrap_or_default();
    let Some((_, (target, corpus))) = TARGETS.iter().find(|(known, _)| *known == name) else {
        TARGETS.iter().for_each(|(known, _)| println!("{known}"));
        std::process::exit(0);
    };
    let (seeds, words) = corpus();
    if let Some(folder) = std::env::var_os("GYRE_FUZZ_SEEDS").map(PathBuf::from) {
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed).expect("seeds are written");
        }
    }
    if let Some(file) = std::env::var_os("GYRE_FUZZ_WORDS") {
        std::fs::write(file, dictionary(words)).expect("words are written");
    }
    CHOSEN.get_or_init(|| *target);
}

/// Words as libFuzzer reads them.
fn dictionary(words: &[&[u8]]) -> String {
    let mut text = String::new();
    for word in words.iter().filter(|word| word.len() <= 64) {
        text.push('"');
        word.iter()
            .for_each(|byte| write!(text, "\\x{byte:02x}").expect("memory takes it"));
        text.push_str("\"\n");
    }
    text
}
