//! Keys of rows that are passed over although they would change what is learned elsewhere: said once for a file, not once
//! for a row.

use std::collections::BTreeMap;

use super::columns::DataFile;
use super::shapes::Unread;

/// The keys that were passed over, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnreadKeys(BTreeMap<Unread, u64>);

impl UnreadKeys {
    /// Takes in those of a row.
    pub fn add(&mut self, unread: &[Unread]) {
        for key in unread {
            *self.0.entry(*key).or_default() += 1;
        }
    }

    /// A line for each key.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(|((key, meaning), count)| format!("`{key}` is not used ({count} times): {meaning}")).collect()
    }

    /// Tells the user.
    pub fn warn(&self, data: &DataFile) {
        for line in self.lines() {
            tracing::warn!("{data}: {line}");
        }
    }
}
