//! The methods by name, and what does each of them. Layer 6.

use super::{Answer, Call, Fault};
use crate::daemon::control::backend::{Action, Backend, QueueMove};

/// Where the methods are.
const PREFIX: &str = "/api/v2/";

/// What a method does to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It tells something: `GET` or `POST`.
    Reads,
    /// It changes something: `POST`, which no link and no picture of another site can be.
    Writes,
    /// The same, and it brings .torrent files along.
    Adds,
    /// Anybody may ask.
    Login,
}

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    pub name: &'static str,
    pub kind: Kind,
}

impl Method {
    /// Whether it is about more than the program itself, which is known at once.
    pub fn is_about_torrents(&self) -> bool {
        match self.kind {
            Kind::Login => false,
            Kind::Reads => !self.name.starts_with("app/"),
            Kind::Writes | Kind::Adds => self.name != "app/shutdown",
        }
    }
}

const fn reads(name: &'static str) -> Method {
    Method {
        name,
        kind: Kind::Reads,
    }
}

const fn writes(name: &'static str) -> Method {
    Method {
        name,
        kind: Kind::Writes,
    }
}

static METHODS: [Method; 85] = [
    Method {
        name: "auth/login",
        kind: Kind::Login,
    },
    Method {
        name: "torrents/add",
        kind: Kind::Adds,
    },
    reads("app/buildInfo"),
    reads("app/defaultSavePath"),
    reads("app/networkInterfaceAddressList"),
    reads("app/networkInterfaceList"),
    reads("app/preferences"),
    reads("app/version"),
    reads("app/webapiVersion"),
    reads("log/main"),
    reads("log/peers"),
    reads("rss/items"),
    reads("rss/rules"),
    reads("search/plugins"),
    reads("search/status"),
    reads("sync/maindata"),
    reads("sync/torrentPeers"),
    reads("torrentcreator/status"),
    reads("torrents/categories"),
    reads("torrents/count"),
    reads("torrents/downloadLimit"),
    reads("torrents/export"),
    reads("torrents/files"),
    reads("torrents/info"),
    reads("torrents/pieceHashes"),
    reads("torrents/pieceStates"),
    reads("torrents/properties"),
    reads("torrents/tags"),
    reads("torrents/trackers"),
    reads("torrents/uploadLimit"),
    reads("torrents/webseeds"),
    reads("transfer/downloadLimit"),
    reads("transfer/info"),
    reads("transfer/speedLimitsMode"),
    reads("transfer/uploadLimit"),
    writes("app/setPreferences"),
    writes("app/shutdown"),
    writes("auth/logout"),
    writes("torrents/addPeers"),
    writes("torrents/addTags"),
    writes("torrents/addTrackers"),
    writes("torrents/addWebSeeds"),
    writes("torrents/bottomPrio"),
    writes("torrents/createCategory"),
    writes("torrents/createTags"),
    writes("torrents/decreasePrio"),
    writes("torrents/delete"),
    writes("torrents/deleteTags"),
    writes("torrents/editCategory"),
    writes("torrents/editTracker"),
    writes("torrents/editWebSeed"),
    writes("torrents/filePrio"),
    writes("torrents/increasePrio"),
    writes("torrents/pause"),
    writes("torrents/reannounce"),
    writes("torrents/recheck"),
    writes("torrents/removeCategories"),
    writes("torrents/removeTags"),
    writes("torrents/removeTrackers"),
    writes("torrents/removeWebSeeds"),
    writes("torrents/rename"),
    writes("torrents/renameFile"),
    writes("torrents/renameFolder"),
    writes("torrents/resume"),
    writes("torrents/setAutoManagement"),
    writes("torrents/setCategory"),
    writes("torrents/setDownloadLimit"),
    writes("torrents/setDownloadPath"),
    writes("torrents/setForceStart"),
    writes("torrents/setLocation"),
    writes("torrents/setSavePath"),
    writes("torrents/setShareLimits"),
    writes("torrents/setSuperSeeding"),
    writes("torrents/setTags"),
    writes("torrents/setUploadLimit"),
    writes("torrents/start"),
    writes("torrents/stop"),
    writes("torrents/toggleFirstLastPiecePrio"),
    writes("torrents/toggleSequentialDownload"),
    writes("torrents/topPrio"),
    writes("transfer/banPeers"),
    writes("transfer/setDownloadLimit"),
    writes("transfer/setSpeedLimitsMode"),
    writes("transfer/setUploadLimit"),
    writes("transfer/toggleSpeedLimitsMode"),
];

/// The method of a path; `None` for a path of something else, the inner one for a method that is none.
pub fn find(path: &str) -> Option<Option<&'static Method>> {
    let name = path.strip_prefix(PREFIX)?.trim_start_matches('/');
    Some(METHODS.iter().find(|method| method.name == name))
}

impl<B: Backend> Call<'_, B> {
    /// Does one method.
    pub(super) async fn run(&self, name: &str) -> Result<Answer, Fault> {
        match name {
            "torrents/add" => return self.add().await,
            "app/preferences" => return self.preferences(),
            "sync/maindata" => return self.maindata().await,
            "sync/torrentPeers" => return self.torrent_peers().await,
            "torrents/categories" => return self.categories(),
            "torrents/downloadLimit" => return self.limits(|limits| limits.down),
            "torrents/uploadLimit" => return self.limits(|limits| limits.up),
            "torrents/export" => return self.export().await,
            "torrents/files" => return self.files().await,
            "torrents/info" => return self.info().await,
            "torrents/pieceHashes" => return self.piece_hashes().await,
            "torrents/pieceStates" => return self.piece_states().await,
            "torrents/properties" => return self.properties().await,
            "torrents/tags" => return self.tags(),
            "torrents/trackers" => return self.trackers().await,
            "torrents/webseeds" => return self.web_seeds().await,
            "transfer/info" => return self.transfer_info(),
            "app/setPreferences" => self.set_preferences().await?,
            "app/shutdown" => self.backend().shut_down(),
            "torrents/start" | "torrents/resume" => self.act(Action::Start).await?,
            "torrents/stop" | "torrents/pause" => self.act(Action::Stop).await?,
            "torrents/recheck" => self.act(Action::Verify).await?,
            "torrents/reannounce" => self.act(Action::Reannounce).await?,
            "torrents/setForceStart" => self.force_start().await?,
            "torrents/delete" => self.delete().await?,
            "torrents/topPrio" => self.queue(QueueMove::Top).await?,
            "torrents/bottomPrio" => self.queue(QueueMove::Bottom).await?,
            "torrents/increasePrio" => self.queue(QueueMove::Up).await?,
            "torrents/decreasePrio" => self.queue(QueueMove::Down).await?,
            "torrents/toggleSequentialDownload" => self.toggle_sequential().await?,
            "torrents/setSuperSeeding" => self.set_super_seeding().await?,
            "torrents/setShareLimits" => self.set_share_limits().await?,
            "torrents/setDownloadLimit" => self.set_limit(true).await?,
            "torrents/setUploadLimit" => self.set_limit(false).await?,
            "torrents/setLocation" | "torrents/setSavePath" => self.set_location(name).await?,
            "torrents/renameFile" | "torrents/renameFolder" => self.rename().await?,
            "torrents/filePrio" => self.file_priority().await?,
            "transfer/setDownloadLimit" => self.set_session_limit(true).await?,
            "transfer/setSpeedLimitsMode" | "transfer/toggleSpeedLimitsMode" => {
                self.set_limits_mode().await?;
            }
            "transfer/setUploadLimit" => self.set_session_limit(false).await?,
            _ => return self.run_more(name).await,
        }
        self.rpc.outdate();
        Ok(Answer::Done)
    }

    async fn run_more(&self, name: &str) -> Result<Answer, Fault> {
        match name {
            "torrents/setCategory" => self.set_category().await?,
            "torrents/createCategory" => self.create_category().await?,
            "torrents/editCategory" => self.edit_category().await?,
            "torrents/removeCategories" => self.remove_categories().await?,
            "torrents/addTags" => self.add_tags().await?,
            "torrents/setTags" => self.set_tags().await?,
            "torrents/removeTags" => self.remove_tags().await?,
            "torrents/createTags" => self.create_tags().await?,
            "torrents/deleteTags" => self.delete_tags().await?,
            "torrents/addTrackers" => self.add_trackers().await?,
            "torrents/editTracker" => self.edit_tracker().await?,
            "torrents/removeTrackers" => self.remove_trackers().await?,
            _ => return self.tell(name),
        }
        self.rpc.outdate();
        Ok(Answer::Done)
    }

    /// Words and empty lists, and what there is none of.
    fn tell(&self, name: &str) -> Result<Answer, Fault> {
        if let Some(answer) = self.tell_of_app(name) {
            return Ok(answer);
        }
        let list = |text: &str| Ok(Answer::Json(text.as_bytes().to_vec()));
        match name {
            "log/main" | "log/peers" | "search/plugins" | "search/status" => list("[]"),
            "torrentcreator/status" => list("[]"),
            "app/networkInterfaceList" | "app/networkInterfaceAddressList" => list("[]"),
            "rss/items" | "rss/rules" => list("{}"),
            "torrents/setAutoManagement" => {
                self.off_alone("enable", "a folder that follows the category")
            }
            "torrents/rename" => Err(Fault::unsupported("another name for a torrent")),
            "torrents/addPeers" => Err(Fault::unsupported("a peer by its address")),
            "torrents/setDownloadPath" => Err(Fault::unsupported("a folder for unfinished files")),
            "torrents/toggleFirstLastPiecePrio" => Err(Fault::unsupported(
                "an order with the first and last pieces first",
            )),
            "torrents/addWebSeeds" | "torrents/editWebSeed" | "torrents/removeWebSeeds" => {
                Err(Fault::unsupported("a change of web seeds"))
            }
            "transfer/banPeers" => Err(Fault::unsupported("a ban by hand")),
            _ => Err(Fault::not_found("there is no such method")),
        }
    }

    /// To switch off what is never on is no error.
    fn off_alone(&self, flag: &str, what: &'static str) -> Result<Answer, Fault> {
        self.params.need("hashes")?;
        match self.params.flag(flag) {
            Some(true) => Err(Fault::unsupported(what)),
            _ => Ok(Answer::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_methods_and_to_nothing_else() {
        assert_eq!(
            find("/api/v2/app/version"),
            Some(Some(&reads("app/version")))
        );
        assert_eq!(
            find("/api/v2//sync/maindata"),
            Some(Some(&reads("sync/maindata")))
        );
        for none in [
            "/api/v2/",
            "/api/v2/app",
            "/api/v2/app/version/",
            "/api/v2/app/Version",
        ] {
            assert_eq!(find(none), Some(None), "{none}");
        }
        for other in ["/", "/api/v2", "/api/events", "/api/v1/app/version"] {
            assert_eq!(find(other), None, "{other}");
        }
    }

    #[test]
    fn what_changes_something_is_never_asked_for_by_a_link() {
        for method in &METHODS {
            let action = method.name.split('/').nth(1).unwrap_or_default();
            let changes = [
                "set", "add", "remove", "delete", "edit", "create", "toggle", "rename",
            ];
            if changes.iter().any(|word| action.starts_with(word)) {
                assert_ne!(method.kind, Kind::Reads, "{}", method.name);
            }
        }
        let mut names: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METHODS.len());
    }
}
