//! `gyre completions` and `gyre man`. Layer 7.

use clap_mangen::Man;

use super::cli::{CompletionsArgs, command};
use super::exit::{Exit, Failure, io_cause};
use super::output;

/// Prints the completion script of a shell.
pub fn completions(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "gyre", &mut script);
    output::stdout_bytes(&script);
    Exit::Done
}

/// Prints the manual page of the command and all its verbs.
///
/// # Errors
/// The page cannot be rendered.
pub fn man() -> Result<Exit, Failure> {
    let page = page().map_err(|error| {
        Failure::new(
            format!("cannot render the manual page: {}", io_cause(&error)),
            "read `gyre --help` instead",
        )
    })?;
    output::stdout_bytes(page.as_bytes());
    Ok(Exit::Done)
}

/// One page: the command, then a section a verb.
fn page() -> std::io::Result<String> {
    let mut whole = command().term_width(72);
    whole.build();
    let man = Man::new(whole.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend_from_slice(b".SH SYNOPSIS\n.B gyre\nVERB [OPTIONS] ...\n.SH VERBS\n");
    for verb in whole.get_subcommands() {
        let about = verb.get_about().map(ToString::to_string);
        let (name, about) = (verb.get_name(), about.unwrap_or_default());
        page.extend_from_slice(format!(".TP\n.B {name}\n{}\n", plain(&about)).as_bytes());
    }
    man.render_options_section(&mut page)?;
    man.render_extra_section(&mut page)?;
    let mut page = String::from_utf8_lossy(&page).replace(".SH EXTRA\n", ".SH NOTES\n");
    for verb in whole.get_subcommands() {
        page += &verb_section(&format!("gyre {}", verb.get_name()), verb)?;
        for part in verb.get_subcommands() {
            let name = format!("gyre {} {}", verb.get_name(), part.get_name());
            page += &verb_section(&name, part)?;
        }
    }
    Ok(page)
}

/// A verb's own sections, one level deeper than those of the command.
fn verb_section(name: &str, verb: &clap::Command) -> std::io::Result<String> {
    let man = Man::new(verb.clone());
    let mut section = Vec::new();
    man.render_description_section(&mut section)?;
    man.render_options_section(&mut section)?;
    man.render_extra_section(&mut section)?;
    let section = String::from_utf8_lossy(&section)
        .replace(".SH EXTRA\n", ".SS EXAMPLE\n")
        .replace(".SH ", ".SS ");
    let usage = verb.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    Ok(format!(
        ".SH \"{}\"\n.SS SYNOPSIS\n{}\n{section}",
        name.to_uppercase(),
        plain(usage)
    ))
}

/// Text that roff takes as it is.
fn plain(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_section_and_an_example_for_every_verb() {
        let page = page().unwrap();
        for verb in command().get_subcommands() {
            let title = format!(".SH \"GYRE {}\"", verb.get_name().to_uppercase());
            let section = page.split(&title).nth(1).unwrap_or_default();
            assert!(section.contains(".SS EXAMPLE"), "{}", verb.get_name());
        }
        assert_eq!(page.matches(".SH NAME").count(), 1);
        assert!(!page.contains("EXTRA"));
    }
}
