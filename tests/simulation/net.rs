//! Connections: what travels on them and in which state each end is. Bytes are real, payload is a tag.

use std::collections::{BTreeSet, VecDeque};

use gyre::base::Now;
use gyre::swarm::{PeerKey, Placement, UploadRun};
use gyre::wire::decoder::{Decoder, Limits};
use gyre::wire::message::RawBlock;

use crate::disk::Tag;

/// What an end may have handed to its kernel and not yet sent.
pub const SEND_BUFFER_BYTES: u64 = 64 * 1024;

/// Part of a block's payload.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    pub tag: Tag,
    pub length: u32,
}

/// What goes over the line in one piece: bytes, then perhaps payload.
#[derive(Clone, Debug, Default)]
pub struct Unit {
    pub bytes: Vec<u8>,
    pub payload: Option<Payload>,
    /// The last of an upload run.
    pub ends_run: bool,
}

impl Unit {
    /// Bytes on the line.
    pub fn length(&self) -> u64 {
        self.bytes.len() as u64 + self.payload.map_or(0, |p| u64::from(p.length))
    }
}

/// A block whose payload is coming in.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    pub header: RawBlock,
    pub placement: Placement,
    pub received_bytes: u32,
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    pub node: usize,
    /// Set while the core knows this peer.
    pub peer: Option<PeerKey>,
    /// Until this end is closed or has seen the other's end.
    pub is_open: bool,
    pub out: VecDeque<Unit>,
    pub out_bytes: u64,
    pub is_in_line: bool,
    pub is_pump_due: bool,
    pub is_pumping: bool,
    /// Handed out by the core, not yet answered with `on_sent` or `on_upload_failed`.
    pub run: Option<UploadRun>,
    /// When the last thing sent from here arrives.
    pub arrives_last: Now,
    /// Of what comes in.
    pub decoder: Option<Decoder>,
    /// Of what goes out, for the checks.
    pub observer: Option<Decoder>,
    pub incoming: Option<Incoming>,
    /// Arrived and not read.
    pub inbox: VecDeque<Unit>,
    pub is_read_due: bool,
    /// A staller's: sends nothing any more.
    pub is_stalled: bool,
    /// Requests of the other end that were received and neither answered nor handed out.
    pub owed: Vec<RawBlock>,
    /// Our requests that are neither answered nor cancelled nor lost to a choke.
    pub asked: BTreeSet<RawBlock>,
    /// Every request ever sent from here.
    pub ever_asked: BTreeSet<RawBlock>,
}

/// A connection; end 0 dialed.
#[derive(Debug)]
pub struct Conn {
    pub ends: [End; 2],
    pub latency_us: u64,
    /// BEP 6 agreed on.
    pub is_fast: bool,
    /// Cut: nothing arrives any more.
    pub is_cut: bool,
    /// Nothing arrives before.
    pub stalled_until: Now,
}

impl End {
    /// A closed end of a connection being made.
    pub fn new(node: usize, bitfield_bytes: u32) -> Self {
        let decoder = || Some(Decoder::new(Limits::for_bitfield(bitfield_bytes)));
        End {
            node,
            peer: None,
            is_open: true,
            out: VecDeque::new(),
            out_bytes: 0,
            is_in_line: false,
            is_pump_due: false,
            is_pumping: false,
            run: None,
            arrives_last: Now::ZERO,
            decoder: decoder(),
            observer: decoder(),
            incoming: None,
            inbox: VecDeque::new(),
            is_read_due: false,
            is_stalled: false,
            owed: Vec::new(),
            asked: BTreeSet::new(),
            ever_asked: BTreeSet::new(),
        }
    }
}
