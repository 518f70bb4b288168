//! `gyre daemon`: what runs beside the session for people and programs that control it. So far the page.

#![forbid(unsafe_code)]

pub mod page;
