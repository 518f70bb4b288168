//! From a request's head to what answers it, past every check. Layer 6.

use std::time::Instant;

use super::backend::Backend;
use super::guard::{is_host_allowed, is_origin_allowed};
use super::http::{Request, Response};
use super::metrics;
use super::rpc::{Answer, RPC_VERSION_SEMVER};
use super::server::{Client, Shared};
use crate::daemon::page;

/// What answers.
#[derive(Clone, Copy, Debug)]
pub enum Route {
    Rpc,
    Events,
    Metrics,
    Asset(&'static page::Asset),
}

/// Where a request goes, or the answer that sends it away: a host that is not ours (HOSTILE.md A3), an origin that is not
/// (A2), wrong credentials (A1), a path that is none (A4).
///
/// # Errors
/// The answer.
pub fn check<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
    client: Client,
    now: Instant,
) -> Result<Route, Response> {
    if let Client::Remote(_) = client {
        let names = &shared.access.host_names;
        if !is_host_allowed(request.host.as_deref(), names) {
            let words = "this name is not one of the daemon's: list it in api-hosts";
            return Err(Response::plain(421, words));
        }
        if !is_origin_allowed(request) {
            return Err(Response::plain(403, "pages of other sites may not ask"));
        }
    }
    let route = match request.path.as_str() {
        "/transmission/rpc" | "/transmission/rpc/" => Route::Rpc,
        "/api/events" => Route::Events,
        "/metrics" => Route::Metrics,
        // Compared as a whole with the few names that there are: no path is ever opened.
        path => match page::find(path) {
            Some(asset) => Route::Asset(asset),
            None => return Err(Response::plain(404, "there is nothing here")),
        },
    };
    let is_asset = matches!(route, Route::Asset(_));
    if let Client::Remote(ip) = client
        && !is_asset
    {
        sign_in(shared, request, ip, now)?;
    }
    if matches!(route, Route::Rpc) {
        let is_known = request.session_id.as_deref() == Some(shared.rpc.session_id());
        if !is_known && client != Client::Owner {
            let words = "send this request again with the X-Transmission-Session-Id of this answer";
            return Err(Response::plain(409, words)
                .with("X-Transmission-Session-Id", shared.rpc.session_id())
                .with("X-Transmission-Rpc-Version", RPC_VERSION_SEMVER));
        }
    }
    let is_method = match route {
        Route::Rpc => request.method == "POST",
        _ => request.method == "GET" || request.method == "HEAD",
    };
    match is_method {
        true => Ok(route),
        false => Err(Response::plain(405, "this is asked for in another way")),
    }
}

fn sign_in<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
    ip: std::net::IpAddr,
    now: Instant,
) -> Result<(), Response> {
    let mut failures = shared.failures.borrow_mut();
    if let Some(wait) = failures.wait(ip, now) {
        let seconds = wait.as_secs() + 1;
        return Err(Response::plain(429, "too many wrong passwords")
            .with("Retry-After", seconds.to_string()));
    }
    let given = request.authorization.as_deref();
    let has_token = given.is_some_and(|given| {
        let scheme = given.split(' ').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case("bearer")
    });
    let unauthorized = || {
        let answer = Response::plain(401, "a name and password, or the token, are needed");
        match has_token {
            // The page asks for the token itself: the browser's own dialog would get in its way.
            true => answer,
            false => answer.with(
                "WWW-Authenticate",
                "Basic realm=\"gyre\", charset=\"UTF-8\"",
            ),
        }
    };
    // Asking without any is how a client learns that it needs some.
    let Some(given) = given else {
        return Err(unauthorized());
    };
    if shared.access.credentials.accept(given) {
        failures.succeeded(ip);
        return Ok(());
    }
    failures.failed(ip, now);
    Err(unauthorized())
}

/// The answer to a request that was let through.
pub async fn answer<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
    route: &Route,
    body: &[u8],
) -> Response {
    match route {
        Route::Rpc => match shared.rpc.answer(body).await {
            Answer::Json(json) => Response::json(json),
            Answer::Nothing => Response {
                status: 204,
                ..Response::default()
            },
            Answer::TooLarge => Response::plain(413, "the body is too large for this method"),
        },
        Route::Metrics => Response {
            status: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            headers: Vec::new(),
            body: metrics::text(shared).into_bytes(),
        },
        Route::Asset(asset) => {
            let held = request.if_none_match.as_deref();
            let is_same = held.is_some_and(|held| asset.is_held(held));
            let (status, body) = match is_same {
                true => (304, Vec::new()),
                false => (200, asset.bytes.to_vec()),
            };
            Response {
                status,
                content_type: asset.content_type,
                headers: Vec::new(),
                body,
            }
            .with("ETag", asset.etag())
            .with("Cache-Control", "no-cache")
        }
        // Handled where the stream is.
        Route::Events => Response::plain(500, "no stream"),
    }
}
