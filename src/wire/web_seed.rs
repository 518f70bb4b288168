//! Web seeds (BEP 19): where the files of a torrent lie on a web server. Layer 1.
//!
//! Holds no sockets. Names are those of the torrent, percent-encoded: what is a name here must not become a query, a
//! fragment or a folder there.

use std::fmt;

use super::metainfo::Info;
use super::url::{Scheme, Url, UrlError, percent_encode};

/// One URL of a `url-list` or a magnet link's `ws`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSeed {
    /// As given, without a fragment.
    text: String,
    url: Url,
}

/// Why a URL is no web seed that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebSeedError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("only http and https can be used")]
    NotHttp,
}

impl WebSeed {
    /// Takes a URL.
    ///
    /// # Errors
    /// It is no URL, or not one of `http` or `https`.
    pub fn parse(text: &str) -> Result<WebSeed, WebSeedError> {
        let url = Url::parse(text)?;
        match url.scheme() {
            Scheme::Http | Scheme::Https => {}
            Scheme::Udp => return Err(WebSeedError::NotHttp),
        }
        let text = text.trim_matches(' ');
        let text = text.split('#').next().unwrap_or(text).to_owned();
        Ok(WebSeed { text, url })
    }

    /// Where one file of the torrent lies: for a single-file torrent the URL itself, with the name behind it if it ends
    /// in a slash; else the URL is a folder, and name and path follow (BEP 19).
    ///
    /// # Errors
    /// It would be too long.
    pub fn url_of(&self, info: &Info, file_index: usize) -> Result<Url, UrlError> {
        let mut text = self.text.clone();
        if !info.is_multi_file {
            if text.ends_with('/') {
                percent_encode(info.name.as_bytes(), &mut text);
            }
            return self.parsed(&text);
        }
        if !text.ends_with('/') {
            text.push('/');
        }
        percent_encode(info.name.as_bytes(), &mut text);
        let file = info.files.get(file_index);
        for element in file.into_iter().flat_map(|file| &file.path) {
            text.push('/');
            percent_encode(element, &mut text);
        }
        self.parsed(&text)
    }

    /// Whether it takes TLS to speak to it.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == Scheme::Https
    }

    fn parsed(&self, text: &str) -> Result<Url, UrlError> {
        let url = Url::parse(text)?;
        // Whatever the names hold, they lead nowhere else.
        debug_assert_eq!(url.authority(), self.url.authority());
        Ok(url)
    }
}

impl fmt::Display for WebSeed {
    /// The URL without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::metainfo::MetainfoBuilder;

    fn single(name: &str) -> Info {
        let builder = MetainfoBuilder::new(name, 16_384).single_file(1);
        builder.pieces(vec![0; 20]).build().unwrap().1.info
    }

    fn multi(name: &str, path: &[&[u8]]) -> Info {
        let path = path.iter().map(|element| element.to_vec()).collect();
        let builder = MetainfoBuilder::new(name, 16_384).files(vec![(path, 1)]);
        builder.pieces(vec![0; 20]).build().unwrap().1.info
    }

    fn url_of(seed: &str, info: &Info) -> String {
        let seed = WebSeed::parse(seed).unwrap();
        seed.url_of(info, 0).unwrap().to_string()
    }

    #[test]
    fn a_single_file_is_the_url_itself_unless_that_is_a_folder() {
        let info = single("a b.iso");
        for (seed, expected) in [
            ("http://h/x.iso", "http://h/x.iso"),
            ("http://h/x.iso#part", "http://h/x.iso"),
            ("http://h/get?id=5", "http://h/get?id=5"),
            ("http://h/pub/", "http://h/pub/a%20b.iso"),
            ("http://h", "http://h/"),
            ("https://h:443/x/", "https://h/x/a%20b.iso"),
            ("http://h/ü%20x/", "http://h/%C3%BC%20x/a%20b.iso"),
        ] {
            assert_eq!(url_of(seed, &info), expected, "{seed}");
        }
    }

    #[test]
    fn paths_follow_the_name_and_stay_names() {
        let info = multi("tree", &[b"50% of #1?", "größe & \u{1f600}".as_bytes()]);
        let path = "tree/50%25%20of%20%231%3F/gr%C3%B6%C3%9Fe%20%26%20%F0%9F%98%80";
        for seed in ["http://h/pub", "http://h/pub/", "http://h/pub/#x"] {
            assert_eq!(
                url_of(seed, &info),
                format!("http://h/pub/{path}"),
                "{seed}"
            );
        }
        let odd = multi("a/b\\", &[b"\xff\n", b"http://other/", b".."]);
        let expected = "http://h/a%2Fb%5C/%FF%0A/http%3A%2F%2Fother%2F/..";
        assert_eq!(url_of("http://h", &odd), expected);
    }

    #[test]
    fn what_cannot_be_spoken_is_told_apart() {
        assert!(WebSeed::parse("https://h/").unwrap().is_https());
        assert!(!WebSeed::parse("http://h/").unwrap().is_https());
        assert_eq!(WebSeed::parse("udp://h:1/"), Err(WebSeedError::NotHttp));
        let bad = [
            ("ftp://h/", UrlError::UnsupportedScheme),
            ("file:///etc/passwd", UrlError::UnsupportedScheme),
            ("http:///x", UrlError::BadHost),
        ];
        for (text, error) in bad {
            assert_eq!(
                WebSeed::parse(text),
                Err(WebSeedError::Url(error)),
                "{text}"
            );
        }
        let seed = WebSeed::parse("http://u:secret@h/x").unwrap();
        assert_eq!(seed.to_string(), "http://h/x", "no password in messages");
    }

    #[test]
    fn a_path_too_long_for_a_request_is_an_error() {
        let seed = WebSeed::parse("http://h/").unwrap();
        let long = multi("tree", &[&[b'%'; 2_000]]);
        assert!(matches!(
            seed.url_of(&long, 0),
            Err(UrlError::TooLong { .. })
        ));
    }
}
