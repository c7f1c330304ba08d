//! One sample as training sees it: rendered, tokenized, masked; and how many of what shape there are.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use super::columns::DataFile;
use super::encode::{self, TextEncoder};
use super::prompts::{self, PromptEncoder};
use super::question::Question;
use super::reader::{self, Place, RawRow};
use super::row::{Problem, Row, Understood, UnderstoodRow};
use super::samples::Sequence;
use super::shapes::{Fields, Purpose, Unread};
use super::unread::UnreadKeys;
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
    /// "sample", "chosen" and "rejected", or "prompt".
    pub name: &'static str,
    /// The text before tokenization, where there is one.
    pub rendered: Option<String>,
    /// The tokens that are kept.
    pub tokens: Vec<InspectedToken>,
    /// How many more there were before `max_length` cut them off.
    pub cut: usize,
}

/// A row, looked at, and what is around it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// Its file.
    pub file: PathBuf,
    /// Its line or row there, from 1.
    pub row: u64,
    /// What was recognised: "text", "conversation", "question", …
    pub shape: &'static str,
    /// Whether training uses it: every sequence of it has a token to learn.
    pub used: bool,
    /// One sequence, or two of a preference pair; none of a question, whose text depends on the form in which it is asked.
    pub sequences: Vec<InspectedSequence>,
    /// The question, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<Question>,
    /// What a user should know about how the row became tokens.
    pub notes: Vec<String>,
    /// All rows of the data.
    pub all: Counts,
}

/// What a data file or a directory of them holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Number of files.
    pub files: usize,
    /// Rows of each shape.
    pub shapes: BTreeMap<&'static str, u64>,
    /// Rows that cannot be read, after the first of which nothing may have been.
    pub unreadable: u64,
    /// What is wrong with the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the rows say that is not used.
    pub unused: Vec<String>,
}

impl Counts {
    /// Number of rows that can be read.
    pub fn rows(&self) -> u64 {
        self.shapes.values().sum()
    }
}

/// What a row is read as.
enum Seen {
    /// A sample to learn.
    Sample(UnderstoodRow),
    /// Something to answer.
    Prompt(UnderstoodRow),
    /// Multiple choice.
    Question(Question),
}

impl Seen {
    /// What training reads comes first. What nothing reads is told what is wrong with it as what its columns make it.
    fn new(value: &Value) -> Understood<Self> {
        let sample = match Row::from_json(value) {
            Ok(sample) => return Ok(Self::Sample(sample)),
            Err(problem) => problem,
        };
        match (Question::from_json(value), Row::prompt_from_json(value)) {
            (Ok(question), _) => Ok(Self::Question(question)),
            (Err(_), Ok(prompt)) => Ok(Self::Prompt(prompt)),
            (Err(question), Err(prompt)) => Err(match value.as_object().and_then(|row| Fields::new(row).purpose()) {
                Some(Purpose::Questions) => question,
                Some(Purpose::Prompts) => prompt,
                Some(Purpose::Training) | None => sample,
            }),
        }
    }

    fn shape(&self) -> &'static str {
        match self {
            Self::Sample(sample) => sample.row.shape(),
            Self::Prompt(_) => "prompt",
            Self::Question(_) => "question",
        }
    }

    fn unread(&self) -> &[Unread] {
        match self {
            Self::Sample(row) | Self::Prompt(row) => &row.unread,
            Self::Question(_) => &[],
        }
    }
}

/// Looks at row `index` (from 0, blank lines not counted) of `data`, as the model in the directory `model` would be trained on
/// it, or asked with it, with sequences of at most `max_length` tokens; and counts all rows.
pub fn inspect(data: impl Into<DataFile>, model: &Path, index: usize, max_length: usize) -> Result<Inspection> {
    let data = data.into();
    let config = ModelConfig::from_directory(model)?;
    let (found, all) = read(&data, index)?;
    let Some(found) = found else {
        let problem = format!("there are only {} samples in {data}", all.rows() + all.unreadable);
        return Err(Error::config("index", problem, "choose a smaller one; the first is 0"));
    };
    let (place, seen) = found?;
    let shape = seen.shape();
    let file = place.file.to_path_buf();
    let row = place.number;
    let inspector = Inspector { model, vocab_size: config.vocab_size, max_length };
    let mut question = None;
    let mut notes = Vec::new();
    let (used, sequences) = match seen {
        Seen::Sample(sample) => inspector.sample(&place, sample.row, &mut notes)?,
        Seen::Prompt(prompt) => (false, vec![inspector.prompt(&place, prompt.row)?]),
        Seen::Question(asked) => {
            question = Some(asked);
            (false, Vec::new())
        }
    };
    Ok(Inspection { file, row, shape, used, sequences, question, notes, all })
}

/// A row where it stands, or why it cannot be read.
type Found = Result<(Place, Seen)>;

/// Row `index`, if there are so many, and all rows counted.
fn read(data: &DataFile, index: usize) -> Result<(Option<Found>, Counts)> {
    let mut counts = Counts { files: reader::files(&data.path)?.len(), ..Counts::default() };
    let mut unread_keys = UnreadKeys::default();
    let mut found = None;
    let mut number = 0;
    let mut rows = reader::all_rows(data)?;
    loop {
        let chunk = reader::next_chunk(&mut rows);
        if chunk.is_empty() {
            break;
        }
        for seen in chunk.into_par_iter().map(|row| row.and_then(look)).collect::<Vec<_>>() {
            match &seen {
                Ok((_, seen)) => {
                    *counts.shapes.entry(seen.shape()).or_default() += 1;
                    unread_keys.add(seen.unread());
                }
                Err(error) => {
                    counts.unreadable += 1;
                    counts.problem.get_or_insert_with(|| error.to_string());
                }
            }
            if number == index {
                found = Some(seen);
            }
            number += 1;
        }
    }
    counts.unused = unread_keys.lines();
    Ok((found, counts))
}

fn look(row: RawRow) -> Result<(Place, Seen)> {
    let (place, value) = row.value()?;
    match Seen::new(&value) {
        Ok(seen) => Ok((place, seen)),
        Err(Problem { problem, remedy }) => Err(place.error(problem, remedy)),
    }
}

/// What rows are looked at with.
struct Inspector<'a> {
    model: &'a Path,
    vocab_size: usize,
    max_length: usize,
}

impl Inspector<'_> {
    fn sample(&self, place: &Place, row: Row, notes: &mut Vec<String>) -> Result<(bool, Vec<InspectedSequence>)> {
        let needed = row.is_text() || self.model.join("tokenizer.json").exists();
        let encoder = needed.then(|| TextEncoder::open(self.model, self.vocab_size)).transpose()?;
        let rendered = encoder.as_ref().map_or(Ok(Vec::new()), |encoder| encoder.rendered(&row));
        let rendered = rendered.map_err(|problem| place.error(problem, "look at the row and the chat template"))?;
        let mut sample = encode::sample(place, row, encoder.as_ref(), self.vocab_size)?;
        notes.extend(encoder.iter().flat_map(TextEncoder::notes).map(|note| note.to_string()));
        let lengths: Vec<usize> = sample.sequences().map(|sequence| sequence.tokens.len()).collect();
        sample.truncate(self.max_length);
        let names: &[&str] = if lengths.len() == 1 { &["sample"] } else { &["chosen", "rejected"] };
        let mut rendered = rendered.into_iter();
        let sequences =
            sample.sequences().zip(names).zip(lengths).map(|((sequence, name), length)| InspectedSequence {
                name,
                rendered: rendered.next(),
                tokens: tokens(sequence, encoder.as_ref()),
                cut: length - sequence.tokens.len(),
            });
        Ok((sample.is_trained(), sequences.collect()))
    }

    fn prompt(&self, place: &Place, row: Row) -> Result<InspectedSequence> {
        let encoder = PromptEncoder::open(self.model, self.vocab_size)?;
        let rendered = match &row {
            Row::Conversation(messages) => encoder.rendered(messages).ok(),
            _ => None,
        };
        let prompt = prompts::prompt(place, row, Some(&encoder), "")?;
        let cut = prompt.tokens.len().saturating_sub(self.max_length);
        let kept = prompt.tokens.len() - cut;
        let labels = vec![IGNORE_INDEX; kept];
        let sequence = Sequence { tokens: prompt.tokens.into_iter().take(kept).collect(), labels };
        Ok(InspectedSequence { name: "prompt", rendered, tokens: tokens(&sequence, Some(encoder.text_encoder())), cut })
    }
}

fn tokens(sequence: &Sequence, encoder: Option<&TextEncoder>) -> Vec<InspectedToken> {
    let piece = |id| encoder.and_then(|encoder| encoder.tokenizer.piece(id));
    let learned = |(index, label): (usize, &u32)| index > 0 && *label != IGNORE_INDEX;
    let labels = sequence.labels.iter().enumerate().map(learned);
    sequence.tokens.iter().zip(labels).map(|(&id, learned)| InspectedToken { id, piece: piece(id), learned }).collect()
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.all)?;
        writeln!(f, "{}, row {}: {}", self.file.display(), self.row, self.shape)?;
        if let Some(question) = &self.question {
            return writeln!(f, "\n{question}");
        }
        if !self.used && self.shape == "prompt" {
            writeln!(f, "for generation; training does not read it")?;
        } else if !self.used {
            writeln!(f, "not used: no token to learn remains within max_length")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        self.sequences.iter().try_for_each(|sequence| write!(f, "\n{sequence}"))
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes: Vec<String> = self.shapes.iter().map(|(shape, count)| format!("{shape} {count}")).collect();
        writeln!(f, "{} rows in {} files: {}", self.rows(), self.files, shapes.join(", "))?;
        if let Some(problem) = &self.problem {
            writeln!(f, "{} rows cannot be read, the first: {problem}", self.unreadable)?;
        }
        self.unused.iter().try_for_each(|line| writeln!(f, "{line}"))
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
