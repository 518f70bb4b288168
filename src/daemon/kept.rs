//! Settings of the whole daemon that change while it runs, and how they live beside the settings file. Layer 6.
//!
//! What is set from outside holds until the settings file says something else than it did then: so a restart keeps it,
//! and an edit of the file wins.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::control::backend::{AltLimits, Limit};
use super::handle::{Control, ControlError};
use super::lived::Lived;
use super::queue::QueueLimits;
use super::row::{RowError, path};
use super::run::Settings;
use super::store::Write;
use super::writer::Pending;
use crate::base::InfoHash;
use crate::session::command::Limits;
use crate::session::{Command, SeedAfter};

/// Length of the SHA-1 in front.
const CHECKSUM_BYTES: usize = 20;

/// Settings that may change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveSettings {
    /// Folder for torrents that are added without one; absolute.
    #[serde(with = "path")]
    pub downloads: PathBuf,
    pub down: Limit,
    pub up: Limit,
    pub alt: AltLimits,
    pub seed_ratio: Option<f64>,
    pub seed_time: Option<Duration>,
    pub seed_idle: Option<Duration>,
    pub queue: QueueLimits,
    pub starts_added: bool,
}

impl Default for LiveSettings {
    fn default() -> Self {
        LiveSettings {
            downloads: PathBuf::new(),
            down: Limit::default(),
            up: Limit::default(),
            alt: AltLimits::default(),
            seed_ratio: None,
            seed_time: None,
            seed_idle: None,
            queue: QueueLimits::default(),
            starts_added: true,
        }
    }
}

impl LiveSettings {
    /// As the settings file and the options say.
    pub fn of(settings: &Settings) -> LiveSettings {
        let limit = |rate: Option<u64>| Limit {
            bytes_per_s: rate.unwrap_or(0),
            is_on: rate.is_some(),
        };
        LiveSettings {
            downloads: settings.downloads.clone(),
            down: limit(settings.session.limit_down_bytes_per_s),
            up: limit(settings.session.limit_up_bytes_per_s),
            alt: AltLimits::default(),
            seed_ratio: settings.seed_after.ratio,
            seed_time: settings.seed_after.time,
            seed_idle: settings.seed_after.idle,
            queue: settings.queue,
            starts_added: true,
        }
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        // At no rate at all nothing would ever end that waits for its share.
        let rate = |limit: Limit| limit.is_on.then_some(limit.bytes_per_s.max(1));
        match self.alt.is_on {
            false => Limits {
                up_bytes_per_s: rate(self.up),
                down_bytes_per_s: rate(self.down),
            },
            true => Limits {
                up_bytes_per_s: Some(self.alt.up_bytes_per_s.max(1)),
                down_bytes_per_s: Some(self.alt.down_bytes_per_s.max(1)),
            },
        }
    }

    /// When torrents that say nothing themselves end seeding.
    pub const fn seed_after(&self) -> SeedAfter {
        SeedAfter {
            seeds: true,
            ratio: self.seed_ratio,
            time: self.seed_time,
            idle: self.seed_idle,
        }
    }
}

/// What was set, and what the settings file said at that time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    pub file: LiveSettings,
    pub now: LiveSettings,
    /// Seconds that the daemon has lived since the state was made.
    pub lived_s: u64,
}

impl Kept {
    /// Nothing was set beside the file.
    pub fn from_file(file: LiveSettings) -> Kept {
        let now = file.clone();
        Kept {
            file,
            now,
            lived_s: 0,
        }
    }

    /// The file is read anew: what it says otherwise than before counts, the rest stays as it was set.
    pub fn on_file(&mut self, file: LiveSettings) {
        let (before, now) = (&self.file, &mut self.now);
        let LiveSettings {
            downloads,
            down,
            up,
            alt,
            seed_ratio,
            seed_time,
            seed_idle,
            queue,
            starts_added,
        } = file.clone();
        take(&before.downloads, downloads, &mut now.downloads);
        take(&before.down, down, &mut now.down);
        take(&before.up, up, &mut now.up);
        take(&before.alt, alt, &mut now.alt);
        take(&before.seed_ratio, seed_ratio, &mut now.seed_ratio);
        take(&before.seed_time, seed_time, &mut now.seed_time);
        take(&before.seed_idle, seed_idle, &mut now.seed_idle);
        let (was, is) = (&before.queue, &mut now.queue);
        take(&was.downloads, queue.downloads, &mut is.downloads);
        take(&was.seeds, queue.seeds, &mut is.seeds);
        take(&was.stalled, queue.stalled, &mut is.stalled);
        take(&before.starts_added, starts_added, &mut now.starts_added);
        self.file = file;
    }

    /// As bytes behind their SHA-1.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        [&Sha1::digest(&json)[..], &json].concat()
    }

    /// Reads what [`Kept::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Kept, RowError> {
        let split = bytes.split_at_checked(CHECKSUM_BYTES);
        let (checksum, json) = split.ok_or(RowError::BadChecksum)?;
        if Sha1::digest(json)[..] != *checksum {
            return Err(RowError::BadChecksum);
        }
        serde_json::from_slice(json).map_err(|error| RowError::BadValue(error.to_string()))
    }
}

fn take<T: PartialEq>(before: &T, file: T, now: &mut T) {
    if *before != file {
        *now = file;
    }
}

impl Control {
    /// Remembers how long the daemon has lived.
    pub(super) fn keep_lived(&self) -> Pending {
        let mut kept = self.inner.kept();
        kept.lived_s = self.inner.lived.seconds(Instant::now());
        let write = Write::Keep(Box::new(kept.clone()));
        self.inner.torrents.writer.begin(vec![write])
    }

    /// How long it has lived.
    pub(super) fn lived(&self) -> &Lived {
        &self.inner.lived
    }

    /// The settings in force.
    pub fn settings(&self) -> LiveSettings {
        self.inner.kept().now.clone()
    }

    /// The folder for downloads as the settings file says.
    pub fn first_downloads(&self) -> PathBuf {
        self.inner.kept().file.downloads.clone()
    }

    /// Changes settings of the whole daemon, on disk and in the session.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn change_settings(
        &self,
        change: impl FnOnce(&mut LiveSettings),
    ) -> Result<(), ControlError> {
        let (before, now, written) = {
            let mut kept = self.inner.kept();
            let before = kept.now.clone();
            change(&mut kept.now);
            let write = Write::Keep(Box::new(kept.clone()));
            let written = self.inner.torrents.writer.begin(vec![write]);
            (before, kept.now.clone(), written)
        };
        if let Err(error) = written.done().await {
            self.inner.kept().now = before;
            return Err(ControlError::NotKept(error));
        }
        for info_hash in self.take_settings(&before, &now) {
            // One that went meanwhile needs no settings.
            let _ = self.put_in_force(info_hash).await;
        }
        if before.limits() != now.limits() {
            let limits = now.limits();
            let asked = self
                .inner
                .session
                .ask(|reply| Command::SetLimits { limits, reply });
            asked.await?;
        }
        if before.queue != now.queue {
            self.settle_queue(true).await;
        }
        Ok(())
    }

    /// Those that were read from the state turned out to be nothing that may be used: the settings file alone counts.
    pub(super) async fn forget_settings(&self) {
        let (before, now, written) = {
            let mut kept = self.inner.kept();
            let file = kept.file.clone();
            let before = std::mem::replace(&mut kept.now, file);
            let write = Write::Keep(Box::new(kept.clone()));
            let written = self.inner.torrents.writer.begin(vec![write]);
            (before, kept.now.clone(), written)
        };
        // No torrent is there yet to hear of it.
        self.take_settings(&before, &now);
        let (session, limits) = (&self.inner.session, now.limits());
        // A session that has ended needs no settings.
        let _ = session
            .ask(|reply| Command::SetLimits { limits, reply })
            .await;
        // What went wrong was said by the writer, and they are written again with whatever comes next of them.
        let _ = written.done().await;
    }

    /// Takes what the settings file says now. Blocks until the session has it: not for its runtimes.
    pub fn apply(&self, file: LiveSettings) {
        let (before, now) = {
            let mut kept = self.inner.kept();
            let before = kept.now.clone();
            kept.on_file(file);
            let write = Write::Keep(Box::new(kept.clone()));
            // Nobody waits for a disk that may hang: what goes wrong is said by the writer, and the settings file is read
            // again at the next start.
            drop(self.inner.torrents.writer.begin(vec![write]));
            (before, kept.now.clone())
        };
        let (session, limits) = (&self.inner.session, now.limits());
        // A session that has ended needs no settings.
        let _ = session.ask_blocking(|reply| Command::SetLimits { limits, reply });
        for info_hash in self.take_settings(&before, &now) {
            let row = self.inner.torrents.rows().get(&info_hash).cloned();
            let Some(row) = row else { continue };
            let tuned = Box::new(self.inner.torrents.tuned(&row));
            let _ = session.ask_blocking(|reply| Command::Tune {
                info_hash,
                tuned,
                reply,
            });
        }
        if before.queue != now.queue {
            self.weigh_queue_anew();
        }
    }

    /// Puts in place what others look up; returns the torrents that are to hear of it.
    fn take_settings(&self, before: &LiveSettings, now: &LiveSettings) -> Vec<InfoHash> {
        self.inner.torrents.set_seed_after(now.seed_after());
        if before.seed_after() == now.seed_after() {
            return Vec::new();
        }
        let (before, now) = (before.seed_after(), now.seed_after());
        let rows = self.inner.torrents.rows();
        let changed = rows
            .values()
            .filter(|row| row.is_wanted && row.seed_after(before) != row.seed_after(now));
        changed.map(|row| row.info_hash).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_stays_until_the_file_says_something_else_of_it() {
        let limit = |bytes_per_s| Limit {
            bytes_per_s,
            is_on: true,
        };
        let mut kept = Kept::from_file(LiveSettings {
            up: limit(10),
            down: limit(20),
            ..LiveSettings::default()
        });
        kept.now.up = limit(11);
        kept.now.down = limit(21);
        kept.now.starts_added = false;
        let read = Kept::decode(&kept.encode()).unwrap();
        assert_eq!(read, kept);
        kept.on_file(LiveSettings {
            up: limit(10),
            down: limit(25),
            ..LiveSettings::default()
        });
        assert_eq!((kept.now.up, kept.now.down), (limit(11), limit(25)));
        assert!(!kept.now.starts_added);
        assert!(Kept::decode(&kept.encode()[1..]).is_err());
    }

    #[test]
    fn alternative_limits_count_while_they_are_on() {
        let mut settings = LiveSettings::default();
        settings.alt.up_bytes_per_s = 5;
        assert_eq!(settings.limits(), Limits::default());
        settings.alt.is_on = true;
        assert_eq!(settings.limits().up_bytes_per_s, Some(5));
        assert_eq!(settings.limits().down_bytes_per_s, Some(1));
    }
}
