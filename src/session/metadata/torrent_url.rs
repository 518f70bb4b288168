//! The .torrent that a magnet link names by URL (`xs`, `as`), fetched beside what peers are asked for. Layer 5.
//!
//! Whoever answers is a stranger: bytes, time and redirects have the bounds of the session's HTTP client, and of what
//! comes nothing but an info dictionary with the link's info_hash is taken (HOSTILE.md S10, S11).

use std::rc::Rc;
use std::time::Duration;

use tracing::{Instrument, debug};

use super::{Found, Search};
use crate::base::in_sentence;
use crate::session::config::SessionEvent;
use crate::session::contain::caught;
use crate::session::deadline::Deadline;
use crate::session::http::{FetchError, GET_TIMEOUT, GetOptions, TORRENT_BODY_BYTES_MAX};
use crate::swarm::metadata::MetadataSwarm;
use crate::wire::metainfo::Metainfo;
use crate::wire::url::Url;

/// URLs of one link that are used: links name one or two, and a list may have been made to have many visitors sent to
/// somebody.
const URLS_MAX: usize = 8;
/// Characters of a URL that are shown.
const URL_CHARS_MAX: usize = 200;
/// The pause after all that may yet answer failed; it doubles with each round.
const PAUSE_MIN: Duration = Duration::from_secs(15);
/// However often they failed.
const PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// Why a URL did not give the metadata.
struct Failure {
    /// In words for the user.
    why: String,
    /// It is worth asking again.
    may_pass: bool,
}

impl Failure {
    fn lasting(why: impl Into<String>) -> Failure {
        Failure {
            why: why.into(),
            may_pass: false,
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Failure {
        let may_pass = match error {
            FetchError::Lookup { .. }
            | FetchError::Connect { .. }
            | FetchError::TimedOut
            | FetchError::Io(_)
            | FetchError::Tls { .. }
            | FetchError::BrokenTls(_) => true,
            FetchError::HttpsUnsupported
            | FetchError::NotHttp
            | FetchError::NoAddress { .. }
            | FetchError::Http(_)
            | FetchError::BadRedirect(_)
            | FetchError::NoLocation
            | FetchError::TooManyRedirects
            | FetchError::RedirectInward { .. } => false,
        };
        Failure {
            why: error.to_string(),
            may_pass,
        }
    }
}

/// Begins to fetch, one URL after the other, until one is right or the search is over.
pub(super) fn start(search: &Rc<Search>, urls: &[String]) {
    let urls = urls.iter().take(URLS_MAX);
    let urls: Vec<Url> = urls.filter_map(|url| Url::parse(url).ok()).collect();
    if urls.is_empty() {
        return;
    }
    let (search, span) = (search.clone(), search.span.clone());
    let work = async move {
        if caught(fetch_all(&search, urls)).await.is_err() {
            search.on_panic();
        }
    };
    tokio_uring::spawn(work.instrument(span));
}

async fn fetch_all(search: &Rc<Search>, mut urls: Vec<Url>) {
    let mut pause = PAUSE_MIN;
    let mut is_first = true;
    while !urls.is_empty() {
        let mut left = Vec::new();
        for url in urls {
            let fetched = async {
                search.shared.way.opened().await;
                fetch(search, &url).await
            };
            let fetched = tokio::select! {
                () = search.ending() => return,
                fetched = fetched => fetched,
            };
            match fetched {
                Ok(found) => return search.on_fetched(found),
                Err(failure) => {
                    debug!(%url, why = failure.why, "no .torrent");
                    if is_first || !failure.may_pass {
                        tell(search, &url, &failure);
                    }
                    if failure.may_pass {
                        left.push(url);
                    }
                }
            }
        }
        urls = left;
        is_first = false;
        tokio::select! {
            () = search.ending() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The raw info dictionary, once it is known to be the right one.
async fn fetch(search: &Search, url: &Url) -> Result<Found, Failure> {
    let shared = &search.shared;
    let options = GetOptions {
        family: match shared.families.as_slice() {
            [family] => Some(*family),
            _ => None,
        },
        deadline: Deadline::after(GET_TIMEOUT),
        body_bytes_max: TORRENT_BODY_BYTES_MAX,
        is_last: true,
    };
    let answer = shared.trackers.http.get(url, &options).await?;
    if answer.status != 200 {
        let status = answer.status;
        return Err(Failure {
            why: format!("the server answers with status {status}"),
            may_pass: matches!(status, 408 | 425 | 429 | 500..),
        });
    }
    // Up to 64 MiB are read and hashed: not on the ring thread.
    let parsed = tokio::task::spawn_blocking(move || Metainfo::parse(&answer.body)).await;
    let parsed = parsed.map_err(|error| Failure::lasting(error.to_string()))?;
    let metainfo = parsed.map_err(|error| Failure::lasting(error.to_string()))?;
    if !search.info_hashes.are_met_by(&metainfo.info_hashes) {
        return Err(Failure::lasting("it is that of another torrent"));
    }
    Ok((metainfo.info_bytes, metainfo.piece_layers))
}

fn tell(search: &Search, url: &Url, failure: &Failure) {
    let shown: String = url.to_string().chars().take(URL_CHARS_MAX).collect();
    let follows = match failure.may_pass {
        true => "it is tried again later; peers are asked meanwhile",
        false => "peers and other URLs of the link are asked",
    };
    search.shared.emit(SessionEvent::Warning {
        info_hash: Some(search.info_hash),
        message: format!(
            "no .torrent from {shown}, which the link names: {}",
            in_sentence(&failure.why)
        ),
        hint: follows.to_owned(),
    });
}

impl Search {
    /// The metadata is here, from nobody among the peers.
    fn on_fetched(self: &Rc<Self>, (info_bytes, layers): Found) {
        debug!(bytes = info_bytes.len(), "the .torrent of the link");
        self.take(info_bytes, layers);
        self.call(MetadataSwarm::stop);
    }
}
