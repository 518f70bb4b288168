//! Details of a torrent as the protocols show them, from what the session and its .torrent say. Layer 6.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::backend::{Details, File, FileChange, Peer, Refusal, Tracker};
use crate::base::{Bitfield, Now};
use crate::daemon::TorrentRow;
use crate::session::command::TorrentDetails;
use crate::storage::layout::FileLayout;
use crate::swarm::announce::TrackerState;
use crate::swarm::sources::SourceCounts;
use crate::wire::metainfo::{Info, Metainfo};

/// All of it. Without a .torrent there are no files, without a run no peers. `date` makes seconds since 1970 of the session's
/// time.
pub fn details(
    row: &TorrentRow,
    metainfo: Option<&Metainfo>,
    told: Option<&TorrentDetails>,
    date: &dyn Fn(Now) -> i64,
) -> Details {
    let is_complete = row.wanted_bytes > 0 && row.have_bytes >= row.wanted_bytes;
    let have = told.and_then(|told| told.have.clone());
    let have = have.unwrap_or_else(|| match is_complete && row.selected_files.is_none() {
        true => Bitfield::full(row.pieces),
        false => Bitfield::new(row.pieces),
    });
    let mut details = Details {
        have: have.as_bytes().to_vec(),
        ..Details::default()
    };
    if let Some(metainfo) = metainfo {
        details.files = files(row, metainfo, &have);
        details.web_seeds = metainfo.web_seeds.clone();
        let tiers = row.trackers().iter().enumerate();
        let idle = tiers.flat_map(|(tier, urls)| urls.iter().map(move |url| (tier, url)));
        details.trackers = idle
            .map(|(tier, url)| Tracker {
                url: url.clone(),
                tier,
                ..Tracker::default()
            })
            .collect();
    }
    if let Some(told) = told {
        details.peers = told.peers.iter().map(peer).collect();
        for (_, status) in &told.trackers {
            note(&mut details.trackers, status, date);
        }
    }
    details
}

fn peer(peer: &crate::swarm::torrent::PeerStats) -> Peer {
    let word = peer.source.as_str();
    let known = SourceCounts::WORDS.into_iter().find(|one| *one == word);
    Peer {
        addr: peer.addr,
        client: peer.client.clone(),
        source: known.unwrap_or("tracker"),
        is_incoming: peer.is_inbound,
        is_utp: peer.is_utp,
        is_encrypted: peer.is_encrypted,
        is_seed: peer.is_seed,
        am_choking: peer.am_choking,
        am_interested: peer.am_interested,
        peer_choking: peer.peer_choking,
        peer_interested: peer.peer_interested,
        pieces_have: peer.pieces_have,
        down_bytes_per_s: peer.down_bytes_per_s,
        up_bytes_per_s: peer.up_bytes_per_s,
        downloaded_bytes: peer.downloaded_bytes,
        uploaded_bytes: peer.uploaded_bytes,
    }
}

/// A tracker is asked in both address families: what works in one of them works.
fn note(
    trackers: &mut Vec<Tracker>,
    status: &crate::swarm::announce::TrackerStatus,
    date: &dyn Fn(Now) -> i64,
) {
    let place = trackers.iter().position(|one| one.url == status.url);
    let place = place.unwrap_or_else(|| {
        trackers.push(Tracker {
            url: status.url.clone(),
            tier: status.tier,
            ..Tracker::default()
        });
        trackers.len() - 1
    });
    let Some(tracker) = trackers.get_mut(place) else {
        return;
    };
    tracker.is_announcing |= status.state == TrackerState::Announcing;
    let is_working = match status.state {
        TrackerState::Working => Some(true),
        TrackerState::Failing | TrackerState::Disabled => Some(false),
        TrackerState::Idle | TrackerState::Announcing => None,
    };
    if is_working == Some(true) {
        tracker.message.clear();
    }
    if tracker.is_working != Some(true) {
        tracker.is_working = is_working.or(tracker.is_working);
        tracker.message = status.message.clone().unwrap_or_default();
    }
    tracker.seeders = tracker.seeders.max(status.seeders);
    tracker.leechers = tracker.leechers.max(status.leechers);
    tracker.peers = tracker.peers.saturating_add(status.peers);
    tracker.asked_unix_s = tracker.asked_unix_s.max(status.asked.map(date));
    let next = [tracker.next_unix_s, status.next.map(date)];
    tracker.next_unix_s = next.into_iter().flatten().min();
}

fn files(row: &TorrentRow, metainfo: &Metainfo, have: &Bitfield) -> Vec<File> {
    let info = &metainfo.info;
    let names = names(row, info);
    let piece_bytes = u64::from(info.geometry.piece_length_bytes()).max(1);
    let mut begin = 0_u64;
    let mut files = Vec::with_capacity(info.files.len());
    for (index, entry) in info.files.iter().enumerate() {
        begin = info.geometry.file_start(begin);
        let end = begin.saturating_add(entry.length_bytes);
        let (first, last) = (begin / piece_bytes, end.div_ceil(piece_bytes));
        let mut have_bytes = 0;
        for number in first..last {
            let piece = u32::try_from(number).ok();
            let piece = piece.and_then(|number| info.geometry.piece(number));
            if piece.is_some_and(|piece| have.has(piece)) {
                let from = (number * piece_bytes).max(begin);
                have_bytes += ((number + 1) * piece_bytes).min(end).saturating_sub(from);
            }
        }
        let name = names.get(index);
        let name = name.map(|path| path.to_string_lossy().into_owned());
        let selected = row.selected_files.as_ref();
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        files.push(File {
            name: name.unwrap_or_default(),
            length_bytes: entry.length_bytes,
            have_bytes,
            is_wanted: selected.is_none_or(|selected| selected.contains(&index)),
            priority: row
                .settings
                .file_priorities
                .get(&index)
                .copied()
                .unwrap_or(0),
            pieces: (number(first), number(last)),
        });
        begin = end;
    }
    files
}

/// The path of each file, with its new names.
fn names(row: &TorrentRow, info: &Info) -> Vec<PathBuf> {
    let Ok(mut layout) = FileLayout::new(info) else {
        return Vec::new();
    };
    for rename in &row.renames {
        let renamed = layout
            .clone()
            .renamed(Path::new(&rename.path), &rename.name);
        layout = renamed.unwrap_or(layout);
    }
    let files = layout.files().iter();
    files.map(|file| file.path.clone()).collect()
}

/// The files that are wanted after the changes: the inner `None` is all of them, the outer one no change.
///
/// # Errors
/// An index that is none, no file left.
pub fn select(
    count: usize,
    selected: Option<&[usize]>,
    changes: &[(FileChange, Vec<usize>)],
) -> Result<Option<Option<Vec<usize>>>, Refusal> {
    if count == 0 {
        let words = "the files are not known yet";
        return Err(Refusal::BadValue(words.to_owned()));
    }
    let mut wanted = vec![selected.is_none(); count];
    for index in selected.unwrap_or_default() {
        if let Some(slot) = wanted.get_mut(*index) {
            *slot = true;
        }
    }
    let before = wanted.clone();
    for (change, indices) in changes {
        let is_wanted = match change {
            FileChange::Wanted(is_wanted) => *is_wanted,
            FileChange::Priority(_) => continue,
        };
        // No index at all is short for all.
        if indices.is_empty() {
            wanted.fill(is_wanted);
        }
        for index in indices {
            let slot = wanted.get_mut(*index);
            let bad = || Refusal::BadValue(format!("there is no file {index}"));
            *slot.ok_or_else(bad)? = is_wanted;
        }
    }
    if wanted == before {
        return Ok(None);
    }
    if wanted.iter().all(|is_wanted| *is_wanted) {
        return Ok(Some(None));
    }
    let left = wanted
        .iter()
        .enumerate()
        .filter(|(_, is_wanted)| **is_wanted);
    let left: Vec<usize> = left.map(|(index, _)| index).collect();
    match left.is_empty() {
        true => Err(Refusal::BadValue(
            "no file would be wanted: stop the torrent".to_owned(),
        )),
        false => Ok(Some(Some(left))),
    }
}

/// The priorities of files after the changes, those that are not 0; `None` is no change.
///
/// # Errors
/// An index that is none.
pub fn priorities(
    count: usize,
    before: &BTreeMap<usize, i8>,
    changes: &[(FileChange, Vec<usize>)],
) -> Result<Option<BTreeMap<usize, i8>>, Refusal> {
    let mut all = before.clone();
    for (change, indices) in changes {
        let FileChange::Priority(priority) = change else {
            continue;
        };
        if let Some(index) = indices.iter().find(|index| **index >= count) {
            return Err(Refusal::BadValue(format!("there is no file {index}")));
        }
        let mut set = |index: usize| match priority {
            0 => all.remove(&index),
            priority => all.insert(index, *priority),
        };
        // No index at all is short for all.
        if indices.is_empty() {
            (0..count).for_each(|index| {
                set(index);
            });
        }
        for index in indices {
            set(*index);
        }
    }
    Ok((all != *before).then_some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_priorities_and_0_is_none() {
        let change =
            |priority, indices: &[usize]| (FileChange::Priority(priority), indices.to_vec());
        let none = BTreeMap::new();
        let set = priorities(
            3,
            &none,
            &[change(-1, &[]), change(1, &[1]), change(0, &[2])],
        );
        let set = set.unwrap().unwrap();
        assert_eq!(set, BTreeMap::from([(0, -1), (1, 1)]));
        assert_eq!(priorities(3, &set, &[change(1, &[1])]), Ok(None));
        assert_eq!(
            priorities(3, &set, &[change(0, &[])]),
            Ok(Some(none.clone()))
        );
        assert!(priorities(3, &set, &[change(1, &[3])]).is_err());
        let wanted = (FileChange::Wanted(false), vec![0]);
        assert_eq!(priorities(3, &none, &[wanted]), Ok(None));
    }

    #[test]
    fn files_are_chosen_by_index_and_an_empty_list_means_all() {
        let wanted = |is: bool, indices: &[usize]| (FileChange::Wanted(is), indices.to_vec());
        let one_off = select(3, None, &[wanted(false, &[1])]);
        assert_eq!(one_off, Ok(Some(Some(vec![0, 2]))));
        assert_eq!(
            select(3, Some(&[0, 2]), &[wanted(true, &[])]),
            Ok(Some(None))
        );
        let only = [wanted(false, &[]), wanted(true, &[2])];
        assert_eq!(select(3, None, &only), Ok(Some(Some(vec![2]))));
        assert_eq!(select(3, Some(&[0]), &[wanted(true, &[0])]), Ok(None));
        assert!(select(3, None, &[wanted(false, &[])]).is_err());
        assert!(select(3, None, &[wanted(true, &[3])]).is_err());
    }
}
