//! TLS of a client as a machine fed with bytes, over the system's OpenSSL (cargo feature `tls`). Layer 4.
//!
//! Knows no sockets: what comes from the other end is fed in, what is to be sent is taken out. Making a client reads the
//! system's store of certificates, and a step of a handshake may read from it and judges signatures: both belong on a thread
//! that may block. Without the feature the same names are here, and nothing can be made of them.

#[cfg(not(feature = "tls"))]
mod absent;
#[cfg(feature = "tls")]
mod openssl;

#[cfg(not(feature = "tls"))]
pub use self::absent::{Authorities, Client, Tls};
#[cfg(feature = "tls")]
pub use self::openssl::{Authorities, Client, Tls};

/// Whether this program speaks TLS at all.
pub const IS_BUILT_IN: bool = cfg!(feature = "tls");

/// What to say where it does not.
pub const ABSENT: &str = "https is not supported: this gyre was built without TLS; `cargo build --release --features tls`, with OpenSSL's headers (libssl-dev), makes one that has it";

/// What a step of a handshake led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something of the other end must come first.
    Wants,
    /// It is over: bytes can be written and read.
    Done,
}

/// Why there is no TLS, or no more of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("{}", ABSENT)]
    Absent,
    /// Not the other end's doing.
    #[error("OpenSSL cannot be used: {0}")]
    Unusable(String),
    #[error("there is no certificate in it: PEM is expected, \"-----BEGIN CERTIFICATE-----\"")]
    NoCertificate,
    #[error("a certificate in it is broken: {0}")]
    BrokenCertificate(String),
    #[error("the certificate is not made out to this name")]
    WrongName,
    #[error("the certificate has expired")]
    Expired,
    #[error("the certificate is not valid yet; is the clock of this machine right?")]
    NotYetValid,
    #[error("the certificate is self-signed; if it is meant to be, name it with --tracker-ca FILE")]
    SelfSigned,
    #[error(
        "the certificate was issued by nobody that is trusted; --tracker-ca FILE adds an authority"
    )]
    UnknownAuthority,
    #[error("the certificate is not accepted: {0}")]
    Refused(String),
    #[error("what answers there does not speak TLS")]
    NotTls,
    #[error("it speaks no TLS of version 1.2 or newer")]
    TooOld,
    #[error("its handshake has no end, or more certificates than are taken")]
    TooLong,
    #[error("it sends TLS that holds nothing")]
    Idle,
    #[error("the connection broke off in the middle of TLS")]
    Truncated,
    #[error("the handshake failed: {0}")]
    Handshake(String),
    #[error("broken TLS: {0}")]
    Broken(String),
}
