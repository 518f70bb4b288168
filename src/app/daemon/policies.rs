//! The `[[policy]]` tables of the settings file. Layer 7.

use std::collections::BTreeSet;

use toml::de::{DeArray, DeTable, DeValue};

use super::config::as_text;
use crate::app::exit::Failure;
use crate::app::size::{parse_duration, parse_rate};
use crate::app::values::parse_ratio;
use crate::daemon::{Goal, POLICIES_MAX, Policy, Then};
use crate::swarm::bandwidth::SHARE_WHOLE;

/// The name of the tables.
pub const POLICY: &str = "policy";
/// A rate above this is a slip of the pen: more than any machine moves.
const RATE_MAX: u64 = 1 << 50;
/// Characters of a name.
const NAME_CHARS_MAX: usize = 64;

/// Each key, an example, and what it is for.
const KEYS: [(&str, &str, &str); 11] = [
    (
        "name",
        "\"slow tracker\"",
        "What it is called; each is called differently.",
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
         What they do not use others get. It is a part of the share of the policy before it that is for the same torrent \
         and has one, else of the whole.",
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
        "What comes of a torrent that has reached its goal: \"stop\", \"remove\" (its data stays) or \"throttle\".",
    ),
    (
        "throttle-up",
        "\"1MB\"",
        "With \"throttle\": each uploads at most this fast from then on.",
    ),
];

/// What a settings file says of them, as comments.
pub fn template() -> String {
    let mut text = String::from(
        "\n# * Policies, any number of them behind all other keys. All that fit a torrent count for it: first those for trackers,\n\
         # then for labels, then for single torrents, each kind as they stand here. Only here, no option. An example:\n\
         #\n# [[policy]]\n",
    );
    for (name, example, about) in KEYS {
        text.push_str(&format!("# # {about}\n# {name} = {example}\n"));
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
    for (at, shares) in tables.iter().map(|table| table.span().start).zip(&policies) {
        let beside = policies.iter().filter(|one| is_beside(one, shares));
        let sum: u32 = beside.filter_map(|one| one.share).map(u32::from).sum();
        if shares.share.is_some() && sum > u32::from(SHARE_WHOLE) {
            let message = "the shares of policies of this kind are more than 100% together";
            return Err(wrong(at, message, "lower some of them"));
        }
    }
    Ok(policies)
}

/// Whether a torrent may have either alone, so that their shares are parts of one whole.
fn is_beside(one: &Policy, other: &Policy) -> bool {
    let kind = |policy: &Policy| {
        (
            policy.tracker.is_some(),
            policy.label.is_some(),
            policy.torrent.is_some(),
        )
    };
    let tracker = (one.label.is_none() && one.torrent.is_none()) || one.tracker == other.tracker;
    kind(one) == kind(other) && tracker
}

fn wrong(at: usize, message: &str, hint: &str) -> Wrong {
    Wrong {
        at,
        message: message.to_owned(),
        hint: hint.to_owned(),
    }
}

fn one(keys: &DeTable<'_>, at: usize) -> Result<Policy, Wrong> {
    let mut policy = Policy::default();
    let (mut ratio, mut time, mut then, mut throttle) = (None, None, None, None);
    for (name, value) in keys.iter() {
        let (key, at) = (name.get_ref().as_ref(), name.span().start);
        if !KEYS.iter().any(|known| known.0 == key) {
            let message = format!("a policy has no key {key}");
            let hint = "gyre daemon --print-config lists the keys of a policy";
            return Err(wrong(at, &message, hint));
        }
        let text = as_text(value.get_ref(), '\0');
        let text = text.ok_or_else(|| {
            let kind = value.get_ref().type_str();
            wrong(
                at,
                &format!("{kind} is no value of {key}"),
                "write a text or a number",
            )
        })?;
        let taken = match key {
            "name" => name_of(&text).map(|name| policy.name = name),
            "tracker" => domain(&text).map(|domain| policy.tracker = Some(domain)),
            "label" => filled(&text).map(|label| policy.label = Some(label)),
            "torrent" => match text.parse() {
                Ok(info_hash) => {
                    policy.torrent = Some(info_hash);
                    Ok(())
                }
                Err(_) => Err("write the 40 digits of an info_hash".to_owned()),
            },
            "cap-up" => rate(&text).map(|rate| policy.cap_up_bytes_per_s = Some(rate)),
            "cap-down" => rate(&text).map(|rate| policy.cap_down_bytes_per_s = Some(rate)),
            "share" => share(&text).map(|share| policy.share = Some(share)),
            "ratio" => parse_ratio(&text).map(|goal| ratio = Some(goal)),
            "seed-time" => parse_duration(&text).map(|goal| time = Some(goal)),
            "throttle-up" => rate(&text).map(|rate| throttle = Some(rate)),
            _ => {
                then = Some(text.clone());
                Ok(())
            }
        };
        taken.map_err(|hint| wrong(at, &format!("\"{text}\" is no value of {key}"), &hint))?;
    }
    if policy.name.is_empty() {
        return Err(wrong(
            at,
            "a policy has no name",
            "write name = \"WORD\" first",
        ));
    }
    let of = &policy.name;
    let has_goal = ratio.is_some() || time.is_some();
    let then = match (then.as_deref(), throttle) {
        (None, None) if !has_goal => return Ok(policy),
        (Some("throttle"), Some(up_bytes_per_s)) => Then::Throttle { up_bytes_per_s },
        (Some("throttle"), None) => {
            let message = format!("the policy {of:?} throttles to no rate");
            return Err(wrong(at, &message, "write throttle-up = \"RATE\""));
        }
        (_, Some(_)) => {
            let message = format!("the policy {of:?} has throttle-up and does not throttle");
            return Err(wrong(at, &message, "write then = \"throttle\" too"));
        }
        (Some("stop") | None, None) => Then::Stop,
        (Some("remove"), None) => Then::Remove,
        (Some(other), None) => {
            let message = format!("the policy {of:?}: \"{other}\" is no value of then");
            return Err(wrong(
                at,
                &message,
                "write \"stop\", \"remove\" or \"throttle\"",
            ));
        }
    };
    if !has_goal {
        let message = format!("the policy {of:?} has no goal for then");
        return Err(wrong(at, &message, "write ratio or seed-time too"));
    }
    policy.goal = Some(Goal { ratio, time, then });
    Ok(policy)
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
mod tests {
    use super::*;

    fn policies(text: &str) -> Result<Vec<Policy>, Failure> {
        let table = DeTable::parse(text).unwrap();
        let value = table.get_ref().get(POLICY).unwrap();
        let place = |at: usize| format!("line {}", text[..at].matches('\n').count() + 1);
        parse(value.get_ref(), place)
    }

    #[test]
    fn the_printed_example_is_read() {
        let text = template();
        let lines = text.lines().skip_while(|line| !line.contains("[[policy]]"));
        let lines: Vec<&str> = lines.filter_map(|line| line.strip_prefix("# ")).collect();
        let read = policies(&lines.join("\n")).unwrap();
        let one = &read[0];
        assert_eq!(
            (one.cap_up_bytes_per_s, one.share),
            (Some(10_000_000), Some(5_000))
        );
        let goal = one.goal.as_ref().unwrap();
        assert_eq!(goal.ratio, Some(2.0));
        assert_eq!(
            goal.then,
            Then::Throttle {
                up_bytes_per_s: 1_000_000
            }
        );
        let keys = lines
            .iter()
            .filter(|line| line.contains(" = ") && !line.starts_with('#'));
        assert_eq!(keys.count(), KEYS.len());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, told) in [
            (
                "[[policy]]\ncap-up = \"1MB\"",
                "line 1: a policy has no name",
            ),
            (
                "[[policy]]\nname = \"a\"\ncap = 3",
                "line 3: a policy has no key cap",
            ),
            (
                "[[policy]]\nname = \"a\"\nshare = \"101%\"",
                "line 3: \"101%\" is no value of share",
            ),
            (
                "[[policy]]\nname = \"a\"\ncap-up = 0",
                "line 3: \"0\" is no value of cap-up",
            ),
            (
                "[[policy]]\nname = \"a\"\ncap-up = \"9000000TiB\"",
                "line 3: \"9000000TiB\" is no value of cap-up",
            ),
            (
                "[[policy]]\nname = \"a\"\ncap-up = [[1], {}]",
                "line 3: array is no value of cap-up",
            ),
            (
                "[[policy]]\nname = \"a\"\n[[policy]]\nname = \"a\"",
                "line 3: there are two policies named \"a\"",
            ),
            (
                "[[policy]]\nname = \"a\"\nratio = 1\nthen = \"throttle\"",
                "line 1: the policy \"a\" throttles to no rate",
            ),
            (
                "[[policy]]\nname = \"a\"\nthen = \"stop\"",
                "line 1: the policy \"a\" has no goal for then",
            ),
            (
                "[[policy]]\nname = \"a\"\nratio = 1\nthen = \"burn\"",
                "line 1: the policy \"a\": \"burn\" is no value of then",
            ),
            (
                "[[policy]]\nname=\"a\"\nlabel=\"x\"\nshare=\"60%\"\n[[policy]]\nname=\"b\"\nlabel=\"y\"\nshare=\"50%\"",
                "line 1: the shares of policies of this kind are more than 100% together",
            ),
        ] {
            assert_eq!(policies(text).unwrap_err().message(), told, "{text}");
        }
        let many: String = (0..=POLICIES_MAX)
            .map(|n| format!("[[policy]]\nname = \"{n}\"\n"))
            .collect();
        let refused = policies(&many).unwrap_err();
        assert!(
            refused.message().ends_with("more than 256 policies"),
            "{refused:?}"
        );
    }

    #[test]
    fn shares_are_parts_of_a_hundred() {
        assert_eq!(share("50%"), Ok(5_000));
        assert_eq!(share("0.01 %"), Ok(1));
        assert_eq!(share("100%"), Ok(SHARE_WHOLE));
        for bad in ["50", "0%", "100.01%", "1.234%", "-1%", "%", "9999999%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
