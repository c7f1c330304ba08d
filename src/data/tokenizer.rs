//! The tokenizer of a model directory. Its files are untrusted: the library below panics on some, so it runs sandboxed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{Encoding, ModelWrapper};

use super::growth::growth;
use super::sandbox;
use crate::error::{Error, Result};
use crate::files::read_capped;

/// Largest tokenizer file in bytes; Llama 3's has 9 MB, the largest in wide use 35 MB.
const MAXIMUM_FILE: u64 = 64 << 20;
/// Largest settings file in bytes.
pub const MAXIMUM_SETTINGS: u64 = 16 << 20;
/// By how much the tokenizer's rules may make a text longer. Llama 3's double it at worst, SentencePiece's have some 200.
const MAXIMUM_GROWTH: f64 = 4096.0;
/// Bytes that they may make of one text; each can become a token of some hundred bytes in memory.
const MAXIMUM_GROWN: f64 = (1u64 << 27) as f64;

const REMEDY: &str = "use the tokenizer files that came with the model";

/// A tokenizer whose every id is a row of the model's embedding.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
    vocab_size: usize,
    /// Added tokens, and whether each is special.
    added: HashMap<u32, bool>,
    growth: f64,
    /// Special tokens by what they are for (`bos_token`, `eos_token`, …), as the settings name them.
    pub named: Vec<(String, String)>,
}

/// A token of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Bytes of the text that it stands for.
    pub start: usize,
    /// Where they end.
    pub end: usize,
}

impl Tokenizer {
    /// Loads the tokenizer in the directory `model`, whose embedding has `vocab_size` rows.
    ///
    /// Truncation and padding that the file asks for are not applied: lengths are the stream's business. Fails if the
    /// file is unusable or its vocabulary is larger than the model's.
    pub fn open(model: &Path, vocab_size: usize) -> Result<Self> {
        let file = model.join("tokenizer.json");
        if !file.exists() {
            let remedy = "add it, or give rows with `input_ids`, which need none";
            return Err(Error::input(model, "there is no tokenizer.json, and the data is text", remedy));
        }
        let bytes = read_capped(&file, MAXIMUM_FILE)?;
        let unusable = |reason: String| Error::input(&file, format!("not a usable tokenizer: {reason}"), REMEDY);
        let growth = growth(&bytes).map_err(|error| unusable(error.to_string()))?;
        if growth > MAXIMUM_GROWTH {
            return Err(unusable("its rules repeat or lengthen a text without measure".into()));
        }
        let loaded =
            sandbox::catch(|| load(&bytes)).unwrap_or_else(|panic| Err(format!("its reader gave up: {panic}")));
        let inner = loaded.map_err(unusable)?;
        let named = named_tokens(model)?;
        let tokenizer = Self { added: added_ids(&inner), inner, file, vocab_size, growth, named };
        tokenizer.check_vocabulary()?;
        Ok(tokenizer)
    }

    /// Turns `text` into tokens. `add_special_tokens` keeps the tokens that the tokenizer adds of its own, usually a start
    /// token; not a second one where the text begins with it.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<Token>, String> {
        if text.len() as f64 * self.growth > MAXIMUM_GROWN {
            return Err(format!("the rules of {} could make too much of {} bytes", self.file.display(), text.len()));
        }
        let encoding = sandbox::catch(|| self.inner.encode(text, add_special_tokens));
        let encoding = match encoding {
            Ok(Ok(encoding)) => encoding,
            Ok(Err(error)) => return Err(format!("{} fails on this text: {error}", self.file.display())),
            Err(panic) => return Err(format!("{} gives up on this text: {panic}", self.file.display())),
        };
        self.check(tokens(&encoding))
    }

    /// Turns `ids` into text, as Transformers does with `skip_special_tokens`. Bytes that are no UTF-8 show as U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        match sandbox::catch(|| self.inner.decode(ids, true)) {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(format!("{} cannot decode: {error}", self.file.display())),
            Err(panic) => Err(format!("{} gives up on these tokens: {panic}", self.file.display())),
        }
    }

    /// Turns one token into text for people. Bytes that are no text on their own show as U+FFFD.
    pub fn piece(&self, id: u32) -> Option<String> {
        let decoded = sandbox::catch(|| self.inner.decode(&[id], false).ok()).ok().flatten();
        decoded.filter(|text| !text.is_empty()).or_else(|| self.inner.id_to_token(id))
    }

    /// Whether a token is one of the special ones, such as the end of a turn.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).copied().unwrap_or(false)
    }

    /// Whether a token was added to the vocabulary, as ends of turns are also where they do not count as special.
    pub fn is_added(&self, id: u32) -> bool {
        self.added.contains_key(&id)
    }

    /// The text of the start token, where the settings name one.
    pub fn start_token(&self) -> Option<&str> {
        self.named.iter().find(|(name, _)| name == "bos_token").map(|(_, text)| text.as_str())
    }

    fn check(&self, tokens: Vec<Token>) -> Result<Vec<Token>, String> {
        match tokens.iter().find(|token| token.id as usize >= self.vocab_size) {
            Some(token) => Err(format!("{}, {}", self.outside(token.id), REMEDY)),
            None => Ok(tokens),
        }
    }

    /// Added tokens may go beyond the embedding as long as no text uses them (Llama 2 with a padding token); the
    /// vocabulary itself may not, it would be another model's.
    fn check_vocabulary(&self) -> Result<()> {
        let largest = sandbox::catch(|| self.inner.get_vocab(false).into_values().max());
        match largest.ok().flatten() {
            Some(id) if id as usize >= self.vocab_size => Err(Error::input(&self.file, self.outside(id), REMEDY)),
            _ => Ok(()),
        }
    }

    fn outside(&self, id: u32) -> String {
        format!("the tokenizer has token id {id}, but the model's vocabulary only {} entries", self.vocab_size)
    }
}

fn load(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    if matches!(tokenizer.get_model(), ModelWrapper::BPE(model) if model.dropout.is_some_and(|rate| rate > 0.0)) {
        return Err("it drops merges at random, which no run could be repeated with; delete `dropout` in it".into());
    }
    Ok(tokenizer)
}

fn added_ids(tokenizer: &tokenizers::Tokenizer) -> HashMap<u32, bool> {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    added.iter().map(|(&id, token)| (id, token.special)).collect()
}

/// The tokens of an encoding. A text that went through a chat template has its start token already, and perhaps its end
/// token: the tokenizer's own beside the same one is dropped.
fn tokens(encoding: &Encoding) -> Vec<Token> {
    let pairs = encoding.get_ids().iter().zip(encoding.get_offsets());
    let mut tokens: Vec<Token> = pairs.map(|(&id, &(start, end))| Token { id, start, end }).collect();
    let added = encoding.get_special_tokens_mask();
    let before = added.iter().take_while(|&&added| added == 1).count();
    let behind = added.iter().rev().take_while(|&&added| added == 1).count();
    if before == tokens.len() {
        return tokens;
    }
    let end = tokens.len() - behind;
    if behind > 0 && tokens[end - 1].id == tokens[end].id {
        tokens.remove(end);
    }
    if before > 0 && tokens[before - 1].id == tokens[before].id {
        tokens.remove(before - 1);
    }
    tokens
}

/// The special tokens that `special_tokens_map.json` names, and over them `tokenizer_config.json`.
fn named_tokens(model: &Path) -> Result<Vec<(String, String)>> {
    let mut named: Vec<(String, String)> = Vec::new();
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(settings) = settings(&model.join(file))? else { continue };
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            let value = &settings[key];
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            if let Some(text) = text.filter(|_| named.iter().all(|(known, _)| known != key)) {
                named.push((key.to_string(), text.to_string()));
            }
        }
    }
    Ok(named)
}

/// A JSON file of settings, or `None` where there is none.
pub fn settings(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_capped(path, MAXIMUM_SETTINGS)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match serde_json::from_slice(text) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(_) => Err(Error::input(path, "not a JSON object", REMEDY)),
        Err(error) => Err(Error::input(path, format!("not JSON: {error}"), REMEDY)),
    }
}
