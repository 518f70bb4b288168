//! Values to be written, through `bendy`'s encoder. Layer 1.

use super::DEPTH_MAX;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A value to be written. Dictionaries keep their keys sorted, so what is written is canonical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    Int(i64),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Item<'a>>),
    Dict(BTreeMap<&'a [u8], Item<'a>>),
}

impl<'a> Item<'a> {
    /// A string, borrowed or owned.
    pub fn bytes(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Item::Bytes(bytes.into())
    }

    /// A string from text.
    pub fn text(text: &'a str) -> Self {
        Item::Bytes(Cow::Borrowed(text.as_bytes()))
    }

    /// A dictionary; of two entries with one key the later stays.
    pub fn dict(entries: impl IntoIterator<Item = (&'a [u8], Item<'a>)>) -> Self {
        Item::Dict(entries.into_iter().collect())
    }

    /// The canonical encoding.
    ///
    /// # Panics
    /// If our own code nests values deeper than [`DEPTH_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = bendy::encoding::Encoder::new().with_max_depth(DEPTH_MAX);
        let written = encoder.emit_with(|slot| self.emit(slot));
        match written.and_then(|()| encoder.get_output()) {
            Ok(bytes) => bytes,
            Err(error) => panic!("our own values cannot be written: {error}"),
        }
    }

    fn emit(
        &self,
        slot: bendy::encoding::SingleItemEncoder<'_>,
    ) -> Result<(), bendy::encoding::Error> {
        match self {
            Item::Int(value) => slot.emit_int(*value),
            Item::Bytes(bytes) => slot.emit_bytes(bytes),
            Item::List(items) => slot.emit_list(|list| {
                items
                    .iter()
                    .try_for_each(|item| list.emit_with(|slot| item.emit(slot)))
            }),
            Item::Dict(entries) => slot.emit_dict(|mut dict| {
                entries
                    .iter()
                    .try_for_each(|(key, item)| dict.emit_pair_with(key, |slot| item.emit(slot)))
            }),
        }
    }
}
