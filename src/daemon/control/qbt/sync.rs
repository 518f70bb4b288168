//! `sync/maindata`: everything, then what changed since the answer that a client names. Layer 6.
//!
//! Nothing is kept of clients. Looks are numbered; of the last ones it is known what the catalog's number was, so that what
//! came after one can be told to whoever names it. Numbers begin anew at another place with each run: one that a client has
//! from an earlier run is nobody's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::fields::{self, Row};
use super::labels::write_category;
use super::{Answer, Call, Fault, list, program};
use crate::base::InfoHash;
use crate::daemon::control::backend::{Backend, Torrent};
use crate::daemon::control::catalog::Catalog;
use crate::daemon::control::json::{Dialect, Json};
use crate::uring::random::random;

/// Looks remembered: a client that asks every other second is behind by one or two.
const LOOKS_MAX: usize = 512;
/// Names that went, remembered; a client that missed one of them is told everything anew.
const GONE_MAX: usize = 4_096;

/// What is known of looks and names.
#[derive(Debug, Default)]
pub struct Sync {
    /// The number of a look, and of the catalog at that time.
    looks: VecDeque<(u64, u64)>,
    /// Of the categories on the shelf, at the last look.
    shelf: Option<u64>,
    categories: Stamped<String>,
    tags: Stamped<()>,
    trackers: Stamped<Vec<InfoHash>>,
}

/// Named things with the number of the look that found them changed.
#[derive(Debug)]
struct Stamped<T> {
    known: BTreeMap<String, (T, u64)>,
    gone: VecDeque<(String, u64)>,
    /// What went at this look or before may be forgotten.
    forgotten: u64,
}

impl<T> Default for Stamped<T> {
    fn default() -> Self {
        Stamped {
            known: BTreeMap::new(),
            gone: VecDeque::new(),
            forgotten: 0,
        }
    }
}

impl<T: PartialEq> Stamped<T> {
    /// Takes them as they are now; true when anything is different.
    fn look(&mut self, now: BTreeMap<String, T>, number: u64) -> bool {
        let mut before = std::mem::take(&mut self.known);
        let mut is_changed = false;
        for (name, value) in now {
            let entry = match before.remove(&name) {
                Some((old, stamp)) if old == value => (value, stamp),
                _ => {
                    is_changed = true;
                    (value, number)
                }
            };
            self.known.insert(name, entry);
        }
        is_changed |= !before.is_empty();
        self.gone
            .extend(before.into_keys().map(|name| (name, number)));
        while self.gone.len() > GONE_MAX {
            if let Some((_, stamp)) = self.gone.pop_front() {
                self.forgotten = stamp;
            }
        }
        is_changed
    }

    /// Those that changed behind that look.
    fn changed(&self, number: u64) -> impl Iterator<Item = (&String, &T)> {
        let known = self.known.iter();
        let changed = known.filter(move |(_, (_, stamp))| *stamp > number);
        changed.map(|(name, (value, _))| (name, value))
    }

    /// Those that went behind it, and did not come back.
    fn gone(&self, number: u64) -> impl Iterator<Item = &String> {
        let gone = self.gone.iter();
        let gone =
            gone.filter(move |(name, stamp)| *stamp > number && !self.known.contains_key(name));
        gone.map(|(name, _)| name)
    }
}

impl Sync {
    /// Looks at the catalog; tells the number of the look that found it as it is.
    fn look(
        &mut self,
        catalog: &Catalog,
        revision: u64,
        categories: impl FnOnce() -> BTreeMap<String, String>,
        tags: impl FnOnce() -> BTreeMap<String, ()>,
    ) -> u64 {
        let last = self.looks.back().copied();
        if let Some((number, sequence)) = last
            && sequence == catalog.sequence()
            && self.shelf == Some(revision)
        {
            return number;
        }
        let number = match last {
            Some((number, _)) => number + 1,
            None => first_number(),
        };
        self.shelf = Some(revision);
        self.categories.look(categories(), number);
        self.tags.look(tags(), number);
        self.trackers.look(trackers(catalog), number);
        self.looks.push_back((number, catalog.sequence()));
        while self.looks.len() > LOOKS_MAX {
            self.looks.pop_front();
        }
        number
    }

    /// The catalog's number at that look, if all that came after it is known.
    fn since(&self, number: u64, catalog: &Catalog) -> Option<u64> {
        let found = self.looks.iter().find(|(look, _)| *look == number)?;
        let forgotten = [
            self.categories.forgotten,
            self.tags.forgotten,
            self.trackers.forgotten,
        ];
        let is_known = forgotten.into_iter().all(|last| last <= number);
        (is_known && catalog.knows_since(found.1)).then_some(found.1)
    }
}

/// Anywhere in the first billion: some clients count in 32 bits.
fn first_number() -> u64 {
    let bytes = random::<4>().unwrap_or_default();
    u64::from(u32::from_le_bytes(bytes)) % 1_000_000_000 + 1
}

fn trackers(catalog: &Catalog) -> BTreeMap<String, Vec<InfoHash>> {
    let mut all: BTreeMap<&str, Vec<InfoHash>> = BTreeMap::new();
    for torrent in catalog.all() {
        for (_, url) in torrent.trackers.iter() {
            all.entry(url).or_default().push(torrent.info_hash);
        }
    }
    all.into_iter()
        .map(|(url, hashes)| (url.to_owned(), hashes))
        .collect()
}

impl<B: Backend> Call<'_, B> {
    pub(super) async fn maindata(&self) -> Result<Answer, Fault> {
        let free_bytes = self.free_space().await;
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        let changed = self.write_news(free_bytes, &mut json);
        json.key("torrents");
        json.open(b'{');
        let session = self.backend().session();
        for (at, torrent) in changed.iter().enumerate() {
            json.key_as_is(&torrent.info_hash.to_string());
            json.open(b'{');
            let row = Row {
                torrent,
                session: &session,
            };
            fields::write(row, &mut json);
            json.close(b'}');
            list::breathe(at, &json).await?;
        }
        json.close(b'}');
        json.close(b'}');
        Ok(Answer::Json(json.into_bytes()))
    }

    /// All but the torrents that changed, which are handed back: the look is over before anything is waited for.
    fn write_news(&self, free_bytes: u64, json: &mut Json) -> Vec<Arc<Torrent>> {
        let asked = self.params.int("rid").ok().flatten();
        let asked = asked.and_then(|rid| u64::try_from(rid).ok());
        let shelf = &self.qbt.shelf;
        let mut sync = self.qbt.sync.borrow_mut();
        let catalog = self.rpc.catalog();
        let all = || catalog.all().map(|torrent| &**torrent);
        let number = sync.look(
            &catalog,
            shelf.revision(),
            || shelf.categories(all()),
            || shelf.tags(all()).into_iter().map(|tag| (tag, ())).collect(),
        );
        let known = asked.and_then(|rid| sync.since(rid, &catalog).map(|seen| (rid, seen)));
        let (rid, changed, gone) = match known {
            Some((rid, seen)) => {
                let (changed, _) = catalog.since(seen);
                (rid, changed, catalog.removed_since(seen))
            }
            None => (0, catalog.all().cloned().collect(), Vec::new()),
        };
        json.key("rid");
        json.uint(number);
        if known.is_none() {
            json.key_as_is("full_update");
            json.bool(true);
        }
        write_list("torrents_removed", &gone, json);
        write_names(&sync, rid, json);
        self.write_state(&catalog, free_bytes, json);
        changed
    }

    fn write_state(&self, catalog: &Catalog, free_bytes: u64, json: &mut Json) {
        let session = self.backend().session();
        let (mut up, mut down, mut wasted) = (0_u64, 0_u64, 0_u64);
        for torrent in catalog.all() {
            up = up.saturating_add(torrent.uploaded_bytes);
            down = down.saturating_add(torrent.downloaded_bytes);
            wasted = wasted.saturating_add(torrent.wasted_bytes);
        }
        json.key_as_is("server_state");
        json.open(b'{');
        program::write_transfer(&session, json);
        for (key, number) in [
            ("alltime_dl", down),
            ("alltime_ul", up),
            ("average_time_queue", 0),
            ("free_space_on_disk", free_bytes),
            ("queued_io_jobs", 0),
            ("refresh_interval", 1_500),
            ("total_buffers_size", 0),
            ("total_peer_connections", u64::from(session.peers)),
            ("total_queued_size", 0),
            ("total_wasted_session", wasted),
        ] {
            json.key_as_is(key);
            json.uint(number);
        }
        let ratio = match down {
            0 => "-".to_owned(),
            down => format!("{:.2}", up as f64 / down as f64),
        };
        for (key, text) in [
            ("global_ratio", ratio.as_str()),
            ("read_cache_hits", "0"),
            ("read_cache_overload", "0"),
            ("write_cache_overload", "0"),
        ] {
            json.key_as_is(key);
            json.text(text);
        }
        for (key, is) in [
            ("queueing", program::is_queueing(&session)),
            ("use_alt_speed_limits", session.alt.is_on),
            ("use_subcategories", true),
        ] {
            json.key_as_is(key);
            json.bool(is);
        }
        json.close(b'}');
    }
}

/// Categories, tags and trackers behind that look; all of them behind 0.
fn write_names(sync: &Sync, rid: u64, json: &mut Json) {
    json.key("categories");
    json.open(b'{');
    for (name, folder) in sync.categories.changed(rid) {
        write_category(name, folder, json);
    }
    json.close(b'}');
    json.key("tags");
    json.array(sync.tags.changed(rid), |json, (tag, ())| json.text(tag));
    json.key("trackers");
    json.open(b'{');
    for (url, hashes) in sync.trackers.changed(rid) {
        json.key_as_is(url);
        json.array(hashes, |json, hash| json.text(&hash.to_string()));
    }
    json.close(b'}');
    if rid == 0 {
        return;
    }
    for (key, gone) in [
        (
            "categories_removed",
            sync.categories.gone(rid).collect::<Vec<_>>(),
        ),
        ("tags_removed", sync.tags.gone(rid).collect()),
        ("trackers_removed", sync.trackers.gone(rid).collect()),
    ] {
        write_list(key, &gone, json);
    }
}

/// A list that is left out when it is empty.
fn write_list(key: &str, items: &[impl ToString], json: &mut Json) {
    if !items.is_empty() {
        json.key_as_is(key);
        json.array(items, |json, item| json.text(&item.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, u8)]) -> BTreeMap<String, u8> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value));
        pairs.collect()
    }

    #[test]
    fn names_are_told_when_they_change_and_when_they_go() {
        let mut names = Stamped::default();
        assert!(names.look(map(&[("a", 1), ("b", 1)]), 10));
        assert!(!names.look(map(&[("a", 1), ("b", 1)]), 11));
        assert!(names.look(map(&[("a", 2)]), 12));
        let changed: Vec<_> = names.changed(11).collect();
        assert_eq!(changed, [(&"a".to_owned(), &2)]);
        assert_eq!(names.gone(11).collect::<Vec<_>>(), ["b"]);
        assert_eq!(names.gone(12).count(), 0);
        names.look(map(&[("a", 2), ("b", 3)]), 13);
        assert_eq!(names.gone(11).count(), 0, "it is back");
        assert_eq!(names.changed(0).count(), 2);
    }

    #[test]
    fn what_went_long_ago_is_forgotten_and_that_is_known() {
        let mut names = Stamped::default();
        for n in 0..3_000_u64 {
            let one = format!("{n}");
            names.look(map(&[(&one, 1), (&format!("x{n}"), 1)]), n + 1);
        }
        assert_eq!(names.gone.len(), GONE_MAX);
        assert!(names.forgotten > 1);
    }
}
