//! What the tests of the whole program share: sample torrents, and the `gyre` command under control.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub mod program;
pub mod sample;

pub use program::Gyre;
pub use sample::Sample;
