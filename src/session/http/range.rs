//! Ranges of files: a GET whose answer's body the caller takes from the connection as it comes. Layer 5.
//!
//! The caller keeps the connection for its next range, and the place that redirects led to, with the origin by which
//! it was judged: an inner address is not reached by being remembered.

use std::ops::RangeInclusive;

use super::redirect::Origin;
use super::{Connection, FetchError, HOPS_MAX, HttpClient, Route, is_redirect, read_head};
use crate::session::deadline::Deadline;
use crate::uring::stream::Stream;
use crate::wire::http::ResponseHead;
use crate::wire::tracker::Family;
use crate::wire::url::Url;

/// A URL, and who led there if it was a redirect.
#[derive(Clone, Debug)]
pub struct Place {
    pub url: Url,
    from: Option<Origin>,
}

impl Place {
    /// A place that the user or the torrent names.
    pub const fn new(url: Url) -> Place {
        Place { url, from: None }
    }
}

/// The head of an answer; its body follows on the stream.
pub struct Answer {
    pub head: ResponseHead,
    /// What came behind the head already.
    pub early: Vec<u8>,
    /// Where it came from in the end.
    pub place: Place,
    route: Route,
    connection: Connection,
}

impl Answer {
    /// Where the body comes from. Shut down when the answer is dropped, unless it was kept.
    pub const fn stream(&self) -> &Stream {
        self.connection.stream()
    }

    /// What bytes received from the stream say, none being its end: themselves, or with TLS what was in them, put into
    /// `plain`. False when no more will come.
    ///
    /// # Errors
    /// With TLS, the server broke off or broke the rules.
    pub fn open<'a>(
        &mut self,
        bytes: &'a [u8],
        plain: &'a mut Vec<u8>,
    ) -> Result<(&'a [u8], bool), FetchError> {
        self.connection.open(bytes, plain)
    }

    /// The connection for the next request; only when the whole body was taken and the head allows it.
    pub fn keep(self) -> Kept {
        Kept {
            route: self.route,
            from: self.place.from,
            connection: self.connection,
        }
    }
}

/// A connection that waits for its next request. Shut down when dropped.
pub struct Kept {
    route: Route,
    from: Option<Origin>,
    connection: Connection,
}

impl HttpClient {
    /// Asks for bytes of a file and reads the head of the answer, whatever its status; redirects are followed. `kept` is
    /// used if it leads there.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn get_range(
        &self,
        place: &Place,
        range: RangeInclusive<u64>,
        mut kept: Option<Kept>,
        family: Option<Family>,
        deadline: &Deadline,
    ) -> Result<Answer, FetchError> {
        let mut place = place.clone();
        for _ in 0..=HOPS_MAX {
            let (route, proxy) = self.route(&place.url, place.from, family)?;
            let (first, last) = (range.start(), range.end());
            let fields = format!("Accept-Encoding: identity\r\nRange: bytes={first}-{last}\r\n");
            let request = self.request(&place.url, proxy, &fields);
            let fits = |kept: &Kept| kept.route == route && kept.from == place.from;
            let mut answered = None;
            if let Some(mut kept) = kept.take().filter(fits) {
                match ask(&mut kept.connection, request.clone(), deadline).await {
                    // It was closed while nobody looked.
                    Err(error) if error.is_of_connection() => {}
                    head => answered = Some((head?, kept.connection)),
                }
            }
            let ((head, early), connection) = match answered {
                Some(answered) => answered,
                None => {
                    let mut connection = self.connect(&route, place.from, deadline).await?;
                    (ask(&mut connection, request, deadline).await?, connection)
                }
            };
            if !is_redirect(head.status) {
                return Ok(Answer {
                    head,
                    early,
                    place,
                    route,
                    connection,
                });
            }
            let location = head.location.ok_or(FetchError::NoLocation)?;
            let peer_ip = connection.peer_ip();
            place = Place {
                url: place.url.join(&location).map_err(FetchError::BadRedirect)?,
                from: Some(Origin::new(peer_ip.filter(|_| !route.is_proxy))),
            };
        }
        Err(FetchError::TooManyRedirects)
    }
}

async fn ask(
    connection: &mut Connection,
    request: Vec<u8>,
    deadline: &Deadline,
) -> Result<(ResponseHead, Vec<u8>), FetchError> {
    connection.send(request, deadline).await?;
    read_head(connection, deadline).await
}
