//! Layer 5: where the core meets I/O.
#![forbid(unsafe_code)]

pub mod announce_task;
pub mod deadline;
pub mod http;
pub mod udp_tracker;
