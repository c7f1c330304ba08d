//! Prompts: what a model is given to continue, from the rows of a data file or from messages.

use std::path::Path;

use super::columns::DataFile;
use super::encode::TextEncoder;
use super::messages::Message;
use super::reader::{Place, RawRow, all_rows};
use super::row::{Problem, Row, UnderstoodRow};
use super::samples::Sequence;
use super::unread::UnreadKeys;
use crate::error::Result;
use crate::ops::IGNORE_INDEX;

const REMEDY: &str = "give it `prompt`, `messages`, `text` or `input_ids`";

/// Something to continue.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Prompt {
    /// The question for people and judges: the last turn that is not the model's, the text, or the token ids.
    pub text: String,
    /// The tokens that the model is given.
    pub tokens: Vec<u32>,
}

/// Text to prompts and generated tokens to text: the tokenizer and the chat template of a model directory.
pub struct PromptEncoder(TextEncoder);

impl PromptEncoder {
    /// Loads both from the directory `model`, whose embedding has `vocab_size` rows.
    pub fn open(model: &Path, vocab_size: usize) -> Result<Self> {
        TextEncoder::open(model, vocab_size).map(Self)
    }

    /// A conversation for the model to answer: the chat template with its generation prompt, and `prefill`, the beginning of
    /// the answer, directly behind it. Tokenized as a whole, without special tokens but those the template writes.
    pub fn chat(&self, messages: &[Message], prefill: &str) -> Result<Vec<u32>, String> {
        let text = self.rendered(messages)? + prefill;
        self.encode(&text, false)
    }

    /// The text that [`PromptEncoder::chat`] tokenizes, without a prefill.
    pub fn rendered(&self, messages: &[Message]) -> Result<String, String> {
        self.0.template.render(messages, true)
    }

    /// What rows for training are encoded with.
    pub(super) fn text_encoder(&self) -> &TextEncoder {
        &self.0
    }

    /// A text to go on with, and `prefill` behind it, with the start token that the tokenizer adds.
    pub fn text(&self, text: &str, prefill: &str) -> Result<Vec<u32>, String> {
        self.encode(&format!("{text}{prefill}"), true)
    }

    /// The text of generated tokens, without special ones.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, String> {
        self.0.tokenizer.decode(tokens)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, String> {
        Ok(self.0.tokenizer.encode(text, special)?.iter().map(|token| token.id).collect())
    }

    fn prompt(&self, row: Row, prefill: &str) -> Result<Prompt, String> {
        match row {
            Row::Conversation(messages) | Row::Preference(messages, _) => {
                let asked = asked(&messages).ok_or("there is nothing but answers in it")?;
                let tokens = self.chat(asked, prefill)?;
                let text = asked.last().map(|message| message.content.clone()).unwrap_or_default();
                Ok(Prompt { text, tokens })
            }
            Row::Text(text) => Ok(Prompt { tokens: self.text(&text, prefill)?, text }),
            Row::Tokens(sequence) | Row::TokenPair(sequence, _) => {
                let mut tokens = unlabelled(&sequence);
                let text = format!("{tokens:?}");
                if !prefill.is_empty() {
                    tokens.extend(self.encode(prefill, false)?);
                }
                Ok(Prompt { text, tokens })
            }
        }
    }
}

/// What becomes of a row of raw text among prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RawText {
    /// The model goes on with it.
    #[default]
    Continued,
    /// It is a user's turn: lists of prompts come in columns called `text`.
    Asked,
}

/// Reads the prompts of a data file (or a directory of them) and puts `prefill` behind each. A row is a prompt in any of the
/// columns that published lists have, a line of a `.txt` file, or any row that training reads:
///
/// - A conversation gives its turns up to the last that is not the assistant's; a preference pair, the chosen conversation.
/// - Token ids give those before the first label, or all where the first token has a label.
/// - A text gives all of it, as `raw_text` says.
///
/// `encoder` may be absent where all rows are token ids and there is no prefill.
pub fn read_prompts(
    data: impl Into<DataFile>,
    encoder: Option<&PromptEncoder>,
    prefill: &str,
    raw_text: RawText,
) -> Result<Vec<Prompt>> {
    let mut lists = read_prompts_with(data, encoder, &[prefill], raw_text)?;
    Ok(lists.pop().unwrap_or_default())
}

/// As [`read_prompts`], for several prefills: the prompts with each, in the order of `prefills`. The data is read once.
pub fn read_prompts_with(
    data: impl Into<DataFile>,
    encoder: Option<&PromptEncoder>,
    prefills: &[&str],
    raw_text: RawText,
) -> Result<Vec<Vec<Prompt>>> {
    let data = data.into();
    let mut lists = vec![Vec::new(); prefills.len()];
    let mut unread_keys = UnreadKeys::default();
    for row in all_rows(&data)? {
        let (place, UnderstoodRow { row, unread }) = understand_prompt(row?)?;
        unread_keys.add(&unread);
        let row = match (row, raw_text) {
            (Row::Text(text), RawText::Asked) => Row::Conversation(vec![Message::new("user", text)]),
            (row, _) => row,
        };
        for (prompts, prefill) in lists.iter_mut().zip(prefills) {
            prompts.push(prompt(&place, row.clone(), encoder, prefill)?);
        }
    }
    unread_keys.warn(&data);
    Ok(lists)
}

/// Parses a row and tells what is asked with it.
pub fn understand_prompt(raw: RawRow) -> Result<(Place, UnderstoodRow)> {
    let (place, value) = raw.value()?;
    let row = Row::prompt_from_json(&value).map_err(|Problem { problem, remedy }| place.error(problem, remedy))?;
    Ok((place, row))
}

/// The prompt that a row becomes.
pub fn prompt(place: &Place, row: Row, encoder: Option<&PromptEncoder>, prefill: &str) -> Result<Prompt> {
    let prompt = match (encoder, row) {
        (Some(encoder), row) => encoder.prompt(row, prefill),
        (None, Row::Tokens(sequence) | Row::TokenPair(sequence, _)) if prefill.is_empty() => {
            let tokens = unlabelled(&sequence);
            Ok(Prompt { text: format!("{tokens:?}"), tokens })
        }
        (None, _) => Err("it is text, but the model has no tokenizer".into()),
    };
    let prompt = prompt.map_err(|problem| place.error(problem, REMEDY))?;
    if prompt.tokens.is_empty() {
        return Err(place.error("it gives no token to begin with", REMEDY));
    }
    Ok(prompt)
}

/// The turns of a conversation up to the last one that is not the assistant's.
fn asked(messages: &[Message]) -> Option<&[Message]> {
    let last = messages.iter().rposition(|message| !message.is_assistant())?;
    messages.get(..=last)
}

/// The tokens before the first label; all where there is none before it.
fn unlabelled(sequence: &Sequence) -> Vec<u32> {
    let first = sequence.labels.iter().position(|&label| label != IGNORE_INDEX);
    match first {
        None | Some(0) => sequence.tokens.clone(),
        Some(first) => sequence.tokens.iter().take(first).copied().collect(),
    }
}
