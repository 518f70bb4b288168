//! A .torrent from an `http://` or `https://` URL. Layer 7.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::cli::RouteArgs;
use super::escape::{self, cut};
use super::exit::{Failure, io_cause};
use super::{run, source};
use crate::base::in_sentence;
use crate::session::deadline::Deadline;
use crate::session::http::{
    FetchError, GET_TIMEOUT, GetOptions, HttpClient, HttpConfig, TORRENT_BODY_BYTES_MAX,
};
use crate::session::socks::SocksProxy;
use crate::session::{BindTo, ProxySettings};
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::uring::tls::{self, Authorities};
use crate::wire::metainfo::Metainfo;
use crate::wire::tracker::Family;
use crate::wire::url::Url;

/// The longest file of `--tracker-ca`: the system's own is a quarter of a MiB.
const CA_BYTES_MAX: u64 = 16 * 1_048_576;

/// Characters of a URL that are shown.
const URL_CHARS_MAX: usize = 200;

/// The way out of this machine (`--bind`, `--no-ipv6`, `--proxy`), and whom to trust there besides (`--tracker-ca`).
#[derive(Clone, Debug)]
pub struct Route {
    pub bind: Option<BindTo>,
    pub ipv6: bool,
    pub proxy: Option<ProxySettings>,
    pub tracker_ca: Option<Authorities>,
}

impl Default for Route {
    fn default() -> Self {
        Route {
            bind: None,
            ipv6: true,
            proxy: None,
            tracker_ca: None,
        }
    }
}

impl TryFrom<&RouteArgs> for Route {
    type Error = Failure;

    fn try_from(args: &RouteArgs) -> Result<Route, Failure> {
        Ok(Route {
            bind: args.bind.clone(),
            ipv6: !args.no_ipv6,
            proxy: args.proxy.clone(),
            tracker_ca: tracker_ca(args.tracker_ca.as_deref())?,
        })
    }
}

/// The authorities in the file of `--tracker-ca`.
///
/// # Errors
/// It cannot be read, holds none, or this program speaks no TLS.
pub fn tracker_ca(path: Option<&Path>) -> Result<Option<Authorities>, Failure> {
    let Some(path) = path else {
        return Ok(None);
    };
    if !tls::IS_BUILT_IN {
        let message = format!("--tracker-ca cannot be used: {}", tls::ABSENT);
        return Err(Failure::usage(message, "leave the option out"));
    }
    let shown = escape::terminal_path(path);
    let failed = |why: String| {
        let message = format!("cannot use {shown} as --tracker-ca: {}", in_sentence(&why));
        Failure::new(message, "name a file with certificates in PEM")
    };
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|error| failed(io_cause(&error)))?;
    let read = file.take(CA_BYTES_MAX + 1).read_to_end(&mut pem);
    read.map_err(|error| failed(io_cause(&error)))?;
    if pem.len() as u64 > CA_BYTES_MAX {
        return Err(failed("it is too long".to_owned()));
    }
    let read = Authorities::read(&pem).map_err(|error| failed(error.to_string()))?;
    Ok(Some(read))
}

impl Route {
    /// What sockets are given for it.
    pub fn socket_options(&self) -> SocketOptions {
        let (bind, bind_device) = match &self.bind {
            None => (None, None),
            Some(BindTo::Addr(ip)) => (Some(*ip), None),
            Some(BindTo::Interface(name)) => (None, Some(name.clone())),
        };
        SocketOptions {
            bind,
            bind_device,
            ..SocketOptions::default()
        }
    }
}

/// Fetches and parses it, through `--proxy`, or else the environment's `http_proxy`, if there is one.
///
/// # Errors
/// It cannot be fetched or is no torrent.
pub fn torrent(url: &str, route: &Route) -> Result<Metainfo, Failure> {
    let shown = cut(url, URL_CHARS_MAX);
    let failed = |why: String| {
        Failure::new(
            format!("cannot fetch {shown}: {}", in_sentence(&why)),
            "check the URL and the network, or fetch the file with another tool and name it here",
        )
    };
    let parsed = Url::parse(url).map_err(|error| failed(error.to_string()))?;
    let ring = run::start_ring()?;
    let answer = ring.block_on(async {
        let socket = route.socket_options();
        let resolver = Resolver::bound(&socket).map_err(FetchError::Io)?;
        let proxy = route.proxy.clone();
        let socks = proxy.map(|proxy| SocksProxy::new(proxy, socket.clone(), resolver.clone()));
        let config = HttpConfig {
            socket,
            socks,
            ..HttpConfig::from_env(route.tracker_ca.clone())
        };
        let client = HttpClient::new(config, resolver);
        let options = GetOptions {
            family: (!route.ipv6).then_some(Family::V4),
            deadline: Deadline::after(GET_TIMEOUT),
            body_bytes_max: TORRENT_BODY_BYTES_MAX,
            is_last: true,
        };
        client.get(&parsed, &options).await
    });
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    if answer.status != 200 {
        return Err(failed(format!("the server answers {}", answer.status)));
    }
    source::parse(&answer.body, &shown)
}
