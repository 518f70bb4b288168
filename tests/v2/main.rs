//! BitTorrent v2 and hybrid torrents (BEP 52): what is read of them, and libtorrent on the other side.

#[path = "../support/mod.rs"]
mod support;

mod daemon;
mod info_hashes;
mod libtorrent;
mod magnets;
mod metainfo;
mod names;
mod poison;
mod transfers;
