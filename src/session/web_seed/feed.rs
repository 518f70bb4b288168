//! Bytes of a web seed into the blocks they belong to: the same steps as a peer's `piece` messages. Layer 5.

use std::collections::VecDeque;
use std::rc::Rc;

use super::verdict::Failure;
use crate::base::BlockRef;
use crate::session::driver::Driver;
use crate::session::peer::payload::Payload;
use crate::swarm::{Effect, PeerKey};
use crate::wire::message::RawBlock;

/// A run's rest shorter than this is taken in although nobody needs it: a new connection costs as much.
const UNNEEDED_BLOCKS_MIN: usize = 16;

/// Zeros of pad files, fed in parts.
const ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];

/// The run that is being received.
pub(super) struct Feeder {
    driver: Rc<Driver>,
    key: PeerKey,
    /// Those not begun, in order.
    blocks: VecDeque<BlockRef>,
    payload: Option<Payload>,
}

impl Feeder {
    /// Nothing is received.
    pub fn new(driver: Rc<Driver>, key: PeerKey) -> Feeder {
        Feeder {
            driver,
            key,
            blocks: VecDeque::new(),
            payload: None,
        }
    }

    /// These blocks come next, one behind the other.
    pub fn begin(&mut self, run: Vec<BlockRef>) {
        debug_assert!(self.payload.is_none() && self.blocks.is_empty());
        self.blocks = run.into();
    }

    /// The next bytes of the run. What lies behind its end is passed over.
    ///
    /// # Errors
    /// Nobody needs the rest, or the core takes no more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut input = bytes;
        while !input.is_empty() && (self.payload.is_some() || !self.blocks.is_empty()) {
            self.feed_some(&mut input)?;
        }
        Ok(())
    }

    /// So many zeros.
    ///
    /// # Errors
    /// As [`Feeder::feed`].
    pub fn feed_zeros(&mut self, count: u64) -> Result<(), Failure> {
        let mut left = count;
        while left > 0 {
            let part = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.feed(ZEROS.get(..part).unwrap_or_default())?;
            left -= part as u64;
        }
        Ok(())
    }

    /// What did not come will not.
    pub fn end(&mut self) {
        self.blocks.clear();
        if let Some(payload) = self.payload.take() {
            payload.abandon(self.driver.disk());
        }
    }

    /// Goes on until the input is used up or a piece is to be discarded: that must be done before a later block of the
    /// same piece is taken in.
    fn feed_some(&mut self, input: &mut &[u8]) -> Result<(), Failure> {
        let driver = self.driver.clone();
        let (key, blocks, slot) = (self.key, &mut self.blocks, &mut self.payload);
        driver.call(|core, cx| {
            while !input.is_empty() {
                let effect_count = cx.fx.len();
                let mut payload = match (slot.take(), blocks.pop_front()) {
                    (Some(payload), next) => {
                        next.into_iter().for_each(|block| blocks.push_front(block));
                        payload
                    }
                    (None, Some(block)) => {
                        let payload = Payload::begin(core, key, raw(block), cx)?;
                        let is_needed = |block: &BlockRef| core.is_owed(key, *block);
                        if payload.is_scratch()
                            && blocks.len() >= UNNEEDED_BLOCKS_MIN
                            && !blocks.iter().any(is_needed)
                        {
                            return Err(Failure::Unneeded);
                        }
                        payload
                    }
                    (None, None) => return Ok(()),
                };
                let room = usize::try_from(payload.left_bytes()).unwrap_or(usize::MAX);
                let (part, rest) = input.split_at_checked(room).unwrap_or((*input, &[]));
                *input = rest;
                payload.take(core, driver.disk(), key, part, cx);
                match payload.left_bytes() {
                    0 => payload.finish(core, driver.disk(), key, cx),
                    _ => *slot = Some(payload),
                }
                let new = cx.fx.get(effect_count..).unwrap_or_default();
                if new.iter().any(|fx| matches!(fx, Effect::Discard { .. })) {
                    return Ok(());
                }
            }
            Ok(())
        })
    }
}

fn raw(block: BlockRef) -> RawBlock {
    RawBlock {
        piece: block.piece().get(),
        begin: block.begin(),
        length: block.length(),
    }
}
