//! The web page of `gyre daemon`: plain files compiled into the program, found by path. L6.
//!
//! What it does not hold: a server. Whoever serves answers a GET or HEAD of a path in [`ASSETS`] with its bytes, its
//! `Content-Type` and its [`Asset::etag`], or 304 where [`Asset::is_held`], and with a policy that allows nothing from other
//! hosts and nothing inline.
//!
//! # What the page needs from the server
//!
//! All of its requests go to its own host, with paths relative to the page, so that a reverse proxy may put it under a
//! prefix.
//!
//! **Login.** The assets hold no secret and are served to anybody, or behind HTTP Basic as everything else. Requests to
//! the two addresses below carry `Authorization: Bearer TOKEN` when the page was opened as `/#token=TOKEN` (it keeps the
//! token for the life of the tab and takes it out of the address bar) or a token was entered in it. Without one they carry
//! what the browser's own dialog for HTTP Basic gave. A login that is missing or wrong is answered with 401: with
//! `WWW-Authenticate: Basic` where the browser is to ask; without it (always for a wrong Bearer token) where the page is to
//! ask for the token itself.
//!
//! **Actions and details**: `POST /transmission/rpc`, the old dialect of Transmission RPC, with 409 and
//! `X-Transmission-Session-Id`. Methods: `torrent-get` (`ids`, `fields`; objects), `torrent-add` (`metainfo` or `filename`,
//! `download-dir`, `paused`, `labels`; answers `torrent-added` or `torrent-duplicate`), `torrent-start`, `torrent-stop`,
//! `torrent-verify`, `torrent-reannounce`, `torrent-remove` (`delete-local-data`), `torrent-set` (`labels`, `files-wanted`,
//! `files-unwanted`, `priority-high`, `priority-normal`, `priority-low`, `downloadLimit`, `downloadLimited`, `uploadLimit`,
//! `uploadLimited`, `seedRatioMode`, `seedRatioLimit`, `bandwidthPriority`, `honorsSessionLimits`,
//! `superSeeding`), `torrent-set-location`
//! (`location`, `move`), `queue-move-top`, `queue-move-bottom`, `session-get`, `session-set`, `session-stats`, `policy-get` (what
//! `gyre ctl policies --json` shows; without it there is no way to policies). Of settings and
//! limits only those are shown whose keys the daemon answers, and only what was changed is set. A `result` other than
//! `success` is shown as it is: it says what happened, to what. Beyond Transmission's fields of old, `availability` is drawn
//! where it is given (for each piece the number of peers that have it, -1 where it is here), and `policies` named.
//!
//! **The live table**: `GET /api/events`, an answer of `text/event-stream` that does not end. Each event has an `id`.
//!
//! - `all` comes first: `{"columns":["id",…],"session":{…},"torrents":[[…],…]}`, a row an array of values in the order of
//!   `columns`: `id hash name status percent_done size_wanted rate_down rate_up uploaded_ever ratio eta peers labels
//!   tracker_host added error queue_position moved_share`. Long lists come in several such events of 2,000 rows, all but the last with
//!   `"more":true`; only the first needs `columns` and `session`. The list takes effect with its last event.
//! - `delta` follows once a second, and also when nothing changed: the page takes 20 s of silence for a dead connection.
//!   `{"changed":[[…],…],"removed":[id,…],"session":{…}}`: rows that are new or differ, whole; ids that are gone.
//! - `session` has `rate_down` and `rate_up` (payload bytes a second), and as far as known `peers`, `free_bytes`,
//!   `download_dir`, `version`. Keys that are absent keep their value.
//! - A connection that resumes sends `Last-Event-ID` and is answered with a fresh `all`.
//!
//! Values: `status` 0 to 6 as in Transmission; `percent_done` of what is wanted, from 0 to 1; sizes in bytes (`size_wanted` 0
//! while the metadata is not here); rates in bytes a second; `ratio` -1 where there is none and -2 for infinite; `eta` in
//! seconds, negative where there is none; `labels` an array of strings; `tracker_host` empty without trackers; `added` in
//! seconds of Unix time; `error` empty, or words for the user; `queue_position` from 0; `moved_share` from 0 to 1 while the
//! files are on their way to another folder, else -1. `torrent-get` tells the same as `movedShare`.

use std::sync::OnceLock;

/// One file of the page.
#[derive(Debug)]
pub struct Asset {
    /// Where it is served, from the root of the server.
    pub path: &'static str,
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    etag: OnceLock<String>,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! asset {
    ($path:literal, $type:expr, $file:literal) => {
        Asset {
            path: $path,
            content_type: $type,
            bytes: include_bytes!(concat!("page/", $file)),
            etag: OnceLock::new(),
        }
    };
}

/// All files of the page.
pub static ASSETS: [Asset; 23] = [
    asset!("/", HTML, "index.html"),
    asset!("/page/actions.js", SCRIPT, "actions.js"),
    asset!("/page/app.js", SCRIPT, "app.js"),
    asset!("/page/columns.js", SCRIPT, "columns.js"),
    asset!("/page/details.js", SCRIPT, "details.js"),
    asset!("/page/dialogs.js", SCRIPT, "dialogs.js"),
    asset!("/page/dom.js", SCRIPT, "dom.js"),
    asset!("/page/events.js", SCRIPT, "events.js"),
    asset!("/page/files.js", SCRIPT, "files.js"),
    asset!("/page/filters.js", SCRIPT, "filters.js"),
    asset!("/page/format.js", SCRIPT, "format.js"),
    asset!("/page/graph.js", SCRIPT, "graph.js"),
    asset!("/page/icon.svg", IMAGE, "icon.svg"),
    asset!("/page/parts.css", STYLE, "parts.css"),
    asset!("/page/pieces.js", SCRIPT, "pieces.js"),
    asset!("/page/policies.js", SCRIPT, "policies.js"),
    asset!("/page/rpc.js", SCRIPT, "rpc.js"),
    asset!("/page/settings.js", SCRIPT, "settings.js"),
    asset!("/page/store.js", SCRIPT, "store.js"),
    asset!("/page/style.css", STYLE, "style.css"),
    asset!("/page/table.js", SCRIPT, "table.js"),
    asset!("/page/tabs.js", SCRIPT, "tabs.js"),
    asset!("/page/theme.js", SCRIPT, "theme.js"),
];

/// The asset of a path (without query), or nothing.
pub fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

impl PartialEq for Asset {
    /// There is one asset of a path.
    fn eq(&self, other: &Asset) -> bool {
        self.path == other.path
    }
}

impl Eq for Asset {}

impl Asset {
    /// A strong entity tag in its quotes, another for other bytes (RFC 9110, "ETag").
    pub fn etag(&self) -> &str {
        self.etag
            .get_or_init(|| format!("\"{:016x}\"", fnv1a(self.bytes)))
    }

    /// Whether the value of `If-None-Match` says that the client holds this version: 304 is the answer.
    pub fn is_held(&self, if_none_match: &str) -> bool {
        let own = self.etag();
        // Proxies that compress make the tag weak; for this question that is no difference.
        let is_own = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == own;
        if_none_match.split(',').map(str::trim).any(is_own)
    }
}

/// FNV-1a of 64 bits: tells versions apart, and need not withstand anybody.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn text(asset: &Asset) -> &'static str {
        std::str::from_utf8(asset.bytes).unwrap()
    }

    fn file_name(asset: &Asset) -> &'static str {
        match asset.path {
            "/" => "index.html",
            path => path.strip_prefix("/page/").unwrap(),
        }
    }

    /// What stands in double quotes, or in single ones, behind each mark.
    fn quoted_behind<'a>(text: &'a str, mark: &str) -> Vec<&'a str> {
        let parts = text.split(mark).skip(1);
        parts
            .filter_map(|rest| rest.split(['"', '\'']).next())
            .collect()
    }

    #[test]
    fn every_file_of_the_folder_is_served_and_no_other() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/daemon/page");
        let entries = std::fs::read_dir(folder).unwrap();
        let found: BTreeSet<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let served: BTreeSet<String> = ASSETS.iter().map(|asset| file_name(asset).into()).collect();
        assert_eq!(found, served);
    }

    #[test]
    fn types_fit_the_names() {
        for asset in &ASSETS {
            let expected = match file_name(asset).rsplit('.').next().unwrap() {
                "html" => HTML,
                "js" => SCRIPT,
                "css" => STYLE,
                "svg" => IMAGE,
                other => panic!("{other} has no type"),
            };
            assert_eq!(asset.content_type, expected, "{}", asset.path);
        }
    }

    #[test]
    fn only_exact_paths_are_found() {
        assert!(std::ptr::eq(find("/").unwrap(), &ASSETS[0]));
        assert!(find("/page/app.js").is_some());
        for path in ["", "/page", "/page/", "/page/../page/app.js", "/app.js"] {
            assert!(find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn what_files_ask_for_is_there() {
        for asset in &ASSETS {
            let name = file_name(asset);
            let mut wanted: Vec<String> = Vec::new();
            if name == "index.html" {
                let named = ["src=\"", "rel=\"stylesheet\" href=\"", "svg+xml\" href=\""];
                let named = named
                    .iter()
                    .flat_map(|mark| quoted_behind(text(asset), mark));
                wanted.extend(named.map(|path| format!("/{path}")));
                assert!(wanted.len() >= 4, "{wanted:?}");
            } else if name.ends_with(".js") {
                let named = quoted_behind(text(asset), " from '");
                wanted.extend(named.iter().map(|path| path.replacen("./", "/page/", 1)));
            }
            for path in wanted {
                assert!(find(&path).is_some(), "{name} asks for {path}");
            }
        }
    }

    #[test]
    fn nothing_needs_another_host_or_a_wider_policy() {
        for asset in &ASSETS {
            // The name of a vocabulary, which nobody fetches.
            let text = text(asset).replace("http://www.w3.org/2000/svg", "");
            let banned = [
                "http://",
                "https://",
                "eval(",
                "new Function",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                " style=\"",
                " onclick=",
                "javascript:",
                "@import",
                "url(",
                "<style",
            ];
            for word in banned {
                assert!(!text.contains(word), "{} has {word}", asset.path);
            }
            let mut scripts = text.split("<script").skip(1);
            assert!(scripts.all(|rest| rest.contains("src=\"") && rest.contains("></script>")));
        }
    }

    #[test]
    fn tags_differ_and_are_recognised() {
        let tags: BTreeSet<&str> = ASSETS.iter().map(Asset::etag).collect();
        assert_eq!(tags.len(), ASSETS.len());
        let asset = find("/page/app.js").unwrap();
        let tag = asset.etag();
        assert_eq!((tag.len(), tag.starts_with('"')), (18, true));
        assert!(asset.is_held(tag) && asset.is_held("*"));
        assert!(asset.is_held(&format!("\"other\", W/{tag}")));
        assert!(!asset.is_held("\"other\"") && !asset.is_held(""));
    }

    #[test]
    fn fnv1a_gives_its_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    /// Together they are what a first visit costs.
    #[test]
    fn the_page_is_small() {
        let bytes: usize = ASSETS.iter().map(|asset| asset.bytes.len()).sum();
        assert!(bytes < 200_000, "{bytes} bytes");
    }
}
