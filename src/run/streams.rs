//! The data streams of a run file, opened, and the lengths of their sequences.

use std::collections::BTreeMap;
use std::path::Path;

use super::StreamFile;
use crate::config::{DataConfig, RunConfig};
use crate::data::{DataFile, DataStream};
use crate::error::{Error, Result};
use crate::huggingface::ModelDirectory;
use crate::model::ModelConfig;
use crate::tar::Streams;

/// The streams that the method uses, of those that the run file names.
pub(super) fn open(config: &RunConfig, model: &ModelDirectory) -> Result<Streams> {
    let mut streams = Streams::default();
    for name in config.used_streams() {
        let stream = open_one(config, name, &model.path, &model.config)?;
        streams.0.insert(name.to_string(), stream);
    }
    Ok(streams)
}

fn open_one(config: &RunConfig, name: &str, folder: &Path, model: &ModelConfig) -> Result<DataStream> {
    let Some(table) = config.data.get(name) else {
        let problem = "there is no such data stream";
        return Err(Error::config(format!("data.{name}"), problem, "add the table or mend the name"));
    };
    stream_file(config, name, table, &table.file()).open_for(folder, model)
}

fn stream_file<'a>(config: &RunConfig, name: &'a str, table: &DataConfig, data: &'a DataFile) -> StreamFile<'a> {
    StreamFile {
        name,
        data,
        batch: table.batch,
        max_length: table.max_length,
        shuffle: table.shuffle,
        pack: table.pack,
        seed: config.seed,
    }
}

/// The run file with the lengths that the data has.
pub(super) fn as_read(config: &RunConfig, streams: &Streams) -> RunConfig {
    let mut actual = config.clone();
    for (name, stream) in &streams.0 {
        if let Some(table) = actual.data.get_mut(name) {
            table.max_length = stream.longest();
        }
    }
    actual
}

/// The run file with the lengths of the data that can be read, and why the data of the other streams cannot: their sequences
/// count as `max_length`.
pub(super) fn lengths(config: &RunConfig, model: &ModelConfig) -> (RunConfig, BTreeMap<String, String>) {
    let mut streams = Streams::default();
    let mut unread = BTreeMap::new();
    for name in config.used_streams() {
        match open_one(config, name, &config.model.path, model) {
            Ok(stream) => drop(streams.0.insert(name.to_string(), stream)),
            Err(error) => drop(unread.insert(name.to_string(), error.to_string())),
        }
    }
    (as_read(config, &streams), unread)
}
