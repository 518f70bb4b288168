//! `torrents/add`. Layer 6.

use super::{Answer, Call, Fault, change, names};
use crate::daemon::control::backend::{
    Action, Added, Backend, Change, NewSource, NewTorrent, QueueMove, Refusal,
};
use crate::wire::metainfo::Metainfo;

/// The largest .torrent file that is taken (HOSTILE.md T2).
const TORRENT_BYTES_MAX: usize = 64 << 20;
/// Torrents of one call.
const TORRENTS_MAX: usize = 1_000;

/// Where a torrent's files are to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// As the torrent has it.
    Original,
    /// In a folder, a single file too.
    Folder,
    /// In no folder, several files neither.
    NoFolder,
}

/// What goes for all torrents of one call.
struct Terms {
    new: NewTorrent,
    layout: Layout,
    /// What is changed of each once it is there.
    change: Change,
    is_forced: bool,
    goes_first: bool,
}

impl<B: Backend> Call<'_, B> {
    pub(super) async fn add(&self) -> Result<Answer, Fault> {
        let links = self.params.get("urls").unwrap_or_default().lines();
        let links: Vec<&str> = links
            .map(str::trim)
            .filter(|link| !link.is_empty())
            .collect();
        if links.len() + self.files.len() > TORRENTS_MAX {
            let words = format!("one call adds at most {TORRENTS_MAX} torrents");
            return Err(Fault::bad(words));
        }
        // All terms are looked at before the first torrent is added.
        let terms = self.terms().await?;
        let (mut added, mut failed) = (0, None);
        let sources = links.into_iter().map(Source::Link);
        for source in sources.chain(self.files.iter().map(|bytes| Source::File(bytes))) {
            match self.add_one(&source, &terms).await {
                Ok(true) => added += 1,
                Ok(false) => {}
                Err(fault) => failed = failed.or(Some(fault)),
            }
        }
        self.rpc.outdate();
        match (added, failed) {
            (0, Some(fault)) => Err(fault),
            // There already, or nothing at all.
            (0, None) => Ok(Answer::Text("Fails.".to_owned())),
            _ => Ok(Answer::Text("Ok.".to_owned())),
        }
    }

    /// False when it was there already.
    async fn add_one(&self, source: &Source<'_>, terms: &Terms) -> Result<bool, Fault> {
        let source = source.check(terms.layout)?;
        let new = NewTorrent {
            source,
            ..terms.new.clone()
        };
        let Added {
            info_hash,
            is_duplicate,
            ..
        } = self.backend().add(new).await?;
        if is_duplicate {
            return Ok(false);
        }
        let done = self.settle(info_hash, terms).await;
        if let Err(fault) = done {
            // Not on the terms that were asked for: then not at all.
            let _ = self.backend().remove(info_hash, false).await;
            return Err(fault);
        }
        Ok(true)
    }

    async fn settle(&self, info_hash: crate::base::InfoHash, terms: &Terms) -> Result<(), Fault> {
        let backend = self.backend();
        if terms.change != Change::default() {
            backend.change(info_hash, terms.change.clone()).await?;
        }
        if terms.goes_first {
            backend.move_in_queue(&[info_hash], QueueMove::Top).await?;
        }
        if terms.is_forced {
            backend.act(info_hash, Action::StartNow).await?;
        }
        Ok(())
    }

    async fn terms(&self) -> Result<Terms, Fault> {
        let params = &self.params;
        let flag = |name: &str| params.flag(name).unwrap_or(false);
        for (name, what) in [
            ("useDownloadPath", "a folder for unfinished files"),
            (
                "firstLastPiecePrio",
                "an order with the first and last pieces first",
            ),
        ] {
            if flag(name) {
                return Err(Fault::unsupported(what));
            }
        }
        let given = |name: &str| params.get(name).map(str::trim).unwrap_or_default();
        if !given("rename").is_empty() {
            return Err(Fault::unsupported("another name for a torrent"));
        }
        if !matches!(given("stopCondition"), "" | "None") {
            return Err(Fault::unsupported("a torrent that stops by itself"));
        }
        let layout = match given("contentLayout") {
            "" | "Original" => Layout::Original,
            "Subfolder" => Layout::Folder,
            "NoSubfolder" => Layout::NoFolder,
            _ => return Err(Fault::bad("contentLayout is none of its words")),
        };
        let mut change = self.share_limits()?;
        let limit = |name: &str| {
            let limit = params.int(name)?.map(change::limit_of);
            Ok::<_, Fault>(limit.filter(|limit| limit.is_on))
        };
        (change.down, change.up) = (limit("dlLimit")?, limit("upLimit")?);
        // What each torrent has anyway is no change.
        change.seed_ratio = change.seed_ratio.filter(|limit| limit.mode() != 0);
        change.seed_idle = change.seed_idle.filter(|limit| limit.mode() != 0);
        let starts = self.backend().session().starts_added;
        let is_paused = params.flag("stopped").or(params.flag("paused"));
        let (category, labels) = self.labels().await?;
        Ok(Terms {
            new: NewTorrent {
                source: NewSource::Magnet(String::new()),
                folder: self.folder(category).await?,
                is_paused: is_paused.unwrap_or(!starts),
                labels,
                files: Vec::new(),
                priority: None,
                peers_max: None,
                is_sequential: flag("sequentialDownload"),
            },
            layout,
            change,
            is_forced: flag("forced"),
            goes_first: flag("addToTopOfQueue"),
        })
    }

    /// The category, which is made if it is not there, and with the tags as labels.
    async fn labels(&self) -> Result<(&str, Vec<String>), Fault> {
        let category = self.params.get("category").unwrap_or_default().trim();
        if !category.is_empty() {
            self.keep_category(category, None).await?;
        }
        let tags = match self.params.get("tags") {
            Some(_) => self.tags_of_one()?,
            None => Vec::new(),
        };
        let labels = names::with_category(&[], category);
        Ok((category, names::with_tags(&labels, &tags)))
    }

    /// The folder that is named, else that of the category, else the one for downloads.
    async fn folder(&self, category: &str) -> Result<Option<std::path::PathBuf>, Fault> {
        let named = self.params.get("savepath").map(str::trim);
        let folder = match named.filter(|folder| !folder.is_empty()) {
            Some(folder) => Some(folder.to_owned()),
            None => self.qbt.shelf.folder(category),
        };
        match folder {
            Some(folder) => Ok(Some(self.rpc.allow(&self.absolute(&folder)).await?)),
            None => Ok(None),
        }
    }
}

enum Source<'a> {
    Link(&'a str),
    File(&'a [u8]),
}

impl Source<'_> {
    /// A source that the daemon takes, laid out as is asked for.
    fn check(&self, layout: Layout) -> Result<NewSource, Fault> {
        let asked = |is_multi_file: Option<bool>| match (layout, is_multi_file) {
            (Layout::Original, _) => Ok(()),
            (Layout::Folder, Some(true)) | (Layout::NoFolder, Some(false)) => Ok(()),
            _ => Err(Fault::unsupported("another layout than the torrent's own")),
        };
        match self {
            Source::File(bytes) => {
                let bad = |words: String| Fault::from(Refusal::BadTorrent(words));
                if bytes.len() > TORRENT_BYTES_MAX {
                    return Err(bad("the .torrent file is too large".to_owned()));
                }
                if layout != Layout::Original {
                    let metainfo = Metainfo::parse(bytes).map_err(|e| bad(e.to_string()))?;
                    asked(Some(metainfo.info.is_multi_file))?;
                }
                Ok(NewSource::Torrent(bytes.to_vec()))
            }
            Source::Link(link) => {
                let is_magnet = link
                    .get(..7)
                    .is_some_and(|begin| begin.eq_ignore_ascii_case("magnet:"));
                // An info_hash alone is a link too.
                let is_hash = link.parse::<crate::base::InfoHash>().is_ok();
                if !is_magnet && !is_hash {
                    // The daemon reaches addresses that whoever asks may not (HOSTILE.md A7): it fetches nothing for others.
                    return Err(Fault::conflict(
                        "the daemon fetches no addresses: download the .torrent file and add that",
                    ));
                }
                asked(None)?;
                Ok(NewSource::Magnet(match is_hash {
                    true => format!("magnet:?xt=urn:btih:{link}"),
                    false => (*link).to_owned(),
                }))
            }
        }
    }
}
