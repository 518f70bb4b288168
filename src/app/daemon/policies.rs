//! The `[[policy]]` tables of the settings file. Layer 7.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeArray, DeTable, DeValue};

use super::config::{HOOK_TIME, PART, as_text, parse_argv};
use crate::app::exit::Failure;
use crate::app::size::{parse_duration, parse_rate};
use crate::app::values::parse_ratio;
use crate::daemon::{Goal, Hook, Moment, POLICIES_MAX, Policy, Schedule, Then};
use crate::swarm::bandwidth::SHARE_WHOLE;

/// The name of the tables.
pub const POLICY: &str = "policy";
/// A rate above this is a slip of the pen: more than any machine moves.
const RATE_MAX: u64 = 1 << 50;
/// Characters of a name.
const NAME_CHARS_MAX: usize = 64;

/// Each key, an example, and what it is for.
const KEYS: [(&str, &str, &str); 20] = [
    (
        "name",
        "\"slow tracker\"",
        "What it is called; each is called differently.",
    ),
    (
        "device",
        "\"/srv/disk1\"",
        "For torrents whose data is on the file system that is mounted there, whatever folders lead to it. Left out: on any.",
    ),
    (
        "folder",
        "\"/srv/disk1/tv\"",
        "For torrents whose data lies in that folder or below it. Left out: anywhere.",
    ),
    (
        "tracker",
        "\"tracker.example\"",
        "For torrents with a tracker of that host, or below that domain. Left out: of any.",
    ),
    (
        "label",
        "\"tv\"",
        "For torrents with that label. Left out: with any or none.",
    ),
    (
        "torrent",
        "\"0123456789abcdef0123456789abcdef01234567\"",
        "For the torrent with that info_hash alone. Left out: for all.",
    ),
    (
        "when",
        "[\"mon-fri 08:00-17:30\", \"sat sun\"]",
        "Days and hours of the machine's own time in which its limits count (cap-up to seed-queue-size); its goal always does. \
         Hours may go through midnight. Left out: always.",
    ),
    (
        "cap-up",
        "\"10MB\"",
        "All its torrents together upload at most this fast.",
    ),
    (
        "cap-down",
        "\"20MB\"",
        "All its torrents together download at most this fast.",
    ),
    (
        "share",
        "\"50%\"",
        "The part of the bandwidth that its torrents are guaranteed, while somebody waits for limit-up, limit-down or a cap. \
         What they do not use others get. It is a part of the share, or of the cap, of the policy before it that is for the same torrent \
         and has one, else of the whole.",
    ),
    (
        "upload-slots",
        "8",
        "All its torrents together upload to so many peers at a time, each to no more than upload-slots says above.",
    ),
    (
        "download-queue-size",
        "3",
        "Of its torrents so many download at a time; the others wait in the queue, as for the key of that name above.",
    ),
    (
        "seed-queue-size",
        "20",
        "Of its torrents so many seed at a time; the others wait in the queue.",
    ),
    (
        "super-seed",
        "true",
        "Whether peers are shown one piece at a time as long as there are no other seeds: for torrents that are nowhere else (BEP 16).",
    ),
    (
        "ratio",
        "2.0",
        "The goal of each of its torrents: uploaded / downloaded over its life.",
    ),
    (
        "seed-time",
        "\"240h\"",
        "The goal, too: time since it was complete. What is reached first counts.",
    ),
    (
        "then",
        "\"throttle\"",
        "What comes of a torrent that has reached its goal: \"stop\", \"remove\" (its data stays), \"throttle\" or \"hook\".",
    ),
    (
        "throttle-up",
        "\"1MB\"",
        "With \"throttle\": each uploads at most this fast from then on.",
    ),
    (
        "hook",
        "[\"/usr/local/bin/done\", \"WORD\"]",
        "With \"hook\": the program with its arguments that is run once for each, told what on-complete is told, and GYRE_POLICY. \
         No shell is asked.",
    ),
    (
        "hook-time",
        "\"5m\"",
        "That program is killed after this time.",
    ),
];

/// Keys that do not go with those of the example.
const OTHERS: [&str; 2] = ["hook", "hook-time"];

/// What a settings file says of them, as comments.
pub fn template() -> String {
    let mut text = String::from(
        "\n# * Policies, any number of them behind all other keys. All that fit a torrent count for it: first those for\n\
         # devices, folders and everything, then for trackers, labels, single torrents, each kind as they stand here. Only here, no option. An example:\n\
         #\n# [[policy]]\n",
    );
    for (name, example, about) in KEYS {
        let mark = if OTHERS.contains(&name) { "#" } else { "" };
        text.push_str(&format!("# # {about}\n# {mark}{name} = {example}\n"));
    }
    text
}

/// What is wrong, and where in the text.
struct Wrong {
    at: usize,
    message: String,
    hint: String,
}

/// Reads the tables; `place` names a position in the text.
///
/// # Errors
/// What is wrong, with its line and what to write instead.
pub fn parse(value: &DeValue<'_>, place: impl Fn(usize) -> String) -> Result<Vec<Policy>, Failure> {
    let DeValue::Array(tables) = value else {
        let hint = "write [[policy]] above the keys of each";
        return Err(Failure::usage("policy is no list of tables", hint));
    };
    read(tables).map_err(|wrong| {
        let message = format!("{}: {}", place(wrong.at), wrong.message);
        Failure::usage(message, wrong.hint)
    })
}

fn read(tables: &DeArray<'_>) -> Result<Vec<Policy>, Wrong> {
    let mut policies: Vec<Policy> = Vec::new();
    let mut names = BTreeSet::new();
    for table in tables.iter() {
        let at = table.span().start;
        let DeValue::Table(keys) = table.get_ref() else {
            return Err(wrong(
                at,
                "a policy is a table",
                "write [[policy]] above its keys",
            ));
        };
        let policy = one(keys, at)?;
        if !names.insert(policy.name.clone()) {
            let message = format!("there are two policies named {:?}", policy.name);
            return Err(wrong(at, &message, "give each a name of its own"));
        }
        policies.push(policy);
        if policies.len() > POLICIES_MAX {
            let message = format!("there are more than {POLICIES_MAX} policies");
            return Err(wrong(at, &message, "use labels to put torrents together"));
        }
    }
    for (at, one) in tables.iter().map(|table| table.span().start).zip(&policies) {
        if one.share.is_some() && is_too_much(one, &policies) {
            let message = "the shares of policies of this kind are more than 100% together";
            return Err(wrong(at, message, "lower some of them"));
        }
    }
    Ok(policies)
}

/// Whether it and others beside it have more than the whole at any time: when that begins, one of them begins.
fn is_too_much(one: &Policy, policies: &[Policy]) -> bool {
    let beside: Vec<&Policy> = policies.iter().filter(|it| is_beside(it, one)).collect();
    let beginnings = match &one.schedule {
        Some(schedule) => schedule.beginnings().collect(),
        None => vec![Moment::default()],
    };
    beginnings.into_iter().any(|at| {
        let now = beside.iter().filter(|it| it.is_on(at));
        let sum: u32 = now.filter_map(|it| it.share).map(u32::from).sum();
        sum > u32::from(SHARE_WHOLE)
    })
}

/// Whether a torrent may have either alone, so that their shares are parts of one whole.
fn is_beside(one: &Policy, other: &Policy) -> bool {
    let kind = |policy: &Policy| {
        (
            policy.device.is_some(),
            policy.folder.is_some(),
            policy.tracker.is_some(),
            policy.label.is_some(),
            policy.torrent.is_some(),
        )
    };
    let is_for_trackers = one.label.is_none() && one.torrent.is_none();
    let tracker = is_for_trackers || one.tracker == other.tracker;
    let is_for_places = is_for_trackers && one.tracker.is_none();
    let place = is_for_places || (&one.device, &one.folder) == (&other.device, &other.folder);
    kind(one) == kind(other) && tracker && place
}

fn wrong(at: usize, message: &str, hint: &str) -> Wrong {
    Wrong {
        at,
        message: message.to_owned(),
        hint: hint.to_owned(),
    }
}

fn one(keys: &DeTable<'_>, at: usize) -> Result<Policy, Wrong> {
    let mut draft = Draft::default();
    for (name, value) in keys.iter() {
        let (key, at) = (name.get_ref().as_ref(), name.span().start);
        if !KEYS.iter().any(|known| known.0 == key) {
            let message = format!("a policy has no key {key}");
            let hint = "gyre daemon --print-config lists the keys of a policy";
            return Err(wrong(at, &message, hint));
        }
        let text = as_text(value.get_ref(), PART);
        let text = text.ok_or_else(|| {
            let kind = value.get_ref().type_str();
            wrong(
                at,
                &format!("{kind} is no value of {key}"),
                "write a text or a number",
            )
        })?;
        let taken = draft.set(key, &text);
        let shown = text.replace(PART, ", ");
        taken.map_err(|hint| wrong(at, &format!("\"{shown}\" is no value of {key}"), &hint))?;
    }
    draft.done(at)
}

/// What was read of one policy.
#[derive(Default)]
struct Draft {
    policy: Policy,
    ratio: Option<f64>,
    time: Option<Duration>,
    then: Option<String>,
    throttle: Option<u64>,
    argv: Vec<String>,
    hook_time: Option<Duration>,
}

impl Draft {
    /// Takes the value of one of [`KEYS`]; the error says what to write instead.
    fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        let policy = &mut self.policy;
        match key {
            "name" => policy.name = name_of(text)?,
            "device" => policy.device = Some(whole_path(text)?),
            "folder" => policy.folder = Some(whole_path(text)?),
            "tracker" => policy.tracker = Some(domain(text)?),
            "label" => policy.label = Some(filled(text)?),
            "torrent" => {
                let hint = |_| "write the 40 digits of an info_hash".to_owned();
                policy.torrent = Some(text.parse().map_err(hint)?);
            }
            "when" => policy.schedule = Some(Schedule::parse(text.split(PART))?),
            "cap-up" => policy.cap_up_bytes_per_s = Some(rate(text)?),
            "cap-down" => policy.cap_down_bytes_per_s = Some(rate(text)?),
            "share" => policy.share = Some(share(text)?),
            "upload-slots" => policy.slots = Some(count(text)?),
            "download-queue-size" => policy.places.downloads = Some(count(text)?),
            "seed-queue-size" => policy.places.seeds = Some(count(text)?),
            "super-seed" => {
                let hint = |_| "write true or false".to_owned();
                policy.super_seeds = text.parse().map_err(hint)?;
            }
            "ratio" => self.ratio = Some(parse_ratio(text)?),
            "seed-time" => self.time = Some(parse_duration(text)?),
            "hook" => self.argv = parse_argv(text)?,
            "hook-time" => self.hook_time = Some(parse_duration(text)?),
            "throttle-up" => self.throttle = Some(rate(text)?),
            _ => self.then = Some(text.to_owned()),
        }
        Ok(())
    }

    fn done(mut self, at: usize) -> Result<Policy, Wrong> {
        if self.policy.name.is_empty() {
            let hint = "write name = \"WORD\" first";
            return Err(wrong(at, "a policy has no name", hint));
        }
        let goal = self.goal().map_err(|(what, hint)| {
            let message = format!("the policy {:?} {what}", self.policy.name);
            wrong(at, &message, hint)
        })?;
        self.policy.goal = goal;
        Ok(self.policy)
    }

    /// Its goal; the error says what is wrong with it, and what to write.
    fn goal(&self) -> Result<Option<Goal>, (String, &'static str)> {
        let has_goal = self.ratio.is_some() || self.time.is_some();
        let is = |what: &str, hint| Err((what.to_owned(), hint));
        let word = self.then.as_deref();
        if self.throttle.is_some() && word != Some("throttle") {
            let hint = "write then = \"throttle\" too";
            return is("has throttle-up and does not throttle", hint);
        }
        if (!self.argv.is_empty() || self.hook_time.is_some()) && word != Some("hook") {
            return is(
                "has a hook and does not run it",
                "write then = \"hook\" too",
            );
        }
        let then = match (word, self.throttle) {
            (None, _) if !has_goal => return Ok(None),
            (Some("throttle"), Some(up_bytes_per_s)) => Then::Throttle { up_bytes_per_s },
            (Some("throttle"), None) => {
                return is("throttles to no rate", "write throttle-up = \"RATE\"");
            }
            (Some("stop") | None, _) => Then::Stop,
            (Some("remove"), _) => Then::Remove,
            (Some("hook"), _) if self.argv.is_empty() => {
                return is("runs no program", "write hook = [\"/PATH\", \"ARGUMENT\"]");
            }
            (Some("hook"), _) => Then::Run(Hook {
                argv: self.argv.clone(),
                time_limit: self.hook_time.unwrap_or(HOOK_TIME),
            }),
            (Some(other), _) => {
                let what = format!("ends with \"{other}\", which is no value of then");
                return Err((what, "write \"stop\", \"remove\", \"throttle\" or \"hook\""));
            }
        };
        if !has_goal {
            return is("has no goal for then", "write ratio or seed-time too");
        }
        Ok(Some(Goal {
            ratio: self.ratio,
            time: self.time,
            then,
        }))
    }
}

/// A path from the root, without dots in it.
fn whole_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    match path.is_absolute() && path.components().all(is_plain) {
        true => Ok(path.components().collect()),
        false => Err("write a whole path, such as /srv/disk1".to_owned()),
    }
}

fn filled(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Err("write a word, or leave the key out".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn name_of(text: &str) -> Result<String, String> {
    let is_good = !text.is_empty() && text.chars().count() <= NAME_CHARS_MAX;
    match is_good && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err(format!("a name has 1 to {NAME_CHARS_MAX} characters")),
    }
}

fn domain(text: &str) -> Result<String, String> {
    let is_good = !text.is_empty() && !text.contains(['/', ' ']) && !text.starts_with('.');
    match is_good {
        true => Ok(text.trim_end_matches('.').to_ascii_lowercase()),
        false => Err("write the host or domain alone, such as tracker.example".to_owned()),
    }
}

/// How many of something there are at a time.
fn count<T: FromStr + From<u8> + PartialOrd>(text: &str) -> Result<T, String> {
    match text.parse() {
        Ok(count) if count >= T::from(1) => Ok(count),
        _ => Err("write a whole number from 1 on, or leave the key out for no limit".to_owned()),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    match parse_rate(text)? {
        0 => Err(
            "leave the key out for no limit; a policy that lets nothing through would never end"
                .to_owned(),
        ),
        rate if rate > RATE_MAX => {
            Err("no line is that fast: write a rate such as 10MiB".to_owned())
        }
        rate => Ok(rate),
    }
}

/// A part of a hundred with up to two digits behind the point.
fn share(text: &str) -> Result<u16, String> {
    const HINT: &str = "write a part between \"0.01%\" and \"100%\"";
    let number = text.trim().strip_suffix('%').ok_or(HINT)?;
    let (whole, part) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || whole.len() > 3
        || part.len() > 2
        || !is_digits(whole)
        || !is_digits(part)
    {
        return Err(HINT.to_owned());
    }
    let digits = format!("{whole}{part:0<2}");
    let share: u16 = digits.parse().map_err(|_| HINT)?;
    match share {
        1..=SHARE_WHOLE => Ok(share),
        _ => Err(HINT.to_owned()),
    }
}

#[cfg(test)]
mod tests;
