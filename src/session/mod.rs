//! Layer 5: where the core meets I/O.
#![forbid(unsafe_code)]

pub mod deadline;
pub mod http;
