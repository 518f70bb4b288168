//! From a request's head to what answers it, past every check. Layer 6.

use std::time::Instant;

use super::backend::Backend;
use super::guard::{is_host_allowed, is_origin_allowed, is_same_site};
use super::http::{Request, Response};
use super::metrics;
use super::qbt::{self, Kind, Method, Qbt};
use super::rpc::{self, Answer, RPC_VERSION_SEMVER};
use super::server::{Client, Shared};
use crate::daemon::page;

/// What answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Rpc,
    Qbt(&'static Method),
    Events,
    Metrics,
    Asset(&'static page::Asset),
    /// Of the folder in place of the page.
    File,
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
    if let Some(method) = qbt::find(&request.path) {
        return check_qbt(shared, request, method, client, now).map(Route::Qbt);
    }
    let route = match request.path.as_str() {
        "/transmission/rpc" | "/transmission/rpc/" => Route::Rpc,
        "/api/events" => Route::Events,
        "/metrics" => Route::Metrics,
        // Where it leads is found out when it is opened.
        _ if shared.web_ui.is_some() => Route::File,
        // Compared as a whole with the few names that there are: no path is ever opened.
        path => match page::find(path) {
            Some(asset) => Route::Asset(asset),
            None => return Err(Response::plain(404, "there is nothing here")),
        },
    };
    let is_asset = matches!(route, Route::Asset(_) | Route::File);
    if let Client::Remote(ip) = client
        && !is_asset
    {
        sign_in(shared, request, ip, now)?;
    }
    if route == Route::Rpc {
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

/// The same for qBittorrent's methods: a session's cookie opens them too, and what is wrong is 403 in their words.
fn check_qbt<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
    method: Option<&'static Method>,
    client: Client,
    now: Instant,
) -> Result<&'static Method, Response> {
    let is_login = method.is_some_and(|method| method.kind == Kind::Login);
    if let Client::Remote(ip) = client {
        if !is_same_site(request) {
            return Err(qbt::text(403, "pages of other sites may not ask"));
        }
        // A login may bring what is meant for a proxy in front: only its body counts.
        if is_login {
            listen_to(shared, ip, now)?;
        } else if !shared.qbt.is_signed_in(request, now) {
            sign_in_to_qbt(shared, request, ip, now)?;
        }
    }
    let method = method.ok_or_else(|| qbt::text(404, "there is no such method"))?;
    let is_method = match method.kind {
        Kind::Reads => matches!(request.method.as_str(), "GET" | "HEAD" | "POST"),
        Kind::Writes | Kind::Adds | Kind::Login => request.method == "POST",
    };
    match is_method {
        true => Ok(method),
        false => Err(qbt::text(405, "this is asked for in another way")),
    }
}

fn listen_to<B: Backend>(
    shared: &Shared<B>,
    ip: std::net::IpAddr,
    now: Instant,
) -> Result<(), Response> {
    match shared.failures.borrow().wait(ip, now) {
        Some(wait) => {
            let seconds = wait.as_secs() + 1;
            Err(qbt::text(403, "too many wrong passwords").with("Retry-After", seconds.to_string()))
        }
        None => Ok(()),
    }
}

fn sign_in_to_qbt<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
    ip: std::net::IpAddr,
    now: Instant,
) -> Result<(), Response> {
    listen_to(shared, ip, now)?;
    sign_in(shared, request, ip, now).map_err(|_| qbt::text(403, "Forbidden"))
}

/// The login itself; a wrong one counts as any other wrong password.
fn log_in<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
    client: Client,
    body: &[u8],
    now: Instant,
) -> Response {
    let Client::Remote(ip) = client else {
        return shared.qbt.log_in(request, true, now);
    };
    // Others may have been wrong since the head came.
    if let Err(answer) = listen_to(shared, ip, now) {
        return answer;
    }
    let login = Qbt::login(request, body);
    let is_right = qbt::accepts(&shared.access.credentials, login.as_ref());
    let mut failures = shared.failures.borrow_mut();
    match is_right {
        true => failures.succeeded(ip),
        false => failures.failed(ip, now),
    }
    shared.qbt.log_in(request, is_right, now)
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

/// Whether the answer waits for the torrents.
pub fn is_about_torrents(route: &Route, body: &[u8]) -> bool {
    match route {
        Route::Rpc => rpc::is_about_torrents(body),
        Route::Qbt(method) => method.is_about_torrents(),
        Route::Events | Route::Metrics => true,
        Route::Asset(_) | Route::File => false,
    }
}

/// The answer to a request that was let through.
pub async fn answer<B: Backend>(
    shared: &Shared<B>,
    request: &Request,
    client: Client,
    route: &Route,
    body: &[u8],
) -> Response {
    match route {
        Route::Qbt(method) if method.kind == Kind::Login => {
            log_in(shared, request, client, body, Instant::now())
        }
        Route::Qbt(method) => shared.qbt.answer(&shared.rpc, method, request, body).await,
        Route::Rpc => match shared.rpc.answer(body).await {
            Answer::Json(json) => Response::json(json),
            Answer::Nothing => Response {
                status: 204,
                ..Response::default()
            },
            Answer::TooLarge => Response::plain(413, "the body is too large for this method"),
        },
        Route::Metrics => {
            shared.rpc.backend().known().await;
            Response {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                headers: Vec::new(),
                body: metrics::text(shared).into_bytes(),
            }
        }
        Route::File => match &shared.web_ui {
            Some(folder) => {
                let held = request.if_none_match.as_deref();
                folder.answer(&request.path, held).await
            }
            None => Response::plain(404, "there is nothing here"),
        },
        Route::Asset(asset) => {
            let held = request.if_none_match.as_deref();
            let (status, body) = match held.is_some_and(|tags| asset.is_held(tags)) {
                true => (304, Vec::new()),
                false => (200, asset.bytes.to_vec()),
            };
            Response {
                status,
                content_type: asset.content_type,
                headers: Vec::new(),
                body,
            }
            .with("ETag", asset.etag().to_owned())
            .with("Cache-Control", "no-cache")
        }
        // Handled where the stream is.
        Route::Events => Response::plain(500, "no stream"),
    }
}
