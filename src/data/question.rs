//! A multiple-choice question as data sets hold it: the shapes of MMLU's, MMLU-Pro's and WMDP's rows, checked.

use std::fmt;

use serde_json::Value;

use super::columns::DataFile;
use super::reader::all_rows;
use super::row::{Problem, Understood, integer, kind, problem, string};
use super::shapes::{Fields, Names, Purpose, names};
use crate::error::{Error, Result};

/// The letters of the choices.
pub const LETTERS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

/// A question with two to ten choices, of which one is right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Question {
    /// What is asked.
    pub question: String,
    /// The choices, A first.
    pub choices: Vec<String>,
    /// Index of the right choice.
    pub answer: usize,
    /// What it is about, as the data set spells it (`college_biology`).
    pub subject: Option<String>,
}

impl Question {
    /// Reads a row: `question`, `choices` (a list, an object of letters, or columns `A`, `B`, …), `answer` (an index from 0, a
    /// letter, or the right choice) and, if it has one, `subject`; or columns that other data sets have for them. Keys that
    /// are `null` count as absent.
    pub fn from_json(row: &Value) -> Understood<Self> {
        let Value::Object(row) = row else {
            return problem(format!("{} where a JSON object is expected", kind(row)), "write an object of columns");
        };
        let row = Fields::new(row);
        let (Some(asked), Some(right), true) = (row.get(names::QUESTION), row.get(names::RIGHT), row.has_choices())
        else {
            return Err(row.no_shape(Purpose::Questions));
        };
        let choices = row.get(names::CHOICES).map_or_else(|| lettered(row), listed)?;
        let answer = answer(right, &choices)?;
        Ok(Self { question: question(asked)?, choices, answer, subject: subject(row)? })
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

impl fmt::Display for Question {
    /// The question and its choices, the right one marked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.question)?;
        for ((index, choice), letter) in self.choices.iter().enumerate().zip(LETTERS) {
            let mark = if index == self.answer { '+' } else { ' ' };
            write!(f, "\n{mark} {letter}. {choice}")?;
        }
        self.subject.as_ref().map_or(Ok(()), |subject| write!(f, "\n  subject: {subject}"))
    }
}

/// The questions of a file or a directory.
pub fn read_questions(data: impl Into<DataFile>) -> Result<Vec<Question>> {
    let data = data.into();
    let mut questions = Vec::new();
    for row in all_rows(&data)? {
        let (place, value) = row?.value()?;
        let question = Question::from_json(&value);
        questions.push(question.map_err(|Problem { problem, remedy }| place.error(problem, remedy))?);
    }
    if questions.is_empty() {
        return Err(Error::input(&data.path, "there is no question", "give rows of question, choices and answer"));
    }
    Ok(questions)
}

/// A column of a row: its name and its value.
type Column<'a> = (&'static str, &'a Value);

fn question((key, text): Column) -> Understood<String> {
    let text = string(key, text)?;
    if text.trim().is_empty() {
        return problem("`question` is empty", "mend the row or remove it");
    }
    Ok(text.to_string())
}

/// The choices of a list, or of an object of letters. Tables pad lists with nulls at their end.
fn listed((key, list): Column) -> Understood<Vec<String>> {
    let list = match list {
        Value::Array(list) => list,
        Value::Object(choices) => return lettered(Fields::new(choices)),
        other => {
            let remedy = "write the file as Parquet or JSON, which have lists";
            return problem(format!("`{key}` is {}, not a list", kind(other)), remedy);
        }
    };
    let length = list.iter().rposition(|choice| !choice.is_null()).map_or(0, |last| last + 1);
    let texts = list.iter().take(length).map(|choice| choice.as_str().map(str::to_string));
    match texts.collect::<Option<Vec<_>>>() {
        Some(texts) => checked(key, texts),
        None => problem(format!("`{key}` holds something that is not a text"), "give it texts"),
    }
}

/// The choices of columns, or of an object, that letters name.
fn lettered(row: Fields) -> Understood<Vec<String>> {
    let given = |names: Names| row.get(names);
    let count = names::LETTERED.into_iter().take_while(|&names| given(names).is_some()).count();
    if let Some((key, _)) = names::LETTERED.into_iter().skip(count).find_map(given) {
        return problem(format!("there is `{key}` but no `{}`", LETTERS[count]), "mend the row or remove it");
    }
    let found = names::LETTERED.into_iter().filter_map(given);
    let texts = found.map(|(key, value)| word(key, value)).collect::<Understood<_>>()?;
    checked("A", texts)
}

/// A choice; one that is a number stands in some files as a number.
fn word(key: &str, value: &Value) -> Understood<String> {
    match value {
        Value::Number(number) => Ok(number.to_string()),
        other => string(key, other).map(str::to_string),
    }
}

fn checked(key: &str, choices: Vec<String>) -> Understood<Vec<String>> {
    match choices.len() {
        2..=10 => Ok(choices),
        count => {
            problem(format!("`{key}` has {count} entries, not 2 to {}", LETTERS.len()), "mend the row or remove it")
        }
    }
}

/// A letter, an index from 0 (a number, or one that is written as text), or the right choice itself.
fn answer((key, value): Column, choices: &[String]) -> Understood<usize> {
    let letters = &LETTERS[..choices.len()];
    let index = |value: &Value| integer(value).and_then(|index| usize::try_from(index).ok());
    let mut found: Vec<usize> = match value {
        Value::String(text) => {
            if let Some(letter) = letters.iter().position(|letter| *letter == text.trim()) {
                return Ok(letter);
            }
            let number = text.trim().parse().ok().as_ref().and_then(index);
            let same = choices.iter().enumerate().filter(|(_, choice)| *choice == text).map(|(index, _)| index);
            same.chain(number).collect()
        }
        other => index(other).into_iter().collect(),
    };
    found.retain(|&index| index < choices.len());
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [index] => Ok(*index),
        [] => {
            let last = letters.last().unwrap_or(&"A");
            let most = choices.len() - 1;
            let what = format!("`{key}` is neither a number from 0 to {most}, a letter from A to {last}, nor a choice");
            problem(what, "mend the row or remove it")
        }
        _ => problem(format!("`{key}` can be more than one of the choices: {value}"), "give it as a letter"),
    }
}

fn subject(row: Fields) -> Understood<Option<String>> {
    match row.get(names::SUBJECT) {
        None => Ok(None),
        Some((key, value)) => {
            let text = string(key, value)?.trim();
            Ok((!text.is_empty()).then(|| text.to_string()))
        }
    }
}
