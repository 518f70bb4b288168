//! TLS over OpenSSL.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    Error, ErrorCode, ShutdownState, Ssl, SslConnector, SslMethod, SslMode, SslOptions, SslRef,
    SslSession, SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};
use openssl::x509::{X509, X509VerifyResult};

use super::{Step, TlsError};

/// Bytes of the other end until a handshake is over: twice what OpenSSL takes as certificates.
const HANDSHAKE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of the other end, once the handshake is over, that hold nothing for us.
const IDLE_BYTES_MAX: usize = 64 * 1024;
/// Issuers between a certificate and an authority; real chains have one or two.
const CHAIN_MAX: u32 = 10;
/// Servers whose last session is remembered.
const SESSIONS_MAX: usize = 64;
/// Plain bytes taken from OpenSSL at once: a whole record.
const RECORD_BYTES_MAX: usize = 16_384;
/// What encryption may add to a record (RFC 5246 §6.2.3).
const RECORD_EXTRA_MAX: usize = 2_048;
/// Type, version and length of a record.
const RECORD_HEAD_BYTES: usize = 5;
/// What we owe the other end, sent with the next request: answers to key updates.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// Further authorities whose certificates are trusted.
#[derive(Clone)]
pub struct Authorities(Arc<[X509]>);

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
    }
}

impl Authorities {
    /// Reads certificates.
    ///
    /// # Errors
    /// There is none, or one is broken.
    pub fn read(pem: &[u8]) -> Result<Authorities, TlsError> {
        let broken = |error: ErrorStack| TlsError::BrokenCertificate(reason(&error));
        let found = X509::stack_from_pem(pem).map_err(broken)?;
        match found.is_empty() {
            true => Err(TlsError::NoCertificate),
            false => Ok(Authorities(found.into())),
        }
    }
}

/// What connections share: whom to trust, and sessions to go on with. Clones share it too.
#[derive(Clone)]
pub struct Tls {
    inner: Arc<Inner>,
}

struct Inner {
    more: Option<Authorities>,
    /// Made when it is first needed.
    connector: OnceLock<Result<SslConnector, TlsError>>,
    sessions: Arc<Sessions>,
}

/// The last session of each server, those used last in front. At most [`SESSIONS_MAX`].
#[derive(Default)]
struct Sessions(Mutex<VecDeque<(Arc<str>, SslSession)>>);

impl Sessions {
    fn keep(&self, server: Arc<str>, session: SslSession) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(of, _)| *of != server);
        kept.push_front((server, session));
        kept.truncate(SESSIONS_MAX);
    }

    fn of(&self, server: &str) -> Option<SslSession> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|(of, _)| **of == *server);
        found.map(|(_, session)| session.clone())
    }
}

/// Where a connection keeps whose it is.
fn server_index() -> Result<Index<Ssl, Arc<str>>, TlsError> {
    static INDEX: OnceLock<Result<Index<Ssl, Arc<str>>, TlsError>> = OnceLock::new();
    let made = INDEX.get_or_init(|| Ssl::new_ex_index().map_err(|error| unusable(&error)));
    made.clone()
}

impl Tls {
    /// Trusts whom the system trusts, and these.
    pub fn new(more: Option<Authorities>) -> Tls {
        let inner = Inner {
            more,
            connector: OnceLock::new(),
            sessions: Arc::default(),
        };
        Tls {
            inner: Arc::new(inner),
        }
    }

    /// One end of a connection to the server with this name, or address without brackets. The first reads the system's store.
    ///
    /// # Errors
    /// OpenSSL cannot be used, or the name is none.
    pub fn client(&self, name: &str, port: u16) -> Result<Client, TlsError> {
        let connector = self.inner.connector.get_or_init(|| self.inner.connector());
        let connector = connector.as_ref().map_err(TlsError::clone)?;
        let failed = |error: ErrorStack| unusable(&error);
        // A name is the same with and without the root's dot; certificates have it without.
        let name = name.strip_suffix('.').unwrap_or(name);
        let configured = connector.configure().map_err(failed)?;
        let mut ssl = configured.into_ssl(name).map_err(failed)?;
        let server: Arc<str> = format!("{name}:{port}").into();
        if let Some(session) = self.inner.sessions.of(&server) {
            // SAFETY: sessions are kept by the callback of this very context only.
            let set = unsafe { ssl.set_session(&session) };
            set.map_err(failed)?;
        }
        ssl.set_ex_data(server_index()?, server);
        let tls = SslStream::new(ssl, Pipe::default()).map_err(failed)?;
        Ok(Client {
            tls,
            is_over: false,
            idle_bytes: 0,
            is_first: true,
        })
    }
}

impl Inner {
    fn connector(&self) -> Result<SslConnector, TlsError> {
        let index = server_index()?;
        let sessions = self.sessions.clone();
        let build = || {
            let mut builder = SslConnector::builder(SslMethod::tls_client())?;
            builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
            builder.set_verify(SslVerifyMode::PEER);
            builder.set_verify_depth(CHAIN_MAX);
            builder.set_options(SslOptions::NO_RENEGOTIATION | SslOptions::NO_COMPRESSION);
            builder.set_mode(SslMode::RELEASE_BUFFERS);
            for authority in self.more.iter().flat_map(|more| more.0.iter()) {
                // A certificate that is there twice is no error.
                builder.cert_store_mut().add_cert(authority.clone())?;
            }
            builder.set_session_cache_mode(
                SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL,
            );
            builder.set_new_session_callback(move |ssl: &mut SslRef, session| {
                if let Some(server) = ssl.ex_data(index) {
                    sessions.keep(server.clone(), session);
                }
            });
            Ok(builder.build())
        };
        build().map_err(|error: ErrorStack| unusable(&error))
    }
}

/// Both directions between OpenSSL and whoever moves the bytes.
#[derive(Default)]
struct Pipe {
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
    /// Nothing will come behind `incoming`.
    is_ended: bool,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.incoming.is_empty() && !self.is_ended {
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

/// One end of a connection.
pub struct Client {
    tls: SslStream<Pipe>,
    /// The handshake is.
    is_over: bool,
    /// Of the other end, since something for us came.
    idle_bytes: usize,
    /// Nothing has come yet.
    is_first: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        // OpenSSL goes on with no session whose connection was not shut down. Errors have ended the session already, and an
        // answer that was cut off says nothing about it.
        let state = ShutdownState::SENT | ShutdownState::RECEIVED;
        self.tls.set_shutdown(state);
    }
}

impl Client {
    /// Goes on with the handshake as far as what was fed lets it. What is to be sent after it is to be sent after an error too:
    /// it tells the other end why.
    ///
    /// # Errors
    /// The other end is not who it should be, or speaks something else.
    pub fn handshake(&mut self) -> Result<Step, TlsError> {
        match self.tls.connect() {
            Ok(()) => {
                self.is_over = true;
                self.idle_bytes = 0;
                Ok(Step::Done)
            }
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(Step::Wants),
            Err(error) => Err(self.fault(&error)),
        }
    }

    /// Takes bytes of the other end.
    ///
    /// # Errors
    /// They are no TLS, or far too many for what they hold.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        if let (true, Some(first)) = (self.is_first, bytes.first()) {
            // Types of records (RFC 8446 §5.1): a server begins with an alert or its part of the handshake.
            if !matches!(first, 21 | 22) {
                return Err(TlsError::NotTls);
            }
            self.is_first = false;
        }
        self.tls.get_mut().incoming.extend(bytes);
        self.idle_bytes = self.idle_bytes.saturating_add(bytes.len());
        match self.is_over {
            false if self.idle_bytes > HANDSHAKE_BYTES_MAX => Err(TlsError::TooLong),
            _ => Ok(()),
        }
    }

    /// Nothing will come from the other end any more.
    pub fn end(&mut self) {
        self.tls.get_mut().is_ended = true;
    }

    /// Whether what was fed is enough for another step: a record, something that is none, or the end.
    pub fn has_record(&self) -> bool {
        let pipe = self.tls.get_ref();
        let head: Vec<u8> = pipe.incoming.iter().copied().take(5).collect();
        let [kind, major, _, high, low] = *head.as_slice() else {
            return pipe.is_ended;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let is_record = matches!(kind, 20..=23) && major == 3;
        !is_record
            || pipe.is_ended
            || length > RECORD_BYTES_MAX + RECORD_EXTRA_MAX
            || pipe.incoming.len() >= RECORD_HEAD_BYTES + length
    }

    /// What is to be sent to the other end.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tls.get_mut().outgoing)
    }

    /// Encrypts bytes; they are to be sent then.
    ///
    /// # Errors
    /// The connection is no more to be used.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        match self.tls.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) => Err(TlsError::Broken(error.to_string())),
        }
    }

    /// Decrypts all that was fed and puts it behind `plain`; nothing but a part of a record stays back. False when the other
    /// end has said that no more will come.
    ///
    /// # Errors
    /// The other end broke off without a word, or broke the rules.
    pub fn read(&mut self, plain: &mut Vec<u8>) -> Result<bool, TlsError> {
        let before = plain.len();
        let mut chunk = [0; RECORD_BYTES_MAX];
        let is_open = loop {
            match self.tls.ssl_read(&mut chunk) {
                Ok(bytes) => plain.extend_from_slice(chunk.get(..bytes).unwrap_or_default()),
                Err(error) if error.code() == ErrorCode::WANT_READ => break true,
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => break false,
                // What came before stays: it is told the next time.
                Err(_) if plain.len() > before => break true,
                Err(error) => return Err(self.fault(&error)),
            }
        };
        // Parts of a record are no idle talk, as long as they are no longer than one.
        if plain.len() > before {
            self.idle_bytes = 0;
        }
        let pipe = self.tls.get_ref();
        if self.idle_bytes > IDLE_BYTES_MAX || pipe.outgoing.len() > OUT_BYTES_MAX {
            return Err(TlsError::Idle);
        }
        Ok(is_open)
    }

    fn fault(&self, error: &Error) -> TlsError {
        let ssl = self.tls.ssl();
        if !self.is_over && ssl.verify_result() != X509VerifyResult::OK {
            return certificate_fault(ssl.verify_result());
        }
        let pipe = self.tls.get_ref();
        if pipe.is_ended && pipe.incoming.is_empty() {
            return TlsError::Truncated;
        }
        let stack = error.ssl_error();
        let code = stack.and_then(|stack| stack.errors().first()?.reason_code().into());
        let text = stack.map_or_else(|| "unknown".to_owned(), reason);
        match code {
            // Numbers of OpenSSL's sslerr.h: the server's version, or what it says of ours.
            Some(258 | 1_070) => TlsError::TooOld,
            // EXCESSIVE_MESSAGE_SIZE
            Some(152) => TlsError::TooLong,
            // WRONG_VERSION_NUMBER: the second record may be something else as well.
            Some(267) if !self.is_over => TlsError::NotTls,
            _ if self.is_over => TlsError::Broken(text),
            _ => TlsError::Handshake(text),
        }
    }
}

/// What a certificate was found to be; numbers of OpenSSL's x509_vfy.h.
fn certificate_fault(result: X509VerifyResult) -> TlsError {
    match result.as_raw() {
        62 | 64 => TlsError::WrongName,
        10 => TlsError::Expired,
        9 => TlsError::NotYetValid,
        18 => TlsError::SelfSigned,
        2 | 19 | 20 | 21 => TlsError::UnknownAuthority,
        _ => TlsError::Refused(result.error_string().to_owned()),
    }
}

/// OpenSSL's words; nothing of the other end is among them.
fn reason(stack: &ErrorStack) -> String {
    let first = stack.errors().first();
    let words = first.and_then(openssl::error::Error::reason);
    words.unwrap_or("unknown").to_owned()
}

fn unusable(stack: &ErrorStack) -> TlsError {
    TlsError::Unusable(reason(stack))
}
