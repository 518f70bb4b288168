//! Stub.
pub struct Torrent;
pub struct TorrentConfig;
