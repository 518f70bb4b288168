//! Which folders of torrents are on the file systems that policies name. Layer 6.
//!
//! A file system is named by where it is mounted, and known by its device: so links to its folders count, and one that is not
//! mounted has nothing on it, least of all what lies in the folder below it. Asking one may take for ever: all are
//! asked on a thread of its own, one at a time, and nobody waits for it longer than [`WAIT_MAX`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use super::handle::Control;
use super::policy::Folders;
use super::relocate::off_thread;
use crate::base::InfoHash;
use crate::swarm::bandwidth::RuleId;

/// Between two looks, as for disks that go away.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// A torrent begins without the policies of its device rather than wait longer.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// What a look found: the folders on each policy's device, and the policies whose devices are none.
#[derive(Default)]
struct Look {
    folders: BTreeMap<RuleId, Folders>,
    missing: BTreeSet<RuleId>,
}

/// Looks until the daemon ends.
pub async fn watch(control: Control) {
    let mut missing = BTreeSet::new();
    loop {
        let policies = &control.inner.torrents.policies;
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = policies.changed.notified() => {}
        }
        if !policies.have_devices() {
            continue;
        }
        let Some((look, changed)) = control.look_at_devices(None).await else {
            continue;
        };
        tell(&control, &look.missing, &missing);
        missing = look.missing;
        if !changed.is_empty() {
            control.weigh_queue_anew();
        }
        for info_hash in changed {
            // One that went meanwhile needs no policies.
            let _ = control.put_in_force(info_hash).await;
        }
    }
}

fn tell(control: &Control, missing: &BTreeSet<RuleId>, before: &BTreeSet<RuleId>) {
    for one in control.inner.torrents.policies.policies().iter() {
        let device = one.policy.device.as_ref();
        let is_news = missing.contains(&one.id) && !before.contains(&one.id);
        if let Some(device) = device.filter(|_| is_news) {
            let (policy, device) = (&one.policy.name, device.display());
            warn!(policy, %device, "its device is not mounted there, so it has no torrents; hint: findmnt lists what is");
        }
    }
}

impl Control {
    /// Finds out what a folder is on before a torrent in it begins; without one, what those of all torrents are on.
    pub(super) async fn know_devices(&self, folder: Option<&Path>) {
        let policies = &self.inner.torrents.policies;
        if policies.have_devices() && folder.is_none_or(|folder| !policies.has_looked_at(folder)) {
            let look = self.look_at_devices(folder.map(Path::to_path_buf));
            if tokio::time::timeout(WAIT_MAX, look).await.is_err() {
                warn!("a file system does not answer: policies of devices do not count yet");
            }
        }
    }

    /// Looks at the folders of all torrents, and at one more: what was found, and the torrents that it is news for.
    async fn look_at_devices(&self, more: Option<PathBuf>) -> Option<(Look, Vec<InfoHash>)> {
        let policies = &self.inner.torrents.policies;
        let turn = policies.looking.clone().lock_owned().await;
        let of_rules: Vec<(RuleId, PathBuf)> = policies.devices();
        let mut folders: BTreeSet<PathBuf> = more.into_iter().collect();
        for row in self.inner.torrents.rows().values() {
            if !folders.contains(&row.folder) {
                folders.insert(row.folder.clone());
            }
        }
        // The turn lasts as long as the thread, not as long as somebody waits for it.
        let looked = off_thread(move || (look(&folders, of_rules), folders, turn)).await;
        let (look, folders, _turn) = looked?;
        let changed = policies.set_folders(&look.folders, folders);
        let rows = self.inner.torrents.rows();
        let changed = rows.values().filter(|row| changed.contains(&row.folder));
        let changed = changed.map(|row| row.info_hash).collect();
        Some((look, changed))
    }
}

fn look(folders: &BTreeSet<PathBuf>, of_rules: Vec<(RuleId, PathBuf)>) -> Look {
    // A folder that is not there yet will lie where the nearest one above it does.
    let device = |folder: &Path| {
        let mut there = folder
            .ancestors()
            .filter_map(|one| std::fs::metadata(one).ok());
        there.next().map(|there| there.dev())
    };
    let devices = folders.iter().map(|folder| (folder, device(folder)));
    let devices: Vec<(&PathBuf, Option<u64>)> = devices.collect();
    let mut look = Look::default();
    for (rule, mount) in of_rules {
        let Some(mounted) = mounted_at(&mount) else {
            look.missing.insert(rule);
            look.folders.insert(rule, Folders::default());
            continue;
        };
        let on_it = devices
            .iter()
            .filter(|(_, device)| *device == Some(mounted));
        let on_it = on_it.map(|(folder, _)| (*folder).clone());
        look.folders.insert(rule, on_it.collect());
    }
    look
}

/// The device that is mounted there.
fn mounted_at(path: &Path) -> Option<u64> {
    let there = std::fs::metadata(path).ok()?;
    let above = std::fs::metadata(path.join("..")).ok()?;
    // The root is above itself.
    let is_mount = there.dev() != above.dev() || there.ino() == above.ino();
    is_mount.then(|| there.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_on_what_is_mounted_and_nothing_is_on_what_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self", &link).unwrap();
        let [plain, absent] = ["plain", "plain/absent/below"].map(|name| folder.path().join(name));
        std::fs::create_dir(&plain).unwrap();
        let folders = [&link, &plain, &absent].map(Clone::clone).into();
        let of_rules = [(1, "/proc"), (2, "/proc/self"), (3, "/nowhere")];
        let of_rules = of_rules.map(|(rule, path)| (RuleId(rule), PathBuf::from(path)));
        let look = look(&folders, of_rules.to_vec());
        let on = |rule| look.folders[&RuleId(rule)].iter().collect::<Vec<_>>();
        assert_eq!(on(1), [&link], "by its device, not by its name");
        assert!(on(2).is_empty() && on(3).is_empty());
        assert_eq!(look.missing, [RuleId(2), RuleId(3)].into());
        // What is not there yet is on what is above it.
        let own = std::fs::metadata(folder.path()).unwrap().dev();
        let mount = folder
            .path()
            .ancestors()
            .find(|one| mounted_at(one) == Some(own));
        if let Some(mount) = mount {
            let look = self::look(&folders, vec![(RuleId(4), mount.to_path_buf())]);
            assert!(look.folders[&RuleId(4)].contains(&absent));
        }
    }
}
