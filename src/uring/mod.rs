//! Layer 4: file descriptors, bytes and the ring. Knows no BEP. The only module with `unsafe`.

pub mod buddy;
pub mod buffers;
pub mod copy;
pub mod files;
pub mod hasher;
pub mod idle;
pub mod inherited;
pub mod interfaces;
pub mod limits;
pub mod listener;
pub mod map;
pub mod op;
pub mod piece_state;
pub mod probe;
pub mod process;
pub mod random;
pub mod readahead;
pub mod resolve;
pub mod ring;
pub mod sha1_lanes;
mod sha1_wide;
pub mod signals;
pub mod socket;
pub mod stream;
pub mod stub;
pub mod tls;
pub mod udp;
