//! Folders that a daemon lives with: disks that go away and come back, and folders whose torrents are added; and what is run
//! when a download is complete (HOSTILE.md L15, L16).

#[path = "../support/mod.rs"]
mod support;

mod drives;
mod watch;
