//! Rows to samples: which tokens a row becomes, and which of them are learned.

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::answers::{Answers, Note};
use super::columns::DataFile;
use super::messages::Message;
use super::notes::Notes;
use super::reader::{self, Place, RawRow};
use super::row::{Problem, Row, UnderstoodRow};
use super::samples::{Sample, Samples, Sequence};
use super::template::ChatTemplate;
use super::tokenizer::{Token, Tokenizer};
use super::unread::UnreadKeys;
use crate::error::Result;
use crate::ops::IGNORE_INDEX;

const TEXT_REMEDY: &str = "look at the row, or give `input_ids` and `labels`";

/// Reads and tokenizes every row of `data`. The tokenizer of `model` is loaded when the first row needs it.
pub fn read_samples(data: &DataFile, model: &Path, vocab_size: usize, max_length: usize) -> Result<Samples> {
    let mut samples = Samples::default();
    let mut unread_keys = UnreadKeys::default();
    let mut encoder = None;
    let mut rows = reader::all_rows(data)?;
    loop {
        let chunk = reader::next_chunk(&mut rows).into_iter().collect::<Result<Vec<RawRow>>>()?;
        if chunk.is_empty() {
            break;
        }
        // Collected before any error is looked at, so that it is always the first bad row that is reported.
        let rows: Vec<Result<(Place, UnderstoodRow)>> = chunk.into_par_iter().map(understand).collect();
        if encoder.is_none() && rows.iter().flatten().any(|(_, understood)| understood.row.is_text()) {
            encoder = Some(TextEncoder::open(model, vocab_size)?);
        }
        rows.iter().flatten().for_each(|(_, understood)| unread_keys.add(&understood.unread));
        let encode = |row: Result<(Place, UnderstoodRow)>| {
            let (place, understood) = row?;
            let sample = sample(&place, understood.row, encoder.as_ref(), vocab_size)?;
            Ok((place, sample))
        };
        let encoded: Vec<Result<(Place, Sample)>> = rows.into_par_iter().map(encode).collect();
        for row in encoded {
            let (place, sample) = row?;
            let pushed = samples.push(sample, max_length);
            pushed.map_err(|problem| place.error(problem, "put them into files of their own"))?;
        }
    }
    unread_keys.warn(data);
    Ok(samples)
}

/// Parses a row and tells its shape.
pub fn understand(raw: RawRow) -> Result<(Place, UnderstoodRow)> {
    let (place, value) = raw.value()?;
    let row = Row::from_json(&value).map_err(|Problem { problem, remedy }| place.error(problem, remedy))?;
    Ok((place, row))
}

/// The sample that a row becomes, of full length. `encoder` may only be `None` for rows of token ids.
pub fn sample(place: &Place, row: Row, encoder: Option<&TextEncoder>, vocab_size: usize) -> Result<Sample> {
    let sample = match (row, encoder) {
        (Row::Tokens(one), _) => Sample::One(one),
        (Row::TokenPair(chosen, rejected), _) => Sample::Pair(chosen, rejected),
        (row, Some(encoder)) => encoder.sample(&row).map_err(|problem| place.error(problem, TEXT_REMEDY))?,
        (_, None) => return Err(place.error("it is text, but there is no tokenizer", "give rows with `input_ids`")),
    };
    let problem = sample.sequences().find_map(|sequence| sequence.problem(vocab_size));
    match problem {
        Some(problem) => Err(place.error(problem, "use the tokenizer that belongs to the model")),
        None => Ok(sample),
    }
}

/// Text to tokens and labels: the tokenizer and the chat template of a model directory.
pub struct TextEncoder {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
    notes: Notes,
}

impl TextEncoder {
    /// Loads both from the directory `model`, whose embedding has `vocab_size` rows.
    pub fn open(model: &Path, vocab_size: usize) -> Result<Self> {
        let tokenizer = Tokenizer::open(model, vocab_size)?;
        let template = ChatTemplate::open(model, &tokenizer.named)?;
        Ok(Self { tokenizer, template, notes: Notes::default() })
    }

    /// What a user should know about how the conversations so far became samples.
    pub fn notes(&self) -> Vec<Note> {
        self.notes.given()
    }

    /// The sample that a row of text becomes; the error says what stands in the way.
    fn sample(&self, row: &Row) -> Result<Sample, String> {
        Ok(match row {
            Row::Tokens(one) => Sample::One(one.clone()),
            Row::TokenPair(chosen, rejected) => Sample::Pair(chosen.clone(), rejected.clone()),
            Row::Text(text) => Sample::One(self.text(text)?),
            Row::Conversation(messages) => Sample::One(self.conversation(messages, 0)?),
            Row::Preference(chosen, rejected) => {
                let common = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
                Sample::Pair(self.conversation(chosen, common)?, self.conversation(rejected, common)?)
            }
        })
    }

    /// The texts that a row is tokenized from: one, or chosen and rejected; none for rows of token ids.
    pub fn rendered(&self, row: &Row) -> Result<Vec<String>, String> {
        match row {
            Row::Tokens(_) | Row::TokenPair(..) => Ok(Vec::new()),
            Row::Text(text) => Ok(vec![text.clone()]),
            Row::Conversation(messages) => Ok(vec![self.template.render(messages, false)?]),
            Row::Preference(chosen, rejected) => {
                [chosen, rejected].iter().map(|messages| self.template.render(messages, false)).collect()
            }
        }
    }

    /// Raw text, all of it learned. It gets the start token that the tokenizer adds, and no end token.
    fn text(&self, text: &str) -> Result<Sequence, String> {
        let tokens = self.tokenizer.encode(text, true)?;
        Ok(Sequence::all_learned(tokens.iter().map(|token| token.id).collect()))
    }

    /// A conversation as one sequence; the assistant's turns from message `first` on are learned, with the token that
    /// ends the turn and without the header that the generation prompt gives.
    ///
    /// The conversation is tokenized as a whole, as for inference. A token is learned if it holds a character of such a turn.
    fn conversation(&self, messages: &[Message], first: usize) -> Result<Sequence, String> {
        let Answers { text, spans, notes } = self.template.answers(messages, first)?;
        notes.into_iter().for_each(|note| self.notes.give(note));
        let start = self.tokenizer.start_token();
        if messages.iter().any(|message| start.is_some_and(|start| message.content.trim_start().starts_with(start))) {
            self.notes.give(Note::RenderedBefore);
        }
        let tokens = self.tokenizer.encode(&text, false)?;
        let mut labels = vec![IGNORE_INDEX; tokens.len()];
        for span in spans {
            let learned = self.learned(&tokens, &text, span);
            for position in learned.clone() {
                labels[position] = tokens[position].id;
            }
            if let Some(last) = learned.last().map(|last| tokens[last]).filter(|last| !self.tokenizer.is_added(last.id))
            {
                self.notes.give(Note::NoEnd(text.get(last.start..last.end).unwrap_or_default().to_string()));
            }
        }
        Ok(Sequence { tokens: tokens.into_iter().map(|token| token.id).collect(), labels })
    }

    /// Positions of the tokens that lie in `span`. White space after the token that ends the turn belongs to the
    /// layout, not to the answer.
    fn learned(&self, tokens: &[Token], text: &str, span: Range<usize>) -> Range<usize> {
        let start = tokens.partition_point(|token| token.end <= span.start);
        let mut end = start + tokens[start..].partition_point(|token| token.start < span.end);
        let is_space = |token: &Token| {
            let said = text.get(token.start..token.end).unwrap_or_default();
            !said.is_empty() && said.chars().all(char::is_whitespace) && !self.tokenizer.is_special(token.id)
        };
        let said = start + tokens[start..end].iter().rposition(|token| !is_space(token)).map_or(0, |last| last + 1);
        if said > start && self.tokenizer.is_special(tokens[said - 1].id) {
            end = said;
        }
        start..end
    }
}
