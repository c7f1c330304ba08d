//! Rows to samples: which tokens a row becomes, and which of them are learned.

use std::path::Path;

use rayon::prelude::*;

use super::reader::{self, Place, RawRow, Rows};
use super::row::{Problem, Row};
use super::samples::{Sample, Samples};
use crate::error::Result;

/// Rows that are parsed and tokenized together, on all cores.
const CHUNK_ROWS: usize = 1024;
/// Bytes of rows that are held at a time.
const CHUNK_BYTES: usize = 32 << 20;

/// Reads and tokenizes every row of `path`.
pub fn read_samples(path: &Path, model: &Path, vocab_size: usize, max_length: usize) -> Result<Samples> {
    let _ = model;
    let mut samples = Samples::default();
    for file in reader::files(path)? {
        let mut rows = reader::rows(&file)?;
        loop {
            let chunk = next_chunk(&mut rows)?;
            if chunk.is_empty() {
                break;
            }
            let rows: Vec<Result<(Place, Row)>> = chunk.into_par_iter().map(understand).collect();
            for row in rows {
                let (place, row) = row?;
                let sample = match row {
                    Row::Tokens(one) => Sample::One(one),
                    Row::TokenPair(chosen, rejected) => Sample::Pair(chosen, rejected),
                    _ => return Err(place.error("text is not supported", "give it `input_ids`")),
                };
                if let Some(problem) = sample.sequences().find_map(|sequence| sequence.problem(vocab_size)) {
                    return Err(place.error(problem, "use the tokenizer that belongs to the model"));
                }
                let pushed = samples.push(sample, max_length);
                pushed.map_err(|problem| place.error(problem, "put them into files of their own"))?;
            }
        }
    }
    Ok(samples)
}

fn next_chunk(rows: &mut Rows) -> Result<Vec<RawRow>> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
        let Some(row) = rows.next().transpose()? else { break };
        bytes += row.size();
        chunk.push(row);
    }
    Ok(chunk)
}

/// Parses a row and tells its shape.
pub fn understand(raw: RawRow) -> Result<(Place, Row)> {
    let (place, value) = raw.value()?;
    let row = Row::from_json(&value).map_err(|Problem { problem, remedy }| place.error(problem, remedy))?;
    Ok((place, row))
}
