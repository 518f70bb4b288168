//! What stands in the place of TLS in a program that is built without it.

use super::{Step, TlsError};

/// Further authorities whose certificates are trusted: none can be read.
#[derive(Clone, Debug)]
pub enum Authorities {}

impl Authorities {
    /// Reads certificates.
    ///
    /// # Errors
    /// Always.
    pub const fn read(_pem: &[u8]) -> Result<Authorities, TlsError> {
        Err(TlsError::Absent)
    }
}

/// What connections share.
#[derive(Clone, Debug)]
pub struct Tls;

impl Tls {
    /// Nothing.
    pub const fn new(_more: Option<Authorities>) -> Tls {
        Tls
    }

    /// One end of a connection.
    ///
    /// # Errors
    /// Always.
    pub const fn client(&self, _name: &str, _port: u16) -> Result<Client, TlsError> {
        Err(TlsError::Absent)
    }
}

/// One end of a connection: there is none.
#[derive(Debug)]
pub enum Client {}

impl Client {
    /// As with TLS.
    ///
    /// # Errors
    /// None: it cannot be called.
    pub const fn handshake(&mut self) -> Result<Step, TlsError> {
        match *self {}
    }

    /// As with TLS.
    ///
    /// # Errors
    /// None: it cannot be called.
    pub const fn feed(&mut self, _bytes: &[u8]) -> Result<(), TlsError> {
        match *self {}
    }

    /// As with TLS.
    pub const fn end(&mut self) {
        match *self {}
    }

    /// As with TLS.
    pub const fn has_record(&self) -> bool {
        match *self {}
    }

    /// As with TLS.
    pub const fn take_out(&mut self) -> Vec<u8> {
        match *self {}
    }

    /// As with TLS.
    ///
    /// # Errors
    /// None: it cannot be called.
    pub const fn write(&mut self, _bytes: &[u8]) -> Result<(), TlsError> {
        match *self {}
    }

    /// As with TLS.
    ///
    /// # Errors
    /// None: it cannot be called.
    pub const fn read(&mut self, _plain: &mut Vec<u8>) -> Result<bool, TlsError> {
        match *self {}
    }
}
