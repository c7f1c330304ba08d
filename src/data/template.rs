//! Chat templates: Jinja programs of untrusted model directories, run with limits.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde_json::Value;

use super::messages::Message;
use super::python::{json_dumps, strftime};
use super::sandbox;
use super::tokenizer::settings;
use crate::error::{Error, Result};
use crate::files::read_capped;

/// Instructions that a template may run for one rendering.
const FUEL: u64 = 2_000_000;
/// How long a rendering may take; a template that gets around the limit on instructions is stopped by this one. Real ones
/// take well below a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);
/// How deep macros, loops and values may nest.
const RECURSION: usize = 128;
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
        let source = without_generation_marks(source);
        let compiled = sandbox::confine(PATIENCE, || compile(source).map_err(|error| error.to_string()));
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
    /// turn itself. The assistant says the bytes that the second has beyond the first. Fails if the template does not render
    /// the beginning of a conversation as the beginning.
    pub fn answers(&self, messages: &[Message], first: usize) -> Result<(String, Vec<Range<usize>>), String> {
        let messages = messages.to_vec();
        self.run(move |compiled| {
            let text = compiled.render(&messages, false)?;
            let turns = (first..messages.len()).filter(|&index| messages[index].is_learned());
            let spans = turns.map(|index| compiled.answer(&text, &messages, index)).collect::<Result<_, _>>()?;
            Ok((text, spans))
        })
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
        let mut context =
            vec![("messages", Jinja::from(turns)), ("add_generation_prompt", add_generation_prompt.into())];
        context.extend(self.tokens.iter().map(|(name, text)| (name.as_str(), Jinja::from(text.as_str()))));
        let mut text = Limited(Vec::new());
        let rendered = self
            .environment
            .get_template("chat")
            .and_then(|template| template.render_captured_to(Jinja::from_pairs(context), &mut text).map(drop));
        rendered.map_err(|error| error.to_string())?;
        String::from_utf8(text.0).map_err(|_| "it does not write UTF-8".to_string())
    }

    /// Finds the bytes of `text` (the whole conversation, rendered) that the assistant says in message `index`.
    fn answer(&self, text: &str, messages: &[Message], index: usize) -> Result<Range<usize>, String> {
        let before = self.render(messages.get(..index).unwrap_or_default(), true)?;
        let after = self.render(messages.get(..=index).unwrap_or_default(), false)?;
        if text.starts_with(&after) && after.starts_with(&before) {
            return Ok(before.len()..after.len());
        }
        let what = if after.starts_with(&before) {
            "writes earlier turns differently once later ones follow"
        } else {
            "begins the answer differently than its generation prompt does"
        };
        Err(format!("it {what}, so it cannot be told what is learned of message {index}"))
    }
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

/// An environment as Transformers sets it up, with the template under the name "chat".
fn compile(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| strftime(format).map_err(invalid));
    environment.add_filter("tojson", to_json);
    environment.add_template_owned("chat", source)?;
    Ok(environment)
}

fn invalid(reason: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, reason)
}

/// `tojson` with the options that Transformers gives it: without escaping for HTML, and not ASCII only unless asked.
fn to_json(value: Jinja, positional: Rest<Jinja>, options: Kwargs) -> Result<String, minijinja::Error> {
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let named: Option<usize> = options.get("indent")?;
    let indent = named.or_else(|| positional.get(1).or(positional.first())?.as_usize());
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let value = serde_json::to_value(&value).map_err(|error| invalid(error.to_string()))?;
    json_dumps(&value, ascii.unwrap_or(false), indent, separators.as_deref(), sort_keys.unwrap_or(false))
        .map_err(invalid)
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

/// Hugging Face marks the assistant's text with `{% generation %}` … `{% endgeneration %}`, which Jinja does not know. A
/// block that is always taken replaces it, so that white space is treated as it would be.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        text.push_str(before);
        text.push_str("{%");
        let Some((inside, after)) = tag.split_once("%}") else {
            rest = tag;
            break;
        };
        let name = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        text.push_str(&inside.replacen(name, replacement, 1));
        text.push_str("%}");
        rest = after;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let tokens = [("bos_token".to_string(), "<s>".to_string()), ("eos_token".to_string(), "</s>".to_string())];
        let template = ChatTemplate::new(Path::new("x"), source, &tokens).map_err(|error| error.to_string())?;
        let message = |role, content: &str| Message::new(role, content);
        template.render(&[message("user", "hi there"), message("assistant", "yes")], true)
    }

    #[test]
    fn what_published_templates_use_works() {
        for (source, expected) in [
            ("{{ bos_token }}{{ messages[0].content.split()[0].upper() }}", "<s>HI"),
            ("{{ {'b': [1, 'é<'], 'a': none} | tojson }}", "{\"b\": [1, \"é<\"], \"a\": null}"),
            ("{{ messages[0] | tojson }}", "{\"role\": \"user\", \"content\": \"hi there\"}"),
            ("{{ [1] | tojson(indent=2, ensure_ascii=False) }}", "[\n  1\n]"),
            ("{{ 'é' | tojson(ensure_ascii=True) }}", "\"\\u00e9\""),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}", "hi thereyes"),
            ("a {%- generation -%} b {%-endgeneration%} c", "ab c"),
            ("{% if add_generation_prompt %}\nyes\n{% endif %}", "yes\n"),
            ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
            ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}.", "x."),
            ("{% if tools is defined and tools %}t{% endif %}{{ date_string is defined }}", "False"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "1assistant"),
            (PLAIN, "<s>User: hi there\n\nAssistant: yes</s>\n\nAssistant:"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
    }
}
