//! `tests/HOSTILE.md` is whole: every row once, and every test that it names is there.

use std::collections::BTreeMap;
use std::path::Path;

/// The rows by letter, counted from 1.
const ROWS: [(char, u32); 14] = [
    ('T', 16),
    ('H', 4),
    ('E', 8),
    ('W', 21),
    ('C', 8),
    ('K', 13),
    ('L', 18),
    ('A', 10),
    ('N', 2),
    ('G', 4),
    ('S', 13),
    ('D', 9),
    ('P', 7),
    ('U', 6),
];

/// Row id and last column of every line of a table.
fn rows() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/HOSTILE.md");
    let page = std::fs::read_to_string(path).unwrap();
    let mut rows = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, _, tests] = cells[..] else {
            panic!("three columns: {line}");
        };
        if id != "row" {
            rows.push((id.to_owned(), tests.to_owned()));
        }
    }
    rows
}

/// What stands in backticks.
fn named(tests: &str) -> impl Iterator<Item = &str> {
    tests.split('`').skip(1).step_by(2)
}

#[test]
fn every_row_is_there_once() {
    let mut count = BTreeMap::new();
    for (id, _) in rows() {
        *count.entry(id).or_insert(0) += 1;
    }
    for (letter, rows) in ROWS {
        for number in 1..=rows {
            let id = format!("{letter}{number}");
            assert_eq!(count.remove(&id), Some(1), "row {id}");
        }
    }
    assert!(count.is_empty(), "rows nobody knows: {count:?}");
}

#[test]
fn every_row_has_tests_or_says_why_not() {
    for (id, tests) in rows() {
        let has_reason =
            tests.starts_with("not built yet") || tests.starts_with("not tested yet: ");
        assert!(
            named(&tests).next().is_some() || has_reason,
            "row {id}: {tests}"
        );
    }
}

#[test]
fn every_test_named_is_there() {
    for (id, tests) in rows() {
        for test in named(&tests) {
            let (file, function) = test.split_once("::").expect("path::function");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("row {id}: {file}: {error}"));
            let at = text.find(&format!("fn {function}("));
            let at = at.unwrap_or_else(|| panic!("row {id}: no {function} in {file}"));
            // Attributes stand between the mark and the function.
            let before: Vec<&str> = text[..at].lines().rev().take(4).collect();
            let is_test = before.iter().any(|line| line.trim() == "#[test]");
            assert!(is_test, "row {id}: {test} is no test");
        }
    }
}
