//! Control from outside: HTTP on the control thread, with Transmission's RPC, qBittorrent's, the live table, metrics and the page. Layer 6.
//!
//! Nothing here runs on the ring thread, and nothing here waits for it but answers to commands.

pub mod backend;
pub mod catalog;
pub mod events;
pub mod guard;
pub mod http;
pub mod json;
mod listen;
mod live;
mod metrics;
mod places;
pub mod qbt;
pub mod roots;
mod routes;
pub mod rpc;
pub mod server;
mod view;
pub mod web_ui;

pub use listen::{ControlSettings, ListenError, Listeners, socket_path};
