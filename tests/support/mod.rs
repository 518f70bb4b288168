//! What the tests of the whole program share: sample torrents, and the `gyre` command under control.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod fake_peer;
pub mod machine;
pub mod program;
pub mod sample;
pub mod tracker;

pub use program::Gyre;
pub use sample::Sample;
