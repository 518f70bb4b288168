//! Answers of web seeds: the part that was asked for comes out, never a byte more, however the answer is cut.

use gyre::session::web_seed::verdict::{Body, Part, judge};
use gyre::wire::http::ResponseHead;

/// What is asked for: a part of a file, or the whole of a short one.
const PARTS: [Part; 2] = [
    Part {
        first: 5,
        bytes: 5,
        file_bytes: 20,
    },
    Part {
        first: 0,
        bytes: 20,
        file_bytes: 20,
    },
];

/// Which part, where to cut, then the answer.
pub fn web_seed(data: &[u8]) {
    let [which, cut, answer @ ..] = data else {
        return;
    };
    let part = PARTS[usize::from(which & 1)];
    let Ok(Some((head, used))) = ResponseHead::parse(answer) else {
        return;
    };
    assert!(used <= answer.len());
    if judge(&head, part, "a file").is_err() {
        return;
    }
    let bytes = &answer[used..];
    let whole = taken(&head, part, bytes, bytes.len().max(1));
    let step = usize::from(*cut) + 1;
    assert_eq!(taken(&head, part, bytes, step), whole, "in steps of {step}");
}

/// What comes out of it: the bytes, and whether the part is whole.
fn taken(head: &ResponseHead, part: Part, bytes: &[u8], step: usize) -> (Vec<u8>, bool) {
    let mut body = Body::new(head.framing, part.bytes);
    let mut out = Vec::new();
    let mut is_good = true;
    for chunk in bytes.chunks(step) {
        if body.is_over() || !is_good {
            break;
        }
        let taken = body.take(chunk, |data| {
            out.extend_from_slice(data);
            Ok(())
        });
        is_good = taken.is_ok();
    }
    let is_whole = out.len() as u64 == part.bytes;
    assert!(out.len() as u64 <= part.bytes, "more than was asked for");
    assert!(is_whole || !body.is_over(), "over before it is whole");
    if is_good && !body.is_over() {
        assert_eq!(body.on_end().is_ok(), is_whole);
    }
    (out, is_whole)
}
