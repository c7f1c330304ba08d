//! A four-choice question as data sets hold it: the shape of MMLU's and WMDP's rows, checked.

use serde_json::{Map, Value};

/// The letters of the choices.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// A question with four choices, of which one is right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Question {
    /// What is asked.
    pub question: String,
    /// The choices A to D.
    pub choices: [String; 4],
    /// Index of the right choice.
    pub answer: usize,
    /// What it is about, as the data set spells it (`college_biology`).
    pub subject: Option<String>,
}

impl Question {
    /// Reads a row: `question`, `choices` (four texts), `answer` (0 to 3, or A to D) and, if it has one, `subject`. Other
    /// keys are ignored. Fails with what is wrong, for an error that adds the row's place.
    pub fn from_json(row: &Value) -> Result<Self, String> {
        let Value::Object(row) = row else { return Err("the row is not a JSON object".into()) };
        Ok(Self { question: question(row)?, choices: choices(row)?, answer: answer(row)?, subject: subject(row)? })
    }

    /// The first `most` of `examples` that have this question's subject.
    pub fn examples_among(&self, examples: &[Self], most: usize) -> Vec<Self> {
        examples.iter().filter(|example| example.subject == self.subject).take(most).cloned().collect()
    }

    /// The letter of the right choice.
    pub fn letter(&self) -> &'static str {
        LETTERS[self.answer]
    }
}

fn present<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a Value, String> {
    row.get(key).filter(|value| !value.is_null()).ok_or_else(|| format!("there is no `{key}`"))
}

fn question(row: &Map<String, Value>) -> Result<String, String> {
    let text = present(row, "question")?.as_str().ok_or("`question` is not a text")?;
    if text.trim().is_empty() {
        return Err("`question` is empty".into());
    }
    Ok(text.to_string())
}

fn choices(row: &Map<String, Value>) -> Result<[String; 4], String> {
    let list = present(row, "choices")?.as_array().ok_or("`choices` is not a list")?;
    let texts: Option<Vec<String>> = list.iter().map(|choice| choice.as_str().map(str::to_string)).collect();
    let texts = texts.ok_or("`choices` holds something that is not a text")?;
    let count = texts.len();
    texts.try_into().map_err(|_| format!("`choices` has {count} entries, not four"))
}

fn answer(row: &Map<String, Value>) -> Result<usize, String> {
    let value = present(row, "answer")?;
    let index = match value {
        Value::String(text) => LETTERS.iter().position(|letter| *letter == text.trim()),
        other => other.as_u64().and_then(|index| usize::try_from(index).ok()).filter(|&index| index < 4),
    };
    index.ok_or_else(|| "`answer` is neither a number from 0 to 3 nor a letter from A to D".into())
}

fn subject(row: &Map<String, Value>) -> Result<Option<String>, String> {
    match row.get("subject") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim().to_string())),
        Some(_) => Err("`subject` is not a text".into()),
    }
}
