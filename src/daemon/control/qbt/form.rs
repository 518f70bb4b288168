//! Parameters of a call: from the query, from a form's body, checked as they are taken. Layer 6.

use super::Fault;

/// Parameters of one call: `torrents/add` has about thirty.
pub const PARAMS_MAX: usize = 256;

/// Why bytes are no parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    #[error("more than {PARAMS_MAX} parameters")]
    TooMany,
    #[error("a parameter is no UTF-8")]
    NoText,
}

/// Names and values in the order they came; of two with one name the later counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Reads `name=value&…` behind what is there: percent escapes undone, `+` a space, an escape that is none as it is.
    ///
    /// # Errors
    /// Too many, or no UTF-8.
    pub fn read(&mut self, text: &[u8]) -> Result<(), FormError> {
        for pair in text.split(|byte| *byte == b'&') {
            if pair.is_empty() {
                continue;
            }
            let equals = pair.iter().position(|byte| *byte == b'=');
            let (name, rest) = pair.split_at(equals.unwrap_or(pair.len()));
            let value = rest.get(1..).unwrap_or_default();
            self.push(decode(name)?, decode(value)?)?;
        }
        Ok(())
    }

    /// One more.
    ///
    /// # Errors
    /// Too many.
    pub fn push(&mut self, name: String, value: String) -> Result<(), FormError> {
        if self.0.len() >= PARAMS_MAX {
            return Err(FormError::TooMany);
        }
        self.0.push((name, value));
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.iter().rev().find(|(known, _)| *known == name);
        found.map(|(_, value)| value)
    }

    /// One that has to be there.
    pub(super) fn need(&self, name: &str) -> Result<&str, Fault> {
        let missing = || Fault::bad(format!("Missing required parameters: {name}"));
        self.get(name).ok_or_else(missing)
    }

    /// `true` or `1`, `false` or `0`; anything else is none, as empty fields of forms are.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name)?.trim() {
            "1" => Some(true),
            "0" => Some(false),
            word if word.eq_ignore_ascii_case("true") => Some(true),
            word if word.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }

    /// A whole number; an empty value is none.
    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, Fault> {
        self.number(name)
    }

    /// Any finite number; an empty value is none.
    pub(super) fn float(&self, name: &str) -> Result<Option<f64>, Fault> {
        let number: Option<f64> = self.number(name)?;
        match number {
            Some(number) if !number.is_finite() => Err(no_number(name)),
            number => Ok(number),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Fault> {
        match self.get(name).map(str::trim) {
            // A page's script writes these for what it does not have.
            None | Some("" | "undefined" | "null") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| no_number(name)),
        }
    }

    /// The parts between the signs, none of them empty.
    pub fn list(&self, name: &str, sign: char) -> Vec<&str> {
        let text = self.get(name).unwrap_or_default();
        let parts = text.split(sign).map(str::trim);
        parts.filter(|part| !part.is_empty()).collect()
    }
}

fn no_number(name: &str) -> Fault {
    Fault::bad(format!("{name} is no number that it can be"))
}

/// Undoes the escapes of a form.
fn decode(text: &[u8]) -> Result<String, FormError> {
    unescape(text, true).ok_or(FormError::NoText)
}

/// Undoes percent escapes, and `+` for a space if `plus`; `None` when the result is no UTF-8.
pub fn unescape(text: &[u8], plus: bool) -> Option<String> {
    let hex = |digit: Option<&u8>| (char::from(*digit?)).to_digit(16);
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let digits = (hex(text.get(at + 1)), hex(text.get(at + 2)));
        match (byte, digits) {
            (b'%', (Some(high), Some(low))) => {
                bytes.push(u8::try_from(high * 16 + low).ok()?);
                at += 2;
            }
            (b'+', _) if plus => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
        at += 1;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Params, FormError> {
        let mut params = Params::default();
        params.read(text.as_bytes()).map(|()| params)
    }

    #[test]
    fn escapes_are_undone_and_those_that_are_none_stay() {
        let params = read("a=1&&b=x+y%2bz%26&c&%61=2&json={\"d\":\"%\"}&e=%zz%4").unwrap();
        assert_eq!(params.get("a"), Some("2"), "the later one");
        assert_eq!(params.get("b"), Some("x y+z&"));
        assert_eq!(params.get("c"), Some(""));
        assert_eq!(params.get("json"), Some("{\"d\":\"%\"}"));
        assert_eq!(params.get("e"), Some("%zz%4"));
        assert_eq!(params.get("z"), None);
    }

    #[test]
    fn flags_numbers_and_lists_are_read_as_clients_write_them() {
        let params =
            read("a=True&b=0&c=&d=yes&n=-2&f=1.5&u=undefined&l=|x||y%7Cz|&bad=1e&inf=inf").unwrap();
        assert_eq!(
            (params.flag("a"), params.flag("b")),
            (Some(true), Some(false))
        );
        assert_eq!((params.flag("c"), params.flag("d")), (None, None));
        assert_eq!(params.int("n").ok(), Some(Some(-2)));
        assert_eq!(params.float("f").ok(), Some(Some(1.5)));
        assert_eq!(params.int("u").ok(), Some(None));
        assert_eq!(params.list("l", '|'), ["x", "y", "z"]);
        assert!(params.int("bad").is_err() && params.float("inf").is_err());
        assert!(params.need("none").is_err());
    }

    #[test]
    fn bad_text_and_endless_forms_are_refused() {
        assert_eq!(read("a=%ff"), Err(FormError::NoText));
        assert_eq!(
            read(&"a=1&".repeat(PARAMS_MAX + 1)),
            Err(FormError::TooMany)
        );
        assert!(read(&"a=1&".repeat(PARAMS_MAX)).is_ok());
    }
}
