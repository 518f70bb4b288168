//! A .torrent from an `http://` URL. Layer 6.

use super::escape::cut;
use super::exit::Failure;
use super::{run, source};
use crate::session::deadline::Deadline;
use crate::session::http::{
    FetchError, GET_TIMEOUT, GetOptions, HttpClient, HttpConfig, TORRENT_BODY_BYTES_MAX,
};
use crate::uring::resolve::Resolver;
use crate::wire::metainfo::Metainfo;
use crate::wire::url::Url;

/// Characters of a URL that are shown.
const URL_CHARS_MAX: usize = 200;

/// Fetches and parses it, through the environment's `http_proxy` if there is one.
///
/// # Errors
/// It cannot be fetched or is no torrent.
pub fn torrent(url: &str) -> Result<Metainfo, Failure> {
    let shown = cut(url, URL_CHARS_MAX);
    let failed = |why: String| {
        Failure::new(
            format!("cannot fetch {shown}: {why}"),
            "check the URL and the network, or fetch the file with another tool and name it here",
        )
    };
    let parsed = Url::parse(url).map_err(|error| failed(error.to_string()))?;
    let ring = run::start_ring()?;
    let answer = ring.block_on(async {
        let resolver = Resolver::new().map_err(FetchError::Io)?;
        let client = HttpClient::new(HttpConfig::from_env(), resolver);
        let options = GetOptions {
            family: None,
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
