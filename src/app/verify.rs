//! `gyre verify`: data against its torrent. Layer 7.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cli::VerifyArgs;
use super::escape::{terminal, terminal_path};
use super::exit::{Exit, Failure};
use super::fetch::Route;
use super::hashing::{HashedPiece, SourceFile, hash_opened};
use super::patience::Patience;
use super::{json, meter, output, size, source};
use crate::base::{Bitfield, PieceIndex};
use crate::session::disk::plain_message;
use crate::session::resume_store;
use crate::storage::layout::{FileLayout, LayoutFile};
use crate::uring::files::{self, OpenMode};
use crate::wire::metainfo::Metainfo;

/// Runs of pieces shown for one file; `--json` has all.
const RUNS_SHOWN_MAX: usize = 8;

/// What is the matter with a file, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FileState {
    Good,
    /// All its bytes are good, but there are more of them.
    Long,
    /// Shares a piece with a file that is missing: nothing can be said about those bytes.
    Unverified,
    Wrong,
    Short,
    Unreadable,
    Missing,
}

impl FileState {
    const fn word(self) -> &'static str {
        match self {
            FileState::Good => "good",
            FileState::Long => "long",
            FileState::Unverified => "unverified",
            FileState::Wrong => "wrong",
            FileState::Short => "short",
            FileState::Unreadable => "unreadable",
            FileState::Missing => "missing",
        }
    }
}

/// One file's result.
struct FileResult {
    path: PathBuf,
    length_bytes: u64,
    /// On no disk (BEP 47).
    is_pad: bool,
    /// On the disk.
    found_bytes: Option<u64>,
    state: FileState,
    /// Why it cannot be read.
    why: Option<String>,
    bad_pieces: Vec<u32>,
}

/// Everything found out.
struct Verdict {
    files: Vec<FileResult>,
    good: Bitfield,
    good_bytes: u64,
}

impl Verdict {
    fn is_complete(&self) -> bool {
        let has_files = |file: &FileResult| file.state <= FileState::Long;
        self.good.is_full() && self.files.iter().all(has_files)
    }

    /// `complete`, or how many files are in which bad state, the worst first.
    fn in_words(&self) -> String {
        let mut counts = std::collections::BTreeMap::new();
        for file in self.files.iter().filter(|f| f.state > FileState::Long) {
            *counts.entry(file.state).or_insert(0) += 1;
        }
        let counts: Vec<String> = counts
            .iter()
            .rev()
            .map(|(state, count)| format!("{} {}", size::plural(*count, "file"), state.word()))
            .collect();
        match self.is_complete() {
            true => "complete".to_owned(),
            false => counts.join(", "),
        }
    }
}

/// Runs the verb.
///
/// # Errors
/// The torrent cannot be loaded or laid out, or there is no such folder.
pub fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let metainfo = source::load_torrent(&args.torrent, &Route::try_from(&args.route)?)?;
    let layout = layout(&metainfo)?;
    let patience = Patience::with(&args.data);
    fs::metadata(&args.data).map_err(|error| super::walk::unreadable(&args.data, &error))?;
    let meter = meter::Meter::new(
        "verifying",
        layout.geometry().total_bytes(),
        !args.quiet && !args.json,
    );
    let verdict = verify(&metainfo, &layout, &args.data, &meter, &patience)
        .map_err(|error| super::walk::unreadable(&args.data, &error))?;
    meter.clear();
    if args.json {
        json::print(&verdict_json(&metainfo, &verdict));
    } else {
        print(&metainfo, &verdict, args.quiet);
    }
    Ok(match verdict.is_complete() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

/// The torrent's files as they lie on a disk.
///
/// # Errors
/// Paths that no file system takes.
pub fn layout(metainfo: &Metainfo) -> Result<FileLayout, Failure> {
    FileLayout::new(&metainfo.info).map_err(|error| {
        Failure::new(
            format!("cannot place the files of {}: {error}", metainfo.info.name),
            "the torrent cannot be used on this machine",
        )
    })
}

/// Where each file of the torrent is: below `data`, or, when that is the content itself, in its place.
pub fn data_paths(layout: &FileLayout, data: &Path) -> Vec<PathBuf> {
    let root = layout.root_name();
    let is_content = !data.join(root).exists()
        && (data.is_file()
            || layout.files().iter().any(|file| {
                let inner = file.path.strip_prefix(root).unwrap_or(&file.path);
                file.is_regular() && !inner.as_os_str().is_empty() && data.join(inner).exists()
            }));
    let place = |path: &Path| match path.strip_prefix(root) {
        Ok(inner) if is_content && inner.as_os_str().is_empty() => data.to_owned(),
        Ok(inner) if is_content => data.join(inner),
        _ => data.join(path),
    };
    layout
        .files()
        .iter()
        .map(|file| place(&file.path))
        .collect()
}

/// Opens files as a seed does: none by a link that leads out of the folder, and nothing but regular files.
fn verify(
    metainfo: &Metainfo,
    layout: &FileLayout,
    data: &Path,
    meter: &meter::Meter,
    patience: &Patience,
) -> io::Result<Verdict> {
    let (folder, found) = resume_store::locate(data, layout.clone())?;
    let root = files::open_root(&folder)?;
    let sources: Vec<SourceFile> = found
        .files()
        .iter()
        .map(|file| SourceFile {
            path: file.path.clone(),
            offset: file.offset,
            length_bytes: file.length_bytes,
            is_pad: file.is_pad,
        })
        .collect();
    let geometry = layout.geometry();
    let look = |(file, place): (&LayoutFile, &LayoutFile)| {
        patience.step();
        look_at(file, &root, &place.path)
    };
    let files = layout.files().iter().zip(found.files()).map(look);
    let mut verdict = Verdict {
        files: files.collect(),
        good: Bitfield::new(geometry.piece_count()),
        good_bytes: 0,
    };
    let open = |path: &Path| Ok(files::open_beneath(&root, path, OpenMode::Read)?.into());
    let trees = |piece| metainfo.info.piece_hashes.tree_height(piece);
    hash_opened(&sources, geometry, &trees, open, |piece, hash| {
        patience.step();
        meter.add(geometry.piece_bytes(piece).into());
        judge(metainfo, layout, piece, hash, &mut verdict);
        ControlFlow::Continue(())
    });
    for file in &mut verdict.files {
        file.bad_pieces.sort_unstable();
    }
    Ok(verdict)
}

/// What the file's metadata says; nothing is opened.
fn look_at(file: &LayoutFile, root: &OwnedFd, place: &Path) -> FileResult {
    let found = files::file_stamp_beneath(root, place);
    let (state, why) = match &found {
        _ if !file.is_regular() => (FileState::Good, None),
        Ok(stamp) if stamp.size_bytes < file.length_bytes => (FileState::Short, None),
        Ok(stamp) if stamp.size_bytes > file.length_bytes => (FileState::Long, None),
        Ok(_) => (FileState::Good, None),
        Err(error) if is_missing(error) => (FileState::Missing, None),
        Err(error) => (FileState::Unreadable, Some(plain_message(error))),
    };
    FileResult {
        path: file.path.clone(),
        length_bytes: file.length_bytes,
        is_pad: file.is_pad,
        found_bytes: found.ok().map(|stamp| stamp.size_bytes),
        state,
        why,
        bad_pieces: Vec::new(),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn judge(
    metainfo: &Metainfo,
    layout: &FileLayout,
    piece: PieceIndex,
    hash: HashedPiece,
    verdict: &mut Verdict,
) {
    let (culprit, culprit_state, others) = match hash {
        Ok(hash) if hash == metainfo.info.piece_hashes.get(piece) => {
            verdict.good.set(piece);
            verdict.good_bytes += u64::from(layout.geometry().piece_bytes(piece));
            return;
        }
        Ok(_) => (None, FileState::Wrong, FileState::Wrong),
        Err(error) => {
            let state = match &error.cause {
                cause if is_missing(cause) => FileState::Missing,
                cause if cause.kind() == io::ErrorKind::UnexpectedEof => FileState::Short,
                _ => FileState::Unreadable,
            };
            if let Some(file) = verdict.files.get_mut(error.file)
                && state == FileState::Unreadable
            {
                file.why.get_or_insert_with(|| plain_message(&error.cause));
            }
            (Some(error.file), state, FileState::Unverified)
        }
    };
    for span in layout.piece_spans(piece) {
        let is_pad = layout
            .files()
            .get(span.file)
            .is_some_and(|file| file.is_pad);
        let Some(file) = verdict.files.get_mut(span.file).filter(|_| !is_pad) else {
            continue;
        };
        let state = match culprit {
            Some(culprit) if culprit == span.file => culprit_state,
            _ => others,
        };
        file.state = file.state.max(state);
        file.bad_pieces.push(piece.get());
    }
}

fn print(metainfo: &Metainfo, verdict: &Verdict, is_quiet: bool) {
    for file in &verdict.files {
        if file.state == FileState::Good || (is_quiet && file.state == FileState::Long) {
            continue;
        }
        let mut line = format!("{:<11} {}", file.state.word(), terminal_path(&file.path));
        if let Some(found) = file.found_bytes.filter(|found| *found != file.length_bytes) {
            line += &format!(", {found} of {} bytes", file.length_bytes);
        }
        if let Some(why) = &file.why {
            line += &format!(", {}", terminal(why));
        }
        if !file.bad_pieces.is_empty() {
            line += &format!(", {}", shown_runs(&file.bad_pieces));
        }
        if !output::stdout_line(&line) {
            return; // nobody reads any more
        }
    }
    if is_quiet {
        return;
    }
    let geometry = &metainfo.info.geometry;
    output::stdout_line(&format!(
        "{}: {} of {} good, {} of {}, {}",
        super::plain::name(&metainfo.info.name),
        verdict.good.count(),
        size::plural(geometry.piece_count().into(), "piece"),
        size::bytes(verdict.good_bytes),
        size::bytes(geometry.total_bytes()),
        verdict.in_words(),
    ));
}

fn verdict_json(metainfo: &Metainfo, verdict: &Verdict) -> Value {
    let pieces = verdict.good.len();
    let bad: Vec<u32> = metainfo
        .info
        .geometry
        .pieces()
        .filter(|piece| !verdict.good.has(*piece))
        .map(PieceIndex::get)
        .collect();
    let files = verdict.files.iter().enumerate();
    let files = files.filter(|(_, file)| !file.is_pad);
    let file_json = |(index, file): (usize, &FileResult)| {
        json!({
            "index": index,
            "path": file.path.to_string_lossy(),
            "state": file.state.word(),
            "length_bytes": file.length_bytes,
            "found_bytes": file.found_bytes,
            "bad_pieces": runs(&file.bad_pieces),
            "why": file.why,
        })
    };
    json!({
        "info_hash": metainfo.info_hash.to_string(),
        "name": metainfo.info.name,
        "complete": verdict.is_complete(),
        "pieces": pieces,
        "pieces_have": verdict.good.count(),
        "total_bytes": metainfo.info.geometry.total_bytes(),
        "have_bytes": verdict.good_bytes,
        "bad_pieces": runs(&bad),
        "files": files.map(file_json).collect::<Vec<_>>(),
    })
}

/// Sorted numbers as runs of first and last.
fn runs(numbers: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

fn shown_runs(pieces: &[u32]) -> String {
    let runs = runs(pieces);
    let text = |run: &(u32, u32)| match run {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let shown: Vec<String> = runs.iter().take(RUNS_SHOWN_MAX).map(text).collect();
    let more = if runs.len() > RUNS_SHOWN_MAX {
        ", …"
    } else {
        ""
    };
    let noun = if pieces.len() == 1 { "piece" } else { "pieces" };
    format!("{noun} {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_pieces_are_shown_as_runs() {
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), [(0, 2), (5, 5), (7, 8)]);
        assert_eq!(shown_runs(&[3]), "piece 3");
        assert_eq!(shown_runs(&[0, 1, 5]), "pieces 0-1, 5");
        let every_other: Vec<u32> = (0..40).map(|i| i * 2).collect();
        assert!(shown_runs(&every_other).ends_with("14, …"));
    }
}
