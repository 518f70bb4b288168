//! The extension handshake (BEP 10) with what BEP 9, BEP 21 and BEP 54 put into it, and the two extension
//! messages that are no bencode: `lt_donthave` and `upload_only`. Layer 1.

use super::bencode::{BencodeError, Dict, Item, scan_prefix};
use super::metainfo::METADATA_BYTES_MAX;
use super::tracker::clean_text;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;

/// The longest extension handshake that is read. Real ones stay under 1 KiB; 64 KiB keep the work for one
/// small whatever it holds (HOSTILE.md W13).
pub const EXTENSION_HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// The id under which the extension handshake itself is sent (BEP 10).
pub const EXTENSION_HANDSHAKE_ID: u8 = 0;

/// Requests a peer is sent when it does not say how many it queues: what libtorrent and others accept at least.
pub const REQQ_DEFAULT: u32 = 250;

/// Highest `reqq` believed. 8,192 blocks are 128 MiB in flight, more than any path needs (HOSTILE.md W13).
pub const REQQ_MAX: u32 = 8_192;

/// Characters of a client's name that are kept.
pub const CLIENT_CHARS_MAX: usize = 64;

/// An extension that Gyre knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extension {
    /// Metadata exchange, BEP 9.
    UtMetadata,
    /// Peer exchange, BEP 11.
    UtPex,
    /// Hole punching, BEP 55.
    UtHolepunch,
    /// "I no longer have this piece", BEP 54.
    LtDonthave,
    /// "I only upload", told after the handshake (the key is BEP 21, the message is libtorrent's).
    UploadOnly,
}

impl Extension {
    /// All of them, in the order of their names.
    pub const ALL: [Extension; 5] = [
        Extension::LtDonthave,
        Extension::UploadOnly,
        Extension::UtHolepunch,
        Extension::UtMetadata,
        Extension::UtPex,
    ];

    /// The key in `m`.
    pub const fn name(self) -> &'static str {
        match self {
            Extension::UtMetadata => "ut_metadata",
            Extension::UtPex => "ut_pex",
            Extension::UtHolepunch => "ut_holepunch",
            Extension::LtDonthave => "lt_donthave",
            Extension::UploadOnly => "upload_only",
        }
    }

    /// The id under which peers send it to us.
    pub const fn our_id(self) -> u8 {
        match self {
            Extension::UtPex => 1,
            Extension::UtMetadata => 2,
            Extension::UploadOnly => 3,
            Extension::UtHolepunch => 4,
            Extension::LtDonthave => 7,
        }
    }

    /// The extension that a received extension message's id means.
    pub fn from_our_id(id: u8) -> Option<Extension> {
        Extension::ALL
            .into_iter()
            .find(|extension| extension.our_id() == id)
    }

    fn from_name(name: &[u8]) -> Option<Extension> {
        Extension::ALL
            .into_iter()
            .find(|extension| extension.name().as_bytes() == name)
    }

    const fn slot(self) -> usize {
        self as usize
    }
}

/// What a handshake says about one extension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum IdChange {
    #[default]
    Unsaid,
    Disabled,
    Id(NonZeroU8),
}

/// The ids under which a peer wants to get extension messages, kept over all its handshakes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerExtensions([Option<NonZeroU8>; Extension::ALL.len()]);

impl PeerExtensions {
    /// The id to send this extension with; `None` when the peer does not take it.
    pub fn id(&self, extension: Extension) -> Option<NonZeroU8> {
        self.0.get(extension.slot()).copied().flatten()
    }

    /// Takes over what a handshake says; extensions it does not name stay as they are (BEP 10).
    pub fn update(&mut self, handshake: &ExtensionHandshake) {
        for (id, change) in self.0.iter_mut().zip(handshake.ids) {
            match change {
                IdChange::Unsaid => {}
                IdChange::Disabled => *id = None,
                IdChange::Id(new) => *id = Some(new),
            }
        }
    }
}

/// An extension handshake as a peer sent it; what it did not say, or said nonsensically, is `None`.
///
/// A peer may send several: a `None` in a later one takes nothing back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtensionHandshake {
    ids: [IdChange; Extension::ALL.len()],
    /// `v`: name and version, made safe to print, at most [`CLIENT_CHARS_MAX`] characters.
    pub client: Option<String>,
    /// `p`: the port the peer listens on.
    pub listen_port: Option<u16>,
    /// `reqq`: requests it queues, in `1..=`[`REQQ_MAX`]; see [`REQQ_DEFAULT`].
    pub reqq: Option<u32>,
    /// `yourip`: our address as the peer sees it. A claim of one peer, nothing more.
    pub your_ip: Option<IpAddr>,
    /// `metadata_size` in `1..=30 MiB` (BEP 9).
    pub metadata_size_bytes: Option<u32>,
    /// `upload_only` (BEP 21).
    pub upload_only: Option<bool>,
    /// `e`: it would rather be talked to encrypted.
    pub prefers_encryption: Option<bool>,
    /// `ipv4`: another address of the peer.
    pub ipv4: Option<Ipv4Addr>,
    /// `ipv6`: another address of the peer.
    pub ipv6: Option<Ipv6Addr>,
}

/// The payload of an extension message is not what its extension defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// More bytes than any honest peer sends.
    #[error("extension payload of {got_bytes} bytes, at most {max_bytes} are taken")]
    TooLong { got_bytes: usize, max_bytes: usize },
    /// Not bencode.
    #[error(transparent)]
    Bencode(#[from] BencodeError),
    /// Bencode, but no dictionary.
    #[error("extension payload is not a dictionary")]
    NotADictionary,
    /// A number that has to be there is missing or outside its range.
    #[error("`{key}` is missing or outside 0..={max}")]
    BadNumber { key: &'static str, max: u64 },
    /// Not as long as it must be.
    #[error("extension payload of {got_bytes} bytes, expected {expected_bytes}")]
    BadLength {
        expected_bytes: usize,
        got_bytes: usize,
    },
}

/// Scans a payload that begins with a dictionary; also gives the bytes behind it.
pub(super) fn scan_dict(
    payload: &[u8],
    max_bytes: usize,
) -> Result<(Dict<'_>, &[u8]), ExtensionError> {
    if payload.len() > max_bytes {
        return Err(ExtensionError::TooLong {
            got_bytes: payload.len(),
            max_bytes,
        });
    }
    let (scanned, used) = scan_prefix(payload)?;
    let dict = scanned.dict().ok_or(ExtensionError::NotADictionary)?;
    Ok((dict, payload.get(used..).unwrap_or_default()))
}

impl ExtensionHandshake {
    /// Reads the payload of an extension message with id 0.
    ///
    /// # Errors
    /// When it is over [`EXTENSION_HANDSHAKE_BYTES_MAX`] or no bencoded dictionary. Values of a wrong type or
    /// outside their range are passed over instead; bytes behind the dictionary are not looked at.
    pub fn parse(payload: &[u8]) -> Result<Self, ExtensionError> {
        let (dict, _) = scan_dict(payload, EXTENSION_HANDSHAKE_BYTES_MAX)?;
        let mut handshake = ExtensionHandshake::default();
        for (key, value) in dict.iter() {
            match key {
                b"m" => handshake.ids = value.as_dict().map(read_ids).unwrap_or_default(),
                b"v" => handshake.client = value.as_bytes().map(clean_client),
                b"p" => handshake.listen_port = value.as_int().and_then(port),
                b"reqq" => handshake.reqq = value.as_int().and_then(reqq),
                b"yourip" => handshake.your_ip = value.as_bytes().and_then(ip),
                b"metadata_size" => {
                    handshake.metadata_size_bytes = value.as_int().and_then(metadata_size);
                }
                b"upload_only" => handshake.upload_only = value.as_int().map(|value| value != 0),
                b"e" => handshake.prefers_encryption = value.as_int().map(|value| value != 0),
                b"ipv4" => handshake.ipv4 = value.as_bytes().and_then(ipv4),
                b"ipv6" => handshake.ipv6 = value.as_bytes().and_then(ipv6),
                _ => {}
            }
        }
        Ok(handshake)
    }
}

fn read_ids(m: Dict<'_>) -> [IdChange; Extension::ALL.len()] {
    let mut ids = [IdChange::Unsaid; Extension::ALL.len()];
    for (name, value) in m.iter() {
        let slot = Extension::from_name(name).and_then(|known| ids.get_mut(known.slot()));
        if let (Some(slot), Some(id)) = (slot, value.as_int()) {
            // A number that is no byte cannot be sent: the extension is as good as disabled.
            let id = u8::try_from(id).ok().and_then(NonZeroU8::new);
            *slot = id.map_or(IdChange::Disabled, IdChange::Id);
        }
    }
    ids
}

fn clean_client(bytes: &[u8]) -> String {
    clean_text(bytes).chars().take(CLIENT_CHARS_MAX).collect()
}

fn port(value: i64) -> Option<u16> {
    u16::try_from(value).ok().filter(|port| *port != 0)
}

fn reqq(value: i64) -> Option<u32> {
    let value = value.min(i64::from(REQQ_MAX));
    u32::try_from(value).ok().filter(|reqq| *reqq != 0)
}

fn metadata_size(value: i64) -> Option<u32> {
    let size = u32::try_from(value).ok().filter(|size| *size != 0)?;
    (u64::from(size) <= METADATA_BYTES_MAX as u64).then_some(size)
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

fn ipv6(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = ipv4(bytes).map(IpAddr::V4);
    v4.or_else(|| ipv6(bytes).map(|v6| v6.to_canonical()))
}

/// Our side of the extension handshake.
#[derive(Clone, Copy, Debug)]
pub struct OurExtensionHandshake<'a> {
    /// Extensions we take; a private torrent leaves `ut_pex` out (BEP 27).
    pub extensions: &'a [Extension],
    /// Name and version.
    pub client: &'a str,
    pub listen_port: Option<u16>,
    /// Requests we queue for one peer.
    pub reqq: u32,
    /// Address the peer connects from.
    pub your_ip: Option<IpAddr>,
    /// Length of the info dictionary when we can serve it (BEP 9).
    pub metadata_size_bytes: Option<u32>,
    /// We want nothing more (BEP 21).
    pub upload_only: bool,
}

impl OurExtensionHandshake<'_> {
    /// The payload for [`Message::Extended`](super::message::Message::Extended) with
    /// [`EXTENSION_HANDSHAKE_ID`].
    pub fn encode(&self) -> Vec<u8> {
        let ids = self.extensions.iter();
        let ids = ids.map(|one| (one.name().as_bytes(), Item::Int(one.our_id().into())));
        let mut entries: Vec<(&[u8], Item<'_>)> = vec![
            (b"m", Item::dict(ids)),
            (b"reqq", Item::Int(self.reqq.into())),
            (b"v", Item::text(self.client)),
        ];
        if let Some(port) = self.listen_port {
            entries.push((b"p", Item::Int(port.into())));
        }
        if let Some(size) = self.metadata_size_bytes {
            entries.push((b"metadata_size", Item::Int(size.into())));
        }
        if self.upload_only {
            entries.push((b"upload_only", Item::Int(1)));
        }
        if let Some(ip) = self.your_ip {
            let octets = match ip.to_canonical() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            entries.push((b"yourip", Item::bytes(octets)));
        }
        Item::dict(entries).encode()
    }
}

/// The payload of `lt_donthave` (BEP 54).
pub const fn encode_donthave(piece: u32) -> [u8; 4] {
    piece.to_be_bytes()
}

/// Reads the payload of `lt_donthave` (BEP 54): a piece number, unchecked.
///
/// # Errors
/// When it is not four bytes long.
pub fn parse_donthave(payload: &[u8]) -> Result<u32, ExtensionError> {
    exactly(payload).map(u32::from_be_bytes)
}

/// Reads the payload of the `upload_only` message: one byte, 0 or not.
///
/// # Errors
/// When it is not one byte long.
pub fn parse_upload_only(payload: &[u8]) -> Result<bool, ExtensionError> {
    exactly(payload).map(|[flag]| flag != 0)
}

fn exactly<const N: usize>(payload: &[u8]) -> Result<[u8; N], ExtensionError> {
    payload.try_into().map_err(|_| ExtensionError::BadLength {
        expected_bytes: N,
        got_bytes: payload.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> ExtensionHandshake {
        ExtensionHandshake::parse(text).unwrap()
    }

    fn ids_of(text: &[u8]) -> PeerExtensions {
        let mut ids = PeerExtensions::default();
        ids.update(&parse(text));
        ids
    }

    #[test]
    fn our_handshake_matches_its_golden_bytes_and_reads_back() {
        let ours = OurExtensionHandshake {
            extensions: &Extension::ALL,
            client: "Gyre 0.1",
            listen_port: Some(6881),
            reqq: 512,
            your_ip: Some([10, 0, 0, 1].into()),
            metadata_size_bytes: Some(31_235),
            upload_only: true,
        };
        let golden = b"d1:md11:lt_donthavei7e11:upload_onlyi3e12:ut_holepunchi4e11:ut_metadatai2e6:ut_pexi1ee\
            13:metadata_sizei31235e1:pi6881e4:reqqi512e11:upload_onlyi1e1:v8:Gyre 0.16:yourip4:\x0a\0\0\x01e";
        assert_eq!(ours.encode(), golden);
        let read = parse(golden);
        assert_eq!(read.client.as_deref(), Some("Gyre 0.1"));
        assert_eq!(read.listen_port, Some(6881));
        assert_eq!(read.reqq, Some(512));
        assert_eq!(read.your_ip, ours.your_ip);
        assert_eq!(read.metadata_size_bytes, Some(31_235));
        assert_eq!(read.upload_only, Some(true));
        let ids = ids_of(golden);
        for extension in Extension::ALL {
            let id = ids.id(extension).map(NonZeroU8::get);
            assert_eq!(id, Some(extension.our_id()));
            assert_eq!(Extension::from_our_id(extension.our_id()), Some(extension));
        }
        assert_eq!(Extension::from_our_id(0), None);
    }

    #[test]
    fn later_handshake_changes_only_what_it_names() {
        let mut ids = ids_of(b"d1:md11:ut_metadatai3e6:ut_pexi1eee");
        ids.update(&parse(b"d1:md6:ut_pexi0eee"));
        assert_eq!(ids.id(Extension::UtPex), None);
        assert_eq!(ids.id(Extension::UtMetadata), NonZeroU8::new(3));
        ids.update(&parse(b"de"));
        assert_eq!(ids.id(Extension::UtMetadata), NonZeroU8::new(3));
    }

    #[test]
    fn ids_that_are_no_byte_disable_the_extension() {
        for id in ["0", "256", "-1", "9223372036854775807"] {
            let text = format!("d1:md11:ut_metadatai255e6:ut_pexi{id}eee");
            let ids = ids_of(text.as_bytes());
            assert_eq!(ids.id(Extension::UtPex), None, "{id}");
            assert_eq!(ids.id(Extension::UtMetadata), NonZeroU8::new(255));
        }
    }

    #[test]
    fn reqq_is_clamped_and_zero_is_unsaid() {
        let reqq = |text: &str| parse(format!("d4:reqqi{text}ee").as_bytes()).reqq;
        assert_eq!(reqq("0"), None);
        assert_eq!(reqq("-1"), None);
        assert_eq!(reqq("1"), Some(1));
        assert_eq!(reqq("2147483648"), Some(REQQ_MAX));
        assert_eq!(reqq("9223372036854775807"), Some(REQQ_MAX));
    }

    #[test]
    fn metadata_size_outside_its_range_is_unsaid() {
        let size =
            |text: i64| parse(format!("d13:metadata_sizei{text}ee").as_bytes()).metadata_size_bytes;
        let max = i64::try_from(METADATA_BYTES_MAX).unwrap();
        assert_eq!(size(0), None);
        assert_eq!(size(-1), None);
        assert_eq!(size(1 << 60), None);
        assert_eq!(size(max + 1), None);
        assert_eq!(size(max), u32::try_from(max).ok());
        assert_eq!(size(1), Some(1));
    }

    #[test]
    fn hundred_thousand_keys_are_refused_and_many_keys_are_passed_over() {
        let with_keys = |count: usize| {
            let keys = (0..count).map(|key| format!("6:{key:06}i1e"));
            let keys: String = keys.collect();
            format!("d1:md{keys}6:ut_pexi9eee").into_bytes()
        };
        let many = with_keys(100_000);
        assert!(matches!(
            ExtensionHandshake::parse(&many),
            Err(ExtensionError::TooLong { .. })
        ));
        let ids = ids_of(&with_keys(5_000));
        assert_eq!(ids.id(Extension::UtPex), NonZeroU8::new(9));
    }

    #[test]
    fn client_name_is_escaped_and_cut() {
        let read = parse(b"d1:v8:bad\x1b[2J\ne");
        assert_eq!(read.client.as_deref(), Some("bad\\u{1b}[2J\\u{a}"));
        let long = format!("d1:v1000:{}e", "x".repeat(1000));
        let cut = parse(long.as_bytes()).client.unwrap();
        assert_eq!(cut.chars().count(), CLIENT_CHARS_MAX);
    }

    #[test]
    fn values_of_a_wrong_type_or_length_are_passed_over() {
        let read = parse(
            b"d4:ipv43:abc4:ipv6i1e1:mi1e13:metadata_size1:x1:p1:x4:reqqle1:vi1e6:yourip5:abcdee",
        );
        assert_eq!(read, ExtensionHandshake::default());
        assert_eq!(parse(b"d1:pi65536ee").listen_port, None);
        assert_eq!(parse(b"d1:pi0ee").listen_port, None);
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let text =
            b"d4:ipv44:\x01\x02\x03\x044:ipv616:0123456789abcdef6:yourip16:0123456789abcdefe";
        let read = parse(text);
        let six = Ipv6Addr::from(*b"0123456789abcdef");
        assert_eq!(read.ipv4, Some(Ipv4Addr::new(1, 2, 3, 4)));
        assert_eq!(read.ipv6, Some(six));
        assert_eq!(read.your_ip, Some(IpAddr::V6(six)));
    }

    #[test]
    fn what_is_no_dictionary_is_an_error() {
        assert_eq!(
            ExtensionHandshake::parse(b"i1e"),
            Err(ExtensionError::NotADictionary)
        );
        let whole = b"d1:md6:ut_pexi1eee";
        for end in 0..whole.len() {
            let cut = ExtensionHandshake::parse(&whole[..end]);
            assert!(matches!(cut, Err(ExtensionError::Bencode(_))), "{end}");
        }
    }

    #[test]
    fn messages_of_fixed_length_demand_it() {
        assert_eq!(
            parse_donthave(&encode_donthave(0x0102_0304)),
            Ok(0x0102_0304)
        );
        let bad = |expected_bytes, got_bytes| ExtensionError::BadLength {
            expected_bytes,
            got_bytes,
        };
        assert_eq!(parse_donthave(&[0; 3]), Err(bad(4, 3)));
        assert_eq!(parse_upload_only(&[1]), Ok(true));
        assert_eq!(parse_upload_only(&[0]), Ok(false));
        assert_eq!(parse_upload_only(&[]), Err(bad(1, 0)));
    }
}
