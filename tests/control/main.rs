//! Control from outside: the RPC and the server around a daemon that is none.

mod fake;
mod hostile;
mod python;
mod qbt;
mod remote;
mod rpc;
mod server;
