//! Layer 0: values every other layer speaks in. Pure, no I/O, no clock.
#![forbid(unsafe_code)]

mod bitfield;
mod change_log;
mod geometry;
mod histogram;
mod ids;
mod inner;
mod node_id;
mod rate;
mod rng;
mod slots;
mod time;
mod words;

pub use bitfield::{Bitfield, BitfieldError};
pub use change_log::ChangeLog;
pub use geometry::{
    BLOCK_BYTES, BlockRef, Geometry, GeometryError, PIECE_LENGTH_BYTES_MAX, PieceIndex,
    SEGMENT_BYTES,
};
pub use histogram::Histogram;
pub use ids::{InfoHash, InfoHashV2, InfoHashes, PeerId};
pub use inner::{is_inner_v4, is_local};
pub use node_id::{Distance, NodeId};
pub use rate::{RateMeter, TokenBucket};
pub use rng::Rng;
pub use slots::{Key, Slots};
pub use time::Now;
pub use words::{in_sentence, io_cause};
