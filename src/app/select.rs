//! `--select`: globs and indices to files of a torrent. Layer 7.

use std::collections::BTreeSet;

use glob::{MatchOptions, Pattern};

use super::exit::Failure;
use super::info::shown_path;
use super::plain;
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;

/// `*` also matches `/`, so that `*.flac` finds files in every folder.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: false,
    require_literal_leading_dot: false,
};

/// For each torrent the indices of the files that any of the texts selects, in order; `None` when there are no texts.
///
/// # Errors
/// A text is no glob or selects nothing of any torrent, or nothing of a torrent is selected.
pub fn select_all(
    metainfos: &[Metainfo],
    texts: &[String],
) -> Result<Vec<Option<Vec<usize>>>, Failure> {
    const HINT: &str = "`gyre download TORRENT --list` shows the files and their indices";
    if texts.is_empty() {
        return Ok(vec![None; metainfos.len()]);
    }
    let mut selections = vec![BTreeSet::new(); metainfos.len()];
    for text in texts {
        let mut is_used = false;
        for (metainfo, selection) in metainfos.iter().zip(&mut selections) {
            let found = matching(metainfo, text)?;
            is_used |= !found.is_empty();
            selection.extend(found);
        }
        if !is_used {
            let what = format!("--select {text} matches no file of {}", names(metainfos));
            return Err(Failure::usage(what, HINT));
        }
    }
    for (metainfo, selection) in metainfos.iter().zip(&selections) {
        if selection.is_empty() {
            let what = format!(
                "--select matches no file of {}",
                names(std::slice::from_ref(metainfo))
            );
            return Err(Failure::usage(what, HINT));
        }
    }
    let sorted = |files: BTreeSet<usize>| Some(files.into_iter().collect());
    Ok(selections.into_iter().map(sorted).collect())
}

/// The indices of the files that the texts select of a torrent that came by a link, or those that the link names
/// (BEP 53); `None` is all.
///
/// # Errors
/// A text is no glob, or nothing is selected.
pub fn of_link(
    metainfo: &Metainfo,
    link: &Magnet,
    texts: &[String],
) -> Result<Option<Vec<usize>>, Failure> {
    let mut selection = BTreeSet::new();
    for text in texts {
        selection.extend(matching(metainfo, text)?);
    }
    if texts.is_empty() {
        if link.selected_files.is_empty() {
            return Ok(None);
        }
        let files = metainfo.info.files.iter().enumerate();
        let is_named = |index: usize| {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            link.selected_files
                .iter()
                .any(|range| range.contains(&index))
        };
        let named = files.filter(|(index, file)| is_named(*index) && !file.attributes.is_pad);
        selection.extend(named.map(|(index, _)| index));
    }
    if selection.is_empty() {
        let what = match texts.is_empty() {
            true => "the link selects",
            false => "--select matches",
        };
        let what = format!(
            "{what} no file of {}",
            names(std::slice::from_ref(metainfo))
        );
        return Err(Failure::usage(
            what,
            "`gyre download LINK --list` shows the files and their indices",
        ));
    }
    Ok(Some(selection.into_iter().collect()))
}

fn names(metainfos: &[Metainfo]) -> String {
    match metainfos {
        [only] => plain::name(&only.info.name),
        all => format!("the {} torrents", all.len()),
    }
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
        select_all(&[album()], &texts).unwrap().remove(0)
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
            let selection = select_all(&[album()], &[text.to_owned()]);
            assert!(selection.is_err(), "{text}");
        }
    }

    #[test]
    fn with_several_torrents_each_text_and_each_torrent_must_match_somewhere() {
        let single = MetainfoBuilder::new("x.iso", 16_384).single_file(1);
        let single = single.pieces(vec![0; 20]).build().unwrap().1;
        let both = [album(), single];
        let select = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            select_all(&both, &texts)
        };
        let selections = select(&["*.flac", "*.iso"]).unwrap();
        assert_eq!(selections, [Some(vec![0, 2]), Some(vec![0])]);
        assert!(select(&["*.flac"]).is_err());
        assert!(select(&["*.flac", "*.iso", "*.ogg"]).is_err());
    }
}
