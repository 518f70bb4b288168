#![doc = include_str!("ARCHITECTURE.md")]

pub mod app;
pub mod base;
pub mod daemon;
pub mod session;
pub mod storage;
pub mod swarm;
pub mod uring;
pub mod wire;
