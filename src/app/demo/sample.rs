//! Sample data for the demo: a small tree of files that do not compress. Layer 7.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::base::Rng;

/// Less than this is shared before anybody has looked.
pub const SIZE_MIN: u64 = 1 << 20;

const README: &str = "Sample data made by `gyre demo`. Nothing in here means anything.\n";

/// Written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// Files by path and size, `total_bytes` in all: large and small ones, an empty one, pieces that span several.
pub fn plan(total_bytes: u64) -> Vec<(&'static str, u64)> {
    let mut files = vec![
        ("README.txt", README.len() as u64),
        ("empty", 0),
        ("music/one.bin", total_bytes / 16),
        ("music/three.bin", total_bytes / 32 + 1),
        ("music/two.bin", total_bytes / 16 + 12_345),
        ("pictures/large.bin", total_bytes / 128),
        ("pictures/small.bin", 1),
    ];
    let so_far: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    files.push(("film.bin", total_bytes.saturating_sub(so_far)));
    files
}

/// Writes the files below `root`; `on_bytes` hears of each write and may end it.
///
/// # Errors
/// A file cannot be written, or `on_bytes` said so.
pub fn write(
    root: &Path,
    files: &[(&str, u64)],
    mut on_bytes: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut rng = Rng::new(0x6779_7265);
    let mut buf = Vec::with_capacity(WRITE_BYTES);
    for (name, bytes) in files {
        let path = root.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::create(path)?;
        if *name == "README.txt" {
            file.write_all(README.as_bytes())?;
            continue;
        }
        let mut left = *bytes;
        while left > 0 {
            let length = usize::try_from(left).map_or(WRITE_BYTES, |left| left.min(WRITE_BYTES));
            buf.clear();
            while buf.len() < length {
                buf.extend_from_slice(&rng.next_u64().to_le_bytes());
            }
            file.write_all(buf.get(..length).unwrap_or_default())?;
            left -= length as u64;
            on_bytes(length as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_have_the_size_asked_for() {
        for total in [SIZE_MIN, (100 << 20) + 7] {
            let sum: u64 = plan(total).iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(sum, total);
        }
    }
}
