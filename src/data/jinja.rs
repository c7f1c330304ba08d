//! Chat templates' language as Transformers sets it up: Jinja2 with its own `tojson`, `strftime_now`, `raise_exception` and
//! `{% generation %}`.
//!
//! minijinja has most of Jinja2; here is what it lacks or does otherwise. What of Jinja2 stays out is listed in
//! `docs/templates.md`.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, State, escape_formatter};
use minijinja_contrib::{filters, globals};

use super::python::{JsonOptions, float, is_space, json_dumps, strftime};
use super::python_methods::{self, invalid};

/// Instructions that a template may run for one rendering.
const FUEL: u64 = 2_000_000;
/// How deep macros, loops and values may nest.
const RECURSION: usize = 128;
/// The most spaces by which JSON is indented; Python has no limit.
const MAXIMUM_INDENT: usize = 16;

/// An environment with the template `source` under the name "chat".
pub fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(python_methods::call);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> { Err(invalid(message)) });
    environment.add_function("strftime_now", |format: &str| strftime(format).map_err(invalid));
    environment.set_formatter(|out, state, value| match as_float(value) {
        Some(number) => escape_formatter(out, state, &Value::from(float(number))),
        None => escape_formatter(out, state, value),
    });
    environment.add_function("joiner", globals::joiner);
    environment.add_filter("tojson", to_json);
    environment.add_filter("trim", trim);
    environment.add_filter("int", to_int);
    environment.add_filter("float", to_float);
    environment.add_filter("center", center);
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_filter("striptags", filters::striptags);
    environment.add_filter("filesizeformat", filters::filesizeformat);
    environment.add_filter("wordcount", |text: String| text.split_whitespace().count());
    // These say something else than Jinja2's of the same name; an unknown filter is an error.
    environment.remove_filter("attr");
    environment.remove_filter("pprint");
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_template_owned("chat", without_generation_marks(&normalised(source)))?;
    Ok(environment)
}

/// Line ends as Jinja2 reads them: all of them are one `\n`. Escapes in texts (`'\r\n'`) are no line ends.
fn normalised(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
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

/// `tojson` with the options that Transformers gives it, in its order: without escaping for HTML, and not ASCII only unless
/// asked.
fn to_json(value: Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(invalid("an undefined value has no JSON"));
    }
    let option = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = positional.get(place).cloned();
        Ok(given.or(options.get::<Option<Value>>(name)?).filter(|value| !value.is_none()))
    };
    let indent = match option(1, "indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_string),
        Some(number) => {
            let spaces = number.as_i64().ok_or_else(|| invalid("`indent` is neither a number nor a text"))?;
            Some(" ".repeat(spaces.clamp(0, MAXIMUM_INDENT as i64) as usize))
        }
    };
    let separators = match option(2, "separators")? {
        None => None,
        Some(pair) => {
            let pair: Vec<String> = pair.try_iter()?.map(|text| text.to_string()).collect();
            let [item, key]: [String; 2] = pair.try_into().map_err(|_| invalid("`separators` is no pair"))?;
            Some((item, key))
        }
    };
    let is_on = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let written = JsonOptions {
        ensure_ascii: is_on(option(0, "ensure_ascii")?),
        indent,
        separators,
        sort_keys: is_on(option(3, "sort_keys")?),
    };
    options.assert_all_used()?;
    let value = serde_json::to_value(&value).map_err(|error| invalid(error.to_string()))?;
    Ok(json_dumps(&value, &written))
}

/// `trim` with what Python takes for white space, and as in Jinja2 for any value's text.
fn trim(value: &Value, characters: Option<Cow<'_, str>>) -> String {
    let text = value.to_string();
    match characters {
        Some(characters) => text.trim_matches(|letter| characters.contains(letter)).to_string(),
        None => text.trim_matches(is_space).to_string(),
    }
}

fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    f64::try_from(value.clone()).ok().filter(|_| is_float)
}

/// `int` as in Jinja2: what is no number is the default, which is 0.
fn to_int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(options.get("default")?).unwrap_or(Value::from(0));
    minijinja::filters::int(state, value, Some(default), base, options)
}

/// `float` as in Jinja2: what is no number is the default, which is 0.0.
fn to_float(state: &State, value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = default.or(options.get("default")?).unwrap_or(Value::from(0.0));
    minijinja::filters::float(state, value, Some(default), options)
}

/// `escape` with the references that Jinja2 writes.
fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let references = [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&#34;"), ('\'', "&#39;")];
    let text = value.to_string();
    Value::from_safe_string(references.iter().fold(text, |text, (letter, reference)| text.replace(*letter, reference)))
}

fn center(state: &State, value: &Value, width: Option<usize>) -> Result<String, Error> {
    python_methods::padded(state, &value.to_string(), width.unwrap_or(80), ' ', python_methods::Side::Both)
}
