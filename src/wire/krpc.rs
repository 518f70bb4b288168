//! KRPC: the datagrams of the DHT as values and back (BEP 5, with BEP 32, 33, 42, 43 and 51). Layer 1.
//!
//! A datagram is scanned once and then read in place: lists of nodes and peers are walked as they lie in it, and never
//! further than the `*_MAX` below, whatever they claim. Whom to believe is the swarm's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::bencode::{BencodeError, Dict, Item, List, scan};
use super::tracker::{Family, is_usable_peer, write_compact};
use crate::base::{InfoHash, NodeId};

/// The longest datagram read: more than BEP 32's 1,024 bytes, as much as an Ethernet frame carries.
pub const DATAGRAM_BYTES_MAX: usize = 1_500;
/// The longest datagram written (BEP 32, "Maximum packet size").
pub const ANSWER_BYTES_MAX: usize = 1_024;
/// Nodes read of one list: BEP 5 has eight, some send a few more.
pub const NODES_MAX: usize = 16;
/// Peers read of one answer: as many as fit into the longest datagram that is sent.
pub const VALUES_MAX: usize = 128;
/// The longest transaction id echoed: two to eight bytes are in use.
pub const TRANSACTION_BYTES_MAX: usize = 32;
/// The longest token kept and given back: four to twenty bytes are in use.
pub const TOKEN_BYTES_MAX: usize = 64;
/// Bytes of a Bloom filter (BEP 33).
pub const BLOOM_BYTES: usize = 256;
/// What we call ourselves: the client of BEP 20 and a version.
pub const VERSION: [u8; 4] = *b"GY\x00\x01";

/// A node and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contact {
    pub id: NodeId,
    pub addr: SocketAddr,
}

/// Which families a query wants nodes of (BEP 32).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    pub v4: bool,
    pub v6: bool,
}

impl Want {
    /// What is given to a query over that family which does not say.
    pub const fn only(family: Family) -> Want {
        Want {
            v4: matches!(family, Family::V4),
            v6: matches!(family, Family::V6),
        }
    }

    /// Both families.
    pub const BOTH: Want = Want { v4: true, v6: true };

    /// Whether nodes of the family are wanted.
    pub const fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method<'a> {
    Ping,
    FindNode {
        target: NodeId,
    },
    GetPeers {
        info_hash: InfoHash,
        /// Peers that still fetch are preferred (BEP 33).
        no_seed: bool,
        /// Bloom filters are wanted (BEP 33).
        scrape: bool,
    },
    AnnouncePeer {
        info_hash: InfoHash,
        /// `None` is the port that the datagram came from (`implied_port`).
        port: Option<u16>,
        token: &'a [u8],
        is_seed: bool,
    },
    /// BEP 51.
    SampleInfohashes {
        target: NodeId,
    },
    /// Nothing we know.
    Unknown,
    /// A known method without what belongs to it.
    Malformed,
}

/// A query with its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    pub id: NodeId,
    pub method: Method<'a>,
    /// `None` when it does not say.
    pub want: Option<Want>,
    /// The sender answers no queries (BEP 43).
    pub is_read_only: bool,
}

/// A good answer, its lists still as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub id: NodeId,
    /// Needed to announce at that node; none when it is longer than [`TOKEN_BYTES_MAX`].
    pub token: Option<&'a [u8]>,
    /// Where the answering node sees us (BEP 42).
    pub external: Option<SocketAddr>,
    nodes_v4: &'a [u8],
    nodes_v6: &'a [u8],
    values: Option<List<'a>>,
}

/// One datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub transaction: &'a [u8],
    pub body: Body<'a>,
}

/// What kind of datagram it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    Query(Query<'a>),
    Answer(Answer<'a>),
    /// A refusal with its code.
    Error(i64),
}

/// Why bytes are no datagram of the DHT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KrpcError {
    #[error("{got_bytes} bytes, more than {max_bytes}")]
    TooLong { got_bytes: usize, max_bytes: usize },
    #[error(transparent)]
    Bencode(#[from] BencodeError),
    #[error("not a dictionary")]
    NotADict,
    #[error("no transaction id of 1 to {max_bytes} bytes")]
    BadTransaction { max_bytes: usize },
    #[error("no node id of 20 bytes")]
    BadId,
    #[error("neither query nor answer nor error")]
    BadKind,
}

/// Codes of refusals (BEP 5).
pub mod code {
    /// Malformed, bad arguments or a bad token.
    pub const PROTOCOL: i64 = 203;
    /// A method that is not known.
    pub const METHOD_UNKNOWN: i64 = 204;
}

impl<'a> Packet<'a> {
    /// Reads one datagram.
    ///
    /// # Errors
    /// It is longer than [`DATAGRAM_BYTES_MAX`], no bencode, or lacks what every message has.
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, KrpcError> {
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(KrpcError::TooLong {
                got_bytes: bytes.len(),
                max_bytes: DATAGRAM_BYTES_MAX,
            });
        }
        let dict = scan(bytes)?.dict().ok_or(KrpcError::NotADict)?;
        let transaction = dict.bytes(b"t").unwrap_or_default();
        if !(1..=TRANSACTION_BYTES_MAX).contains(&transaction.len()) {
            return Err(KrpcError::BadTransaction {
                max_bytes: TRANSACTION_BYTES_MAX,
            });
        }
        let body = match dict.bytes(b"y") {
            Some(b"q") => Body::Query(query(dict)?),
            Some(b"r") => Body::Answer(answer(dict)?),
            Some(b"e") => {
                let code = dict
                    .list(b"e")
                    .and_then(|list| list.iter().next()?.as_int());
                Body::Error(code.unwrap_or_default())
            }
            _ => return Err(KrpcError::BadKind),
        };
        Ok(Packet { transaction, body })
    }
}

impl<'a> Answer<'a> {
    /// The nodes of one family, the first [`NODES_MAX`], without those that cannot be reached.
    pub fn nodes(&self, family: Family) -> impl Iterator<Item = Contact> + use<'a> {
        let (bytes, entry_bytes) = match family {
            Family::V4 => (self.nodes_v4, 26),
            Family::V6 => (self.nodes_v6, 38),
        };
        let entries = bytes.chunks_exact(entry_bytes).take(NODES_MAX);
        entries.filter_map(|entry| {
            let (id, addr) = entry.split_first_chunk::<20>()?;
            let addr = compact(addr).filter(|addr| is_usable_peer(*addr))?;
            Some(Contact {
                id: NodeId::new(*id),
                addr,
            })
        })
    }

    /// Peers for the info_hash, of both families mixed (BEP 32), the first [`VALUES_MAX`] entries without those that
    /// cannot be reached.
    pub fn values(&self) -> impl Iterator<Item = SocketAddr> + use<'a> {
        let entries = self.values.into_iter().flat_map(List::iter);
        entries
            .take(VALUES_MAX)
            .filter_map(|value| compact(value.as_bytes()?).filter(|addr| is_usable_peer(*addr)))
    }
}

/// 6 bytes of IPv4 (BEP 23) or 18 of IPv6 (BEP 7).
fn compact(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    let ip: IpAddr = match ip.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

fn id(dict: Dict<'_>, key: &[u8]) -> Option<NodeId> {
    let bytes = <[u8; 20]>::try_from(dict.bytes(key)?).ok()?;
    Some(NodeId::new(bytes))
}

fn query(dict: Dict<'_>) -> Result<Query<'_>, KrpcError> {
    let arguments = dict.dict(b"a").ok_or(KrpcError::BadId)?;
    let sender = id(arguments, b"id").ok_or(KrpcError::BadId)?;
    let known = match dict.bytes(b"q") {
        Some(b"ping") => Some(Method::Ping),
        Some(b"find_node") => id(arguments, b"target").map(|target| Method::FindNode { target }),
        Some(b"get_peers") => get_peers(arguments),
        Some(b"announce_peer") => announce_peer(arguments),
        Some(b"sample_infohashes") => {
            id(arguments, b"target").map(|target| Method::SampleInfohashes { target })
        }
        _ => Some(Method::Unknown),
    };
    let want = arguments.list(b"want").map(|list| {
        let mut want = Want::default();
        // Two families: more entries say nothing new.
        for entry in list.iter().take(4) {
            match entry.as_bytes() {
                Some(b"n4") => want.v4 = true,
                Some(b"n6") => want.v6 = true,
                _ => {}
            }
        }
        want
    });
    Ok(Query {
        id: sender,
        method: known.unwrap_or(Method::Malformed),
        want: want.filter(|want| want.v4 || want.v6),
        is_read_only: dict.int(b"ro") == Some(1),
    })
}

fn info_hash(arguments: Dict<'_>) -> Option<InfoHash> {
    id(arguments, b"info_hash").map(|id| InfoHash::new(*id.as_bytes()))
}

fn get_peers(arguments: Dict<'_>) -> Option<Method<'_>> {
    Some(Method::GetPeers {
        info_hash: info_hash(arguments)?,
        no_seed: arguments.int(b"noseed") == Some(1),
        scrape: arguments.int(b"scrape") == Some(1),
    })
}

fn announce_peer(arguments: Dict<'_>) -> Option<Method<'_>> {
    let is_implied = arguments.int(b"implied_port").is_some_and(|flag| flag != 0);
    let port = match is_implied {
        true => None,
        false => {
            let port = u16::try_from(arguments.int(b"port")?).ok();
            Some(port.filter(|port| *port != 0)?)
        }
    };
    Some(Method::AnnouncePeer {
        info_hash: info_hash(arguments)?,
        port,
        token: arguments.bytes(b"token")?,
        is_seed: arguments.int(b"seed") == Some(1),
    })
}

fn answer(dict: Dict<'_>) -> Result<Answer<'_>, KrpcError> {
    let values = dict.dict(b"r").ok_or(KrpcError::BadId)?;
    let token = values.bytes(b"token");
    Ok(Answer {
        id: id(values, b"id").ok_or(KrpcError::BadId)?,
        token: token.filter(|token| token.len() <= TOKEN_BYTES_MAX),
        external: dict.bytes(b"ip").and_then(compact),
        nodes_v4: values.bytes(b"nodes").unwrap_or_default(),
        nodes_v6: values.bytes(b"nodes6").unwrap_or_default(),
        values: values.list(b"values"),
    })
}

/// Writes a query. `want` is left out when it is `None`.
pub fn encode_query(transaction: &[u8], query: &Query<'_>) -> Vec<u8> {
    let mut arguments = vec![(&b"id"[..], Item::bytes(&query.id.as_bytes()[..]))];
    let name: &str = match &query.method {
        Method::Ping | Method::Unknown | Method::Malformed => "ping",
        Method::FindNode { target } => {
            arguments.push((b"target", Item::bytes(&target.as_bytes()[..])));
            "find_node"
        }
        Method::GetPeers {
            info_hash,
            no_seed,
            scrape,
        } => {
            arguments.push((b"info_hash", Item::bytes(&info_hash.as_bytes()[..])));
            let flags = [(&b"noseed"[..], no_seed), (b"scrape", scrape)];
            let set = flags.into_iter().filter(|(_, flag)| **flag);
            arguments.extend(set.map(|(key, _)| (key, Item::Int(1))));
            "get_peers"
        }
        Method::AnnouncePeer {
            info_hash,
            port,
            token,
            is_seed,
        } => {
            arguments.push((b"info_hash", Item::bytes(&info_hash.as_bytes()[..])));
            let implied = i64::from(port.is_none());
            arguments.push((b"implied_port", Item::Int(implied)));
            arguments.push((b"port", Item::Int(i64::from(port.unwrap_or(0)))));
            arguments.push((b"token", Item::bytes(*token)));
            if *is_seed {
                arguments.push((b"seed", Item::Int(1)));
            }
            "announce_peer"
        }
        Method::SampleInfohashes { target } => {
            arguments.push((b"target", Item::bytes(&target.as_bytes()[..])));
            "sample_infohashes"
        }
    };
    if let Some(want) = query.want {
        let words = [("n4", want.v4), ("n6", want.v6)];
        let words = words.into_iter().filter(|(_, is_wanted)| *is_wanted);
        let words = words.map(|(word, _)| Item::text(word)).collect();
        arguments.push((b"want", Item::List(words)));
    }
    let mut message = vec![
        (&b"a"[..], Item::dict(arguments)),
        (b"q", Item::text(name)),
        (b"t", Item::bytes(transaction)),
        (b"v", Item::bytes(&VERSION[..])),
        (b"y", Item::text("q")),
    ];
    if query.is_read_only {
        message.push((b"ro", Item::Int(1)));
    }
    Item::dict(message).encode()
}

/// An answer to be written; what is empty is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub token: Vec<u8>,
    /// `None` leaves the list out; an empty one is written.
    pub nodes_v4: Option<Vec<Contact>>,
    pub nodes_v6: Option<Vec<Contact>>,
    pub values: Vec<SocketAddr>,
    /// Seeds and peers as Bloom filters (BEP 33).
    pub blooms: Option<Box<([u8; BLOOM_BYTES], [u8; BLOOM_BYTES])>>,
    /// Info_hashes, how many there are, and the seconds until others are given (BEP 51).
    pub samples: Option<(Vec<InfoHash>, u32, u32)>,
}

impl Reply {
    /// Writes the answer to `to`, who is told where we see it (BEP 42).
    pub fn encode(&self, transaction: &[u8], id: &NodeId, to: SocketAddr) -> Vec<u8> {
        let mut values = vec![(&b"id"[..], Item::bytes(&id.as_bytes()[..]))];
        let lists = [(&b"nodes"[..], &self.nodes_v4), (b"nodes6", &self.nodes_v6)];
        for (key, contacts) in lists {
            if let Some(contacts) = contacts {
                values.push((key, Item::bytes(compact_nodes(contacts))));
            }
        }
        if !self.token.is_empty() {
            values.push((b"token", Item::bytes(&self.token[..])));
        }
        if !self.values.is_empty() {
            let peers = self
                .values
                .iter()
                .map(|addr| Item::bytes(compact_addr(*addr)));
            values.push((b"values", Item::List(peers.collect())));
        }
        if let Some(blooms) = &self.blooms {
            values.push((b"BFsd", Item::bytes(&blooms.0[..])));
            values.push((b"BFpe", Item::bytes(&blooms.1[..])));
        }
        if let Some((samples, count, interval_s)) = &self.samples {
            let bytes: Vec<u8> = samples.iter().flat_map(|hash| *hash.as_bytes()).collect();
            values.push((b"interval", Item::Int(i64::from(*interval_s))));
            values.push((b"num", Item::Int(i64::from(*count))));
            values.push((b"samples", Item::bytes(bytes)));
        }
        let message = [
            (&b"ip"[..], Item::bytes(compact_addr(to))),
            (b"r", Item::dict(values)),
            (b"t", Item::bytes(transaction)),
            (b"v", Item::bytes(&VERSION[..])),
            (b"y", Item::text("r")),
        ];
        Item::dict(message).encode()
    }
}

/// Writes a refusal to `to`.
pub fn encode_error(transaction: &[u8], code: i64, text: &str, to: SocketAddr) -> Vec<u8> {
    let message = [
        (
            &b"e"[..],
            Item::List(vec![Item::Int(code), Item::text(text)]),
        ),
        (b"ip", Item::bytes(compact_addr(to))),
        (b"t", Item::bytes(transaction)),
        (b"v", Item::bytes(&VERSION[..])),
        (b"y", Item::text("e")),
    ];
    Item::dict(message).encode()
}

fn compact_addr(addr: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(18);
    write_compact(addr, &mut bytes);
    bytes
}

fn compact_nodes(contacts: &[Contact]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(contacts.len() * 38);
    for contact in contacts {
        bytes.extend_from_slice(contact.id.as_bytes());
        write_compact(contact.addr, &mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests;
