//! Text to tokens: a model's tokenizer and chat template, and which tokens of a conversation are learned.
//!
//! Tokenizer files are untrusted: loading and encoding run where a panic of the library is an error of the file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::samples::Sequence;
use super::template::Template;
use crate::error::{Error, Result};
use crate::ops::IGNORE_INDEX;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// Why a row cannot be tokenised.
#[derive(Debug)]
pub(super) struct TextError(pub String);

impl TextError {
    /// The error with its place. A message that names a file of its own (the tokenizer's) stays as it is.
    pub(super) fn at(self, file: &Path, line: usize) -> Error {
        super::source::at(file, line, self.0)
    }
}

/// Longest tokenizer file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// A model's tokenizer and template, loaded when the first row needs them.
pub(super) struct Tokeniser {
    model: PathBuf,
    vocab_size: usize,
    loaded: OnceLock<Result<Loaded, String>>,
}

struct Loaded {
    tokenizer: Tokenizer,
    template: Template,
}

impl Tokeniser {
    /// The tokenizer of a model directory whose embedding has `vocab_size` rows.
    pub(super) fn new(model: &Path, vocab_size: usize) -> Self {
        Self { model: model.to_path_buf(), vocab_size, loaded: OnceLock::new() }
    }

    fn loaded(&self) -> Result<&Loaded, TextError> {
        let load = || load(&self.model).map_err(|error| error.to_string());
        self.loaded.get_or_init(load).as_ref().map_err(|message| TextError(message.clone()))
    }

    /// Tokens of plain text, with what the tokenizer adds (a start token, usually).
    pub(super) fn text(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text, true)
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let tokenizer = &self.loaded()?.tokenizer;
        let encoding = catch_unwind(AssertUnwindSafe(|| tokenizer.encode_fast(text, add_special_tokens)));
        let ids = match encoding {
            Ok(Ok(encoding)) => encoding.get_ids().to_vec(),
            Ok(Err(error)) => return Err(TextError(format!("the tokenizer fails: {error}"))),
            Err(_) => return Err(TextError("the tokenizer's own settings make it fail on this text".into())),
        };
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            None => Ok(ids),
            Some(id) => Err(TextError(format!(
                "the tokenizer gives token {id}, but the model has only {}: they do not belong together",
                self.vocab_size
            ))),
        }
    }

    /// The text of a token, for people.
    pub(super) fn piece(&self, id: u32) -> Option<String> {
        let tokenizer = &self.loaded().ok()?.tokenizer;
        catch_unwind(AssertUnwindSafe(|| tokenizer.decode(&[id], false).ok())).ok().flatten()
    }

    /// A conversation of which every assistant turn is learned.
    pub(super) fn chat(&self, messages: &[Message]) -> Result<Sequence, TextError> {
        let learned = |index: usize| messages[index].role == "assistant";
        self.turns(messages, learned)
    }

    /// A conversation of which only the last turn, the assistant's, is learned.
    pub(super) fn last_turn(&self, messages: &[Message]) -> Result<Sequence, TextError> {
        if messages.last().is_none_or(|last| last.role != "assistant") {
            return Err(TextError("the conversation does not end with a turn of the assistant".into()));
        }
        self.turns(messages, |index| index + 1 == messages.len())
    }

    /// Renders growing prefixes of the conversation; what an assistant turn adds after its header is learned.
    fn turns(&self, messages: &[Message], learned: impl Fn(usize) -> bool) -> Result<Sequence, TextError> {
        let template = &self.loaded()?.template;
        let (mut sequence, mut done) = (Sequence::default(), String::new());
        for index in 0..messages.len() {
            if !learned(index) {
                continue;
            }
            let prompt = template.render(&messages[..index], true)?;
            self.append(&mut sequence, &mut done, prompt, false)?;
            let answer = template.render(&messages[..=index], false)?;
            self.append(&mut sequence, &mut done, answer, true)?;
        }
        if let Some(last) = messages.len().checked_sub(1).filter(|&last| !learned(last)) {
            let rest = template.render(&messages[..=last], false)?;
            self.append(&mut sequence, &mut done, rest, false)?;
        }
        Ok(sequence)
    }

    /// Appends what `text` has beyond `done`. Parts are encoded one by one, so the mask falls between tokens; templates
    /// write the special tokens themselves.
    fn append(&self, sequence: &mut Sequence, done: &mut String, text: String, learned: bool) -> Result<(), TextError> {
        let Some(new) = text.strip_prefix(done.as_str()) else {
            return Err(TextError(
                "the chat template writes earlier turns differently once later ones follow, so the learned part cannot \
                 be told; give `input_ids` and `labels`"
                    .into(),
            ));
        };
        let tokens = self.encode(new, false)?;
        let mask = |&id: &u32| if learned { id } else { IGNORE_INDEX };
        sequence.labels.extend(tokens.iter().map(mask));
        sequence.tokens.extend(tokens);
        *done = text;
        Ok(())
    }

    /// The text that a conversation becomes.
    pub(super) fn rendered(&self, messages: &[Message]) -> Result<String, TextError> {
        self.loaded()?.template.render(messages, false)
    }
}

fn load(model: &Path) -> Result<Loaded> {
    let path = model.join("tokenizer.json");
    let metadata = std::fs::metadata(&path).map_err(|_| {
        Error::input(model, "it has no tokenizer.json", "add it, or give rows with `input_ids` and `labels`")
    })?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(Error::input(&path, "it is no regular file of at most 256 MiB", "use the model's own tokenizer"));
    }
    let loaded = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_file(&path)));
    let mut tokenizer = match loaded {
        Ok(Ok(tokenizer)) => tokenizer,
        Ok(Err(error)) => {
            return Err(Error::input(&path, format!("not a tokenizer: {error}"), "use the model's own tokenizer"));
        }
        Err(_) => return Err(Error::input(&path, "it contradicts itself", "use the model's own tokenizer")),
    };
    // Lengths are this program's business: a file's own truncation or padding would change samples unseen.
    tokenizer.with_padding(None);
    let without = catch_unwind(AssertUnwindSafe(|| tokenizer.with_truncation(None).is_ok()));
    if !without.unwrap_or(false) {
        return Err(Error::input(&path, "its truncation cannot be switched off", "use the model's own tokenizer"));
    }
    Ok(Loaded { tokenizer, template: load_template(model)? })
}

/// The template of `chat_template.jinja` or `tokenizer_config.json`.
fn load_template(model: &Path) -> Result<Template> {
    let path = model.join("tokenizer_config.json");
    let settings = match read_if_there(&path)? {
        None => Value::Null,
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| Error::input(&path, format!("not valid JSON: {error}"), "use the model's own file"))?,
    };
    let token = |key: &str| match &settings[key] {
        Value::String(text) => text.clone(),
        Value::Object(table) => table.get("content").and_then(Value::as_str).unwrap_or("").to_string(),
        _ => String::new(),
    };
    let jinja = model.join("chat_template.jinja");
    let (source, file) = match read_if_there(&jinja)? {
        Some(source) => (Some(source), jinja),
        None => (named_template(&settings["chat_template"]), path),
    };
    Template::new(source, token("bos_token"), token("eos_token"), &file)
}

/// A template as a text, or the one called `default` of a list.
fn named_template(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default").or(list.first())?;
            default["template"].as_str().map(str::to_string)
        }
        _ => None,
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match std::fs::metadata(path) {
        Err(_) => Ok(None),
        Ok(metadata) if metadata.len() > MAX_BYTES || !metadata.is_file() => {
            Err(Error::input(path, "it is no regular file of at most 256 MiB", "use the model's own file"))
        }
        Ok(_) => std::fs::read_to_string(path).map(Some).map_err(Error::io("read", path)),
    }
}
