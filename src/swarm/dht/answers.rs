//! What a node answers, and how much of it (BEP 5, 32, 33, 42, 51). Layer 2, pure.

use std::net::{IpAddr, SocketAddr};

use super::DhtEffect;
use super::limits::AMPLIFICATION_MAX;
use super::lookup::Next;
use super::node::Node;
use super::place::normal;
use super::store::SAMPLES_MAX;
use super::table::K;
use crate::base::{InfoHash, NodeId, Now};
use crate::wire::krpc::{
    ANSWER_BYTES_MAX, Contact, Method, Query, Reply, Want, code, encode_error,
};
use crate::wire::tracker::{Family, is_usable_peer};

/// Peers told of one torrent to an address that reads our datagrams; the length of the datagram is the other limit.
const VALUES_TOLD_MAX: usize = 60;
/// Seconds for which a sample stays as it is worth asking (BEP 51); the peers stay about as long.
const SAMPLE_INTERVAL_S: u32 = 1_800;

/// What an answer needs of the datagram it answers.
struct Asked<'a> {
    from: SocketAddr,
    transaction: &'a [u8],
    /// The longest answer that its sender gets.
    bytes_max: usize,
    is_proven: bool,
    want: Want,
}

impl Node {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn on_query(
        &mut self,
        from: SocketAddr,
        transaction: &[u8],
        query: &Query<'_>,
        bytes: usize,
        other: Option<&Node>,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) {
        if query.id == self.table.id() {
            // Ourselves, or somebody who says so.
            return;
        }
        let is_proven = self.is_proven(from.ip(), now);
        let asked = Asked {
            from,
            transaction,
            bytes_max: match is_proven {
                true => ANSWER_BYTES_MAX,
                false => (bytes * AMPLIFICATION_MAX).min(ANSWER_BYTES_MAX),
            },
            is_proven,
            want: query.want.unwrap_or(Want::only(self.family)),
        };
        let bytes = match query.method {
            Method::Ping => self.reply(&asked, Reply::default()),
            Method::FindNode { target } => self.on_find_node(&asked, &target, other),
            Method::GetPeers {
                info_hash,
                no_seed,
                scrape,
            } => self.on_get_peers(&asked, info_hash, no_seed, scrape, other, now),
            Method::AnnouncePeer {
                info_hash,
                port,
                token,
                is_seed,
            } => {
                let addr = SocketAddr::new(from.ip(), port.unwrap_or(from.port()));
                if self.secrets.is_good(token, from.ip(), &info_hash, now) {
                    self.prove(from.ip(), now);
                    self.on_announce(&asked, info_hash, addr, is_seed, now, fx)
                } else {
                    self.refuse(&asked, code::PROTOCOL, "bad token")
                }
            }
            Method::SampleInfohashes { target } => self.on_sample(&asked, &target, other),
            Method::Unknown => self.refuse(&asked, code::METHOD_UNKNOWN, "unknown method"),
            Method::Malformed => self.refuse(&asked, code::PROTOCOL, "bad arguments"),
        };
        if bytes.len() <= asked.bytes_max {
            self.limits.on_answer(bytes.len());
            self.stats.answers_sent += 1;
            fx.push(DhtEffect::Send { to: from, bytes });
        } else {
            self.stats.queries_dropped += 1;
        }
        if !query.is_read_only {
            self.meet(query.id, from, now, fx);
        }
    }

    /// A stranger asked: if there is a place for it, it is asked whether it is really there.
    fn meet(&mut self, id: NodeId, from: SocketAddr, now: Now, fx: &mut Vec<DhtEffect>) {
        let contact = Contact { id, addr: from };
        self.table.on_query(contact, now);
        let is_possible = is_usable_peer(from);
        if is_possible && self.table.wants(contact, now) && self.limits.admit_ping(now) {
            let asked = Next {
                addr: from,
                id: Some(id),
            };
            self.ping(asked, now, fx);
        }
    }

    fn reply(&self, asked: &Asked<'_>, reply: Reply) -> Vec<u8> {
        reply.encode(asked.transaction, &self.table.id(), asked.from)
    }

    fn refuse(&self, asked: &Asked<'_>, code: i64, text: &str) -> Vec<u8> {
        encode_error(asked.transaction, code, text, asked.from)
    }

    fn on_find_node(&self, asked: &Asked<'_>, target: &NodeId, other: Option<&Node>) -> Vec<u8> {
        self.fitted(asked, Reply::default(), target, other)
    }

    fn on_get_peers(
        &mut self,
        asked: &Asked<'_>,
        info_hash: InfoHash,
        no_seed: bool,
        scrape: bool,
        other: Option<&Node>,
        now: Now,
    ) -> Vec<u8> {
        let ip = asked.from.ip();
        let mut reply = Reply::default();
        // Without a token nobody announces what could not be kept (BEP 33).
        if self.store.has_room(&info_hash) {
            reply.token = self.secrets.token(ip, &info_hash, now).to_vec();
        }
        if scrape && asked.is_proven {
            reply.blooms = self.store.blooms(&info_hash);
        }
        let max = match reply.blooms {
            Some(_) => VALUES_TOLD_MAX / 4,
            None => VALUES_TOLD_MAX,
        };
        reply.values = self
            .store
            .peers(&info_hash, ip, no_seed, max, &mut self.rng);
        self.fitted(asked, reply, &NodeId::from(info_hash), other)
    }

    fn on_announce(
        &mut self,
        asked: &Asked<'_>,
        info_hash: InfoHash,
        addr: SocketAddr,
        is_seed: bool,
        now: Now,
        fx: &mut Vec<DhtEffect>,
    ) -> Vec<u8> {
        let addr = normal(addr);
        if !is_usable_peer(addr) {
            return self.refuse(asked, code::PROTOCOL, "bad port");
        }
        // Who holds too much already hears nothing of it, and its other torrents stay.
        if self.store.announce(info_hash, addr, is_seed, now) == Ok(true)
            && self.searches.has(&info_hash)
        {
            self.tell_peers(info_hash, vec![addr], fx);
        }
        self.reply(asked, Reply::default())
    }

    fn on_sample(&mut self, asked: &Asked<'_>, target: &NodeId, other: Option<&Node>) -> Vec<u8> {
        let (mut samples, count) = self.store.sample(&mut self.rng);
        samples.truncate(SAMPLES_MAX);
        let reply = Reply {
            samples: Some((samples, count, SAMPLE_INTERVAL_S)),
            ..Reply::default()
        };
        self.fitted(asked, reply, target, other)
    }

    /// The reply with the nodes that are wanted, as much of it as the asker gets: peers go first, then samples, then
    /// nodes of the other family, then nodes.
    fn fitted(
        &self,
        asked: &Asked<'_>,
        mut reply: Reply,
        target: &NodeId,
        other: Option<&Node>,
    ) -> Vec<u8> {
        let mut nodes_max = K;
        loop {
            reply.nodes_v4 = self.nodes_told(asked, Family::V4, target, other, nodes_max);
            reply.nodes_v6 = self.nodes_told(asked, Family::V6, target, other, nodes_max);
            let bytes = self.reply(asked, reply.clone());
            if bytes.len() <= asked.bytes_max {
                return bytes;
            }
            let over = bytes.len() - asked.bytes_max;
            if !reply.values.is_empty() {
                let value_bytes = if self.is_v4() { 8 } else { 21 };
                let left = reply
                    .values
                    .len()
                    .saturating_sub(over.div_ceil(value_bytes));
                reply.values.truncate(left);
            } else if let Some((samples, ..)) = &mut reply.samples
                && !samples.is_empty()
            {
                let left = samples.len().saturating_sub(over.div_ceil(20));
                samples.truncate(left);
            } else if reply.blooms.is_some() {
                reply.blooms = None;
            } else if nodes_max > 0 {
                nodes_max -= 1;
            } else {
                return bytes;
            }
        }
    }

    fn nodes_told(
        &self,
        asked: &Asked<'_>,
        family: Family,
        target: &NodeId,
        other: Option<&Node>,
        max: usize,
    ) -> Option<Vec<Contact>> {
        if !asked.want.has(family) {
            return None;
        }
        let asker: IpAddr = asked.from.ip();
        let node = match family == self.family {
            true => self,
            false => other?,
        };
        Some(node.table.closest(target, Some(asker), max))
    }
}
