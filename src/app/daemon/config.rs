//! Settings of `gyre daemon` from a TOML file and from options. Layer 7.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use toml::de::{DeTable, DeValue};

use super::args::DaemonArgs;
use super::policies;
use crate::app::exit::{Failure, io_cause};
use crate::app::ignored::{self, SWITCHES};
use crate::app::size::{parse_duration, parse_rate, parse_size};
use crate::app::values::{
    self, parse_bind, parse_host_port, parse_peers_max, parse_port, parse_proxy, parse_ratio,
    parse_slots,
};
use crate::app::{escape, fetch, run};
use crate::daemon::control::ControlSettings;
use crate::daemon::control::backend::Count;
use crate::daemon::{Hook, Policy, QueueLimits, Scrubbing, Settings, WATCHED_MAX, WatchFolder};
use crate::session::ip_filter::IpFilterSettings;
use crate::session::{
    DhtSettings, Encryption, PortChoice, PortMapSettings, SeedAfter, SendEngine, SessionConfig,
    WriteEngine,
};
use crate::swarm::choker::{SeedChoker, UploadSlots};

/// The longest settings file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Often enough for a second copy to be had still when one has rotted.
const SCRUB_PERIOD: Duration = Duration::from_secs(30 * 86_400);
/// As Transmission has it.
const QUEUE_STALLED_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// A program that has not ended by then hangs.
pub(super) const HOOK_TIME: Duration = Duration::from_secs(300);
/// Where programs for Transmission look.
const API_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9_091);

/// Keys that no option is for: what is run is the file's owner's matter alone.
const ON_COMPLETE: &str = "on-complete";
const ON_COMPLETE_TIME: &str = "on-complete-time";
/// Its value may hold a password.
const PROXY: &str = "proxy";
/// Between the parts of a list that was read from the file, where commas may be parts of them.
pub(super) const PART: char = '\0';

/// A key of the settings file.
struct Key {
    name: &'static str,
    /// As it would be written; empty where leaving it out says something that no value does.
    default: &'static str,
    about: &'static str,
    /// SIGHUP reads it anew.
    is_live: bool,
}

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key {
        name,
        default,
        about,
        is_live: false,
    }
}

const fn live(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key {
        is_live: true,
        ..key(name, default, about)
    }
}

const KEYS: [Key; 44] = [
    key(
        "state",
        "",
        "Folder of everything that is remembered. Left out: $XDG_STATE_HOME/gyre.",
    ),
    live(
        "downloads",
        "\".\"",
        "Folder for torrents that are added without one.",
    ),
    key(
        "port",
        "",
        "Port to listen on, 0 for any. Left out: 6881 or one of the next nine, none with proxy.",
    ),
    key(
        "bind",
        "",
        "Send and receive only through this local address or network interface.",
    ),
    key(
        PROXY,
        "",
        "Everything goes through this SOCKS 5 proxy or not at all: \"socks5://HOST:PORT\" or \"socks5://USER:PASSWORD@HOST:PORT\".",
    ),
    key(
        "ip-filter",
        "",
        "File of addresses to have nothing to do with. The list in it is read anew on SIGHUP.",
    ),
    key(
        "tracker-ca",
        "",
        "File of authorities (PEM) that are trusted besides the system's where https is spoken. Left out: none.",
    ),
    key(
        "port-map",
        "true",
        "Whether the gateway is asked for a port that peers can dial.",
    ),
    key("ipv6", "true", "Whether IPv6 is used."),
    key("tcp", "true", "Whether peers are connected to over TCP."),
    key("utp", "true", "Whether peers are connected to over uTP."),
    key(
        "holepunch",
        "true",
        "Whether peers that nobody can dial are connected with each other through others.",
    ),
    live(
        "limit-up",
        "0",
        "Upload at most this fast, such as \"10MiB\" a second; 0 is no limit.",
    ),
    live(
        "limit-down",
        "0",
        "Download at most this fast; 0 is no limit.",
    ),
    key(
        "max-peers",
        "500",
        "Most connections of all torrents together.",
    ),
    key(
        "upload-slots",
        "\"auto\"",
        "Peers uploaded to at a time, or \"auto\".",
    ),
    live(
        "seed-ratio",
        "",
        "Seed until uploaded / downloaded, over a torrent's life, reaches this. Left out: for ever.",
    ),
    live(
        "seed-time",
        "",
        "Seed for this long after a torrent is complete, such as \"240h\". Left out: for ever.",
    ),
    live(
        "seed-idle",
        "",
        "Seed until nothing was uploaded for this long, such as \"30m\". Left out: for ever.",
    ),
    live(
        "download-queue-size",
        "0",
        "Torrents that download at a time; the others wait in the queue. 0 is no limit.",
    ),
    live(
        "seed-queue-size",
        "0",
        "Torrents that seed at a time; the others wait in the queue. 0 is no limit.",
    ),
    live(
        "queue-stalled",
        "\"30m\"",
        "A torrent that moved nothing for this long takes no place in the queue; \"0s\" lets it keep its place.",
    ),
    key(
        "dht",
        "true",
        "Whether peers of public torrents are looked for in the DHT.",
    ),
    key(
        "dht-bootstrap",
        "[]",
        "Enter the DHT through these nodes, \"HOST:PORT\" each, instead of the well-known ones.",
    ),
    key(
        "pex",
        "true",
        "Whether peer addresses are exchanged with peers.",
    ),
    key(
        "lsd",
        "true",
        "Whether peers are looked for on the local network.",
    ),
    key(
        "encryption",
        "\"prefer\"",
        "Whether connections are hidden from those who look on: \"prefer\", \"require\" or \"off\".",
    ),
    key(
        "buffers",
        "",
        "Registered buffer memory. Left out: \"32MiB\", or what RLIMIT_MEMLOCK leaves.",
    ),
    key(
        "send-engine",
        "\"auto\"",
        "How blocks are sent: \"auto\", \"mapped\" or \"copy\".",
    ),
    key(
        "write-engine",
        "\"auto\"",
        "How pieces are written: \"auto\", \"direct\" or \"buffered\".",
    ),
    key(
        "api",
        "\"127.0.0.1:9091\"",
        "Serve the control API and the page there, or nowhere with \"off\".",
    ),
    key(
        "api-socket",
        "",
        "The socket that gyre ctl asks. Left out: control.sock in the state folder.",
    ),
    key(
        "api-user",
        "",
        "Name that goes with the password. Left out: any.",
    ),
    key(
        "api-password-file",
        "",
        "File whose first line is the API's password, for its owner only. Left out: a token is made in the state folder.",
    ),
    key(
        "api-hosts",
        "[]",
        "Host names besides addresses and localhost that the API answers to.",
    ),
    key(
        "api-roots",
        "[]",
        "Folders besides the one for downloads that the API may put data in.",
    ),
    key(
        "web-ui",
        "",
        "Folder that is served as the page, in place of the one that is compiled in. Left out: that one.",
    ),
    key(
        "cross-seed",
        "true",
        "Whether files of torrents that are added are looked for among those of the others, by length and a sample of \
         hashes, and shared with them.",
    ),
    key(
        "scrub-rate",
        "0",
        "Read torrents again in the background, at most this fast, such as \"5MiB\" a second, to find what rots on the disk; \
         0 reads nothing.",
    ),
    key(
        "scrub-period",
        "\"30d\"",
        "Each torrent is read again once in that time.",
    ),
    key(
        "watch",
        "[]",
        "Folders whose .torrent and .magnet files are added, each as \"DIR\" or \"DIR; to=DIR; label=WORD; paused\".",
    ),
    key(
        ON_COMPLETE,
        "[]",
        "Program with its arguments that is run when a download is complete, told by GYRE_NAME, GYRE_INFO_HASH, GYRE_FOLDER, \
         GYRE_LABELS and GYRE_BYTES. No shell is asked. Only here, no option.",
    ),
    key(
        ON_COMPLETE_TIME,
        "\"5m\"",
        "That program is killed after this time. Only here, no option.",
    ),
    key(
        "announce-interval-min",
        "\"60s\"",
        "Shortest announce interval taken from a tracker, for swarms of one's own.",
    ),
];

/// A settings file with every key.
pub fn template() -> String {
    let mut text = String::from(
        "# Settings of gyre daemon. Every key is an option of the same name too, which overrides it.\n\
         # Keys marked with * are read anew on SIGHUP.\n",
    );
    for key in &KEYS {
        let mark = if key.is_live { "* " } else { "" };
        let value = if key.default.is_empty() {
            ""
        } else {
            key.default
        };
        text.push_str(&format!(
            "\n# {mark}{}\n#{} = {value}\n",
            key.about, key.name
        ));
    }
    text + &policies::template()
}

/// One value as text, and where it stands.
struct Given {
    text: String,
    place: String,
}

/// What was given, by key, and the policies.
#[derive(Default)]
pub struct Values(BTreeMap<&'static str, Given>, Vec<Policy>);

impl Values {
    /// The list of addresses to have nothing to do with, read. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn ip_filter(&self) -> Result<Option<IpFilterSettings>, Failure> {
        let path = self.get("ip-filter", |text| Ok(PathBuf::from(text)))?;
        path.map(run::load_ip_filter).transpose()
    }

    /// The keys of another value than there that a restart alone puts in force.
    pub fn changed_for_a_restart(&self, before: &Values) -> Vec<&'static str> {
        let text = |values: &Values, key: &Key| match values.0.get(key.name) {
            Some(given) => given.text.clone(),
            None => key.default.trim_matches(['"', '[', ']']).to_owned(),
        };
        let changed = KEYS.iter().filter(|key| !key.is_live);
        let changed = changed.filter(|key| text(self, key) != text(before, key));
        changed.map(|key| key.name).collect()
    }
}

/// What was given, and what it comes to. The settings are without the list of `ip-filter`, which is long.
pub struct Loaded {
    pub settings: Settings,
    pub values: Values,
}

/// Reads the file, if one is named, and lays the options over it.
///
/// # Errors
/// The file cannot be read; an unknown key or a bad value, with its line; a variable that would be ignored.
pub fn load(args: &DaemonArgs) -> Result<Loaded, Failure> {
    let mut values = match &args.config {
        Some(path) => read(path)?,
        None => Values::default(),
    };
    for (key, text) in args.given() {
        let given = Given {
            text: text.to_owned(),
            place: format!("--{key}"),
        };
        values.0.insert(key, given);
    }
    let settings = values.settings()?;
    let off = SWITCHES
        .into_iter()
        .filter(|key| values.is_on(key) == Ok(false));
    ignored::by_daemon(&off.collect::<Vec<_>>())?;
    Ok(Loaded { settings, values })
}

fn read(path: &Path) -> Result<Values, Failure> {
    let shown = escape::terminal_path(path);
    let unreadable = |cause: &dyn std::fmt::Display| {
        let message = format!("cannot read {shown}: {cause}");
        Failure::new(
            message,
            "name a settings file with --config; --print-config prints one",
        )
    };
    let length = std::fs::metadata(path)
        .map_err(|error| unreadable(&io_cause(&error)))?
        .len();
    if length > FILE_BYTES_MAX {
        return Err(unreadable(&"it is too long for a settings file"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(&io_cause(&error)))?;
    parse(&text, &shown)
}

fn parse(text: &str, file: &str) -> Result<Values, Failure> {
    let place = |at: usize| {
        let before = text.get(..at).unwrap_or(text);
        format!("line {} of {file}", before.matches('\n').count() + 1)
    };
    let hint = "gyre daemon --print-config lists the keys and their values";
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().lines().next().unwrap_or_default();
        Failure::usage(format!("{}: {message}", place(at)), hint)
    })?;
    let mut values = Values::default();
    for (name, value) in table.get_ref() {
        if name.get_ref() == policies::POLICY {
            values.1 = policies::parse(value.get_ref(), place)?;
            continue;
        }
        let at = place(name.span().start);
        let known = KEYS.iter().find(|key| key.name == name.get_ref());
        let Some(key) = known else {
            let message = format!("{at}: there is no key {}", name.get_ref());
            return Err(Failure::usage(message, hint));
        };
        let between = match key.name {
            ON_COMPLETE => PART,
            _ => ',',
        };
        let Some(text) = as_text(value.get_ref(), between) else {
            let message = format!(
                "{at}: {} is no value of {}",
                value.get_ref().type_str(),
                key.name
            );
            return Err(Failure::usage(message, hint));
        };
        values.0.insert(key.name, Given { text, place: at });
    }
    Ok(values)
}

/// The text that an option would have; `None` of what no option can have.
pub(super) fn as_text(value: &DeValue<'_>, between: char) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(is_set) => Some(is_set.to_string()),
        DeValue::Array(values) => {
            let texts = values.iter().map(|value| as_text(value.get_ref(), between));
            Some(
                texts
                    .collect::<Option<Vec<_>>>()?
                    .join(&String::from(between)),
            )
        }
        _ => None,
    }
}

impl Values {
    fn get<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let Some(given) = self.0.get(key) else {
            return Ok(None);
        };
        parse(&given.text).map(Some).map_err(|hint| {
            let shown = match key {
                // Terminals are recorded, and logs kept.
                PROXY => "what is written".to_owned(),
                _ => format!("\"{}\"", given.text),
            };
            Failure::usage(
                format!("{}: {shown} is no value of {key}", given.place),
                hint,
            )
        })
    }

    fn is_on(&self, key: &'static str) -> Result<bool, Failure> {
        let parse = |text: &str| text.parse().map_err(|_| "write true or false".to_owned());
        Ok(self.get(key, parse)?.unwrap_or(true))
    }

    fn word<T: ValueEnum>(&self, key: &'static str, default: T) -> Result<T, Failure> {
        let parse = |text: &str| {
            T::from_str(text, false).map_err(|_| {
                let words = T::value_variants()
                    .iter()
                    .filter_map(ValueEnum::to_possible_value);
                let words: Vec<String> = words.map(|word| word.get_name().to_owned()).collect();
                format!("write one of {}", words.join(", "))
            })
        };
        Ok(self.get(key, parse)?.unwrap_or(default))
    }

    fn settings(&self) -> Result<Settings, Failure> {
        let path = |text: &str| Ok(PathBuf::from(text));
        let bind = self.get("bind", parse_bind)?;
        let ipv6 = self.is_on("ipv6")?;
        let proxy = self.get(PROXY, parse_proxy)?;
        if proxy.is_some() && !self.is_on("tcp")? {
            let hint = "leave one of the two out: uTP does not go through a proxy";
            return Err(Failure::usage("there is a proxy, and tcp is off", hint));
        }
        let slots = |text: &str| parse_slots(text);
        let rate = |key| Ok::<_, Failure>(self.get(key, parse_rate)?.filter(|rate| *rate > 0));
        let bootstrap = |text: &str| {
            let nodes = text
                .split(',')
                .map(str::trim)
                .filter(|node| !node.is_empty());
            nodes.map(parse_host_port).collect::<Result<Vec<_>, _>>()
        };
        let bootstrap = self.get("dht-bootstrap", bootstrap)?.unwrap_or_default();
        let interval_min = self.get("announce-interval-min", parse_duration)?;
        let session = SessionConfig {
            state_dir: run::state_dir(self.get("state", path)?.as_deref())?,
            port: match self.get("port", parse_port)? {
                Some(port) => PortChoice::Exactly(port),
                // Where we can be reached is what a proxy is to hide.
                None if proxy.is_some() => PortChoice::Nowhere,
                None => PortChoice::Default,
            },
            bind,
            ipv6,
            tcp: self.is_on("tcp")?,
            utp: self.is_on("utp")?,
            holepunch: self.is_on("holepunch")?,
            lsd: self.is_on("lsd")?,
            limit_up_bytes_per_s: rate("limit-up")?,
            limit_down_bytes_per_s: rate("limit-down")?,
            encryption: match self.word("encryption", values::Encryption::Prefer)? {
                values::Encryption::Prefer => Encryption::Prefer,
                values::Encryption::Require => Encryption::Require,
                values::Encryption::Off => Encryption::Off,
            },
            peers_max: self.get("max-peers", parse_peers_max)?.unwrap_or(500),
            upload_slots: self
                .get("upload-slots", slots)?
                .unwrap_or(UploadSlots::Auto),
            seed_choker: SeedChoker::RoundRobin,
            exchanges_peers: self.is_on("pex")?,
            buffers_bytes: self.get("buffers", parse_size)?,
            send_engine: match self.word("send-engine", values::SendEngine::Auto)? {
                values::SendEngine::Auto => SendEngine::Auto,
                values::SendEngine::Mapped => SendEngine::Mapped,
                values::SendEngine::Copy => SendEngine::Copy,
            },
            write_engine: match self.word("write-engine", values::WriteEngine::Auto)? {
                values::WriteEngine::Auto => WriteEngine::Auto,
                values::WriteEngine::Direct => WriteEngine::Direct,
                values::WriteEngine::Buffered => WriteEngine::Buffered,
            },
            give_up: None,
            http_proxy: run::variable(&["http_proxy"]),
            no_proxy: run::no_proxy(),
            proxy,
            tracker_ca: fetch::tracker_ca(self.get("tracker-ca", path)?.as_deref())?,
            ip_filter: None,
            port_map: self.is_on("port-map")?.then(PortMapSettings::default),
            announce_interval_min: interval_min.unwrap_or(Duration::from_secs(60)),
            dht: self.is_on("dht")?.then_some(DhtSettings { bootstrap }),
            tells_delays: false,
        };
        run::check_buffers(session.buffers_bytes)?;
        let downloads = self.get("downloads", path)?.unwrap_or_else(|| ".".into());
        let downloads = std::path::absolute(&downloads).map_err(|error| {
            Failure::new(
                format!("no folder for downloads: {}", io_cause(&error)),
                "name one with --downloads",
            )
        })?;
        Ok(Settings {
            control: self.control()?,
            cross_seed: self.is_on("cross-seed")?,
            scrubbing: Scrubbing {
                bytes_per_s: rate("scrub-rate")?.unwrap_or(0),
                period: self
                    .get("scrub-period", parse_duration)?
                    .unwrap_or(SCRUB_PERIOD),
            },
            watch: self.get("watch", parse_watch)?.unwrap_or_default(),
            on_complete: self.hook()?,
            session,
            downloads,
            seed_after: SeedAfter {
                seeds: true,
                ratio: self.get("seed-ratio", parse_ratio)?,
                time: self.get("seed-time", parse_duration)?,
                idle: self.get("seed-idle", parse_duration)?,
            },
            queue: self.queue()?,
            policies: self.1.clone(),
        })
    }

    fn queue(&self) -> Result<QueueLimits, Failure> {
        let number = |text: &str| {
            let hint = |_| "write a whole number, 0 for no limit".to_owned();
            text.parse::<u64>().map_err(hint)
        };
        let count = |value: Option<u64>| Count {
            value: value.unwrap_or(0),
            is_on: value.is_some_and(|value| value > 0),
        };
        let stalled = self.get("queue-stalled", parse_duration)?;
        let stalled = stalled.unwrap_or(QUEUE_STALLED_DEFAULT);
        Ok(QueueLimits {
            downloads: count(self.get("download-queue-size", number)?),
            seeds: count(self.get("seed-queue-size", number)?),
            // Whole minutes, as control protocols have them; less than one counts as one.
            stalled: count(Some(stalled.as_secs().div_ceil(60))),
        })
    }

    fn hook(&self) -> Result<Option<Hook>, Failure> {
        let time_limit = self.get(ON_COMPLETE_TIME, parse_duration)?;
        let argv = self.get(ON_COMPLETE, parse_argv)?;
        let argv = argv.filter(|argv| !argv.is_empty());
        Ok(argv.map(|argv| Hook {
            argv,
            time_limit: time_limit.unwrap_or(HOOK_TIME),
        }))
    }

    fn control(&self) -> Result<ControlSettings, Failure> {
        let path = |text: &str| Ok(PathBuf::from(text));
        let listen = |text: &str| match text {
            "off" => Ok(None),
            text => {
                let hint = |_| "write ADDRESS:PORT, or off".to_owned();
                text.parse().map(Some).map_err(hint)
            }
        };
        let list = |text: &str| {
            let parts = text.split(',').map(str::trim).map(str::to_owned);
            Ok(parts.filter(|part| !part.is_empty()).collect::<Vec<_>>())
        };
        let roots = self.get("api-roots", list)?.unwrap_or_default();
        Ok(ControlSettings {
            listen: self.get("api", listen)?.unwrap_or(Some(API_DEFAULT)),
            socket: self.get("api-socket", path)?,
            user: self.get("api-user", |text| Ok(text.to_owned()))?,
            password_file: self.get("api-password-file", path)?,
            host_names: self.get("api-hosts", list)?.unwrap_or_default(),
            roots: roots.into_iter().map(PathBuf::from).collect(),
            web_ui: self.get("web-ui", path)?,
        })
    }
}

/// A program and its arguments, with [`PART`] between them; empty is none.
pub(super) fn parse_argv(text: &str) -> Result<Vec<String>, String> {
    let argv: Vec<String> = text.split(PART).map(str::to_owned).collect();
    match argv.first() {
        Some(program) if program.is_empty() && argv.len() == 1 => Ok(Vec::new()),
        Some(program) if program.starts_with('/') => Ok(argv),
        _ => Err("write the program's whole path first".to_owned()),
    }
}

/// Watched folders with commas between them, each with its settings behind semicolons.
fn parse_watch(text: &str) -> Result<Vec<WatchFolder>, String> {
    let parts = text.split(',').map(str::trim);
    let folders = parts.filter(|part| !part.is_empty()).map(watch_folder);
    let folders = folders.collect::<Result<Vec<_>, _>>()?;
    match folders.len() > WATCHED_MAX {
        true => Err(format!("watch at most {WATCHED_MAX} folders")),
        false => Ok(folders),
    }
}

fn watch_folder(text: &str) -> Result<WatchFolder, String> {
    let absolute = |text: &str| {
        let path = PathBuf::from(text.trim());
        match path.is_absolute() {
            true => Ok(path),
            false => Err(format!("name {text} by its whole path")),
        }
    };
    let mut parts = text.split(';').map(str::trim);
    let mut watch = WatchFolder {
        folder: absolute(parts.next().unwrap_or_default())?,
        to: None,
        labels: Vec::new(),
        starts: true,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("to", folder)) => watch.to = Some(absolute(folder)?),
            Some(("label", label)) if !label.is_empty() => watch.labels.push(label.to_owned()),
            None if part == "paused" => watch.starts = false,
            _ => return Err(format!("write to=DIR, label=WORD or paused, not {part}")),
        }
    }
    Ok(watch)
}

#[cfg(test)]
mod tests;
