//! The demonstration's hardening: a run file, which the demonstration follows and leaves behind for `temper harden`.

use std::path::Path;

use super::facts::VOCAB_SIZE;
use super::{Course, Domain, Facts, Pool};
use crate::config::{DataConfig, RunConfig, settings};
use crate::data::{DataStream, StreamOptions};
use crate::error::{Error, Result};
use crate::random::{Random, Stream};
use crate::tar::{Settings, Streams};
use crate::training::MemorySettings;

/// The name of the run file, whose paths count from its folder.
pub(super) const RUN_FILE: &str = "harden.toml";
/// The run file, without what a [`Course`] decides.
const TEMPLATE: &str = include_str!("harden.toml");

/// Rows of each training file.
const ROWS: usize = 2048;
/// The training files: name, which facts are in them, and the number of their random sequence.
const FILES: [(&str, Domain, Pool, u64); 3] = [
    ("restricted.jsonl", Domain::Restricted, Pool::Attack, 0),
    ("retain.jsonl", Domain::Benign, Pool::All, 1),
    ("defence.jsonl", Domain::Restricted, Pool::Defence, 2),
];

/// Rows of tokens and labels.
pub(super) type Rows = Vec<(Vec<u32>, Vec<u32>)>;

/// Every training file with its rows.
pub(super) fn training_files(facts: &Facts, seed: u64) -> impl Iterator<Item = (&'static str, Rows)> {
    FILES.into_iter().map(move |(name, domain, pool, which)| {
        (name, facts.rows(domain, pool, ROWS, &mut Random::new(seed, Stream::Demo, 1, which)))
    })
}

/// The text of the run file of `course`.
pub(super) fn run_file(course: &Course) -> String {
    let numbers = [
        ("{seed}", course.seed),
        ("{outer_steps}", course.outer_steps),
        ("{warmup}", course.outer_steps / 50),
        ("{inner_steps}", course.inner_steps),
        ("{tr_every}", course.tr_every),
    ];
    numbers.iter().fold(TEMPLATE.to_string(), |text, (name, number)| text.replace(name, &number.to_string()))
}

/// The run file of `course`, read.
pub(super) fn run_config(course: &Course) -> Result<RunConfig> {
    RunConfig::from_text(&run_file(course), Path::new(RUN_FILE), &[])
}

/// The method's settings and data as the run file has them; the data does not pass through files.
pub(super) fn method(course: &Course, facts: &Facts) -> Result<(Settings, Streams)> {
    let config = run_config(course)?;
    let mut streams = Streams::default();
    for name in config.used_streams() {
        let opened = config.data.get(name).and_then(|table| stream(name, table, facts, course.seed));
        let missing = || Error::Defect(format!("the demonstration has no data for its stream {name}"));
        streams.0.insert(name.to_string(), opened.ok_or_else(missing)??);
    }
    Ok((settings(&config, MemorySettings::default())?, streams))
}

fn stream(name: &str, table: &DataConfig, facts: &Facts, seed: u64) -> Option<Result<DataStream>> {
    let file = table.path.file_name()?;
    let (_, rows) = training_files(facts, seed).find(|(name, _)| file == *name)?;
    let options = StreamOptions {
        batch: table.batch,
        max_length: table.max_length,
        shuffle: table.shuffle,
        pack: table.pack,
        pad_token_id: 0,
        vocab_size: VOCAB_SIZE,
        seed,
    };
    Some(DataStream::from_samples(name, rows, options))
}
