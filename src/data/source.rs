//! From a path to samples: finds the files, reads their rows, tokenises them on all threads.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::samples::{Sample, Samples};
use super::shape::Row;
use super::stream::StreamOptions;
use super::text::Tokeniser;
use super::{jsonl, parquet};
use crate::error::{Error, Result};

/// Reads a file, or a directory's JSONL and Parquet files in the order of their names.
pub(super) fn read(path: &Path, model: &Path, options: &StreamOptions) -> Result<Samples> {
    let tokeniser = Tokeniser::new(model, options.vocab_size);
    let mut samples = Vec::new();
    for file in files(path)? {
        let rows = rows(&file)?;
        let tokenised: Vec<Result<(usize, Sample)>> = rows
            .into_par_iter()
            .map(|(line, row)| {
                let row = Row::parse(row).map_err(|problem| at(&file, line, problem))?;
                let sample = row.tokenise(&tokeniser).map_err(|error| error.at(&file, line))?;
                Ok((line, sample))
            })
            .collect();
        samples.extend(tokenised.into_iter().collect::<Result<Vec<_>>>()?);
    }
    collect(path, samples, options)
}

/// The rows of one file with their line (or row) numbers, from 1.
pub(super) fn rows(file: &Path) -> Result<Vec<(usize, Map<String, Value>)>> {
    if extension(file) == "parquet" { parquet::read(file) } else { jsonl::read(file) }
}

/// The error for a row.
pub(super) fn at(file: &Path, line: usize, problem: String) -> Error {
    Error::input(file, format!("row {line}: {problem}"), "mend the row or remove it")
}

/// Cuts, checks and packs samples; rows that teach nothing are left out and counted.
pub(super) fn collect(path: &Path, samples: Vec<(usize, Sample)>, options: &StreamOptions) -> Result<Samples> {
    let pairs = matches!(samples.first(), Some((_, Sample::Pair(..))));
    let mut kept = Samples::new(pairs);
    let (mut cut, mut useless) = (0usize, 0usize);
    for (line, sample) in samples {
        let mut sequences = match (pairs, sample) {
            (false, Sample::One(one)) => vec![one],
            (true, Sample::Pair(chosen, rejected)) => vec![chosen, rejected],
            _ => return Err(at(path, line, "preference pairs and plain samples are mixed".into())),
        };
        for sequence in &mut sequences {
            if let Some(id) = sequence.tokens.iter().find(|&&id| id as usize >= options.vocab_size) {
                let problem = format!("token id {id} is outside the model's vocabulary of {}", options.vocab_size);
                return Err(at(path, line, problem));
            }
            cut += usize::from(sequence.tokens.len() > options.max_length);
            sequence.truncate(options.max_length);
        }
        if sequences.iter().all(|sequence| sequence.teaches()) {
            sequences.iter().for_each(|sequence| kept.push(sequence));
        } else {
            useless += 1;
        }
    }
    if cut > 0 {
        tracing::info!("{}: {cut} sequences were cut to {} tokens", path.display(), options.max_length);
    }
    if useless > 0 {
        tracing::warn!("{}: {useless} samples have no token to learn and were left out", path.display());
    }
    if kept.len() == 0 {
        let problem = if useless > 0 { "no sample has a token to learn" } else { "there is no sample" };
        return Err(Error::input(path, problem, "look at it with `temper data inspect`, or raise max_length"));
    }
    Ok(kept)
}

fn extension(file: &Path) -> &str {
    file.extension().and_then(|e| e.to_str()).unwrap_or("")
}

/// The data files that `path` names.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if metadata.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    if !metadata.is_dir() {
        return Err(Error::input(path, "it is neither a file nor a directory", "name a JSONL or Parquet file"));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        if file.is_file() && ["jsonl", "json", "parquet"].contains(&extension(&file)) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::input(path, "the directory has no .jsonl or .parquet file", "name another path"));
    }
    Ok(files)
}
