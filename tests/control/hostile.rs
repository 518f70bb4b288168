//! HOSTILE.md A1 to A6 over real sockets; A7 is in `rpc.rs`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use gyre::daemon::control::web_ui::WebUi;
use serde_json::json;

use crate::server::{PASSWORD, PATIENCE, SESSION_ID, Server, status};

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
    assert!(
        server.ask_as_owner().contains("torrentCount"),
        "strangers keep the owner out"
    );
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.matches("Content-Security-Policy").count(), 2, "{rest}");
}

fn sid(answer: &str) -> Option<String> {
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("Set-Cookie: "))?;
    assert!(
        line.contains("HttpOnly") && line.contains("SameSite=Strict"),
        "{line}"
    );
    let pair = line.split(';').next()?;
    pair.strip_prefix("SID=").map(str::to_owned)
}

fn log_in(server: &Server, password: &str, lines: &str) -> String {
    let form = format!("username=x&password={password}");
    let host = format!(
        "Host: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n{lines}",
        form.len()
    );
    let request =
        format!("POST /api/v2/auth/login HTTP/1.1\r\nConnection: close\r\n{host}\r\n{form}");
    server.raw(request.as_bytes())
}

/// A9: sessions.
#[test]
fn a_session_begins_with_the_password_alone_and_is_of_the_daemons_choice() {
    let server = Server::start(1);
    let info = |lines: &str| {
        let lines = format!("Host: localhost\r\n{lines}");
        with(&server, "GET /api/v2/torrents/info", &lines)
    };
    for lines in [
        "",
        "Cookie: SID=\r\n",
        "Cookie: SID=00\r\n",
        "Cookie: SID=attacker; other=1\r\n",
        "Authorization: Basic eDp5\r\n",
    ] {
        let answer = info(lines);
        assert_eq!(status(&answer), 403, "{lines}: {answer}");
        assert!(
            !answer.contains("WWW-Authenticate") && sid(&answer).is_none(),
            "{answer}"
        );
    }
    let wrong = log_in(&server, "x", "");
    assert!(status(&wrong) == 200 && wrong.ends_with("\r\n\r\nFails.") && sid(&wrong).is_none());
    // What was brought along is not taken over.
    let fixed = log_in(&server, PASSWORD, "Cookie: SID=attacker\r\n");
    assert!(fixed.ends_with("\r\n\r\nOk."), "{fixed}");
    let first = sid(&fixed).unwrap();
    assert!(first.len() == 48 && first != "attacker");
    assert_eq!(status(&info("Cookie: SID=attacker\r\n")), 403);
    assert_eq!(
        status(&info(&format!("Cookie: SID={first}; HttpOnly\r\n"))),
        200
    );
    let second = sid(&log_in(&server, PASSWORD, "")).unwrap();
    assert_ne!(first, second);
    let out = format!("Host: localhost\r\nCookie: SID={first}\r\nContent-Length: 0\r\n");
    assert_eq!(
        status(&with(&server, "POST /api/v2/auth/logout", &out)),
        200
    );
    assert_eq!(status(&info(&format!("Cookie: SID={first}\r\n"))), 403);
    assert_eq!(status(&info(&format!("Cookie: SID={second}\r\n"))), 200);
    // The token is an API key too, and a cookie opens nothing else.
    assert_eq!(
        status(&info(&format!("Authorization: Bearer {PASSWORD}\r\n"))),
        200
    );
    let other = format!("Host: localhost\r\nCookie: SID={second}\r\n");
    assert_eq!(status(&with(&server, "GET /metrics", &other)), 401);
}

/// A9: other sites.
#[test]
fn no_page_of_another_site_uses_a_session() {
    let server = Server::start(1);
    let cookie = sid(&log_in(&server, PASSWORD, "")).unwrap();
    let ask = |first: &str, lines: &str| {
        let lines =
            format!("Host: localhost\r\nCookie: SID={cookie}\r\nContent-Length: 0\r\n{lines}");
        status(&with(&server, first, &lines))
    };
    for lines in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Referer: http://evil.example/localhost/\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ] {
        assert_eq!(ask("POST /api/v2/app/shutdown", lines), 403, "{lines}");
        assert_eq!(ask("GET /api/v2/torrents/info", lines), 403, "{lines}");
    }
    assert_eq!(
        ask("GET /api/v2/app/shutdown", ""),
        405,
        "a link or a picture"
    );
    assert_eq!(ask("GET /api/v2/torrents/delete?hashes=all", ""), 405);
    assert_eq!(ask("GET /api/v2/torrents/nothing", ""), 404);
    let own =
        "Origin: http://localhost\r\nReferer: http://localhost/\r\nSec-Fetch-Site: same-origin\r\n";
    assert_eq!(ask("GET /api/v2/torrents/info", own), 200);
    let evil = with(&server, "GET /api/v2/app/version", "Host: evil.example\r\n");
    assert_eq!(status(&evil), 421);
}

/// A1: the login counts as everything else does.
#[test]
fn guessing_at_the_login_slows_down() {
    let server = Server::start(1);
    let cookie = sid(&log_in(&server, PASSWORD, "")).unwrap();
    let answers: Vec<String> = (0..8).map(|_| log_in(&server, "guess", "")).collect();
    assert!(answers[0].ends_with("Fails."), "{}", answers[0]);
    let last = &answers[7];
    assert_eq!(status(last), 403, "{last}");
    assert!(last.contains("Retry-After: "), "{last}");
    assert_eq!(
        status(&log_in(&server, PASSWORD, "")),
        403,
        "not even the right one, for a moment"
    );
    let lines = format!("Host: localhost\r\nCookie: SID={cookie}\r\n");
    assert_eq!(
        status(&with(&server, "GET /api/v2/app/version", &lines)),
        200,
        "who is in stays in"
    );
}

/// A call as it goes over the wire, with so much of its body as is given.
fn called(length: usize, body: &str) -> String {
    format!(
        "POST /transmission/rpc HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {PASSWORD}\r\nX-Transmission-Session-Id: {SESSION_ID}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// A5: connections that wait for the torrents.
#[test]
fn who_left_before_the_torrents_are_known_keeps_nobody_out() {
    let (server, known) = Server::starting(2);
    let asked = |method: &str| json!({ "method": method, "arguments": { "fields": ["id"] } });
    let get = asked("torrent-get").to_string();
    let whole = called(get.len(), &get);
    let begun = called(1 << 20, &" ".repeat(300_000));
    let id = format!("X-Transmission-Session-Id: {SESSION_ID}\r\n");
    let until_answered = || {
        let (body, since) = (asked("session-get").to_string(), Instant::now());
        while status(&server.ask("POST /transmission/rpc", &id, &body)) != 200 {
            assert!(since.elapsed() < PATIENCE, "those who left keep the places");
        }
    };
    for request in [&whole, &begun] {
        for _ in 0..300 {
            let _ = server.connect().write_all(request.as_bytes());
        }
        until_answered();
    }
    // Who only has nothing more to say still gets all answers.
    let mut said_all = server.connect();
    said_all.write_all(whole.repeat(2).as_bytes()).unwrap();
    said_all.shutdown(Shutdown::Write).unwrap();
    until_answered();
    known.send(()).unwrap();
    let mut answers = String::new();
    said_all.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("\"id\":2").count(), 2, "{answers}");
}

/// A5: values in a body.
#[test]
fn a_body_of_more_values_than_any_call_has_is_refused() {
    let server = Server::start(1);
    let id = format!("X-Transmission-Session-Id: {SESSION_ID}\r\n");
    let asked = |zeros: usize| {
        let files = "0,".repeat(zeros);
        let body = format!(
            "{{\"method\":\"torrent-add\",\"arguments\":{{\"files-unwanted\":[{files}0]}}}}"
        );
        server.ask("POST /transmission/rpc", &id, &body)
    };
    let answer = asked(999_999);
    assert!(!answer.contains("too many values"), "{answer}");
    let answer = asked(1_100_000);
    assert!(answer.contains("this JSON has too many values"), "{answer}");
}

/// A5: bodies of this protocol.
#[test]
fn only_torrents_make_large_bodies_and_none_is_endless() {
    let server = Server::start(1);
    let head = |method: &str, length: u64| {
        format!(
            "POST /api/v2/{method} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {PASSWORD}\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for (method, length) in [
        ("torrents/add", 1 << 30),
        ("torrents/stop", 2 << 20),
        ("auth/login", 17 << 10),
    ] {
        let answer = server.raw(head(method, length).as_bytes());
        assert_eq!(status(&answer), 413, "{method}: {answer}");
    }
    let file = crate::rpc::sample("large");
    let padding = vec![b'x'; 3 << 20];
    let body = crate::qbt::multipart(
        "B",
        &[("torrents", Some("a"), &file), ("ignored", None, &padding)],
    );
    let mut request = head("torrents/add", body.len() as u64).into_bytes();
    request.truncate(request.len() - 2);
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    request.extend(body);
    let answer = server.raw(&request);
    assert!(answer.ends_with("\r\n\r\nOk."), "{answer}");
}

/// A10: the folder over a socket.
#[test]
fn a_folder_as_the_page_gives_its_files_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("index.html"), "own page").unwrap();
    std::fs::write(dir.path().join("app.js"), "1").unwrap();
    let page = WebUi::open(dir.path()).unwrap();
    let server = Server::with_page(1, Some(page));
    let get = |path: &str| with(&server, &format!("GET {path}"), "Host: localhost\r\n");
    let index = get("/");
    assert!(
        status(&index) == 200 && index.ends_with("own page"),
        "{index}"
    );
    assert_eq!(
        index.matches("Content-Security-Policy: ").count(),
        1,
        "{index}"
    );
    assert!(
        index.contains("script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'"),
        "{index}"
    );
    assert!(get("/app.js").contains("Content-Type: text/javascript"));
    for path in [
        "/page/app.js",
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
    ] {
        assert_eq!(status(&get(path)), 404, "{path}");
    }
    assert_eq!(status(&get("/metrics")), 401, "what was there is there");
    assert_eq!(status(&get("/api/v2/app/version")), 403);
    assert_eq!(
        status(&with(
            &server,
            "POST /app.js",
            "Host: localhost\r\nContent-Length: 0\r\n"
        )),
        405
    );
    assert_eq!(
        status(&with(&server, "GET /", "Host: evil.example\r\n")),
        421
    );
}
