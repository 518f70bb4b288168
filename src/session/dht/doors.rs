//! Nodes to enter the DHT through that are known by name, behind a proxy: the proxy looks the name up. Layer 5.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::Notify;

use crate::base::NodeId;
use crate::session::run::seed;
use crate::session::socks::UdpRelay;
use crate::wire::krpc::{Method, Packet, Query, encode_query};
use crate::wire::socks::Target;
use std::rc::Rc;

/// For one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Names asked at once: the well-known ones, those of the user, those of torrents.
const ASKED_MAX: usize = 64;

/// Pings under way, by transaction. Those of the node itself are half as long.
#[derive(Default)]
pub(super) struct Doors {
    asked: RefCell<BTreeSet<[u8; 8]>>,
    answered: Notify,
}

impl Doors {
    /// Pings a node by its name. Its answer comes to [`Doors::on_datagram`], and with it its address: none is given
    /// here, unless the name is one.
    ///
    /// # Errors
    /// It does not answer, or there are no datagrams.
    pub async fn ask(
        &self,
        relay: &Rc<UdpRelay>,
        host: &str,
        port: u16,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        if !relay.is_open().await || self.asked.borrow().len() >= ASKED_MAX {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let transaction = seed().to_be_bytes();
        let mut id = [0; 20];
        id.iter_mut()
            .zip(
                [seed(), seed(), seed()]
                    .iter()
                    .flat_map(|word| word.to_be_bytes()),
            )
            .for_each(|(byte, random)| *byte = random);
        let ping = Query {
            id: NodeId::new(id),
            method: Method::Ping,
            want: None,
            is_read_only: true,
        };
        self.asked.borrow_mut().insert(transaction);
        let target = Target::Name(host.to_owned(), port);
        relay.send(&encode_query(&transaction, &ping), &target);
        let answered = async {
            while self.asked.borrow().contains(&transaction) {
                self.answered.notified().await;
            }
        };
        let in_time = tokio::time::timeout(ANSWER_TIMEOUT, answered).await;
        self.asked.borrow_mut().remove(&transaction);
        in_time.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        Ok(Vec::new())
    }

    /// True for an answer to one of the pings.
    pub fn on_datagram(&self, datagram: &[u8]) -> bool {
        if self.asked.borrow().is_empty() {
            return false;
        }
        let transaction = Packet::parse(datagram)
            .ok()
            .and_then(|packet| <[u8; 8]>::try_from(packet.transaction).ok());
        let is_ours = transaction.is_some_and(|ours| self.asked.borrow_mut().remove(&ours));
        if is_ours {
            self.answered.notify_waiters();
        }
        is_ours
    }
}
