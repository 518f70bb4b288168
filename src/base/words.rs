//! Errors of the system as people read them within a sentence.

use std::io;

/// What the standard library puts between the system's words and their number.
const NUMBER: &str = " (os error ";

/// A short cause: the system's words in lower case, without their number.
pub fn io_cause(error: &io::Error) -> String {
    in_sentence(&error.to_string())
}

/// The text with all the system's words in it as [`io_cause`] gives them. They are known by the number behind them.
pub fn in_sentence(text: &str) -> String {
    let mut parts = text.split(NUMBER);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = part.split_once(')').unwrap_or((part, ""));
        if let Some(words) = number.parse().ok().map(words_of)
            && result.ends_with(&words)
        {
            result.truncate(result.len() - words.len());
            result += &lower(&words);
        }
        result += rest;
    }
    result
}

fn words_of(number: i32) -> String {
    let text = io::Error::from_raw_os_error(number).to_string();
    let end = text.rfind(NUMBER).unwrap_or(text.len());
    text.get(..end).unwrap_or_default().to_owned()
}

/// Abbreviations keep their capitals.
fn lower(words: &str) -> String {
    let mut chars = words.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_read_well_within_a_sentence() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(io_cause(&error), "no such file or directory");
        let text = format!("File a: {error}; Peer b: {error}!");
        let worded = "File a: no such file or directory; Peer b: no such file or directory!";
        assert_eq!(in_sentence(&text), worded);
        assert_eq!(
            in_sentence("Not the system's (os error x"),
            "Not the system's"
        );
        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(io_cause(&error), "unexpected end of file");
    }
}
