//! TensorBoard event files: length-framed protocol buffers with masked CRC-32C checksums.
//!
//! Only what scalars need is written, by hand: `Event {1: wall_time, 2: step, 3: file_version, 5: summary}` and
//! `Summary {1: value {1: tag, 2: simple_value}}`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// One event file.
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Starts a file in `directory`; its name tells several of one run apart by their time.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{}.{:09}.temper", time.as_secs(), time.subsec_nanos());
        let path = directory.join(name);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut events = Self { path, file };
        let mut first = wall_time();
        field_bytes(&mut first, 3, b"brain.Event:2");
        events.write(&first)?;
        Ok(events)
    }

    /// Writes the scalars of a step under `phase/name`.
    pub(super) fn record(&mut self, phase: &str, step: u64, values: &[(impl AsRef<str>, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut scalar = Vec::new();
            field_bytes(&mut scalar, 1, format!("{phase}/{}", name.as_ref()).as_bytes());
            scalar.push((2 << 3) | 5);
            scalar.extend((*value as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &scalar);
        }
        let mut event = wall_time();
        event.push(2 << 3);
        varint(&mut event, step);
        field_bytes(&mut event, 5, &summary);
        self.write(&event)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&frame(event)).map_err(Error::io("write", &self.path))
    }
}

/// length, its checksum, the data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(&length).to_le_bytes());
    bytes.extend(data);
    bytes.extend(masked(data).to_le_bytes());
    bytes
}

/// TensorFlow's masked CRC-32C, which keeps checksums of checksums from being special.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// An event that so far has its wall time.
fn wall_time() -> Vec<u8> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    let mut event = vec![(1 << 3) | 1];
    event.extend(seconds.to_le_bytes());
    event
}

fn field_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push((number << 3) | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first record that TensorFlow itself writes differs only in its time; length and framing checksum are known.
    #[test]
    fn frames_are_those_of_tensorflow() {
        let data = [&[9u8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0x1a, 13][..], b"brain.Event:2"].concat();
        let bytes = frame(&data);
        assert_eq!(&bytes[..12], &[24, 0, 0, 0, 0, 0, 0, 0, 163, 127, 75, 34], "24 bytes, as every event file begins");
        assert_eq!(bytes.len(), 8 + 4 + 24 + 4);
    }

    #[test]
    fn numbers_of_several_bytes_are_written_low_bits_first() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }
}
