//! Methods about the program and the session: versions, preferences, rates. Layer 6.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value as Wanted};

use super::change::limit_of;
use super::fields::Value;
use super::{API_VERSION, APP_VERSION, Answer, Call, Fault};
use crate::daemon::control::backend::{AltLimits, Backend, Count, Limit, Session, SessionChange};
use crate::daemon::control::json::{self, Dialect, Json};

/// The free space is asked for no more often than this, and not for a while after it was not told in time: a disk that hangs
/// must not make anybody wait.
const SPACE_INTERVAL: Duration = Duration::from_secs(10);
const SPACE_TIME: Duration = Duration::from_millis(500);
const SPACE_PAUSE: Duration = Duration::from_secs(120);

/// Free bytes where downloads go, as last heard.
#[derive(Debug, Default)]
pub struct Space {
    free_bytes: Cell<u64>,
    next: Cell<Option<Instant>>,
}

type Read = fn(&Session) -> Value<'_>;

/// What the session says.
const PREFERENCES: [(&str, Read); 27] = [
    ("add_stopped_enabled", |s| Value::Bool(!s.starts_added)),
    ("alt_dl_limit", |s| Value::uint(s.alt.down_bytes_per_s)),
    ("alt_up_limit", |s| Value::uint(s.alt.up_bytes_per_s)),
    ("dht", |s| Value::Bool(s.has_dht)),
    ("dl_limit", |s| Value::Int(rate(s.limit_down))),
    ("dont_count_slow_torrents", |s| {
        Value::Bool(s.queue_stalled.is_on)
    }),
    ("encryption", |s| {
        Value::Int(match s.encryption {
            "required" => 1,
            "tolerated" => 2,
            _ => 0,
        })
    }),
    ("listen_port", |s| Value::uint(s.peer_port)),
    ("lsd", |s| Value::Bool(s.has_lsd)),
    ("max_active_downloads", |s| count(s.download_queue)),
    ("max_active_uploads", |s| count(s.seed_queue)),
    ("max_connec", |s| Value::uint(s.peers_max)),
    ("max_connec_per_torrent", |s| Value::uint(s.peers_max)),
    ("max_inactive_seeding_time", |s| {
        s.seed_idle_minutes.map_or(Value::Int(-1), Value::uint)
    }),
    ("max_inactive_seeding_time_enabled", |s| {
        Value::Bool(s.seed_idle_minutes.is_some())
    }),
    ("max_ratio", |s| Value::Float(s.seed_ratio.unwrap_or(-1.0))),
    ("max_ratio_enabled", |s| Value::Bool(s.seed_ratio.is_some())),
    ("pex", |s| Value::Bool(s.has_pex)),
    ("queueing_enabled", |s| Value::Bool(is_queueing(s))),
    ("save_path", |s| Value::text(&s.downloads)),
    ("slow_torrent_inactive_timer", |s| {
        Value::uint(s.queue_stalled.value.saturating_mul(60))
    }),
    ("start_paused_enabled", |s| Value::Bool(!s.starts_added)),
    ("up_limit", |s| Value::Int(rate(s.limit_up))),
    // What the daemon has one way only.
    ("auto_delete_mode", |_| Value::Int(0)),
    ("locale", |_| Value::text("en")),
    ("resume_data_storage_type", |_| Value::text("SQLite")),
    ("torrent_content_layout", |_| Value::text("Original")),
];

/// What is never on.
const OFF: [&str; 37] = [
    "add_to_top_of_queue",
    "add_trackers_enabled",
    "alternative_webui_enabled",
    "anonymous_mode",
    "auto_tmm_enabled",
    "autorun_enabled",
    "autorun_on_torrent_added_enabled",
    "bypass_auth_subnet_whitelist_enabled",
    "bypass_local_auth",
    "category_changed_tmm_enabled",
    "create_subfolder_enabled",
    "dyndns_enabled",
    "enable_embedded_tracker",
    "excluded_file_names_enabled",
    "i2p_enabled",
    "incomplete_files_ext",
    "ip_filter_enabled",
    "limit_lan_peers",
    "limit_utp_rate",
    "mail_notification_enabled",
    "max_seeding_time_enabled",
    "merge_trackers",
    "performance_warning",
    "preallocate_all",
    "proxy_bittorrent",
    "random_port",
    "recheck_completed_torrents",
    "resolve_peer_countries",
    "rss_auto_downloading_enabled",
    "rss_processing_enabled",
    "save_path_changed_tmm_enabled",
    "scheduler_enabled",
    "temp_path_enabled",
    "torrent_changed_tmm_enabled",
    "upnp",
    "use_https",
    "use_unwanted_folder",
];

/// What is never off.
const ON: [&str; 7] = [
    "announce_to_all_tiers",
    "use_category_paths_in_manual_mode",
    "use_subcategories",
    "web_ui_clickjacking_protection_enabled",
    "web_ui_csrf_protection_enabled",
    "web_ui_host_header_validation_enabled",
    "limit_tcp_overhead",
];

/// Numbers that say that there is no such limit, or nothing of the kind.
const NUMBERS: [(&str, i64); 16] = [
    ("announce_port", 0),
    ("bittorrent_protocol", 1),
    ("max_active_checking_torrents", -1),
    ("max_active_torrents", -1),
    // Stops.
    ("max_ratio_act", 0),
    ("max_seeding_time", -1),
    ("max_uploads", -1),
    ("max_uploads_per_torrent", -1),
    ("outgoing_ports_max", 0),
    ("outgoing_ports_min", 0),
    ("proxy_port", 0),
    ("refresh_interval", 1_500),
    ("rss_max_articles_per_feed", 0),
    ("rss_refresh_interval", 0),
    ("web_ui_session_timeout", 3_600),
    ("file_log_age", 0),
];

const TEXTS: [&str; 14] = [
    "add_trackers",
    "announce_ip",
    "autorun_program",
    "autorun_on_torrent_added_program",
    "banned_IPs",
    "current_interface_address",
    "current_network_interface",
    "excluded_file_names",
    "export_dir",
    "export_dir_fin",
    "ip_filter_path",
    "proxy_ip",
    "temp_path",
    "web_ui_domain_list",
];

/// Bytes a second; 0 without a limit.
fn rate(limit: Limit) -> i64 {
    super::fields::rate(limit).max(0)
}

/// A limit of the queue; -1 without one.
fn count(count: Count) -> Value<'static> {
    count.get().map_or(Value::Int(-1), Value::uint)
}

/// Some torrents wait for others.
pub(super) fn is_queueing(session: &Session) -> bool {
    session.download_queue.is_on || session.seed_queue.is_on
}

/// Every preference with its value.
fn preferences(session: &Session) -> impl Iterator<Item = (&'static str, Value<'_>)> {
    let told = PREFERENCES
        .iter()
        .map(|(name, read)| (*name, read(session)));
    let off = OFF.iter().map(|name| (*name, Value::Bool(false)));
    let on = ON.iter().map(|name| (*name, Value::Bool(true)));
    let numbers = NUMBERS
        .iter()
        .map(|(name, number)| (*name, Value::Int(*number)));
    let texts = TEXTS.iter().map(|name| (*name, Value::text("")));
    let words = [
        ("torrent_stop_condition", Value::text("None")),
        ("proxy_type", Value::text("None")),
    ];
    told.chain(off)
        .chain(on)
        .chain(numbers)
        .chain(texts)
        .chain(words)
}

impl<B: Backend> Call<'_, B> {
    /// What is said in a word or two.
    pub(super) fn tell_of_app(&self, name: &str) -> Option<Answer> {
        let session = || self.backend().session();
        Some(Answer::Text(match name {
            "app/version" => APP_VERSION.to_owned(),
            "app/webapiVersion" => API_VERSION.to_owned(),
            "app/defaultSavePath" => session().downloads,
            "app/buildInfo" => return Some(build_info()),
            "torrents/count" => self.rpc.catalog().all().count().to_string(),
            "transfer/speedLimitsMode" => u8::from(session().alt.is_on).to_string(),
            "transfer/downloadLimit" => rate(session().limit_down).to_string(),
            "transfer/uploadLimit" => rate(session().limit_up).to_string(),
            _ => return None,
        }))
    }

    pub(super) fn preferences(&self) -> Result<Answer, Fault> {
        let session = self.backend().session();
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        for (name, value) in preferences(&session) {
            json.key_as_is(name);
            value.write(&mut json);
        }
        // Folders that are watched.
        json.key_as_is("scan_dirs");
        json.open(b'{');
        json.close(b'}');
        json.close(b'}');
        Ok(Answer::Json(json.into_bytes()))
    }

    /// All or nothing: what is as it is may be said again, as pages do that send their whole form.
    pub(super) async fn set_preferences(&self) -> Result<(), Fault> {
        let text = self.params.need("json")?;
        let Ok(Wanted::Object(wanted)) = json::read(text.as_bytes()) else {
            return Err(Fault::bad("json is no object"));
        };
        let now = self.backend().session();
        for (name, value) in &wanted {
            if !SETTABLE.contains(&name.as_str()) && !is_as_it_is(&now, name, value) {
                let words = format!("{name} cannot be changed while the daemon runs");
                return Err(Fault::conflict(words));
            }
        }
        let downloads = match text_of(&wanted, "save_path")? {
            Some(folder) if folder != now.downloads => Some(self.rpc.allow(folder).await?),
            _ => None,
        };
        let changed = |name: &str, before: Limit| {
            let limit = number_of(&wanted, name)?.map(|rate| limit_of(whole(rate)));
            Ok::<_, Fault>(limit.filter(|limit| rate(*limit) != rate(before)))
        };
        let starts = match flag_of(&wanted, "add_stopped_enabled")? {
            None => flag_of(&wanted, "start_paused_enabled")?,
            stopped => stopped,
        };
        let change = SessionChange {
            downloads,
            limit_down: changed("dl_limit", now.limit_down)?,
            limit_up: changed("up_limit", now.limit_up)?,
            seed_ratio: ratio(&wanted, &now)?,
            seed_idle_minutes: idle(&wanted, &now)?,
            alt: alt(&wanted, &now)?,
            download_queue: queue(&wanted, "max_active_downloads", now.download_queue)?,
            seed_queue: queue(&wanted, "max_active_uploads", now.seed_queue)?,
            queue_stalled: stalled(&wanted, &now)?,
            starts_added: starts
                .map(|is_stopped| !is_stopped)
                .filter(|starts| *starts != now.starts_added),
        };
        if change != SessionChange::default() {
            self.backend().change_session(change).await?;
        }
        Ok(())
    }

    pub(super) async fn set_session_limit(&self, is_down: bool) -> Result<(), Fault> {
        self.params.need("limit")?;
        let limit = self.params.int("limit")?.map(limit_of);
        let change = SessionChange {
            limit_down: limit.filter(|_| is_down),
            limit_up: limit.filter(|_| !is_down),
            ..SessionChange::default()
        };
        Ok(self.backend().change_session(change).await?)
    }

    /// The other set of speed limits on or off: as `mode` says, else the other way round.
    pub(super) async fn set_limits_mode(&self) -> Result<(), Fault> {
        let alt = self.backend().session().alt;
        let change = SessionChange {
            alt: Some(AltLimits {
                is_on: self.params.flag("mode").unwrap_or(!alt.is_on),
                ..alt
            }),
            ..SessionChange::default()
        };
        Ok(self.backend().change_session(change).await?)
    }

    pub(super) fn transfer_info(&self) -> Result<Answer, Fault> {
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        write_transfer(&self.backend().session(), &mut json);
        json.close(b'}');
        Ok(Answer::Json(json.into_bytes()))
    }

    /// Free bytes where downloads go, as last heard.
    pub(super) async fn free_space(&self) -> u64 {
        let space = &self.qbt.space;
        let now = Instant::now();
        if space.next.get().is_none_or(|next| now >= next) {
            // Nobody else asks meanwhile.
            space.next.set(Some(now + SPACE_PAUSE));
            let downloads = self.backend().session().downloads;
            let asked = self.backend().free_space(Path::new(&downloads));
            if let Ok(told) = tokio::time::timeout(SPACE_TIME, asked).await {
                space.free_bytes.set(told.map_or(0, |(free, _)| free));
                space.next.set(Some(now + SPACE_INTERVAL));
            }
        }
        space.free_bytes.get()
    }
}

/// Those that take effect, as `set_preferences` reads them.
const SETTABLE: [&str; 16] = [
    "alt_dl_limit",
    "alt_up_limit",
    "dont_count_slow_torrents",
    "max_active_downloads",
    "max_active_uploads",
    "max_inactive_seeding_time",
    "max_inactive_seeding_time_enabled",
    "queueing_enabled",
    "slow_torrent_inactive_timer",
    "save_path",
    "dl_limit",
    "up_limit",
    "max_ratio",
    "max_ratio_enabled",
    "add_stopped_enabled",
    "start_paused_enabled",
];

fn is_as_it_is(session: &Session, name: &str, value: &Wanted) -> bool {
    let Some((_, now)) = preferences(session).find(|(known, _)| *known == name) else {
        return name == "scan_dirs" && value.as_object().is_some_and(Map::is_empty);
    };
    match now {
        Value::Text(text) => value.as_str() == Some(&text),
        Value::Int(number) => value.as_i64() == Some(number),
        Value::Float(number) => value.as_f64() == Some(number),
        Value::Bool(is) => value.as_bool() == Some(is),
        Value::Null => value.is_null(),
    }
}

/// The ratio that ends seeding, by the two preferences that say it.
fn ratio(wanted: &Map<String, Wanted>, now: &Session) -> Result<Option<Option<f64>>, Fault> {
    let ratio = number_of(wanted, "max_ratio")?;
    let is_on = flag_of(wanted, "max_ratio_enabled")?;
    let asked = match (is_on, ratio) {
        (None, None) => return Ok(None),
        (Some(false), _) => None,
        (None, Some(ratio)) if ratio < 0.0 => None,
        (_, Some(ratio)) if ratio >= 0.0 => Some(ratio),
        (Some(true), None) => Some(now.seed_ratio.unwrap_or(1.0)),
        _ => return Err(Fault::bad("max_ratio is negative")),
    };
    Ok(Some(asked).filter(|asked| *asked != now.seed_ratio))
}

/// Minutes without an upload that end seeding, by the two preferences that say it.
fn idle(wanted: &Map<String, Wanted>, now: &Session) -> Result<Option<Option<u64>>, Fault> {
    let minutes = number_of(wanted, "max_inactive_seeding_time")?.map(whole);
    let asked = match (
        flag_of(wanted, "max_inactive_seeding_time_enabled")?,
        minutes,
    ) {
        (None, None) => return Ok(None),
        (Some(false), _) => None,
        (_, Some(minutes)) => u64::try_from(minutes).ok(),
        (Some(true), None) => Some(now.seed_idle_minutes.unwrap_or(DAY_MINUTES)),
    };
    Ok(Some(asked).filter(|asked| *asked != now.seed_idle_minutes))
}

const DAY_MINUTES: u64 = 1_440;
/// A queue that is switched on without a number, as qBittorrent has it.
const QUEUE_DEFAULT: u64 = 3;

fn alt(wanted: &Map<String, Wanted>, now: &Session) -> Result<Option<AltLimits>, Fault> {
    let rate = |name: &str, before: u64| {
        let rate = number_of(wanted, name)?.map(|rate| limit_of(whole(rate)).bytes_per_s);
        Ok::<_, Fault>(rate.unwrap_or(before))
    };
    let alt = AltLimits {
        down_bytes_per_s: rate("alt_dl_limit", now.alt.down_bytes_per_s)?,
        up_bytes_per_s: rate("alt_up_limit", now.alt.up_bytes_per_s)?,
        is_on: now.alt.is_on,
    };
    Ok((alt != now.alt).then_some(alt))
}

/// One of the two queues, by its own number and the switch for both.
fn queue(wanted: &Map<String, Wanted>, name: &str, before: Count) -> Result<Option<Count>, Fault> {
    let number = number_of(wanted, name)?.map(whole);
    let is_on = flag_of(wanted, "queueing_enabled")?;
    let asked = match (is_on, number) {
        (None, None) => before,
        (Some(false), _) => Count {
            is_on: false,
            ..before
        },
        (_, Some(number)) => Count {
            value: u64::try_from(number).unwrap_or(before.value),
            is_on: number > 0,
        },
        (Some(true), None) if before.is_on => before,
        (Some(true), None) => Count {
            value: before.value.max(QUEUE_DEFAULT),
            is_on: true,
        },
    };
    Ok((asked != before).then_some(asked))
}

fn stalled(wanted: &Map<String, Wanted>, now: &Session) -> Result<Option<Count>, Fault> {
    let seconds = number_of(wanted, "slow_torrent_inactive_timer")?.map(whole);
    let minutes = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let is_on = flag_of(wanted, "dont_count_slow_torrents")?;
    let asked = Count {
        value: minutes.map_or(now.queue_stalled.value, |seconds| seconds.div_ceil(60)),
        is_on: is_on.unwrap_or(now.queue_stalled.is_on),
    };
    Ok((asked != now.queue_stalled).then_some(asked))
}

fn bad(name: &str) -> Fault {
    Fault::bad(format!("{name} has a value that it cannot have"))
}

fn text_of<'a>(map: &'a Map<String, Wanted>, name: &str) -> Result<Option<&'a str>, Fault> {
    let value = map.get(name);
    value
        .map(|value| value.as_str().ok_or_else(|| bad(name)))
        .transpose()
}

fn flag_of(map: &Map<String, Wanted>, name: &str) -> Result<Option<bool>, Fault> {
    let value = map.get(name);
    value
        .map(|value| value.as_bool().ok_or_else(|| bad(name)))
        .transpose()
}

fn number_of(map: &Map<String, Wanted>, name: &str) -> Result<Option<f64>, Fault> {
    let value = map.get(name);
    value
        .map(|value| value.as_f64().ok_or_else(|| bad(name)))
        .transpose()
}

/// Without its fraction.
fn whole(number: f64) -> i64 {
    // What is below 2^53 has an exact text.
    let cut = number.clamp(-1.0, 9e15).trunc();
    format!("{cut:.0}").parse().unwrap_or(0)
}

/// Rates and totals as members of an object that is open.
pub(super) fn write_transfer(session: &Session, json: &mut Json) {
    for (key, value) in [
        ("connection_status", Value::text("connected")),
        ("dht_nodes", Value::Int(0)),
        ("dl_info_data", Value::uint(session.downloaded_bytes)),
        ("dl_info_speed", Value::uint(session.down_bytes_per_s)),
        ("dl_rate_limit", Value::Int(rate(session.limit_down))),
        ("last_external_address_v4", Value::text("")),
        ("last_external_address_v6", Value::text("")),
        ("up_info_data", Value::uint(session.uploaded_bytes)),
        ("up_info_speed", Value::uint(session.up_bytes_per_s)),
        ("up_rate_limit", Value::Int(rate(session.limit_up))),
    ] {
        json.key_as_is(key);
        value.write(json);
    }
}

fn build_info() -> Answer {
    let mut json = Json::new(Dialect::Old);
    json.open(b'{');
    for (key, text) in [
        ("qt", ""),
        ("libtorrent", concat!("gyre ", env!("CARGO_PKG_VERSION"))),
        ("boost", ""),
        ("openssl", ""),
        ("zlib", ""),
        ("platform", "linux"),
    ] {
        json.key_as_is(key);
        json.text(text);
    }
    json.key_as_is("bitness");
    json.uint(usize::BITS);
    json.close(b'}');
    Answer::Json(json.into_bytes())
}
