//! `gyre completions` and `gyre man`. Layer 6.

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
    let mut page = Vec::new();
    let failed = |error| Failure::new(format!("no manual page: {}", io_cause(&error)), "");
    let mut whole = command();
    whole.build();
    clap_mangen::Man::new(whole.clone())
        .render(&mut page)
        .map_err(failed)?;
    for verb in whole.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        // The header names the page; one page has one header, so the verbs' own sections follow it.
        let man = clap_mangen::Man::new(verb.clone());
        let title = format!(".SH \"GYRE {}\"\n", verb.get_name().to_uppercase());
        page.extend_from_slice(title.as_bytes());
        man.render_synopsis_section(&mut page).map_err(failed)?;
        man.render_description_section(&mut page).map_err(failed)?;
        man.render_options_section(&mut page).map_err(failed)?;
        man.render_extra_section(&mut page).map_err(failed)?;
    }
    output::stdout_bytes(&page);
    Ok(Exit::Done)
}
