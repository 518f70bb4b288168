//! Forms that programs and pages send to the control server.

use gyre::daemon::control::qbt::form::{PARAMS_MAX, Params, unescape};
use gyre::daemon::control::qbt::multipart::{self, MultipartError, PARTS_MAX, Part};

/// Parameters: never longer than what they were read from, and the same again when every byte of them is escaped.
pub fn form(data: &[u8]) {
    let mut params = Params::default();
    if params.read(data).is_err() {
        return;
    }
    let count = params.iter().count();
    let bytes: usize = params.iter().map(|(n, v)| n.len() + v.len()).sum();
    assert!(count <= PARAMS_MAX && bytes <= data.len());
    let mut again = Params::default();
    for (name, value) in params.iter() {
        let pair = format!("{}={}", escape(name), escape(value));
        again.read(pair.as_bytes()).expect("no more than before");
        assert_eq!(
            unescape(escape(value).as_bytes(), false).as_deref(),
            Some(value)
        );
        let known = params.get(name);
        assert!(known.is_some());
    }
    assert_eq!(again, params);
}

fn escape(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// Bodies of several parts: those found lie in the body behind each other, hold no delimiter, and are found again in a
/// body that is made of them. The first line is taken for a `Content-Type` that names the boundary.
pub fn multipart(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (line, body) = data.split_at(end.unwrap_or(0));
    let line = String::from_utf8_lossy(line);
    let boundary = multipart::boundary(&line).unwrap_or_else(|| "B".to_owned());
    assert!((1..=70).contains(&boundary.len()) && !boundary.contains(['\r', '\n']));
    let body = body.get(1..).unwrap_or_default();
    let Ok(parts) = multipart::parse(body, &boundary) else {
        return;
    };
    assert!(parts.len() <= PARTS_MAX);
    let delimiter = format!("\r\n--{boundary}\r\n");
    let mut at = 0;
    for part in &parts {
        let begin = part.data.as_ptr() as usize - body.as_ptr() as usize;
        assert!(begin >= at && begin + part.data.len() <= body.len());
        at = begin + part.data.len();
        let mut windows = part.data.windows(delimiter.len());
        assert!(!windows.any(|window| window == delimiter.as_bytes()));
    }
    match multipart::parse(&build(&parts, &boundary), &boundary) {
        // Names are longer when they are escaped.
        Err(error) => assert_eq!(error, MultipartError::LongHead),
        Ok(again) => assert_eq!(again, parts),
    }
}

fn build(parts: &[Part<'_>], boundary: &str) -> Vec<u8> {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut body = Vec::new();
    for part in parts {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{}\"",
            quote(&part.name)
        );
        body.extend(head.into_bytes());
        if let Some(name) = &part.file_name {
            body.extend(format!("; filename=\"{}\"", quote(name)).into_bytes());
        }
        body.extend_from_slice(b"\r\n\r\n");
        body.extend_from_slice(part.data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend(format!("--{boundary}--").into_bytes());
    body
}
