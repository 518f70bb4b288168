use super::*;

fn settings(text: &str) -> Result<Settings, Failure> {
    let text = format!("state = \"/tmp/none\"\n{text}");
    parse(&text, "gyre.toml").and_then(|values| values.settings())
}

#[test]
fn the_printed_settings_are_read_back_and_are_the_defaults() {
    let text = template();
    let given = text.lines().filter_map(|line| line.strip_prefix('#'));
    let given = given.filter(|line| !line.starts_with(' ') && !line.trim().ends_with('='));
    let given: Vec<&str> = given.collect();
    assert!(given.len() > 10, "{text}");
    let printed = format!("{:?}", settings(&given.join("\n")).unwrap());
    assert_eq!(printed, format!("{:?}", settings("").unwrap()));
}

#[test]
fn every_option_is_a_key() {
    use clap::Args as _;
    let command = DaemonArgs::augment_args(clap::Command::new("daemon"));
    let longs = command.get_arguments().filter_map(clap::Arg::get_long);
    let mut longs: Vec<&str> = longs.collect();
    longs.retain(|long| !["config", "print-config", "lines"].contains(long));
    let mut keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    keys.retain(|key| !key.starts_with("on-"));
    keys.sort_unstable();
    longs.sort_unstable();
    assert_eq!(longs, keys);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, told) in [
        ("\nlimit = 3", "line 3 of gyre.toml: there is no key limit"),
        (
            "port = \"x\"",
            "line 2 of gyre.toml: \"x\" is no value of port",
        ),
        ("dht = 3", "line 2 of gyre.toml: \"3\" is no value of dht"),
        (
            "port = {}",
            "line 2 of gyre.toml: table is no value of port",
        ),
        (
            "encryption = \"no\"",
            "line 2 of gyre.toml: \"no\" is no value of encryption",
        ),
    ] {
        assert_eq!(settings(text).unwrap_err().message(), told);
    }
    let broken = settings("port = = 3").unwrap_err();
    assert!(
        broken.message().starts_with("line 2 of gyre.toml: "),
        "{broken:?}"
    );
}

#[test]
fn watched_folders_and_the_program_behind_a_download_are_read_whole() {
    let read = settings(
        "watch = [\"/w\", \"/v; to=/d e; label=tv; label=x; paused\"]\non-complete = [\"/bin/x\", \"a, b\", \"\"]",
    )
    .unwrap();
    let labels = ["tv", "x"].map(str::to_owned).to_vec();
    let second = WatchFolder {
        folder: "/v".into(),
        to: Some("/d e".into()),
        labels,
        starts: false,
    };
    assert_eq!(read.watch[1], second);
    assert!(read.watch[0].starts && read.watch.len() == 2);
    let hook = read.on_complete.unwrap();
    assert_eq!(hook.argv, ["/bin/x", "a, b", ""]);
    assert_eq!(hook.time_limit, HOOK_TIME);
    for bad in [
        "watch = [\"w\"]",
        "watch = [\"/w; from=/x\"]",
        "on-complete = \"touch /tmp/x\"",
        "on-complete = [\"sh\", \"-c\"]",
    ] {
        assert!(settings(bad).is_err(), "{bad}");
    }
}

#[test]
fn options_override_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gyre.toml");
    std::fs::write(
        &path,
        "state = \"/tmp/none\"\nport = 1\nlimit-up = \"1MiB\"\n",
    )
    .unwrap();
    let args = DaemonArgs {
        config: Some(path),
        port: Some("2".into()),
        ..DaemonArgs::default()
    };
    let settings = load(&args).unwrap().settings;
    assert_eq!(settings.session.port, PortChoice::Exactly(2));
    assert_eq!(settings.session.limit_up_bytes_per_s, Some(1 << 20));
}

#[test]
fn behind_a_proxy_nobody_connects_unless_a_port_is_given_and_its_password_is_not_told() {
    let proxy = "proxy = \"socks5://u:secret@[::1]:1080\"\n";
    let read = settings(proxy).unwrap().session;
    assert_eq!(read.proxy.unwrap().port, 1_080);
    assert_eq!(read.port, PortChoice::Nowhere);
    let read = settings(&format!("{proxy}port = 7")).unwrap().session;
    assert_eq!(read.port, PortChoice::Exactly(7));
    assert!(settings(&format!("{proxy}tcp = false")).is_err());
    let wrong = settings("proxy = \"http://u:secret@h:1\"").unwrap_err();
    assert!(!wrong.message().contains("secret"), "{wrong:?}");
    assert!(
        wrong.message().ends_with("is no value of proxy"),
        "{wrong:?}"
    );
}
