//! Categories and tags of torrents, and those that are kept for torrents to come. Layer 6.

use super::{Answer, Call, Fault, gone_is_fine, names};
use crate::daemon::control::backend::{Backend, Change, Torrent};
use crate::daemon::control::json::{Dialect, Json};

/// Tags of one torrent: the daemon's own limit, less the category.
const TAGS_MAX: usize = 63;

impl<B: Backend> Call<'_, B> {
    pub(super) fn categories(&self) -> Result<Answer, Fault> {
        let catalog = self.rpc.catalog();
        let all = self
            .qbt
            .shelf
            .categories(catalog.all().map(|torrent| &**torrent));
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        for (name, folder) in &all {
            write_category(name, folder, &mut json);
        }
        json.close(b'}');
        Ok(Answer::Json(json.into_bytes()))
    }

    pub(super) fn tags(&self) -> Result<Answer, Fault> {
        let catalog = self.rpc.catalog();
        let all = self.qbt.shelf.tags(catalog.all().map(|torrent| &**torrent));
        let mut json = Json::new(Dialect::Old);
        json.texts(&all);
        Ok(Answer::Json(json.into_bytes()))
    }

    /// A category that is not there is made: it may have gone with the last torrent that had it.
    pub(super) async fn set_category(&self) -> Result<(), Fault> {
        let name = self.params.need("category")?;
        if !name.is_empty() {
            self.keep_category(name, None).await?;
        }
        self.label("hashes", |torrent| {
            names::with_category(&torrent.labels, name)
        })
        .await
    }

    pub(super) async fn create_category(&self) -> Result<(), Fault> {
        let name = self.params.need("category")?;
        if name.is_empty() {
            return Err(Fault::bad("Category cannot be empty"));
        }
        if self.qbt.shelf.has(name) {
            return Err(Fault::conflict("there is such a category"));
        }
        let folder = self.category_folder().await?;
        self.keep_category(name, Some(&folder)).await
    }

    pub(super) async fn edit_category(&self) -> Result<(), Fault> {
        let name = self.params.need("category")?;
        if name.is_empty() {
            return Err(Fault::bad("Category cannot be empty"));
        }
        self.params.need("savePath")?;
        let is_used = {
            let catalog = self.rpc.catalog();
            let mut all = catalog.all();
            all.any(|torrent| names::category(&torrent.labels) == name)
        };
        if !is_used && !self.qbt.shelf.has(name) {
            return Err(Fault::conflict("there is no such category"));
        }
        let folder = self.category_folder().await?;
        self.keep_category(name, Some(&folder)).await
    }

    /// The folder that `savePath` names, which may lie in the one for downloads; empty for that itself.
    async fn category_folder(&self) -> Result<String, Fault> {
        if self.params.flag("downloadPathEnabled") == Some(true) {
            return Err(Fault::unsupported("a folder for unfinished files"));
        }
        let folder = self.params.get("savePath").unwrap_or_default().trim();
        if !folder.is_empty() {
            self.rpc.allow(&self.absolute(folder)).await?;
        }
        Ok(folder.to_owned())
    }

    /// A folder of a category, below the one for downloads unless it says otherwise.
    pub(super) fn absolute(&self, folder: &str) -> String {
        match folder.starts_with('/') {
            true => folder.to_owned(),
            false => {
                let downloads = self.backend().session().downloads;
                format!("{}/{folder}", downloads.trim_end_matches('/'))
            }
        }
    }

    pub(super) async fn keep_category(
        &self,
        name: &str,
        folder: Option<&str>,
    ) -> Result<(), Fault> {
        match names::is_category(name) {
            true => self.qbt.shelf.keep(name, folder).await,
            false => Err(Fault::conflict("Incorrect category name")),
        }
    }

    pub(super) async fn remove_categories(&self) -> Result<(), Fault> {
        self.params.need("categories")?;
        let gone = self.params.list("categories", '\n');
        self.qbt.shelf.forget(&gone).await?;
        self.label_all(|torrent| {
            let has = gone.contains(&names::category(&torrent.labels));
            has.then(|| names::with_category(&torrent.labels, ""))
        })
        .await
    }

    pub(super) async fn add_tags(&self) -> Result<(), Fault> {
        let tags = self.tags_of_one()?;
        self.label("hashes", |torrent| names::with_tags(&torrent.labels, &tags))
            .await
    }

    /// Exactly these tags.
    pub(super) async fn set_tags(&self) -> Result<(), Fault> {
        let tags = self.tags_of_one()?;
        self.label("hashes", |torrent| {
            let bare = names::without_tags(&torrent.labels, &[]);
            names::with_tags(&bare, &tags)
        })
        .await
    }

    pub(super) async fn remove_tags(&self) -> Result<(), Fault> {
        let tags = self.params.list("tags", ',');
        self.label("hashes", |torrent| {
            names::without_tags(&torrent.labels, &tags)
        })
        .await
    }

    pub(super) async fn create_tags(&self) -> Result<(), Fault> {
        self.qbt.shelf.keep_tags(&self.named_tags()?).await
    }

    pub(super) async fn delete_tags(&self) -> Result<(), Fault> {
        self.params.need("tags")?;
        let gone = self.params.list("tags", ',');
        self.qbt.shelf.forget_tags(&gone).await?;
        self.label_all(|torrent| {
            let has = names::tags(&torrent.labels).any(|tag| gone.contains(&tag));
            has.then(|| names::without_tags(&torrent.labels, &gone))
        })
        .await
    }

    /// The names in `tags`, all of them good.
    fn named_tags(&self) -> Result<Vec<&str>, Fault> {
        self.params.need("tags")?;
        let tags = self.params.list("tags", ',');
        match tags.iter().all(|tag| names::is_tag(tag)) {
            true => Ok(tags),
            false => Err(Fault::conflict("Incorrect tag name")),
        }
    }

    /// The same, no more of them than one torrent has.
    pub(super) fn tags_of_one(&self) -> Result<Vec<&str>, Fault> {
        let tags = self.named_tags()?;
        match tags.len() <= TAGS_MAX {
            true => Ok(tags),
            false => Err(Fault::bad(format!("a torrent has at most {TAGS_MAX} tags"))),
        }
    }

    async fn label(
        &self,
        hashes: &str,
        labels: impl Fn(&Torrent) -> Vec<String>,
    ) -> Result<(), Fault> {
        for torrent in self.chosen(hashes)? {
            self.put_labels(&torrent, labels(&torrent)).await?;
        }
        Ok(())
    }

    async fn label_all(
        &self,
        labels: impl Fn(&Torrent) -> Option<Vec<String>>,
    ) -> Result<(), Fault> {
        let all: Vec<_> = self.rpc.catalog().all().cloned().collect();
        for torrent in all {
            if let Some(labels) = labels(&torrent) {
                self.put_labels(&torrent, labels).await?;
            }
        }
        Ok(())
    }

    async fn put_labels(&self, torrent: &Torrent, labels: Vec<String>) -> Result<(), Fault> {
        if labels == torrent.labels {
            return Ok(());
        }
        let change = Change {
            labels: Some(labels),
            ..Change::default()
        };
        gone_is_fine(self.backend().change(torrent.info_hash, change).await)
    }
}

/// One category as a member of an object that is open.
pub(super) fn write_category(name: &str, folder: &str, json: &mut Json) {
    json.key_as_is(name);
    json.open(b'{');
    json.key("name");
    json.text(name);
    json.key("savePath");
    json.text(folder);
    json.close(b'}');
}
