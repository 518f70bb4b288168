//! The one surface to a running session: commands into it, plain figures out of it. Layer 5.
//!
//! [`channel`] makes both ends. The [`SessionHandle`] is for any thread, in any number of clones; the [`CommandSource`]
//! is for [`serve`](super::serve) on the ring thread. Commands are answered one by one through a oneshot each. Figures
//! are put on a board once a second, those of torrents that changed; whoever looks takes what is there. The ring thread
//! waits neither for a reader of the board nor for somebody who asked and went away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::config::{Job, Outcome, TorrentProgress};
use super::error::SessionError;
use super::lab::Health;
use super::tune::Tuned;
use crate::base::{Bitfield, ChangeLog, InfoHash, PieceIndex};
use crate::swarm::announce::TrackerStatus;
use crate::swarm::bandwidth::{Rule, RuleId};
use crate::swarm::torrent::PeerStats;
use crate::wire::tracker::Family;

/// Commands that wait for the ring thread: more askers than that are made to wait themselves.
pub const COMMANDS_MAX: usize = 1_024;

/// Where the answer to one command goes. An answer that nobody waits for is dropped.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// Where a session gets the settings of its torrents from, each time that one begins to run: a torrent that does not run
/// holds neither its metadata nor its settings in the session's memory.
pub trait TorrentSource: Send + Sync {
    /// Does what is to be done before a run and may take long. Called on a thread that may block; `is_stopped` is set once
    /// the run is not to be any more.
    ///
    /// # Errors
    /// The torrent cannot be run, in words for the user.
    fn before_run(&self, _: InfoHash, _is_stopped: &AtomicBool) -> Result<(), SessionError> {
        Ok(())
    }

    /// What to run for the torrent. Called on a thread that may block.
    ///
    /// # Errors
    /// The torrent cannot be run, in words for the user.
    fn job(&self, info_hash: InfoHash) -> Result<Job, SessionError>;
}

/// One thing for a session to do.
pub enum Command {
    /// Takes a torrent into the table and starts it if it is to run. Answered as soon as it is in the table.
    Add {
        torrent: Box<NewTorrent>,
        reply: Reply<()>,
    },
    /// Takes many in at once, as from a state, or none. The answer names those that were not taken, and why. Peers that
    /// connect are heard from the first of these, or of [`Command::Add`], on.
    AddAll {
        torrents: Vec<NewTorrent>,
        reply: Reply<Vec<CommandError>>,
    },
    /// Lets a torrent run. Answered at once; one that is about to end starts again behind its end.
    Start {
        info_hash: InfoHash,
        reply: Reply<()>,
    },
    /// Ends a torrent in order and keeps it in the table. Answered at once: the snapshot tells when it has ended.
    Stop {
        info_hash: InfoHash,
        reply: Reply<()>,
    },
    /// The same, answered once it has ended. Peers that it had dialed are dialed first when it starts again.
    End {
        info_hash: InfoHash,
        reply: Reply<()>,
    },
    /// Its data lies elsewhere now: one that runs or sleeps begins anew there. Answered at once.
    BeginAnew {
        info_hash: InfoHash,
        reply: Reply<()>,
    },
    /// Ends a torrent, forgets it and its resume records, and with `with_data` deletes its files. Answered when all that
    /// is done.
    Remove {
        info_hash: InfoHash,
        with_data: bool,
        reply: Reply<Removed>,
    },
    /// Hashes all of a torrent's data, whatever its record says. One that does not run is started for it and stops
    /// behind it. Answered at once.
    Verify {
        info_hash: InfoHash,
        reply: Reply<()>,
    },
    /// The settings of a torrent have changed at the source (its selection, its folder): one that runs ends and starts
    /// anew with them. Answered at once.
    Reload {
        info_hash: InfoHash,
        reply: Reply<()>,
    },
    /// Other settings of a torrent, put in force without ending what runs. The source is to give the same ones from
    /// now on. Answered at once.
    Tune {
        info_hash: InfoHash,
        tuned: Box<Tuned>,
        reply: Reply<()>,
    },
    /// These pieces of a torrent were read, and are not what they should be: they are looked at again, at the next start of
    /// one that does not run. Answered at once.
    Suspect {
        info_hash: InfoHash,
        pieces: Vec<PieceIndex>,
        reply: Reply<()>,
    },
    /// Asks a torrent's trackers and the DHT for peers as soon as they allow. Answered at once.
    Reannounce {
        info_hash: InfoHash,
        reply: Reply<()>,
    },
    /// Changes the limits of the whole session.
    SetLimits { limits: Limits, reply: Reply<()> },
    /// Changes the rules that torrents are held to by name (`Tuning::rules`). Names that are not known count for nothing.
    SetRules { rules: Box<Rules>, reply: Reply<()> },
    /// Peers, trackers and pieces of a torrent at this moment.
    Details {
        info_hash: InfoHash,
        reply: Reply<TorrentDetails>,
    },
    /// Ends all torrents in order, then the session. Answered when all that is left is to close sockets.
    Shutdown { reply: Reply<()> },
}

/// A torrent as it comes into the table.
#[derive(Clone, Debug)]
pub struct NewTorrent {
    /// As far as known: a torrent that does not run shows these figures.
    pub figures: TorrentProgress,
    /// False waits for [`Command::Start`].
    pub runs: bool,
    /// Of one that may sleep whenever it has everything and nobody asks for it.
    pub sleeps: Option<Sleep>,
}

/// How a seed sleeps: announced, a row of the table and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// Its trackers by tier (BEP 12); shared, because thousands have the same.
    pub tiers: Arc<[Vec<String>]>,
    /// Without a peer for so long, it goes to sleep.
    pub after: Duration,
    /// It is known to have everything: it sleeps from the start on.
    pub is_whole: bool,
    /// Of an earlier session that did not say goodbye; `next` counts from now on.
    pub announced: Option<Announced>,
    /// The other name that peers ask for a hybrid by (BEP 52): it wakes it too.
    pub second: Option<InfoHash>,
}

/// A tracker that lists us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// As the torrent names it.
    pub tracker: String,
    /// The port that it was told.
    pub port: u16,
    /// When it is asked again; on the board since the session began.
    pub next: Duration,
}

/// Rates at most, in bytes a second; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub up_bytes_per_s: Option<u64>,
    pub down_bytes_per_s: Option<u64>,
}

/// Limits and shares that torrents have in common, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub up: BTreeMap<RuleId, Rule>,
    pub down: BTreeMap<RuleId, Rule>,
    /// Upload slots of all torrents of a rule together; those without a limit are not named.
    pub slots: BTreeMap<RuleId, u32>,
}

/// What became of a torrent's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files that are gone now.
    pub files: u64,
    /// Why others are still there, in words for the user; the torrent itself is forgotten.
    pub kept: Vec<String>,
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("there is no torrent {0}")]
    Unknown(InfoHash),
    #[error("the torrent {0} is there already")]
    Present(InfoHash),
    #[error("the torrent {0} is being removed")]
    Leaving(InfoHash),
    #[error("the session has ended")]
    Ended,
    #[error("{0}")]
    Failed(SessionError),
}

/// What a torrent in the table is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It does not run and is not to.
    Stopped,
    /// It is to run, and does as soon as others of the session end or sleep.
    Waiting,
    /// It runs; `progress.state` tells what it does.
    Running,
    /// It has everything, is announced, and is loaded when somebody asks for it.
    Asleep,
    /// It runs and is about to end.
    Stopping,
    /// It ended by a failure, which `trouble` tells. [`Command::Start`] tries again.
    Failed,
}

/// The last trouble of a torrent that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub message: String,
    pub hint: String,
    /// The torrent ended by it.
    pub is_final: bool,
}

/// One torrent on the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorrentSnapshot {
    /// Its figures when they last changed. Of one that does not run, those of its end.
    pub progress: TorrentProgress,
    pub activity: Activity,
    /// How its last run ended.
    pub outcome: Option<Outcome>,
    pub trouble: Option<Trouble>,
    /// Of a seed that may sleep: who lists it.
    pub announced: Option<Announced>,
    /// Number of the change that made it this: later ones are larger, in the whole session. What has changed since a
    /// look is what has a larger number than [`SessionSnapshot::revision`] had.
    pub revision: u64,
}

impl Activity {
    /// It works, or will without being told.
    pub const fn is_up(self) -> bool {
        matches!(
            self,
            Activity::Waiting | Activity::Running | Activity::Asleep
        )
    }
}

impl TorrentSnapshot {
    /// Its info_hash.
    pub const fn info_hash(&self) -> InfoHash {
        self.progress.info_hash
    }
}

/// The whole session on the board.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// Where peers are listened for.
    pub listening: Vec<SocketAddr>,
    pub torrents: usize,
    /// Of those, the ones that run.
    pub running: usize,
    /// And the seeds that sleep.
    pub asleep: usize,
    pub peers: u32,
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    /// Payload since the session began.
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    pub limits: Limits,
    /// Since the session began.
    pub uptime: Duration,
    /// Errors in the program that ended a connection or a torrent.
    pub panics: u64,
    /// Delays, and what is in use.
    pub health: Arc<Health>,
    /// Number of the last change.
    pub revision: u64,
}

/// What is told of one torrent when asked.
#[derive(Clone, Debug)]
pub struct TorrentDetails {
    /// Empty when it does not run.
    pub peers: Vec<PeerStats>,
    /// One a tracker and family; empty when it does not run.
    pub trackers: Vec<(Family, TrackerStatus)>,
    /// Pieces verified and written; `None` when it does not run.
    pub have: Option<Bitfield>,
}

#[derive(Default)]
struct Table {
    session: SessionSnapshot,
    torrents: BTreeMap<InfoHash, Arc<TorrentSnapshot>>,
    log: ChangeLog<InfoHash>,
}

/// What a session shows of itself.
#[derive(Clone, Default)]
pub struct Board(Arc<RwLock<Table>>);

impl Board {
    /// Puts changes up, `None` takes a torrent off. False when somebody is reading: nothing was done, and it is to be
    /// tried again later.
    pub(super) fn try_put(
        &self,
        session: &SessionSnapshot,
        torrents: &BTreeMap<InfoHash, Option<Arc<TorrentSnapshot>>>,
    ) -> bool {
        let mut table = match self.0.try_write() {
            Ok(table) => table,
            Err(std::sync::TryLockError::Poisoned(broken)) => broken.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return false,
        };
        table.session = session.clone();
        for (info_hash, torrent) in torrents {
            table.log.note(*info_hash);
            match torrent {
                Some(torrent) => table.torrents.insert(*info_hash, torrent.clone()),
                None => table.torrents.remove(info_hash),
            };
        }
        true
    }

    fn read<R>(&self, read: impl FnOnce(&Table) -> R) -> R {
        let table = self.0.read();
        read(&table.unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// The other side of a running session. Clones share it.
#[derive(Clone)]
pub struct SessionHandle {
    sender: mpsc::Sender<Command>,
    board: Board,
}

impl SessionHandle {
    /// Gives a command and waits for its answer, as in `handle.ask(|reply| Command::Stop { info_hash, reply })`.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn ask<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.sender.send(command(reply)).await;
        sent.map_err(|_| CommandError::Ended)?;
        answer.await.unwrap_or(Err(CommandError::Ended))
    }

    /// The same on a thread that may block and is in no runtime.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn ask_blocking<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.sender.blocking_send(command(reply));
        sent.map_err(|_| CommandError::Ended)?;
        answer.blocking_recv().unwrap_or(Err(CommandError::Ended))
    }

    /// Every torrent, in the order of their info_hashes.
    pub fn torrents(&self) -> Vec<Arc<TorrentSnapshot>> {
        self.board
            .read(|table| table.torrents.values().cloned().collect())
    }

    /// Number of the board's last change, and the torrents that changed behind the number of an earlier look.
    pub fn changed(&self, since: u64) -> (u64, Vec<Arc<TorrentSnapshot>>) {
        self.with_changes(since, |number, changed, torrents| {
            let changed = match &changed {
                Some(changed) => changed
                    .iter()
                    .filter_map(|one| torrents.get(one))
                    .cloned()
                    .collect(),
                None => torrents.values().cloned().collect(),
            };
            (number, changed)
        })
    }

    /// Looks at all of them where they are. The session shows nothing new meanwhile: be quick.
    pub fn with_torrents<R>(
        &self,
        look: impl FnOnce(&BTreeMap<InfoHash, Arc<TorrentSnapshot>>) -> R,
    ) -> R {
        self.board.read(|table| look(&table.torrents))
    }

    /// The same with the number of the board's last change, and which torrents changed, came or went behind the number of an
    /// earlier look; `None` when that is too long ago.
    pub fn with_changes<R>(
        &self,
        since: u64,
        look: impl FnOnce(
            u64,
            Option<BTreeSet<InfoHash>>,
            &BTreeMap<InfoHash, Arc<TorrentSnapshot>>,
        ) -> R,
    ) -> R {
        self.board.read(|table| {
            let changed = table.log.since(since);
            look(table.log.number(), changed, &table.torrents)
        })
    }

    /// One torrent, if it is there.
    pub fn torrent(&self, info_hash: &InfoHash) -> Option<Arc<TorrentSnapshot>> {
        self.board
            .read(|table| table.torrents.get(info_hash).cloned())
    }

    /// The session's own figures.
    pub fn session(&self) -> SessionSnapshot {
        self.board.read(|table| table.session.clone())
    }
}

/// The ring thread's end.
pub struct CommandSource {
    pub(super) receiver: mpsc::Receiver<Command>,
    pub(super) board: Board,
}

/// Both ends of the surface to one session.
pub fn channel() -> (SessionHandle, CommandSource) {
    let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
    let board = Board::default();
    let handle = SessionHandle {
        sender,
        board: board.clone(),
    };
    (handle, CommandSource { receiver, board })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::config::TorrentState;

    fn torrent(byte: u8) -> (InfoHash, Option<Arc<TorrentSnapshot>>) {
        let info_hash = InfoHash::new([byte; 20]);
        let snapshot = TorrentSnapshot {
            progress: TorrentProgress::nothing(info_hash, "t".into(), TorrentState::Paused),
            activity: Activity::Stopped,
            outcome: None,
            trouble: None,
            announced: None,
            revision: 1,
        };
        (info_hash, Some(Arc::new(snapshot)))
    }

    #[test]
    fn the_board_is_not_waited_for_while_somebody_reads_it() {
        let (handle, source) = channel();
        let (info_hash, shown) = torrent(1);
        let changes = BTreeMap::from([(info_hash, shown)]);
        let session = SessionSnapshot::default();
        handle.board.read(|_| {
            assert!(!source.board.try_put(&session, &changes));
        });
        assert!(handle.torrents().is_empty());
        assert!(source.board.try_put(&session, &changes));
        assert_eq!(handle.torrents().len(), 1);
        assert!(source.board.try_put(&session, &[(info_hash, None)].into()));
        assert!(handle.torrent(&info_hash).is_none());
    }

    #[test]
    fn whoever_asks_a_session_that_is_gone_hears_so() {
        let (handle, source) = channel();
        drop(source);
        let ask = handle.ask_blocking(|reply| Command::Shutdown { reply });
        assert_eq!(ask, Err(CommandError::Ended));
    }
}
