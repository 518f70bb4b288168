//! Layer 5: where the core meets I/O.
#![forbid(unsafe_code)]

pub mod check;
pub mod disk;
pub mod resume_store;
pub mod root_lock;
