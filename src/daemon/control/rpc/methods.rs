//! The methods by name, and those about torrents. Layer 6.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::args::Args;
use super::fields::{self, Field};
use super::{Fault, Rpc, bounded};
use crate::daemon::control::backend::{Action, Backend, Details, QueueMove, Refusal, Torrent};
use crate::daemon::control::json::{Json, snake};

/// Fields that one call may ask for: all there are, with room for names that are none.
const FIELDS_MAX: usize = 256;
/// Torrents between two breaths of the thread's other work.
const ROWS_A_BREATH: usize = 500;

impl<B: Backend> Rpc<B> {
    /// Does one method and writes what it answers as one object.
    pub(super) async fn call(
        &self,
        method: &str,
        args: &Args,
        out: &mut Json,
    ) -> Result<(), Fault> {
        let method = snake(method);
        match method.as_str() {
            "torrent_get" => return self.torrent_get(args, out).await,
            "torrent_add" => return self.torrent_add(args, out).await,
            "torrent_rename_path" => return self.rename(args, out).await,
            "session_get" => return self.session_get(args, out).await,
            "session_stats" => return self.session_stats(out),
            "free_space" => return self.free_space(args, out).await,
            "port_test" => return self.port_test(out).await,
            "group_get" => return self.group_get(args, out),
            "policy_get" => return self.policy_get(out),
            "torrent_start" => self.act(args, Action::Start).await?,
            "torrent_start_now" => self.act(args, Action::StartNow).await?,
            "torrent_stop" => self.act(args, Action::Stop).await?,
            "torrent_verify" => self.act(args, Action::Verify).await?,
            "torrent_reannounce" => self.act(args, Action::Reannounce).await?,
            "torrent_remove" => self.remove(args).await?,
            "torrent_set" => self.torrent_set(args).await?,
            "torrent_set_location" => self.set_location(args).await?,
            "queue_move_top" => self.queue(args, QueueMove::Top).await?,
            "queue_move_up" => self.queue(args, QueueMove::Up).await?,
            "queue_move_down" => self.queue(args, QueueMove::Down).await?,
            "queue_move_bottom" => self.queue(args, QueueMove::Bottom).await?,
            "session_set" => self.session_set(args).await?,
            "session_close" => self.backend().shut_down(),
            "group_set" => self.group_set(args).await?,
            "blocklist_update" => return Err(Refusal::Unsupported("a blocklist").into()),
            _ => return Err(Fault::new(-32601, "method name not recognized")),
        }
        out.open(b'{');
        out.close(b'}');
        Ok(())
    }

    async fn act(&self, args: &Args, action: Action) -> Result<(), Fault> {
        for torrent in self.select(args)?.torrents {
            ignore_gone(self.backend().act(torrent.info_hash, action).await)?;
        }
        self.outdate();
        Ok(())
    }

    async fn remove(&self, args: &Args) -> Result<(), Fault> {
        let with_data = args.bool("delete_local_data")?.unwrap_or(false);
        // Where `ids` is forgotten, everything would be meant.
        if args.get("ids").is_none() {
            return Err(Fault::bad_argument("torrent-remove needs ids"));
        }
        for torrent in self.select(args)?.torrents {
            ignore_gone(self.backend().remove(torrent.info_hash, with_data).await)?;
        }
        self.outdate();
        Ok(())
    }

    async fn set_location(&self, args: &Args) -> Result<(), Fault> {
        let location = args.text("location")?;
        let location = location.ok_or_else(|| Fault::bad_argument("location is missing"))?;
        let moves = args.bool("move")?.unwrap_or(false);
        let folder = self.allowed(location).await?;
        for torrent in self.select(args)?.torrents {
            let moved = self
                .backend()
                .relocate(torrent.info_hash, &folder, moves)
                .await;
            ignore_gone(moved)?;
        }
        self.outdate();
        Ok(())
    }

    async fn rename(&self, args: &Args, out: &mut Json) -> Result<(), Fault> {
        let missing = || Fault::bad_argument("path and name are needed");
        let path = args.text("path")?.ok_or_else(missing)?;
        let name = args.text("name")?.ok_or_else(missing)?;
        let is_name = !name.is_empty() && name != "." && name != ".." && name.len() <= 255;
        if !is_name || name.contains(['/', '\0']) {
            return Err(Fault::bad_argument("name is no name of a file"));
        }
        if Path::new(path).file_name().is_none() {
            return Err(Fault::bad_argument("path names no file or folder"));
        }
        let selected = self.select(args)?.torrents;
        let [torrent] = selected.as_slice() else {
            return Err(Fault::bad_argument("torrent-rename-path needs one torrent"));
        };
        self.backend().rename(torrent.info_hash, path, name).await?;
        self.outdate();
        out.open(b'{');
        out.key("id");
        out.uint(torrent.id);
        out.key("name");
        out.text(name);
        out.key("path");
        out.text(path);
        out.close(b'}');
        Ok(())
    }

    async fn queue(&self, args: &Args, to: QueueMove) -> Result<(), Fault> {
        let selected = self.select(args)?.torrents;
        let hashes: Vec<_> = selected.iter().map(|torrent| torrent.info_hash).collect();
        self.backend().move_in_queue(&hashes, to).await?;
        self.outdate();
        Ok(())
    }

    /// The folder, if it lies within those allowed.
    pub(super) async fn allowed(&self, folder: &str) -> Result<std::path::PathBuf, Fault> {
        Ok(self.allow(folder).await?)
    }

    async fn torrent_get(&self, args: &Args, out: &mut Json) -> Result<(), Fault> {
        let names = args.texts("fields")?.unwrap_or_default();
        if names.is_empty() {
            return Err(Fault::bad_argument("no fields specified"));
        }
        if names.len() > FIELDS_MAX {
            return Err(Fault::bad_argument("fields has too many names"));
        }
        let is_table = args.text("format")? == Some("table");
        // An object has each key once; clients do ask for one field in two spellings.
        let mut seen = BTreeSet::new();
        let fields: Vec<(String, Field)> = names
            .into_iter()
            .filter(|name| is_table || seen.insert(name.clone()))
            .filter_map(|name| fields::find(&name).map(|field| (name, field)))
            .collect();
        let needs_details = fields
            .iter()
            .any(|(_, field)| matches!(field, Field::Detail(_)));
        let selection = self.select(args)?;
        out.open(b'{');
        if let Some(removed) = &selection.removed {
            out.key("removed");
            out.array(removed, |out, id| out.uint(*id));
        }
        out.key("torrents");
        out.open(b'[');
        if is_table {
            out.array(&fields, |out, (name, _)| out.text(name));
        }
        for (at, torrent) in selection.torrents.iter().enumerate() {
            let details = match needs_details {
                // One that went meanwhile has none.
                true => self
                    .backend()
                    .details(torrent.info_hash)
                    .await
                    .unwrap_or_default(),
                false => Details::default(),
            };
            write_torrent(torrent, &details, &fields, is_table, out)?;
            if at % ROWS_A_BREATH == ROWS_A_BREATH - 1 {
                tokio::task::yield_now().await;
            }
        }
        out.close(b']');
        out.close(b'}');
        Ok(())
    }
}

fn write_torrent(
    torrent: &Torrent,
    details: &Details,
    fields: &[(String, Field)],
    is_table: bool,
    out: &mut Json,
) -> Result<(), Fault> {
    out.open(if is_table { b'[' } else { b'{' });
    for (name, field) in fields {
        if !is_table {
            out.key_as_is(name);
        }
        match field {
            Field::Row(write) => write(torrent, out),
            Field::Detail(write) => write(torrent, details, out),
        }
        // A column of files may be long, and be asked for again and again.
        bounded(out)?;
    }
    out.close(if is_table { b']' } else { b'}' });
    Ok(())
}

/// A torrent that went in the meantime needs nothing any more.
fn ignore_gone(done: Result<(), Refusal>) -> Result<(), Refusal> {
    match done {
        Err(Refusal::Unknown(_)) => Ok(()),
        done => done,
    }
}

/// The texts of an argument that is one text or a list of them.
pub(super) fn names_of(value: Option<&Value>) -> Option<Vec<&str>> {
    match value? {
        Value::String(name) => Some(vec![name]),
        Value::Array(names) => Some(names.iter().filter_map(Value::as_str).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ANSWER_BYTES_MAX;
    use super::*;
    use crate::base::InfoHash;
    use crate::daemon::control::json::Dialect;

    #[test]
    fn one_torrent_alone_cannot_make_an_answer_too_long() {
        let name = "x".repeat(64 << 20);
        let torrent = Torrent::nothing(1, InfoHash::new([1; 20]), &name);
        let fields = vec![("name".to_owned(), fields::find("name").unwrap()); 16];
        let mut out = Json::new(Dialect::Old);
        let written = write_torrent(&torrent, &Details::default(), &fields, true, &mut out);
        assert!(written.is_err());
        assert!(out.len() < ANSWER_BYTES_MAX + name.len() + 1_000);
    }
}
