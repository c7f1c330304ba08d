//! The shapes of rows that users arrive with, told apart by their keys.

use serde_json::{Map, Value};

use super::samples::{Sample, Sequence};
use super::text::{Message, TextError, Tokeniser};
use crate::ops::IGNORE_INDEX;

/// A row, understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Row {
    /// `input_ids`, and `labels` with -100 for what is not learned.
    Tokens(Sequence),
    /// `chosen_input_ids`, `rejected_input_ids`, with `chosen_labels`, `rejected_labels` or `prompt_length`.
    TokenPair(Sequence, Sequence),
    /// `text` (or `text_chunk`, `txt_chunk`).
    Text(String),
    /// A conversation; the assistant's turns are learned.
    Chat(Vec<Message>),
    /// Two conversations that differ in the last turn.
    Preference(Vec<Message>, Vec<Message>),
}

const TEXT_KEYS: [&str; 3] = ["text", "text_chunk", "txt_chunk"];

impl Row {
    /// Understands a row; the error says what is wrong with it.
    pub(super) fn parse(row: Map<String, Value>) -> Result<Self, String> {
        let has = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
        if has("input_ids") {
            return Ok(Self::Tokens(sequence(&row, "input_ids", "labels")?));
        }
        if has("chosen_input_ids") {
            let mut pair = [
                sequence(&row, "chosen_input_ids", "chosen_labels")?,
                sequence(&row, "rejected_input_ids", "rejected_labels")?,
            ];
            if let Some(prompt) = row.get("prompt_length") {
                let length = prompt.as_u64().ok_or("`prompt_length` is not a whole number")? as usize;
                pair.iter_mut().for_each(|s| s.labels.iter_mut().take(length).for_each(|l| *l = IGNORE_INDEX));
            }
            let [chosen, rejected] = pair;
            return Ok(Self::TokenPair(chosen, rejected));
        }
        if has("chosen") && has("rejected") {
            return preference(&row);
        }
        if let Some(key) = ["messages", "conversations"].into_iter().find(|key| has(key)) {
            return Ok(Self::Chat(messages(&row[key], key)?));
        }
        if let Some(key) = TEXT_KEYS.into_iter().find(|key| has(key)) {
            return Ok(Self::Text(text(&row, key)?));
        }
        if has("prompt") {
            let answer = if has("response") { "response" } else { "completion" };
            return Ok(Self::Chat(turn(text(&row, "prompt")?, text(&row, answer)?)));
        }
        if has("instruction") {
            let mut prompt = text(&row, "instruction")?;
            if has("input") && !text(&row, "input")?.is_empty() {
                prompt = format!("{prompt}\n\n{}", text(&row, "input")?);
            }
            return Ok(Self::Chat(turn(prompt, text(&row, "output")?)));
        }
        let keys: Vec<&str> = row.keys().map(String::as_str).take(8).collect();
        Err(format!("no known shape: it has the keys [{}]", keys.join(", ")))
    }

    /// Tokens and labels of a row.
    pub(super) fn tokenise(&self, tokeniser: &Tokeniser) -> Result<Sample, TextError> {
        Ok(match self {
            Self::Tokens(sequence) => Sample::One(sequence.clone()),
            Self::TokenPair(chosen, rejected) => Sample::Pair(chosen.clone(), rejected.clone()),
            Self::Text(text) => Sample::One(Sequence::plain(tokeniser.text(text)?)),
            Self::Chat(messages) => Sample::One(tokeniser.chat(messages)?),
            Self::Preference(chosen, rejected) => {
                Sample::Pair(tokeniser.last_turn(chosen)?, tokeniser.last_turn(rejected)?)
            }
        })
    }
}

fn turn(prompt: String, answer: String) -> Vec<Message> {
    vec![Message { role: "user".into(), content: prompt }, Message { role: "assistant".into(), content: answer }]
}

fn text(row: &Map<String, Value>, key: &str) -> Result<String, String> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("`{key}` is {}, not a text", kind(other))),
        None => Err(format!("`{key}` is missing")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn sequence(row: &Map<String, Value>, ids: &str, labels: &str) -> Result<Sequence, String> {
    let list = |key: &str| match row.get(key) {
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(format!("`{key}` is {}, not a list", kind(other))),
        None => Err(format!("`{key}` is missing")),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| id != IGNORE_INDEX);
    let tokens: Option<Vec<u32>> = list(ids)?.iter().map(id).collect();
    let tokens = tokens.ok_or(format!("`{ids}` holds something that is not a token id"))?;
    if !row.get(labels).is_some_and(|value| !value.is_null()) {
        return Ok(Sequence::plain(tokens));
    }
    let label = |value: &Value| if value.as_i64() == Some(-100) { Some(IGNORE_INDEX) } else { id(value) };
    let found: Option<Vec<u32>> = list(labels)?.iter().map(label).collect();
    let found = found.ok_or(format!("`{labels}` holds something that is neither a token id nor -100"))?;
    if found.len() != tokens.len() {
        return Err(format!("`{labels}` has {} entries and `{ids}` {}", found.len(), tokens.len()));
    }
    Ok(Sequence { tokens, labels: found })
}

/// `[{role, content}]`, or ShareGPT's `[{from, value}]`.
fn messages(value: &Value, key: &str) -> Result<Vec<Message>, String> {
    let Value::Array(list) = value else { return Err(format!("`{key}` is {}, not a list", kind(value))) };
    if list.is_empty() {
        return Err(format!("`{key}` is empty"));
    }
    list.iter().map(message).collect()
}

fn message(value: &Value) -> Result<Message, String> {
    let Value::Object(map) = value else { return Err(format!("a message is {}, not an object", kind(value))) };
    let (role, content) = match map.contains_key("from") {
        true => (text(map, "from")?, text(map, "value")?),
        false => (text(map, "role")?, text(map, "content")?),
    };
    let role = match role.as_str() {
        "human" | "user" => "user",
        "gpt" | "model" | "assistant" => "assistant",
        "system" => "system",
        other => return Err(format!("unknown role `{other}`; known are system, user and assistant")),
    };
    Ok(Message { role: role.into(), content })
}

/// `prompt`, `chosen`, `rejected` as texts; `chosen` and `rejected` as conversations; or as the texts of Anthropic's HH
/// data, whose turns begin with "Human:" and "Assistant:".
fn preference(row: &Map<String, Value>) -> Result<Row, String> {
    if let (Some(Value::Array(_)), Some(Value::Array(_))) = (row.get("chosen"), row.get("rejected")) {
        let mut both = [messages(&row["chosen"], "chosen")?, messages(&row["rejected"], "rejected")?];
        if let Some(Value::String(prompt)) = row.get("prompt") {
            for one in &mut both {
                if one.len() == 1 {
                    one.insert(0, Message { role: "user".into(), content: prompt.clone() });
                }
            }
        }
        let [chosen, rejected] = both;
        return Ok(Row::Preference(chosen, rejected));
    }
    let (chosen, rejected) = (text(row, "chosen")?, text(row, "rejected")?);
    if row.get("prompt").is_some_and(|prompt| !prompt.is_null()) {
        let prompt = text(row, "prompt")?;
        return Ok(Row::Preference(turn(prompt.clone(), chosen), turn(prompt, rejected)));
    }
    Ok(Row::Preference(turns(&chosen)?, turns(&rejected)?))
}

/// Splits "Human: … Assistant: …".
fn turns(text: &str) -> Result<Vec<Message>, String> {
    let mut messages: Vec<Message> = Vec::new();
    for part in text.split("\n\n") {
        let role = [("Human:", "user"), ("Assistant:", "assistant")]
            .into_iter()
            .find_map(|(mark, role)| part.trim_start().strip_prefix(mark).map(|rest| (role, rest.trim_start())));
        match (role, messages.last_mut()) {
            (Some((role, content)), _) => messages.push(Message { role: role.into(), content: content.into() }),
            (None, Some(last)) => last.content = format!("{}\n\n{part}", last.content),
            (None, None) if part.trim().is_empty() => {}
            (None, None) => return Err("the text does not begin with `Human:`".into()),
        }
    }
    match messages.last() {
        Some(last) if last.role == "assistant" => Ok(messages),
        _ => Err("the text does not end with a turn of `Assistant:`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Row, String> {
        Row::parse(serde_json::from_str(json).unwrap())
    }

    fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message { role: (*role).into(), content: (*content).into() }).collect()
    }

    #[test]
    fn every_shape_is_recognised() {
        let question = chat(&[("user", "q"), ("assistant", "a")]);
        for json in [
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            r#"{"prompt": "q", "response": "a"}"#,
            r#"{"prompt": "q", "completion": "a"}"#,
            r#"{"instruction": "q", "input": "", "output": "a"}"#,
        ] {
            assert_eq!(parse(json).unwrap(), Row::Chat(question.clone()), "{json}");
        }
        assert_eq!(parse(r#"{"txt_chunk": "t"}"#).unwrap(), Row::Text("t".into()));
        let labels = parse(r#"{"input_ids": [5, 6], "labels": [-100, 6]}"#).unwrap();
        assert_eq!(labels, Row::Tokens(Sequence { tokens: vec![5, 6], labels: vec![IGNORE_INDEX, 6] }));
        let refused = chat(&[("user", "q"), ("assistant", "no")]);
        for json in [
            r#"{"prompt": "q", "chosen": "a", "rejected": "no"}"#,
            r#"{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: no"}"#,
        ] {
            assert_eq!(parse(json).unwrap(), Row::Preference(question.clone(), refused.clone()), "{json}");
        }
    }

    #[test]
    fn rows_of_no_use_say_why() {
        for (json, says) in [
            (r#"{"question": 1}"#, "no known shape: it has the keys [question]"),
            (r#"{"input_ids": [1, -1]}"#, "not a token id"),
            (r#"{"input_ids": [1.5]}"#, "not a token id"),
            (r#"{"input_ids": [4294967295]}"#, "not a token id"),
            (r#"{"input_ids": 7}"#, "`input_ids` is a number, not a list"),
            (r#"{"input_ids": [1], "labels": [1, 2]}"#, "`labels` has 2 entries"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (r#"{"messages": "x"}"#, "not a list"),
            (r#"{"messages": [{"role": "tool", "content": "x"}]}"#, "unknown role `tool`"),
            (r#"{"messages": [{"role": "user"}]}"#, "`content` is missing"),
            (r#"{"text": 5}"#, "`text` is a number"),
            (r#"{"prompt": "q"}"#, "`completion` is missing"),
            (r#"{"chosen": "x", "rejected": "y"}"#, "Human"),
        ] {
            let message = parse(json).unwrap_err();
            assert!(message.contains(says), "{json}: {message}");
        }
    }
}
