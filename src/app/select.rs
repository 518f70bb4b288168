//! `--select`: globs and indices to files of a torrent. Layer 6.

use glob::{MatchOptions, Pattern};

use super::exit::Failure;
use super::info::shown_path;
use crate::wire::metainfo::Metainfo;

/// `*` also matches `/`, so that `*.flac` finds files in every folder.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: false,
    require_literal_leading_dot: false,
};

/// Indices of the files that any of the texts selects, in order; `None` when there are no texts.
///
/// # Errors
/// A text is no glob, or selects nothing.
pub fn select(metainfo: &Metainfo, texts: &[String]) -> Result<Option<Vec<usize>>, Failure> {
    if texts.is_empty() {
        return Ok(None);
    }
    let mut selected = std::collections::BTreeSet::new();
    for text in texts {
        let found = matching(metainfo, text)?;
        if found.is_empty() {
            return Err(Failure::new(
                format!("--select {text} matches no file of {}", metainfo.info.name),
                "`gyre download TORRENT --list` shows the files and their indices",
            ));
        }
        selected.extend(found);
    }
    Ok(Some(selected.into_iter().collect()))
}

fn matching(metainfo: &Metainfo, text: &str) -> Result<Vec<usize>, Failure> {
    let files = &metainfo.info.files;
    let is_wanted = |index: &usize| {
        files
            .get(*index)
            .is_some_and(|file| !file.attributes.is_pad)
    };
    if let Some((first, last)) = index_range(text) {
        let last = last.min(files.len().saturating_sub(1));
        return Ok((first..=last).filter(is_wanted).collect());
    }
    let pattern = Pattern::new(text).map_err(|error| {
        Failure::usage(
            format!("--select {text} is no glob: {}", error.msg),
            "`*`, `?` and `[abc]` stand for names, a number is an index",
        )
    })?;
    let matches = |index: &usize| {
        let Some(file) = files.get(*index) else {
            return false;
        };
        let path = shown_path(metainfo, file);
        let inner = path
            .get(metainfo.info.name.len() + 1..)
            .unwrap_or(path.as_str());
        let name = inner.rsplit('/').next().unwrap_or(inner);
        [path.as_str(), inner, name]
            .iter()
            .any(|text| pattern.matches_with(text, OPTIONS))
    };
    Ok((0..files.len()).filter(is_wanted).filter(matches).collect())
}

/// `7` or `3-7`.
fn index_range(text: &str) -> Option<(usize, usize)> {
    match text.split_once('-') {
        None => text.parse().ok().map(|index| (index, index)),
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::metainfo::MetainfoBuilder;

    fn album() -> Metainfo {
        let file = |path: &str| {
            let elements = path.split('/').map(|part| part.as_bytes().to_vec());
            (elements.collect::<Vec<_>>(), 1)
        };
        MetainfoBuilder::new("album", 16_384)
            .files(vec![
                file("cd1/a.flac"),
                file("cd1/b.mp3"),
                file("cd2/c.flac"),
                file("cover.jpg"),
            ])
            .pieces(vec![0; 20])
            .build()
            .unwrap()
            .1
    }

    fn selected(texts: &[&str]) -> Option<Vec<usize>> {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        select(&album(), &texts).unwrap()
    }

    #[test]
    fn globs_match_path_and_name_and_indices_count_from_0() {
        assert_eq!(selected(&[]), None);
        assert_eq!(selected(&["*.flac"]), Some(vec![0, 2]));
        assert_eq!(selected(&["cd1/*"]), Some(vec![0, 1]));
        assert_eq!(selected(&["album/cd2/*"]), Some(vec![2]));
        assert_eq!(selected(&["cover.jpg"]), Some(vec![3]));
        assert_eq!(selected(&["3", "0-1"]), Some(vec![0, 1, 3]));
        assert_eq!(selected(&["2-99"]), Some(vec![2, 3]));
    }

    #[test]
    fn selections_of_nothing_are_errors() {
        for text in ["*.ogg", "4", "7-3", "[z"] {
            assert!(select(&album(), &[text.to_owned()]).is_err(), "{text}");
        }
    }
}
