//! Packets of uTP (BEP 29): bytes to values and back. Layer 1.
//!
//! Numbers of packets are taken as they are; what they mean within a connection is `swarm::utp`'s matter.

/// Bytes of a header without extensions.
pub const HEADER_BYTES: usize = 20;
/// The version in the low half of the first byte.
const VERSION: u8 = 1;
/// The extension that names packets received past a gap.
const SELECTIVE_ACK: u8 = 1;
/// An extension of ours that fills a packet up. Nobody knows it, so everybody passes over it.
const PADDING: u8 = 0x50;
/// Most extensions of one packet that are passed over: nobody sends more than three.
const EXTENSIONS_MAX: usize = 16;
/// Longest selective ack that is written: the packets that a window of ours holds.
pub const SACK_BYTES_MAX: usize = 128;
/// Head and longest body of one extension.
const EXTENSION_BYTES_MAX: usize = 2 + 255;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data,
    /// The last packet of one direction.
    Fin,
    /// An ack without data; takes no number of its own.
    State,
    /// The connection is unknown or given up.
    Reset,
    /// Begins a connection.
    Syn,
}

impl Kind {
    const fn of(first: u8) -> Option<Kind> {
        if first & 0x0f != VERSION {
            return None;
        }
        match first >> 4 {
            0 => Some(Kind::Data),
            1 => Some(Kind::Fin),
            2 => Some(Kind::State),
            3 => Some(Kind::Reset),
            4 => Some(Kind::Syn),
            _ => None,
        }
    }

    const fn first_byte(self) -> u8 {
        let kind = match self {
            Kind::Data => 0,
            Kind::Fin => 1,
            Kind::State => 2,
            Kind::Reset => 3,
            Kind::Syn => 4,
        };
        kind << 4 | VERSION
    }
}

/// Whether a datagram begins as packets of uTP do.
pub fn is_packet(datagram: &[u8]) -> bool {
    datagram.first().copied().and_then(Kind::of).is_some()
}

/// The fields that every packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub connection_id: u16,
    /// The sender's clock when it was sent, in µs, cut to 32 bits.
    pub timestamp_us: u32,
    /// How much later, by the sender's clock, the last packet of the other side came than that says; 0 is unknown.
    pub delay_us: u32,
    /// Bytes that the sender of this has room for.
    pub window_bytes: u32,
    pub seq_nr: u16,
    pub ack_nr: u16,
}

/// One packet, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub header: Header,
    pub sack: Option<SelectiveAck<'a>>,
    pub payload: &'a [u8],
}

/// Which packets past `ack_nr + 1` have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectiveAck<'a>(&'a [u8]);

impl SelectiveAck<'_> {
    /// How far past `ack_nr` each packet lies that has come, in rising order, 2 at least.
    pub fn offsets(self) -> impl Iterator<Item = u16> {
        let bytes = self.0.iter().copied().zip((2..).step_by(8));
        bytes.flat_map(|(byte, first)| {
            (0..8u16)
                .filter(move |bit| byte >> bit & 1 == 1)
                .map(move |bit| first + bit)
        })
    }
}

/// Why a datagram is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("a packet of uTP has at least {HEADER_BYTES} bytes, not {got_bytes}")]
    TooShort { got_bytes: usize },
    #[error("unknown type or version {first:#04x}")]
    UnknownKind { first: u8 },
    #[error("an extension of {declared_bytes} bytes where {left_bytes} are left")]
    ExtensionTooLong {
        declared_bytes: usize,
        left_bytes: usize,
    },
    #[error("more than {EXTENSIONS_MAX} extensions")]
    TooManyExtensions,
}

impl<'a> Packet<'a> {
    /// Reads one datagram.
    ///
    /// # Errors
    /// It is no packet of uTP.
    pub fn parse(datagram: &'a [u8]) -> Result<Packet<'a>, PacketError> {
        let Some((head, mut rest)) = datagram.split_first_chunk::<HEADER_BYTES>() else {
            let got_bytes = datagram.len();
            return Err(PacketError::TooShort { got_bytes });
        };
        let first = head[0];
        let kind = Kind::of(first).ok_or(PacketError::UnknownKind { first })?;
        let [_, mut extension, i0, i1, fields @ ..] = *head;
        let [
            t0,
            t1,
            t2,
            t3,
            d0,
            d1,
            d2,
            d3,
            w0,
            w1,
            w2,
            w3,
            s0,
            s1,
            a0,
            a1,
        ] = fields;
        let header = Header {
            kind,
            connection_id: u16::from_be_bytes([i0, i1]),
            timestamp_us: u32::from_be_bytes([t0, t1, t2, t3]),
            delay_us: u32::from_be_bytes([d0, d1, d2, d3]),
            window_bytes: u32::from_be_bytes([w0, w1, w2, w3]),
            seq_nr: u16::from_be_bytes([s0, s1]),
            ack_nr: u16::from_be_bytes([a0, a1]),
        };
        let (mut sack, mut count) = (None, 0);
        while extension != 0 {
            count += 1;
            if count > EXTENSIONS_MAX {
                return Err(PacketError::TooManyExtensions);
            }
            let (body, behind, next) = split_extension(rest)?;
            if extension == SELECTIVE_ACK {
                // A multiple of 4 bytes says BEP 29; libtorrent leaves out what is zero at the end.
                sack = Some(SelectiveAck(body));
            }
            (extension, rest) = (next, behind);
        }
        Ok(Packet {
            header,
            sack,
            payload: rest,
        })
    }
}

/// The body of the extension at the front, what follows it, and the type of the next one.
fn split_extension(rest: &[u8]) -> Result<(&[u8], &[u8], u8), PacketError> {
    let too_long = |declared_bytes, left_bytes| PacketError::ExtensionTooLong {
        declared_bytes,
        left_bytes,
    };
    let [next, length, behind @ ..] = rest else {
        return Err(too_long(2, rest.len()));
    };
    let length = usize::from(*length);
    let (body, behind) = behind
        .split_at_checked(length)
        .ok_or_else(|| too_long(length, behind.len()))?;
    Ok((body, behind, *next))
}

impl Header {
    /// Appends the header without extensions.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_with(0, out);
    }

    /// Appends the header and a selective ack (1 to [`SACK_BYTES_MAX`] bytes, a multiple of 4).
    ///
    /// # Panics
    /// When the selective ack has another length.
    pub fn write_with_sack(&self, sack: &[u8], out: &mut Vec<u8>) {
        assert!(!sack.is_empty() && sack.len().is_multiple_of(4));
        assert!(sack.len() <= SACK_BYTES_MAX);
        self.write_with(SELECTIVE_ACK, out);
        out.extend([0, sack.len() as u8]);
        out.extend_from_slice(sack);
    }

    /// Appends the header and at least 2 bytes of extensions that mean nothing.
    ///
    /// # Panics
    /// When there is to be less.
    pub fn write_padded(&self, padding_bytes: usize, out: &mut Vec<u8>) {
        assert!(padding_bytes >= 2);
        self.write_with(PADDING, out);
        let mut left = padding_bytes;
        while left > 0 {
            // What is left must hold the head of another one.
            let part = match left {
                ..=EXTENSION_BYTES_MAX => left,
                _ if left - EXTENSION_BYTES_MAX == 1 => EXTENSION_BYTES_MAX - 1,
                _ => EXTENSION_BYTES_MAX,
            };
            left -= part;
            out.push(if left > 0 { PADDING } else { 0 });
            out.push((part - 2) as u8);
            out.resize(out.len() + part - 2, 0);
        }
    }

    fn write_with(&self, extension: u8, out: &mut Vec<u8>) {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind.first_byte();
        bytes[1] = extension;
        bytes[2..4].copy_from_slice(&self.connection_id.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.timestamp_us.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.delay_us.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.window_bytes.to_be_bytes());
        bytes[16..18].copy_from_slice(&self.seq_nr.to_be_bytes());
        bytes[18..].copy_from_slice(&self.ack_nr.to_be_bytes());
        out.extend_from_slice(&bytes);
    }
}

/// The packet that says that there is no such connection, for one that came; never longer than that. `None` for packets
/// that ask for no answer. `seq_nr` is of our choice.
pub fn refuse(datagram: &[u8], seq_nr: u16) -> Option<[u8; HEADER_BYTES]> {
    let asked = Packet::parse(datagram).ok()?.header;
    if matches!(asked.kind, Kind::Reset | Kind::State) {
        return None;
    }
    let reset = Header {
        kind: Kind::Reset,
        connection_id: asked.connection_id,
        timestamp_us: 0,
        delay_us: 0,
        window_bytes: 0,
        seq_nr,
        ack_nr: asked.seq_nr,
    };
    let mut out = Vec::with_capacity(HEADER_BYTES);
    reset.write(&mut out);
    out.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        kind: Kind::State,
        connection_id: 0xcc47,
        timestamp_us: 0x0102_0304,
        delay_us: 0x0506_0708,
        window_bytes: 0x0010_0000,
        seq_nr: 0x1234,
        ack_nr: 0xfffe,
    };

    #[test]
    fn a_header_is_these_bytes_and_reads_back() {
        let mut out = Vec::new();
        HEADER.write(&mut out);
        let golden = [
            0x21, 0, 0xcc, 0x47, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0x10, 0, 0, 0x12, 0x34, 0xff, 0xfe,
        ];
        assert_eq!(out, golden);
        for kind in [Kind::Data, Kind::Fin, Kind::State, Kind::Reset, Kind::Syn] {
            let header = Header { kind, ..HEADER };
            let mut out = Vec::new();
            header.write(&mut out);
            out.extend(b"payload");
            assert!(is_packet(&out));
            let packet = Packet::parse(&out).unwrap();
            assert_eq!((packet.header, packet.sack), (header, None));
            assert_eq!(packet.payload, b"payload");
        }
        for first in [0x51, 0x20, 0x22, 0xf1] {
            out[0] = first;
            assert!(!is_packet(&out));
            assert_eq!(
                Packet::parse(&out),
                Err(PacketError::UnknownKind { first }),
                "{first:#x}"
            );
        }
    }

    #[test]
    fn a_selective_ack_counts_from_the_second_packet_on_lowest_bit_first() {
        let mut out = Vec::new();
        HEADER.write_with_sack(&[0b1000_0001, 0, 0b10, 0x80], &mut out);
        out.extend(b"xy");
        let packet = Packet::parse(&out).unwrap();
        let offsets: Vec<u16> = packet.sack.unwrap().offsets().collect();
        assert_eq!(offsets, [2, 9, 19, 33]);
        assert_eq!(packet.payload, b"xy");
    }

    #[test]
    fn padding_of_any_length_is_passed_over() {
        for padding_bytes in (2..=1200).chain([2056]) {
            let mut out = Vec::new();
            HEADER.write_padded(padding_bytes, &mut out);
            assert_eq!(out.len(), HEADER_BYTES + padding_bytes);
            out.extend(b"payload");
            let packet = Packet::parse(&out).unwrap();
            assert_eq!((packet.sack, packet.payload), (None, &b"payload"[..]));
        }
    }

    #[test]
    fn extensions_stay_inside_and_are_few() {
        let mut head = Vec::new();
        HEADER.write(&mut head);
        let with = |first: u8, rest: &[u8]| {
            let mut out = head.clone();
            out[1] = first;
            out.extend_from_slice(rest);
            Packet::parse(&out).map(|packet| packet.payload.len())
        };
        assert_eq!(
            with(2, &[0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            Ok(1),
            "skipped"
        );
        let too_long = |declared_bytes, left_bytes| {
            Err(PacketError::ExtensionTooLong {
                declared_bytes,
                left_bytes,
            })
        };
        assert_eq!(with(2, &[]), too_long(2, 0));
        assert_eq!(with(2, &[0]), too_long(2, 1));
        assert_eq!(with(2, &[0, 3, 1, 2]), too_long(3, 2));
        for (length, count) in [(0, 0), (3, 24), (5, 40)] {
            let mut body = vec![0, length];
            body.resize(2 + usize::from(length), 0xff);
            let mut out = head.clone();
            out[1] = SELECTIVE_ACK;
            out.extend(body);
            let sack = Packet::parse(&out).unwrap().sack.unwrap();
            assert_eq!(sack.offsets().count(), count, "of any length");
        }
        let mut chain = [2, 0].repeat(EXTENSIONS_MAX - 1);
        chain.extend([0, 0]);
        assert_eq!(with(2, &chain), Ok(0));
        assert_eq!(
            with(2, &[2, 0].repeat(EXTENSIONS_MAX + 1)),
            Err(PacketError::TooManyExtensions)
        );
        for length in 0..HEADER_BYTES {
            let got_bytes = length;
            assert_eq!(
                Packet::parse(&head[..length]),
                Err(PacketError::TooShort { got_bytes })
            );
        }
    }

    #[test]
    fn a_refusal_names_the_packet_that_it_answers_and_acks_are_not_answered() {
        let mut syn = Vec::new();
        let header = Header {
            kind: Kind::Syn,
            ..HEADER
        };
        header.write(&mut syn);
        let reset = refuse(&syn, 0x4321).unwrap();
        let header = Packet::parse(&reset).unwrap().header;
        assert_eq!((header.kind, header.connection_id), (Kind::Reset, 0xcc47));
        assert_eq!((header.seq_nr, header.ack_nr), (0x4321, 0x1234));
        for first in [0x21, 0x31, 0x51, b'd'] {
            syn[0] = first;
            assert_eq!(refuse(&syn, 0), None, "{first:#x}");
        }
        assert_eq!(refuse(&syn[..19], 0), None);
    }
}
