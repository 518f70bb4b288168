//! qBittorrent's Web API, version 2: what its clients ask for, over the same daemon as Transmission's RPC. Layer 6.
//!
//! The protocol is that of `src/webui/api` in qBittorrent's sources and of its wiki, as qBittorrent 5.1 speaks it. What the
//! daemon cannot do is answered with 409 and words, never with a success that changed nothing. Who may ask is decided in
//! `routes.rs`; the login itself is here.

mod add;
mod change;
mod detail;
mod fields;
pub mod form;
mod labels;
mod list;
mod methods;
pub mod multipart;
mod names;
mod program;
mod sessions;
mod shelf;
mod sync;
mod trackers;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::backend::{Backend, Refusal, Torrent};
use super::guard::Credentials;
use super::http::{Request, Response};
use super::rpc::Rpc;
use crate::base::InfoHash;
use form::Params;
pub use methods::{Kind, Method, find};
use sessions::Sessions;
use shelf::Shelf;
use sync::Sync;

/// What is spoken, in qBittorrent's own count of application and protocol: clients choose words and parameters by it.
const APP_VERSION: &str = "v5.1.4";
const API_VERSION: &str = "2.11.4";

/// What all calls share.
#[derive(Debug, Default)]
pub struct Qbt {
    sessions: RefCell<Sessions>,
    shelf: Shelf,
    sync: RefCell<Sync>,
    space: program::Space,
}

/// What goes back.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing to say about it.
    Done,
    Text(String),
    Json(Vec<u8>),
    /// A .torrent file, and the name that it is to have.
    Torrent(String, Vec<u8>),
}

/// Why a call failed: the status and words for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    status: u16,
    words: String,
}

impl Fault {
    fn bad(words: impl Into<String>) -> Fault {
        Fault {
            status: 400,
            words: words.into(),
        }
    }

    fn conflict(words: impl Into<String>) -> Fault {
        Fault {
            status: 409,
            words: words.into(),
        }
    }

    fn not_found(words: impl Into<String>) -> Fault {
        Fault {
            status: 404,
            words: words.into(),
        }
    }

    fn unsupported(what: &'static str) -> Fault {
        Refusal::Unsupported(what).into()
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        let status = match &refusal {
            Refusal::BadValue(_) => 400,
            Refusal::Unknown(_) => 404,
            Refusal::Unsupported(_) | Refusal::BadPath(_) => 409,
            Refusal::BadTorrent(_) => 415,
            Refusal::Failed(_) => 500,
        };
        Fault {
            status,
            words: refusal.to_string(),
        }
    }
}

/// One call: the daemon, what calls share, and what came along.
struct Call<'a, B> {
    rpc: &'a Rpc<B>,
    qbt: &'a Qbt,
    params: Params,
    /// .torrent files, in the order in which they came.
    files: Vec<&'a [u8]>,
}

impl Qbt {
    /// Over the state folder, where the categories are kept.
    pub fn open(state: &Path) -> Qbt {
        Qbt {
            shelf: Shelf::open(state),
            ..Qbt::default()
        }
    }

    /// Whether the request carries the cookie of a session.
    pub fn is_signed_in(&self, request: &Request, now: Instant) -> bool {
        let mut sessions = self.sessions.borrow_mut();
        let cookies = request.cookie.as_deref().unwrap_or_default();
        sessions::secrets(cookies).any(|secret| sessions.is_known(secret, now))
    }

    /// Does what a request asks for that was let through. Never panics, whatever it is.
    pub async fn answer<B: Backend>(
        &self,
        rpc: &Rpc<B>,
        method: &Method,
        request: &Request,
        body: &[u8],
    ) -> Response {
        if method.is_about_torrents() {
            rpc.backend().known().await;
        }
        let done = match self.call(rpc, request, body) {
            Ok(_) if method.name == "auth/logout" => return self.log_out(request),
            Ok(call) => call.run(method.name).await,
            Err(fault) => Err(fault),
        };
        respond(done)
    }

    fn call<'a, B: Backend>(
        &'a self,
        rpc: &'a Rpc<B>,
        request: &Request,
        body: &'a [u8],
    ) -> Result<Call<'a, B>, Fault> {
        let (params, files) = read(request, body)?;
        Ok(Call {
            rpc,
            qbt: self,
            params,
            files,
        })
    }

    /// The name and password in a login's body; `None` where there are none.
    pub fn login(request: &Request, body: &[u8]) -> Option<(String, String)> {
        let (params, _) = read(request, body).ok()?;
        let field = |name| params.get(name).unwrap_or_default().to_owned();
        Some((field("username"), field("password")))
    }

    /// Answers a login: with a new session if the words are right, whatever cookie came along.
    pub fn log_in(&self, request: &Request, is_right: bool, now: Instant) -> Response {
        if !is_right {
            return text(200, "Fails.");
        }
        self.forget(request);
        match self.sessions.borrow_mut().begin(now) {
            Ok(secret) => text(200, "Ok.").with("Set-Cookie", sessions::set_cookie(&secret)),
            Err(error) => text(500, &format!("no session can begin: {error}")),
        }
    }

    fn log_out(&self, request: &Request) -> Response {
        self.forget(request);
        text(200, "").with("Set-Cookie", sessions::unset_cookie())
    }

    fn forget(&self, request: &Request) {
        let mut sessions = self.sessions.borrow_mut();
        let cookies = request.cookie.as_deref().unwrap_or_default();
        sessions::secrets(cookies).for_each(|secret| sessions.end(secret));
    }
}

/// Whether name and password of a login are right.
pub fn accepts(credentials: &Credentials, login: Option<&(String, String)>) -> bool {
    login.is_some_and(|(user, password)| credentials.accept_login(user, password))
}

/// Parameters of query and body, and the files in it.
fn read<'a>(request: &Request, body: &'a [u8]) -> Result<(Params, Vec<&'a [u8]>), Fault> {
    let mut params = Params::default();
    let mut files = Vec::new();
    let bad = |error: &dyn std::fmt::Display| Fault::bad(error.to_string());
    params
        .read(request.query.as_bytes())
        .map_err(|error| bad(&error))?;
    if body.is_empty() {
        return Ok((params, files));
    }
    let content_type = request.content_type.as_deref().unwrap_or_default();
    if let Some(boundary) = multipart::boundary(content_type) {
        let parts = multipart::parse(body, &boundary).map_err(|error| bad(&error))?;
        for part in parts {
            if part.file_name.is_some() {
                files.push(part.data);
                continue;
            }
            let value = std::str::from_utf8(part.data).map_err(|error| bad(&error))?;
            params
                .push(part.name, value.to_owned())
                .map_err(|error| bad(&error))?;
        }
        return Ok((params, files));
    }
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    match kind.to_ascii_lowercase().as_str() {
        "" | "application/x-www-form-urlencoded" => {
            params.read(body).map_err(|error| bad(&error))?;
            Ok((params, files))
        }
        _ => Err(Fault {
            status: 415,
            words: "the body is no form".to_owned(),
        }),
    }
}

fn respond(done: Result<Answer, Fault>) -> Response {
    match done {
        Ok(Answer::Done) => text(200, ""),
        Ok(Answer::Text(words)) => text(200, &words),
        Ok(Answer::Json(json)) => Response {
            status: 200,
            // As it is in qBittorrent: some clients compare it.
            content_type: "application/json",
            headers: Vec::new(),
            body: json,
        },
        Ok(Answer::Torrent(name, bytes)) => Response {
            status: 200,
            content_type: "application/x-bittorrent",
            headers: Vec::new(),
            body: bytes,
        }
        .with(
            "Content-Disposition",
            format!("attachment; filename=\"{name}\""),
        ),
        Err(fault) => text(fault.status, &fault.words),
    }
}

/// An answer in words, without a line's end: clients compare them.
pub fn text(status: u16, words: &str) -> Response {
    Response {
        status,
        content_type: "text/plain; charset=UTF-8",
        headers: Vec::new(),
        body: words.as_bytes().to_vec(),
    }
}

impl<B: Backend> Call<'_, B> {
    fn backend(&self) -> &B {
        self.rpc.backend()
    }

    /// The torrents that `hashes` names: by their info_hashes, or `all`. Those that are gone are left out.
    fn chosen(&self, name: &str) -> Result<Vec<Arc<Torrent>>, Fault> {
        let text = self.params.need(name)?;
        let catalog = self.rpc.catalog();
        if matches!(text, "all" | "*") {
            return Ok(catalog.all().cloned().collect());
        }
        let texts = text.split('|').filter_map(|text| text.trim().parse().ok());
        let hashes: std::collections::BTreeSet<InfoHash> = texts.collect();
        let mut chosen: Vec<_> = hashes
            .iter()
            .filter_map(|hash| catalog.find(hash))
            .collect();
        chosen.sort_unstable_by_key(|torrent| torrent.id);
        Ok(chosen.into_iter().cloned().collect())
    }

    /// The one torrent that `hash` names.
    fn one(&self) -> Result<Arc<Torrent>, Fault> {
        let text = self.params.need("hash")?;
        let info_hash = text.trim().parse::<InfoHash>().ok();
        let catalog = self.rpc.catalog();
        let found = info_hash.and_then(|info_hash| catalog.find(&info_hash));
        found
            .cloned()
            .ok_or_else(|| Fault::not_found("there is no such torrent"))
    }
}

/// A torrent that went in the meantime needs nothing any more.
fn gone_is_fine(done: Result<(), Refusal>) -> Result<(), Fault> {
    match done {
        Err(Refusal::Unknown(_)) => Ok(()),
        done => Ok(done?),
    }
}
