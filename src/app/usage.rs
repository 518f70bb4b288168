//! Help on stdout, and wrong command lines as an `error:` and a `hint:` line. Layer 7.

use std::error::Error;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::cli;
use super::exit::{Exit, Failure};

/// `gyre help VERB` as `gyre VERB --help`, which is what many programs take it for.
pub fn spelled_out(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|verb| verb == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    arguments
}

/// What `arguments` led to when it is no command to run: help, version, or a mistake.
pub fn answer(error: &clap::Error, arguments: &[OsString]) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            super::output::stdout_bytes(error.render().to_string().as_bytes());
            Exit::Done
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print(); // a closed stderr is nobody's fault
            Exit::Usage
        }
        _ => {
            let failure = failure(error, arguments);
            let as_json = arguments.iter().any(|argument| argument == "--json");
            super::report(&failure, as_json);
            failure.exit()
        }
    }
}

/// The two lines of a mistake.
fn failure(error: &clap::Error, arguments: &[OsString]) -> Failure {
    let help = help_of(arguments);
    let look = format!("`{help}` lists the options");
    let option = text(error, ContextKind::InvalidArg);
    let value = text(error, ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let hint = match valid_values(error) {
                Some(values) => format!("use one of {values}"),
                None => error.source().map_or(look, ToString::to_string),
            };
            let place = match variable_of(&option, &value, arguments) {
                Some(variable) => format!("for {option}, given by the variable {variable}"),
                None => format!("for {option}"),
            };
            let what = match value.is_empty() {
                true => "a value is missing".to_owned(),
                // Terminals are recorded, and logs kept.
                false if value.contains('@') && option.starts_with("--proxy") => {
                    "what was given, which may hold a password, is no value".to_owned()
                }
                false => format!("\"{value}\" is no value"),
            };
            Failure::usage(format!("{what} {place}"), hint)
        }
        ErrorKind::UnknownArgument => {
            let similar = text(error, ContextKind::SuggestedArg);
            let hint = match similar.is_empty() {
                true => look,
                false => format!("did you mean {similar}? {look}"),
            };
            Failure::usage(format!("there is no option or argument {option}"), hint)
        }
        ErrorKind::InvalidSubcommand => {
            let verb = text(error, ContextKind::InvalidSubcommand);
            let similar = text(error, ContextKind::SuggestedSubcommand);
            let hint = match similar.is_empty() {
                true => "`gyre --help` lists the verbs".to_owned(),
                false => format!("did you mean {similar}? `gyre --help` lists the verbs"),
            };
            Failure::usage(format!("there is no verb {verb}"), hint)
        }
        ErrorKind::MissingRequiredArgument => Failure::usage(
            format!("{option} is missing"),
            format!("`{help}` shows an example"),
        ),
        _ => Failure::usage(first_sentence(error), look),
    }
}

/// What clap itself says, as one line.
fn first_sentence(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let first = rendered.split("\n\n").next().unwrap_or_default();
    let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// Help for the verb that was meant, or for all.
fn help_of(arguments: &[OsString]) -> String {
    let command = cli::command();
    let is_verb = |word: &&str| {
        command
            .get_subcommands()
            .any(|verb| verb.get_name() == *word)
    };
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    match words.find(is_verb) {
        Some(verb) => format!("gyre {verb} --help"),
        None => "gyre --help".to_owned(),
    }
}

fn text(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    }
}

fn valid_values(error: &clap::Error) -> Option<String> {
    let values = text(error, ContextKind::ValidValue);
    (!values.is_empty()).then_some(values)
}

/// The environment variable that `value` came from, when the option was not on the command line.
fn variable_of(option: &str, value: &str, arguments: &[OsString]) -> Option<String> {
    let long = option.split([' ', '=', '.', '[']).next()?;
    let variable = cli::variable(long.strip_prefix("--")?);
    let is_given = arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .any(|argument| argument.split('=').next() == Some(long));
    let is_it = std::env::var(&variable).is_ok_and(|set| set.contains(value));
    (is_it && !is_given).then_some(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> (String, String) {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = cli::parse(arguments.clone()).unwrap_err();
        let failure = failure(&error, &arguments);
        assert_eq!(failure.exit(), Exit::Usage);
        (failure.message().to_owned(), failure.hint().to_owned())
    }

    #[test]
    fn a_wrong_value_is_answered_with_what_to_write() {
        let (message, hint) = refused("gyre download x --limit-up 5parsecs");
        assert_eq!(message, "\"5parsecs\" is no value for --limit-up <RATE>");
        assert!(hint.starts_with("a rate is a number"), "{hint}");
        let (message, hint) = refused("gyre download x --limit-up -5");
        assert_eq!(message, "\"-5\" is no value for --limit-up <RATE>");
        assert!(hint.starts_with("a rate is"), "{hint}");
        let (_, hint) = refused("gyre seed x --check maybe");
        assert_eq!(hint, "use one of auto, full, none");
        let (message, hint) = refused("gyre seed x --proxy socks5://user:secret@host");
        assert!(!message.contains("secret") && !hint.contains("secret"));
        assert!(message.contains("--proxy"), "{message}");
        let (message, _) = refused("gyre seed x --port");
        assert_eq!(message, "a value is missing for --port <PORT>");
    }

    #[test]
    fn unknown_words_are_answered_with_the_nearest_known_one() {
        let (message, hint) = refused("gyre download x --portt 5");
        assert_eq!(message, "there is no option or argument --portt");
        assert!(hint.starts_with("did you mean --port?"), "{hint}");
        assert!(hint.contains("gyre download --help"), "{hint}");
        let (message, hint) = refused("gyre downlod x");
        assert_eq!(message, "there is no verb downlod");
        assert!(hint.starts_with("did you mean download?"), "{hint}");
    }

    #[test]
    fn a_missing_argument_is_named() {
        let (message, hint) = refused("gyre download");
        assert_eq!(message, "<SOURCE>... is missing");
        assert!(hint.contains("gyre download --help"), "{hint}");
    }
}
