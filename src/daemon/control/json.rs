//! JSON written straight into bytes, in either spelling of names, and read with limits. Layer 6.
//!
//! A list of ten thousand torrents is never a tree of values: each figure goes into the answer as it is looked at.

use std::io::Write;

use serde_json::{Map, Value};

/// How deep what is read may be nested: the deepest request has four levels.
const DEPTH_MAX: usize = 32;
/// Keys, values and lists in what is read, each of which takes up to some hundred bytes: the longest list that a call may
/// have, and room for the rest of it.
const VALUES_MAX: usize = 1 << 20;

/// Which names the keys have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `hashString`, `rpc-version`: each as it came to be.
    Old,
    /// `hash_string`, `rpc_version`: JSON-RPC 2.0.
    Snake,
}

/// JSON that grows.
#[derive(Debug)]
pub struct Json {
    bytes: Vec<u8>,
    dialect: Dialect,
    /// A comma is due before the next value or key.
    is_behind_value: bool,
}

impl Json {
    /// Nothing yet.
    pub const fn new(dialect: Dialect) -> Json {
        Json {
            bytes: Vec::new(),
            dialect,
            is_behind_value: false,
        }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes so far.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True before the first value.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The spelling of its keys.
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn comma(&mut self) {
        if std::mem::replace(&mut self.is_behind_value, true) {
            self.bytes.push(b',');
        }
    }

    /// Begins an object or array, with its sign.
    pub fn open(&mut self, sign: u8) {
        self.comma();
        self.bytes.push(sign);
        self.is_behind_value = false;
    }

    /// Ends one.
    pub fn close(&mut self, sign: u8) {
        self.bytes.push(sign);
        self.is_behind_value = true;
    }

    /// A key of an object, by its old name: in the other spelling if that is the dialect.
    pub fn key(&mut self, old: &str) {
        self.comma();
        match self.dialect {
            Dialect::Old => self.quoted(old),
            Dialect::Snake => self.quoted(&snake(old)),
        }
        self.bytes.push(b':');
        self.is_behind_value = false;
    }

    /// A key exactly as it is given.
    pub fn key_as_is(&mut self, name: &str) {
        self.comma();
        self.quoted(name);
        self.bytes.push(b':');
        self.is_behind_value = false;
    }

    /// Text, escaped as JSON demands.
    pub fn text(&mut self, text: &str) {
        self.comma();
        self.quoted(text);
    }

    fn quoted(&mut self, text: &str) {
        self.bytes.push(b'"');
        let mut from = 0;
        for (at, byte) in text.bytes().enumerate() {
            // DEL is legal, but no terminal should get it from an answer printed as it is.
            if byte >= 0x20 && byte != b'"' && byte != b'\\' && byte != 0x7f {
                continue;
            }
            self.bytes
                .extend_from_slice(text.as_bytes().get(from..at).unwrap_or_default());
            from = at + 1;
            match byte {
                b'"' => self.bytes.extend_from_slice(b"\\\""),
                b'\\' => self.bytes.extend_from_slice(b"\\\\"),
                byte => self.format(format_args!("\\u{byte:04x}")),
            }
        }
        self.bytes
            .extend_from_slice(text.as_bytes().get(from..).unwrap_or_default());
        self.bytes.push(b'"');
    }

    fn format(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = self.bytes.write_fmt(text);
    }

    /// A whole number.
    pub fn int(&mut self, number: impl Into<i128>) {
        self.comma();
        self.format(format_args!("{}", number.into()));
    }

    /// A count or size.
    pub fn uint(&mut self, number: impl Into<u64>) {
        self.comma();
        self.format(format_args!("{}", number.into()));
    }

    /// A number with at most four places; one that is none is 0.
    pub fn float(&mut self, number: f64) {
        self.comma();
        if !number.is_finite() {
            return self.bytes.push(b'0');
        }
        self.format(format_args!("{number:.4}"));
        while self.bytes.last() == Some(&b'0') {
            self.bytes.pop();
        }
        if self.bytes.last() == Some(&b'.') {
            self.bytes.pop();
        }
    }

    /// `true` or `false`.
    pub fn bool(&mut self, value: bool) {
        self.comma();
        self.bytes
            .extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// `null`.
    pub fn null(&mut self) {
        self.comma();
        self.bytes.extend_from_slice(b"null");
    }

    /// A value that was read, as it was.
    pub fn value(&mut self, value: &Value) {
        self.comma();
        let _ = serde_json::to_writer(&mut self.bytes, value);
    }

    /// An array of what the iterator yields.
    pub fn array<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Json, T),
    ) {
        self.open(b'[');
        items.into_iter().for_each(|item| write(self, item));
        self.close(b']');
    }

    /// An array of texts.
    pub fn texts<'a>(&mut self, texts: impl IntoIterator<Item = &'a String>) {
        self.array(texts, |json, text| json.text(text));
    }
}

/// The name in snake_case: `hashString`, `peer-limit` and `isUTP` are `hash_string`, `peer_limit` and `is_utp`.
pub fn snake(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 4);
    let mut is_behind_lower = false;
    for c in name.chars() {
        match c {
            '-' => text.push('_'),
            c if c.is_ascii_uppercase() => {
                if is_behind_lower {
                    text.push('_');
                }
                text.push(c.to_ascii_lowercase());
            }
            c => text.push(c),
        }
        is_behind_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
    }
    text
}

/// Reads JSON that is not nested deeper than `DEPTH_MAX` and has no more than `VALUES_MAX` in it.
///
/// # Errors
/// It is or has, or it is no JSON: in words.
pub fn read(bytes: &[u8]) -> Result<Value, &'static str> {
    let (mut depth, mut values) = (0_usize, 0_usize);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        values += usize::from(!is_text && matches!(byte, b'[' | b'{' | b',' | b':'));
        if depth > DEPTH_MAX {
            return Err("this JSON is nested too deeply");
        }
        if values > VALUES_MAX {
            return Err("this JSON has too many values");
        }
    }
    serde_json::from_slice(bytes).map_err(|_| "this is no JSON")
}

/// The same object with all of its own keys in snake_case. Keys of what lies in it stay as they are.
pub fn snake_keys(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .map(|(key, value)| (snake(&key), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_whatever_the_text() {
        let text = "a\"b\\c\u{0}\u{1b}[31m\u{7f}\n<script>ü";
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        json.key("hashString");
        json.text(text);
        json.key("list");
        json.array([1_u64, u64::MAX], |json, number| json.uint(number));
        json.key("share");
        json.float(0.5);
        json.key("none");
        json.float(f64::NAN);
        json.key("whole");
        json.float(10.0);
        json.close(b'}');
        let bytes = json.into_bytes();
        assert!(bytes.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f));
        let expected = serde_json::json!({
            "hashString": text, "list": [1, u64::MAX], "share": 0.5, "none": 0, "whole": 10
        });
        assert_eq!(read(&bytes), Ok(expected));
    }

    #[test]
    fn every_old_name_has_its_new_one() {
        for (old, new) in [
            ("hashString", "hash_string"),
            ("peer-limit", "peer_limit"),
            ("isUTP", "is_utp"),
            ("fileCount", "file_count"),
            ("file-count", "file_count"),
            ("alt-speed-time-begin", "alt_speed_time_begin"),
            ("already_new", "already_new"),
        ] {
            assert_eq!(snake(old), new);
        }
    }

    #[test]
    fn deep_json_is_not_read() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(deep(32).as_bytes()).is_ok());
        assert!(read(deep(33).as_bytes()).is_err());
        assert!(read("[".repeat(1_000_000).as_bytes()).is_err());
        let brackets_in_text = format!("\"{}\\\"[\"", "[".repeat(100));
        assert!(read(brackets_in_text.as_bytes()).is_ok());
    }

    #[test]
    fn json_of_too_many_values_is_not_read() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        assert!(read(list(1_000_000).as_bytes()).is_ok());
        let refused = Err("this JSON has too many values");
        assert_eq!(read(list(2_000_000).as_bytes()), refused);
        let objects = format!("[{}0]", "{\"\":0},".repeat(400_000));
        assert_eq!(read(objects.as_bytes()), refused);
        let text = format!("\"{}\"", "0,".repeat(2_000_000));
        assert!(read(text.as_bytes()).is_ok());
    }
}
