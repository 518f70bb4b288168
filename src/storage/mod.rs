//! Layer 3: pure plans about files: which bytes go where, which names are safe, what a resume record says.
#![forbid(unsafe_code)]

pub mod assembly;
pub mod cross;
pub mod direct;
pub mod layout;
pub mod parts;
pub mod resume;
pub mod retry;
pub mod safe_path;
