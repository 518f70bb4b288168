//! Arguments of a call, checked as they are taken. Layer 6.

use serde_json::{Map, Value};

use super::Fault;
use crate::daemon::control::backend::{Count, Limit};

/// Files, labels or torrents that one call may name: above any torrent that is known, below what a body can hold.
const LIST_MAX: usize = 1_000_000;

/// The arguments, by their names in snake_case.
#[derive(Debug, Default)]
pub struct Args(pub Map<String, Value>);

impl Args {
    /// One argument; `null` is none.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Fault> {
        self.take(name, Value::as_str)
    }

    /// `true` or `false`; 1 and 0 are those too, as old clients send them.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, Fault> {
        self.take(name, |value| {
            value.as_bool().or(match value.as_u64() {
                Some(0) => Some(false),
                Some(1) => Some(true),
                _ => None,
            })
        })
    }

    /// A whole number from 0; fractions are cut, as some clients compute them.
    pub fn uint(&self, name: &str) -> Result<Option<u64>, Fault> {
        self.take(name, whole)
    }

    /// Any number.
    pub fn float(&self, name: &str) -> Result<Option<f64>, Fault> {
        self.take(name, |value| {
            value.as_f64().filter(|number| number.is_finite())
        })
    }

    /// -1, 0 or 1.
    pub fn priority(&self, name: &str) -> Result<Option<i8>, Fault> {
        self.take(name, |value| match value.as_i64()? {
            -1 => Some(-1),
            0 => Some(0),
            1 => Some(1),
            _ => None,
        })
    }

    /// A list of texts; one text alone is a list of it.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Fault> {
        self.take(name, |value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) if items.len() <= LIST_MAX => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect(),
            _ => None,
        })
    }

    /// A list of indices; one number alone is a list of it.
    pub fn indices(&self, name: &str) -> Result<Option<Vec<usize>>, Fault> {
        let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
        self.take(name, |value| match value {
            Value::Array(items) if items.len() <= LIST_MAX => items.iter().map(index).collect(),
            value => index(value).map(|index| vec![index]),
        })
    }

    /// A limit in two arguments, a rate in kB/s and whether it counts; what is not said stays as in `before`.
    pub fn limit(&self, rate: &str, on: &str, before: Limit) -> Result<Option<Limit>, Fault> {
        let (kilobytes, is_on) = (self.uint(rate)?, self.bool(on)?);
        if kilobytes.is_none() && is_on.is_none() {
            return Ok(None);
        }
        let bytes = kilobytes.map(|rate| rate.saturating_mul(1_000));
        Ok(Some(Limit {
            bytes_per_s: bytes.unwrap_or(before.bytes_per_s),
            is_on: is_on.unwrap_or(before.is_on),
        }))
    }

    /// A number in two arguments, itself and whether it counts; what is not said stays as in `before`.
    pub fn count(&self, value: &str, on: &str, before: Count) -> Result<Option<Count>, Fault> {
        let (value, is_on) = (self.uint(value)?, self.bool(on)?);
        let count = Count {
            value: value.unwrap_or(before.value),
            is_on: is_on.unwrap_or(before.is_on),
        };
        Ok((count != before).then_some(count))
    }

    fn take<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let bad = || Fault::bad_argument(format!("{name} has a value that it cannot have"));
        read(value).map(Some).ok_or_else(bad)
    }
}

fn whole(value: &Value) -> Option<u64> {
    let cut = |number: f64| (0.0..9e15).contains(&number).then(|| number.trunc());
    // What is below 2^53 has an exact text.
    let from_float = || format!("{:.0}", cut(value.as_f64()?)?).parse().ok();
    value.as_u64().or_else(from_float)
}
