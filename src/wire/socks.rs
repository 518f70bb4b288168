//! SOCKS 5: the client's half of a proxy's handshake, and the head of its datagrams (RFC 1928, RFC 1929). Layer 1.
//!
//! Nothing behind the proxy's answer is ever read: [`Client::wanted`] says how many bytes may be taken, so what the other
//! end says first stays in the socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::url::Host;

const VERSION: u8 = 5;
/// Version of the sub-negotiation of RFC 1929.
const LOGIN_VERSION: u8 = 1;
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NOTHING_ACCEPTABLE: u8 = 0xff;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
/// Lengths of names, users and passwords are one byte.
pub const TEXT_BYTES_MAX: usize = 255;
/// Longest head of a datagram: three bytes, the kind, a name with its length, a port.
pub const UDP_HEAD_BYTES_MAX: usize = 3 + 1 + 1 + TEXT_BYTES_MAX + 2;
/// The longest answer is one with a name: all a handshake can have us keep.
pub const ANSWER_BYTES_MAX: usize = 4 + 1 + TEXT_BYTES_MAX + 2;

/// Where the proxy is to lead: an address, or a name that it looks up itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Addr(SocketAddr),
    Name(String, u16),
}

impl Target {
    /// A host of a URL and a port.
    pub fn new(host: &Host, port: u16) -> Target {
        match host {
            Host::Ip(ip) => Target::Addr(SocketAddr::new(*ip, port)),
            Host::Name(name) => Target::Name(name.clone(), port),
        }
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        match self {
            Target::Addr(addr) => addr.port(),
            Target::Name(_, port) => *port,
        }
    }

    /// ATYP, DST.ADDR and DST.PORT.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), SocksError> {
        match self {
            Target::Addr(addr) => match addr.ip().to_canonical() {
                IpAddr::V4(ip) => {
                    out.push(IPV4);
                    out.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(IPV6);
                    out.extend(ip.octets());
                }
            },
            Target::Name(name, _) => {
                let length = u8::try_from(name.len()).map_err(|_| SocksError::LongName)?;
                out.extend([NAME, length]);
                out.extend(name.bytes());
            }
        }
        out.extend(self.port().to_be_bytes());
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Addr(addr) => addr.fmt(f),
            Target::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// A user and a password, at most [`TEXT_BYTES_MAX`] bytes each.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    user: Vec<u8>,
    password: Vec<u8>,
}

impl Login {
    /// `None` when there is no user, or one of them is too long.
    pub fn new(user: Vec<u8>, password: Vec<u8>) -> Option<Login> {
        let fits = (1..=TEXT_BYTES_MAX).contains(&user.len()) && password.len() <= TEXT_BYTES_MAX;
        fits.then_some(Login { user, password })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![LOGIN_VERSION];
        for text in [&self.user, &self.password] {
            out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            out.extend(text);
        }
        out
    }
}

/// Never shows the password: settings end up in logs.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// What is asked of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Connect,
    UdpAssociate,
}

/// Why the proxy does not do it (RFC 1928 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    General,
    NotAllowed,
    NetworkUnreachable,
    HostUnreachable,
    ConnectionRefused,
    Expired,
    CommandUnsupported,
    AddressUnsupported,
    Other(u8),
}

impl Refusal {
    /// A reply that is not 0.
    const fn of(reply: u8) -> Refusal {
        match reply {
            1 => Refusal::General,
            2 => Refusal::NotAllowed,
            3 => Refusal::NetworkUnreachable,
            4 => Refusal::HostUnreachable,
            5 => Refusal::ConnectionRefused,
            6 => Refusal::Expired,
            7 => Refusal::CommandUnsupported,
            8 => Refusal::AddressUnsupported,
            other => Refusal::Other(other),
        }
    }

    /// True when it is said of the other end, not of the proxy.
    pub const fn is_of_target(self) -> bool {
        use Refusal::{ConnectionRefused, Expired, HostUnreachable, NetworkUnreachable};
        matches!(
            self,
            NetworkUnreachable | HostUnreachable | ConnectionRefused | Expired
        )
    }

    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Refusal::General | Refusal::Other(_) => "look at the proxy's log",
            Refusal::NotAllowed => {
                "have the proxy's rules allow these ports, or use another proxy; other peers are tried"
            }
            Refusal::NetworkUnreachable | Refusal::HostUnreachable => {
                "the proxy has no way there; look at its network"
            }
            Refusal::ConnectionRefused | Refusal::Expired => {
                "nobody answers there; others are tried"
            }
            Refusal::CommandUnsupported => "use a proxy that can do it, or do without",
            Refusal::AddressUnsupported => {
                "use a proxy that knows IPv6 and names, or leave IPv6 out with --no-ipv6"
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::General => "it failed there",
            Refusal::NotAllowed => "its rules do not allow this connection",
            Refusal::NetworkUnreachable => "it cannot reach that network",
            Refusal::HostUnreachable => "it cannot reach that host",
            Refusal::ConnectionRefused => "the other end refused the connection",
            Refusal::Expired => "the way there is too long",
            Refusal::CommandUnsupported => "it does not know this command",
            Refusal::AddressUnsupported => "it does not know this kind of address",
            Refusal::Other(reply) => return write!(f, "reply {reply}, which nobody knows"),
        })
    }
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocksError {
    #[error("the proxy does not speak SOCKS 5: its answer begins with byte {first}")]
    NotSocks { first: u8 },
    #[error("the proxy wants a user name and a password")]
    WantsLogin,
    #[error("the proxy takes neither a user name and password nor anybody without")]
    NoMethod,
    #[error("the proxy chose method {0}, which was not offered")]
    WrongMethod(u8),
    #[error("the proxy does not accept the user name and password")]
    WrongLogin,
    #[error("the proxy refused: {0}")]
    Refused(Refusal),
    #[error("the proxy answers with an address of unknown kind {0}")]
    WrongAddress(u8),
    #[error("the name is too long for the proxy")]
    LongName,
}

impl SocksError {
    /// True when the same proxy will say the same to every other connection.
    pub const fn is_lasting(self) -> bool {
        matches!(
            self,
            SocksError::NotSocks { .. }
                | SocksError::WantsLogin
                | SocksError::NoMethod
                | SocksError::WrongMethod(_)
                | SocksError::WrongLogin
        )
    }

    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            SocksError::NotSocks { .. } => {
                "check host and port of --proxy; an HTTP proxy goes into http_proxy"
            }
            SocksError::WantsLogin => "give them: --proxy socks5://USER:PASSWORD@HOST:PORT",
            SocksError::WrongLogin => {
                "check user and password of --proxy; a sign such as @ is written %40 there"
            }
            SocksError::NoMethod | SocksError::WrongMethod(_) => {
                "use a proxy that takes a user name and password, or anybody"
            }
            SocksError::Refused(refusal) => refusal.hint(),
            SocksError::WrongAddress(_) | SocksError::LongName => "use another proxy",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Method,
    Login,
    Reply,
    Nothing,
}

/// The client of one handshake: fed with the proxy's bytes, says what to send and how much to read.
#[derive(Debug)]
pub struct Client {
    awaits: Awaits,
    login: Option<Login>,
    request: Vec<u8>,
    out: Vec<u8>,
    /// Bytes of the present answer, at most [`ANSWER_BYTES_MAX`].
    got: Vec<u8>,
}

impl Client {
    /// Begins one. Without a login none is offered.
    ///
    /// # Errors
    /// The target's name is too long.
    pub fn new(
        command: Command,
        target: &Target,
        login: Option<Login>,
    ) -> Result<Client, SocksError> {
        let command = match command {
            Command::Connect => 1,
            Command::UdpAssociate => 3,
        };
        let mut request = vec![VERSION, command, 0];
        target.write(&mut request)?;
        let out = match login {
            Some(_) => vec![VERSION, 2, NO_AUTHENTICATION, USER_AND_PASSWORD],
            None => vec![VERSION, 1, NO_AUTHENTICATION],
        };
        Ok(Client {
            awaits: Awaits::Method,
            login,
            request,
            out,
            got: Vec::new(),
        })
    }

    /// What is to be sent now; empty between the parts of one answer.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// True once the proxy was asked to go there: what comes now is of the other end.
    pub const fn is_asked(&self) -> bool {
        matches!(self.awaits, Awaits::Reply | Awaits::Nothing)
    }

    /// Bytes that the present answer still has at least: no more may be taken from the socket.
    pub fn wanted(&self) -> usize {
        let whole = match self.awaits {
            Awaits::Method | Awaits::Login => 2,
            // Up to the first byte of the address, which is the length of a name.
            Awaits::Reply => match (self.got.get(3), self.got.get(4)) {
                (Some(&IPV4), Some(_)) => 10,
                (Some(&IPV6), Some(_)) => 22,
                (Some(&NAME), Some(length)) => 7 + usize::from(*length),
                _ => 5,
            },
            Awaits::Nothing => 0,
        };
        whole.saturating_sub(self.got.len())
    }

    /// Takes bytes of the proxy, at most [`Client::wanted`]; gives the address that it uses once it has agreed.
    ///
    /// # Errors
    /// The proxy does not agree, or does not speak SOCKS. Nothing may be fed after it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Target>, SocksError> {
        debug_assert!(bytes.len() <= self.wanted(), "bytes of somebody else");
        self.got.extend(bytes.iter().take(self.wanted()));
        self.check()?;
        if self.wanted() > 0 {
            return Ok(None);
        }
        let got = std::mem::take(&mut self.got);
        let (&second, awaits) = (got.get(1).unwrap_or(&0), self.awaits);
        match awaits {
            Awaits::Method if second == USER_AND_PASSWORD => {
                self.out = self.login.as_ref().map(Login::encode).unwrap_or_default();
                self.awaits = Awaits::Login;
            }
            Awaits::Method | Awaits::Login => {
                self.out = std::mem::take(&mut self.request);
                self.awaits = Awaits::Reply;
            }
            Awaits::Reply => {
                self.awaits = Awaits::Nothing;
                let bound = got.get(3..).and_then(read_target);
                return bound.map(|(bound, _)| Some(bound)).ok_or_else(|| {
                    SocksError::WrongAddress(got.get(3).copied().unwrap_or_default())
                });
            }
            Awaits::Nothing => {}
        }
        Ok(None)
    }

    /// Refuses as early as the bytes tell: a proxy that says no may say no more than that.
    fn check(&self) -> Result<(), SocksError> {
        let version = match self.awaits {
            Awaits::Method | Awaits::Reply => VERSION,
            Awaits::Login => LOGIN_VERSION,
            Awaits::Nothing => return Ok(()),
        };
        if let Some(first) = self.got.first().copied()
            && first != version
        {
            return Err(SocksError::NotSocks { first });
        }
        let Some(second) = self.got.get(1).copied() else {
            return Ok(());
        };
        match self.awaits {
            Awaits::Method => match second {
                NO_AUTHENTICATION => Ok(()),
                USER_AND_PASSWORD if self.login.is_some() => Ok(()),
                USER_AND_PASSWORD => Err(SocksError::WantsLogin),
                NOTHING_ACCEPTABLE if self.login.is_none() => Err(SocksError::WantsLogin),
                NOTHING_ACCEPTABLE => Err(SocksError::NoMethod),
                other => Err(SocksError::WrongMethod(other)),
            },
            Awaits::Login if second != 0 => Err(SocksError::WrongLogin),
            Awaits::Reply if second != 0 => Err(SocksError::Refused(Refusal::of(second))),
            Awaits::Reply => match self.got.get(3).copied() {
                None | Some(IPV4 | IPV6 | NAME) => Ok(()),
                Some(other) => Err(SocksError::WrongAddress(other)),
            },
            _ => Ok(()),
        }
    }
}

/// Reads ATYP, address and port; gives what follows. Names that are no text are none.
fn read_target(bytes: &[u8]) -> Option<(Target, &[u8])> {
    let (&kind, rest) = bytes.split_first()?;
    let (address, rest) = match kind {
        IPV4 => rest.split_at_checked(4)?,
        IPV6 => rest.split_at_checked(16)?,
        NAME => {
            let (&length, rest) = rest.split_first()?;
            rest.split_at_checked(usize::from(length))?
        }
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    let target = match kind {
        IPV4 => Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into(),
        IPV6 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => {
            let name = String::from_utf8_lossy(address).into_owned();
            return Some((Target::Name(name, port), rest));
        }
    };
    let addr = SocketAddr::new(target.to_canonical(), port);
    Some((Target::Addr(addr), rest))
}

/// A datagram for the proxy: its head (RFC 1928 §7), then the payload.
///
/// # Errors
/// The target's name is too long.
pub fn wrap(target: &Target, payload: &[u8]) -> Result<Vec<u8>, SocksError> {
    let mut out = Vec::with_capacity(UDP_HEAD_BYTES_MAX + payload.len());
    out.extend([0, 0, 0]);
    target.write(&mut out)?;
    out.extend(payload);
    Ok(out)
}

/// A datagram of the proxy: where it came from, and the payload. Fragments are nobody's: hardly any proxy makes them.
pub fn unwrap(datagram: &[u8]) -> Option<(Target, &[u8])> {
    match datagram.split_first_chunk::<3>()? {
        ([0, 0, 0], rest) => read_target(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
