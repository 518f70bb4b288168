//! The payload of one block on its way: from the core's placement into the torrent's memory. Layer 5.
//!
//! Used by whatever receives blocks, the connections to peers and those to web seeds.

use crate::base::BlockRef;
use crate::session::disk::DiskTorrent;
use crate::swarm::peer::PeerFault;
use crate::swarm::torrent::Placement;
use crate::swarm::{self, Cx, PeerKey};
use crate::wire::message::RawBlock;

/// One payload that has begun to arrive.
#[derive(Debug)]
pub struct Payload {
    header: RawBlock,
    placement: Placement,
    /// How much of it came, in bytes.
    done: u32,
}

impl Payload {
    /// The core says where it goes.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn begin(
        core: &mut swarm::Torrent,
        key: PeerKey,
        header: RawBlock,
        cx: &mut Cx<'_>,
    ) -> Result<Payload, PeerFault> {
        Ok(Payload {
            header,
            placement: core.on_piece_header(key, header, cx)?,
            done: 0,
        })
    }

    /// Nobody has a use for it.
    pub fn is_scratch(&self) -> bool {
        self.placement == Placement::Scratch
    }

    /// Where its next byte belongs: the block and an offset in it, in bytes; `None` when nobody has a use for it.
    pub fn next_place(&self) -> Option<(BlockRef, u32)> {
        match self.placement {
            Placement::Store(block) => Some((block, self.done)),
            Placement::Scratch => None,
        }
    }

    /// Bytes that have not come yet.
    pub const fn left_bytes(&self) -> u32 {
        self.header.length.saturating_sub(self.done)
    }

    /// More of it came.
    pub fn take(
        &mut self,
        core: &mut swarm::Torrent,
        disk: &DiskTorrent,
        key: PeerKey,
        part: &[u8],
        cx: &mut Cx<'_>,
    ) {
        let part_bytes = u32::try_from(part.len()).unwrap_or(u32::MAX);
        core.on_block_bytes(key, part_bytes, cx);
        if let Placement::Store(block) = self.placement {
            disk.copy_in(block, self.done, part);
        }
        self.done = self.done.saturating_add(part_bytes);
    }

    /// All of it is here.
    pub fn finish(
        self,
        core: &mut swarm::Torrent,
        disk: &DiskTorrent,
        key: PeerKey,
        cx: &mut Cx<'_>,
    ) {
        match self.placement {
            Placement::Store(block) => {
                disk.block_done(block);
                core.on_block_stored(key, block, cx);
            }
            Placement::Scratch => core.on_block_discarded(key, self.header, cx),
        }
    }

    /// The rest will not come.
    pub fn abandon(self, disk: &DiskTorrent) {
        if let Placement::Store(block) = self.placement {
            disk.block_abandoned(block);
        }
    }
}
