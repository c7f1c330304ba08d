//! Prompts: what a model is given to continue, from the rows of a data file or from messages.

use std::path::Path;

use serde_json::Value;

use super::encode::TextEncoder;
use super::reader::{Place, RawRow, files, rows};
use super::row::{Message, Problem, Row, turns};
use super::samples::Sequence;
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
        let text = self.0.template.render(messages, true)? + prefill;
        self.encode(&text, false)
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

/// Reads the prompts of a data file (or a directory of them) and puts `prefill` behind each. A row is a `prompt` alone, or
/// any row that training reads:
///
/// - A conversation gives its turns up to the last that is not the assistant's; a preference pair, the chosen conversation.
/// - Token ids give those before the first label, or all where the first token has a label.
/// - A text gives all of it.
///
/// `encoder` may be absent where all rows are token ids and there is no prefill.
pub fn read_prompts(path: &Path, encoder: Option<&PromptEncoder>, prefill: &str) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for file in files(path)? {
        for row in rows(&file)? {
            prompts.push(read(row?, encoder, prefill)?);
        }
    }
    Ok(prompts)
}

fn read(raw: RawRow, encoder: Option<&PromptEncoder>, prefill: &str) -> Result<Prompt> {
    let (place, row) = prompt_row(raw)?;
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

/// A row with `prompt` alone is a conversation without an answer; any other is what training reads.
fn prompt_row(raw: RawRow) -> Result<(Place, Row)> {
    let (place, value) = raw.value()?;
    let get = |key: &str| value.get(key).filter(|value: &&Value| !value.is_null());
    let alone = ["response", "completion", "chosen", "rejected"].iter().all(|key| get(key).is_none());
    let row = match get("prompt").filter(|_| alone) {
        Some(prompt) => turns("prompt", prompt, "user").map(Row::Conversation),
        None => Row::from_json(&value),
    };
    let row = row.map_err(|Problem { problem, remedy }| place.error(problem, remedy))?;
    Ok((place, row))
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
