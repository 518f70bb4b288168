//! `gyre import` and `gyre export`: torrents of other programs into a daemon's state, and a state as one file. Layer 7.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use serde_json::{Value, json};

use super::escape::{terminal, terminal_path};
use super::exit::{Exit, Failure, io_cause};
use super::size::plural;
use super::{json as lines, output, run};
use crate::daemon::Offline;
use crate::daemon::archive::{self, Restored};
use crate::daemon::import::{self, Line, MAPS_MAX, Map, Outcome, Program};
use crate::session::SessionError;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The program whose torrents are taken over
    #[arg(value_enum, value_name = "PROGRAM")]
    pub program: ImportFrom,
    /// Its folder: qBittorrent's BT_backup, Transmission's folder of torrents and resume, rtorrent's session; of gyre, a file
    #[arg(value_name = "FOLDER", value_hint = ValueHint::AnyPath)]
    pub folder: PathBuf,
    /// Folder of the daemon's state [default: $XDG_STATE_HOME/gyre]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<PathBuf>,
    /// Data that the program has in FROM lies in TO here (repeat)
    #[arg(long, value_name = "FROM=TO", value_parser = parse_map)]
    pub map: Vec<Map>,
    /// Tell what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object a line on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The file to write
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Folder of the daemon's state [default: $XDG_STATE_HOME/gyre]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<PathBuf>,
    /// Replace an existing file
    #[arg(short, long)]
    pub force: bool,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Where torrents come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImportFrom {
    Qbittorrent,
    Transmission,
    Rtorrent,
    /// A file that gyre export wrote
    Gyre,
}

fn parse_map(text: &str) -> Result<Map, String> {
    let hint = "two folders with = between them, as in /downloads=/srv/torrents";
    let (from, to) = text.split_once('=').ok_or(hint)?;
    let to = PathBuf::from(to);
    match from.is_empty() || !to.is_absolute() {
        true => Err(format!("{hint}; the second is absolute")),
        false => Ok(Map {
            from: from.into(),
            to,
        }),
    }
}

/// What was done, in numbers.
#[derive(Default)]
struct Sum {
    taken: u64,
    present: u64,
    left: u64,
    to_hash: u64,
}

impl Sum {
    fn exit(&self) -> Exit {
        match (self.left, self.taken + self.present) {
            (0, _) => Exit::Done,
            (_, 0) => Exit::Failed,
            _ => Exit::Incomplete,
        }
    }
}

/// Runs `gyre import`.
///
/// # Errors
/// The folder or the state cannot be used.
pub fn import(args: &ImportArgs) -> Result<Exit, Failure> {
    if args.map.len() > MAPS_MAX {
        let message = format!(
            "{} are more than {MAPS_MAX} replaced folders",
            args.map.len()
        );
        return Err(Failure::usage(message, "name the folders above them"));
    }
    let mut sum = Sum::default();
    let program = match args.program {
        ImportFrom::Qbittorrent => Program::Qbittorrent,
        ImportFrom::Transmission => Program::Transmission,
        ImportFrom::Rtorrent => Program::Rtorrent,
        ImportFrom::Gyre => return import_file(args, sum),
    };
    let mut state = open(args)?;
    let tell = |line: &Line| told(line, args.json, &mut sum);
    let done = import::run(
        program,
        &args.folder,
        &args.map,
        state.as_mut(),
        args.dry_run,
        tell,
    );
    done.map_err(|error| failure(&error))?;
    Ok(ended(args, &sum))
}

fn failure(error: &SessionError) -> Failure {
    Failure::new(error, error.hint())
}

/// The state; none when nothing is to be written and nothing is there.
fn open(args: &ImportArgs) -> Result<Option<Offline>, Failure> {
    let path = run::state_dir(args.state.as_deref())?;
    if args.dry_run && !Offline::is_there(&path) {
        return Ok(None);
    }
    if args.dry_run {
        return Offline::read(&path)
            .map(Some)
            .map_err(|error| failure(&error));
    }
    run::make_folder(&path, "--state")?;
    opened(&path).map(Some)
}

fn opened(path: &Path) -> Result<Offline, Failure> {
    let state = Offline::open(path).map_err(|error| failure(&error))?;
    if let Some((why, aside)) = state.set_aside() {
        let message = format!(
            "the state file of {} cannot be used: {why}; it is kept as {}",
            path.display(),
            aside.display()
        );
        return Err(Failure::new(
            message,
            "run it again to begin with an empty one",
        ));
    }
    Ok(state)
}

fn told(line: &Line, as_json: bool, sum: &mut Sum) {
    let name = terminal(&line.name);
    let (word, what) = match &line.outcome {
        Outcome::Taken {
            pieces_have,
            pieces,
            to_hash,
            runs,
        } => {
            sum.taken += 1;
            sum.to_hash += u64::from(*to_hash);
            ("taken", shown(*pieces_have, *pieces, *to_hash, *runs))
        }
        Outcome::Present => {
            sum.present += 1;
            ("there", "is in the state already".to_owned())
        }
        Outcome::Left(why) => {
            sum.left += 1;
            ("left", why.clone())
        }
    };
    if as_json {
        let mut value = json!({
            "event": "torrent",
            "file": line.file,
            "name": line.name,
            "info_hash": line.info_hash.map(|info_hash| info_hash.to_string()),
            "outcome": word,
            "notes": line.notes,
        });
        match &line.outcome {
            Outcome::Taken {
                pieces_have,
                pieces,
                to_hash,
                runs,
            } => {
                value["pieces_have"] = json!(pieces_have);
                value["pieces"] = json!(pieces);
                value["pieces_to_hash"] = json!(to_hash);
                value["runs"] = json!(runs);
            }
            Outcome::Present => {}
            Outcome::Left(why) => value["why"] = json!(why),
        }
        lines::print(&value);
        return;
    }
    output::stdout_line(&format!("{word:<6} {name}: {}", terminal(&what)));
    for note in &line.notes {
        output::stdout_line(&format!("       note: {}", terminal(note)));
    }
}

fn shown(pieces_have: u32, pieces: u32, to_hash: u32, runs: bool) -> String {
    let does = match (pieces == 0, pieces_have == pieces, runs) {
        (_, _, false) => "stopped",
        (true, ..) => "looks for its metadata",
        (_, true, true) => "seeds",
        (_, false, true) => "is fetched",
    };
    match to_hash {
        0 => format!("{pieces_have} of {pieces} pieces, {does}"),
        to_hash => format!("{pieces_have} of {pieces} pieces and {to_hash} to hash, {does}"),
    }
}

fn ended(args: &ImportArgs, sum: &Sum) -> Exit {
    let Sum {
        taken,
        present,
        left,
        to_hash,
    } = sum;
    if args.json {
        lines::print(&json!({
            "event": "imported", "taken": taken, "present": present, "left": left, "dry_run": args.dry_run,
        }));
        return sum.exit();
    }
    let would = if args.dry_run { "would be " } else { "" };
    let mut text = format!(
        "{} {would}taken, {present} there already, {left} left",
        plural(*taken, "torrent")
    );
    if *taken > 0 && args.program != ImportFrom::Gyre {
        text += match to_hash {
            0 => "; nothing is hashed before it is seeded: gyre ctl verify proves a torrent later",
            _ => "; only what nobody was sure of is hashed: gyre ctl verify proves the rest later",
        };
    }
    output::stdout_line(&text);
    sum.exit()
}

fn import_file(args: &ImportArgs, mut sum: Sum) -> Result<Exit, Failure> {
    let shown = terminal_path(&args.folder);
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot read {shown}: {}", io_cause(&error));
        Failure::new(message, "name a file that gyre export wrote")
    };
    let of_file = |error: SessionError| Failure::new(format!("{shown}: {error}"), error.hint());
    let file = File::open(&args.folder).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other("it is no file")));
    }
    let mut reader = BufReader::new(file);
    archive::check(&mut reader).map_err(of_file)?;
    reader.rewind().map_err(unreadable)?;
    let mut state = open(args)?;
    let tell = |restored: &Restored| told_restored(restored, args.json, &mut sum);
    let done = archive::import(&mut reader, &args.map, state.as_mut(), args.dry_run, tell);
    done.map_err(of_file)?;
    Ok(ended(args, &sum))
}

fn told_restored(restored: &Restored, as_json: bool, sum: &mut Sum) {
    let (word, what) = match &restored.outcome {
        archive::Outcome::Taken { is_as_it_was } => {
            sum.taken += 1;
            let what = match is_as_it_was {
                true => "its data is as it was",
                false => "its data is hashed when it begins",
            };
            ("taken", what.to_owned())
        }
        archive::Outcome::Present => {
            sum.present += 1;
            ("there", "is in the state already".to_owned())
        }
        archive::Outcome::Left(why) => {
            sum.left += 1;
            ("left", why.clone())
        }
    };
    if as_json {
        let mut value = json!({
            "event": "torrent",
            "name": restored.name,
            "info_hash": restored.info_hash.to_string(),
            "outcome": word,
        });
        match &restored.outcome {
            archive::Outcome::Taken { is_as_it_was } => value["as_it_was"] = json!(is_as_it_was),
            archive::Outcome::Left(why) => value["why"] = Value::from(why.as_str()),
            archive::Outcome::Present => {}
        }
        lines::print(&value);
        return;
    }
    let name = terminal(&restored.name);
    output::stdout_line(&format!("{word:<6} {name}: {}", terminal(&what)));
}

/// Runs `gyre export`.
///
/// # Errors
/// There is no state, a daemon has it, or the file cannot be written.
pub fn export(args: &ExportArgs) -> Result<Exit, Failure> {
    let path = run::state_dir(args.state.as_deref())?;
    if !Offline::is_there(&path) {
        let message = format!("no daemon's state in {}", path.display());
        return Err(Failure::new(message, "name its folder with --state"));
    }
    let shown = terminal_path(&args.file);
    let unwritable = |error: std::io::Error| {
        let message = format!("cannot write {shown}: {}", io_cause(&error));
        let hint = match error.kind() {
            std::io::ErrorKind::AlreadyExists => "replace it with --force, or name another file",
            _ => "name another file",
        };
        Failure::new(message, hint)
    };
    if !args.force && args.file.symlink_metadata().is_ok() {
        return Err(unwritable(std::io::ErrorKind::AlreadyExists.into()));
    }
    let state = Offline::read(&path).map_err(|error| failure(&error))?;
    // An archive without a torrent over a good one would be the end of both.
    if let (true, Some(aside)) = (state.rows().is_empty(), state.set_aside_before().first()) {
        let aside = terminal_path(aside);
        let message =
            format!("the state is empty, and one that could not be used was kept as {aside}");
        let hint = "bring the torrents back with gyre import gyre FILE, or move that file away to export none";
        return Err(Failure::new(message, hint));
    }
    // Links to private trackers are secrets: for its owner only.
    let mut name = args.file.as_os_str().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let options = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary);
    let file = options.map_err(unwritable)?;
    let mut out = BufWriter::new(file);
    let written = archive::export(&state, &mut out).map_err(|error| failure(&error));
    let kept = written.and_then(|written| {
        let file = out
            .into_inner()
            .map_err(|error| unwritable(error.into_error()))?;
        file.sync_all().map_err(unwritable)?;
        std::fs::rename(&temporary, &args.file).map_err(unwritable)?;
        Ok(written)
    });
    if kept.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    let (torrents, left) = kept?;
    if args.json {
        lines::print(&json!({ "event": "exported", "torrents": torrents, "left": left }));
    } else {
        for why in &left {
            output::stdout_line(&format!("left   {}", terminal(why)));
        }
        output::stdout_line(&format!("{} in {shown}", plural(torrents, "torrent")));
    }
    Ok(if left.is_empty() {
        Exit::Done
    } else {
        Exit::Incomplete
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_folders_are_two_with_a_sign_between_them() {
        let map = parse_map("/a=/b=c").unwrap();
        assert_eq!((map.from, map.to), ("/a".into(), "/b=c".into()));
        for wrong in ["/a", "=/b", "/a=", "/a=b"] {
            assert!(parse_map(wrong).is_err(), "{wrong}");
        }
    }
}
