//! JSON objects of untrusted files: small, without duplicate keys.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::read_capped;

const REMEDY: &str = "use the file that came with the model";
/// No configuration file is near this long.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a text file of at most 16 MiB; a byte-order mark is passed over.
pub(super) fn read_small_file(path: &Path) -> Result<String> {
    let text = String::from_utf8(read_capped(path, MAX_BYTES)?)
        .map_err(|_| Error::input(path, "it is not UTF-8 text", REMEDY))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

/// Parses a JSON object, refusing duplicate keys at every depth.
pub(super) fn object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::input(path, "it is not a JSON object", REMEDY)),
        Err(error) => Err(Error::input(path, format!("not valid JSON: {error}"), REMEDY)),
    }
}

/// Refuses a text that is not a JSON object, or that has a key twice at its top level, without keeping the values.
pub(super) fn distinct_keys(text: &str, path: &Path) -> Result<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer
        .deserialize_map(DistinctKeys)
        .and_then(|()| deserializer.end())
        .map_err(|error| Error::input(path, format!("not valid JSON: {error}"), REMEDY))
}

struct DistinctKeys;

impl<'de> Visitor<'de> for DistinctKeys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value::<IgnoredAny>()?;
            if seen.contains(&key) {
                return Err(duplicate(&key));
            }
            seen.insert(key);
        }
        Ok(())
    }
}

fn duplicate<E: serde::de::Error>(key: &str) -> E {
    E::custom(format!("duplicate key `{key}`"))
}

/// A [`Value`] without duplicate keys.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict)?;
            if map.contains_key(&key) {
                return Err(duplicate(&key));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
