//! `torrent-add`. Layer 6.

use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::args::Args;
use super::{Fault, Rpc};
use crate::daemon::control::backend::{Backend, FileChange, NewSource, NewTorrent};
use crate::daemon::control::json::Json;

/// The largest .torrent file that is taken (HOSTILE.md T2).
const TORRENT_BYTES_MAX: usize = 64 << 20;

/// Clients differ in whether they pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl<B: Backend> Rpc<B> {
    pub(super) async fn torrent_add(&self, args: &Args, out: &mut Json) -> Result<(), Fault> {
        let source = self.source(args).await?;
        let folder = match args.text("download_dir")?.filter(|dir| !dir.is_empty()) {
            Some(folder) => Some(self.allowed(folder).await?),
            None => None,
        };
        let starts = self.backend().session().starts_added;
        let torrent = NewTorrent {
            source,
            folder,
            is_paused: args.bool("paused")?.unwrap_or(!starts),
            labels: args.texts("labels")?.unwrap_or_default(),
            files: file_changes(args)?,
            priority: args.priority("bandwidth_priority")?,
            peers_max: peers_max(args)?,
            is_sequential: args.bool("sequential_download")?.unwrap_or(false),
        };
        let added = self.backend().add(torrent).await?;
        self.outdate();
        out.open(b'{');
        out.key(match added.is_duplicate {
            true => "torrent-duplicate",
            false => "torrent-added",
        });
        out.open(b'{');
        out.key("hashString");
        out.text(&added.info_hash.to_string());
        out.key("id");
        out.uint(added.id);
        out.key("name");
        out.text(&added.name);
        out.close(b'}');
        out.close(b'}');
        Ok(())
    }

    async fn source(&self, args: &Args) -> Result<NewSource, Fault> {
        if let Some(text) = args.text("metainfo")?.filter(|text| !text.is_empty()) {
            // Some clients break the lines.
            let clean: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
            let bytes = BASE64.decode(clean).ok();
            let bytes = bytes.filter(|bytes| bytes.len() <= TORRENT_BYTES_MAX);
            let bad = || Fault::new(4, "metainfo is no base64 of a .torrent file");
            return bytes.map(NewSource::Torrent).ok_or_else(bad);
        }
        let name = args.text("filename")?.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Fault::bad_argument("no filename or metainfo specified"))?;
        let scheme = name.split_once(':').map(|(scheme, _)| scheme);
        let scheme = scheme.map(str::to_ascii_lowercase);
        match scheme.as_deref() {
            Some("magnet") => Ok(NewSource::Magnet(name.to_owned())),
            // The daemon reaches addresses that whoever asks may not (HOSTILE.md A7): it fetches nothing for others.
            Some("http" | "https" | "ftp") => Err(Fault::new(
                7,
                "the daemon fetches no addresses: download the .torrent file and add that",
            )),
            _ => {
                let path = self.allowed(name).await?;
                let read = tokio::task::spawn_blocking(move || read(&path)).await;
                let bytes = read.ok().flatten();
                let bad = || Fault::new(4, "that is no .torrent file the daemon can read");
                bytes.map(NewSource::Torrent).ok_or_else(bad)
            }
        }
    }
}

fn read(path: &PathBuf) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).ok()?;
    // A pipe or device might never end.
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    let limit = TORRENT_BYTES_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= TORRENT_BYTES_MAX).then_some(bytes)
}

/// What `files-wanted` and its like say, in the order in which they count.
pub(super) fn file_changes(args: &Args) -> Result<Vec<(FileChange, Vec<usize>)>, Fault> {
    let mut changes = Vec::new();
    for (name, change) in [
        ("files_unwanted", FileChange::Wanted(false)),
        ("files_wanted", FileChange::Wanted(true)),
        ("priority_high", FileChange::Priority(1)),
        ("priority_low", FileChange::Priority(-1)),
        ("priority_normal", FileChange::Priority(0)),
    ] {
        if let Some(indices) = args.indices(name)? {
            changes.push((change, indices));
        }
    }
    Ok(changes)
}

pub(super) fn peers_max(args: &Args) -> Result<Option<u32>, Fault> {
    let count = args.uint("peer_limit")?;
    Ok(count.map(|count| u32::try_from(count).unwrap_or(u32::MAX)))
}
