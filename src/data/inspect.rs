//! One sample as training sees it: rendered, tokenised, masked.

use std::fmt;
use std::path::Path;

use super::samples::{Sample, Sequence};
use super::shape::Row;
use super::source;
use super::text::Tokeniser;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::IGNORE_INDEX;

/// A token of a sample.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its text, where the model has a tokenizer.
    pub text: Option<String>,
    /// Whether it is to be learned.
    pub learned: bool,
}

/// A sample, looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// The row's number in its file, from 1.
    pub row: usize,
    /// What was recognised: "text", "chat", …
    pub shape: &'static str,
    /// The text before tokenisation, where there is one.
    pub rendered: Option<String>,
    /// The tokens: one list, or chosen and rejected.
    pub sequences: Vec<Vec<Token>>,
}

/// Looks at sample `index` (from 0) of the data at `path`, as the model in `model` would be trained on it.
pub fn inspect(path: &Path, model: &Path, index: usize) -> Result<Inspection> {
    let config = ModelConfig::from_directory(model)?;
    let mut before = 0;
    for file in source::files(path)? {
        let mut rows = source::rows(&file)?;
        if index - before >= rows.len() {
            before += rows.len();
            continue;
        }
        let (line, row) = rows.swap_remove(index - before);
        let row = Row::parse(row).map_err(|problem| source::at(&file, line, problem))?;
        let tokeniser = Tokeniser::new(model, config.vocab_size);
        let sample = row.tokenise(&tokeniser).map_err(|error| error.at(&file, line))?;
        let rendered = match &row {
            Row::Chat(messages) => Some(tokeniser.rendered(messages).map_err(|error| error.at(&file, line))?),
            Row::Text(text) => Some(text.clone()),
            _ => None,
        };
        let sequences = match &sample {
            Sample::One(one) => vec![tokens(one, &tokeniser)],
            Sample::Pair(chosen, rejected) => vec![tokens(chosen, &tokeniser), tokens(rejected, &tokeniser)],
        };
        return Ok(Inspection { row: line, shape: shape(&row), rendered, sequences });
    }
    Err(Error::config("--index", format!("there are only {before} samples"), "use a smaller one; the first is 0"))
}

fn shape(row: &Row) -> &'static str {
    match row {
        Row::Tokens(_) => "tokens",
        Row::TokenPair(..) => "preference tokens",
        Row::Text(_) => "text",
        Row::Chat(_) => "chat",
        Row::Preference(..) => "preference",
    }
}

fn tokens(sequence: &Sequence, tokeniser: &Tokeniser) -> Vec<Token> {
    let pairs = sequence.tokens.iter().zip(&sequence.labels);
    pairs
        .enumerate()
        .map(|(i, (&id, &label))| Token { id, text: tokeniser.piece(id), learned: i > 0 && label != IGNORE_INDEX })
        .collect()
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "row {}, shape: {}", self.row, self.shape)?;
        if let Some(rendered) = &self.rendered {
            writeln!(f, "\n{rendered}\n")?;
        }
        for (index, sequence) in self.sequences.iter().enumerate() {
            let learned = sequence.iter().filter(|token| token.learned).count();
            let name = ["", "chosen: ", "rejected: "][if self.sequences.len() == 1 { 0 } else { index + 1 }];
            writeln!(f, "{name}{} tokens, {learned} of them learned (marked +)", sequence.len())?;
            for token in sequence {
                let mark = if token.learned { '+' } else { ' ' };
                match &token.text {
                    Some(text) => writeln!(f, "  {mark} {:>7}  {text:?}", token.id)?,
                    None => writeln!(f, "  {mark} {:>7}", token.id)?,
                }
            }
        }
        Ok(())
    }
}
