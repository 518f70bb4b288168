//! The Python library `qbittorrent-api` against the server. Without it, the test says so and passes.

use std::process::Command;

use crate::server::{PASSWORD, Server};

/// What the script ends with where the library is missing.
const MISSING: i32 = 77;

#[test]
fn the_python_library_logs_in_adds_changes_and_follows() {
    let server = Server::start(2);
    let file = server.downloads.path().join("n.torrent");
    std::fs::write(&file, crate::rpc::sample("new one")).unwrap();
    let mut command = Command::new("python3");
    command.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/control/client.py"
    ));
    command
        .args([&server.addr.to_string(), PASSWORD])
        .arg(&file);
    command
        .env_remove("http_proxy")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let Ok(output) = command.output() else {
        return eprintln!("skipped: there is no python3");
    };
    if output.status.code() == Some(MISSING) {
        return eprintln!("skipped: there is no qbittorrent-api for python3");
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
