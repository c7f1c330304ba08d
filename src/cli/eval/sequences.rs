//! Measures on the sequences of a data set: perplexity and exact match.

use serde::Serialize;
use temper::data::DataStream;
use temper::eval;
use temper::huggingface::ModelDirectory;
use temper::model::Adapter;
use temper::objective::Evaluator;
use temper::ops::Backend;
use temper::run::open_stream;

use super::super::print;
use super::{Arguments, Loaded, write_predictions};

/// `--form ppl`.
pub fn perplexity<B: Backend>(backend: B, arguments: &Arguments) -> anyhow::Result<()> {
    let (stream, loaded, mut evaluator) = open(backend, arguments)?;
    let measured = eval::perplexity(&mut evaluator, loaded.subject(), stream.all_batches()?)?;
    if arguments.json {
        return print::json(&measured);
    }
    let (loss, tokens) = (measured.loss, measured.tokens);
    print::text(&format!("loss {loss:.6}  perplexity {:.4}  tokens {tokens}\n", measured.perplexity))
}

/// Whether greedy decoding writes the learned tokens of a sequence.
#[derive(Serialize)]
struct Match {
    /// Index among the sequences that are used, from 0.
    sequence: usize,
    matches: bool,
}

/// `--form exact`.
pub fn exact<B: Backend>(backend: B, arguments: &Arguments) -> anyhow::Result<()> {
    let (stream, loaded, mut evaluator) = open(backend, arguments)?;
    let measured = eval::exact_match(&mut evaluator, loaded.subject(), stream.all_batches()?)?;
    let row = |(sequence, matches): (usize, &Option<bool>)| matches.map(|matches| Match { sequence, matches });
    let rows: Vec<Match> = measured.matches.iter().enumerate().filter_map(row).collect();
    write_predictions(arguments, &rows)?;
    if arguments.json {
        return print::json(&measured);
    }
    print::text(&format!("exact match {:.4}  sequences {}\n", measured.accuracy, measured.rows))
}

/// The data, the model for its longest sequence, and memory for its largest batch.
fn open<B: Backend>(backend: B, arguments: &Arguments) -> temper::Result<(DataStream, Loaded<B>, Evaluator<B>)> {
    let source = ModelDirectory::open(&arguments.model)?;
    let (batch, length) = (arguments.batch, arguments.max_length);
    let stream = open_stream("data", &arguments.data, &source, batch, length, (false, true), 0)?;
    let loaded = Loaded::open(backend, arguments, stream.longest())?;
    let adapters: Vec<&Adapter<B>> = loaded.adapter.iter().collect();
    let evaluator = Evaluator::new(loaded.model.model.clone(), stream.max_batch_tokens(), &adapters)?;
    Ok((stream, loaded, evaluator))
}
