//! The side that was dialed.

use super::dh::{KEY_BYTES, KeyPair};
use super::{
    Agreed, Ciphers, HASH_BYTES, INITIAL_BYTES_MAX, Inbox, MseError, PLAIN_BIT, Payload, Payloads,
    RC4_BIT, Random, StreamHash, VC, hash, pad_length,
};
use crate::base::InfoHash;

/// Field lengths behind the hashes: VC, what the initiator takes, the length of PadC.
const PROVIDE_BYTES: usize = VC.len() + 4 + 2;

/// What a responder needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes: [`Responder::feed`].
    Bytes,
    /// The leave to exchange keys, which costs the processor something: [`Responder::exchange`].
    Exchange,
    /// The torrent of this hash: [`Responder::set_torrent`].
    Torrent(StreamHash),
    /// Nothing: [`Responder::finish`], once the bytes to send are sent.
    Done,
}

/// One handshake that somebody else began.
pub struct Responder {
    stage: Stage,
    accepts: Payloads,
    pad_d: Vec<u8>,
    inbox: Inbox,
    out: Vec<u8>,
}

enum Stage {
    /// Their public key is to come.
    Key,
    /// It came.
    Exchange(Box<[u8; KEY_BYTES]>),
    /// HASH(req1, S) is searched for.
    Sync {
        secret: Box<[u8; KEY_BYTES]>,
        sign: [u8; HASH_BYTES],
    },
    /// Which torrent: its hash is to come.
    Hash(Box<[u8; KEY_BYTES]>),
    /// Which torrent: it is to be looked up.
    Torrent {
        secret: Box<[u8; KEY_BYTES]>,
        wanted: StreamHash,
    },
    Provide(Ciphers),
    /// PadC and the length of IA.
    Pad {
        ciphers: Ciphers,
        payload: Payload,
        pad_bytes: usize,
    },
    Initial {
        ciphers: Ciphers,
        payload: Payload,
        initial_bytes: usize,
    },
    Done {
        ciphers: Ciphers,
        payload: Payload,
        early: Vec<u8>,
    },
}

impl Responder {
    /// Before the first byte.
    pub fn new(accepts: Payloads) -> Responder {
        Responder {
            stage: Stage::Key,
            accepts,
            pad_d: Vec::new(),
            inbox: Inbox::default(),
            out: Vec::new(),
        }
    }

    /// Bytes to send now; each is given once.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Takes what came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.inbox.bytes.extend_from_slice(bytes);
    }

    /// Goes as far as the bytes allow.
    ///
    /// # Errors
    /// The peer does not speak this protocol, or breaks it: the connection is worth nothing more.
    pub fn advance(&mut self) -> Result<Step, MseError> {
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Key);
            let (next, wait) = self.step(stage)?;
            self.stage = next;
            if let Some(wait) = wait {
                return Ok(wait);
            }
        }
    }

    /// Exchanges keys; the answer is among the bytes to send then. Only at [`Step::Exchange`].
    ///
    /// # Errors
    /// Theirs is none.
    pub fn exchange(&mut self, mut random: Random) -> Result<(), MseError> {
        let Stage::Exchange(theirs) = &self.stage else {
            return Ok(());
        };
        let key = KeyPair::new(random.secret);
        let secret = Box::new(key.agree(theirs).ok_or(MseError::BadKey)?);
        self.out.extend_from_slice(key.public());
        random.pad(&mut self.out);
        random.hidden_pad(&mut self.pad_d);
        let sign = hash(&[b"req1", &secret[..]]);
        self.stage = Stage::Sync { secret, sign };
        Ok(())
    }

    /// The torrent that was asked for, if it is there. Only at [`Step::Torrent`].
    ///
    /// # Errors
    /// It is not.
    pub fn set_torrent(&mut self, info_hash: Option<InfoHash>) -> Result<(), MseError> {
        if let Stage::Torrent { secret, .. } = &self.stage {
            let info_hash = info_hash.ok_or(MseError::UnknownTorrent)?;
            self.stage = Stage::Provide(Ciphers::new(secret, &info_hash, false));
        }
        Ok(())
    }

    /// What was agreed on; `None` before the handshake is done.
    pub fn finish(self) -> Option<Agreed> {
        match self.stage {
            Stage::Done {
                ciphers,
                payload,
                early,
            } => Some(Agreed::new(payload, ciphers, early, self.inbox.into_rest())),
            _ => None,
        }
    }

    /// One step; what is waited for when it cannot be made.
    fn step(&mut self, stage: Stage) -> Result<(Stage, Option<Step>), MseError> {
        let inbox = &mut self.inbox;
        let next = match stage {
            Stage::Key => match inbox.take_array() {
                Some(theirs) => Stage::Exchange(Box::new(theirs)),
                None => return Ok((Stage::Key, Some(Step::Bytes))),
            },
            Stage::Sync { secret, sign } => match inbox.find(&sign)? {
                true => Stage::Hash(secret),
                false => return Ok((Stage::Sync { secret, sign }, Some(Step::Bytes))),
            },
            Stage::Hash(secret) => match inbox.take_array::<HASH_BYTES>() {
                Some(masked) => {
                    let mask = hash(&[b"req3", &secret[..]]);
                    let wanted = StreamHash(std::array::from_fn(|at| masked[at] ^ mask[at]));
                    Stage::Torrent { secret, wanted }
                }
                None => return Ok((Stage::Hash(secret), Some(Step::Bytes))),
            },
            Stage::Provide(ciphers) => match inbox.take_array() {
                Some(fields) => self.on_provide(ciphers, fields)?,
                None => return Ok((Stage::Provide(ciphers), Some(Step::Bytes))),
            },
            Stage::Pad {
                ciphers,
                payload,
                pad_bytes,
            } => match inbox.take(pad_bytes + 2) {
                Some(pad) => on_pad(ciphers, payload, pad)?,
                None => {
                    let stage = Stage::Pad {
                        ciphers,
                        payload,
                        pad_bytes,
                    };
                    return Ok((stage, Some(Step::Bytes)));
                }
            },
            Stage::Initial {
                mut ciphers,
                payload,
                initial_bytes,
            } => match inbox.take(initial_bytes) {
                Some(initial) => {
                    ciphers.inbound.apply(initial);
                    let early = initial.to_vec();
                    self.select(&mut ciphers, payload);
                    Stage::Done {
                        ciphers,
                        payload,
                        early,
                    }
                }
                None => {
                    let stage = Stage::Initial {
                        ciphers,
                        payload,
                        initial_bytes,
                    };
                    return Ok((stage, Some(Step::Bytes)));
                }
            },
            Stage::Exchange(_) => return Ok((stage, Some(Step::Exchange))),
            Stage::Torrent { wanted, .. } => return Ok((stage, Some(Step::Torrent(wanted)))),
            Stage::Done { .. } => return Ok((stage, Some(Step::Done))),
        };
        Ok((next, None))
    }

    fn on_provide(
        &self,
        mut ciphers: Ciphers,
        mut fields: [u8; PROVIDE_BYTES],
    ) -> Result<Stage, MseError> {
        ciphers.inbound.apply(&mut fields);
        let [vc @ .., a, b, c, d, e, f] = fields;
        if vc != VC {
            return Err(MseError::WrongConstant);
        }
        let (theirs, ours) = (u32::from_be_bytes([a, b, c, d]), self.accepts.bits());
        let payload = match theirs & ours {
            both if both & PLAIN_BIT != 0 => Payload::Plain,
            RC4_BIT => Payload::Rc4,
            _ => return Err(MseError::NothingInCommon { theirs, ours }),
        };
        Ok(Stage::Pad {
            ciphers,
            payload,
            pad_bytes: pad_length([e, f])?,
        })
    }

    /// Tells what was chosen.
    fn select(&mut self, ciphers: &mut Ciphers, payload: Payload) {
        let start = self.out.len();
        let bit = match payload {
            Payload::Plain => PLAIN_BIT,
            Payload::Rc4 => RC4_BIT,
        };
        self.out.extend_from_slice(&VC);
        self.out.extend_from_slice(&bit.to_be_bytes());
        self.out.append(&mut self.pad_d);
        ciphers.outbound.apply(&mut self.out[start..]);
    }
}

/// PadC is there, and the length of IA behind it.
fn on_pad(mut ciphers: Ciphers, payload: Payload, pad: &mut [u8]) -> Result<Stage, MseError> {
    ciphers.inbound.apply(pad);
    let length = pad.last_chunk::<2>().copied().unwrap_or_default();
    let initial_bytes = usize::from(u16::from_be_bytes(length));
    if initial_bytes > INITIAL_BYTES_MAX {
        return Err(MseError::InitialTooLong {
            got_bytes: initial_bytes,
            max_bytes: INITIAL_BYTES_MAX,
        });
    }
    Ok(Stage::Initial {
        ciphers,
        payload,
        initial_bytes,
    })
}
