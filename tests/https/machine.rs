//! The machine alone: a server in memory, whose bytes are cut, changed and drawn out.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use gyre::uring::tls::{Authorities, Client, Step, Tls, TlsError};
use openssl::ssl::{Ssl, SslAcceptor, SslAcceptorBuilder, SslStream, SslVersion};

use super::front::{Authority, acceptor};

#[derive(Default)]
struct Pipe {
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.incoming.is_empty() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => self.incoming.read(buf),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    tls: Tls,
    acceptor: SslAcceptor,
}

impl World {
    fn new(version: SslVersion) -> World {
        World::with(|acceptor| acceptor.set_max_proto_version(Some(version)).unwrap())
    }

    fn with(tune: impl FnOnce(&mut SslAcceptorBuilder)) -> World {
        let authority = Authority::new("authority of the test");
        let mut acceptor = acceptor(&authority.identity(&["a.example"]));
        tune(&mut acceptor);
        World {
            tls: Tls::new(Some(Authorities::read(&authority.pem()).unwrap())),
            acceptor: acceptor.build(),
        }
    }

    fn pair(&self) -> (Client, SslStream<Pipe>) {
        let server = Ssl::new(self.acceptor.context()).unwrap();
        let server = SslStream::new(server, Pipe::default()).unwrap();
        (self.tls.client("a.example", 443).unwrap(), server)
    }
}

/// The client's steps with what the server says, as `change` leaves it. True when both are through.
fn shake(
    client: &mut Client,
    server: &mut SslStream<Pipe>,
    mut change: impl FnMut(Vec<u8>) -> Vec<u8>,
) -> Result<bool, TlsError> {
    for _ in 0..10 {
        let step = client.handshake()?;
        server.get_mut().incoming.extend(client.take_out());
        let is_accepted = server.accept().is_ok();
        let said = change(std::mem::take(&mut server.get_mut().outgoing));
        client.feed(&said)?;
        if step == Step::Done {
            return Ok(is_accepted);
        }
    }
    Ok(false)
}

fn done(version: SslVersion) -> (Client, SslStream<Pipe>) {
    let (mut client, mut server) = World::new(version).pair();
    assert_eq!(shake(&mut client, &mut server, |bytes| bytes), Ok(true));
    (client, server)
}

/// What the server has said is fed.
fn say(client: &mut Client, server: &mut SslStream<Pipe>, bytes: &[u8]) -> Result<(), TlsError> {
    server.write_all(bytes).unwrap();
    client.feed(&std::mem::take(&mut server.get_mut().outgoing))
}

#[test]
fn bytes_come_out_as_they_went_in_however_they_are_cut() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let (mut client, mut server) = done(version);
        client.write(b"question").unwrap();
        server.get_mut().incoming.extend(client.take_out());
        let mut asked = [0; 8];
        server.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"question");
        let answer: Vec<u8> = (0..60_000_u32).map(|at| at as u8).collect();
        server.write_all(&answer).unwrap();
        let said = std::mem::take(&mut server.get_mut().outgoing);
        let mut plain = Vec::new();
        for part in said.chunks(7) {
            client.feed(part).unwrap();
            assert_eq!(client.read(&mut plain), Ok(true));
        }
        assert!(plain == answer);
        // The server says that nothing more comes.
        let _ = server.shutdown();
        client
            .feed(&std::mem::take(&mut server.get_mut().outgoing))
            .unwrap();
        assert_eq!(client.read(&mut plain), Ok(false));
    }
}

#[test]
fn an_end_without_a_word_is_no_end() {
    let (mut client, mut server) = done(SslVersion::TLS1_3);
    say(&mut client, &mut server, b"half of it").unwrap();
    client.end();
    let mut plain = Vec::new();
    assert_eq!(client.read(&mut plain), Ok(true));
    assert_eq!(plain, b"half of it");
    assert_eq!(client.read(&mut plain), Err(TlsError::Truncated));
}

#[test]
fn a_handshake_cut_anywhere_is_told_as_such() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let world = World::new(version);
        let mut cut = 0;
        loop {
            let (mut client, mut server) = world.pair();
            assert_eq!(client.handshake(), Ok(Step::Wants));
            server.get_mut().incoming.extend(client.take_out());
            let _ = server.accept();
            let said = std::mem::take(&mut server.get_mut().outgoing);
            if cut >= said.len() {
                break;
            }
            client.feed(&said[..cut]).unwrap();
            client.end();
            assert!(client.has_record());
            assert_eq!(client.handshake(), Err(TlsError::Truncated), "at {cut}");
            cut += 7;
        }
    }
}

#[test]
fn a_changed_byte_of_a_handshake_changes_nothing_that_is_read() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let world = World::new(version);
        let (mut tried, mut passed) = (0, 0);
        loop {
            let (mut client, mut server) = world.pair();
            let (mut is_first, mut is_past) = (true, false);
            let shaken = shake(&mut client, &mut server, |mut said| {
                if std::mem::replace(&mut is_first, false) {
                    match said.get_mut(tried * 5) {
                        Some(byte) => *byte ^= 1 << (tried % 8),
                        None => is_past = true,
                    }
                }
                said
            });
            if is_past {
                break;
            }
            tried += 1;
            let mut plain = Vec::new();
            if shaken == Ok(true) && say(&mut client, &mut server, b"answer").is_ok() {
                passed += 1;
                assert!(client.read(&mut plain).is_err() || plain == b"answer");
            }
        }
        // Versions in the heads of records are looked at by nobody.
        assert!(tried > 100 && passed < tried / 20, "{passed} of {tried}");
    }
}

#[test]
fn noise_never_passes() {
    let world = World::new(SslVersion::TLS1_3);
    for seed in 1..400_u64 {
        let noise = super::support::sample::noise(2_000, seed);
        let (mut client, _) = world.pair();
        assert_eq!(client.handshake(), Ok(Step::Wants));
        let kind = [22, 21, 20, 23, noise[0]][seed as usize % 5];
        let length = (noise.len() as u16 / (1 + seed as u16 % 7)).to_be_bytes();
        let head = [&[kind, 3, 3][..], &length].concat();
        let fed = client.feed(&[&head[..], &noise].concat());
        let passed = fed.and_then(|()| client.handshake());
        assert_ne!(passed, Ok(Step::Done), "seed {seed}");
    }
}

#[test]
fn tls_that_holds_nothing_comes_to_an_end() {
    // Tickets for further sessions are all that is said once the handshake is over.
    let world = World::with(|acceptor| acceptor.set_num_tickets(1_000).unwrap());
    let (mut client, mut server) = world.pair();
    let shaken = shake(&mut client, &mut server, |bytes| bytes);
    assert_eq!(shaken, Ok(true));
    assert_eq!(client.read(&mut Vec::new()), Err(TlsError::Idle));
}

#[test]
fn a_session_is_gone_on_with() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let world = World::new(version);
        let resumed = || {
            let (mut client, mut server) = world.pair();
            assert_eq!(shake(&mut client, &mut server, |bytes| bytes), Ok(true));
            say(&mut client, &mut server, b"answer").unwrap();
            client.read(&mut Vec::new()).unwrap();
            server.ssl().session_reused()
        };
        assert!(!resumed());
        assert!(resumed() && resumed(), "{version:?}");
    }
}
