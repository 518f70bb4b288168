//! What the tests of the whole program share: sample torrents, and the `gyre` command under control.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub mod daemon;
pub mod fake_holder;
pub mod fake_peer;
pub mod fake_tracker;
pub mod fuse;
pub mod hanging;
pub mod machine;
pub mod net;
pub mod program;
pub mod raw_peer;
pub mod rpc;
pub mod sample;
pub mod socks_server;
pub mod web_server;

pub use daemon::Daemon;
pub use program::Gyre;
pub use sample::Sample;
pub use socks_server::SocksServer;
pub use web_server::WebServer;
