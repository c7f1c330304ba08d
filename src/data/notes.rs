//! What users are told about how their rows become samples: each thing once, however many rows it is about.

use std::mem::discriminant;
use std::sync::{Mutex, PoisonError};

use super::answers::Note;

/// Notes that were given already, the first of each kind.
#[derive(Default)]
pub struct Notes(Mutex<Vec<Note>>);

impl Notes {
    /// Warns about something, the first time.
    pub fn give(&self, note: Note) {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if given.iter().all(|known| discriminant(known) != discriminant(&note)) {
            tracing::warn!("{note}");
            given.push(note);
        }
    }

    /// All that was given.
    pub fn given(&self) -> Vec<Note> {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        given.sort();
        given
    }
}
