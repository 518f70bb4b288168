//! A daemon from its start to its end: the ring thread with all torrents, the control thread beside it, and the thread of
//! the state. Layer 6.
//!
//! A start opens every socket and answers what is asked of the daemon itself while the state is still being read: what is
//! about torrents, the API's requests and peers alike, waits until they are known.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::cross::Cross;
use super::date::local_now;
use super::figures::Seen;
use super::folder::StateFolder;
use super::handle::Control;
use super::hooks::{self, Due, Hook};
use super::kept::{Kept, LiveSettings};
use super::notify::{Notifier, Pulse};
use super::policy::{Book, Policy};
use super::queue::QueueLimits;
use super::row::TorrentRow;
use super::scrub::{self, Scrubbed, Scrubbing};
use super::torrents::Torrents;
use super::watch::WatchFolder;
use super::writer::{Reading, Writer};
use crate::base::InfoHash;
use crate::session::command::{self, CommandSource};
use crate::session::{
    self, SeedAfter, SessionConfig, SessionError, SessionEvent, SessionSummary, Stopper,
};
use crate::uring::memory;
use crate::uring::ring::Ring;

/// Figures go into the state file this often; resume records have their own times.
const FIGURES_INTERVAL: Duration = Duration::from_secs(30);
/// And how long the daemon has lived every so many times; a crash loses at most what came behind it.
const LIVED_TICKS: u32 = 10;
/// Places in the queue are looked at this often.
const QUEUE_INTERVAL: Duration = Duration::from_secs(1);

/// What a daemon is told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub session: SessionConfig,
    /// Folder for torrents that are added without one; absolute.
    pub downloads: PathBuf,
    /// When torrents that say nothing themselves end seeding; `seeds` is not looked at.
    pub seed_after: SeedAfter,
    pub queue: QueueLimits,
    pub policies: Vec<Policy>,
    /// How it is controlled from outside.
    pub control: super::control::ControlSettings,
    /// Files of torrents that are added are looked for among those of the others.
    pub cross_seed: bool,
    /// Whether and how torrents are read again in the background.
    pub scrubbing: Scrubbing,
    /// Folders whose torrents are added.
    pub watch: Vec<WatchFolder>,
    /// Run for each download that is complete.
    pub on_complete: Option<Hook>,
}

/// Something that controls the daemon from outside: an API, a page. Runs on the control thread until the daemon ends.
pub type Service = Box<dyn FnOnce(Control) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A daemon whose state is being read.
pub struct Daemon {
    settings: Settings,
    torrents: Arc<Torrents>,
    reading: Reading,
    writer_thread: JoinHandle<()>,
    control: Control,
    commands: CommandSource,
    stopper: Stopper,
}

impl Daemon {
    /// Takes the state folder and begins to read the state.
    ///
    /// # Errors
    /// Another daemon has it, or it cannot be used, as far as is known by then.
    pub fn open(mut settings: Settings) -> Result<Daemon, SessionError> {
        let hint = "name another folder with --state";
        let cannot = |error: String| SessionError::new(error, hint);
        let folder = StateFolder::take(&settings.session.state_dir);
        let folder = folder.map_err(|error| cannot(error.to_string()))?;
        let path = folder.store();
        let no_thread = |error: io::Error| cannot(format!("cannot start a thread: {error}"));
        let started = Writer::start(path.clone()).map_err(no_thread)?;
        let (writer, mut reading, writer_thread) = started;
        let kept = reading.kept_blocking().map_err(|error| error.of(&path))?;
        let file = LiveSettings::of(&settings);
        let mut kept = kept.unwrap_or_else(|| Kept::from_file(file.clone()));
        kept.on_file(file);
        let (limits, seed_after) = (kept.now.limits(), kept.now.seed_after());
        settings.session.limit_up_bytes_per_s = limits.up_bytes_per_s;
        settings.session.limit_down_bytes_per_s = limits.down_bytes_per_s;
        let book = Book::new(settings.policies.clone(), local_now());
        let torrents = none_yet(folder, writer, seed_after, settings.cross_seed, book);
        let (session, commands) = command::channel();
        let stopper = Stopper::default();
        let control = Control::new(torrents.clone(), session, stopper.clone(), kept);
        Ok(Daemon {
            settings,
            torrents,
            reading,
            writer_thread,
            control,
            commands,
            stopper,
        })
    }

    /// The handle to it.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Runs it until [`Control::shut_down`]. Everything is saved when it returns.
    ///
    /// # Errors
    /// As [`session::run`], and the state cannot be used.
    pub fn run(
        self,
        ring: &Ring,
        services: Vec<Service>,
        mut events: impl FnMut(SessionEvent) + 'static,
    ) -> Result<SessionSummary, SessionError> {
        let (ended, on_end) = oneshot::channel();
        let control = self.control.clone();
        let (due, dues) = mpsc::channel(hooks::WAITING_MAX);
        let hook = self.settings.on_complete;
        let of_goals = due.clone();
        let watched = self.settings.watch;
        let scrubbing = self.settings.scrubbing;
        let own: [Service; 6] = [
            Box::new(|control| Box::pin(super::devices::watch(control))),
            Box::new(move |control| Box::pin(scrub::scrub(control, scrubbing))),
            Box::new(move |control| Box::pin(super::policing::watch(control, of_goals))),
            Box::new(|control| Box::pin(super::drives::watch(control))),
            Box::new(|control| Box::pin(super::watch::watch(control, watched))),
            Box::new(|control| Box::pin(hooks::run(control, dues))),
        ];
        let own = own.into_iter().map(once_known);
        let services = services.into_iter().chain(own).collect();
        let thread = std::thread::Builder::new().name("gyre-control".into());
        let reading = self.reading;
        let thread = thread.spawn(move || run_control(&control, reading, services, on_end));
        let thread = thread.map_err(|error| {
            SessionError::new(format!("cannot start a thread: {error}"), "try again")
        })?;
        let told = move |event: SessionEvent| {
            if let SessionEvent::Complete {
                info_hash,
                is_news: true,
                ..
            } = &event
                && let Some(hook) = &hook
            {
                let complete = Due {
                    info_hash: *info_hash,
                    hook: hook.clone(),
                    policy: None,
                };
                if due.try_send(complete).is_err() {
                    warn!(%info_hash, "too many downloads are complete at once: on-complete is not run");
                }
            }
            events(event);
        };
        let session = self.settings.session;
        let serve = session::serve(
            session,
            self.torrents.clone(),
            self.commands,
            self.stopper,
            told,
        );
        let summary = ring.block_on(serve);
        let _ = ended.send(());
        let kept = thread.join().unwrap_or_else(|_| {
            warn!("the control thread ended by an error in the program");
            Ok(())
        });
        self.torrents.writer.end();
        let _ = self.writer_thread.join();
        let summary = summary?;
        kept.map(|()| summary)
    }
}

/// One that has nothing to do before the torrents are known.
fn once_known(service: Service) -> Service {
    Box::new(|control| {
        Box::pin(async {
            control.known().await;
            service(control).await;
        })
    })
}

fn not_kept(error: &str) -> SessionError {
    let (why, hint) = error.split_once("; hint: ").unwrap_or((error, "try again"));
    SessionError::new(format!("the last figures are not kept: {why}"), hint)
}

fn none_yet(
    folder: StateFolder,
    writer: Writer,
    seed_after: SeedAfter,
    cross_seed: bool,
    policies: Book,
) -> Arc<Torrents> {
    Arc::new_cyclic(|own| Torrents {
        folder,
        writer,
        rows: Mutex::default(),
        seed_after: Mutex::new(seed_after),
        policies,
        cross: Cross::new(cross_seed),
        scrubbed: Scrubbed::default(),
        own: own.clone(),
    })
}

/// The control thread: its own runtime, because a session that is busy must not make an API wait, nor the other way round.
///
/// # Errors
/// The state cannot be used, or the last figures are not on disk.
fn run_control(
    control: &Control,
    mut reading: Reading,
    services: Vec<Service>,
    on_end: oneshot::Receiver<()>,
) -> Result<(), SessionError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            warn!(%error, "there is no control thread");
            control.shut_down();
            return Ok(());
        }
    };
    let mut kept = Ok(());
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let notifier = Notifier::from_env();
        let running: Vec<_> = services
            .into_iter()
            .map(|service| tokio::task::spawn_local(service(control.clone())))
            .collect();
        let mut seen = Seen::default();
        let is_read = tokio::select! {
            is_read = keep(control, &mut reading, &notifier, &mut seen) => is_read,
            // What is wrong with the state has its consequences all the same.
            _ = on_end => read(control, &mut reading).await.map(drop),
        };
        notifier.tell("STOPPING=1");
        for service in running {
            service.abort();
        }
        if is_read.is_err() {
            control.shut_down();
            kept = is_read;
            return;
        }
        let taken = control.take_figures(&seen).await;
        let lived = control.keep_lived().done().await;
        let taken = taken.done(&mut seen).await.and(lived);
        kept = taken.map_err(|error| not_kept(&error));
    });
    // A service may have left work behind that waits for a disk: nobody waits for that.
    runtime.shutdown_background();
    kept
}

/// Waits for the state; settings that were told of a file that was set aside are forgotten. No rows when it was taken before.
///
/// # Errors
/// The state cannot be used.
async fn read(
    control: &Control,
    reading: &mut Reading,
) -> Result<BTreeMap<InfoHash, TorrentRow>, SessionError> {
    let state = reading.state().await;
    let state = state.map_err(|error| error.of(&control.inner.torrents.folder.store()))?;
    let Some(state) = state else {
        return Ok(BTreeMap::new());
    };
    if state.set_aside.is_some() {
        control.forget_settings().await;
    }
    Ok(state.rows)
}

/// Brings the torrents back, then keeps their figures for ever.
///
/// # Errors
/// The state cannot be used.
async fn keep(
    control: &Control,
    reading: &mut Reading,
    notifier: &Notifier,
    seen: &mut Seen,
) -> Result<(), SessionError> {
    let rows = read(control, reading).await?;
    info!(torrents = rows.len(), "state");
    control.restore(rows).await;
    // Reading the state took as much again as it left.
    memory::give_back();
    info!("ready");
    notifier.tell("READY=1");
    // Beside each other: a disk that is slow to take the figures must not look like a ring thread that hangs.
    tokio::join!(
        keep_figures(control, seen),
        keep_queue(control),
        feed(control, notifier)
    );
    Ok(())
}

async fn keep_figures(control: &Control, seen: &mut Seen) {
    let mut figures = tokio::time::interval(FIGURES_INTERVAL);
    figures.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u32.. {
        figures.tick().await;
        if tick % LIVED_TICKS == 0 {
            let _ = control.keep_lived().done().await;
        }
        // What went wrong was said by the writer; it is tried again.
        let _ = control.take_figures(seen).await.done(seen).await;
    }
}

async fn keep_queue(control: &Control) {
    let mut queue = tokio::time::interval(QUEUE_INTERVAL);
    queue.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        queue.tick().await;
        control.settle_queue(false).await;
    }
}

/// Feeds the service manager's watchdog as long as the ring thread answers.
async fn feed(control: &Control, notifier: &Notifier) {
    let Some(every) = notifier.watchdog_interval() else {
        return;
    };
    let (mut watchdog, mut pulse) = (tokio::time::interval(every), Pulse::default());
    watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        watchdog.tick().await;
        if pulse.beats(control.session().uptime) {
            notifier.tell("WATCHDOG=1");
        }
    }
}
