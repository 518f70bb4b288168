//! The tracker's UDP half (BEP 15, BEP 41). Layer 5.
//!
//! Nothing is remembered of a client before its announce, and an unproven sender never gets more bytes than it sent:
//! the tracker is of no use for flooding others.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tracing::{trace, warn};

use super::{Protocol, Tracker, count, log_announce};
use crate::base::InfoHash;
use crate::uring::udp::Udp;
use crate::wire::tracker::Family;
use crate::wire::tracker_http::serve::{Announced, SCRAPE_HASHES_MAX};
use crate::wire::tracker_udp::{
    UdpRequest, announce_answer, connect_answer, error_answer, parse_request, scrape_answer,
};

/// An announce with 1 KiB of URL data and a scrape of all the hashes that one may ask for fit; what is longer is cut,
/// and the rest would not be read anyway.
const REQUEST_BYTES_MAX: usize = 2_048;
/// An answer that no network fragments: 1,280 bytes are IPv6's least, 48 of them headers.
const ANSWER_BYTES_MAX: usize = 1_232;
/// Bytes of an announce's answer before its peers.
const ANSWER_HEAD_BYTES: usize = 20;
/// After the kernel could not receive: memory is short, or an earlier answer came back refused.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

/// No longer than the shortest scrape with a hash, so that it may be sent to anybody.
const UNKNOWN_CONNECTION: &str = "connection id expired";

/// Answers datagrams until the socket is closed.
pub async fn receive_loop(tracker: Rc<Tracker>, udp: Udp) {
    let mut buf = vec![0; REQUEST_BYTES_MAX];
    loop {
        let result;
        (result, buf) = udp.recv_from(buf).await;
        let received = match result {
            Ok(received) => received,
            Err(error) if is_closed(&error) => return,
            Err(error) => {
                warn!(%error, "cannot receive for the moment");
                tokio::time::sleep(RECEIVE_PAUSE).await;
                continue;
            }
        };
        let datagram = buf.get(..received.length).unwrap_or_default();
        if let Some(answer) = answer(&tracker, received.from, datagram) {
            let (sent, _) = udp.answer(answer, &received).await;
            if let Err(error) = sent {
                trace!(from = %received.from, %error, "answer not sent");
            }
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted && error.raw_os_error().is_none()
}

/// What goes back, if anything: what is no request gets no answer.
fn answer(tracker: &Tracker, from: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
    let (transaction_id, request) = match parse_request(datagram) {
        Ok(parsed) => parsed,
        Err(error) => {
            trace!(%from, %error, "no request");
            return None;
        }
    };
    let now = tracker.clock.now();
    let connection_id = match request {
        UdpRequest::Connect => {
            let id = tracker.connection_ids.issue(from.ip(), now);
            return Some(connect_answer(transaction_id, id));
        }
        UdpRequest::Announce { connection_id, .. } | UdpRequest::Scrape { connection_id, .. } => {
            connection_id
        }
    };
    if !tracker
        .connection_ids
        .is_valid(connection_id, from.ip(), now)
    {
        count(&tracker.refused);
        let refusal = error_answer(transaction_id, UNKNOWN_CONNECTION);
        return (refusal.len() <= datagram.len()).then_some(refusal);
    }
    match request {
        UdpRequest::Connect => None,
        UdpRequest::Announce { announced, .. } => {
            Some(announce(tracker, from, transaction_id, &announced))
        }
        UdpRequest::Scrape { info_hashes, .. } => {
            Some(scrape(tracker, from, transaction_id, &info_hashes))
        }
    }
}

fn announce(
    tracker: &Tracker,
    from: SocketAddr,
    transaction_id: u32,
    announced: &Announced,
) -> Vec<u8> {
    count(&tracker.udp_announces);
    log_announce(from, Protocol::Udp, announced);
    let peer_bytes = match family_of(from) {
        Family::V4 => 6,
        Family::V6 => 18,
    };
    let peers_max = (ANSWER_BYTES_MAX - ANSWER_HEAD_BYTES) / peer_bytes;
    let now = tracker.clock.now();
    let mut registry = tracker.registry.borrow_mut();
    match registry.announce(from.ip(), announced, peers_max, now) {
        Ok(answer) => announce_answer(
            transaction_id,
            tracker.interval_secs,
            answer.counts,
            answer.peers.iter().map(|peer| peer.addr),
        ),
        Err(refused) => {
            count(&tracker.refused);
            error_answer(transaction_id, &refused.to_string())
        }
    }
}

fn scrape(
    tracker: &Tracker,
    from: SocketAddr,
    transaction_id: u32,
    info_hashes: &[InfoHash],
) -> Vec<u8> {
    count(&tracker.scrapes);
    let asked = info_hashes.get(..SCRAPE_HASHES_MAX).unwrap_or(info_hashes);
    let now = tracker.clock.now();
    let mut registry = tracker.registry.borrow_mut();
    let counts = registry.scrape(family_of(from), asked, now);
    scrape_answer(
        transaction_id,
        counts.into_iter().map(Option::unwrap_or_default),
    )
}

fn family_of(from: SocketAddr) -> Family {
    match Family::V4.has(from.ip()) {
        true => Family::V4,
        false => Family::V6,
    }
}
