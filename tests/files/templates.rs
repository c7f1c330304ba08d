//! Chat templates: what Jinja2 makes of them (`tests/fixtures/templates/generate.py` asked it), and what of a conversation is
//! learned where a template writes a turn in two ways.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde_json::{Value, json};
use temper::data::{ChatTemplate, Inspection, Message, Row, inspect};

use crate::support::chat_model::{self, BEGIN, LLAMA3};

const FOLDER: &str = "tests/fixtures/templates";

/// A template with what Jinja2 makes of it; nothing where it fails.
#[derive(Deserialize)]
struct Expression {
    source: String,
    text: Option<String>,
}

/// A conversation through a template of the folder.
#[derive(Deserialize)]
struct Conversation {
    template: String,
    conversation: String,
    messages: Value,
    add_generation_prompt: bool,
    text: Option<String>,
}

fn fixture<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(Path::new(FOLDER).join(name)).unwrap()).unwrap()
}

fn messages(messages: &Value) -> Vec<Message> {
    match Row::from_json(&json!({ "messages": messages })).unwrap().row {
        Row::Conversation(messages) => messages,
        other => panic!("{other:?}"),
    }
}

fn render(source: &str, turns: &[Message], add_generation_prompt: bool) -> Result<String, String> {
    let tokens = [("bos_token".to_string(), "<s>".to_string()), ("eos_token".to_string(), "</s>".to_string())];
    let template = ChatTemplate::new(Path::new("x"), source, &tokens).map_err(|error| error.to_string())?;
    template.render(turns, add_generation_prompt)
}

/// What Jinja2 accepts and temper refuses, as `docs/templates.md` says it for people. Each is an error, not another text.
const LEFT_OUT: [&str; 34] = [
    "{{ 'a%sb%d' % ('x', 3) }}",
    "{{ '%s' % 'y' }}",
    "{{ '%.2f' % 1.234 }}",
    "{{ '%05d' % 42 }}",
    "{{ '%%' % () }}",
    "{{ 'a' is callable }}",
    "{{ range is callable }}",
    "{{ raise_exception is callable }}",
    "{{ 'a\\nb' | indent('> ') }}",
    "{{ 'a b c d' | truncate(5) }}",
    "{{ 'abcdefgh' | truncate(5, true, '…', 0) }}",
    "{{ 'one two three four' | wordwrap(9) }}",
    "{{ 'a b' | urlencode }}",
    "{{ {'a': 'b c'} | urlencode }}",
    "{{ messages[0] | attr('role') }}",
    "{{ 'x' | attr('upper') is defined }}",
    "{{ {'class': 'x', 'id': none} | xmlattr }}",
    "{{ [1, {'a': 'b'}] | pprint }}",
    "{{ ['a'] | random }}",
    "{{ lipsum(n=1, html=false) is string }}",
    "{{ 'ß'.casefold() }}",
    "{{ 'Ab Cd'.istitle() }}",
    "{{ 'a_1'.isidentifier() }}",
    "{{ 'a'.isprintable() }}",
    "{{ 'a\\tb'.expandtabs(4) }}",
    "{{ '½'.isdigit() }}",
    "{{ '½'.isnumeric() }}",
    "{{ '²'.isdigit() }}",
    "{{ '²'.isdecimal() }}",
    "{{ '{!r}'.format('a') }}",
    "{{ dict([('a', 1)]) }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ c.current }}",
];

/// What is another text than with Jinja2: how a mapping's views and an unknown global look when they are printed.
const OTHERWISE: [(&str, &str); 3] = [
    ("{{ {'a': 1}.items() }}", "[('a', 1)]"),
    ("{{ {'a': 1}.keys() }}", "['a']"),
    ("{{ lipsum is defined }}", "False"),
];

/// What Jinja2 refuses and temper accepts: no published template has it, since it would not work.
const MORE: [&str; 3] = ["{{ 1 in 'a' }}", "{{ {'a': nothing} | tojson }}", "{% for x in none %}x{% endfor %}"];

/// Every expression, filter, test, method and statement that templates are made of gives the text that Jinja2 gives.
#[test]
fn templates_say_what_jinja2_makes_of_them() {
    let turns = messages(&json!([{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "yes"}]));
    let mut wrong = Vec::new();
    let expressions: Vec<Expression> = fixture("expressions.json");
    assert!(expressions.len() > 400);
    for Expression { source, text } in &expressions {
        let ours = render(source, &turns, true);
        let left_out = LEFT_OUT.contains(&source.as_str());
        let more = MORE.contains(&source.as_str());
        let otherwise = OTHERWISE.iter().find(|(known, _)| known == source);
        let right = match (text, otherwise) {
            (Some(_), Some((_, other))) => ours.as_deref() == Ok(*other),
            (Some(_), None) if left_out => ours.is_err(),
            (Some(text), None) => ours.as_ref() == Ok(text),
            (None, _) => ours.is_err() != more,
        };
        if !right {
            wrong.push(format!("{source}\n  Jinja2 {text:?}\n  temper {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), expressions.len(), wrong.join("\n"));
}

/// Templates with the structure of published ones (Qwen 2.5 and SmolLM2, Qwen 3, Llama 3.1, Mistral, DeepSeek R1's distilled
/// models) render conversations as Jinja2 does, and refuse what they refuse there.
#[test]
fn templates_like_published_ones_render_as_in_jinja2() {
    let conversations: Vec<Conversation> = fixture("conversations.json");
    assert!(conversations.len() > 80);
    for Conversation { template, conversation, messages: turns, add_generation_prompt, text } in conversations {
        let source = std::fs::read_to_string(Path::new(FOLDER).join(&template)).unwrap();
        let ours = render(&source, &messages(&turns), add_generation_prompt);
        match text {
            Some(text) => assert_eq!(ours, Ok(text), "{template}: {conversation}"),
            None => assert!(ours.is_err(), "{template}: {conversation}: {ours:?}"),
        }
    }
}

/// A model directory with a template, and a data file of one row, looked at.
fn looked_at(template: Option<&str>, row: &Value) -> Inspection {
    let home = tempfile::tempdir().unwrap();
    chat_model::write(home.path(), template);
    let path = chat_model::data(home.path(), "data.jsonl", row.to_string());
    inspect(&path, home.path(), 0, 512).unwrap()
}

/// The text of what is learned of a sample; "|" is where one learned stretch ends and another begins.
fn learned(seen: &Inspection) -> String {
    let tokens = &seen.sequences[0].tokens;
    let runs = tokens.chunk_by(|a, b| a.learned == b.learned).filter(|run| run[0].learned);
    let text = |run: &[temper::data::InspectedToken]| run.iter().map(|token| token.piece.clone().unwrap()).collect();
    runs.map(text).collect::<Vec<String>>().join("|")
}

fn published(name: &str) -> String {
    std::fs::read_to_string(Path::new(FOLDER).join(name)).unwrap()
}

fn say(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn thoughts() -> Value {
    let answer = |thought: &str, said: &str| say("assistant", &format!("<think>\n{thought}\n</think>\n\n{said}"));
    json!({"messages": [say("user", "a"), answer("x", "b"), say("user", "c"), answer("y", "d")]})
}

fn plain_chat() -> Value {
    json!({"messages": [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")]})
}

/// What is learned of a conversation by the templates of thinking models and others that write a turn in two ways, and
/// what the user is told about it.
#[test]
fn of_each_answer_is_learned_what_stays_as_it_was_said() {
    let last_only = "only the answers are learned that stay as they are";
    let unfinished = "which the answers of the data do not begin with";
    for (template, row, expected, told) in [
        ("chatml.jinja", plain_chat(), "b<|im_end|>\n|d<|im_end|>\n", vec!["no end token"]),
        ("headers.jinja", plain_chat(), "b<|eot_id|>|d<|eot_id|>", vec![]),
        // Earlier thoughts are dropped by the template, so only the last answer is there as it was said.
        ("thinking.jinja", thoughts(), "<think>\ny\n</think>\n\nd<|im_end|>\n", vec![last_only, "no end token"]),
        ("thinking.jinja", plain_chat(), "<think>\n\n</think>\n\nd<|im_end|>\n", vec![last_only, "no end token"]),
        // All thoughts are dropped, and the prompt begins one: what is said is learned without.
        (
            "distilled.jinja",
            thoughts(),
            "\n\nb<|eot_id|>|\n\nd<|eot_id|>",
            vec![unfinished, "does not write all that the assistant says"],
        ),
        ("distilled.jinja", plain_chat(), "b<|eot_id|>|d<|eot_id|>", vec![unfinished]),
        ("prompted_thought.jinja", plain_chat(), "b<|eot_id|>|d<|eot_id|>", vec![unfinished]),
        // With the thought in the data the prompt's beginning is the answer's.
        ("prompted_thought.jinja", thoughts(), "x\n</think>\n\nb<|eot_id|>|y\n</think>\n\nd<|eot_id|>", vec![]),
        (
            "last_end.jinja",
            plain_chat(),
            "b<|end|>\n|d<|end|>\n<|eot_id|>",
            vec!["behind the last turn only", "no end token"],
        ),
        // The system message is before the last question only as long as nothing answers it.
        (
            "instructions.jinja",
            json!({"messages": [say("system", "s"), say("user", "a"), say("assistant", "b")]}),
            " b<|eot_id|>",
            vec!["differently once the answer is there"],
        ),
        ("instructions.jinja", plain_chat(), " b<|eot_id|>| d<|eot_id|>", vec![]),
    ] {
        let seen = looked_at(Some(&published(template)), &row);
        assert_eq!(learned(&seen), expected, "{template} {row}");
        assert_eq!(seen.notes.len(), told.len(), "{template} {row}: {:?}", seen.notes);
        for what in told {
            assert!(seen.notes.iter().any(|note| note.contains(what)), "{template} {row}: {what}: {:?}", seen.notes);
        }
    }
}

/// A text that went through a template already gets no second start token, nor does a prompt; one that did not gets its own.
#[test]
fn there_is_one_start_token() {
    for text in ["hello", "<|begin_of_text|>hello"] {
        let seen = looked_at(None, &json!({ "text": text }));
        let tokens: Vec<u32> = seen.sequences[0].tokens.iter().map(|token| token.id).collect();
        assert_eq!(tokens, [265, 259], "{text}");
        assert_eq!(learned(&seen), "hello");
    }
    let seen = looked_at(None, &json!({"text": "hello<|begin_of_text|>"}));
    assert_eq!(seen.sequences[0].tokens.len(), 3);
    assert_eq!(looked_at(None, &json!({ "text": BEGIN })).sequences[0].tokens.len(), 1);
    let row = json!({"messages": [say("user", "<|begin_of_text|>a"), say("assistant", "b")]});
    let notes = looked_at(Some(LLAMA3), &row).notes;
    assert!(notes.len() == 1 && notes[0].contains("through a chat template before"), "{notes:?}");
}

/// Whatever ends its lines, and wherever it stands, a template writes `\n`.
#[test]
fn line_ends_of_templates_are_one() {
    let unix = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}\
        <|eot_id|>{% endfor %}\n{% if add_generation_prompt %}\n<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";
    let row = json!({"messages": [say("user", "a\r\nb"), say("assistant", "c")]});
    let expected = looked_at(Some(unix), &row);
    assert!(expected.sequences[0].rendered.as_ref().unwrap().contains("\n\na\r\nb<|eot_id|>"), "data keep their own");
    for end in ["\r\n", "\r"] {
        let other = unix.replace('\n', end);
        assert_eq!(looked_at(Some(&other), &row).sequences, expected.sequences, "{end:?} in tokenizer_config.json");
        let home = tempfile::tempdir().unwrap();
        chat_model::write(home.path(), None);
        std::fs::write(home.path().join("chat_template.jinja"), &other).unwrap();
        let path = chat_model::data(home.path(), "data.jsonl", row.to_string());
        assert_eq!(
            inspect(&path, home.path(), 0, 512).unwrap().sequences,
            expected.sequences,
            "{end:?} in its own file"
        );
    }
}

/// Where nothing ends an answer, the user is told that the model is not taught to stop, whether the settings name no end
/// token or the template writes none.
#[test]
fn answers_without_an_end_are_announced() {
    let row = json!({"messages": [say("user", "hello"), say("assistant", "hello")]});
    let notes = |template: Option<&str>, settings: Option<Value>| {
        let home = tempfile::tempdir().unwrap();
        chat_model::write(home.path(), template);
        let file = home.path().join("tokenizer_config.json");
        match settings {
            Some(settings) => std::fs::write(file, settings.to_string()).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
        let path = chat_model::data(home.path(), "data.jsonl", row.to_string());
        inspect(&path, home.path(), 0, 512).unwrap().notes
    };
    let without_end = json!({"bos_token": BEGIN, "eos_token": null});
    let endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let written = json!({"bos_token": BEGIN, "eos_token": null, "chat_template": endless});
    for settings in [Some(without_end), None, Some(written)] {
        let notes = notes(None, settings);
        assert!(notes.len() == 1 && notes[0].contains("no end token is learned"), "{notes:?}");
    }
    let with_end = json!({"bos_token": BEGIN, "eos_token": "<|eot_id|>"});
    assert_eq!(notes(None, Some(with_end)), Vec::<String>::new());
}

/// What is logged, kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_byte_order_mark_before_a_template_is_announced() {
    let warned = |source: &str| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || ChatTemplate::new(&PathBuf::from("x"), source, &[]).map(drop))
            .unwrap();
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    };
    assert!(warned("\u{feff}{{ messages[0].content }}").contains("byte-order mark"));
    assert_eq!(warned("{{ messages[0].content }}\u{feff}"), "");
}
