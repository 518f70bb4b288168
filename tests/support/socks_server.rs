//! A SOCKS 5 proxy in the test: records what is asked of it, looks names up in a table of its own, and goes out from an
//! address of its own, so that the other end sees who came through it and who came around it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

/// Where what goes through it comes from.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// What the proxy does.
#[derive(Clone, Default)]
pub struct Manners {
    /// User and password; without them anybody may come.
    pub login: Option<(String, String)>,
    /// Names it knows, with the address behind them.
    pub names: BTreeMap<String, SocketAddr>,
    /// Every connection is refused with that reply.
    pub refuses: Option<u8>,
    /// Datagrams are relayed.
    pub relays: bool,
    /// Says this instead of any answer, and then nothing.
    pub says: Option<Vec<u8>>,
}

/// Runs as long as the test.
pub struct SocksServer {
    pub addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl SocksServer {
    pub fn start(manners: Manners) -> SocksServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (manners, asked) = (manners.clone(), noted.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream, &manners, &asked);
                });
            }
        });
        SocksServer { addr, asked }
    }

    pub fn url(&self) -> String {
        format!("socks5://{}", self.addr)
    }

    /// What was asked so far: `connect HOST:PORT`, `associate`, `datagram HOST:PORT`, `login USER:PASSWORD`, `hello`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub fn was_asked(&self, what: &str) -> bool {
        self.asked().iter().any(|asked| asked == what)
    }
}

fn note(asked: &Mutex<Vec<String>>, what: String) {
    asked.lock().unwrap().push(what);
}

fn serve(
    mut stream: TcpStream,
    manners: &Manners,
    asked: &Arc<Mutex<Vec<String>>>,
) -> io::Result<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut methods = vec![0; usize::from(head[1])];
    stream.read_exact(&mut methods)?;
    note(asked, "hello".to_owned());
    if let Some(says) = &manners.says {
        stream.write_all(says)?;
        // Until the other side has enough.
        io::copy(&mut stream, &mut io::sink())?;
        return Ok(());
    }
    match &manners.login {
        Some(_) if !methods.contains(&2) => return stream.write_all(&[5, 0xff]),
        Some((user, password)) => {
            stream.write_all(&[5, 2])?;
            let mut version = [0];
            stream.read_exact(&mut version)?;
            let (got_user, got_password) = (text(&mut stream)?, text(&mut stream)?);
            note(asked, format!("login {got_user}:{got_password}"));
            let is_right = (got_user, got_password) == (user.clone(), password.clone());
            stream.write_all(&[1, u8::from(!is_right)])?;
            if !is_right {
                return Ok(());
            }
        }
        None => stream.write_all(&[5, 0])?,
    }
    let mut request = [0; 3];
    stream.read_exact(&mut request)?;
    let (shown, target) = target(&mut stream, manners)?;
    if request[1] == 3 {
        note(asked, "associate".to_owned());
        return match manners.relays {
            true => relay(stream, manners, asked),
            false => stream.write_all(&[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]),
        };
    }
    note(asked, format!("connect {shown}"));
    if let Some(reply) = manners.refuses {
        return stream.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    match target.ok_or(io::ErrorKind::NotFound.into()).and_then(dial) {
        Ok(other) => {
            stream.write_all(&[5, 0, 0, 1, 127, 0, 0, 2, 0, 0])?;
            pump(stream, other)
        }
        Err(_) => stream.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
    }
}

fn text(stream: &mut impl Read) -> io::Result<String> {
    let mut length = [0];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(length[0])];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What was asked for as it was written, and the address behind it if there is one.
fn target(stream: &mut impl Read, manners: &Manners) -> io::Result<(String, Option<SocketAddr>)> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    let name = match kind[0] {
        1 => {
            let mut ip = [0; 4];
            stream.read_exact(&mut ip)?;
            Err(IpAddr::from(ip))
        }
        4 => {
            let mut ip = [0; 16];
            stream.read_exact(&mut ip)?;
            Err(IpAddr::from(ip))
        }
        _ => Ok(text(stream)?),
    };
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    let port = u16::from_be_bytes(port);
    Ok(match name {
        Ok(name) => (format!("{name}:{port}"), manners.names.get(&name).copied()),
        Err(ip) => {
            let addr = SocketAddr::new(ip, port);
            (addr.to_string(), Some(addr))
        }
    })
}

/// A connection from [`SOURCE`].
fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let SocketAddr::V4(to) = to else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    let from = SockaddrIn::from(std::net::SocketAddrV4::new(SOURCE, 0));
    bind(fd.as_raw_fd(), &from)?;
    connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(TcpStream::from(fd))
}

fn pump(one: TcpStream, other: TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (one.try_clone()?, other.try_clone()?);
    let there = std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (&other, &one);
    let _ = io::copy(&mut from, &mut to);
    let _ = one.shutdown(Shutdown::Both);
    let _ = there.join();
    Ok(())
}

/// Relays datagrams as long as the connection is open; those to the outside leave from [`SOURCE`].
fn relay(
    mut control: TcpStream,
    manners: &Manners,
    asked: &Arc<Mutex<Vec<String>>>,
) -> io::Result<()> {
    let inner = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    let outer = Arc::new(UdpSocket::bind((SOURCE, 0))?);
    let client: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let (to_client, in_back, out_back) = (client.clone(), inner.clone(), outer.clone());
    std::thread::spawn(move || {
        let mut buf = [0; 65_536];
        while let Ok((length, from)) = out_back.recv_from(&mut buf) {
            let (SocketAddr::V4(from), Some(to)) = (from, *to_client.lock().unwrap()) else {
                continue;
            };
            let mut datagram = vec![0, 0, 0, 1];
            datagram.extend(from.ip().octets());
            datagram.extend(from.port().to_be_bytes());
            datagram.extend(&buf[..length]);
            let _ = in_back.send_to(&datagram, to);
        }
    });
    let (manners, asked, inward) = (manners.clone(), asked.clone(), inner.clone());
    std::thread::spawn(move || {
        let mut buf = [0; 65_536];
        while let Ok((length, from)) = inward.recv_from(&mut buf) {
            *client.lock().unwrap() = Some(from);
            let mut rest = &buf[3..length];
            let Ok((shown, to)) = target(&mut rest, &manners) else {
                continue;
            };
            note(&asked, format!("datagram {shown}"));
            if let Some(to) = to {
                let _ = outer.send_to(rest, to);
            }
        }
    });
    let port = inner.local_addr()?.port();
    let mut answer = vec![5, 0, 0, 1, 0, 0, 0, 0];
    answer.extend(port.to_be_bytes());
    control.write_all(&answer)?;
    io::copy(&mut control, &mut io::sink())?;
    Ok(())
}
