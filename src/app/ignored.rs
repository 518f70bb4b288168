//! Environment variables that are options of another verb, where ignoring them would expose somebody. Layer 7.
//!
//! `gyre download` and `gyre seed` have `--no-dht` where `gyre daemon` has `dht = false`: whoever set the variable of one for the
//! other meant it all the same.

use super::cli::{self, SessionArgs};
use super::exit::Failure;

/// Keys of the daemon whose `--no-` the other verbs have.
pub const SWITCHES: [&str; 8] = [
    "dht",
    "pex",
    "lsd",
    "port-map",
    "ipv6",
    "utp",
    "tcp",
    "holepunch",
];
/// Options of the other verbs that the daemon has nothing for.
const DAEMON_LACKS: [&str; 2] = ["no-trackers", "no-web-seeds"];

/// For the daemon, where these keys are off.
///
/// # Errors
/// A variable of another verb says that something is to be left alone, and the daemon would not.
pub fn by_daemon(off: &[&str]) -> Result<(), Failure> {
    let on = SWITCHES.iter().filter(|key| !off.contains(key));
    for key in on {
        if let Some(variable) = set(&format!("no-{key}"), |value| !is_no(value)) {
            let hint = format!(
                "write {key} = false into the settings file, or set {}=false; or unset {variable}",
                cli::variable(key)
            );
            return Err(ignored(&variable, "gyre daemon", hint));
        }
    }
    let mut lacking = DAEMON_LACKS.iter();
    match lacking.find_map(|option| set(option, |value| !is_no(value))) {
        Some(variable) => {
            let hint = format!("unset {variable}: the daemon has no such setting");
            Err(ignored(&variable, "gyre daemon", hint))
        }
        None => Ok(()),
    }
}

/// For `gyre download` and `gyre seed` with these options.
///
/// # Errors
/// A variable of the daemon turns something off that would be on here.
pub fn by_one_shot(args: &SessionArgs) -> Result<(), Failure> {
    let on = [
        ("dht", !args.no_dht),
        ("pex", !args.no_pex),
        ("lsd", !args.no_lsd),
        ("port-map", !args.no_port_map),
        ("ipv6", !args.no_ipv6),
        ("utp", !args.no_utp),
        ("tcp", !args.no_tcp),
        ("holepunch", !args.no_holepunch),
    ];
    for (key, _) in on.into_iter().filter(|(_, is_on)| *is_on) {
        if let Some(variable) = set(key, |value| value == "false") {
            let option = format!("no-{key}");
            let hint = format!(
                "give --{option}, or set {}=1; or unset {variable}",
                cli::variable(&option)
            );
            return Err(ignored(&variable, "this verb", hint));
        }
    }
    Ok(())
}

/// The variable of this option, where it is set to such a value.
fn set(option: &str, is_it: impl Fn(&str) -> bool) -> Option<String> {
    let variable = cli::variable(option);
    let value = std::env::var_os(&variable)?;
    is_it(&value.to_string_lossy()).then_some(variable)
}

/// As the flags of the other verbs are read from the environment.
fn is_no(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    ["", "n", "no", "f", "false", "off", "0"].contains(&value.as_str())
}

fn ignored(variable: &str, verb: &str, hint: String) -> Failure {
    let message =
        format!("{variable} is set, and {verb} would ignore it: it is an option of another");
    Failure::usage(message, hint)
}
