//! Message Stream Encryption, as the "Message Stream Encryption" page of Vuze's wiki describes it: a handshake before that
//! of BEP 3 which makes a connection look like random bytes. Layer 1.
//!
//! [`Initiator`] and [`Responder`] take bytes in any split and give bytes to send; at the end they hand over [`Agreed`]: the
//! ciphers of both directions, or none where only the handshake is hidden, and the bytes that came behind it. Deadlines,
//! and how many key exchanges a stranger is worth, are the session's.
//!
//! ```text
//! A: Ya, PadA
//! B:            Yb, PadB
//! A: HASH(req1, S), HASH(req2, SKEY) xor HASH(req3, S), {VC, provide, len PadC, PadC, len IA}, {IA}
//! B:            {VC, select, len PadD, PadD}, then what was selected
//! ```
//!
//! SKEY is the info_hash, S the shared secret, {} is RC4 by a key for each direction.

mod dh;
mod initiator;
mod rc4;
mod responder;
#[cfg(test)]
mod tests;

use sha1::{Digest, Sha1};

use crate::base::{InfoHash, Rng};
use dh::{KEY_BYTES, SECRET_BYTES};
pub use initiator::Initiator;
pub use rc4::Rc4;
pub use responder::{Responder, Step};

/// Longest PadA to PadD (the specification).
pub const PAD_BYTES_MAX: usize = 512;
/// Longest IA taken: a BEP 3 handshake and the first messages. What others send is 68 bytes.
pub const INITIAL_BYTES_MAX: usize = 4096;
/// Random bytes that one side of one handshake needs.
pub const RANDOM_BYTES: usize = SECRET_BYTES + 8;

/// A SHA-1.
const HASH_BYTES: usize = 20;
/// The verification constant: zeros.
const VC: [u8; 8] = [0; 8];

/// HASH(req2, SKEY): by which a responder finds the torrent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamHash([u8; HASH_BYTES]);

impl StreamHash {
    /// That of a torrent.
    pub fn of(info_hash: &InfoHash) -> StreamHash {
        StreamHash(hash(&[b"req2", info_hash.as_bytes()]))
    }
}

impl std::fmt::Debug for StreamHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamHash({:02x}…)", self.0[0])
    }
}

/// What follows the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// BEP 3 as it is: what the initiator said first was all that was hidden.
    Plain,
    /// All of it through RC4.
    Rc4,
}

/// The payloads that one side takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payloads {
    /// RC4 alone.
    Rc4Only,
    /// Both. Whoever may choose takes the plain one: it costs nothing more.
    Both,
}

const PLAIN_BIT: u32 = 1;
const RC4_BIT: u32 = 2;

impl Payloads {
    const fn bits(self) -> u32 {
        match self {
            Payloads::Rc4Only => RC4_BIT,
            Payloads::Both => PLAIN_BIT | RC4_BIT,
        }
    }
}

/// The randomness of one side of one handshake.
pub struct Random {
    secret: [u8; SECRET_BYTES],
    /// Pads only have to look random.
    pads: Rng,
}

impl Random {
    /// Out of bytes that nobody can guess, used for one handshake alone.
    pub fn new(bytes: [u8; RANDOM_BYTES]) -> Random {
        let mut secret = [0; SECRET_BYTES];
        let mut seed = [0; 8];
        secret.copy_from_slice(&bytes[..SECRET_BYTES]);
        seed.copy_from_slice(&bytes[SECRET_BYTES..]);
        Random {
            secret,
            pads: Rng::new(u64::from_le_bytes(seed)),
        }
    }

    fn pad_length(&mut self) -> usize {
        self.pads.below(PAD_BYTES_MAX as u64 + 1) as usize
    }

    /// A pad that is seen on the wire.
    fn pad(&mut self, out: &mut Vec<u8>) {
        let end = out.len() + self.pad_length();
        while out.len() < end {
            out.extend_from_slice(&self.pads.next_u64().to_le_bytes());
        }
        out.truncate(end);
    }

    /// Length and zeros of a pad that is encrypted.
    fn hidden_pad(&mut self, out: &mut Vec<u8>) {
        let length = self.pad_length();
        // At most 512.
        out.extend_from_slice(&(length as u16).to_be_bytes());
        out.resize(out.len() + length, 0);
    }
}

/// The ciphers of one connection. Their tables are a KiB each, too much for what moves them about.
#[derive(Debug)]
pub struct Ciphers {
    /// For what is sent.
    pub outbound: Box<Rc4>,
    /// For what is received.
    pub inbound: Box<Rc4>,
}

impl Ciphers {
    fn new(secret: &[u8; KEY_BYTES], info_hash: &InfoHash, is_initiator: bool) -> Ciphers {
        let key = |name: &[u8]| Box::new(Rc4::new(&hash(&[name, secret, info_hash.as_bytes()])));
        let (a, b) = (key(b"keyA"), key(b"keyB"));
        let (outbound, inbound) = if is_initiator { (a, b) } else { (b, a) };
        Ciphers { outbound, inbound }
    }
}

/// What a handshake ended with.
#[derive(Debug)]
pub struct Agreed {
    /// `None` with a plain payload.
    pub ciphers: Option<Ciphers>,
    /// What came with the handshake and behind it, decrypted: the beginning of the payload.
    pub early: Vec<u8>,
}

impl Agreed {
    /// Ends the handshake: `early` came inside of it, `behind` is as received.
    fn new(payload: Payload, mut ciphers: Ciphers, early: Vec<u8>, behind: Vec<u8>) -> Agreed {
        let mut behind = behind;
        let ciphers = match payload {
            Payload::Plain => None,
            Payload::Rc4 => {
                ciphers.inbound.apply(&mut behind);
                Some(ciphers)
            }
        };
        let mut early = early;
        early.append(&mut behind);
        Agreed { ciphers, early }
    }

    /// What follows.
    pub const fn payload(&self) -> Payload {
        match self.ciphers {
            None => Payload::Plain,
            Some(_) => Payload::Rc4,
        }
    }
}

/// Why a handshake came to nothing (HOSTILE.md E1–E5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MseError {
    #[error("a public key that would give the secret away")]
    BadKey,
    #[error("a BEP 3 handshake in the open")]
    InTheOpen,
    #[error("our own public key came back")]
    Reflected,
    #[error("no synchronisation within {searched_bytes} bytes")]
    NoSync { searched_bytes: usize },
    #[error("no torrent of ours")]
    UnknownTorrent,
    #[error("the verification constant is wrong")]
    WrongConstant,
    #[error("a pad of {got_bytes} bytes, {max_bytes} are allowed")]
    PadTooLong { got_bytes: usize, max_bytes: usize },
    #[error("an initial payload of {got_bytes} bytes, {max_bytes} are allowed")]
    InitialTooLong { got_bytes: usize, max_bytes: usize },
    #[error("payloads {theirs:#x} and {ours:#x} have nothing in common")]
    NothingInCommon { theirs: u32, ours: u32 },
}

/// Bytes received and not used yet.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// The first of them that is not used.
    at: usize,
}

impl Inbox {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The next bytes, once so many are there.
    fn take(&mut self, count: usize) -> Option<&mut [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get_mut(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken: &[u8] = self.take(N)?;
        taken.try_into().ok()
    }

    fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.at.min(self.bytes.len()));
        self.bytes
    }

    /// Goes past the first place where `wanted` lies, behind a pad of at most [`PAD_BYTES_MAX`] bytes; false when more
    /// bytes are needed to tell.
    fn find(&mut self, wanted: &[u8]) -> Result<bool, MseError> {
        let window = PAD_BYTES_MAX + wanted.len();
        let there = self.rest();
        let searched = there.get(..window).unwrap_or(there);
        match searched.windows(wanted.len()).position(|at| at == wanted) {
            Some(pad) => {
                self.at += pad + wanted.len();
                Ok(true)
            }
            None if searched.len() < window => Ok(false),
            None => Err(MseError::NoSync {
                searched_bytes: window,
            }),
        }
    }
}

fn hash(parts: &[&[u8]]) -> [u8; HASH_BYTES] {
    let mut sha1 = Sha1::new();
    for part in parts {
        sha1.update(part);
    }
    sha1.finalize().into()
}

fn pad_length(bytes: [u8; 2]) -> Result<usize, MseError> {
    let got_bytes = usize::from(u16::from_be_bytes(bytes));
    if got_bytes > PAD_BYTES_MAX {
        return Err(MseError::PadTooLong {
            got_bytes,
            max_bytes: PAD_BYTES_MAX,
        });
    }
    Ok(got_bytes)
}
