//! Conversations: the turns of a row, who speaks and what is said, and whether it is learned.

use serde_json::Value;

use super::row::{Problem, Understood, integer, kind, problem, string};
use super::shapes::{Fields, Names, Unread};

/// Keys of who speaks.
pub const ROLE: Names = &["role", "from"];
/// Keys of what is said.
pub const CONTENT: Names = &["content", "value"];
/// Keys by which a message says whether it is learned: OpenAI's, Axolotl's, ms-swift's.
const LEARNED: [&str; 4] = ["weight", "train", "training", "loss"];
/// Keys that hold calls of tools.
const CALLS: [&str; 2] = ["tool_calls", "function_call"];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who speaks: system, developer, user, assistant, tool or ipython.
    pub role: &'static str,
    /// What is said.
    pub content: String,
    /// Whether it may be learned, where the assistant says it.
    #[serde(skip)]
    pub learned: bool,
}

impl Message {
    /// What `role` says; learned where it is the assistant.
    pub fn new(role: &'static str, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), learned: true }
    }

    /// Whether the model speaks.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// Whether the model speaks and learns to.
    pub fn is_learned(&self) -> bool {
        self.is_assistant() && self.learned
    }
}

/// Turns, and the keys of them that are passed over.
pub struct Turns<'a> {
    /// Where keys are noted that would change what is learned elsewhere.
    pub unread: &'a mut Vec<Unread>,
}

impl Turns<'_> {
    /// A list of {role, content} or {from, value}.
    pub fn messages(&mut self, key: &str, value: &Value) -> Understood<Vec<Message>> {
        let Value::Array(turns) = value else {
            return problem(format!("`{key}` is {}, not an array of messages", kind(value)), "give it a list of turns");
        };
        if turns.is_empty() {
            return problem(format!("`{key}` is empty"), "give it at least a user's and an assistant's turn");
        }
        turns.iter().enumerate().map(|(index, turn)| self.message(&format!("{key}[{index}]"), turn)).collect()
    }

    /// A string said by `role`, or a list of messages.
    pub fn said(&mut self, key: &str, value: &Value, role: &'static str) -> Understood<Vec<Message>> {
        match value {
            Value::Array(_) => self.messages(key, value),
            _ => Ok(vec![Message::new(role, string(key, value)?)]),
        }
    }

    fn message(&mut self, place: &str, turn: &Value) -> Understood<Message> {
        let Value::Object(object) = turn else {
            return problem(
                format!("`{place}` is {}, not a message", kind(turn)),
                "write {\"role\": …, \"content\": …}",
            );
        };
        let fields = Fields::new(object);
        let (Some((_, who)), Some((_, what))) = (fields.get(ROLE), fields.get(CONTENT)) else {
            return problem(format!("`{place}` has no role or no content"), "write {\"role\": …, \"content\": …}");
        };
        let calls = |key: &&str| {
            let calls = object.get(*key).filter(|calls| !calls.is_null());
            calls.is_some_and(|calls| calls.as_array().is_none_or(|list| !list.is_empty()))
        };
        if CALLS.iter().any(calls) {
            let remedy = "write the call into the content, as the model would";
            return problem(format!("`{place}` holds tool calls"), remedy);
        }
        let role = role(string(place, who)?).ok_or_else(|| Problem {
            problem: format!("`{place}` has the unknown role {who}"),
            remedy: "use system, user, assistant or tool (or human and gpt)".into(),
        })?;
        self.unread.extend(fields.unread_in_message());
        let learned = self.learned(place, fields, role)?;
        Ok(Message { role, content: content(place, what)?, learned })
    }

    /// Whether the keys of a message let it be learned; a share of a message cannot be.
    fn learned(&mut self, place: &str, fields: Fields, role: &str) -> Understood<bool> {
        let mut learned = true;
        for key in &LEARNED {
            let Some((key, value)) = fields.get(std::slice::from_ref(key)) else { continue };
            let flag = match (value.as_bool(), integer(value)) {
                (Some(flag), _) => Some(flag),
                (None, Some(0)) => Some(false),
                (None, Some(1)) => Some(true),
                (None, _) => None,
            };
            let Some(flag) = flag else {
                let remedy = "write 1 or true for what is learned, 0 or false for what is not";
                return problem(format!("`{key}` of `{place}` is {value}, neither 0 nor 1"), remedy);
            };
            if value.as_bool() == Some(true) && role != "assistant" {
                self.unread.push((key, "only the assistant's turns are learned"));
            }
            learned &= flag;
        }
        Ok(learned)
    }
}

/// A string, or a list of parts of which all are text. Parts that are null, or whose text is, say nothing.
fn content(place: &str, value: &Value) -> Understood<String> {
    let Value::Array(parts) = value else {
        return Ok(string(place, value)?.to_string());
    };
    let is_filled = |part: &&Value| match part {
        Value::Object(object) => object.get("text").is_none_or(|text| !text.is_null()) || !is_text(object),
        other => !other.is_null(),
    };
    let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_string);
    match parts.iter().filter(is_filled).map(text).collect::<Option<Vec<_>>>() {
        Some(texts) => Ok(texts.concat()),
        None => problem(format!("`{place}` has a part that is not text"), "keep text only"),
    }
}

/// Whether a part of a content has nothing but text in it: a type that says so, and no other key that is filled.
fn is_text(part: &serde_json::Map<String, Value>) -> bool {
    let is_text = |(key, value): (&String, &Value)| value.is_null() || (key == "type" && value == "text");
    part.iter().all(is_text)
}

fn role(name: &str) -> Option<&'static str> {
    Some(match name {
        "system" => "system",
        "developer" => "developer",
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "model" => "assistant",
        "tool" | "function" | "observation" => "tool",
        "ipython" => "ipython",
        _ => return None,
    })
}

/// Reads the turns of a text of the form "Human: … Assistant: …", as the HH data sets have it; `None` for other text.
pub fn transcript(text: &str) -> Option<Vec<Message>> {
    const SPEAKERS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    let text = format!("\n\n{}", text.trim_start());
    if !text.starts_with(SPEAKERS[0].0) {
        return None;
    }
    let mut marks: Vec<_> = SPEAKERS
        .iter()
        .flat_map(|&(mark, role)| text.match_indices(mark).map(move |(at, _)| (at, at + mark.len(), role)))
        .collect();
    marks.sort_unstable();
    let ends = marks.iter().skip(1).map(|mark| mark.0).chain([text.len()]);
    let turn =
        |(&(_, start, role), end): (&(usize, usize, &'static str), usize)| Message::new(role, text[start..end].trim());
    Some(marks.iter().zip(ends).map(turn).collect())
}
