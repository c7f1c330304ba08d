//! One sample as training sees it: rendered, tokenized, masked.

use std::fmt;
use std::path::{Path, PathBuf};

use super::encode::{self, TextEncoder};
use super::reader::{self, RawRow};
use super::samples::Sequence;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::IGNORE_INDEX;

/// Width that token lists are broken at.
const WIDTH: usize = 100;

/// A token of a sample.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InspectedToken {
    /// Its id.
    pub id: u32,
    /// Its text, where the model has a tokenizer.
    pub piece: Option<String>,
    /// Whether it is learned.
    pub learned: bool,
}

/// A sequence of a sample.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InspectedSequence {
    /// "sample", or "chosen" and "rejected".
    pub name: &'static str,
    /// The text before tokenization, where there is one.
    pub rendered: Option<String>,
    /// The tokens that are kept.
    pub tokens: Vec<InspectedToken>,
    /// How many more there were before `max_length` cut them off.
    pub cut: usize,
}

/// A sample, looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// Its file.
    pub file: PathBuf,
    /// Its line or row there, from 1.
    pub row: u64,
    /// What was recognised: "text", "conversation", …
    pub shape: &'static str,
    /// Whether it is used: every sequence of it has a token to learn.
    pub used: bool,
    /// One sequence, or two of a preference pair.
    pub sequences: Vec<InspectedSequence>,
}

/// Looks at row `index` (from 0, blank lines not counted) of the data at `path`, as the model in the directory `model`
/// would be trained on it with sequences of at most `max_length` tokens.
pub fn inspect(path: &Path, model: &Path, index: usize, max_length: usize) -> Result<Inspection> {
    let config = ModelConfig::from_directory(model)?;
    let (place, row) = encode::understand(find(path, index)?)?;
    let needed = row.is_text() || model.join("tokenizer.json").exists();
    let encoder = needed.then(|| TextEncoder::open(model, config.vocab_size)).transpose()?;
    let rendered = encoder.as_ref().map_or(Ok(Vec::new()), |encoder| encoder.rendered(&row));
    let rendered = rendered.map_err(|problem| place.error(problem, "look at the row and the chat template"))?;
    let shape = row.shape();
    let mut sample = encode::sample(&place, row, encoder.as_ref(), config.vocab_size)?;
    let lengths: Vec<usize> = sample.sequences().map(|sequence| sequence.tokens.len()).collect();
    sample.truncate(max_length);
    let names: &[&str] = if lengths.len() == 1 { &["sample"] } else { &["chosen", "rejected"] };
    let mut rendered = rendered.into_iter();
    let sequences = sample.sequences().zip(names).zip(lengths).map(|((sequence, name), length)| InspectedSequence {
        name,
        rendered: rendered.next(),
        tokens: tokens(sequence, encoder.as_ref()),
        cut: length - sequence.tokens.len(),
    });
    let sequences = sequences.collect();
    Ok(Inspection { file: place.file.to_path_buf(), row: place.number, shape, used: sample.is_trained(), sequences })
}

fn find(path: &Path, index: usize) -> Result<RawRow> {
    let mut before = 0;
    for file in reader::files(path)? {
        for row in reader::rows(&file)? {
            let row = row?;
            if before == index {
                return Ok(row);
            }
            before += 1;
        }
    }
    let problem = format!("there are only {before} samples in {}", path.display());
    Err(Error::config("index", problem, "choose a smaller one; the first is 0"))
}

fn tokens(sequence: &Sequence, encoder: Option<&TextEncoder>) -> Vec<InspectedToken> {
    let piece = |id| encoder.and_then(|encoder| encoder.tokenizer.piece(id));
    let learned = |(index, label): (usize, &u32)| index > 0 && *label != IGNORE_INDEX;
    let labels = sequence.labels.iter().enumerate().map(learned);
    sequence.tokens.iter().zip(labels).map(|(&id, learned)| InspectedToken { id, piece: piece(id), learned }).collect()
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, row {}: {}", self.file.display(), self.row, self.shape)?;
        if !self.used {
            writeln!(f, "not used: no token to learn remains within max_length")?;
        }
        self.sequences.iter().try_for_each(|sequence| write!(f, "\n{sequence}"))
    }
}

impl fmt::Display for InspectedSequence {
    /// Runs of tokens that are learned or not, each with its tokens as text (or id).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let learned = self.tokens.iter().filter(|token| token.learned).count();
        write!(f, "{}: {} tokens, {learned} learned", self.name, self.tokens.len())?;
        match self.cut {
            0 => writeln!(f)?,
            cut => writeln!(f, ", {cut} more cut off")?,
        }
        let mut start = 0;
        for run in self.tokens.chunk_by(|a, b| a.learned == b.learned) {
            let what = if run[0].learned { "learned    " } else { "not learned" };
            writeln!(f, "  {what}  {start}..{}", start + run.len())?;
            lines(f, run)?;
            start += run.len();
        }
        Ok(())
    }
}

/// Tokens side by side, as many as a line holds.
fn lines(f: &mut fmt::Formatter<'_>, run: &[InspectedToken]) -> fmt::Result {
    let mark = if run.first().is_some_and(|token| token.learned) { "  + " } else { "    " };
    let mut line = String::new();
    for token in run {
        let text = token.piece.as_ref().map_or_else(|| token.id.to_string(), |piece| format!("{piece:?}"));
        if !line.is_empty() && line.chars().count() + text.chars().count() >= WIDTH {
            writeln!(f, "{mark}{}", line.trim_end())?;
            line.clear();
        }
        line.push_str(&text);
        line.push(' ');
    }
    writeln!(f, "{mark}{}", line.trim_end())
}
