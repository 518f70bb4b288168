//! The UDP socket of the peer port, one a family, and who its datagrams are for. Layer 5.
//!
//! The first byte tells: a dictionary is the DHT's (BEP 5), the types of BEP 29 are uTP's, anything else is nobody's.
//! Datagrams of strangers are looked at so many times a second and no oftener: a flood waits in the kernel, where what is
//! too much of it is dropped (HOSTILE.md D2). While uTP connections are at work it is taken and thrown away instead, since
//! their packets are among it.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::socks::UdpRelay;
use crate::uring::udp::{Received, Udp};
use crate::wire::socks::Target;
use crate::wire::tracker::Family;
use crate::wire::utp;

/// Room for what the kernel puts together, and for the longest datagram there can be.
const RECV_BYTES: usize = 64 * 1024;
/// Datagrams that may wait for the kernel to take them; more are lost, as on any line.
pub const SENDS_MAX: usize = 512;
/// Datagrams of strangers that one socket takes in a `WINDOW`: a busy node hears a few hundred a second.
pub const STRANGERS_MAX: u32 = 300;
const WINDOW: Duration = Duration::from_millis(100);
/// Receives between two turns of the ring: many datagrams get one ack, and others get their turn all the same.
const RECEIVES_MAX: usize = 64;
/// After an error of the socket.
const PAUSE: Duration = Duration::from_millis(100);

/// Whom a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Dht,
    Utp,
    Nobody,
}

impl For {
    fn of(datagram: &[u8]) -> For {
        match datagram.first() {
            Some(b'd') => For::Dht,
            Some(_) if utp::is_packet(datagram) => For::Utp,
            _ => For::Nobody,
        }
    }
}

/// Whether a datagram is the DHT's.
pub(super) fn is_for_dht(datagram: &[u8]) -> bool {
    For::of(datagram) == For::Dht
}

/// The sockets of the port, or the proxy's relay in their place.
pub struct UdpPort {
    sockets: RefCell<Vec<(Family, Udp)>>,
    relay: Option<Rc<UdpRelay>>,
    sends: Cell<usize>,
}

impl UdpPort {
    /// Takes bound sockets, one a family.
    pub fn new(sockets: Vec<(Family, Udp)>) -> Rc<Self> {
        Rc::new(UdpPort {
            sockets: RefCell::new(sockets),
            relay: None,
            sends: Cell::new(0),
        })
    }

    /// Everything goes through a proxy.
    pub fn through(relay: Rc<UdpRelay>) -> Rc<Self> {
        Rc::new(UdpPort {
            sockets: RefCell::default(),
            relay: Some(relay),
            sends: Cell::new(0),
        })
    }

    /// The proxy's relay, if everything goes through one.
    pub fn relay(&self) -> Option<&Rc<UdpRelay>> {
        self.relay.as_ref()
    }

    /// The families there is a socket of. Whether a proxy knows IPv6 cannot be asked: IPv4 it is.
    pub fn families(&self) -> Vec<Family> {
        if self.relay.is_some() {
            return vec![Family::V4];
        }
        let sockets = self.sockets.borrow();
        sockets.iter().map(|(family, _)| *family).collect()
    }

    /// The socket that leads there, if there is one.
    pub fn socket(&self, to: IpAddr) -> Option<Udp> {
        let sockets = self.sockets.borrow();
        let socket = sockets.iter().find(|(family, _)| family.has(to));
        socket.map(|(_, udp)| udp.clone())
    }

    /// The sockets.
    pub fn sockets(&self) -> Vec<Udp> {
        let sockets = self.sockets.borrow();
        sockets.iter().map(|(_, udp)| udp.clone()).collect()
    }

    /// Takes new sockets in place of those that were closed.
    pub fn replace(&self, sockets: Vec<(Family, Udp)>) {
        *self.sockets.borrow_mut() = sockets;
    }

    /// Sends a datagram, or loses it. The answer to one that came goes out from where that came to.
    pub fn send(self: &Rc<Self>, bytes: Vec<u8>, to: SocketAddr, answers: Option<&Received>) {
        if let Some(relay) = &self.relay {
            return relay.send(&bytes, &Target::Addr(to));
        }
        let socket = self.socket(to.ip());
        let Some(udp) = socket.filter(|_| self.sends.get() < SENDS_MAX) else {
            return;
        };
        self.sends.set(self.sends.get() + 1);
        let (port, answers) = (self.clone(), answers.copied());
        tokio_uring::spawn(async move {
            let (sent, _) = match answers {
                Some(received) => udp.answer(bytes, &received).await,
                None => udp.send_to(bytes, to).await,
            };
            port.sends.set(port.sends.get().saturating_sub(1));
            if let Err(error) = sent {
                tracing::trace!(%to, %error, "datagram not sent");
            }
        });
    }

    /// Ends the sockets.
    pub fn close(&self) {
        self.sockets().iter().for_each(Udp::close);
        if let Some(relay) = &self.relay {
            relay.close();
        }
    }
}

/// Hands on what comes to one socket, as long as the session runs.
pub async fn receive(shared: Rc<Shared>, port: Rc<UdpPort>, udp: Udp) {
    let mut buf = vec![0; RECV_BYTES];
    let mut window = Window::start();
    loop {
        let (mut rest, mut result);
        (result, buf) = udp.recv_from(buf).await;
        for turn in 1..=RECEIVES_MAX {
            match result {
                Ok(received) => {
                    let datagrams = buf.get(..received.length).unwrap_or_default();
                    rest = take_all(&shared, &port, &received, datagrams, &mut window);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an earlier datagram, or memory is short: never a busy loop.
                Err(_) => rest = Some(PAUSE),
            }
            if let Some(rest) = rest {
                tokio::time::sleep(rest).await;
                break;
            }
            // What the last turn received would be looked at by none.
            if turn < RECEIVES_MAX {
                (result, buf) = udp.recv_now(buf);
            }
        }
        if let Some(utp) = shared.utp() {
            utp.flush();
        }
    }
}

/// Takes what came together; how long to rest when too much of it is of strangers and nothing else is waited for.
fn take_all(
    shared: &Rc<Shared>,
    port: &Rc<UdpPort>,
    received: &Received,
    datagrams: &[u8],
    window: &mut Window,
) -> Option<Duration> {
    let mut rest = None;
    for datagram in datagrams.chunks(received.segment_bytes) {
        if !take(shared, port, received, datagram, window.is_full()) {
            rest = window.count().or(rest);
        }
    }
    rest.filter(|_| !shared.utp().is_some_and(|utp| utp.is_at_work()))
}

/// Hands a datagram on, a stranger's only while not flooded; true when it is not a stranger's.
fn take(
    shared: &Rc<Shared>,
    port: &Rc<UdpPort>,
    received: &Received,
    datagram: &[u8],
    is_flooded: bool,
) -> bool {
    match For::of(datagram) {
        For::Dht if !is_flooded => {
            if let Some(dht) = shared.dht() {
                dht.on_datagram(received, datagram);
            }
        }
        For::Utp if shared.gate.is_blocked(received.from.ip()) => {}
        For::Utp => match shared.utp() {
            Some(utp) => return utp.on_datagram(received, datagram, is_flooded),
            None if is_flooded => {}
            // A peer that is turned down goes on to TCP at once.
            None => {
                if let Some(answer) = utp::refuse(datagram, shared.random() as u16) {
                    port.send(answer.to_vec(), received.from, Some(received));
                }
            }
        },
        For::Dht | For::Nobody => {}
    }
    false
}

/// Counts datagrams of strangers.
pub(super) struct Window {
    since: Instant,
    count: u32,
}

impl Window {
    pub(super) fn start() -> Self {
        Window {
            since: Instant::now(),
            count: 0,
        }
    }

    /// Whether there were too many.
    fn is_full(&self) -> bool {
        self.count > STRANGERS_MAX && self.since.elapsed() < WINDOW
    }

    /// One more; how long to rest when there were too many.
    pub(super) fn count(&mut self) -> Option<Duration> {
        let elapsed = self.since.elapsed();
        if elapsed >= WINDOW {
            *self = Window::start();
        }
        self.count += 1;
        match self.count > STRANGERS_MAX {
            true => Some(WINDOW.saturating_sub(elapsed)),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_tells_whom_a_datagram_is_for() {
        assert_eq!(For::of(b"d1:ad2:id20:"), For::Dht);
        for kind in [0x01, 0x11, 0x21, 0x31, 0x41] {
            assert_eq!(For::of(&[kind, 0, 0, 0]), For::Utp, "{kind:#x}");
        }
        for other in [
            &[][..],
            &[0x51],
            &[0x42],
            &[0x00],
            b"\x13BitTorrent protocol",
            b"i1e",
        ] {
            assert_eq!(For::of(other), For::Nobody, "{other:?}");
        }
    }

    #[test]
    fn a_flood_is_looked_at_so_many_times_in_a_window() {
        let mut window = Window::start();
        let taken = (0..STRANGERS_MAX)
            .filter(|_| window.count().is_none())
            .count();
        assert_eq!(taken, STRANGERS_MAX as usize);
        assert!(window.count().is_some_and(|rest| rest <= WINDOW));
    }
}
