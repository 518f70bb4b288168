//! Methods about the session: settings, figures, groups, disk space, port. Layer 6.

use std::path::PathBuf;

use super::args::Args;
use super::methods::names_of;
use super::{Fault, RPC_VERSION, RPC_VERSION_MINIMUM, RPC_VERSION_SEMVER, Rpc};
use crate::daemon::control::backend::{
    AltLimits, Backend, Group, Limit, PolicyFigures, Refusal, Session, SessionChange, Status,
};
use crate::daemon::control::json::{Dialect, Json, snake};

type Write = fn(&Session, &mut Json);

/// What there is no setting for, with the value that says so.
const ABSENT_BOOLS: [&str; 12] = [
    "alt-speed-time-enabled",
    "blocklist-enabled",
    "incomplete-dir-enabled",
    "peer-port-random-on-start",
    "port-forwarding-enabled",
    "rename-partial-files",
    "script-torrent-added-enabled",
    "script-torrent-done-enabled",
    "script-torrent-done-seeding-enabled",
    "sequential-download",
    "trash-original-torrent-files",
    "anti-brute-force-enabled",
];
const ABSENT_NUMBERS: [&str; 6] = [
    "alt-speed-time-begin",
    "alt-speed-time-day",
    "alt-speed-time-end",
    "anti-brute-force-threshold",
    "blocklist-size",
    "cache-size-mb",
];
const ABSENT_TEXTS: [&str; 6] = [
    "blocklist-url",
    "default-trackers",
    "incomplete-dir",
    "script-torrent-added-filename",
    "script-torrent-done-filename",
    "script-torrent-done-seeding-filename",
];

const PRESENT: [(&str, Write); 36] = [
    ("config-dir", |s, json| json.text(&s.state)),
    ("dht-enabled", |s, json| json.bool(s.has_dht)),
    ("download-dir", |s, json| json.text(&s.downloads)),
    ("encryption", |s, json| json.text(s.encryption)),
    ("lpd-enabled", |s, json| json.bool(s.has_lsd)),
    ("peer-limit-global", |s, json| json.uint(s.peers_max)),
    ("peer-limit-per-torrent", |s, json| json.uint(s.peers_max)),
    ("peer-port", |s, json| json.uint(s.peer_port)),
    ("pex-enabled", |s, json| json.bool(s.has_pex)),
    ("preferred-transports", |s, json| {
        // uTP first, to whoever is not of our own network.
        let words = [("utp", s.has_utp), ("tcp", s.has_tcp)];
        let words = words.into_iter().filter(|(_, is_on)| *is_on);
        json.array(words, |json, (word, _)| json.text(word));
    }),
    ("reqq", |_, json| json.uint(500_u64)),
    ("rpc-version", |_, json| json.uint(RPC_VERSION)),
    ("rpc-version-minimum", |_, json| {
        json.uint(RPC_VERSION_MINIMUM)
    }),
    ("rpc-version-semver", |_, json| {
        json.text(RPC_VERSION_SEMVER)
    }),
    ("seedRatioLimit", |s, json| {
        json.float(s.seed_ratio.unwrap_or(0.0))
    }),
    ("seedRatioLimited", |s, json| {
        json.bool(s.seed_ratio.is_some())
    }),
    ("speed-limit-down", |s, json| {
        json.uint(s.limit_down.bytes_per_s / 1_000);
    }),
    ("speed-limit-down-enabled", |s, json| {
        json.bool(s.limit_down.is_on)
    }),
    ("speed-limit-up", |s, json| {
        json.uint(s.limit_up.bytes_per_s / 1_000);
    }),
    ("speed-limit-up-enabled", |s, json| {
        json.bool(s.limit_up.is_on)
    }),
    ("start-added-torrents", |s, json| json.bool(s.starts_added)),
    ("units", |_, json| units(json)),
    ("version", |_, json| {
        json.text(concat!("gyre ", env!("CARGO_PKG_VERSION")));
    }),
    ("idle-seeding-limit", |s, json| {
        json.uint(s.seed_idle_minutes.unwrap_or(0));
    }),
    ("idle-seeding-limit-enabled", |s, json| {
        json.bool(s.seed_idle_minutes.is_some());
    }),
    ("tcp-enabled", |s, json| json.bool(s.has_tcp)),
    ("utp-enabled", |s, json| json.bool(s.has_utp)),
    ("alt-speed-down", |s, json| {
        json.uint(s.alt.down_bytes_per_s / 1_000);
    }),
    ("alt-speed-enabled", |s, json| json.bool(s.alt.is_on)),
    ("alt-speed-up", |s, json| {
        json.uint(s.alt.up_bytes_per_s / 1_000);
    }),
    ("download-queue-enabled", |s, json| {
        json.bool(s.download_queue.is_on);
    }),
    ("download-queue-size", |s, json| {
        json.uint(s.download_queue.value);
    }),
    ("queue-stalled-enabled", |s, json| {
        json.bool(s.queue_stalled.is_on);
    }),
    ("queue-stalled-minutes", |s, json| {
        json.uint(s.queue_stalled.value);
    }),
    ("seed-queue-enabled", |s, json| {
        json.bool(s.seed_queue.is_on)
    }),
    ("seed-queue-size", |s, json| json.uint(s.seed_queue.value)),
];

/// Names of settings that may be set, as they are looked up.
const SETTABLE: [&str; 19] = [
    "alt_speed_down",
    "alt_speed_enabled",
    "alt_speed_up",
    "download_dir",
    "download_queue_enabled",
    "download_queue_size",
    "idle_seeding_limit",
    "idle_seeding_limit_enabled",
    "queue_stalled_enabled",
    "queue_stalled_minutes",
    "seed_queue_enabled",
    "seed_queue_size",
    "speed_limit_down",
    "speed_limit_down_enabled",
    "speed_limit_up",
    "speed_limit_up_enabled",
    "seed_ratio_limit",
    "seed_ratio_limited",
    "start_added_torrents",
];

fn units(json: &mut Json) {
    json.open(b'{');
    for (name, words, base) in [
        ("memory", ["B", "KiB", "MiB", "GiB", "TiB"], 1_024_u64),
        ("size", ["B", "kB", "MB", "GB", "TB"], 1_000),
        ("speed", ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"], 1_000),
    ] {
        json.key(&format!("{name}-bytes"));
        json.uint(base);
        json.key(&format!("{name}-units"));
        json.array(words.into_iter().skip(1), |json, word| json.text(word));
    }
    json.close(b'}');
}

/// Minutes without an upload that end seeding where no number was ever given: as Transmission has it.
const IDLE_MINUTES_DEFAULT: u64 = 30;

fn idle(args: &Args, before: Option<u64>) -> Result<Option<Option<u64>>, Fault> {
    let minutes = args.uint("idle_seeding_limit")?;
    let is_on = args.bool("idle_seeding_limit_enabled")?;
    Ok(match (is_on, minutes) {
        (Some(false), _) => Some(None),
        (Some(true), minutes) => Some(minutes.or(before).or(Some(IDLE_MINUTES_DEFAULT))),
        (None, Some(minutes)) if before.is_some() => Some(Some(minutes)),
        (None, _) => None,
    })
}

fn alt(args: &Args, before: AltLimits) -> Result<Option<AltLimits>, Fault> {
    let bytes = |rate: u64| rate.saturating_mul(1_000);
    let alt = AltLimits {
        down_bytes_per_s: args
            .uint("alt_speed_down")?
            .map_or(before.down_bytes_per_s, bytes),
        up_bytes_per_s: args
            .uint("alt_speed_up")?
            .map_or(before.up_bytes_per_s, bytes),
        is_on: args.bool("alt_speed_enabled")?.unwrap_or(before.is_on),
    };
    Ok((alt != before).then_some(alt))
}

impl<B: Backend> Rpc<B> {
    pub(super) async fn session_get(&self, args: &Args, out: &mut Json) -> Result<(), Fault> {
        let wanted = names_of(args.get("fields"));
        let wanted: Option<Vec<String>> =
            wanted.map(|names| names.into_iter().map(snake).collect());
        let is_wanted = |name: &str| match &wanted {
            Some(names) => names.contains(&snake(name)),
            None => true,
        };
        let session = self.backend().session();
        out.open(b'{');
        for (name, write) in PRESENT.iter().filter(|(name, _)| is_wanted(name)) {
            out.key(name);
            write(&session, out);
        }
        let is_absent =
            |name: &&&str| is_wanted(name) && PRESENT.iter().all(|(known, _)| known != *name);
        for name in ABSENT_BOOLS.iter().filter(is_absent) {
            out.key(name);
            out.bool(false);
        }
        for name in ABSENT_NUMBERS.iter().filter(is_absent) {
            out.key(name);
            out.uint(0_u64);
        }
        for name in ABSENT_TEXTS.iter().filter(is_absent) {
            out.key(name);
            out.text("");
        }
        if is_wanted("session-id") {
            out.key("session-id");
            out.text(self.session_id());
        }
        if is_wanted("download-dir-free-space") {
            let folder = std::path::PathBuf::from(&session.downloads);
            let free = self.backend().free_space(&folder).await;
            out.key("download-dir-free-space");
            out.int(free.map_or(-1, |(free, _)| i128::from(free)));
        }
        out.close(b'}');
        Ok(())
    }

    pub(super) async fn session_set(&self, args: &Args) -> Result<(), Fault> {
        let now = self.backend().session();
        for name in args.0.keys() {
            if name.starts_with("script_") {
                return Err(Fault::bad_argument(
                    "programs to run are named in the daemon's settings file, nowhere else",
                ));
            }
            if !SETTABLE.contains(&name.as_str()) && !self.is_as_it_is(name, args, &now) {
                let words = format!("{name} cannot be changed while the daemon runs");
                return Err(Fault::bad_argument(words));
            }
        }
        let downloads = match args.text("download_dir")? {
            Some(folder) if folder != now.downloads => Some(self.allowed(folder).await?),
            _ => None,
        };
        let ratio = args.float("seed_ratio_limit")?;
        if ratio.is_some_and(|ratio| ratio < 0.0) {
            return Err(Fault::bad_argument("seedRatioLimit is negative"));
        }
        let ratio = match (args.bool("seed_ratio_limited")?, ratio) {
            (Some(false), _) => Some(None),
            (Some(true), ratio) => Some(Some(ratio.or(now.seed_ratio).unwrap_or(2.0))),
            (None, Some(ratio)) if now.seed_ratio.is_some() => Some(Some(ratio)),
            (None, _) => None,
        };
        let change = SessionChange {
            downloads,
            limit_down: args.limit(
                "speed_limit_down",
                "speed_limit_down_enabled",
                now.limit_down,
            )?,
            limit_up: args.limit("speed_limit_up", "speed_limit_up_enabled", now.limit_up)?,
            seed_ratio: ratio,
            starts_added: args.bool("start_added_torrents")?,
            seed_idle_minutes: idle(args, now.seed_idle_minutes)?,
            alt: alt(args, now.alt)?,
            download_queue: args.count(
                "download_queue_size",
                "download_queue_enabled",
                now.download_queue,
            )?,
            seed_queue: args.count("seed_queue_size", "seed_queue_enabled", now.seed_queue)?,
            queue_stalled: args.count(
                "queue_stalled_minutes",
                "queue_stalled_enabled",
                now.queue_stalled,
            )?,
        };
        if change != SessionChange::default() {
            self.backend().change_session(change).await?;
        }
        Ok(())
    }

    /// Clients send back whole forms: a value that is what it was changes nothing.
    fn is_as_it_is(&self, name: &str, args: &Args, now: &Session) -> bool {
        let Some(asked) = args.get(name) else {
            return true;
        };
        let is_named = |known: &str| snake(known) == name;
        let present = PRESENT.iter().find(|(known, _)| is_named(known));
        if let Some((_, write)) = present {
            let mut json = Json::new(Dialect::Old);
            write(now, &mut json);
            return serde_json::from_slice(&json.into_bytes()).ok().as_ref() == Some(asked);
        }
        let is_in = |names: &[&str]| names.iter().any(|known| is_named(known));
        (is_in(&ABSENT_BOOLS) && asked.as_bool() == Some(false))
            || (is_in(&ABSENT_NUMBERS) && asked.as_f64() == Some(0.0))
            || (is_in(&ABSENT_TEXTS) && asked.as_str() == Some(""))
    }

    pub(super) fn session_stats(&self, out: &mut Json) -> Result<(), Fault> {
        let session = self.backend().session();
        let catalog = self.catalog();
        let (mut count, mut paused, mut active, mut files) = (0_u64, 0_u64, 0_u64, 0_u64);
        let (mut down, mut up) = (0_u64, 0_u64);
        for torrent in catalog.all() {
            count += 1;
            paused += u64::from(torrent.status == Status::Stopped);
            active += u64::from(torrent.up_bytes_per_s + torrent.down_bytes_per_s > 0);
            files = files.saturating_add(torrent.files);
            down = down.saturating_add(torrent.downloaded_bytes);
            up = up.saturating_add(torrent.uploaded_bytes);
        }
        out.open(b'{');
        for (name, value) in [
            ("activeTorrentCount", active),
            ("downloadSpeed", session.down_bytes_per_s),
            ("pausedTorrentCount", paused),
            ("torrentCount", count),
            ("uploadSpeed", session.up_bytes_per_s),
        ] {
            out.key(name);
            out.uint(value);
        }
        for (name, down, up) in [
            ("cumulative-stats", down, up),
            (
                "current-stats",
                session.downloaded_bytes,
                session.uploaded_bytes,
            ),
        ] {
            out.key(name);
            out.open(b'{');
            for (name, value) in [
                ("downloadedBytes", down),
                ("filesAdded", files),
                ("secondsActive", session.uptime_s),
                ("sessionCount", 1),
                ("uploadedBytes", up),
            ] {
                out.key(name);
                out.uint(value);
            }
            out.close(b'}');
        }
        out.close(b'}');
        Ok(())
    }

    pub(super) async fn free_space(&self, args: &Args, out: &mut Json) -> Result<(), Fault> {
        let folder = args.text("path")?;
        let folder = folder.ok_or_else(|| Fault::bad_argument("path is missing"))?;
        let path = self.allowed(folder).await?;
        let (free, total) = self.backend().free_space(&path).await?;
        out.open(b'{');
        out.key("path");
        out.text(folder);
        out.key("size-bytes");
        out.uint(free);
        out.key("total_size");
        out.uint(total);
        out.close(b'}');
        Ok(())
    }

    pub(super) async fn port_test(&self, out: &mut Json) -> Result<(), Fault> {
        let is_open = self.backend().test_port().await?;
        out.open(b'{');
        out.key("port-is-open");
        out.bool(is_open);
        out.close(b'}');
        Ok(())
    }

    /// Not of Transmission: for `gyre ctl policies`.
    pub(super) fn policy_get(&self, out: &mut Json) -> Result<(), Fault> {
        let policies = self.backend().policies();
        out.open(b'{');
        out.key("policies");
        out.array(policies.iter(), policy);
        out.close(b'}');
        Ok(())
    }

    pub(super) fn group_get(&self, args: &Args, out: &mut Json) -> Result<(), Fault> {
        let names = names_of(args.get("name").or_else(|| args.get("group")));
        let groups = self.backend().groups();
        let is_wanted = |group: &&Group| match &names {
            Some(names) => names.contains(&group.name.as_str()),
            None => true,
        };
        out.open(b'{');
        out.key("group");
        out.array(groups.iter().filter(is_wanted), |out, group| {
            out.open(b'{');
            out.key("honorsSessionLimits");
            out.bool(group.honors_session);
            out.key("name");
            out.text(&group.name);
            for (rate, on, limit) in [
                ("speed-limit-down", "speed-limit-down-enabled", group.down),
                ("speed-limit-up", "speed-limit-up-enabled", group.up),
            ] {
                out.key(rate);
                out.uint(limit.bytes_per_s / 1_000);
                out.key(on);
                out.bool(limit.is_on);
            }
            out.close(b'}');
        });
        out.close(b'}');
        Ok(())
    }

    pub(super) async fn group_set(&self, args: &Args) -> Result<(), Fault> {
        let name = args.text("name")?.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Fault::bad_argument("No group name given"))?;
        if name.chars().count() > 256 {
            return Err(Fault::bad_argument("the group's name is too long"));
        }
        let groups = self.backend().groups();
        let known = groups.into_iter().find(|group| group.name == name);
        let before = known.unwrap_or(Group {
            name: name.to_owned(),
            honors_session: true,
            down: Limit::default(),
            up: Limit::default(),
        });
        let honors = args.bool("honors_session_limits")?;
        let down = args.limit("speed_limit_down", "speed_limit_down_enabled", before.down)?;
        let up = args.limit("speed_limit_up", "speed_limit_up_enabled", before.up)?;
        let done: Result<(), Refusal> = self
            .backend()
            .set_group(Group {
                honors_session: honors.unwrap_or(before.honors_session),
                down: down.unwrap_or(before.down),
                up: up.unwrap_or(before.up),
                name: before.name,
            })
            .await;
        Ok(done?)
    }
}

/// One policy, and what its torrents do.
fn policy(out: &mut Json, figures: &PolicyFigures) {
    let policy = &figures.policy;
    out.open(b'{');
    out.key("name");
    out.text(&policy.name);
    out.key("inForce");
    out.bool(figures.is_on);
    out.key("superSeeding");
    out.bool(policy.super_seeds);
    let path = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|path| path.to_string_lossy().into_owned())
    };
    let (device, folder) = (path(&policy.device), path(&policy.folder));
    let torrent = policy.torrent.map(|torrent| torrent.to_string());
    let then = policy
        .goal
        .as_ref()
        .map(|goal| goal.then.as_str().to_owned());
    let when = policy.schedule.as_ref().map(ToString::to_string);
    for (key, value) in [
        ("device", &device),
        ("folder", &folder),
        ("tracker", &policy.tracker),
        ("label", &policy.label),
        ("torrent", &torrent),
        ("when", &when),
        ("then", &then),
    ] {
        out.key(key);
        match value {
            Some(text) => out.text(text),
            None => out.null(),
        }
    }
    out.key("ratio");
    match policy.goal.as_ref().and_then(|goal| goal.ratio) {
        Some(ratio) => out.float(ratio),
        None => out.null(),
    }
    let goal_time = policy.goal.as_ref().and_then(|goal| goal.time);
    for (key, value) in [
        ("capUp", policy.cap_up_bytes_per_s),
        ("capDown", policy.cap_down_bytes_per_s),
        ("share", policy.share.map(u64::from)),
        ("uploadSlots", policy.slots.map(u64::from)),
        ("downloadQueueSize", policy.places.downloads),
        ("seedQueueSize", policy.places.seeds),
        ("seedTime", goal_time.map(|time| time.as_secs())),
        ("torrents", Some(figures.torrents)),
        ("waiting", Some(figures.waiting)),
        ("reached", Some(figures.reached)),
        ("rateUpload", Some(figures.up_bytes_per_s)),
        ("rateDownload", Some(figures.down_bytes_per_s)),
    ] {
        out.key(key);
        match value {
            Some(number) => out.uint(number),
            None => out.null(),
        }
    }
    out.close(b'}');
}
