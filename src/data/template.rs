//! Chat templates: Jinja programs of untrusted model directories, run with limits.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use minijinja::Environment;
use minijinja::value::Value as Jinja;
use serde_json::Value;

use super::answers::{Answers, Note, Place, Renderings};
use super::jinja;
use super::messages::Message;
use super::sandbox;
use super::tokenizer::settings;
use crate::error::{Error, Result};
use crate::files::read_capped;

/// How long a rendering may take; a template that gets around the limit on instructions is stopped by this one. Real ones
/// take well below a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest text that it may write, in bytes.
const MAXIMUM_OUTPUT: usize = 8 << 20;
/// Longest template in bytes; published ones have some tens of thousands.
const MAXIMUM_TEMPLATE: usize = 256 << 10;

/// For a model directory without a template: "User: …", "Assistant: …", one empty line between turns, the tokenizer's
/// own start token at the beginning and its end token after every answer.
const PLAIN: &str = "\
{{ bos_token }}\
{% for message in messages %}\
{{ message.role | capitalize }}: {{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}Assistant:{% endif %}";

/// A model's chat template, compiled.
pub struct ChatTemplate {
    compiled: Arc<Compiled>,
    /// Set once a rendering had to be given up. Its thread runs on, so there must not be a second one.
    given_up: AtomicBool,
}

struct Compiled {
    environment: Environment<'static>,
    /// Special tokens by name, as the template sees them.
    tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// The template of the directory `model`: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json` (a
    /// text, or a list of which the one called `default` counts). Without any, a plain one, which is announced.
    pub fn open(model: &Path, tokens: &[(String, String)]) -> Result<Self> {
        let file = model.join("chat_template.jinja");
        if file.exists() {
            let source = read_capped(&file, MAXIMUM_TEMPLATE as u64)?;
            let source = String::from_utf8(source).map_err(|_| unusable(&file, "not UTF-8"))?;
            return Self::new(&file, &source, tokens);
        }
        let file = model.join("tokenizer_config.json");
        match settings(&file)?.as_ref().and_then(|settings| settings.get("chat_template")).and_then(named_default) {
            Some(source) => Self::new(&file, source, tokens),
            None => {
                tracing::warn!(
                    "{}: no chat template; turns are written as \"User: …\" and \"Assistant: …\"",
                    model.display()
                );
                Self::new(&file, PLAIN, tokens)
            }
        }
    }

    /// Compiles `source`, which stands in `file`.
    pub fn new(file: &Path, source: &str, tokens: &[(String, String)]) -> Result<Self> {
        if source.len() > MAXIMUM_TEMPLATE {
            return Err(unusable(file, "longer than 256 KiB"));
        }
        if source.starts_with('\u{feff}') {
            tracing::warn!(
                "{}: the chat template begins with a byte-order mark, which becomes part of every conversation, as it does \
                 with Transformers; save it without one",
                file.display()
            );
        }
        let source = source.to_string();
        let compiled = sandbox::confine(PATIENCE, move || jinja::compile(&source).map_err(|error| error.to_string()));
        let environment = compiled.map_err(|reason| unusable(file, &reason))?;
        let compiled = Arc::new(Compiled { environment, tokens: tokens.to_vec() });
        Ok(Self { compiled, given_up: AtomicBool::new(false) })
    }

    /// Renders a conversation; the error says what stands in the way.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let messages = messages.to_vec();
        self.run(move |compiled| compiled.render(&messages, add_generation_prompt))
    }

    /// Renders a conversation and finds the bytes that the assistant says in it from message `first` on, without the
    /// header that the generation prompt gives and with what ends the turn.
    ///
    /// For each turn the conversation is rendered twice: up to the turn before it with the generation prompt, and up to the
    /// turn itself. The assistant says the bytes that the second has beyond the first, as far as the whole conversation has
    /// them too; [`Answers::notes`] says what was done where it does not. Fails where nothing can be told.
    pub fn answers(&self, messages: &[Message], first: usize) -> Result<Answers, String> {
        let messages = messages.to_vec();
        self.run(move |compiled| compiled.answers(&messages, first))
    }

    /// Does something with the template within its limits.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Compiled) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err("the chat template was given up, it ran for too long".into());
        }
        let compiled = Arc::clone(&self.compiled);
        let start = Instant::now();
        let result = sandbox::confine(PATIENCE, move || work(&compiled));
        self.given_up.fetch_or(result.is_err() && start.elapsed() >= PATIENCE, Ordering::Relaxed);
        result.map_err(|reason| format!("the chat template fails: {reason}"))
    }
}

impl Compiled {
    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let turn = |m: &Message| Jinja::from_pairs([("role", m.role), ("content", m.content.as_str())]);
        let turns: Vec<Jinja> = messages.iter().map(turn).collect();
        // Transformers gives every template the last two, mostly as none.
        let mut context = vec![
            ("messages", Jinja::from(turns)),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("tools", Jinja::from(())),
            ("documents", Jinja::from(())),
        ];
        context.extend(self.tokens.iter().map(|(name, text)| (name.as_str(), Jinja::from(text.as_str()))));
        let mut text = Limited(Vec::new());
        let rendered = self
            .environment
            .get_template("chat")
            .and_then(|template| template.render_captured_to(Jinja::from_pairs(context), &mut text).map(drop));
        rendered.map_err(|error| error.to_string())?;
        String::from_utf8(text.0).map_err(|_| "it does not write UTF-8".to_string())
    }

    fn answers(&self, messages: &[Message], first: usize) -> Result<Answers, String> {
        let text = self.render(messages, false)?;
        let mut spans = Vec::new();
        let mut notes = Vec::new();
        let mut rewritten = None;
        let turns = messages.iter().enumerate().skip(first).filter(|(_, message)| message.is_learned());
        for (index, message) in turns {
            let asked = self.render(&messages[..index], true)?;
            let answered = self.render(&messages[..=index], false)?;
            let question = index.checked_sub(1).map_or("", |before| messages[before].content.as_str());
            let renderings =
                Renderings { whole: &text, asked: &asked, answered: &answered, question, answer: &message.content };
            match renderings.locate(&mut notes) {
                Place::Here(span) => spans.push(span),
                Place::Rewritten => rewritten = Some(index),
                Place::Unknown => {
                    return Err(untold("begins the answer differently than its generation prompt does", index));
                }
            }
        }
        if let Some(index) = rewritten {
            if spans.is_empty() {
                return Err(untold("writes earlier turns differently once later ones follow", index));
            }
            notes.push(Note::EarlierAnswersLeftOut);
        }
        Ok(Answers { text, spans, notes })
    }
}

fn untold(what: &str, message: usize) -> String {
    format!("it {what}, so it cannot be told what is learned of message {message}")
}

fn unusable(file: &Path, reason: &str) -> Error {
    let problem = format!("the chat template cannot be used: {reason}");
    Error::input(file, problem, "use the template that came with the model")
}

fn named_default(value: &Value) -> Option<&str> {
    match value {
        Value::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default").or(list.first())?;
            default.get("template")?.as_str()
        }
        other => other.as_str(),
    }
}

/// Output that refuses to grow without end.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAXIMUM_OUTPUT {
            return Err(std::io::Error::other(format!("it writes more than {} MiB", MAXIMUM_OUTPUT >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
