//! Which torrents a call is about: `ids`. Layer 6.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::args::Args;
use super::{Fault, Rpc};
use crate::base::InfoHash;
use crate::daemon::control::backend::{Backend, Torrent};
use crate::daemon::control::catalog::Catalog;

/// The torrents chosen.
pub struct Selection {
    pub torrents: Vec<Arc<Torrent>>,
    /// Ids that went within the last minute, when that was asked for.
    pub removed: Option<Vec<u64>>,
}

impl<B: Backend> Rpc<B> {
    /// Those that `ids` names: a number, an info_hash, a list of them, `recently-active`; without it, all. Who is not
    /// there is left out.
    pub(super) fn select(&self, args: &Args) -> Result<Selection, Fault> {
        let ids = args.get("ids");
        let catalog = self.catalog();
        let (torrents, removed) = match ids {
            None => (catalog.all().cloned().collect(), None),
            Some(Value::String(word)) if is_recent(word) => {
                let (changed, removed) = catalog.recent(Instant::now());
                (changed, Some(removed))
            }
            // An empty list is short for all, as with the lists of files.
            Some(Value::Array(ids)) if ids.is_empty() => (catalog.all().cloned().collect(), None),
            Some(Value::Array(ids)) => {
                let mut seen = BTreeSet::new();
                let mut torrents = Vec::new();
                for id in ids {
                    let found = named(&catalog, id)?;
                    torrents.extend(found.filter(|found| seen.insert(found.id)).cloned());
                }
                (torrents, None)
            }
            Some(id) => {
                let found = named(&catalog, id)?;
                (found.cloned().into_iter().collect(), None)
            }
        };
        Ok(Selection { torrents, removed })
    }
}

fn named<'a>(catalog: &'a Catalog, id: &Value) -> Result<Option<&'a Arc<Torrent>>, Fault> {
    Ok(match info_hash(id)? {
        Named::Id(id) => catalog.get(id),
        Named::Hash(hash) => catalog.find(&hash),
    })
}

enum Named {
    Id(u64),
    Hash(InfoHash),
}

fn is_recent(word: &str) -> bool {
    word == "recently-active" || word == "recently_active"
}

fn info_hash(id: &Value) -> Result<Named, Fault> {
    let bad = || Fault::bad_argument("ids holds numbers and info_hashes");
    match id {
        Value::Number(number) => match number.as_u64() {
            Some(id) => Ok(Named::Id(id)),
            // Negative numbers are ids of nobody.
            None if number.is_i64() => Ok(Named::Id(u64::MAX)),
            None => Err(bad()),
        },
        Value::String(text) => {
            let hash = text.to_ascii_lowercase().parse();
            hash.map(Named::Hash).map_err(|_| bad())
        }
        _ => Err(bad()),
    }
}
