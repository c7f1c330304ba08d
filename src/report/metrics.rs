//! The metrics stream: `metrics.jsonl`, one object a line, and the same numbers as TensorBoard events.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::tensorboard::Events;
use crate::error::{Error, Result};

/// Appends records to a run's metrics stream.
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    events: Events,
}

const NAME: &str = "metrics.jsonl";

impl MetricsWriter {
    /// Starts an empty stream in `directory`.
    pub fn create(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self { path, file, events: Events::create(directory)? })
    }

    /// Goes on with a stream after `step` of `phase`. Later records are of steps that will be done again: they are removed, so
    /// that a resumed run and one that never stopped write the same stream.
    pub fn append(directory: &Path, phase: &str, step: u64) -> Result<Self> {
        let path = directory.join(NAME);
        let kept = records_up_to(&path, phase, step)?;
        std::fs::write(&path, kept).map_err(Error::io("write", &path))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok(Self { path, file, events: Events::create(directory)? })
    }

    /// Writes one record; a number that is not finite becomes null.
    pub fn record(&mut self, phase: &str, step: u64, values: &[(impl AsRef<str>, f64)]) -> Result<()> {
        self.record_with_attacks(phase, step, values, Vec::new())
    }

    /// As [`MetricsWriter::record`], with the simulated attacks of the step as the list `attacks`, where there are some. The
    /// events for TensorBoard have the numbers alone.
    pub fn record_with_attacks(
        &mut self,
        phase: &str,
        step: u64,
        values: &[(impl AsRef<str>, f64)],
        attacks: Vec<Value>,
    ) -> Result<()> {
        let mut record = Map::new();
        record.insert("step".into(), step.into());
        record.insert("phase".into(), phase.into());
        for (name, value) in values {
            record.insert(name.as_ref().into(), Value::from(*value));
        }
        if !attacks.is_empty() {
            record.insert("attacks".into(), attacks.into());
        }
        let line = format!("{}\n", Value::Object(record));
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))?;
        self.events.record(phase, step, values)
    }
}

/// Reads the lines of a stream up to `step` of `phase`, and all lines of other phases. A last line that a crash cut short is
/// dropped.
fn records_up_to(path: &Path, phase: &str, step: u64) -> Result<String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(source) => return Err(Error::Io { action: "read", path: path.to_path_buf(), source }),
    };
    let mut kept = String::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(Error::io("read", path))?;
        let Ok(record) = serde_json::from_str::<Value>(&line) else { continue };
        if record["phase"] != phase || record["step"].as_u64().is_some_and(|at| at <= step) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_stream_is_that_of_a_run_that_never_stopped() {
        let a = tempfile::tempdir().unwrap();
        let b = tempfile::tempdir().unwrap();
        let record = |writer: &mut MetricsWriter, step| {
            writer.record("attack", step, &[("loss", 1.5 / step as f64), ("norm", f64::NAN)]).unwrap();
        };
        let mut whole = MetricsWriter::create(a.path()).unwrap();
        (1..=6).for_each(|step| record(&mut whole, step));
        let mut killed = MetricsWriter::create(b.path()).unwrap();
        (1..=5).for_each(|step| record(&mut killed, step));
        killed.file.write_all(b"{\"step\": 6, \"pha").unwrap();
        let mut resumed = MetricsWriter::append(b.path(), "attack", 3).unwrap();
        (4..=6).for_each(|step| record(&mut resumed, step));
        let read = |directory: &tempfile::TempDir| std::fs::read_to_string(directory.path().join(NAME)).unwrap();
        assert_eq!(read(&a), read(&b));
        assert!(read(&a).starts_with("{\"step\":1,\"phase\":\"attack\",\"loss\":1.5,\"norm\":null}\n"));
    }
}
