//! Help, mistakes, and where options come from.

use super::{Done, gyre, run};
use crate::support::Sample;
use crate::support::program::command;
use crate::support::sample::text;

fn verbs() -> Vec<String> {
    let help = gyre(&["-h"]).stdout;
    let verbs = help.lines().skip_while(|line| *line != "Verbs:").skip(1);
    verbs
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn short_help_is_short_and_long_help_has_an_example_for_every_verb() {
    let verbs = verbs();
    for verb in [
        "download", "seed", "create", "info", "verify", "magnet", "doctor", "man",
    ] {
        assert!(verbs.iter().any(|known| known == verb), "{verb}");
    }
    let all = gyre(&["--help"]).stdout;
    for verb in &verbs {
        let short = gyre(&[verb, "-h"]);
        let long = gyre(&[verb, "--help"]);
        assert_eq!((short.code, long.code), (0, 0));
        assert!(!short.stdout.contains("Example:"), "{verb}");
        let examples = long.stdout.split("Example:").nth(1).unwrap_or_default();
        assert!(examples.contains(&format!("gyre {verb}")), "{verb}");
        assert!(all.contains(&format!("\n  gyre {verb}")), "{verb}");
        assert!(short.stdout.len() <= long.stdout.len());
    }
}

#[test]
fn help_is_taken_for_an_option_behind_the_verb() {
    for (asked, same) in [
        (&["help"][..], &["--help"][..]),
        (&["help", "seed"], &["seed", "--help"]),
        (&["help", "ctl", "list"], &["ctl", "list", "--help"]),
    ] {
        let (asked, same) = (gyre(asked), gyre(same));
        assert_eq!((asked.code, asked.stdout), (0, same.stdout));
    }
    assert_eq!(gyre(&["help", "downlod"]).code, 2);
}

#[test]
fn nothing_to_do_shows_the_help_as_a_mistake() {
    let done = gyre(&[]);
    assert_eq!(done.code, 2);
    assert!(done.stdout.is_empty());
    assert!(done.stderr.contains("Usage: gyre"));
}

#[test]
fn wrong_usage_is_an_error_a_hint_and_exit_code_2() {
    let cases: [(&[&str], &str, &str); 22] = [
        (&["downlod"], "no verb downlod", "download"),
        (&["download"], "<SOURCE>", "--help"),
        (&["download", ""], "empty", ".torrent"),
        (&["download", "x", "--bogus"], "--bogus", "download --help"),
        (&["download", "x", "--portt", "1"], "--portt", "--port?"),
        (&["download", "x", "--port", "65536"], "65536", "0 to 65535"),
        (
            &["download", "x", "--limit-up", "5 parsecs"],
            "parsecs",
            "10MiB",
        ),
        (&["download", "x", "--limit-down", "-5"], "\"-5\"", "10MiB"),
        (&["download", "x", "--limit-down", ""], "missing", "rate"),
        (&["download", "x", "--peer", "1.2.3.4"], "--peer", "IP:PORT"),
        (&["download", "x", "--upload-slots", "few"], "few", "auto"),
        (
            &["download", "x", "--max-peers", "0"],
            "\"0\"",
            "1 to 65535",
        ),
        (&["download", "x", "--give-up", "soon"], "soon", "10m"),
        (
            &["download", "x", "--check", "maybe"],
            "maybe",
            "auto, full, none",
        ),
        (
            &["download", "x", "--bind", "::1", "--no-ipv6"],
            "::1",
            "one of",
        ),
        (
            &["download", "x", "--buffers", "900TiB"],
            "half of the",
            "at most",
        ),
        (&["seed", "x", "--buffers", "1MiB"], "small", "2MiB"),
        (&["seed", "x", "--seed-ratio", "-1"], "\"-1\"", "from 0"),
        (&["seed", "x", "--bind", "../x"], "../x", "interface"),
        (
            &["create", "x", "--piece-length", "20KiB"],
            "20480",
            "power",
        ),
        (&["completions", "dosh"], "dosh", "bash"),
        (
            &["download", "x", "--tracker-ca", "/none.pem"],
            "--features tls",
            "leave the option out",
        ),
    ];
    for (arguments, message_part, hint_part) in cases {
        let done = gyre(arguments);
        let (message, hint) = done.refusal(2);
        assert!(message.contains(message_part), "{arguments:?}: {message}");
        assert!(hint.contains(hint_part), "{arguments:?}: {hint}");
        assert!(done.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn sources_that_cannot_be_used_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&folder.path().join(name));
    std::fs::write(path("junk.torrent"), "d4:infoi-0ee").unwrap();
    let hash = "0123456789abcdef0123456789abcdef01234567";
    let magnet = format!("magnet:?xt=urn:btih:{hash}&dn=a%1b%5B2J");
    let cases = [
        (path("none.torrent"), "cannot read", "path"),
        (path("junk.torrent"), "junk.torrent", "whole"),
        (path(""), "is a folder", "gyre create"),
        (magnet, "\\u{1b}[2J", ".torrent"),
        (hash.to_owned(), hash, ".torrent"),
        ("magnet:?x=1".to_owned(), "magnet", "xt=urn:btih:"),
        ("https://x.example/t".to_owned(), "--features tls", "curl"),
        ("ftp://x.example/t".to_owned(), "ftp", "http://"),
    ];
    for (source, message_part, hint_part) in cases {
        let (message, hint) = gyre(&["download", &source]).refusal(1);
        assert!(message.contains(message_part), "{source}: {message}");
        assert!(hint.contains(hint_part), "{source}: {hint}");
    }
}

#[test]
fn with_json_an_error_is_an_event_and_nothing_else_whenever_it_comes() {
    let sample = Sample::file(100, 16_384, &[]);
    let (torrent, data) = (text(&sample.torrent), text(&sample.data));
    let cases: [(&[&str], i32, &str); 6] = [
        (&["download", "/none.torrent", "--json"], 1, "cannot read"),
        (&["info", "/none.torrent", "--json"], 1, "cannot read"),
        (
            &["seed", &torrent, "--data", "/no/data", "--json"],
            3,
            "does not exist",
        ),
        (
            &["download", &torrent, "--buffers", "1", "--json"],
            2,
            "too small",
        ),
        (
            &["download", &torrent, "--port", "x", "--json"],
            2,
            "no value",
        ),
        (
            &[
                "seed", &torrent, "--data", &data, "--bind", "nosuch0", "--json",
            ],
            1,
            "nosuch0",
        ),
    ];
    for (arguments, code, part) in cases {
        let done = gyre(arguments);
        assert_eq!(
            (done.code, done.stderr.as_str()),
            (code, ""),
            "{arguments:?}"
        );
        let error = done.json();
        assert_eq!(
            (&error["event"], &error["final"]),
            (&"error".into(), &true.into())
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
        assert_ne!(error["hint"], "");
    }
}

fn with_variables(variables: &[(&str, &str)], arguments: &[&str]) -> Done {
    let mut command = command();
    command.args(arguments).envs(variables.iter().copied());
    run(command)
}

#[test]
fn options_are_read_from_the_environment_and_repeatable_ones_take_commas() {
    let sample = Sample::tree(&[("a", 10), ("b", 10), ("c", 10)], 16_384, &[]);
    let torrent = text(&sample.torrent);
    let listed = |variables: &[(&str, &str)]| {
        let done = with_variables(variables, &["download", &torrent, "--list"]);
        (done.code, done.stdout)
    };
    let (code, list) = listed(&[("GYRE_SELECT", "a, 2"), ("GYRE_NO_IPV6", "0")]);
    assert_eq!(code, 0);
    assert!(list.contains("sample/a") && list.contains("sample/c") && !list.contains("sample/b"));
    let (_, list) = listed(&[("GYRE_JSON", "1")]);
    assert!(list.starts_with('{'), "{list}");
    let (_, list) = listed(&[("GYRE_JSON", "false")]);
    assert!(!list.starts_with('{'), "{list}");
    let again = [
        "download", &torrent, "--list", "--output", "a", "--output", "b",
    ];
    assert_eq!(gyre(&again).code, 0, "the last one counts");
    let out = text(&sample.dir("made").join("x.torrent"));
    let variables = [
        ("GYRE_OUTPUT", out.as_str()),
        ("GYRE_PIECE_LENGTH", "32KiB"),
        ("GYRE_PRIVATE", "yes"),
        ("GYRE_ANNOUNCE", "http://a.example/,http://b.example/"),
        ("GYRE_WEB_SEED", "http://c.example/"),
        ("GYRE_JSON", "1"),
    ];
    let made = with_variables(&variables, &["create", &text(&sample.content)]);
    assert_eq!(made.json()["piece_length_bytes"], 32_768);
    let info = gyre(&["info", &out, "--json"]).json();
    assert_eq!(info["private"], true);
    assert_eq!(info["web_seeds"][0], "http://c.example/");
    let tiers = serde_json::json!([["http://a.example/"], ["http://b.example/"]]);
    assert_eq!(info["trackers"], tiers);
}

#[test]
fn a_wrong_value_of_a_variable_names_the_variable() {
    let cases = [
        ("GYRE_PORT", "many"),
        ("GYRE_SEED_TIME", "long"),
        ("GYRE_VERBOSE", "very"),
    ];
    for (variable, value) in cases {
        let done = with_variables(&[(variable, value)], &["seed", "x"]);
        let (message, hint) = done.refusal(2);
        assert!(message.contains(variable), "{message}");
        assert!(!hint.contains("invalid digit"), "{hint}");
    }
}
