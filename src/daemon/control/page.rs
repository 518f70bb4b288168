//! The files of the page, which are in the program. Layer 6.

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    pub content_type: &'static str,
    pub bytes: &'static [u8],
    /// With its quotes.
    pub etag: String,
}

/// The file of that path; `None` for every other.
pub fn find(path: &str) -> Option<Asset> {
    let (content_type, bytes): (_, &'static [u8]) = match path {
        "/" | "/index.html" => (
            "text/html; charset=utf-8",
            b"<!doctype html><title>Gyre</title><p>Gyre is running.",
        ),
        _ => return None,
    };
    Some(Asset {
        content_type,
        bytes,
        etag: concat!('"', env!("CARGO_PKG_VERSION"), '"').to_owned(),
    })
}
