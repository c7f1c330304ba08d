//! The keys of a JSON object, with errors that name file and key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The keys of a JSON object of the file at `path`.
pub(super) struct Keys<'a> {
    pub path: &'a Path,
    pub map: Map<String, Value>,
}

impl Keys<'_> {
    /// A key's value; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The keys that are not absent.
    pub fn present(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value)).filter(|(_, value)| !value.is_null())
    }

    pub fn refuse<T>(&self, key: &str, problem: &str) -> Result<T> {
        Err(Error::input(self.path, format!("`{key}` {problem}"), "use the file that came with the model"))
    }

    /// A whole number from 1 to 2²⁴ (the largest published vocabulary, width or context is far below).
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_up_to(key, LARGEST)
    }

    pub fn size_up_to(&self, key: &str, largest: usize) -> Result<usize> {
        match self.get(key) {
            None => self.refuse(key, "is missing"),
            Some(value) => self.whole(key, value, 1, largest),
        }
    }

    /// As [`Keys::size`]; `absent` where the key is absent.
    pub fn size_or(&self, key: &str, absent: usize) -> Result<usize> {
        self.get(key).map_or(Ok(absent), |value| self.whole(key, value, 1, LARGEST))
    }

    /// As [`Keys::size_or`], from 0.
    pub fn count_or(&self, key: &str, absent: usize) -> Result<usize> {
        self.get(key).map_or(Ok(absent), |value| self.whole(key, value, 0, LARGEST))
    }

    fn whole(&self, key: &str, value: &Value, least: usize, largest: usize) -> Result<usize> {
        match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) if (least..=largest).contains(&size) => Ok(size),
            _ => self.refuse(key, &format!("is {value}, not a whole number from {least} to {largest}")),
        }
    }

    pub fn at_least_one(&self, key: &str, absent: Option<f64>) -> Result<f64> {
        match self.positive(key, absent)? {
            number if number >= 1.0 => Ok(number),
            number => self.refuse(key, &format!("is {number:e}, not at least 1")),
        }
    }

    pub fn positive(&self, key: &str, absent: Option<f64>) -> Result<f64> {
        match (self.get(key), absent) {
            (None, Some(absent)) => Ok(absent),
            (None, None) => self.refuse(key, "is missing"),
            (Some(value), _) => match value.as_f64() {
                Some(number) if number.is_finite() && number > 0.0 => Ok(number),
                _ => self.refuse(key, &format!("is {value}, not a finite number above 0")),
            },
        }
    }

    /// False where the key is absent.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.flag_or(key, false)
    }

    pub fn flag_or(&self, key: &str, absent: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => self.refuse(key, &format!("is {value}, not true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => self.refuse(key, &format!("is {value}, not a text")),
        }
    }

    /// A token id, or a list of them.
    pub fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        match ids {
            Some(ids) => Ok(ids),
            None => self.refuse(key, "is not a token id"),
        }
    }
}

const LARGEST: usize = 1 << 24;
