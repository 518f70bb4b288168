//! `gyre ctl`: a running daemon asked over its unix socket. Layer 7.

pub mod args;
mod ask;
mod table;
mod top;

use std::path::{Path, PathBuf};

use base64::Engine;
use serde_json::{Map, Value, json};

use super::exit::{Exit, Failure, io_cause};
use super::{escape, json as lines, output, run};
use crate::daemon::control::socket_path;
use args::{AddArgs, Ask, CtlArgs, LimitArgs, MoveArgs};

/// What the list shows.
const LIST_FIELDS: [&str; 15] = [
    "id",
    "hashString",
    "name",
    "status",
    "percentDone",
    "sizeWhenDone",
    "leftUntilDone",
    "rateDownload",
    "rateUpload",
    "uploadRatio",
    "peersConnected",
    "eta",
    "labels",
    "errorString",
    "movedShare",
];
/// What `show` shows besides.
const SHOW_FIELDS: [&str; 16] = [
    "downloadDir",
    "totalSize",
    "uploadedEver",
    "downloadedEver",
    "addedDate",
    "doneDate",
    "isPrivate",
    "isUnproven",
    "pieceCount",
    "pieceSize",
    "comment",
    "trackerStats",
    "peers",
    "files",
    "fileStats",
    "policies",
];
/// The largest .torrent file that the daemon takes.
const TORRENT_BYTES_MAX: u64 = 64 << 20;

const WHAT_TO_ADD: &str = "name a .torrent file or a magnet link";

/// Runs `gyre ctl`.
///
/// # Errors
/// No daemon, no such torrent, or what the daemon says against it.
pub fn run(args: &CtlArgs) -> Result<Exit, Failure> {
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => socket_path(&run::state_dir(args.state.as_deref())?),
    };
    let ctl = Ctl {
        socket,
        as_json: args.json,
    };
    match &args.ask {
        Ask::List => ctl.list(),
        Ask::Add(add) => ctl.add(add),
        Ask::Show(which) => ctl.show(&which.torrents),
        Ask::Start(which) => ctl.act("torrent-start", &which.torrents, json!({})),
        Ask::Stop(which) => ctl.act("torrent-stop", &which.torrents, json!({})),
        Ask::Verify(which) => ctl.act("torrent-verify", &which.torrents, json!({})),
        Ask::Remove(remove) => {
            let more = json!({ "delete-local-data": remove.with_data });
            ctl.act("torrent-remove", &remove.which.torrents, more)
        }
        Ask::Move(to) => ctl.relocate(to),
        Ask::Limit(limit) => ctl.limit(limit),
        Ask::Policies => ctl.policies(),
        Ask::Top => top::run(&ctl),
    }
}

/// A limit in kB/s as words.
fn limit_words(is_on: bool, kilobytes: &Value) -> String {
    match is_on {
        true => super::size::rate(kilobytes.as_u64().unwrap_or(0).saturating_mul(1_000)),
        false => "no limit".to_owned(),
    }
}

struct Ctl {
    socket: PathBuf,
    as_json: bool,
}

impl Ctl {
    fn call(&self, method: &str, arguments: &Value) -> Result<Value, Failure> {
        ask::call(&self.socket, method, arguments)
    }

    fn torrents(&self, fields: &[&str], ids: Option<Value>) -> Result<Vec<Value>, Failure> {
        let mut asked = json!({ "fields": fields });
        if let Some(ids) = ids {
            asked["ids"] = ids;
        }
        match self.call("torrent-get", &asked)?["torrents"].take() {
            Value::Array(torrents) => Ok(torrents),
            _ => Ok(Vec::new()),
        }
    }

    fn list(&self) -> Result<Exit, Failure> {
        let torrents = self.torrents(&LIST_FIELDS, None)?;
        if self.as_json {
            for torrent in &torrents {
                lines::print(torrent);
            }
        } else {
            for line in table::list(&torrents) {
                output::stdout_line(&line);
            }
        }
        Ok(Exit::Done)
    }

    fn show(&self, named: &[String]) -> Result<Exit, Failure> {
        let fields = [&LIST_FIELDS[..], &SHOW_FIELDS[..]].concat();
        for torrent in self.torrents(&fields, Some(self.ids(named)?))? {
            if self.as_json {
                lines::print(&torrent);
                continue;
            }
            for line in table::show(&torrent) {
                output::stdout_line(&line);
            }
        }
        Ok(Exit::Done)
    }

    fn act(&self, method: &str, named: &[String], mut more: Value) -> Result<Exit, Failure> {
        more["ids"] = self.ids(named)?;
        self.call(method, &more)?;
        Ok(Exit::Done)
    }

    fn add(&self, args: &AddArgs) -> Result<Exit, Failure> {
        let folder = args.output.as_deref();
        let folder = folder.map(|folder| absolute(folder, "name another with -o"));
        let folder = folder.transpose()?;
        // Without a daemon each of them would fail for that.
        self.call("session-get", &json!({ "fields": ["version"] }))?;
        let mut exit = Exit::Done;
        for source in &args.sources {
            let mut asked = json!({ "paused": args.paused, "labels": args.labels });
            if let Some(folder) = &folder {
                asked["download-dir"] = json!(folder);
            }
            let answer = match self.add_one(source, asked) {
                Ok(answer) => answer,
                Err(failure) => {
                    super::report(&failure, self.as_json);
                    exit = Exit::Failed;
                    continue;
                }
            };
            let is_new = !answer["torrent-added"].is_null();
            let torrent = match is_new {
                true => &answer["torrent-added"],
                false => &answer["torrent-duplicate"],
            };
            if self.as_json {
                lines::print(&answer);
                continue;
            }
            let name = escape::terminal(torrent["name"].as_str().unwrap_or_default());
            let hash = torrent["hashString"].as_str().unwrap_or_default();
            let word = if is_new { "added" } else { "is there already" };
            output::stdout_line(&format!("{} {name} {hash} {word}", torrent["id"]));
        }
        Ok(exit)
    }

    /// The daemon's answer; a failure names the source.
    fn add_one(&self, source: &str, mut asked: Value) -> Result<Value, Failure> {
        match source.starts_with("magnet:") {
            true => asked["filename"] = json!(source),
            false => asked["metainfo"] = json!(read(Path::new(source))?),
        }
        self.call("torrent-add", &asked).map_err(|failure| {
            let hint = match failure.hint() {
                ask::USUAL_HINT => WHAT_TO_ADD,
                hint => hint,
            };
            Failure::new(format!("cannot add {source}: {}", failure.message()), hint)
        })
    }

    fn policies(&self) -> Result<Exit, Failure> {
        let answer = self.call("policy-get", &json!({}))?;
        let policies = answer["policies"].as_array().cloned().unwrap_or_default();
        if self.as_json {
            for policy in &policies {
                lines::print(policy);
            }
        } else {
            for line in table::policies(&policies) {
                output::stdout_line(&line);
            }
        }
        Ok(Exit::Done)
    }

    fn relocate(&self, args: &MoveArgs) -> Result<Exit, Failure> {
        let folder = absolute(&args.to, "name another folder with --to")?;
        let more = json!({ "location": folder, "move": !args.no_data });
        self.act("torrent-set-location", &args.which.torrents, more)
    }

    fn limit(&self, args: &LimitArgs) -> Result<Exit, Failure> {
        if !args.torrents.is_empty() {
            return self.limit_torrents(args);
        }
        let mut asked = Map::new();
        for (name, rate) in [("down", args.down), ("up", args.up)] {
            let Some(rate) = rate else { continue };
            asked.insert(format!("speed-limit-{name}-enabled"), json!(rate > 0));
            if rate > 0 {
                let kilobytes = rate.div_ceil(1_000);
                asked.insert(format!("speed-limit-{name}"), json!(kilobytes));
            }
        }
        if !asked.is_empty() {
            self.call("session-set", &Value::Object(asked))?;
        }
        let session = self.call("session-get", &json!({}))?;
        if self.as_json {
            lines::print(&session);
            return Ok(Exit::Done);
        }
        for name in ["down", "up"] {
            let is_on = session[format!("speed-limit-{name}-enabled")] == true;
            let words = limit_words(is_on, &session[format!("speed-limit-{name}")]);
            output::stdout_line(&format!("{name:<4} {words}"));
        }
        Ok(Exit::Done)
    }

    fn limit_torrents(&self, args: &LimitArgs) -> Result<Exit, Failure> {
        let ids = self.ids(&args.torrents)?;
        let mut asked = Map::new();
        for (name, rate) in [("download", args.down), ("upload", args.up)] {
            let Some(rate) = rate else { continue };
            asked.insert(format!("{name}Limited"), json!(rate > 0));
            if rate > 0 {
                asked.insert(format!("{name}Limit"), json!(rate.div_ceil(1_000)));
            }
        }
        if !asked.is_empty() {
            asked.insert("ids".to_owned(), ids.clone());
            self.call("torrent-set", &Value::Object(asked))?;
        }
        let fields = [
            "id",
            "name",
            "downloadLimit",
            "downloadLimited",
            "uploadLimit",
            "uploadLimited",
        ];
        for torrent in self.torrents(&fields, Some(ids))? {
            if self.as_json {
                lines::print(&torrent);
                continue;
            }
            let name = torrent["name"].as_str().unwrap_or_default();
            let of = |name: &str| {
                let is_on = torrent[format!("{name}Limited")] == true;
                limit_words(is_on, &torrent[format!("{name}Limit")])
            };
            let (down, up) = (of("download"), of("upload"));
            let name = escape::terminal(name);
            output::stdout_line(&format!("{name}: down {down}, up {up}"));
        }
        Ok(Exit::Done)
    }

    /// The torrents that these words name: numbers, info_hashes, the beginning of one, or names. Each names one.
    fn ids(&self, named: &[String]) -> Result<Value, Failure> {
        let all = self.torrents(&["id", "hashString", "name"], None)?;
        let mut ids = Vec::new();
        for word in named {
            let number = word.parse().ok();
            let is_it = |torrent: &&Value| {
                let hash = torrent["hashString"].as_str().unwrap_or_default();
                let begins = word.len() >= 6 && hash.starts_with(&word.to_ascii_lowercase());
                torrent["id"].as_u64() == number || begins || torrent["name"] == word.as_str()
            };
            let found: Vec<&Value> = all.iter().filter(is_it).collect();
            match found.as_slice() {
                [one] => ids.push(one["id"].clone()),
                [] => {
                    let message = format!("there is no torrent {word}");
                    return Err(Failure::new(message, "gyre ctl list shows their numbers"));
                }
                _ => {
                    let message = format!("{word} names several torrents");
                    return Err(Failure::new(message, "name one by its number"));
                }
            }
        }
        Ok(Value::Array(ids))
    }
}

/// The folder as the daemon has to hear it: relative to ours it means nothing there.
fn absolute(folder: &Path, hint: &str) -> Result<String, Failure> {
    let folder = std::path::absolute(folder).map_err(|error| {
        let shown = escape::terminal_path(folder);
        Failure::new(format!("no folder {shown}: {}", io_cause(&error)), hint)
    })?;
    Ok(folder.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<String, Failure> {
    let shown = escape::terminal_path(path);
    let failed = |cause: &dyn std::fmt::Display| {
        let message = format!("cannot read {shown}: {cause}");
        Failure::new(message, WHAT_TO_ADD)
    };
    let length = std::fs::metadata(path).map_err(|error| failed(&io_cause(&error)))?;
    if length.len() > TORRENT_BYTES_MAX {
        return Err(failed(&"it is too long for a .torrent file"));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(&io_cause(&error)))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}
