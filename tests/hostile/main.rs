//! What must not hurt Gyre: torrents, handshakes, messages and trackers of an attacker, against the real command and
//! against the core. `tests/HOSTILE.md` says which test belongs to which row.

#[path = "../support/mod.rs"]
mod support;

mod common;
mod crowds;
mod dht;
mod encryption;
mod extensions;
mod flood;
mod handshake;
mod holes;
mod memory;
mod places;
mod rate;
mod replay;
mod split;
mod tapes;
mod torrent_file;
mod torrent_urls;
mod torrents;
mod trackers;
mod udp_trackers;
mod web_seeds;
mod wire;
