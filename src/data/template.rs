//! Chat templates: Jinja programs of untrusted model directories, run with limits.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde_json::Value;

use super::text::{Message, TextError};
use crate::error::{Error, Result};

/// Instructions that a template may run for one conversation.
const FUEL: u64 = 2_000_000;
/// Longest text that it may produce.
const MAX_OUTPUT: usize = 16 << 20;
/// What templates that print the date get: a fixed day, so that a run does not depend on when it is started.
const DATE: &str = "26 Jul 2024";

/// Used where a model directory has no template: announced, and easy to recognise in `temper data inspect`.
const PLAIN: &str = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n\
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// A model's chat template.
pub(super) struct Template {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl Template {
    /// Compiles `source`, or the plain template where there is none; `file` is named in errors.
    pub(super) fn new(source: Option<String>, bos_token: String, eos_token: String, file: &Path) -> Result<Self> {
        let source = source.unwrap_or_else(|| {
            tracing::warn!("{}: no chat template; turns are written as `role: text`", file.display());
            PLAIN.to_string()
        });
        let mut environment = Environment::new();
        let refuse = |error: minijinja::Error| {
            Error::input(file, format!("its chat template cannot be read: {error}"), "mend the template")
        };
        // As Transformers sets it up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refuse)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(64);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |_format: String| DATE);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned("chat", without_generation_marks(&source)).map_err(refuse)?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// Renders a conversation.
    pub(super) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let turn = |m: &Message| Jinja::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let turns: Vec<Jinja> = messages.iter().map(turn).collect();
        let context = minijinja::context! {
            messages => turns,
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            date_string => DATE,
        };
        let refuse = |error: minijinja::Error| TextError(format!("the chat template fails: {error}"));
        let template = self.environment.get_template("chat").map_err(refuse)?;
        let mut text = Limited(Vec::new());
        template.render_captured_to(context, &mut text).map_err(refuse)?;
        String::from_utf8(text.0).map_err(|_| TextError("the chat template does not write UTF-8".into()))
    }
}

/// Output that refuses to grow without end.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::Error::other("it writes more than 16 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Hugging Face marks the assistant's text with `{% generation %}` … `{% endgeneration %}`, which Jinja does not know.
fn without_generation_marks(source: &str) -> String {
    let mut text = source.to_string();
    for name in ["generation", "endgeneration"] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            let kept = match (open, close) {
                ("{%", "%}") => "",
                ("{%-", "%}") => "{%- if true %}{% endif %}",
                ("{%", "-%}") => "{% if true %}{% endif -%}",
                _ => "{%- if true %}{% endif -%}",
            };
            text = text.replace(&format!("{open} {name} {close}"), kept);
        }
    }
    text
}

/// `tojson(indent=…, ensure_ascii=…)` as Transformers offers it: without escaping for HTML.
fn to_json(value: Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for compatibility; text is always written as it is.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let refuse = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let json: Value = serde_json::to_value(&value).map_err(refuse)?;
    let Some(indent) = indent else { return Ok(python_json(&json)) };
    let spaces = vec![b' '; indent.min(16)];
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    serde::Serialize::serialize(&json, &mut serializer).map_err(refuse)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Python's separators: ", " and ": ".
fn python_json(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[{}]", list.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pair =
                |(key, value): (&String, &Value)| format!("{}: {}", Value::String(key.clone()), python_json(value));
            format!("{{{}}}", map.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let template = Template::new(Some(source.into()), "<s>".into(), "</s>".into(), Path::new("x"))
            .map_err(|error| error.to_string())?;
        let messages = [Message { role: "user".into(), content: "hi there".into() }];
        template.render(&messages, true).map_err(|error| error.0)
    }

    #[test]
    fn what_published_templates_use_works() {
        for (source, expected) in [
            ("{{ bos_token }}{{ messages[0].content.split()[0].upper() }}", "<s>HI"),
            ("{{ {'a': [1, 'é']} | tojson }}", "{\"a\": [1, \"é\"]}"),
            ("{{ [1] | tojson(indent=2, ensure_ascii=False) }}", "[\n  1\n]"),
            ("{{ strftime_now('%d %b %Y') }}", DATE),
            ("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}", "hi there"),
            ("{% if add_generation_prompt %}\nyes\n{% endif %}", "yes\n"),
            ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}.", "."),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn hostile_templates_are_stopped() {
        for source in [
            "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}",
            "{% for a in range(1000000000) %}{% endfor %}",
            "{{ 'a' * 10000000000 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% for a in range(9000) %}{{ 'a' * 9000 }}{% endfor %}",
            "{{ raise_exception('no system role') }}",
            "{{ nothing.at.all }}",
            "{% if %}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
        assert!(render("{{ raise_exception('no system role') }}").unwrap_err().contains("no system role"));
    }
}
