//! The daemon as the protocols see it: [`Backend`] over [`Control`]. Layer 6.

mod change;
mod list;
mod queue;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::backend::{
    Action, Added, Backend, Change, Changes, Details, Group, NewSource, NewTorrent, PolicyFigures,
    Problem, QueueMove, Refusal, Session, SessionChange, Status, Torrent, TorrentLimits,
};
use super::view;
use crate::base::{InfoHash, Now};
use crate::daemon::TorrentRow;
use crate::daemon::date::unix_now_s;
use crate::daemon::handle::{AddSource, AddTorrent, Control, ControlError, Listed};
use crate::daemon::lived::Work;
use crate::daemon::row::Facts;
use crate::session::command::Activity;
use crate::session::lab::Health;
use crate::session::{Encryption, Outcome, SessionConfig, TorrentState};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;

/// Trackers of a torrent that are kept for the list.
const TRACKERS_MAX: usize = 64;

/// A daemon on the control thread.
pub struct Live {
    control: Control,
    fixed: Fixed,
    list: RefCell<list::List>,
    /// There are torrents of which it is not known what their .torrent says.
    lacks: Notify,
}

/// Settings that do not change while it runs.
struct Fixed {
    state: String,
    peers_max: u32,
    has_dht: bool,
    has_pex: bool,
    has_lsd: bool,
    has_tcp: bool,
    has_utp: bool,
    encryption: &'static str,
}

/// Trackers as the list shows them.
fn in_list(tiers: &[Vec<String>]) -> Arc<[(usize, String)]> {
    let tiers = tiers.iter().enumerate();
    let trackers = tiers.flat_map(|(tier, urls)| urls.iter().map(move |url| (tier, url.clone())));
    trackers.take(TRACKERS_MAX).collect()
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Refusal {
        match error {
            ControlError::Unknown(info_hash) => Refusal::Unknown(info_hash),
            ControlError::BadTorrent(_) | ControlError::BadMagnet(_) => {
                Refusal::BadTorrent(error.to_string())
            }
            ControlError::BadValue(words) => Refusal::BadValue(words),
            error => Refusal::Failed(error.to_string()),
        }
    }
}

impl Live {
    /// Over that daemon, which runs with those settings.
    pub fn new(control: Control, config: &SessionConfig) -> Live {
        Live {
            control,
            fixed: Fixed {
                state: config.state_dir.display().to_string(),
                peers_max: config.peers_max,
                has_dht: config.dht.is_some(),
                has_pex: config.exchanges_peers,
                has_lsd: config.lsd,
                has_tcp: config.tcp,
                has_utp: config.utp,
                encryption: match config.encryption {
                    Encryption::Require => "required",
                    Encryption::Prefer => "preferred",
                    Encryption::Off => "tolerated",
                },
            },
            list: RefCell::default(),
            lacks: Notify::new(),
        }
    }

    /// Reads what rows of earlier versions do not have of their .torrent files, for ever.
    pub async fn read_facts(&self) {
        loop {
            self.lacks.notified().await;
            for listed in self.control.torrents() {
                if !listed.row.lacks_facts() {
                    continue;
                }
                let info_hash = listed.row.info_hash;
                let facts = match self.control.metainfo(info_hash).await {
                    Ok(metainfo) => Facts::of(&metainfo),
                    // Nothing is to be had of it until it is added again.
                    Err(_) => Facts::default(),
                };
                self.control.know(info_hash, facts);
            }
        }
    }

    fn added(&self, info_hash: InfoHash, is_duplicate: bool) -> Result<Added, Refusal> {
        let listed = self.control.torrent(info_hash);
        let row = listed.ok_or(Refusal::Unknown(info_hash))?.row;
        Ok(Added {
            info_hash,
            id: row.number,
            name: row.name.clone(),
            is_duplicate,
        })
    }

    /// Made of the row, of what is shown, and of what [`list`] compares beside: the list keeps it as long as that is the same.
    fn torrent(&self, listed: &Listed, place: u64) -> Torrent {
        let row = &listed.row;
        let mut torrent = Torrent::nothing(row.number, row.info_hash, &row.name);
        torrent.folder = row.folder.to_string_lossy().into_owned();
        torrent.labels = row.labels.clone();
        torrent.is_private = row.is_private;
        torrent.is_unproven = row.is_unproven;
        torrent.wanted_bytes = row.wanted_bytes;
        torrent.total_bytes = row.wanted_bytes;
        torrent.have_bytes = row.have_bytes;
        torrent.downloaded_bytes = row.downloaded_bytes;
        torrent.uploaded_bytes = row.uploaded_bytes;
        torrent.wasted_bytes = row.wasted_bytes;
        let lived = self.control.lived();
        torrent.downloading = row.times.elapsed(Work::Download, lived);
        torrent.seeding = row.times.elapsed(Work::Seed, lived);
        torrent.added_unix_s = row.added_unix_s;
        torrent.done_unix_s = row.done_unix_s;
        torrent.active_unix_s = row.active_unix_s;
        torrent.files = row.files;
        torrent.pieces = row.pieces;
        torrent.queue_position = place;
        torrent.is_sequential = row.is_sequential;
        torrent.is_super_seeding = row.settings.super_seeds.unwrap_or(false);
        torrent.metadata_share = if row.pieces == 0 { 0.0 } else { 1.0 };
        torrent.seed_ratio = row.ratio_limit();
        torrent.seed_idle = row.settings.seed_idle;
        torrent.limits = TorrentLimits {
            down: row.settings.down,
            up: row.settings.up,
            honors_session: !row.settings.ignores_session,
            peers_max: row.settings.peers_max.unwrap_or(self.fixed.peers_max),
            priority: row.settings.priority,
        };
        torrent.trackers = in_list(row.trackers());
        if let Some(facts) = &row.facts {
            torrent.total_bytes = facts.total_bytes;
            torrent.piece_length_bytes = facts.piece_length_bytes;
            torrent.comment.clone_from(&facts.comment);
            torrent.creator.clone_from(&facts.creator);
            torrent.created_unix_s = facts.created_unix_s;
            torrent.web_seed_urls.clone_from(&facts.web_seeds);
            torrent.v2.clone_from(&facts.v2);
            torrent.is_v2_alone = facts.is_v2_alone;
        }
        let first = torrent.trackers.first();
        torrent.tracker_host = first
            .map(|(_, url)| super::rpc::tracker_host(url).to_owned())
            .unwrap_or_default();
        if let crate::daemon::Origin::Magnet(link) = &row.origin {
            torrent.link = Some(link.clone());
        }
        show(&mut torrent, listed);
        torrent.moved_share = self.control.moved_share(&row.info_hash);
        if let Some(words) = self.control.move_trouble(&row.info_hash)
            && torrent.problem == Problem::None
        {
            torrent.problem = Problem::Local(words);
        }
        torrent
    }
}

/// What the session shows of it.
fn show(torrent: &mut Torrent, listed: &Listed) {
    let Some(shown) = &listed.shown else {
        torrent.status = expected_status(torrent, listed);
        return;
    };
    let progress = &shown.progress;
    torrent.have_bytes = match shown.activity {
        Activity::Failed => torrent.have_bytes,
        _ if progress.pieces > 0 && !progress.is_preparing() => progress.have_bytes,
        _ => torrent.have_bytes,
    };
    torrent.downloaded_bytes = torrent
        .downloaded_bytes
        .max(progress.total_downloaded_bytes);
    torrent.uploaded_bytes = torrent.uploaded_bytes.max(progress.total_uploaded_bytes);
    torrent.wasted_bytes = torrent.wasted_bytes.max(progress.wasted_bytes);
    let is_complete = torrent.left_bytes() == 0 && torrent.wanted_bytes > 0;
    torrent.status = match (shown.activity, progress.state) {
        (Activity::Asleep, _) => Status::Seeding,
        (Activity::Waiting, _) => Status::CheckWaiting,
        (Activity::Running, TorrentState::Checking) => Status::Checking,
        (Activity::Running, _) if is_complete => Status::Seeding,
        (Activity::Running, _) => Status::Downloading,
        _ if listed.is_waiting && is_complete => Status::SeedWaiting,
        _ if listed.is_waiting => Status::DownloadWaiting,
        _ => Status::Stopped,
    };
    if listed.row.settings.super_seeds.is_none() {
        torrent.is_super_seeding = progress.super_seeding;
    }
    torrent.is_stalled = progress.state == TorrentState::Stalled;
    // The row hears of an end with the next figures.
    let is_over = !listed.row.is_wanted || shown.outcome == Some(Outcome::Done);
    torrent.is_finished = torrent.status == Status::Stopped && is_complete && is_over;
    if let Some(trouble) = &shown.trouble {
        torrent.problem = Problem::Local(trouble.message.clone());
    }
    let rests = [
        Status::Stopped,
        Status::SeedWaiting,
        Status::DownloadWaiting,
    ];
    if rests.contains(&torrent.status) {
        return;
    }
    torrent.down_bytes_per_s = progress.down_bytes_per_s;
    torrent.up_bytes_per_s = progress.up_bytes_per_s;
    torrent.peers = progress.peers;
    torrent.peers_by_source = progress.peers_by_source;
    torrent.web_seeds = progress.web_seeds;
    // Who exactly is not told with the list: data that flows comes from somebody.
    torrent.peers_taking = u32::from(progress.up_bytes_per_s > 0).min(progress.peers);
    torrent.peers_giving = u32::from(progress.down_bytes_per_s > 0).min(progress.peers);
    if torrent.status == Status::Checking && progress.pieces > 0 {
        torrent.checked_share = f64::from(progress.pieces_checked) / f64::from(progress.pieces);
    }
    if progress.metadata_total_bytes > 0 {
        torrent.metadata_share =
            f64::from(progress.metadata_bytes) / f64::from(progress.metadata_total_bytes);
    }
}

/// What the session will show of one that it does not know yet: whoever looks in the first moment of a daemon is not to see
/// all seeds stopped.
fn expected_status(torrent: &Torrent, listed: &Listed) -> Status {
    let is_complete = torrent.left_bytes() == 0 && torrent.wanted_bytes > 0;
    match (listed.row.is_wanted, is_complete) {
        (false, _) => Status::Stopped,
        (true, true) if listed.is_waiting => Status::SeedWaiting,
        (true, true) => Status::Seeding,
        (true, false) => Status::DownloadWaiting,
    }
}

impl Backend for Live {
    async fn known(&self) {
        self.control.known().await;
    }

    fn torrents(&self) -> Vec<Arc<Torrent>> {
        self.list()
    }

    fn changes(&self) -> Option<Changes> {
        Some(self.look())
    }

    fn session(&self) -> Session {
        let now = self.control.session();
        let settings = self.control.settings();
        let fixed = &self.fixed;
        Session {
            downloads: settings.downloads.to_string_lossy().into_owned(),
            first_downloads: self
                .control
                .first_downloads()
                .to_string_lossy()
                .into_owned(),
            state: fixed.state.clone(),
            peer_port: now.listening.first().map_or(0, std::net::SocketAddr::port),
            peers: now.peers,
            peers_max: fixed.peers_max,
            up_bytes_per_s: now.up_bytes_per_s,
            down_bytes_per_s: now.down_bytes_per_s,
            uploaded_bytes: now.uploaded_bytes,
            downloaded_bytes: now.downloaded_bytes,
            uptime_s: now.uptime.as_secs(),
            limit_down: settings.down,
            limit_up: settings.up,
            seed_ratio: settings.seed_ratio,
            seed_idle_minutes: settings.seed_idle.map(|idle| idle.as_secs().div_ceil(60)),
            alt: settings.alt,
            download_queue: settings.queue.downloads,
            seed_queue: settings.queue.seeds,
            queue_stalled: settings.queue.stalled,
            starts_added: settings.starts_added,
            has_dht: fixed.has_dht,
            has_pex: fixed.has_pex,
            has_lsd: fixed.has_lsd,
            has_tcp: fixed.has_tcp,
            has_utp: fixed.has_utp,
            encryption: fixed.encryption,
            panics: now.panics,
        }
    }

    fn health(&self) -> Arc<Health> {
        self.control.session().health
    }

    fn scrubbed(&self) -> (u64, u64) {
        self.control.scrubbed().counts()
    }

    async fn details(&self, info_hash: InfoHash) -> Result<Details, Refusal> {
        let listed = self.control.torrent(info_hash);
        let listed = listed.ok_or(Refusal::Unknown(info_hash))?;
        let runs = listed
            .shown
            .as_ref()
            .is_some_and(|shown| shown.activity.is_up());
        let told = match runs {
            true => self.control.details(info_hash).await.ok(),
            false => None,
        };
        let metainfo = self.control.metainfo(info_hash).await.ok();
        let uptime = self.control.session().uptime;
        let date = |at: Now| {
            let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            let (at, now) = (seconds(at.since(Now::ZERO)), seconds(uptime));
            unix_now_s().saturating_add(at.saturating_sub(now))
        };
        let told = told.as_ref();
        Ok(Details {
            policies: self.control.policies_of(&listed.row),
            ..view::details(&listed.row, metainfo.as_ref(), told, &date)
        })
    }

    async fn torrent_file(&self, info_hash: InfoHash) -> Result<Vec<u8>, Refusal> {
        Ok(self.control.metainfo(info_hash).await?.to_torrent())
    }

    async fn add(&self, torrent: NewTorrent) -> Result<Added, Refusal> {
        let mut selected_files = None;
        // Trackers that it has when it is there already.
        let mut merged = None;
        let mut wish = change::wish(&torrent);
        let source = match torrent.source {
            NewSource::Torrent(bytes) => {
                let metainfo = Metainfo::parse(&bytes);
                let metainfo = metainfo.map_err(|e| Refusal::BadTorrent(e.to_string()))?;
                if !torrent.files.is_empty() {
                    let count = metainfo.info.files.len();
                    selected_files = view::select(count, None, &torrent.files)?.flatten();
                    wish.priorities = view::priorities(count, &BTreeMap::new(), &torrent.files)?;
                }
                merged = Some((metainfo.announce_tiers.clone(), true));
                AddSource::Torrent(bytes)
            }
            NewSource::Magnet(link) => {
                if let Ok(parsed) = link.parse::<Magnet>() {
                    let tiers = parsed.trackers.into_iter().map(|url| vec![url]);
                    merged = Some((tiers.collect(), false));
                }
                AddSource::Magnet(link)
            }
        };
        let added = self.control.add(AddTorrent {
            source,
            folder: torrent.folder,
            starts: !torrent.is_paused,
            fetches: true,
            labels: torrent.labels,
            selected_files,
        });
        match added.await {
            Ok(info_hash) => {
                if !wish.is_nothing() {
                    let take = |row: &mut TorrentRow| wish.take(row);
                    self.control.tune(info_hash, take).await?;
                }
                self.added(info_hash, false)
            }
            Err(ControlError::Duplicate(info_hash)) => {
                if let Some((tiers, is_torrent)) = merged {
                    self.merge(info_hash, &tiers, is_torrent).await?;
                }
                self.added(info_hash, true)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn act(&self, info_hash: InfoHash, action: Action) -> Result<(), Refusal> {
        match action {
            Action::Start => self.control.let_run(info_hash, false).await?,
            Action::StartNow => self.control.let_run(info_hash, true).await?,
            Action::Stop => self.control.stop(info_hash).await?,
            Action::Verify => self.control.verify(info_hash).await?,
            Action::Reannounce => self.control.reannounce(info_hash).await?,
        }
        Ok(())
    }

    async fn remove(&self, info_hash: InfoHash, with_data: bool) -> Result<(), Refusal> {
        let removed = self.control.remove(info_hash, with_data).await?;
        match removed.kept.first() {
            Some(why) => Err(Refusal::Failed(format!(
                "the torrent is removed, but not all of its files: {why}"
            ))),
            None => Ok(()),
        }
    }

    async fn change(&self, info_hash: InfoHash, change: Change) -> Result<(), Refusal> {
        self.change_torrent(info_hash, change).await
    }

    async fn relocate(
        &self,
        info_hash: InfoHash,
        folder: &Path,
        moves: bool,
    ) -> Result<(), Refusal> {
        let folder = folder.to_path_buf();
        Ok(self.control.relocate(info_hash, folder, moves).await?)
    }

    async fn rename(&self, info_hash: InfoHash, path: &str, name: &str) -> Result<(), Refusal> {
        Ok(self.control.rename(info_hash, path, name).await?)
    }

    async fn move_in_queue(&self, torrents: &[InfoHash], to: QueueMove) -> Result<(), Refusal> {
        let order = |all: &mut Vec<InfoHash>| queue::shift(all, torrents, to);
        Ok(self.control.reorder_queue(order).await?)
    }

    async fn change_session(&self, change: SessionChange) -> Result<(), Refusal> {
        Ok(self
            .control
            .change_settings(|settings| change::take_session(settings, change))
            .await?)
    }

    async fn free_space(&self, folder: &Path) -> Result<(u64, u64), Refusal> {
        // A folder that is not there yet will lie where the nearest one above it does.
        let path = PathBuf::from(folder);
        let asked = tokio::task::spawn_blocking(move || {
            let there = path.ancestors().find(|above| above.exists());
            nix::sys::statvfs::statvfs(there.unwrap_or(&path))
        });
        let bad = |why: String| Refusal::BadPath(why);
        let asked = asked.await.map_err(|error| bad(error.to_string()))?;
        let space = asked.map_err(|error| bad(format!("{}: {error}", folder.display())))?;
        let unit = space.fragment_size();
        Ok((
            space.blocks_available().saturating_mul(unit),
            space.blocks().saturating_mul(unit),
        ))
    }

    async fn test_port(&self) -> Result<bool, Refusal> {
        // It would take somebody out there to try.
        Err(Refusal::Unsupported("a test of the port"))
    }

    fn groups(&self) -> Vec<Group> {
        Vec::new()
    }

    fn policies(&self) -> Vec<PolicyFigures> {
        self.control.policy_figures()
    }

    async fn set_group(&self, _: Group) -> Result<(), Refusal> {
        Err(Refusal::Unsupported("a bandwidth group"))
    }

    fn shut_down(&self) {
        self.control.shut_down();
    }
}
