//! A disk that goes away under torrents, and comes back.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::support::machine::{has_root, skipped, system};
use crate::support::{Daemon, Sample};

/// A file system in an image file, mounted and unmounted at will.
struct Disk<'a> {
    image: &'a Path,
    at: &'a Path,
}

impl Disk<'_> {
    fn mount(&self) -> Result<(), String> {
        let arguments = [
            "-o".as_ref(),
            "loop".as_ref(),
            self.image.as_os_str(),
            self.at.as_os_str(),
        ];
        system("mount", &arguments)
    }

    /// As a cable that is pulled: nobody is asked.
    fn pull(&self) {
        system("umount", &["-l".as_ref(), self.at.as_os_str()]).unwrap();
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = system("umount", &[OsStr::new("-l"), self.at.as_os_str()]);
    }
}

fn is_missing(torrent: &Value) -> bool {
    let trouble = torrent["trouble"].as_str().unwrap_or_default();
    torrent["activity"] == "Failed" && trouble.contains("missing files")
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_disk_that_goes_away_is_told_waited_for_and_not_written_beside() {
    let test = "a_disk_that_goes_away";
    if !has_root(test) {
        return;
    }
    let sample = Sample::tree(&[("a", 2_000_000), ("b", 1_000_000)], 65_536, &[]);
    let (image, at) = (sample.folder.path().join("image"), sample.dir("mounted"));
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(32 << 20).unwrap();
    if let Err(error) = system(
        "mkfs.ext4",
        &["-q".as_ref(), "-F".as_ref(), image.as_os_str()],
    ) {
        return skipped(test, &error);
    }
    let disk = Disk {
        image: &image,
        at: &at,
    };
    if let Err(error) = disk.mount() {
        return skipped(test, &error);
    }
    let folder = at.join("torrents");
    std::fs::create_dir(&folder).unwrap();
    crate::support::machine::copy(&sample.content, &folder.join("sample"));

    let state = sample.dir("state");
    let mut daemon = Daemon::start(&state);
    daemon.add(&sample, &folder);
    daemon.seeding();
    disk.pull();
    daemon.torrent_until("missing while it runs", is_missing);
    assert!(is_empty(&at), "something was made on the mount point");
    disk.mount().unwrap();
    let back = daemon.seeding();
    assert_eq!(back["trouble"], Value::Null, "{back}");
    assert_eq!(back["pieces_checked"], 0, "{back}");
    daemon.terminate();

    disk.pull();
    let mut daemon = Daemon::start(&state);
    daemon.torrent_until("missing at the start", is_missing);
    assert!(is_empty(&at), "something was made on the mount point");
    disk.mount().unwrap();
    daemon.seeding();

    // The same within a file system: what is moved away by hand and back.
    std::fs::rename(folder.join("sample"), at.join("elsewhere")).unwrap();
    daemon.terminate();
    let mut daemon = Daemon::start(&state);
    daemon.torrent_until("moved away", is_missing);
    assert!(is_empty(&folder));
    std::fs::rename(at.join("elsewhere"), folder.join("sample")).unwrap();
    daemon.seeding();
    daemon.terminate();
}
