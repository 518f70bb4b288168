//! The side that dialed.

use super::dh::{KEY_BYTES, KeyPair};
use super::{
    Agreed, Ciphers, HASH_BYTES, Inbox, MseError, PLAIN_BIT, Payload, Payloads, RC4_BIT, Random,
    StreamHash, VC, hash, pad_length,
};
use crate::base::InfoHash;
use crate::wire::handshake::PROTOCOL;

/// Field lengths of what the responder sends behind VC.
const SELECT_BYTES: usize = 4 + 2;

/// One handshake that we began.
pub struct Initiator {
    stage: Stage,
    key: KeyPair,
    random: Random,
    info_hash: InfoHash,
    offers: Payloads,
    initial: Vec<u8>,
    inbox: Inbox,
    out: Vec<u8>,
}

enum Stage {
    /// Their public key is to come.
    Key,
    /// The encrypted VC is searched for.
    Sync {
        ciphers: Ciphers,
        sign: [u8; VC.len()],
    },
    /// Which payload they chose.
    Select(Ciphers),
    Pad {
        ciphers: Ciphers,
        payload: Payload,
        pad_bytes: usize,
    },
    Done(Ciphers, Payload),
}

impl Initiator {
    /// Begins; the first bytes to send are there at once. `initial` goes along as soon as it can: our BEP 3 handshake.
    pub fn new(
        info_hash: InfoHash,
        offers: Payloads,
        initial: &[u8],
        mut random: Random,
    ) -> Initiator {
        let key = KeyPair::new(random.secret);
        let mut out = key.public().to_vec();
        random.pad(&mut out);
        Initiator {
            stage: Stage::Key,
            key,
            random,
            info_hash,
            offers,
            initial: initial.to_vec(),
            inbox: Inbox::default(),
            out,
        }
    }

    /// Bytes to send now; each is given once.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Takes what came; true once the handshake is done.
    ///
    /// # Errors
    /// The peer does not speak this protocol, or breaks it: the connection is worth nothing more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, MseError> {
        self.inbox.bytes.extend_from_slice(bytes);
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Key);
            let (next, is_waiting) = self.step(stage)?;
            self.stage = next;
            if let Stage::Done(..) = self.stage {
                return Ok(true);
            }
            if is_waiting {
                return Ok(false);
            }
        }
    }

    /// What was agreed on; `None` before the handshake is done.
    pub fn finish(self) -> Option<Agreed> {
        match self.stage {
            Stage::Done(ciphers, payload) => Some(Agreed::new(
                payload,
                ciphers,
                Vec::new(),
                self.inbox.into_rest(),
            )),
            _ => None,
        }
    }

    /// One step, if the bytes for it are there; else true beside the same stage.
    fn step(&mut self, stage: Stage) -> Result<(Stage, bool), MseError> {
        let next = match stage {
            Stage::Key if self.inbox.rest().starts_with(PROTOCOL) => {
                return Err(MseError::InTheOpen);
            }
            Stage::Key => match self.inbox.take_array::<KEY_BYTES>() {
                Some(theirs) => self.on_key(&theirs)?,
                None => return Ok((Stage::Key, true)),
            },
            Stage::Sync { ciphers, sign } => match self.inbox.find(&sign)? {
                true => Stage::Select(ciphers),
                false => return Ok((Stage::Sync { ciphers, sign }, true)),
            },
            Stage::Select(mut ciphers) => match self.inbox.take_array::<SELECT_BYTES>() {
                Some(mut fields) => {
                    ciphers.inbound.apply(&mut fields);
                    let [a, b, c, d, pad @ ..] = fields;
                    Stage::Pad {
                        ciphers,
                        payload: self.selected(u32::from_be_bytes([a, b, c, d]))?,
                        pad_bytes: pad_length(pad)?,
                    }
                }
                None => return Ok((Stage::Select(ciphers), true)),
            },
            Stage::Pad {
                mut ciphers,
                payload,
                pad_bytes,
            } => match self.inbox.take(pad_bytes) {
                Some(_) => {
                    ciphers.inbound.skip(pad_bytes);
                    Stage::Done(ciphers, payload)
                }
                None => {
                    let stage = Stage::Pad {
                        ciphers,
                        payload,
                        pad_bytes,
                    };
                    return Ok((stage, true));
                }
            },
            Stage::Done(..) => return Ok((stage, true)),
        };
        Ok((next, false))
    }

    fn on_key(&mut self, theirs: &[u8; KEY_BYTES]) -> Result<Stage, MseError> {
        if theirs == self.key.public() {
            return Err(MseError::Reflected);
        }
        let secret = self.key.agree(theirs).ok_or(MseError::BadKey)?;
        let mut ciphers = Ciphers::new(&secret, &self.info_hash, true);
        let out = &mut self.out;
        out.extend_from_slice(&hash(&[b"req1", &secret]));
        let of_torrent = StreamHash::of(&self.info_hash).0;
        let mask = hash(&[b"req3", &secret]);
        let masked: [u8; HASH_BYTES] = std::array::from_fn(|at| of_torrent[at] ^ mask[at]);
        out.extend_from_slice(&masked);
        let start = out.len();
        out.extend_from_slice(&VC);
        out.extend_from_slice(&self.offers.bits().to_be_bytes());
        self.random.hidden_pad(out);
        let initial_bytes = u16::try_from(self.initial.len()).unwrap_or(0);
        let initial = self.initial.get(..usize::from(initial_bytes));
        out.extend_from_slice(&initial_bytes.to_be_bytes());
        out.extend_from_slice(initial.unwrap_or_default());
        ciphers.outbound.apply(&mut out[start..]);
        let mut sign = VC;
        ciphers.inbound.apply(&mut sign);
        Ok(Stage::Sync { ciphers, sign })
    }

    fn selected(&self, theirs: u32) -> Result<Payload, MseError> {
        let ours = self.offers.bits();
        match theirs & ours {
            RC4_BIT => Ok(Payload::Rc4),
            PLAIN_BIT => Ok(Payload::Plain),
            // None of them, or no choice at all.
            _ => Err(MseError::NothingInCommon { theirs, ours }),
        }
    }
}
