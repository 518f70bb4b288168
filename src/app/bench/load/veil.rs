//! The encryption of a synthetic leecher's connection. Layer 7.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};

use super::peer::info_hash_of;
use crate::uring::random::random;
use crate::wire::handshake::HANDSHAKE_BYTES;
use crate::wire::message::{Message, encode};
use crate::wire::mse::{Initiator, Payloads, Random, Rc4};

/// The program under test answers at once, or is asked again on another connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What stands between a connection's bytes and their meaning: nothing, unless it is hidden.
#[derive(Default)]
pub struct Veil {
    /// Came with the handshake, decrypted.
    early: Vec<u8>,
    inbound: Option<Box<Rc4>>,
    outbound: Option<Box<Rc4>>,
}

impl Veil {
    /// Hides a connection that is still blocking; `opening` is the BEP 3 handshake.
    pub fn hide(
        stream: &mut TcpStream,
        opening: &[u8; HANDSHAKE_BYTES],
        payloads: Payloads,
    ) -> io::Result<Veil> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let info_hash = info_hash_of(opening);
        let mut initiator = Initiator::new(info_hash, payloads, opening, Random::new(random()?));
        loop {
            stream.write_all(&initiator.take_out())?;
            let mut part = [0; 4096];
            let got = stream.read(&mut part)?;
            let part = part.get(..got).unwrap_or_default();
            if part.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if initiator.feed(part).map_err(io::Error::other)? {
                break;
            }
        }
        let agreed = initiator.finish().ok_or(io::ErrorKind::InvalidData)?;
        let (outbound, inbound) = match agreed.ciphers {
            Some(ciphers) => (Some(ciphers.outbound), Some(ciphers.inbound)),
            None => (None, None),
        };
        Ok(Veil {
            early: agreed.early,
            inbound,
            outbound,
        })
    }

    /// Whether what comes must be decrypted to be read.
    pub const fn hides(&self) -> bool {
        self.inbound.is_some()
    }

    /// Reads no more of what comes: decrypting it would cost as much as encrypting it cost the program under test.
    pub fn shut(&mut self) {
        self.inbound = None;
    }

    /// As recv(2), decrypted; the end of the stream is an error.
    pub fn receive(&mut self, fd: &TcpStream, place: &mut [u8]) -> io::Result<usize> {
        if !self.early.is_empty() {
            let count = place.len().min(self.early.len());
            let rest = self.early.split_off(count);
            place
                .iter_mut()
                .zip(&self.early)
                .for_each(|(to, from)| *to = *from);
            self.early = rest;
            return Ok(count);
        }
        let got = match recv(fd.as_raw_fd(), place, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(got) => got,
            Err(error) => return Err(error.into()),
        };
        if let Some(inbound) = &mut self.inbound {
            inbound.apply(place.get_mut(..got).unwrap_or_default());
        }
        Ok(got)
    }

    /// Passes over at most so many bytes; the kernel throws them away where nobody has to decrypt them.
    pub fn pass_over(
        &mut self,
        fd: &TcpStream,
        sink: &mut [u8],
        count: usize,
    ) -> io::Result<usize> {
        let count = count.min(sink.len());
        let sink = sink.get_mut(..count).unwrap_or_default();
        if !self.early.is_empty() || self.hides() {
            return self.receive(fd, sink);
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        match recv(fd.as_raw_fd(), sink, flags) {
            Ok(0) => Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(got) => Ok(got),
            Err(error) => Err(error.into()),
        }
    }

    /// Appends a message as it goes over the wire.
    pub fn say(&mut self, message: &Message<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        encode(message, out);
        if let Some(outbound) = &mut self.outbound {
            outbound.apply(out.get_mut(start..).unwrap_or_default());
        }
    }
}
