//! Makes text from torrents, peers and trackers safe to show. Layer 7.
//!
//! A torrent's name may hold terminal escapes, line breaks or characters that turn the reading direction
//! (HOSTILE.md T8, A6): they are shown as escapes, everything else as it is.

use std::borrow::Cow;
use std::path::Path;

/// The text with control, direction-changing and invisible characters written as escapes.
pub fn terminal(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if is_unsafe(c) => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}

/// JSON on one line with the same characters inside its strings written as JSON escapes: it means the same, and a
/// terminal obeys none of it.
pub fn json(line: &str) -> String {
    let mut safe = String::with_capacity(line.len());
    for c in line.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Raw bytes as text: invalid UTF-8 as `\xNN`, the rest like [`terminal`].
pub fn terminal_bytes(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        safe.push_str(&terminal(part.valid()));
        for byte in part.invalid() {
            safe.push_str(&format!("\\x{byte:02x}"));
        }
    }
    safe
}

/// A path as text, like [`terminal_bytes`], and no longer than a reader's patience.
pub fn terminal_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let safe = terminal_bytes(path.as_os_str().as_bytes());
    elide(&safe, PATH_CHARS_MAX).into_owned()
}

/// Characters of a path that are shown.
pub const PATH_CHARS_MAX: usize = 240;

/// At most `chars_max` characters: what is too much is taken out of the middle, where an ellipsis stands for it. Paths
/// and messages say the most at their ends.
pub fn elide(text: &str, chars_max: usize) -> Cow<'_, str> {
    let count = text.chars().count();
    if count <= chars_max {
        return Cow::Borrowed(text);
    }
    let kept = chars_max.saturating_sub(1);
    let (head, tail) = (kept - kept / 2, kept / 2);
    let head = text.chars().take(head);
    let tail = text.chars().skip(count - tail);
    Cow::Owned(head.chain(['…']).chain(tail).collect())
}

/// At most `chars_max` characters, the last an ellipsis when something was cut off.
pub fn cut(text: &str, chars_max: usize) -> Cow<'_, str> {
    if text.chars().count() <= chars_max {
        return Cow::Borrowed(text);
    }
    let mut short: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    short.push('…');
    Cow::Owned(short)
}

/// C0, C1 and DEL; bidirectional controls; line and paragraph separators; zero-width and tag characters;
/// the byte order mark.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn terminal_escapes_and_direction_changes_are_neutralised() {
        assert_eq!(terminal("a\u{1b}]0;x\u{7}b"), "a\\u{1b}]0;x\\u{7}b");
        assert_eq!(terminal("cod\u{202e}gpj.exe"), "cod\\u{202e}gpj.exe");
        assert_eq!(terminal("a\u{9b}31m"), "a\\u{9b}31m");
        assert_eq!(terminal("Ünïcödé 日本 ok"), "Ünïcödé 日本 ok");
    }

    #[test]
    fn invalid_bytes_are_shown_as_hexadecimal() {
        assert_eq!(terminal_bytes(b"a\xff\x1bz"), "a\\xff\\u{1b}z");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(cut("äöüß", 4), "äöüß");
        assert_eq!(cut("äöüßx", 4), "äöü…");
        assert_eq!(elide("äöüß", 4), "äöüß");
        assert_eq!(elide("äöüßxyz", 4), "äö…z");
        let path = Path::new("/a").join("b".repeat(5_000)).join("c.flac");
        let shown = terminal_path(&path);
        assert_eq!(shown.chars().count(), PATH_CHARS_MAX);
        assert!(shown.starts_with("/a/b") && shown.ends_with("b/c.flac"));
    }

    proptest! {
        #[test]
        fn no_control_character_survives(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let shown = terminal_bytes(&bytes);
            prop_assert!(!shown.chars().any(is_unsafe));
            let text = String::from_utf8_lossy(&bytes).into_owned() + "\u{9b}\u{202e}\u{e0041}";
            let line = json(&serde_json::json!(text).to_string());
            prop_assert!(!line.chars().any(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
