//! Transmission's RPC: its old dialect and JSON-RPC 2.0, which differ in envelopes and spelling, over the same methods.
//! Layer 6.
//!
//! The protocol is that of `docs/rpc-spec.md` in Transmission's sources. Reads come from the catalog, at most half a
//! second old; whatever changes something answers when it is committed.

mod add;
mod args;
mod detail;
mod fields;
mod methods;
mod select;
mod session;
mod set;

use std::borrow::Cow;
use std::cell::{Ref, RefCell};
use std::rc::Rc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::backend::{Backend, Refusal};
use super::catalog::Catalog;
use super::json::{self, Dialect, Json};
use super::roots::Roots;
use args::Args;
pub use fields::host as tracker_host;

/// What is implemented: 17 and 5.3.0 in the old count, with the new dialect beside it.
pub const RPC_VERSION: u64 = 18;
pub const RPC_VERSION_SEMVER: &str = "6.0.0";
/// The oldest that clients may be written for.
const RPC_VERSION_MINIMUM: u64 = 14;

/// The longest answer: everything of 100,000 torrents takes less.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Requests above this are nothing but a torrent being added.
const SMALL_BODY_BYTES_MAX: usize = 1 << 20;
/// Calls in one JSON-RPC batch.
const BATCH_MAX: usize = 64;

/// The protocol over a daemon.
pub struct Rpc<B> {
    backend: Rc<B>,
    catalog: RefCell<Catalog>,
    roots: Roots,
    /// What `X-Transmission-Session-Id` must be.
    session_id: String,
}

/// What goes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Json(Vec<u8>),
    /// Nobody asked for one (notifications).
    Nothing,
    /// Larger than its method allows.
    TooLarge,
}

/// Why a call failed: a number of the new dialect, and words.
#[derive(Debug)]
struct Fault {
    code: i64,
    words: String,
}

impl Fault {
    fn new(code: i64, words: impl Into<String>) -> Fault {
        Fault {
            code,
            words: words.into(),
        }
    }

    fn bad_argument(words: impl Into<String>) -> Fault {
        Fault::new(-32602, words)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        let code = match &refusal {
            Refusal::Unsupported(_) | Refusal::BadValue(_) | Refusal::Unknown(_) => -32602,
            Refusal::BadPath(_) => 3,
            Refusal::BadTorrent(_) => 4,
            Refusal::Failed(_) => 5,
        };
        Fault::new(code, refusal.to_string())
    }
}

impl<B: Backend> Rpc<B> {
    /// Over that daemon.
    pub fn new(backend: Rc<B>, roots: Roots, session_id: String) -> Rpc<B> {
        Rpc {
            backend,
            catalog: RefCell::default(),
            roots,
            session_id,
        }
    }

    /// The daemon.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What `X-Transmission-Session-Id` must be.
    pub fn session_id(&self) -> &str {
        &self.session_id
    }

    /// The list of torrents, at most half a second old.
    pub fn catalog(&self) -> Ref<'_, Catalog> {
        let now = Instant::now();
        if self.catalog.borrow().is_stale(now) {
            let catalog = &mut *self.catalog.borrow_mut();
            let changes = match catalog.has_looked() {
                true => self.backend.changes(),
                false => None,
            };
            match changes {
                Some(changes) => catalog.take(changes, Instant::now()),
                None => catalog.look(self.backend.torrents(), Instant::now()),
            }
        }
        self.catalog.borrow()
    }

    /// Something was changed: whoever looks at the list next is to see it.
    pub(in crate::daemon::control) fn outdate(&self) {
        self.catalog.borrow_mut().outdate();
    }

    /// The folder, if it lies within those allowed.
    ///
    /// # Errors
    /// It does not.
    pub async fn allow(&self, folder: &str) -> Result<std::path::PathBuf, Refusal> {
        let session = self.backend.session();
        match self.roots.allow(folder, &session.downloads).await {
            Ok(path) => Ok(path),
            Err(_) => self.roots.allow(folder, &session.first_downloads).await,
        }
    }

    /// Does what the bytes ask for. Never panics, whatever they are.
    pub async fn answer(&self, body: &[u8]) -> Answer {
        // What was read takes many times the room of the bytes: nothing waits with that.
        if is_about_torrents(body) {
            self.backend.known().await;
        }
        let read = match json::read(body) {
            Ok(read) => read,
            Err(words) => return new_error(&Value::Null, &Fault::new(-32700, words)),
        };
        match read {
            Value::Object(call) if call.contains_key("jsonrpc") => {
                self.answer_new(call, body.len()).await
            }
            Value::Array(calls) => self.answer_batch(calls, body.len()).await,
            Value::Object(call) => self.answer_old(call, body.len()).await,
            _ => new_error(&Value::Null, &Fault::new(-32700, "this is no request")),
        }
    }

    async fn answer_old(&self, mut call: Map<String, Value>, body_bytes: usize) -> Answer {
        let tag = call.remove("tag");
        let arguments = match call.remove("arguments") {
            Some(Value::Object(arguments)) => Args(json::snake_keys(arguments)),
            _ => Args::default(),
        };
        let method = call
            .get("method")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let mut out = Json::new(Dialect::Old);
        out.open(b'{');
        out.key("arguments");
        let done = match is_too_large(method, body_bytes) {
            true => return Answer::TooLarge,
            false => self.call(method, &arguments, &mut out).await,
        };
        let words = match done.and_then(|()| bounded(&out)) {
            Ok(()) => "success".to_owned(),
            Err(fault) => {
                out = Json::new(Dialect::Old);
                out.open(b'{');
                out.key("arguments");
                out.open(b'{');
                out.close(b'}');
                fault.words
            }
        };
        out.key("result");
        out.text(&words);
        if let Some(tag) = tag.filter(|tag| tag.is_number() || tag.is_string()) {
            out.key("tag");
            out.value(&tag);
        }
        out.close(b'}');
        Answer::Json(out.into_bytes())
    }

    async fn answer_new(&self, mut call: Map<String, Value>, body_bytes: usize) -> Answer {
        let id = call.remove("id");
        let is_id = |id: &Value| id.is_number() || id.is_string() || id.is_null();
        let is_valid =
            call.get("jsonrpc") == Some(&Value::from("2.0")) && id.as_ref().is_none_or(is_id);
        let method = match call.get("method") {
            Some(Value::String(method)) if is_valid => method.clone(),
            _ => return new_error(&Value::Null, &Fault::new(-32600, "this is no request")),
        };
        let params = match call.remove("params") {
            None => Args::default(),
            Some(Value::Object(params)) => Args(json::snake_keys(params)),
            Some(_) => {
                let fault = Fault::bad_argument("params is an object");
                return new_error(&id.unwrap_or_default(), &fault);
            }
        };
        if is_too_large(&method, body_bytes) {
            return Answer::TooLarge;
        }
        let mut out = Json::new(Dialect::Snake);
        out.open(b'{');
        out.key("jsonrpc");
        out.text("2.0");
        out.key("result");
        let done = self.call(&method, &params, &mut out).await;
        let Some(id) = id else {
            return Answer::Nothing;
        };
        if let Err(fault) = done.and_then(|()| bounded(&out)) {
            return new_error(&id, &fault);
        }
        out.key("id");
        out.value(&id);
        out.close(b'}');
        Answer::Json(out.into_bytes())
    }

    async fn answer_batch(&self, calls: Vec<Value>, body_bytes: usize) -> Answer {
        if calls.is_empty() || calls.len() > BATCH_MAX {
            let words = format!("a batch has 1 to {BATCH_MAX} calls");
            return new_error(&Value::Null, &Fault::new(-32600, words));
        }
        let mut answers: Vec<u8> = Vec::new();
        for call in calls {
            let answer = match call {
                Value::Object(call) => self.answer_new(call, body_bytes).await,
                _ => new_error(&Value::Null, &Fault::new(-32600, "this is no request")),
            };
            match answer {
                Answer::Json(json) => {
                    answers.push(if answers.is_empty() { b'[' } else { b',' });
                    answers.extend(json);
                }
                Answer::Nothing => {}
                Answer::TooLarge => return Answer::TooLarge,
            }
            if answers.len() > ANSWER_BYTES_MAX {
                return new_error(&Value::Null, &too_long());
            }
        }
        if answers.is_empty() {
            return Answer::Nothing;
        }
        answers.push(b']');
        Answer::Json(answers)
    }
}

/// A call of which nothing but the method is looked at.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
}

/// Whether what the bytes ask for is about more than the session itself, which is known at once. Builds nothing.
pub fn is_about_torrents(body: &[u8]) -> bool {
    let named = match body.trim_ascii_start().first() {
        _ if body.len() > SMALL_BODY_BYTES_MAX => return true,
        Some(b'[') => serde_json::from_slice::<Vec<Named>>(body),
        _ => serde_json::from_slice::<Named>(body).map(|call| vec![call]),
    };
    let is_about_session =
        |call: &Named| matches!(&*json::snake(&call.method), "session_get" | "session_close");
    !named.is_ok_and(|calls| calls.iter().all(is_about_session))
}

fn is_too_large(method: &str, body_bytes: usize) -> bool {
    body_bytes > SMALL_BODY_BYTES_MAX && json::snake(method) != "torrent_add"
}

fn too_long() -> Fault {
    Fault::new(-32603, "the answer is too long: ask for fewer torrents")
}

fn bounded(out: &Json) -> Result<(), Fault> {
    match out.len() > ANSWER_BYTES_MAX {
        true => Err(too_long()),
        false => Ok(()),
    }
}

fn new_error(id: &Value, fault: &Fault) -> Answer {
    let mut out = Json::new(Dialect::Snake);
    out.open(b'{');
    out.key("jsonrpc");
    out.text("2.0");
    out.key("error");
    out.open(b'{');
    out.key("code");
    out.int(fault.code);
    out.key("message");
    out.text(&fault.words);
    out.close(b'}');
    out.key("id");
    out.value(id);
    out.close(b'}');
    Answer::Json(out.into_bytes())
}
