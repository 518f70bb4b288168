//! What is asked of one torrent, wherever it is in its life. Layer 5.

use std::rc::Rc;

use super::Fleet;
use super::row::Run;
use crate::base::{InfoHash, PieceIndex};
use crate::session::command::{CommandError, Reply, TorrentDetails};
use crate::session::door::Door;
use crate::session::shared::Shared;

/// Asks trackers and the DHT for peers as soon as they allow.
pub(super) fn reannounce(shared: &Shared, info_hash: &InfoHash) {
    match shared.door(info_hash) {
        Some(Door::Torrent(driver)) => driver.announcers.want_peers(),
        Some(Door::Metadata(search)) => search.announcers().want_peers(),
        None => {}
    }
    shared.seed_trackers.want_peers(*info_hash);
    if let Some(dht) = shared.dht() {
        dht.want_peers(info_hash);
    }
}

/// Peers, trackers and pieces at this moment.
pub(super) fn details(shared: &Shared, info_hash: &InfoHash) -> TorrentDetails {
    match shared.door(info_hash) {
        Some(Door::Torrent(driver)) => TorrentDetails {
            peers: driver.peer_stats(),
            trackers: [
                driver.announcers.status(),
                shared.seed_trackers.status(info_hash),
            ]
            .concat(),
            have: Some(driver.read(|core| core.have().clone())),
        },
        Some(Door::Metadata(search)) => TorrentDetails {
            peers: Vec::new(),
            trackers: search.announcers().status(),
            have: None,
        },
        None => TorrentDetails {
            peers: Vec::new(),
            trackers: shared.seed_trackers.status(info_hash),
            have: None,
        },
    }
}

impl Fleet {
    /// Has pieces looked at again: now where it runs, which a seed that sleeps does for it, else when it begins.
    pub(super) fn suspect(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        info_hash: InfoHash,
        pieces: Vec<PieceIndex>,
    ) -> Result<(), CommandError> {
        if let Some(Door::Torrent(driver)) = shared.door(&info_hash) {
            driver.on_data_in_doubt(pieces, "they rotted on the disk");
            return Ok(());
        }
        let run = self.with_row(info_hash, |row| {
            row.suspects = pieces;
            // It is not whole any more, most likely.
            if let Some(sleep) = &mut row.sleeps {
                sleep.is_whole = false;
            }
            row.run
        })?;
        if run == Run::Asleep {
            self.begin_now(shared, info_hash);
        }
        Ok(())
    }

    /// Ends a torrent in order, and tells when it has ended. Peers that can be dialed are kept for the next run.
    pub(super) fn end_told(&self, shared: &Rc<Shared>, info_hash: InfoHash, reply: Reply<()>) {
        let peers = details(shared, &info_hash).peers;
        let dialed = peers.iter().filter(|peer| !peer.is_inbound);
        let dialed = dialed.map(|peer| peer.addr).collect();
        let result = self.stop(shared, info_hash);
        let table = &mut *self.table.borrow_mut();
        match table.rows.get_mut(&info_hash) {
            Some(row) if result.is_ok() && row.is_running() => {
                row.peers = dialed;
                row.enders.push(reply);
            }
            _ => {
                let _ = reply.send(result);
            }
        }
    }
}
