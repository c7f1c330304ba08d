//! Fingerprints tell configurations, data and models apart: a run is resumed only where they are equal.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// The first 128 bits of a BLAKE3 hash, written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of a value's JSON: it changes with the names and values of fields, not with how a type is printed.
    ///
    /// # Errors
    /// For a value that JSON cannot hold, a map with keys that are no text: a defect of the caller.
    pub fn of(value: &(impl Serialize + ?Sized)) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        serde_json::to_writer(&mut hasher, value)
            .map_err(|error| Error::Defect(format!("a value without a fingerprint: {error}")))?;
        Ok(Self::finish(&hasher))
    }

    /// The fingerprint of lists of numbers, of their lengths too: of data that is too large for JSON.
    pub fn of_lists(lists: &[&[u32]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for list in lists {
            hasher.update(&(list.len() as u64).to_le_bytes());
            hasher.update(bytemuck::cast_slice(list));
        }
        Self::finish(&hasher)
    }

    fn finish(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read = u128::from_str_radix(&text, 16).map(|bits| Self(bits.to_be_bytes()));
        // Only as it is written: no sign, no capitals, no other length.
        read.ok().filter(|read| read.to_string() == text).ok_or_else(|| D::Error::custom("not 32 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of no bytes, as the authors of BLAKE3 publish it.
    const EMPTY: &str = "af1349b9f5f9a1a6a0404dea36dcc949";

    #[test]
    fn fingerprints_are_blake3_of_the_json_or_of_lists_with_their_lengths() {
        assert_eq!(Fingerprint::of_lists(&[]).to_string(), EMPTY);
        let of_text = blake3::hash(b"[\"abc\",0.5]");
        assert_eq!(Fingerprint::of(&("abc", 0.5)).unwrap().to_string(), of_text.to_hex()[..32]);
        assert_ne!(Fingerprint::of_lists(&[&[1, 2], &[3]]), Fingerprint::of_lists(&[&[1], &[2, 3]]));
        assert_ne!(Fingerprint::of_lists(&[&[1], &[]]), Fingerprint::of_lists(&[&[1]]));
        assert!(Fingerprint::of(&std::collections::BTreeMap::from([((), 1)])).is_err());
    }

    #[test]
    fn fingerprints_are_read_only_as_they_are_written() {
        let json = format!("\"{EMPTY}\"");
        let read: Fingerprint = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        for wrong in [json.to_uppercase(), json.replacen('"', "\"+", 1), "\"ab\"".into(), "7".into()] {
            assert!(serde_json::from_str::<Fingerprint>(&wrong).is_err(), "{wrong}");
        }
    }
}
