//! [`RecordingKey`]: when recorded work may be executed again.

use super::Buffer;

/// What recorded work depends on: the memory that it uses, and the numbers that decide which operations it consists of. Work
/// with an equal key may be replaced by its recording.
///
/// Whoever owns memory that the work uses, or decides what it does, adds that to the key, so that no caller passes on numbers
/// that mean nothing to it. A device that records nothing gives every buffer one identity, since no key matters to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordingKey(Vec<u64>);

impl RecordingKey {
    /// Adds a number.
    pub fn number(&mut self, number: u64) {
        self.0.push(number);
    }

    /// Adds a buffer.
    pub fn buffer(&mut self, buffer: &impl Buffer) {
        self.number(buffer.identity());
    }

    /// Adds a buffer that may be absent.
    pub fn optional_buffer(&mut self, buffer: Option<&impl Buffer>) {
        self.number(u64::from(buffer.is_some()));
        if let Some(buffer) = buffer {
            self.buffer(buffer);
        }
    }
}
