//! A daemon that is none: torrents in memory, every command noted.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use gyre::base::InfoHash;
use gyre::daemon::control::backend::*;
use gyre::wire::magnet::Magnet;
use gyre::wire::metainfo::Metainfo;

#[derive(Default)]
pub struct Fake {
    pub torrents: RefCell<Vec<Torrent>>,
    pub files: RefCell<Vec<File>>,
    pub session: RefCell<Session>,
    pub groups: RefCell<Vec<Group>>,
    /// Given back once the torrents are known.
    pub unknown: Arc<tokio::sync::Mutex<()>>,
    /// What was done, in words.
    pub log: RefCell<Vec<String>>,
}

pub fn torrent(id: u64) -> Torrent {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&id.to_be_bytes());
    let mut torrent = Torrent::nothing(id, InfoHash::new(bytes), &format!("torrent {id}"));
    torrent.folder = "/srv".into();
    torrent.wanted_bytes = 1_000_000;
    torrent.total_bytes = 1_000_000;
    torrent.have_bytes = 1_000_000;
    torrent.status = Status::Seeding;
    torrent.files = 2;
    torrent.pieces = 10;
    torrent.piece_length_bytes = 100_000;
    torrent.uploaded_bytes = id * 1_000;
    torrent.trackers = vec![(0, "http://tracker.example.org/announce".to_owned())].into();
    torrent.tracker_host = "tracker.example.org".into();
    torrent
}

impl Fake {
    pub fn with(torrents: impl IntoIterator<Item = Torrent>, downloads: &Path) -> Fake {
        let fake = Fake::default();
        fake.torrents.borrow_mut().extend(torrents);
        {
            let mut session = fake.session.borrow_mut();
            session.downloads = downloads.to_str().unwrap().to_owned();
            session.starts_added = true;
            session.peer_port = 6881;
            session.peers_max = 500;
            session.encryption = "preferred";
            (session.has_tcp, session.has_utp) = (true, true);
        }
        let file = |name: &str, pieces| File {
            name: name.to_owned(),
            length_bytes: 500_000,
            have_bytes: 500_000,
            is_wanted: true,
            priority: 0,
            pieces,
        };
        *fake.files.borrow_mut() = vec![file("t/a.bin", (0, 5)), file("t/b.bin", (5, 10))];
        fake
    }

    fn note(&self, words: String) {
        self.log.borrow_mut().push(words);
    }

    fn edit<T>(
        &self,
        info_hash: InfoHash,
        edit: impl FnOnce(&mut Torrent) -> T,
    ) -> Result<T, Refusal> {
        let mut torrents = self.torrents.borrow_mut();
        let torrent = torrents.iter_mut().find(|one| one.info_hash == info_hash);
        torrent.map(edit).ok_or(Refusal::Unknown(info_hash))
    }

    fn change_files(&self, changes: &[(FileChange, Vec<usize>)]) -> Result<(), Refusal> {
        let mut files = self.files.borrow_mut();
        for (change, indices) in changes {
            let all: Vec<usize> = (0..files.len()).collect();
            for index in if indices.is_empty() { &all } else { indices } {
                let file = files.get_mut(*index);
                let file = file.ok_or_else(|| Refusal::BadValue("no such file".into()))?;
                match change {
                    FileChange::Wanted(is_wanted) => file.is_wanted = *is_wanted,
                    FileChange::Priority(priority) => file.priority = *priority,
                }
            }
        }
        Ok(())
    }
}

impl Backend for Fake {
    async fn known(&self) {
        let _ = self.unknown.lock().await;
    }

    fn torrents(&self) -> Vec<Arc<Torrent>> {
        self.torrents
            .borrow()
            .iter()
            .cloned()
            .map(Arc::new)
            .collect()
    }

    fn session(&self) -> Session {
        self.session.borrow().clone()
    }

    async fn details(&self, _: InfoHash) -> Result<Details, Refusal> {
        let peer = Peer {
            addr: "198.51.100.7:6881".parse().unwrap(),
            client: "Other 1.0".into(),
            source: "dht",
            is_incoming: true,
            is_utp: true,
            is_encrypted: true,
            is_seed: false,
            am_choking: false,
            am_interested: false,
            peer_choking: true,
            peer_interested: true,
            pieces_have: 5,
            down_bytes_per_s: 0,
            up_bytes_per_s: 2_000,
            downloaded_bytes: 0,
            uploaded_bytes: 9,
        };
        Ok(Details {
            policies: Vec::new(),
            files: self.files.borrow().clone(),
            peers: vec![peer],
            trackers: vec![Tracker {
                url: "http://tracker.example.org/announce".into(),
                is_working: Some(true),
                seeders: Some(3),
                leechers: Some(1),
                ..Tracker::default()
            }],
            have: vec![0xff, 0xc0],
            web_seeds: Vec::new(),
        })
    }

    async fn torrent_file(&self, info_hash: InfoHash) -> Result<Vec<u8>, Refusal> {
        let known = self.edit(info_hash, |torrent| torrent.name.clone())?;
        Ok(crate::rpc::sample(&known))
    }

    async fn add(&self, new: NewTorrent) -> Result<Added, Refusal> {
        let (info_hash, name, trackers) = match &new.source {
            NewSource::Torrent(bytes) => {
                let metainfo = Metainfo::parse(bytes);
                let metainfo = metainfo.map_err(|error| Refusal::BadTorrent(error.to_string()))?;
                let trackers: Vec<String> = metainfo.announce_tiers.concat();
                (metainfo.info_hash, metainfo.info.name.clone(), trackers)
            }
            NewSource::Magnet(link) => {
                let link: Magnet = link
                    .parse()
                    .map_err(|_| Refusal::BadTorrent("unrecognized info".into()))?;
                let name = link.name.clone().unwrap_or_default();
                (link.info_hash, name, link.trackers.clone())
            }
        };
        let merged = self.edit(info_hash, |torrent| {
            let mut all = torrent.trackers.to_vec();
            for url in &trackers {
                if all.iter().all(|(_, known)| known != url) {
                    all.push((all.len(), url.clone()));
                }
            }
            torrent.trackers = all.into();
        });
        if merged.is_ok() {
            let (id, name) = self.edit(info_hash, |torrent| (torrent.id, torrent.name.clone()))?;
            return Ok(Added {
                info_hash,
                id,
                name,
                is_duplicate: true,
            });
        }
        self.note(format!("add {new:?}"));
        self.change_files(&new.files)?;
        let id = self.torrents.borrow().len() as u64 + 1;
        let mut torrent = Torrent::nothing(id, info_hash, &name);
        torrent.labels = new.labels;
        torrent.folder = match &new.folder {
            Some(folder) => folder.display().to_string(),
            None => self.session().downloads,
        };
        torrent.trackers = trackers.into_iter().map(|url| (0, url)).collect();
        torrent.status = match new.is_paused {
            true => Status::Stopped,
            false => Status::Downloading,
        };
        torrent.wanted_bytes = 1_000;
        torrent.pieces = u32::from(matches!(new.source, NewSource::Torrent(_)));
        self.torrents.borrow_mut().push(torrent);
        Ok(Added {
            info_hash,
            id,
            name,
            is_duplicate: false,
        })
    }

    async fn act(&self, info_hash: InfoHash, action: Action) -> Result<(), Refusal> {
        let id = self.edit(info_hash, |torrent| {
            match action {
                Action::Start | Action::StartNow => torrent.status = Status::Seeding,
                Action::Stop => torrent.status = Status::Stopped,
                Action::Verify => torrent.status = Status::Checking,
                Action::Reannounce => {}
            }
            torrent.id
        })?;
        self.note(format!("{action:?} {id}"));
        Ok(())
    }

    async fn remove(&self, info_hash: InfoHash, with_data: bool) -> Result<(), Refusal> {
        let id = self.edit(info_hash, |torrent| torrent.id)?;
        self.torrents.borrow_mut().retain(|one| one.id != id);
        self.note(format!("remove {id} with_data {with_data}"));
        Ok(())
    }

    async fn change(&self, info_hash: InfoHash, change: Change) -> Result<(), Refusal> {
        self.change_files(&change.files)?;
        self.edit(info_hash, |torrent| {
            let limits = &mut torrent.limits;
            limits.down = change.down.unwrap_or(limits.down);
            limits.up = change.up.unwrap_or(limits.up);
            limits.honors_session = change.honors_session.unwrap_or(limits.honors_session);
            limits.peers_max = change.peers_max.unwrap_or(limits.peers_max);
            limits.priority = change.priority.unwrap_or(limits.priority);
            torrent.labels = change.labels.unwrap_or_else(|| torrent.labels.clone());
            torrent.seed_ratio = change.seed_ratio.unwrap_or(torrent.seed_ratio);
            torrent.seed_idle = change.seed_idle.unwrap_or(torrent.seed_idle);
            torrent.is_sequential = change.is_sequential.unwrap_or(torrent.is_sequential);
            torrent.group = change.group.unwrap_or_else(|| torrent.group.clone());
            if let Some(tiers) = change.trackers {
                let tiers = tiers.into_iter().enumerate();
                let all =
                    tiers.flat_map(|(tier, urls)| urls.into_iter().map(move |url| (tier, url)));
                torrent.trackers = all.collect();
            }
        })
    }

    async fn relocate(
        &self,
        info_hash: InfoHash,
        folder: &Path,
        moves: bool,
    ) -> Result<(), Refusal> {
        let folder = folder.to_str().unwrap().to_owned();
        self.note(format!("relocate to {folder} moves {moves}"));
        self.edit(info_hash, |torrent| torrent.folder = folder)
    }

    async fn rename(&self, _: InfoHash, path: &str, name: &str) -> Result<(), Refusal> {
        self.note(format!("rename {path} to {name}"));
        Ok(())
    }

    async fn move_in_queue(&self, torrents: &[InfoHash], to: QueueMove) -> Result<(), Refusal> {
        self.note(format!("queue {to:?} {}", torrents.len()));
        Ok(())
    }

    async fn change_session(&self, change: SessionChange) -> Result<(), Refusal> {
        let mut session = self.session.borrow_mut();
        session.limit_down = change.limit_down.unwrap_or(session.limit_down);
        session.limit_up = change.limit_up.unwrap_or(session.limit_up);
        session.seed_ratio = change.seed_ratio.unwrap_or(session.seed_ratio);
        session.seed_idle_minutes = change
            .seed_idle_minutes
            .unwrap_or(session.seed_idle_minutes);
        session.alt = change.alt.unwrap_or(session.alt);
        session.download_queue = change.download_queue.unwrap_or(session.download_queue);
        session.seed_queue = change.seed_queue.unwrap_or(session.seed_queue);
        session.queue_stalled = change.queue_stalled.unwrap_or(session.queue_stalled);
        session.starts_added = change.starts_added.unwrap_or(session.starts_added);
        if let Some(downloads) = change.downloads {
            session.downloads = downloads.to_str().unwrap().to_owned();
        }
        Ok(())
    }

    async fn free_space(&self, _: &Path) -> Result<(u64, u64), Refusal> {
        Ok((5_000, 9_000))
    }

    async fn test_port(&self) -> Result<bool, Refusal> {
        Ok(true)
    }

    fn groups(&self) -> Vec<Group> {
        self.groups.borrow().clone()
    }

    async fn set_group(&self, group: Group) -> Result<(), Refusal> {
        let mut groups = self.groups.borrow_mut();
        groups.retain(|one| one.name != group.name);
        groups.push(group);
        Ok(())
    }

    fn shut_down(&self) {
        self.note("shut down".into());
    }
}
