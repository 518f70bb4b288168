//! `gyre create`: a .torrent from a file or folder. Layer 7.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::cli::CreateArgs;
use super::escape::{terminal_bytes, terminal_path};
use super::exit::{Exit, Failure, io_cause};
use super::hashing::{NO_TREES, SourceFile, TreeHeight, hash_pieces};
use super::walk::{Found, Walk, unreadable, walk};
use super::{json, magnet, meter, output, plain, size};
use crate::base::{Geometry, GeometryError, PIECE_LENGTH_BYTES_MAX, PieceIndex};
use crate::storage::safe_path::safe_paths;
use crate::wire::merkle;
use crate::wire::metainfo::{Metainfo, MetainfoBuilder, PieceHash, TreeFile, choose_piece_length};

/// Pieces shorter than a block only cost hashes.
const PIECE_LENGTH_BYTES_MIN: u64 = 16 * 1024;

/// Runs the verb.
///
/// # Errors
/// Something cannot be read or written, or makes no torrent.
pub fn run(args: &CreateArgs) -> Result<Exit, Failure> {
    let tiers = tiers(&args.announce)?;
    args.web_seed
        .iter()
        .try_for_each(|url| check_url(url, &["http", "https", "ftp"]))?;
    let piece_length = args.piece_length.map(check_piece_length).transpose()?;
    let name = name(args)?;
    let output = output_path(args, &name);
    if !args.force && fs::symlink_metadata(&output).is_ok() {
        return Err(exists(&output));
    }
    let mut walk = walk(&args.path, Some(&output))?;
    for warning in &walk.warnings {
        output::stderr_line(&format!("warning: {warning}"));
    }
    if args.v2 || args.hybrid {
        // The order of a tree, and so of its pieces.
        walk.files.sort_by(|a, b| a.elements.cmp(&b.elements));
    }
    let total: u64 = walk.files.iter().map(|file| file.length_bytes).sum();
    if total == 0 {
        return Err(Failure::new(
            format!("{} holds no data", terminal_path(&args.path)),
            "a torrent needs at least one byte",
        ));
    }
    let piece_length = piece_length.unwrap_or_else(|| choose_piece_length(total));
    let mut builder = MetainfoBuilder::new(&name[..], piece_length);
    builder = match args.v2 {
        true => builder.v2_only(),
        false => with_v1(builder, &walk, piece_length, args)?,
    };
    if args.v2 || args.hybrid {
        builder = builder.tree(tree(&walk, &name, piece_length, args)?);
    }
    if let Some(file) = walk.files.iter().find(|file| file.has_changed()) {
        return Err(changed(&file.path));
    }
    let builder = builder
        .private(args.private)
        .source(args.source.clone())
        .announce_tiers(tiers)
        .web_seeds(args.web_seed.clone())
        .comment(args.comment.clone())
        .created_by(Some(concat!("gyre/", env!("CARGO_PKG_VERSION")).to_owned()))
        .creation_date(creation_date());
    let (bytes, metainfo) = builder.build().map_err(|error| {
        Failure::new(
            format!("{} makes no torrent: {error}", terminal_path(&args.path)),
            "change what the message names",
        )
    })?;
    warn_of_replaced_names(&metainfo, &walk);
    write(&output, &bytes, args.force)?;
    report(args, &output, &metainfo);
    Ok(Exit::Done)
}

/// `--announce` values: each is a tier, commas separate its URLs.
fn tiers(values: &[String]) -> Result<Vec<Vec<String>>, Failure> {
    let mut tiers = Vec::new();
    for value in values {
        let urls = value
            .split(',')
            .map(str::trim)
            .filter(|url| !url.is_empty());
        let tier: Vec<String> = urls.map(str::to_owned).collect();
        tier.iter()
            .try_for_each(|url| check_url(url, &["http", "https", "udp", "ws", "wss"]))?;
        if !tier.is_empty() {
            tiers.push(tier);
        }
    }
    Ok(tiers)
}

fn check_url(url: &str, schemes: &[&str]) -> Result<(), Failure> {
    let parts = url.split_once("://");
    let is_good = parts.is_some_and(|(scheme, rest)| {
        schemes.contains(&scheme.to_ascii_lowercase().as_str())
            && !rest.is_empty()
            && !rest.starts_with('/')
    }) && !url.contains(|c: char| c.is_control() || c.is_whitespace());
    if is_good {
        return Ok(());
    }
    Err(Failure::usage(
        format!("{url} is no URL that can be used here"),
        format!(
            "write SCHEME://HOST/..., the scheme being one of {}",
            schemes.join(", ")
        ),
    ))
}

fn check_piece_length(bytes: u64) -> Result<u32, Failure> {
    let range = PIECE_LENGTH_BYTES_MIN..=u64::from(PIECE_LENGTH_BYTES_MAX);
    u32::try_from(bytes)
        .ok()
        .filter(|_| bytes.is_power_of_two() && range.contains(&bytes))
        .ok_or_else(|| {
            Failure::usage(
                format!("a piece length of {bytes} bytes cannot be used"),
                "choose a power of two from 16KiB to 512MiB, such as 1MiB",
            )
        })
}

/// The torrent's name as raw bytes.
fn name(args: &CreateArgs) -> Result<Vec<u8>, Failure> {
    let name = match &args.name {
        Some(name) => name.as_bytes().to_vec(),
        None => {
            let whole = args
                .path
                .canonicalize()
                .map_err(|error| unreadable(&args.path, &error))?;
            // The name as the user wrote it, when there is one: a link keeps its own.
            let name = args.path.file_name().or_else(|| whole.file_name());
            name.unwrap_or_default().as_bytes().to_vec()
        }
    };
    if matches!(name.as_slice(), b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(Failure::usage(
            format!(
                "\"{}\" cannot be the name of a torrent",
                terminal_bytes(&name)
            ),
            "give a plain name with --name",
        ));
    }
    Ok(name)
}

fn output_path(args: &CreateArgs, name: &[u8]) -> PathBuf {
    let mut file = OsStr::from_bytes(name).to_owned();
    file.push(".torrent");
    match &args.output {
        Some(path) if path.is_dir() => path.join(file),
        Some(path) => path.clone(),
        None => PathBuf::from(file),
    }
}

/// Adds the v1 part: files, and the SHA-1 of their pieces. In a hybrid, pads have each file start a piece.
fn with_v1(
    builder: MetainfoBuilder,
    walk: &Walk,
    piece_length: u32,
    args: &CreateArgs,
) -> Result<MetainfoBuilder, Failure> {
    let (mut sources, mut entries, mut offset) = (Vec::new(), Vec::new(), 0_u64);
    for file in &walk.files {
        let start = offset.next_multiple_of(piece_length.into());
        if args.hybrid && file.length_bytes > 0 && start > offset {
            sources.push(SourceFile {
                path: PathBuf::new(),
                offset,
                length_bytes: start - offset,
                is_pad: true,
            });
            entries.push((Vec::new(), start - offset));
            offset = start;
        }
        sources.push(source(file, offset));
        entries.push((file.elements.clone(), file.length_bytes));
        offset += file.length_bytes;
    }
    let geometry = Geometry::new(offset, piece_length.into());
    let geometry = geometry.map_err(|error| uncut(offset, &error))?;
    let hashes = hash(&sources, &geometry, NO_TREES, args)?;
    let hashes: Vec<&[u8]> = hashes.iter().map(PieceHash::as_bytes).collect();
    let builder = match walk.files.as_slice() {
        [file] if walk.is_single_file => builder.single_file(file.length_bytes),
        _ => builder.files(entries),
    };
    Ok(builder.pieces(hashes.concat()))
}

/// The files of a v2 torrent with the roots of their pieces.
fn tree(
    walk: &Walk,
    name: &[u8],
    piece_length: u32,
    args: &CreateArgs,
) -> Result<Vec<TreeFile>, Failure> {
    let lengths = walk.files.iter().map(|file| file.length_bytes);
    let total = lengths.clone().sum();
    let geometry = Geometry::of_aligned_files(lengths, piece_length.into());
    let geometry = geometry.map_err(|error| uncut(total, &error))?;
    let (mut sources, mut heights, mut offset) = (Vec::new(), Vec::new(), 0);
    for file in &walk.files {
        offset = geometry.file_start(offset);
        sources.push(source(file, offset));
        offset += file.length_bytes;
        let pieces = file.length_bytes.div_ceil(piece_length.into());
        let height = match pieces {
            0 | 1 => merkle::file_height(file.length_bytes),
            _ => merkle::piece_height(piece_length),
        };
        heights.resize(heights.len() + pieces as usize, height);
    }
    let height = |piece: PieceIndex| heights.get(piece.as_usize()).copied();
    let mut roots = hash(&sources, &geometry, &height, args)?.into_iter();
    let files = walk.files.iter().map(|file| {
        let pieces = file.length_bytes.div_ceil(piece_length.into()) as usize;
        let roots = roots.by_ref().take(pieces).filter_map(|hash| match hash {
            PieceHash::Root(root) => Some(root),
            PieceHash::Sha1(_) => None,
        });
        TreeFile {
            path: match walk.is_single_file {
                true => vec![name.to_vec()],
                false => file.elements.clone(),
            },
            length_bytes: file.length_bytes,
            pieces: roots.collect(),
        }
    });
    Ok(files.collect())
}

fn source(file: &Found, offset: u64) -> SourceFile {
    SourceFile {
        path: file.path.clone(),
        offset,
        length_bytes: file.length_bytes,
        is_pad: false,
    }
}

fn uncut(total_bytes: u64, error: &GeometryError) -> Failure {
    Failure::new(
        format!(
            "cannot cut {} into pieces: {error}",
            size::bytes(total_bytes)
        ),
        "choose a larger --piece-length",
    )
}

/// The hashes of all pieces.
fn hash(
    files: &[SourceFile],
    geometry: &Geometry,
    tree_height: TreeHeight<'_>,
    args: &CreateArgs,
) -> Result<Vec<PieceHash>, Failure> {
    let meter = meter::Meter::new("hashing", geometry.total_bytes(), !args.quiet && !args.json);
    let mut hashes = vec![PieceHash::Sha1([0; 20]); geometry.piece_count() as usize];
    let mut failure = None;
    hash_pieces(files, geometry, tree_height, |piece, hash| {
        meter.add(geometry.piece_bytes(piece).into());
        match (hash, hashes.get_mut(piece.as_usize())) {
            (Ok(hash), Some(place)) => {
                *place = hash;
                ControlFlow::Continue(())
            }
            (Err(error), _) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
            (Ok(_), None) => ControlFlow::Break(()),
        }
    });
    meter.clear();
    let Some(error) = failure else {
        return Ok(hashes);
    };
    let path = files.get(error.file).map(|file| file.path.as_path());
    let path = path.unwrap_or(&args.path);
    if error.cause.kind() == std::io::ErrorKind::UnexpectedEof {
        return Err(changed(path));
    }
    Err(unreadable(path, &error.cause))
}

/// Hashes of bytes that are there no longer make a torrent that nobody can seed.
fn changed(path: &Path) -> Failure {
    Failure::new(
        format!("{} changed while it was hashed", terminal_path(path)),
        "run it again when nothing writes to the data",
    )
}

/// Peers replace what is not safe in a name, so the data as it lies here would not be found for seeding.
fn warn_of_replaced_names(metainfo: &Metainfo, walk: &Walk) {
    let Ok(paths) = safe_paths(&metainfo.info) else {
        return;
    };
    let listed = paths.iter().zip(&metainfo.info.files);
    let stored = listed.filter(|(_, file)| !file.attributes.is_pad);
    let pairs = stored.map(|(path, _)| path).zip(&walk.files);
    for (safe, found) in pairs.filter(|_| !walk.is_single_file) {
        let elements = safe.iter().skip(1).map(OsStrExt::as_bytes);
        if !elements.eq(found.elements.iter().map(Vec::as_slice)) {
            output::stderr_line(&format!(
                "warning: the name of {} is not safe everywhere: Gyre calls it {} and seeds it under that name only",
                terminal_path(&found.path),
                terminal_path(safe),
            ));
        }
    }
}

/// Seconds since 1970; SOURCE_DATE_EPOCH stands in for the clock where builds must be repeatable.
fn creation_date() -> Option<i64> {
    if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") {
        return text.parse().ok();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Writes the whole file or none of it.
pub fn write(path: &Path, bytes: &[u8], may_replace: bool) -> Result<(), Failure> {
    let unwritable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure::new(
            format!("cannot write {}: {}", terminal_path(path), io_cause(&error)),
            "name a file in a folder you may write to with --output",
        ),
    };
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let target = if may_replace { Path::new(&part) } else { path };
    let mut file = fs::File::create_new(target).map_err(unwritable)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let moved = written.and_then(|()| match may_replace {
        true => fs::rename(target, path),
        false => Ok(()),
    });
    moved.map_err(|error| {
        let _ = fs::remove_file(target);
        unwritable(error)
    })
}

fn exists(path: &Path) -> Failure {
    Failure::new(
        format!("{} is there already", terminal_path(path)),
        "use --force to replace it, or --output for another name",
    )
}

fn report(args: &CreateArgs, output: &Path, metainfo: &Metainfo) {
    let link = magnet::link(metainfo);
    let info = &metainfo.info;
    let stored = info.files.iter().filter(|file| !file.attributes.is_pad);
    let file_count = stored.count();
    if args.json {
        json::print(&json!({
            "torrent": output.to_string_lossy(),
            "name": info.name,
            "info_hash": metainfo.info_hash.to_string(),
            "info_hash_v2": metainfo.info_hashes.v2().map(|v2| v2.to_string()),
            "magnet": link,
            "total_bytes": info.geometry.total_bytes(),
            "piece_length_bytes": info.geometry.piece_length_bytes(),
            "pieces": info.geometry.piece_count(),
            "files": file_count,
        }));
        return;
    }
    if !args.quiet {
        output::stdout_line(&format!("torrent    {}", terminal_path(output)));
        output::stdout_line(&format!("name       {}", plain::name(&info.name)));
        output::stdout_line(&format!(
            "content    {} in {}, {} × {}",
            size::bytes(info.geometry.total_bytes()),
            size::plural(file_count as u64, "file"),
            size::plural(info.geometry.piece_count().into(), "piece"),
            size::round_bytes(info.geometry.piece_length_bytes().into()),
        ));
    }
    let hashes = &metainfo.info_hashes;
    if let Some(v1) = hashes.v1() {
        output::stdout_line(&format!("info_hash  {v1}"));
    }
    if let Some(v2) = hashes.v2() {
        output::stdout_line(&format!("info_hash  {v2} (v2)"));
    }
    output::stdout_line(&format!("magnet     {link}"));
}
