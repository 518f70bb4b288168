//! The state file: one row a torrent, in a redb file. Layer 6. Blocks.
//!
//! What cannot be trusted is set aside under a new name and said, never half used: a damaged file, one of a newer version,
//! one with a row too few or too many. The .torrent files beside it are left where they are. What only cannot be reached,
//! on a disk that is full or in a folder of somebody else, is no reason for that: it is tried again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::ErrorKind::{
    InvalidData, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull, UnexpectedEof,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{
    Database, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition,
    WriteTransaction,
};
use sha1::{Digest, Sha1};

use super::kept::Kept;
use super::row::{RowError, TorrentRow};
use crate::base::{InfoHash, io_cause};
use crate::session::SessionError;

const TORRENTS: TableDefinition<&[u8; 20], &[u8]> = TableDefinition::new("torrents");
const ABOUT: TableDefinition<&str, &[u8]> = TableDefinition::new("about");

/// Raised when a row of this version would mislead an older program.
const VERSION: u32 = 1;
/// Pages of the file that are kept in memory, in bytes. It is read once, at the start; then only what is written matters.
const CACHE_BYTES: usize = 4 << 20;
/// Names tried for a file that is set aside.
const ASIDE_NAMES_MAX: u32 = 1_000;

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    File(String),
    /// The disk or the system refuses; what is in the file is not in question.
    #[error("{}", io_cause(.0))]
    Io(std::io::Error),
    #[error("it is in use")]
    InUse,
    #[error("it is of version {got}, this program knows version {VERSION}")]
    Newer { got: u32 },
    #[error("{0}")]
    Row(#[from] RowError),
    #[error("it holds {got} torrents where {expected} were written")]
    Count { expected: u64, got: u64 },
    #[error("it is damaged")]
    Damaged,
}

impl StoreError {
    fn file(error: impl Into<redb::Error>) -> StoreError {
        match error.into() {
            // So the library tells of files that end too early or are none of its own.
            redb::Error::Io(error) if matches!(error.kind(), InvalidData | UnexpectedEof) => {
                StoreError::File(error.to_string())
            }
            redb::Error::Io(error) => StoreError::Io(error),
            redb::Error::PreviousIo => StoreError::Io(std::io::Error::other("it failed before")),
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse,
            error => StoreError::File(error.to_string()),
        }
    }

    /// False when what is in the file is the reason.
    fn is_out_of_reach(&self) -> bool {
        matches!(self, StoreError::Io(_) | StoreError::InUse)
    }

    /// For the user, of the file at `path`.
    pub(super) fn of(&self, path: &Path) -> SessionError {
        let message = format!("cannot use the state file {}: {self}", path.display());
        SessionError::new(message, self.hint())
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            StoreError::Io(error) => match error.kind() {
                StorageFull | QuotaExceeded => "make room in the state folder",
                PermissionDenied | ReadOnlyFilesystem => {
                    "give the state folder and all in it to the user who runs this, or name another with --state"
                }
                _ => "look after the disk of the state folder, or name another folder with --state",
            },
            StoreError::InUse => {
                "end the other program that uses it, or name another folder with --state"
            }
            _ => "name another folder with --state",
        }
    }
}

/// The open file.
pub struct Store {
    path: PathBuf,
    /// None behind an error of the disk: the library takes nothing more before the file is opened anew.
    database: Option<Database>,
    /// What the file holds, to be told from one that lost something.
    sum: Sum,
    /// What the commit that failed was to change, as it was before, in the order of its writes.
    undo: Vec<Old>,
}

/// An entry before a write.
enum Old {
    Row(InfoHash, Option<Vec<u8>>),
    Kept(Option<Vec<u8>>),
}

/// What is written into it at once.
#[derive(Clone, Debug)]
pub enum Write {
    Put(Box<TorrentRow>),
    Remove(InfoHash),
    /// Settings of the whole daemon.
    Keep(Box<Kept>),
}

/// What the file held.
pub struct State {
    pub rows: BTreeMap<InfoHash, TorrentRow>,
    /// Settings that were changed while it ran.
    pub kept: Option<Kept>,
    /// What was found in its place, could not be used, and is now there.
    pub set_aside: Option<(String, PathBuf)>,
}

/// What is known of the file before it is open.
pub enum Told<'a> {
    /// Its settings, long before the torrents, where they can be read. Void when the file is set aside after all.
    Kept(Option<&'a Kept>),
    /// It could not be used for that reason, and is there now.
    SetAside(&'a StoreError, &'a Path),
}

/// The number of rows, and the sum of their checksums in whatever order they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    xor: [u8; 20],
}

impl Sum {
    fn add(&mut self, row: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.flip(row);
    }

    fn take(&mut self, row: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.flip(row);
    }

    fn flip(&mut self, row: &[u8]) {
        for (all, byte) in self.xor.iter_mut().zip(Sha1::digest(row)) {
            *all ^= byte;
        }
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = self.count.to_le_bytes().to_vec();
        bytes.extend(self.xor);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Sum> {
        let (count, xor) = bytes.split_at_checked(8)?;
        Some(Sum {
            count: u64::from_le_bytes(count.try_into().ok()?),
            xor: xor.try_into().ok()?,
        })
    }
}

impl Store {
    /// Opens the file, or makes it. One that cannot be used is set aside first.
    ///
    /// # Errors
    /// Nothing can be made or reached there, or what is there cannot be moved.
    pub fn open(path: &Path) -> Result<(Store, State), StoreError> {
        Store::open_telling(path, &mut |_| {})
    }

    /// The same, and tells what is known on the way.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_telling(
        path: &Path,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<(Store, State), StoreError> {
        let mut tell_kept = |kept: Option<Kept>| tell(Told::Kept(kept.as_ref()));
        let why = match guarded(|| open_or_make(path, &mut tell_kept)) {
            Ok((store, rows, kept)) => {
                let set_aside = None;
                return Ok((
                    store,
                    State {
                        rows,
                        kept,
                        set_aside,
                    },
                ));
            }
            Err(why) if why.is_out_of_reach() => return Err(why),
            Err(why) => why,
        };
        let aside = set_aside(path).ok_or_else(|| {
            StoreError::File(format!("{why}, and it cannot be moved out of the way"))
        })?;
        tell(Told::SetAside(&why, &aside));
        let (store, rows, kept) = guarded(|| open_or_make(path, &mut |_| {}))?;
        let set_aside = Some((why.to_string(), aside));
        Ok((
            store,
            State {
                rows,
                kept,
                set_aside,
            },
        ))
    }

    /// Does all of it, or nothing; on disk when it returns.
    ///
    /// # Errors
    /// Those of the file; what was there before still is, or is again with [`Store::recover`] or the next commit.
    pub fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.open_again()?,
        };
        let mut undo = Vec::new();
        let sum = guarded(|| commit(&database, self.sum, writes, &mut undo));
        match sum {
            Ok(sum) => {
                self.sum = sum;
                self.database = Some(database);
                Ok(())
            }
            Err(error) => {
                self.undo = undo;
                // It may try to write once more and fail as well.
                let _ = guarded(|| {
                    drop(database);
                    Ok(())
                });
                Err(error)
            }
        }
    }

    /// Makes sure of the file behind a commit that failed; does nothing else.
    ///
    /// # Errors
    /// As [`Store::commit`]: the disk refuses still.
    pub fn recover(&mut self) -> Result<(), StoreError> {
        if self.database.is_none() {
            self.database = Some(self.open_again()?);
        }
        Ok(())
    }

    /// Whether there was no answer yet to what a commit that failed has left.
    pub const fn is_unsure(&self) -> bool {
        self.database.is_none()
    }

    /// A commit that failed may be in the file all the same, when only the last word of the disk was an error: whoever
    /// was told that it failed relies on that, so it is undone.
    fn open_again(&mut self) -> Result<Database, StoreError> {
        let (database, sum) = guarded(|| {
            let (database, _, sum, _) = open_there(&self.path, &mut |_| {})?;
            let are_rows = self.undo.iter().all(|old| matches!(old, Old::Row(..)));
            let sum = match are_rows && sum == self.sum {
                // It is not in the file: a disk that is full need not take anything.
                true => sum,
                false => undo(&database, sum, &self.undo)?,
            };
            Ok((database, sum))
        })?;
        self.undo.clear();
        self.sum = sum;
        Ok(database)
    }

    /// What the file holds. It is left as it is, whatever that is: repairs are made to a copy in memory.
    ///
    /// # Errors
    /// It cannot be reached, or not be used.
    pub fn read(path: &Path) -> Result<State, StoreError> {
        let bytes = std::fs::read(path).map_err(StoreError::Io)?;
        let (rows, kept) = guarded(|| {
            let copy = InMemoryBackend::new();
            copy.set_len(bytes.len() as u64).map_err(StoreError::Io)?;
            copy.write(0, &bytes).map_err(StoreError::Io)?;
            let database = builder()
                .create_with_backend(copy)
                .map_err(StoreError::file)?;
            let (_, rows, _, kept) = checked(database, &mut |_| {})?;
            Ok((rows, kept))
        })?;
        Ok(State {
            rows,
            kept,
            set_aside: None,
        })
    }
}

/// Returns the sum of what is in the file then; `undo` gets what was in the place of what is written.
fn commit(
    database: &Database,
    mut sum: Sum,
    writes: &[Write],
    undo: &mut Vec<Old>,
) -> Result<Sum, StoreError> {
    let transaction = database.begin_write().map_err(StoreError::file)?;
    {
        let mut tables = Tables::open(&transaction)?;
        for write in writes {
            undo.push(match write {
                Write::Put(row) => tables.row(row.info_hash, Some(&row.encode()), &mut sum)?,
                Write::Remove(info_hash) => tables.row(*info_hash, None, &mut sum)?,
                Write::Keep(kept) => tables.kept(Some(&kept.encode()))?,
            });
        }
        tables.sum(sum)?;
    }
    transaction.commit().map_err(StoreError::file)?;
    Ok(sum)
}

/// Puts everything back, and returns the sum of what is in the file then.
fn undo(database: &Database, mut sum: Sum, undo: &[Old]) -> Result<Sum, StoreError> {
    let transaction = database.begin_write().map_err(StoreError::file)?;
    {
        let mut tables = Tables::open(&transaction)?;
        for old in undo.iter().rev() {
            match old {
                Old::Row(key, row) => tables.row(*key, row.as_deref(), &mut sum)?,
                Old::Kept(kept) => tables.kept(kept.as_deref())?,
            };
        }
        tables.sum(sum)?;
    }
    transaction.commit().map_err(StoreError::file)?;
    Ok(sum)
}

/// What a commit writes into; each write gives what was there.
struct Tables<'txn> {
    torrents: Table<'txn, &'static [u8; 20], &'static [u8]>,
    about: Table<'txn, &'static str, &'static [u8]>,
}

impl<'txn> Tables<'txn> {
    fn open(transaction: &'txn WriteTransaction) -> Result<Tables<'txn>, StoreError> {
        Ok(Tables {
            torrents: transaction.open_table(TORRENTS).map_err(StoreError::file)?,
            about: transaction.open_table(ABOUT).map_err(StoreError::file)?,
        })
    }

    fn row(&mut self, key: InfoHash, row: Option<&[u8]>, sum: &mut Sum) -> Result<Old, StoreError> {
        let old = match row {
            Some(row) => self.torrents.insert(key.as_bytes(), row),
            None => self.torrents.remove(key.as_bytes()),
        };
        let old = old.map_err(StoreError::file)?;
        let old = old.map(|old| old.value().to_vec());
        if let Some(row) = row {
            sum.add(row);
        }
        if let Some(old) = &old {
            sum.take(old);
        }
        Ok(Old::Row(key, old))
    }

    fn kept(&mut self, kept: Option<&[u8]>) -> Result<Old, StoreError> {
        let old = match kept {
            Some(kept) => self.about.insert("settings", kept),
            None => self.about.remove("settings"),
        };
        let old = old.map_err(StoreError::file)?;
        Ok(Old::Kept(old.map(|old| old.value().to_vec())))
    }

    fn sum(&mut self, sum: Sum) -> Result<(), StoreError> {
        let put = self.about.insert("sum", sum.encode().as_slice());
        put.map(|_| ()).map_err(StoreError::file)
    }
}

/// A damaged file may break the library that reads it: that is one more way of being damaged.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let was = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(StoreError::Damaged));
    GUARDED.set(was);
    done
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is a way of being damaged, and told so.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

type Rows = BTreeMap<InfoHash, TorrentRow>;

fn open_or_make(
    path: &Path,
    tell: &mut dyn FnMut(Option<Kept>),
) -> Result<(Store, Rows, Option<Kept>), StoreError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(path)?,
        Err(error) => return Err(StoreError::Io(error)),
        Ok(_) => {}
    }
    let (database, rows, sum, kept) = open_there(path, tell)?;
    let store = Store {
        path: path.to_owned(),
        database: Some(database),
        sum,
        undo: Vec::new(),
    };
    Ok((store, rows, kept))
}

/// An empty one, under its name only when it is whole: whoever is killed meanwhile leaves none that is half made.
fn make(path: &Path) -> Result<(), StoreError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::Io(error));
        }
        _ => {}
    }
    let database = builder().create(&new).map_err(StoreError::file)?;
    let transaction = database.begin_write().map_err(StoreError::file)?;
    {
        transaction.open_table(TORRENTS).map_err(StoreError::file)?;
        let mut about = transaction.open_table(ABOUT).map_err(StoreError::file)?;
        let version = VERSION.to_le_bytes();
        let put = about.insert("version", version.as_slice());
        put.map_err(StoreError::file)?;
        let put = about.insert("sum", Sum::default().encode().as_slice());
        put.map_err(StoreError::file)?;
    }
    transaction.commit().map_err(StoreError::file)?;
    drop(database);
    std::fs::rename(&new, path).map_err(StoreError::Io)?;
    let folder = path.parent().map_or(Ok(()), |folder| {
        std::fs::File::open(folder).and_then(|folder| folder.sync_all())
    });
    folder.map_err(StoreError::Io)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn open_there(
    path: &Path,
    tell: &mut dyn FnMut(Option<Kept>),
) -> Result<(Database, Rows, Sum, Option<Kept>), StoreError> {
    checked(builder().open(path).map_err(StoreError::file)?, tell)
}

fn checked(
    mut database: Database,
    tell: &mut dyn FnMut(Option<Kept>),
) -> Result<(Database, Rows, Sum, Option<Kept>), StoreError> {
    let before = said(&database)?;
    check_version(before.get("version"))?;
    let kept = before.get("settings").map(|value| Kept::decode(value));
    tell(kept.transpose()?);
    let is_sound = database.check_integrity().map_err(StoreError::file)?;
    let (rows, sum, kept) = read(&database)?;
    // Files that were closed well may fail the check by their list of free pages alone, which is made anew then. What
    // counts is that they hold what they did: a repair may go back to what was there a commit ago.
    if !is_sound && before != said(&database)? {
        return Err(StoreError::Damaged);
    }
    Ok((database, rows, sum, kept))
}

/// Everything that the file says of itself; the sum of the rows is another with every commit that changes one.
fn said(database: &Database) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let transaction = database.begin_read().map_err(StoreError::file)?;
    let about = transaction.open_table(ABOUT).map_err(StoreError::file)?;
    let entries = about.iter().map_err(StoreError::file)?;
    let entries = entries.map(|entry| {
        let (key, value) = entry.map_err(StoreError::file)?;
        Ok((key.value().to_owned(), value.value().to_vec()))
    });
    entries.collect()
}

fn read(database: &Database) -> Result<(Rows, Sum, Option<Kept>), StoreError> {
    let transaction = database.begin_read().map_err(StoreError::file)?;
    let about = transaction.open_table(ABOUT).map_err(StoreError::file)?;
    let of = |key| {
        let value = about.get(key).map_err(StoreError::file)?;
        let value = value.ok_or(StoreError::Damaged)?;
        Ok::<_, StoreError>(value.value().to_vec())
    };
    check_version(Some(&of("version")?))?;
    let expected = Sum::decode(&of("sum")?).ok_or(StoreError::Damaged)?;
    let kept = about.get("settings").map_err(StoreError::file)?;
    let kept = kept.map(|value| Kept::decode(value.value())).transpose()?;
    let table = transaction.open_table(TORRENTS).map_err(StoreError::file)?;
    let (mut rows, mut sum) = (Rows::new(), Sum::default());
    for entry in table.iter().map_err(StoreError::file)? {
        let (key, value) = entry.map_err(StoreError::file)?;
        let row = TorrentRow::decode(value.value())?;
        if row.info_hash.as_bytes() != key.value() {
            return Err(StoreError::Damaged);
        }
        sum.add(value.value());
        rows.insert(row.info_hash, row);
    }
    if sum.count != expected.count {
        let (expected, got) = (expected.count, sum.count);
        return Err(StoreError::Count { expected, got });
    }
    if sum != expected {
        return Err(StoreError::Damaged);
    }
    Ok((rows, sum, kept))
}

fn check_version(said: Option<&Vec<u8>>) -> Result<(), StoreError> {
    let bytes = said.and_then(|bytes| bytes.as_slice().try_into().ok());
    let got = u32::from_le_bytes(bytes.ok_or(StoreError::Damaged)?);
    match got > VERSION {
        true => Err(StoreError::Newer { got }),
        false => Ok(()),
    }
}

/// Gives it a name that nothing has.
fn set_aside(path: &Path) -> Option<PathBuf> {
    for number in 1..=ASIDE_NAMES_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".bad-{number}"));
        let aside = PathBuf::from(name);
        if std::fs::symlink_metadata(&aside).is_err() {
            return std::fs::rename(path, &aside).ok().map(|()| aside);
        }
    }
    None
}

#[cfg(test)]
mod tests;
