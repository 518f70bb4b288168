//! A client of a daemon's control socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::program::PATIENCE;

/// Gives a method of the Transmission RPC; its answer, or its words of refusal.
pub fn ask(socket: &Path, method: &str, arguments: Value) -> Result<Value, String> {
    let body = json!({ "method": method, "arguments": arguments }).to_string();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST /transmission/rpc HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let mut answer: Value = serde_json::from_str(body).unwrap();
    match answer["result"].as_str() {
        Some("success") => Ok(answer["arguments"].take()),
        words => Err(words.unwrap_or_default().to_owned()),
    }
}
