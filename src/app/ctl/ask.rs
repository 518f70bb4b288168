//! One question to a running daemon over its unix socket. Layer 7.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::app::escape;
use crate::app::exit::{Failure, io_cause};
use crate::wire::http::{BodyDecoder, ResponseHead};

/// A removal may take a while to delete files.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest answer: a list of 100,000 torrents takes some tens of megabytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Where the daemon says nothing of what to do.
pub const USUAL_HINT: &str = "gyre ctl list shows what is there";

/// Calls one method of the RPC and returns its arguments.
///
/// # Errors
/// No daemon, or what it says against it.
pub fn call(socket: &Path, method: &str, arguments: &Value) -> Result<Value, Failure> {
    let body = json!({ "method": method, "arguments": arguments }).to_string();
    let bytes = exchange(socket, &body).map_err(|error| {
        let shown = escape::terminal_path(socket);
        Failure::new(
            format!("cannot ask the daemon at {shown}: {}", io_cause(&error)),
            "start one with gyre daemon, or name its socket with --socket or its folder with --state",
        )
    })?;
    let strange = || Failure::new("the daemon's answer is not understood", "update both");
    let mut answer: Value = serde_json::from_slice(&bytes).map_err(|_| strange())?;
    match answer["result"].as_str() {
        Some("success") => Ok(answer["arguments"].take()),
        Some(words) => {
            let (what, hint) = words.split_once("; hint: ").unwrap_or((words, USUAL_HINT));
            Err(Failure::new(what, hint))
        }
        None => Err(strange()),
    }
}

fn exchange(socket: &Path, body: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST /transmission/rpc HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut bytes = Vec::new();
    let limit = ANSWER_BYTES_MAX as u64;
    stream.take(limit).read_to_end(&mut bytes)?;
    let bad = |why: &str| std::io::Error::other(why.to_owned());
    let parsed = ResponseHead::parse(&bytes).map_err(|error| bad(&error.to_string()))?;
    let (head, length) = parsed.ok_or_else(|| bad("the answer is cut off"))?;
    if head.status != 200 {
        return Err(bad(&format!("it answers with status {}", head.status)));
    }
    let mut decoder = BodyDecoder::new(&head, ANSWER_BYTES_MAX);
    let rest = bytes.get(length..).unwrap_or_default();
    decoder
        .push(rest)
        .map_err(|error| bad(&error.to_string()))?;
    decoder.finish().map_err(|error| bad(&error.to_string()))
}
