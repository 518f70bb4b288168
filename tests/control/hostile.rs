//! HOSTILE.md A1 to A6 over real sockets; A7 is in `rpc.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{PASSWORD, SESSION_ID, Server, status};

fn with(server: &Server, first: &str, lines: &str) -> String {
    let request = format!("{first} HTTP/1.1\r\nConnection: close\r\n{lines}\r\n");
    server.raw(request.as_bytes())
}

/// A1.
#[test]
fn nothing_is_told_without_credentials_and_guessing_slows_down() {
    let server = Server::start(1);
    let host = "Host: localhost\r\n";
    for path in ["GET /metrics", "GET /api/events", "POST /transmission/rpc"] {
        let answer = with(&server, path, host);
        assert_eq!(status(&answer), 401, "{answer}");
        assert!(answer.contains("WWW-Authenticate: Basic"), "{answer}");
        assert!(!answer.contains(SESSION_ID), "{answer}");
    }
    let wrong = format!("{host}Authorization: Bearer x\r\n");
    let answers: Vec<u16> = (0..8)
        .map(|_| status(&with(&server, "GET /metrics", &wrong)))
        .collect();
    assert_eq!(answers[..5], [401; 5]);
    assert!(answers.contains(&429), "{answers:?}");
    let right = format!("{host}Authorization: Bearer {PASSWORD}\r\n");
    let refused = with(&server, "GET /metrics", &right);
    assert_eq!(
        status(&refused),
        429,
        "not even the right one, for a moment"
    );
    assert!(refused.contains("Retry-After: "), "{refused}");
}

/// A2.
#[test]
fn other_sites_and_forms_cannot_ask() {
    let server = Server::start(1);
    let body = json!({ "method": "torrent-remove", "arguments": { "ids": [1] } }).to_string();
    let answer = server.ask(
        "POST /transmission/rpc",
        "Content-Type: text/plain\r\n",
        &body,
    );
    assert_eq!(status(&answer), 409, "{answer}");
    assert!(answer.contains(&format!("X-Transmission-Session-Id: {SESSION_ID}")));
    let id = format!("X-Transmission-Session-Id: {SESSION_ID}\r\n");
    for origin in [
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://localhost.evil",
    ] {
        let lines = format!("{id}Origin: {origin}\r\n");
        let answer = server.ask("POST /transmission/rpc", &lines, &body);
        assert_eq!(status(&answer), 403, "{origin}: {answer}");
        assert!(
            !answer
                .to_lowercase()
                .contains("access-control-allow-origin")
        );
    }
    let own = format!("{id}Origin: http://{}\r\n", server.addr);
    assert_eq!(
        status(&server.ask("POST /transmission/rpc", &own, &body)),
        200
    );
    assert_eq!(status(&server.ask("GET /transmission/rpc", &id, "")), 405);
    assert_eq!(
        status(&server.ask("OPTIONS /transmission/rpc", &id, "")),
        405
    );
}

/// A3.
#[test]
fn a_name_that_is_not_the_daemons_gets_nothing_not_even_the_page() {
    let server = Server::start(1);
    for path in [
        "/",
        "/metrics",
        "/api/events",
        "/transmission/rpc",
        "/nothing",
    ] {
        for host in ["evil.example", "localhost.evil:9091", "127.0.0.1.evil"] {
            let lines = format!("Host: {host}\r\nAuthorization: Bearer {PASSWORD}\r\n");
            let answer = with(&server, &format!("GET {path}"), &lines);
            assert_eq!(status(&answer), 421, "{path} {host}: {answer}");
        }
        let answer = with(&server, &format!("GET {path}"), "");
        assert_eq!(status(&answer), 421, "{path}");
    }
    for host in ["localhost", "box.example", "[::1]:80", "BOX.example:1"] {
        let answer = with(&server, "GET /", &format!("Host: {host}\r\n"));
        assert_eq!(status(&answer), 200, "{host}");
    }
}

/// A4.
#[test]
fn no_path_leads_to_a_file() {
    let server = Server::start(1);
    for path in [
        "/../../etc/passwd",
        "/page/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/page/%00",
        "/index.html/../x",
        "http://localhost/etc/passwd",
    ] {
        let answer = with(&server, &format!("GET {path}"), "Host: localhost\r\n");
        assert_eq!(status(&answer), 404, "{path}: {answer}");
    }
}

/// A5: bodies.
#[test]
fn huge_bodies_are_refused_before_they_are_read() {
    let server = Server::start(1);
    let head = format!(
        "POST /transmission/rpc HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {PASSWORD}\r\nX-Transmission-Session-Id: {SESSION_ID}\r\n"
    );
    for framing in [
        "Content-Length: 1073741824\r\n\r\n",
        "Content-Length: 18446744073709551615\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
    ] {
        let answer = server.raw(format!("{head}{framing}").as_bytes());
        assert_eq!(status(&answer), 413, "{framing}: {answer}");
    }
    let smuggled =
        format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(status(&server.raw(smuggled.as_bytes())), 400);
    // Without credentials not even a small one is read.
    let request =
        "POST /transmission/rpc HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    assert_eq!(status(&server.raw(request.as_bytes())), 401);
    let deep = "[".repeat(100_000);
    let id = format!("X-Transmission-Session-Id: {SESSION_ID}\r\n");
    let answer = server.ask("POST /transmission/rpc", &id, &deep);
    assert!(answer.contains("-32700"), "{answer}");
}

/// A5: heads.
#[test]
fn endless_and_slow_heads_end() {
    let server = Server::start(1);
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(20_000));
    assert_eq!(status(&server.raw(endless.as_bytes())), 431);
    let begun = Instant::now();
    let mut slow = server.connect();
    slow.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut answer = String::new();
    let _ = slow.read_to_string(&mut answer);
    assert_eq!(status(&answer), 408, "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(25));
}

/// A5: connections.
#[test]
fn connections_over_the_limit_are_closed_and_those_that_were_there_go_on() {
    let server = Server::start(1);
    let mut first = server.connect();
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut one = [0; 1];
    first.read_exact(&mut one).unwrap();
    let held: Vec<TcpStream> = (0..400).map(|_| server.connect()).collect();
    let is_closed = |stream: &TcpStream| {
        let mut stream = stream.try_clone().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        matches!(stream.read(&mut [0; 1]), Ok(0))
    };
    assert!(is_closed(held.last().unwrap()), "over the limit");
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.matches("Content-Security-Policy").count(), 2, "{rest}");
}
