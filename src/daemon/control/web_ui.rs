//! A folder of files served as the page, in place of the one that is compiled in: VueTorrent, Transmission's. Layer 6.
//!
//! It is only read. A file is opened below the folder by the kernel's own rule (`RESOLVE_BENEATH`), so neither a path nor a
//! link leads out of it; names that begin with a dot are nobody's business.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::http::Response;
use super::qbt::form::unescape;

/// The largest file: scripts and fonts of a page have one or two megabytes.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// A file at a time is in memory for each connection; the path of one is short.
const PATH_BYTES_MAX: usize = 1_024;
/// openat2 answers EAGAIN when a rename raced with it: this often it is tried again.
const OPEN_TRIES_MAX: usize = 8;
/// Where Transmission's page looks for itself: it asks `../rpc`.
const TRANSMISSION: &str = "/transmission/web/";

/// Scripts, styles and pictures of its own, and nothing from elsewhere. Styles within the page and functions made of text are
/// what frameworks do (VueTorrent's map of pieces); a script within the page is not, so no name of a torrent becomes one.
const POLICY: &str = "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; \
    worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// The folder.
#[derive(Clone, Debug)]
pub struct WebUi {
    root: Arc<OwnedFd>,
}

impl WebUi {
    /// That folder, or `public` in it where the page is there, as VueTorrent comes.
    ///
    /// # Errors
    /// It is no folder with an `index.html`.
    pub fn open(folder: &Path) -> io::Result<WebUi> {
        let inner = folder.join("public");
        let has_page = |folder: &Path| folder.join("index.html").is_file();
        let root = match has_page(folder) {
            true => folder,
            false if has_page(&inner) => &inner,
            false => return Err(io::Error::other("it has no index.html")),
        };
        let opened = File::open(root)?;
        if !opened.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(WebUi {
            root: Arc::new(opened.into()),
        })
    }

    /// The file of a path, or 404.
    pub async fn answer(&self, path: &str, if_none_match: Option<&str>) -> Response {
        let missing = || Response::plain(404, "there is nothing here");
        if path == TRANSMISSION.trim_end_matches('/') {
            return missing_slash();
        }
        let Some(rel) = relative(path) else {
            return missing();
        };
        let content_type = content_type(&rel);
        let (root, held) = (self.root.clone(), if_none_match.map(str::to_owned));
        // A disk may take its time: not on this thread.
        let read = tokio::task::spawn_blocking(move || read(&root, &rel, held.as_deref())).await;
        let Ok(Ok((etag, bytes))) = read else {
            return missing();
        };
        Response {
            status: if bytes.is_some() { 200 } else { 304 },
            content_type,
            headers: Vec::new(),
            body: bytes.unwrap_or_default(),
        }
        .with("ETag", etag)
        .with("Cache-Control", "no-cache")
        .with("Content-Security-Policy", POLICY)
    }
}

/// Relative names of a page at `/transmission/web` would miss its folder.
fn missing_slash() -> Response {
    Response::plain(301, "there is a / at the end").with("Location", TRANSMISSION)
}

/// The path below the folder: plain names alone, `index.html` for a folder.
fn relative(path: &str) -> Option<PathBuf> {
    let path = path
        .strip_prefix(TRANSMISSION.trim_end_matches('/'))
        .unwrap_or(path);
    let path = unescape(path.strip_prefix('/')?.as_bytes(), false)?;
    let path = match path.is_empty() || path.ends_with('/') {
        true => format!("{path}index.html"),
        false => path,
    };
    if path.len() > PATH_BYTES_MAX || path.contains(['\0', '\\']) {
        return None;
    }
    // Neither `.` nor `..`, and nothing that is hidden.
    let is_plain = |name: &str| !name.is_empty() && !name.starts_with('.');
    path.split('/').all(is_plain).then(|| PathBuf::from(&path))
}

/// The entity tag, and the bytes unless the client holds them.
fn read(root: &OwnedFd, rel: &Path, held: Option<&str>) -> io::Result<(String, Option<Vec<u8>>)> {
    let file = File::from(open(root, rel)?);
    let found = file.metadata()?;
    if !found.is_file() || found.len() > FILE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let etag = format!(
        "\"{:x}-{:x}-{:x}\"",
        found.len(),
        found.mtime(),
        found.mtime_nsec()
    );
    let is_held = |held: &str| {
        let tags = held.split(',').map(str::trim);
        tags.map(|tag| tag.strip_prefix("W/").unwrap_or(tag))
            .any(|tag| tag == etag)
    };
    if held.is_some_and(is_held) {
        return Ok((etag, None));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok((etag, Some(bytes)))
}

fn open(root: &OwnedFd, rel: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        let how = OpenHow::new()
            // A pipe would make the open wait for its other end.
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(resolve);
        tries += 1;
        match openat2(root, rel, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if tries < OPEN_TRIES_MAX => {}
            result => return Ok(result?),
        }
    }
}

/// By the name's end; browsers are told not to guess.
fn content_type(path: &Path) -> &'static str {
    let end = path.extension().and_then(|end| end.to_str());
    match end.unwrap_or_default().to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "wasm" => "application/wasm",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn ask(ui: &WebUi, path: &str) -> Response {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(ui.answer(path, None))
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("ui");
        fs::create_dir_all(root.join("assets")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(root.join("index.html"), "<p>").unwrap();
        fs::write(root.join("assets/a b.js"), "1").unwrap();
        fs::write(root.join(".hidden"), "secret").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("/etc/passwd", root.join("etc")).unwrap();
        symlink(dir.path(), root.join("up")).unwrap();
        symlink("index.html", root.join("inner.html")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let huge = File::create(root.join("huge")).unwrap();
        huge.set_len(FILE_BYTES_MAX + 1).unwrap();
        dir
    }

    #[test]
    fn files_of_the_folder_are_served_by_their_types() {
        let dir = folder();
        let ui = WebUi::open(&dir.path().join("ui")).unwrap();
        for (path, content_type) in [
            ("/", "text/html; charset=utf-8"),
            ("/transmission/web/", "text/html; charset=utf-8"),
            ("/inner.html", "text/html; charset=utf-8"),
            ("/assets/a%20b.js", "text/javascript; charset=utf-8"),
        ] {
            let answer = ask(&ui, path);
            assert_eq!(
                (answer.status, answer.content_type),
                (200, content_type),
                "{path}"
            );
        }
        let answer = ask(&ui, "/");
        let etag = &answer
            .headers
            .iter()
            .find(|(name, _)| *name == "ETag")
            .unwrap()
            .1;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let again = runtime.unwrap().block_on(ui.answer("/", Some(etag)));
        assert_eq!((again.status, again.body.len()), (304, 0));
        assert_eq!(ask(&ui, "/transmission/web").status, 301);
    }

    #[test]
    fn nothing_outside_the_folder_is_served() {
        let dir = folder();
        let ui = WebUi::open(&dir.path().join("ui")).unwrap();
        for path in [
            "",
            "//",
            "/../secret",
            "/%2e%2e/secret",
            "/assets/../../secret",
            "/assets/..%2f..%2fsecret",
            "/..\\secret",
            "/etc/passwd",
            "//etc/passwd",
            "/out",
            "/etc",
            "/up/secret",
            "/.hidden",
            "/assets",
            "/assets/",
            "/pipe",
            "/huge",
            "/index.html%00.js",
            "/index.html/",
            "/%ff",
            "/transmission/webby",
        ] {
            assert_eq!(ask(&ui, path).status, 404, "{path}");
        }
        assert_eq!(ask(&ui, &format!("/{}", "a".repeat(5_000))).status, 404);
    }

    #[test]
    fn a_folder_without_a_page_is_none_and_the_page_may_be_in_public() {
        let dir = folder();
        assert!(WebUi::open(dir.path()).is_err());
        assert!(WebUi::open(&dir.path().join("nowhere")).is_err());
        fs::rename(dir.path().join("ui"), dir.path().join("public")).unwrap();
        let ui = WebUi::open(dir.path()).unwrap();
        assert_eq!(ask(&ui, "/").status, 200);
        assert_eq!(ask(&ui, "/public/").status, 404);
    }
}
