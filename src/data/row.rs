//! What a row means: the shapes that data sets come in, told apart by their keys.

use serde_json::{Map, Value};

use super::samples::Sequence;
use crate::ops::IGNORE_INDEX;

/// The label by which PyTorch marks a token that is not learned.
const NOT_LEARNED: i64 = -100;

/// Shapes that are understood, for messages.
const SHAPES: &str = "give it `text`, `messages`, `conversations`, `prompt` and `response`, `instruction` and `output`, \
                      `prompt`, `chosen` and `rejected`, or `input_ids`";

/// Every key that a row shape reads.
pub const COLUMNS: [&str; 23] = [
    "chosen_input_ids",
    "rejected_input_ids",
    "chosen_labels",
    "rejected_labels",
    "prompt_input_ids",
    "prompt_length",
    "input_ids",
    "labels",
    "attention_mask",
    "chosen",
    "rejected",
    "prompt",
    "messages",
    "conversations",
    "response",
    "completion",
    "system",
    "instruction",
    "input",
    "output",
    "text",
    "text_chunk",
    "txt_chunk",
];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who speaks: system, developer, user, assistant, tool or ipython.
    pub role: &'static str,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Whether the model speaks.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// A row of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// `input_ids`, with or without `labels`.
    Tokens(Sequence),
    /// `chosen_input_ids` and `rejected_input_ids`.
    TokenPair(Sequence, Sequence),
    /// Raw text, all of it learned.
    Text(String),
    /// A conversation of which the assistant's turns are learned.
    Conversation(Vec<Message>),
    /// Two conversations, chosen and rejected, of which the assistant's turns after their common beginning are learned.
    Preference(Vec<Message>, Vec<Message>),
}

/// Why a row cannot be understood, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub problem: String,
    /// What the user can do.
    pub remedy: String,
}

type Understood<T> = Result<T, Problem>;

fn problem<T>(problem: impl Into<String>, remedy: impl Into<String>) -> Understood<T> {
    Err(Problem { problem: problem.into(), remedy: remedy.into() })
}

impl Row {
    /// Understands a row. Keys that are `null` count as absent, and unknown keys are no obstacle.
    pub fn from_json(value: &Value) -> Understood<Self> {
        let Value::Object(object) = value else {
            return problem(format!("{} where a JSON object is expected", kind(value)), SHAPES);
        };
        let get = |key: &str| object.get(key).filter(|value| !value.is_null());
        if let (Some(chosen), Some(rejected)) = (get("chosen_input_ids"), get("rejected_input_ids")) {
            return token_pair(object, chosen, rejected);
        }
        if let Some(ids) = get("input_ids") {
            return tokens(ids, get("labels"), get("attention_mask")).map(Self::Tokens);
        }
        if let (Some(chosen), Some(rejected)) = (get("chosen"), get("rejected")) {
            return preference(get("prompt"), chosen, rejected);
        }
        if let Some((key, turns)) = ["messages", "conversations"].iter().find_map(|key| Some((key, get(key)?))) {
            return messages(key, turns).map(Self::Conversation);
        }
        let answer = ["response", "completion"].iter().find_map(|key| Some((key, get(key)?)));
        if let (Some(prompt), Some((key, answer))) = (get("prompt"), answer) {
            let mut conversation = turns("prompt", prompt, "user")?;
            conversation.extend(turns(key, answer, "assistant")?);
            return Ok(Self::Conversation(conversation));
        }
        if let (Some(instruction), Some(output)) = (get("instruction"), get("output")) {
            return alpaca(get("system"), instruction, get("input"), output);
        }
        let raw = ["text", "text_chunk", "txt_chunk"].iter().find_map(|key| Some((key, get(key)?)));
        if let Some((key, raw)) = raw {
            return Ok(Self::Text(string(key, raw)?.to_string()));
        }
        let keys: Vec<_> = object.keys().take(8).map(|key| format!("{key:?}")).collect();
        problem(format!("no known shape, its keys are {}", keys.join(", ")), SHAPES)
    }

    /// Whether it needs a tokenizer.
    pub fn is_text(&self) -> bool {
        !matches!(self, Self::Tokens(_) | Self::TokenPair(..))
    }

    /// What kind of row it is, for people.
    pub fn shape(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "token ids",
            Self::TokenPair(..) => "preference pair of token ids",
            Self::Text(_) => "text",
            Self::Conversation(_) => "conversation",
            Self::Preference(..) => "preference pair",
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn string<'a>(key: &str, value: &'a Value) -> Understood<&'a str> {
    match value {
        Value::String(text) => Ok(text),
        other => problem(format!("`{key}` is {}, not a string", kind(other)), "give it text"),
    }
}

fn integers(key: &str, value: &Value) -> Understood<Vec<i64>> {
    let Value::Array(values) = value else {
        return problem(format!("`{key}` is {}, not an array of integers", kind(value)), "give it token ids");
    };
    let integer = |value: &Value| value.as_i64();
    match values.iter().map(integer).collect() {
        Some(integers) => Ok(integers),
        None => problem(format!("`{key}` holds something that is not a 64-bit integer"), "give it token ids"),
    }
}

fn ids(key: &str, value: &Value) -> Understood<Vec<u32>> {
    let id = |value: i64| match u32::try_from(value) {
        Ok(id) if id != IGNORE_INDEX => Ok(id),
        _ => problem(format!("`{key}` holds {value}, which is no token id"), "give it token ids"),
    };
    integers(key, value)?.into_iter().map(id).collect()
}

fn labels(key: &str, value: &Value, length: usize) -> Understood<Vec<u32>> {
    let label = |value: i64| match u32::try_from(value) {
        Ok(id) if id != IGNORE_INDEX => Ok(id),
        _ if value == NOT_LEARNED => Ok(IGNORE_INDEX),
        _ => problem(format!("`{key}` holds {value}, neither a token id nor -100"), "mark what is not learned by -100"),
    };
    let labels: Vec<u32> = integers(key, value)?.into_iter().map(label).collect::<Understood<_>>()?;
    if labels.len() != length {
        return problem(
            format!("`{key}` has {} entries for {length} tokens", labels.len()),
            "give every token a label",
        );
    }
    Ok(labels)
}

/// Reads tokens and labels. `attention_mask` may mark padding at either end, which is dropped.
fn tokens(value: &Value, label: Option<&Value>, mask: Option<&Value>) -> Understood<Sequence> {
    let ids = ids("input_ids", value)?;
    let labels = label.map(|value| labels("labels", value, ids.len())).transpose()?.unwrap_or_else(|| ids.clone());
    let Some(mask) = mask else {
        return Ok(Sequence { tokens: ids, labels });
    };
    let mask = integers("attention_mask", mask)?;
    let start = mask.iter().take_while(|&&real| real == 0).count();
    let end = mask.len() - mask[start..].iter().rev().take_while(|&&real| real == 0).count();
    if mask.len() != ids.len() || mask[start..end].iter().any(|&real| real != 1) {
        return problem("`attention_mask` does not mark one run of the tokens by 1", "leave it out, or mend it");
    }
    Ok(Sequence { tokens: ids[start..end].to_vec(), labels: labels[start..end].to_vec() })
}

/// Reads a ready-made preference pair. Labels, the length of the prompt that both begin with, or a prompt that stands apart
/// say which tokens are learned.
fn token_pair(object: &Map<String, Value>, chosen: &Value, rejected: &Value) -> Understood<Row> {
    let get = |key: &str| object.get(key).filter(|value| !value.is_null());
    let prompt = get("prompt_input_ids").map(|value| ids("prompt_input_ids", value)).transpose()?;
    let length = match (get("prompt_length"), &prompt) {
        (_, Some(prompt)) => Some(prompt.len()),
        (Some(value), None) => match value.as_u64().and_then(|length| usize::try_from(length).ok()) {
            Some(length) => Some(length),
            None => return problem("`prompt_length` is not a length", "give it the number of prompt tokens"),
        },
        (None, None) => None,
    };
    let side = |name: &str, value: &Value| {
        let own = ids(&format!("{name}_input_ids"), value)?;
        let tokens: Vec<u32> = prompt.iter().flatten().copied().chain(own).collect();
        let key = format!("{name}_labels");
        let labels = match (get(&key).filter(|_| prompt.is_none()), length) {
            (Some(value), _) => labels(&key, value, tokens.len())?,
            (None, Some(length)) => {
                let learned = |(position, &id): (usize, &u32)| if position < length { IGNORE_INDEX } else { id };
                tokens.iter().enumerate().map(learned).collect()
            }
            (None, None) => {
                let remedy = format!("add `{key}`, `prompt_length` or `prompt_input_ids`");
                return problem("nothing says which tokens are the answer", remedy);
            }
        };
        Ok(Sequence { tokens, labels })
    };
    Ok(Row::TokenPair(side("chosen", chosen)?, side("rejected", rejected)?))
}

/// A list of {role, content} or {from, value}.
fn messages(key: &str, value: &Value) -> Understood<Vec<Message>> {
    let Value::Array(turns) = value else {
        return problem(format!("`{key}` is {}, not an array of messages", kind(value)), "give it a list of turns");
    };
    if turns.is_empty() {
        return problem(format!("`{key}` is empty"), "give it at least a user's and an assistant's turn");
    }
    turns.iter().enumerate().map(|(index, turn)| message(&format!("{key}[{index}]"), turn)).collect()
}

fn message(place: &str, turn: &Value) -> Understood<Message> {
    let Value::Object(object) = turn else {
        return problem(format!("`{place}` is {}, not a message", kind(turn)), "write {\"role\": …, \"content\": …}");
    };
    let get = |keys: [&str; 2]| keys.iter().find_map(|key| object.get(*key));
    let (Some(who), Some(what)) = (get(["role", "from"]), get(["content", "value"])) else {
        return problem(format!("`{place}` has no role or no content"), "write {\"role\": …, \"content\": …}");
    };
    let calls = object.get("tool_calls").is_some_and(|calls| calls.as_array().is_none_or(|list| !list.is_empty()));
    if calls && !object.get("tool_calls").is_some_and(Value::is_null) {
        return problem(format!("`{place}` holds tool calls"), "write the call into the content, as the model would");
    }
    let role = role(string(place, who)?).ok_or_else(|| Problem {
        problem: format!("`{place}` has the unknown role {who}"),
        remedy: "use system, user, assistant or tool (or human and gpt)".into(),
    })?;
    Ok(Message { role, content: content(place, what)? })
}

/// A string, or a list of parts of which all are text.
fn content(place: &str, value: &Value) -> Understood<String> {
    let Value::Array(parts) = value else {
        return Ok(string(place, value)?.to_string());
    };
    let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_string);
    match parts.iter().map(text).collect::<Option<Vec<_>>>() {
        Some(texts) => Ok(texts.concat()),
        None => problem(format!("`{place}` has a part that is not text"), "keep text only"),
    }
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

/// A string said by `role`, or a list of messages.
pub fn turns(key: &str, value: &Value, role: &'static str) -> Understood<Vec<Message>> {
    match value {
        Value::Array(_) => messages(key, value),
        _ => Ok(vec![Message { role, content: string(key, value)?.to_string() }]),
    }
}

fn alpaca(system: Option<&Value>, instruction: &Value, input: Option<&Value>, output: &Value) -> Understood<Row> {
    let text = |key, value: Option<&Value>| match value {
        Some(value) => string(key, value).map(str::to_string),
        None => Ok(String::new()),
    };
    let system = text("system", system)?;
    let input = text("input", input)?;
    let mut user = string("instruction", instruction)?.to_string();
    if !input.is_empty() {
        user = format!("{user}\n\n{input}");
    }
    let mut conversation = Vec::new();
    if !system.is_empty() {
        conversation.push(Message { role: "system", content: system });
    }
    conversation.push(Message { role: "user", content: user });
    conversation.push(Message { role: "assistant", content: string("output", output)?.to_string() });
    Ok(Row::Conversation(conversation))
}

/// `chosen` and `rejected` are answers to `prompt`, or whole conversations as lists or as "Human: … Assistant: …" text.
fn preference(prompt: Option<&Value>, chosen: &Value, rejected: &Value) -> Understood<Row> {
    let mut before = match prompt {
        Some(Value::String(text)) => {
            transcript(text).map_or_else(|| turns("prompt", &text.as_str().into(), "user"), Ok)?
        }
        Some(value) => turns("prompt", value, "user")?,
        None => Vec::new(),
    };
    before.pop_if(|last| last.is_assistant() && last.content.is_empty());
    let side = |key: &str, value: &Value| -> Understood<Vec<Message>> {
        if let Some(whole) = value.as_str().and_then(transcript) {
            return Ok(whole);
        }
        let said = turns(key, value, "assistant")?;
        let is_answer = said.first().is_some_and(Message::is_assistant);
        match (is_answer, before.is_empty()) {
            (true, false) => Ok(before.iter().cloned().chain(said).collect()),
            (false, _) => Ok(said),
            (true, true) => problem(format!("nothing says what `{key}` answers"), "add a `prompt`"),
        }
    };
    Ok(Row::Preference(side("chosen", chosen)?, side("rejected", rejected)?))
}

/// Reads the turns of a text of the form "Human: … Assistant: …", as the HH data sets have it; `None` for other text.
fn transcript(text: &str) -> Option<Vec<Message>> {
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
    let turn = |(&(_, start, role), end): (&(usize, usize, &'static str), usize)| Message {
        role,
        content: text[start..end].trim().to_string(),
    };
    Some(marks.iter().zip(ends).map(turn).collect())
}
