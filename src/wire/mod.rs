//! Layer 1: bytes to values and back. Pure: no sockets, no clock, no allocation by a stranger's number.
#![forbid(unsafe_code)]

pub mod bencode;
pub mod decoder;
pub mod dns;
pub mod extended;
pub mod foreign;
pub mod handshake;
pub mod http;
pub mod ip_filter;
pub mod krpc;
pub mod lsd;
pub mod magnet;
pub mod merkle;
pub mod message;
pub mod metainfo;
pub mod mse;
pub mod natpmp;
pub mod socks;
pub mod tracker;
pub mod tracker_http;
pub mod tracker_udp;
pub mod upnp;
pub mod url;
pub mod ut_holepunch;
pub mod ut_metadata;
pub mod ut_pex;
pub mod utp;
pub mod web_seed;
