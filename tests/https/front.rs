//! What stands before the test's trackers and web servers: an authority of the test's own, certificates of it, and a front
//! that takes TLS off and passes requests on.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    NameType, SslAcceptor, SslAcceptorBuilder, SslMethod, SslStream, SslVerifyMode,
};
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};

/// Seconds in a day.
const DAY: i64 = 86_400;

/// A certificate and its key.
#[derive(Clone)]
pub struct Identity {
    pub certificate: X509,
    pub key: PKey<Private>,
}

/// An authority that nobody trusts unless told to.
pub struct Authority {
    root: Identity,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        Authority {
            root: issue(name, &[], (-1, 30), None, true),
        }
    }

    /// Its certificate in a file for `--tracker-ca`.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let path = folder.join("authority.pem");
        std::fs::write(&path, self.pem()).unwrap();
        path
    }

    pub fn pem(&self) -> Vec<u8> {
        self.root.certificate.to_pem().unwrap()
    }

    /// A certificate that is good now.
    pub fn identity(&self, names: &[&str]) -> Identity {
        self.of_days(names, (-1, 30))
    }

    /// The same, valid between these days from now.
    pub fn of_days(&self, names: &[&str], days: (i64, i64)) -> Identity {
        issue(names[0], names, days, Some(&self.root), false)
    }
}

/// A certificate that vouches for itself.
pub fn self_signed(names: &[&str]) -> Identity {
    issue(names[0], names, (-1, 30), None, false)
}

fn issue(
    subject: &str,
    names: &[&str],
    days: (i64, i64),
    issuer: Option<&Identity>,
    is_authority: bool,
) -> Identity {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, subject).unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial
        .rand(127, openssl::bn::MsbOption::MAYBE_ZERO, false)
        .unwrap();
    builder
        .set_serial_number(&serial.to_asn1_integer().unwrap())
        .unwrap();
    builder.set_subject_name(&name).unwrap();
    let issued_by = issuer.map_or(&*name, |issuer| issuer.certificate.subject_name());
    builder.set_issuer_name(issued_by).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_secs() as i64;
    let at = |day: i64| Asn1Time::from_unix(now + day * DAY).unwrap();
    builder.set_not_before(&at(days.0)).unwrap();
    builder.set_not_after(&at(days.1)).unwrap();
    builder.set_pubkey(&key).unwrap();
    if is_authority {
        let constraints = BasicConstraints::new().critical().ca().build().unwrap();
        builder.append_extension(constraints).unwrap();
        let usage = KeyUsage::new().critical().key_cert_sign().build().unwrap();
        builder.append_extension(usage).unwrap();
    }
    if !names.is_empty() {
        let mut alternatives = SubjectAlternativeName::new();
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(_) => alternatives.ip(name),
                Err(_) => alternatives.dns(name),
            };
        }
        let context = builder.x509v3_context(None, None);
        let alternatives = alternatives.build(&context).unwrap();
        builder.append_extension(alternatives).unwrap();
    }
    let signer = issuer.map_or(&key, |issuer| &issuer.key);
    builder.sign(signer, MessageDigest::sha256()).unwrap();
    Identity {
        certificate: builder.build(),
        key,
    }
}

/// What a server with this identity is made of.
pub fn acceptor(identity: &Identity) -> SslAcceptorBuilder {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    builder.set_certificate(&identity.certificate).unwrap();
    builder.set_private_key(&identity.key).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_session_id_context(b"front").unwrap();
    builder
}

/// How one connection was.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The name in the client's first message.
    pub name: Option<String>,
    pub is_resumed: bool,
    pub version: &'static str,
    pub from: IpAddr,
}

/// Ends of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should be.
    Told,
    /// Without the word that nothing more comes.
    Silent,
    /// After so many bytes of answers, in the middle of everything.
    After(usize),
}

/// Takes TLS off and passes requests on to a server that speaks plainly. Runs as long as the test.
pub struct Front {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    failed: Arc<Mutex<Vec<String>>>,
}

impl Front {
    pub fn start(identity: &Identity, to: SocketAddr) -> Front {
        Front::with(acceptor(identity), to, End::Told)
    }

    pub fn with(acceptor: SslAcceptorBuilder, to: SocketAddr, end: End) -> Front {
        let acceptor = acceptor.build();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let front = Front {
            addr,
            seen: Arc::default(),
            failed: Arc::default(),
        };
        let (seen, failed) = (front.seen.clone(), front.failed.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (acceptor, seen, failed) = (acceptor.clone(), seen.clone(), failed.clone());
                std::thread::spawn(move || {
                    let from = stream.peer_addr().unwrap().ip();
                    let mut tls = match acceptor.accept(stream) {
                        Ok(tls) => tls,
                        Err(error) => return failed.lock().unwrap().push(format!("{error:?}")),
                    };
                    let ssl = tls.ssl();
                    seen.lock().unwrap().push(Seen {
                        name: ssl.servername(NameType::HOST_NAME).map(str::to_owned),
                        is_resumed: ssl.session_reused(),
                        version: ssl.version_str(),
                        from,
                    });
                    let _ = pass_on(&mut tls, to, end);
                    if end == End::Told {
                        let _ = tls.shutdown();
                    }
                    let _ = tls.get_ref().shutdown(std::net::Shutdown::Both);
                });
            }
        });
        front
    }

    pub fn url(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}/{path}", self.addr.port())
    }

    /// Handshakes that came to their end.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Why others did not, in the words of the server's side.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }
}

/// Request by request, each with its answer.
fn pass_on(tls: &mut SslStream<TcpStream>, to: SocketAddr, end: End) -> io::Result<()> {
    let mut server = TcpStream::connect(to)?;
    let mut left = match end {
        End::After(bytes) => bytes,
        _ => usize::MAX,
    };
    let mut send = |tls: &mut SslStream<TcpStream>, bytes: &[u8]| -> io::Result<()> {
        let part = bytes.len().min(left);
        tls.write_all(&bytes[..part])?;
        left -= part;
        match left {
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    };
    loop {
        let Some(request) = head(tls)? else {
            return Ok(());
        };
        server.write_all(&request)?;
        let Some(answer) = head(&mut server)? else {
            return Ok(());
        };
        send(tls, &answer)?;
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        let mut body = match length {
            Some(length) => (&mut server).take(length.trim().parse().unwrap()),
            None => (&mut server).take(u64::MAX),
        };
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match body.read(&mut chunk)? {
                0 => break,
                bytes => send(tls, &chunk[..bytes])?,
            }
        }
        if length.is_none() {
            return Ok(());
        }
    }
}

/// Up to the empty line; `None` when nothing comes.
fn head(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if from.read(&mut byte)? == 0 {
            return Ok(None);
        }
        bytes.push(byte[0]);
    }
    Ok(Some(bytes))
}
