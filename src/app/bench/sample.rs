//! Sample torrents and their data. Layer 7.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::load::{Content, ContentFile};
use crate::app::escape::terminal_path;
use crate::app::exit::{Exit, Failure, io_cause};
use crate::app::fetch::Route;
use crate::app::hashing::{NO_TREES, SourceFile, TreeHeight, hash_pieces};
use crate::app::{signals, source, verify};
use crate::base::{Geometry, Rng};
use crate::wire::merkle::{self, Node};
use crate::wire::metainfo::{Metainfo, MetainfoBuilder, TreeFile};

/// Written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// What a sample looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub torrents: u32,
    pub files: u32,
    /// Of one torrent.
    pub total_bytes: u64,
    pub piece_length_bytes: u32,
    /// Of BitTorrent v2 alone.
    pub is_v2: bool,
}

/// Torrents with their data on disk.
pub struct Sample {
    pub data: PathBuf,
    pub torrents: Vec<SampleTorrent>,
}

/// One of them.
pub struct SampleTorrent {
    /// The .torrent, which names no tracker.
    pub file: PathBuf,
    pub metainfo: Metainfo,
    pub content: Content,
}

/// A folder for a run; a temporary one goes with this value.
pub struct Folder {
    pub path: PathBuf,
    is_temporary: bool,
}

impl Folder {
    /// The folder that was named, or one below the temporary folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(named: Option<&Path>) -> Result<Folder, Failure> {
        let temporary = || std::env::temp_dir().join(format!("gyre-bench-{}", std::process::id()));
        let path = named.map_or_else(temporary, Path::to_owned);
        let made = fs::create_dir_all(&path).and_then(|()| fs::canonicalize(&path));
        let path = made.map_err(|error| {
            Failure::new(
                format!("cannot make {}: {}", terminal_path(&path), io_cause(&error)),
                "name a folder you may write to with --dir",
            )
        })?;
        if named.is_none() {
            let folder = path.clone();
            signals::on_first(move || {
                let _ = fs::remove_dir_all(folder);
                let code = signals::received().map_or(1, Exit::code);
                std::process::exit(code.into());
            });
        }
        Ok(Folder {
            path,
            is_temporary: named.is_none(),
        })
    }

    /// A fresh folder in it.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn fresh(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_temporary {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Sample {
    /// Makes the sample in `folder`, or takes the one that an earlier run left there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn make(folder: &Folder, shape: Shape) -> Result<Sample, Failure> {
        let data = folder.path.join("data");
        let mut torrents = Vec::new();
        for number in 0..shape.torrents {
            let torrent = sample_torrent(folder, &data, shape, number).map_err(|error| {
                Failure::new(
                    format!(
                        "cannot make sample data in {}: {}",
                        terminal_path(&data),
                        io_cause(&error)
                    ),
                    "name a folder with enough space with --dir, or choose a smaller --size",
                )
            })?;
            torrents.push(torrent);
        }
        Ok(Sample { data, torrents })
    }

    /// Torrents and data that the user has.
    ///
    /// # Errors
    /// A torrent cannot be loaded or laid out.
    pub fn given(files: &[PathBuf], data: &Path) -> Result<Sample, Failure> {
        let mut torrents = Vec::new();
        for file in files {
            let metainfo = source::load_torrent(file.as_os_str(), &Route::default())?;
            let content = content(&metainfo, data)?;
            torrents.push(SampleTorrent {
                file: file.clone(),
                metainfo,
                content,
            });
        }
        Ok(Sample {
            data: data.to_owned(),
            torrents,
        })
    }

    /// Bytes of all torrents.
    pub fn total_bytes(&self) -> u64 {
        self.torrents.iter().map(|t| t.content.total_bytes).sum()
    }

    pub fn contents(&self) -> Vec<Content> {
        self.torrents.iter().map(|t| t.content.clone()).collect()
    }

    fn files(&self) -> impl Iterator<Item = &ContentFile> {
        let files = self.torrents.iter().flat_map(|t| &t.content.files);
        files.filter(|file| !file.is_pad && file.length_bytes > 0)
    }

    /// Reads everything once, so that it lies in the page cache.
    pub fn warm(&self) -> io::Result<()> {
        for file in self.files() {
            io::copy(&mut File::open(&file.path)?, &mut io::sink())?;
        }
        Ok(())
    }

    /// Drops everything from the page cache. Pages that a process has mapped stay.
    pub fn chill(&self) -> io::Result<()> {
        for file in self.files() {
            let file = File::open(&file.path)?;
            // Only pages that are written back are dropped.
            file.sync_data()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }

    /// Gives all files to this user, who else could not seed them as their owner.
    pub fn give_to(&self, user: u32) -> io::Result<()> {
        let (uid, gid) = (
            nix::unistd::Uid::from_raw(user),
            nix::unistd::Gid::from_raw(user),
        );
        for file in self.files() {
            nix::unistd::chown(&file.path, Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

impl SampleTorrent {
    /// Writes the .torrent with this tracker in it.
    pub fn with_tracker(&self, to: &Path, url: &str) -> io::Result<()> {
        let mut metainfo = self.metainfo.clone();
        metainfo.announce_tiers = vec![vec![url.to_owned()]];
        fs::write(to, metainfo.to_torrent())
    }

    /// Whether `folder` holds all of the torrent, every piece of it hashed.
    pub fn is_whole_in(&self, folder: &Path) -> bool {
        let Ok(content) = content(&self.metainfo, folder) else {
            return false;
        };
        let mut good = 0;
        let hashes = &self.metainfo.info.piece_hashes;
        let geometry = &self.metainfo.info.geometry;
        let trees = |piece| hashes.tree_height(piece);
        hash_pieces(&sources(&content), geometry, &trees, |piece, hash| {
            good += u32::from(hash.is_ok_and(|hash| hash == hashes.get(piece)));
            ControlFlow::Continue(())
        });
        good == geometry.piece_count()
    }
}

fn content(metainfo: &Metainfo, data: &Path) -> Result<Content, Failure> {
    let layout = verify::layout(metainfo)?;
    let paths = verify::data_paths(&layout, data);
    let file = |(file, path): (&crate::storage::layout::LayoutFile, PathBuf)| ContentFile {
        path,
        offset: file.offset,
        length_bytes: file.length_bytes,
        is_pad: file.is_pad,
    };
    Ok(Content {
        info_hash: *metainfo.info_hash.as_bytes(),
        total_bytes: layout.geometry().total_bytes(),
        piece_length_bytes: layout.geometry().piece_length_bytes(),
        files: layout.files().iter().zip(paths).map(file).collect(),
    })
}

fn sources(content: &Content) -> Vec<SourceFile> {
    let source = |file: &ContentFile| SourceFile {
        path: file.path.clone(),
        offset: file.offset,
        length_bytes: file.length_bytes,
        is_pad: file.is_pad,
    };
    content.files.iter().map(source).collect()
}

fn sample_torrent(
    folder: &Folder,
    data: &Path,
    shape: Shape,
    number: u32,
) -> io::Result<SampleTorrent> {
    let failed = |failure: Failure| io::Error::other(failure.message().to_owned());
    let name = format!(
        "sample-{}-{}-{}-{number}",
        shape.total_bytes, shape.piece_length_bytes, shape.files
    );
    let version = if shape.is_v2 { "-v2" } else { "" };
    let file = folder.path.join(format!("{name}{version}.torrent"));
    if let Ok(bytes) = fs::read(&file) {
        let metainfo = Metainfo::parse(&bytes).map_err(io::Error::other)?;
        let content = content(&metainfo, data).map_err(failed)?;
        if content.files.iter().all(is_there) {
            return Ok(SampleTorrent {
                file,
                metainfo,
                content,
            });
        }
    }
    let lengths = file_lengths(shape);
    let elements = |at: usize| {
        vec![
            format!("{:02}", at / 50).into_bytes(),
            format!("{at:04}.bin").into_bytes(),
        ]
    };
    let builder = MetainfoBuilder::new(name.as_bytes(), shape.piece_length_bytes);
    let (builder, paths) = match lengths.as_slice() {
        [length] => (builder.single_file(*length), vec![data.join(&name)]),
        _ => {
            let files = lengths.iter().enumerate();
            let files: Vec<_> = files.map(|(at, length)| (elements(at), *length)).collect();
            let path = |at: usize| {
                data.join(&name)
                    .join(format!("{:02}", at / 50))
                    .join(format!("{at:04}.bin"))
            };
            (builder.files(files), (0..lengths.len()).map(path).collect())
        }
    };
    let mut rng = Rng::new(u64::from(number) << 32 ^ shape.total_bytes);
    let mut offset = 0;
    let mut placed = Vec::new();
    for (path, length_bytes) in paths.into_iter().zip(lengths) {
        write_noise(&path, length_bytes, &mut rng)?;
        placed.push(SourceFile {
            path,
            offset,
            length_bytes,
            is_pad: false,
        });
        offset += length_bytes;
    }
    let geometry = Geometry::new(shape.total_bytes, shape.piece_length_bytes.into());
    let geometry = geometry.map_err(io::Error::other)?;
    let builder = match shape.is_v2 {
        false => builder.pieces(hash_all(&placed, &geometry, NO_TREES)?.concat()),
        true => builder.v2_only().tree(vec![TreeFile {
            path: vec![name.clone().into_bytes()],
            length_bytes: shape.total_bytes,
            pieces: roots(&placed, &geometry)?,
        }]),
    };
    let (bytes, metainfo) = builder.build().map_err(io::Error::other)?;
    let content = content(&metainfo, data).map_err(failed)?;
    // Last: a .torrent stands for data that is complete.
    fs::write(&file, bytes)?;
    Ok(SampleTorrent {
        file,
        metainfo,
        content,
    })
}

fn is_there(file: &ContentFile) -> bool {
    fs::metadata(&file.path).is_ok_and(|metadata| metadata.len() == file.length_bytes)
}

/// As even as can be; borders fall where they fall.
fn file_lengths(shape: Shape) -> Vec<u64> {
    let files = u64::from(shape.files.max(1));
    let end = |at: u64| shape.total_bytes * at / files;
    (0..files).map(|at| end(at + 1) - end(at)).collect()
}

/// Bytes that no disk compresses, written back before anything is measured.
fn write_noise(path: &Path, bytes: u64, rng: &mut Rng) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create(path)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        let now = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        file.write_all(chunk.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    file.sync_all()
}

/// The roots over the pieces of one file.
fn roots(files: &[SourceFile], geometry: &Geometry) -> io::Result<Vec<Node>> {
    let height = match geometry.piece_count() {
        1 => merkle::file_height(geometry.total_bytes()),
        _ => merkle::piece_height(geometry.piece_length_bytes()),
    };
    let hashes = hash_all(files, geometry, &|_| Some(height))?.concat();
    let (roots, _) = hashes.as_slice().as_chunks();
    Ok(roots.to_vec())
}

/// The hash of each piece.
fn hash_all(
    files: &[SourceFile],
    geometry: &Geometry,
    trees: TreeHeight<'_>,
) -> io::Result<Vec<Vec<u8>>> {
    let mut hashes = vec![Vec::new(); geometry.piece_count() as usize];
    let mut failure = None;
    hash_pieces(files, geometry, trees, |piece, hash| {
        match (hash, hashes.get_mut(piece.as_usize())) {
            (Ok(hash), Some(place)) => *place = hash.as_bytes().to_vec(),
            (Err(error), _) => failure = Some(error.cause),
            (Ok(_), None) => {}
        }
        ControlFlow::Continue(())
    });
    failure.map_or(Ok(hashes), Err)
}
