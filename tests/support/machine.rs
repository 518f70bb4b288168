//! What some tests need of the machine: small file systems, read-only folders, an ordinary user. Most of it needs root;
//! what cannot be had is said in a line that `scripts/test` reads.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::program;

/// The user `nobody` of every distribution.
const ORDINARY_USER: u32 = 65_534;

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// False, and a line that says so, without root.
pub fn has_root(test: &str) -> bool {
    if !is_root() {
        skipped(test, "needs root");
    }
    is_root()
}

pub fn skipped(test: &str, reason: &str) {
    println!("skipped: {test}: {reason}");
}

/// Runs a system command; its stderr when it fails.
pub fn system(program: &str, arguments: &[&OsStr]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A mounted folder, unmounted when dropped.
pub struct Mounted {
    path: PathBuf,
    _folder: TempDir,
}

impl Mounted {
    /// A file system in memory of so many bytes. None, and a line, when it cannot be mounted.
    pub fn small(test: &str, bytes: u64) -> Option<Mounted> {
        let options = format!("size={bytes},mode=0777");
        let arguments = ["-t", "tmpfs", "-o", &options, "gyre-test"].map(OsStr::new);
        Mounted::mount(test, &arguments)
    }

    /// Another view of `folder` that cannot be written to.
    pub fn read_only(test: &str, folder: &Path) -> Option<Mounted> {
        let arguments = ["-o", "bind,ro"].map(OsStr::new);
        let arguments = [&arguments[..], &[folder.as_os_str()]].concat();
        Mounted::mount(test, &arguments)
    }

    /// A file system that knows no fallocate, and does not tell how much is free.
    pub fn plain(test: &str) -> Option<Mounted> {
        Mounted::mount(test, &["-t", "ramfs", "gyre-test"].map(OsStr::new))
    }

    fn mount(test: &str, arguments: &[&OsStr]) -> Option<Mounted> {
        if !has_root(test) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mounted");
        std::fs::create_dir(&path).unwrap();
        let arguments = [arguments, &[path.as_os_str()]].concat();
        match system("mount", &arguments) {
            Ok(()) => Some(Mounted {
                path,
                _folder: folder,
            }),
            Err(error) => {
                skipped(test, &format!("mount: {}", error.trim()));
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a child that a failing test has not ended yet may have files open there.
        let _ = system("umount", &[OsStr::new("-l"), self.path.as_os_str()]);
    }
}

/// The command as an ordinary user, whose limits and permissions count. `limits` are given to `prlimit` first.
///
/// The program lies in a copy that everybody may run: the build folder may be closed to others.
pub fn as_ordinary_user(limits: &[&str]) -> Command {
    as_user(ORDINARY_USER, limits)
}

/// The same as a user that no other test is: what is counted by user is this test's alone. Without root it is whoever
/// runs the tests.
pub fn as_lone_user(limits: &[&str]) -> Command {
    as_user(1_000_000 + std::process::id(), limits)
}

fn as_user(user: u32, limits: &[&str]) -> Command {
    static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let wrapper = program::command();
    let (_, copy) = PROGRAM.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("gyre");
        std::fs::copy(wrapper.get_program(), &copy).unwrap();
        open_to_all(folder.path());
        (folder, copy)
    });
    let mut command = program::clean(Command::new("prlimit"));
    command.args(limits);
    if is_root() {
        let user = user.to_string();
        command.args([
            "setpriv",
            "--clear-groups",
            "--reuid",
            &user,
            "--regid",
            &user,
        ]);
    }
    command.arg(copy);
    command
}

/// Copies a file, or a folder with all in it.
pub fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// Lets everybody read and write what is in the folder.
pub fn open_to_all(folder: &Path) {
    let mode = if folder.is_dir() { 0o777 } else { 0o666 };
    std::fs::set_permissions(
        folder,
        std::fs::Permissions::from_mode(mode | executable(folder)),
    )
    .unwrap();
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            open_to_all(&entry.path());
        }
    }
}

fn executable(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o111
}
