//! Layer 6: command line, progress, logs.
#![forbid(unsafe_code)]
