//! The real command on a disk of our own that can lose its power, fail and fall short (HOSTILE.md L1, L2, L8). Needs
//! root for the mount. `GYRE_LONG=1` tries more, `GYRE_POWER_SEED` repeats the cuts of a failure on a trace like it.

#[path = "../support/mod.rs"]
mod support;

mod cuts;
mod disk;
mod faults;
mod trace;
mod tree;
