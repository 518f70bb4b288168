//! Categories with their folders, and tags, that are kept whether a torrent has them or not. Layer 6.
//!
//! They lie in `categories.json` of the state folder: written anew as a whole, synced, renamed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Fault, names};
use crate::daemon::control::backend::Torrent;

/// Categories, and tags, that are kept: people have some dozens.
pub const NAMES_MAX: usize = 1_000;
/// The longest folder of a category: PATH_MAX.
const FOLDER_BYTES_MAX: usize = 4_096;
/// The file: both tables full of the longest names and folders.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Folder by name; empty for the folder for downloads.
    categories: BTreeMap<String, String>,
    tags: BTreeSet<String>,
}

/// Both tables, and the file that they are in.
#[derive(Debug, Default)]
pub struct Shelf {
    /// `None` keeps them in memory alone.
    path: Option<PathBuf>,
    kept: RefCell<Kept>,
    /// Goes up with each change.
    revision: Cell<u64>,
    /// Held while the file is written: the later content is written later.
    writing: tokio::sync::Mutex<()>,
}

impl Shelf {
    /// Those of a state folder. A file that cannot be read is set aside and named in the log.
    pub fn open(state: &Path) -> Shelf {
        let path = state.join("categories.json");
        let kept = match read(&path) {
            Ok(kept) => kept,
            Err(error) => {
                let aside = path.with_extension("json.bad");
                let _ = fs::rename(&path, &aside);
                warn!(
                    "the file {} cannot be used: {error}; it is kept as {}",
                    path.display(),
                    aside.display()
                );
                Kept::default()
            }
        };
        Shelf {
            path: Some(path),
            kept: RefCell::new(kept),
            ..Shelf::default()
        }
    }

    /// Another number after each change.
    pub fn revision(&self) -> u64 {
        self.revision.get()
    }

    /// Every category with its folder: those kept, and those that torrents have.
    pub fn categories<'a>(
        &self,
        torrents: impl Iterator<Item = &'a Torrent>,
    ) -> BTreeMap<String, String> {
        let mut all = self.kept.borrow().categories.clone();
        for torrent in torrents {
            let name = names::category(&torrent.labels);
            if !name.is_empty() && !all.contains_key(name) {
                all.insert(name.to_owned(), String::new());
            }
        }
        all
    }

    /// Every tag: those kept, and those that torrents have.
    pub fn tags<'a>(&self, torrents: impl Iterator<Item = &'a Torrent>) -> BTreeSet<String> {
        let mut all = self.kept.borrow().tags.clone();
        for tag in torrents.flat_map(|torrent| names::tags(&torrent.labels)) {
            if !all.contains(tag) {
                all.insert(tag.to_owned());
            }
        }
        all
    }

    /// The folder of a category; `None` where it has none of its own.
    pub fn folder(&self, category: &str) -> Option<String> {
        let kept = self.kept.borrow();
        let folder = kept.categories.get(category);
        folder.filter(|folder| !folder.is_empty()).cloned()
    }

    /// True for a category that is kept.
    pub fn has(&self, category: &str) -> bool {
        self.kept.borrow().categories.contains_key(category)
    }

    /// Keeps a category; `None` leaves the folder of one that is there.
    pub(super) async fn keep(&self, category: &str, folder: Option<&str>) -> Result<(), Fault> {
        if folder.is_some_and(|folder| folder.len() > FOLDER_BYTES_MAX) {
            return Err(Fault::conflict("the folder's name is too long"));
        }
        let mut kept = self.kept.borrow().clone();
        let place = kept.categories.entry(category.to_owned()).or_default();
        if let Some(folder) = folder {
            folder.clone_into(place);
        }
        self.put(kept).await
    }

    /// Keeps tags.
    pub(super) async fn keep_tags(&self, tags: &[&str]) -> Result<(), Fault> {
        let mut kept = self.kept.borrow().clone();
        kept.tags.extend(tags.iter().map(|tag| (*tag).to_owned()));
        self.put(kept).await
    }

    /// Forgets categories.
    pub(super) async fn forget(&self, categories: &[&str]) -> Result<(), Fault> {
        let mut kept = self.kept.borrow().clone();
        kept.categories
            .retain(|name, _| !categories.contains(&name.as_str()));
        self.put(kept).await
    }

    /// Forgets tags.
    pub(super) async fn forget_tags(&self, tags: &[&str]) -> Result<(), Fault> {
        let mut kept = self.kept.borrow().clone();
        kept.tags.retain(|tag| !tags.contains(&tag.as_str()));
        self.put(kept).await
    }

    async fn put(&self, kept: Kept) -> Result<(), Fault> {
        if kept.categories.len() > NAMES_MAX || kept.tags.len() > NAMES_MAX {
            let words = format!("there are {NAMES_MAX} of them, and no more are kept");
            return Err(Fault::conflict(words));
        }
        if *self.kept.borrow() == kept {
            return Ok(());
        }
        *self.kept.borrow_mut() = kept;
        self.revision.set(self.revision.get() + 1);
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        let _held = self.writing.lock().await;
        let text = serde_json::to_vec(&*self.kept.borrow()).unwrap_or_default();
        // Looking at the disk may take its time: not on this thread.
        let written = tokio::task::spawn_blocking(move || write(&path, &text)).await;
        let failed = |words: String| Fault {
            status: 500,
            words: format!("the categories could not be written: {words}"),
        };
        let written = written.map_err(|error| failed(error.to_string()))?;
        written.map_err(|error| failed(error.to_string()))
    }
}

fn read(path: &Path) -> io::Result<Kept> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    let mut kept: Kept = serde_json::from_slice(&text)?;
    kept.categories.retain(|name, _| names::is_category(name));
    kept.tags.retain(|tag| names::is_tag(tag));
    Ok(kept)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn what_was_kept_is_there_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path());
        block_on(async {
            shelf.keep("tv", Some("/srv/tv")).await.unwrap();
            shelf.keep("tv", None).await.unwrap();
            shelf.keep("films", None).await.unwrap();
            shelf.keep("gone", None).await.unwrap();
            shelf.forget(&["gone"]).await.unwrap();
            shelf.keep_tags(&["a", "b"]).await.unwrap();
            shelf.forget_tags(&["a"]).await.unwrap();
        });
        let shelf = Shelf::open(dir.path());
        let categories = shelf.categories(std::iter::empty());
        let names: Vec<&String> = categories.keys().collect();
        assert_eq!(names, ["films", "tv"]);
        assert_eq!(shelf.folder("tv").as_deref(), Some("/srv/tv"));
        assert_eq!(shelf.folder("films"), None);
        assert_eq!(shelf.tags(std::iter::empty()).len(), 1);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("categories.json"), b"{\"categories\":3}").unwrap();
        let shelf = Shelf::open(dir.path());
        assert!(!shelf.has("tv"));
        assert!(dir.path().join("categories.json.bad").exists());
    }

    #[test]
    fn the_number_of_names_has_a_limit() {
        let shelf = Shelf::default();
        let many: Vec<String> = (0..NAMES_MAX).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(block_on(shelf.keep_tags(&many)).is_ok());
        assert!(block_on(shelf.keep_tags(&["one more"])).is_err());
    }
}
