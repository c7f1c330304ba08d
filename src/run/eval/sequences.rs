//! Measures on the sequences of a data set: perplexity and exact match.

use serde::Serialize;

use super::{EvalConfig, EvalReport, Evaluation, Loaded, write_predictions};
use crate::data::DataStream;
use crate::error::Result;
use crate::eval;
use crate::huggingface::ModelDirectory;
use crate::model::Adapter;
use crate::objective::Evaluator;
use crate::ops::Backend;
use crate::run::StreamFile;

pub(super) fn perplexity<B: Backend>(backend: B, config: &EvalConfig) -> Result<Evaluation> {
    let Opened { stream, loaded, mut evaluator } = open(backend, config)?;
    let measured = eval::perplexity(&mut evaluator, loaded.subject(), stream.all_batches()?)?;
    Ok(Evaluation { rows_read: stream.rows(), report: EvalReport::Perplexity(measured) })
}

/// Whether greedy decoding writes the learned tokens of a sequence.
#[derive(Serialize)]
struct Match {
    /// Index among the sequences that are used, from 0.
    sequence: usize,
    matches: bool,
}

pub(super) fn exact<B: Backend>(backend: B, config: &EvalConfig) -> Result<Evaluation> {
    let Opened { stream, loaded, mut evaluator } = open(backend, config)?;
    let measured = eval::exact_match(&mut evaluator, loaded.subject(), stream.all_batches()?)?;
    let mut rows = Vec::new();
    for (sequence, matches) in measured.matches.iter().enumerate() {
        rows.extend(matches.map(|matches| Match { sequence, matches }));
    }
    write_predictions(config, &rows)?;
    Ok(Evaluation { rows_read: stream.rows(), report: EvalReport::Exact(measured) })
}

/// The data, the model for its longest sequence, and memory for its largest batch.
struct Opened<B: Backend> {
    stream: DataStream,
    loaded: Loaded<B>,
    evaluator: Evaluator<B>,
}

fn open<B: Backend>(backend: B, config: &EvalConfig) -> Result<Opened<B>> {
    let directory = ModelDirectory::open(&config.model)?;
    let file = StreamFile {
        name: "data",
        data: &config.data,
        batch: config.batch,
        max_length: config.max_length,
        shuffle: false,
        pack: true,
        seed: 0,
    };
    let stream = file.open(&directory)?;
    let loaded = Loaded::new(backend, directory, config, stream.longest())?;
    let adapters: Vec<&Adapter<B>> = loaded.adapter.iter().collect();
    let evaluator = Evaluator::new(loaded.base.model.clone(), stream.max_batch_tokens(), &adapters)?;
    Ok(Opened { stream, loaded, evaluator })
}
