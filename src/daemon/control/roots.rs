//! Which folders may be named from outside. Layer 6.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::backend::Refusal;

/// The folders below which data may lie.
#[derive(Clone, Debug, Default)]
pub struct Roots(Vec<PathBuf>);

impl Roots {
    /// These, beside the daemon's folder for downloads.
    pub fn new(roots: Vec<PathBuf>) -> Roots {
        Roots(roots)
    }

    /// The folder, if it is absolute and lies below a root or in `downloads`, links of the file system followed. It
    /// need not be there.
    ///
    /// # Errors
    /// It does not, or may not be looked at.
    pub async fn allow(&self, folder: &str, downloads: &str) -> Result<PathBuf, Refusal> {
        let path = PathBuf::from(folder);
        if !path.is_absolute() {
            let words = format!("the folder {folder} is not absolute");
            return Err(Refusal::BadPath(words));
        }
        let climbs = |part: Component<'_>| part == Component::ParentDir;
        if folder.contains('\0') || path.components().any(climbs) {
            return Err(outside(folder));
        }
        let roots = self.0.iter().cloned().chain([PathBuf::from(downloads)]);
        let roots: Vec<PathBuf> = roots.filter(|root| root.is_absolute()).collect();
        let asked = path.clone();
        // Looking at the disk may take its time: not on this thread.
        let is_inside = tokio::task::spawn_blocking(move || {
            let real = real_path(&asked).ok()?;
            let roots = roots.iter().filter_map(|root| real_path(root).ok());
            Some(roots.into_iter().any(|root| real.starts_with(root)))
        });
        match is_inside.await {
            Ok(Some(true)) => Ok(path),
            _ => Err(outside(folder)),
        }
    }
}

fn outside(folder: &str) -> Refusal {
    let words = format!("the folder {folder} is outside those that the daemon's settings allow");
    Refusal::BadPath(words)
}

/// Where a path leads: the part of it that is there, links followed, with the rest behind.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    let mut rest = Vec::new();
    let mut present = path;
    loop {
        match std::fs::canonicalize(present) {
            Ok(mut real) => {
                real.extend(rest.iter().rev());
                return Ok(real);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere is there, though where it leads is not.
                if std::fs::symlink_metadata(present).is_ok() {
                    return Err(error);
                }
                let (Some(parent), Some(name)) = (present.parent(), present.file_name()) else {
                    return Err(error);
                };
                rest.push(name.to_owned());
                present = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(roots: &Roots, folder: &str, downloads: &Path) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let asked = async { roots.allow(folder, downloads.to_str().unwrap()).await };
        runtime.unwrap().block_on(asked).is_ok()
    }

    #[test]
    fn folders_outside_the_roots_are_refused_however_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (downloads, other) = (base.join("downloads"), base.join("other"));
        let extra = base.join("extra");
        for folder in [&downloads, &other, &extra] {
            std::fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink(&other, downloads.join("out")).unwrap();
        std::os::unix::fs::symlink("nowhere", downloads.join("broken")).unwrap();
        let roots = Roots::new(vec![extra.clone()]);
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        for good in [
            downloads.clone(),
            downloads.join("a/b"),
            extra.join("x"),
            downloads.join("."),
        ] {
            assert!(allow(&roots, &text(good.clone()), &downloads), "{good:?}");
        }
        for bad in [
            PathBuf::from("/etc"),
            base.clone(),
            other.clone(),
            base.join("downloads2"),
            downloads.join("../other"),
            downloads.join("out"),
            downloads.join("out/deeper"),
            downloads.join("broken/x"),
            PathBuf::from("downloads"),
        ] {
            assert!(!allow(&roots, &text(bad.clone()), &downloads), "{bad:?}");
        }
    }
}
