//! What a row means: the shapes that data sets come in, told apart by their columns.

use serde_json::Value;

use super::messages::{CONTENT, Message, ROLE, Turns, transcript};
use super::samples::Sequence;
use super::shapes::{Fields, Names, Purpose, Unread, is_shown, names};
use crate::ops::IGNORE_INDEX;

/// The label by which PyTorch marks a token that is not learned.
const NOT_LEARNED: i64 = -100;

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

/// What became of a part of a row.
pub type Understood<T> = Result<T, Problem>;

/// A [`Problem`].
pub fn problem<T>(problem: impl Into<String>, remedy: impl Into<String>) -> Understood<T> {
    Err(Problem { problem: problem.into(), remedy: remedy.into() })
}

/// A row, and what it says that is passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderstoodRow {
    /// The row.
    pub row: Row,
    /// Its keys that would change what is learned elsewhere, once for each time.
    pub unread: Vec<Unread>,
}

impl Row {
    /// Understands a row of training data. Keys that are `null` count as absent.
    pub fn from_json(value: &Value) -> Understood<UnderstoodRow> {
        Self::read(value, Purpose::Training)
    }

    /// Understands a row of prompts, or any row of training data: what a model is asked with it.
    pub fn prompt_from_json(value: &Value) -> Understood<UnderstoodRow> {
        Self::read(value, Purpose::Prompts)
    }

    fn read(value: &Value, purpose: Purpose) -> Understood<UnderstoodRow> {
        let object = match value {
            Value::Object(object) => object,
            Value::Array(turns) if is_conversation(turns) => {
                return Self::read(&serde_json::json!({"messages": turns}), purpose);
            }
            other => {
                let remedy = "write an object of columns and values";
                return problem(format!("{} where a JSON object is expected", kind(other)), remedy);
            }
        };
        let fields = Fields::new(object);
        let mut unread: Vec<Unread> = fields.unread().collect();
        let mut reader = Reader { fields, turns: Turns { unread: &mut unread } };
        let row = match purpose {
            Purpose::Prompts => reader.prompt()?,
            Purpose::Training | Purpose::Questions => reader.sample()?,
        };
        let row = row.ok_or_else(|| fields.no_shape(purpose))?;
        if !row.is_text() {
            // Token ids say themselves what is learned.
            unread.clear();
        }
        if purpose == Purpose::Prompts {
            unread.retain(is_shown);
        }
        Ok(UnderstoodRow { row, unread })
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

/// The kind of a value, for people.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value that has to be text.
pub fn string<'a>(key: &str, value: &'a Value) -> Understood<&'a str> {
    match value {
        Value::String(text) => Ok(text),
        other => problem(format!("`{key}` is {}, not a string", kind(other)), "give it text"),
    }
}

fn integers(key: &str, value: &Value) -> Understood<Vec<i64>> {
    let Value::Array(values) = value else {
        return problem(format!("`{key}` is {}, not an array of integers", kind(value)), "give it token ids");
    };
    match values.iter().map(Value::as_i64).collect() {
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

/// A whole number, also as a float: tables write whole columns as floats where a value is missing.
pub fn integer(value: &Value) -> Option<u64> {
    let whole = |number: &f64| *number >= 0.0 && number.fract() == 0.0 && *number < 9e15;
    value.as_u64().or_else(|| value.as_f64().filter(whole).map(|number| number as u64))
}

/// Reads a ready-made preference pair. Labels, the length of the prompt that both begin with, or a prompt that stands apart
/// say which tokens are learned.
fn token_pair(fields: Fields, chosen: &Value, rejected: &Value) -> Understood<Row> {
    let get = |names: Names| fields.get(names).map(|(_, value)| value);
    let prompt = get(names::PROMPT_IDS).map(|value| ids("prompt_input_ids", value)).transpose()?;
    let length = match (get(names::PROMPT_LENGTH), &prompt) {
        (_, Some(prompt)) => Some(prompt.len()),
        (Some(value), None) => match value.as_u64().and_then(|length| usize::try_from(length).ok()) {
            Some(length) => Some(length),
            None => return problem("`prompt_length` is not a length", "give it the number of prompt tokens"),
        },
        (None, None) => None,
    };
    let side = |name: &str, value: &Value, labels_of: Names| {
        let own = ids(&format!("{name}_input_ids"), value)?;
        let tokens: Vec<u32> = prompt.iter().flatten().copied().chain(own).collect();
        let key = format!("{name}_labels");
        let labels = match (get(labels_of).filter(|_| prompt.is_none()), length) {
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
    let chosen = side("chosen", chosen, names::CHOSEN_LABELS)?;
    Ok(Row::TokenPair(chosen, side("rejected", rejected, names::REJECTED_LABELS)?))
}

/// Whether a row without columns is a list of messages: their first has a role.
fn is_conversation(turns: &[Value]) -> bool {
    turns.first().and_then(Value::as_object).is_some_and(|turn| Fields::new(turn).get(ROLE).is_some())
}

/// Reads a row by the table of shapes.
struct Reader<'a, 'u> {
    fields: Fields<'a>,
    turns: Turns<'u>,
}

impl<'a> Reader<'a, '_> {
    fn value(&self, names: Names) -> Option<&'a Value> {
        self.fields.get(names).map(|(_, value)| value)
    }

    /// The first shape for training that fits.
    fn sample(&mut self) -> Understood<Option<Row>> {
        let fields = self.fields;
        if let (Some(chosen), Some(rejected)) = (self.value(names::CHOSEN_IDS), self.value(names::REJECTED_IDS)) {
            return token_pair(fields, chosen, rejected).map(Some);
        }
        if let Some(ids) = self.value(names::IDS) {
            return tokens(ids, self.value(names::LABELS), self.value(names::MASK)).map(|ids| Some(Row::Tokens(ids)));
        }
        if let (Some(chosen), Some(rejected)) = (self.value(names::CHOSEN), self.value(names::REJECTED)) {
            return self.preference(chosen, rejected).map(Some);
        }
        if let Some((key, turns)) = fields.get(names::MESSAGES) {
            let turns = self.turns.messages(key, turns)?;
            return Ok(Some(Row::Conversation(self.with_system(turns)?)));
        }
        if let (Some((asked, prompt)), Some((key, answer))) = (fields.get(names::ANSWERED), fields.get(names::ANSWER)) {
            let mut conversation = self.turns.said(asked, prompt, "user")?;
            conversation.extend(self.turns.said(key, answer, "assistant")?);
            return Ok(Some(Row::Conversation(self.with_system(conversation)?)));
        }
        if let (Some((key, instruction)), Some((to, output))) =
            (fields.get(names::INSTRUCTION), fields.get(names::OUTPUT))
        {
            let mut conversation = self.history()?;
            conversation.push(Message::new("user", self.with_input(string(key, instruction)?)?));
            conversation.push(Message::new("assistant", string(to, output)?));
            return Ok(Some(Row::Conversation(self.with_system(conversation)?)));
        }
        let Some((key, raw)) = fields.get(names::TEXT) else { return Ok(None) };
        Ok(Some(Row::Text(string(key, raw)?.to_string())))
    }

    /// A prompt that stands alone, or else what training reads.
    fn prompt(&mut self) -> Understood<Option<Row>> {
        let fields = self.fields;
        // A row with `prompt` alone is one, whatever else it has; other columns are prompts where there is no sample.
        let answered = fields.get(names::ANSWER).is_some()
            || fields.get(names::CHOSEN).is_some()
            || fields.get(names::REJECTED).is_some();
        let plain = fields.get(&["prompt"]).is_some() && !answered;
        if !plain && let Some(row) = self.sample()? {
            return Ok(Some(row));
        }
        let Some((key, prompt)) = fields.get(names::PROMPT) else { return Ok(None) };
        if key == "question" && fields.has_choices() {
            return Ok(None);
        }
        let asked = match (key, prompt) {
            ("turns", prompt) => vec![Message::new("user", self.first_turn(prompt)?)],
            ("Behavior", prompt) => vec![Message::new("user", self.with_context(string(key, prompt)?)?)],
            ("instruction", prompt) => vec![Message::new("user", self.with_input(string(key, prompt)?)?)],
            (key, prompt) => self.turns.said(key, prompt, "user")?,
        };
        Ok(Some(Row::Conversation(self.with_system(asked)?)))
    }

    /// The first of several questions: later ones go on from an answer.
    fn first_turn(&mut self, turns: &'a Value) -> Understood<&'a str> {
        let Value::Array(list) = turns else { return string("turns", turns) };
        if list.len() > 1 {
            self.turns.unread.push(("turns", "only the first turn is asked, later ones go on from an answer"));
        }
        // Each is a text, or a message without a role.
        match list.first() {
            Some(Value::Object(first)) => match Fields::new(first).get(CONTENT) {
                Some((key, text)) => string(key, text),
                None => problem("`turns[0]` has no content", "give it a question"),
            },
            Some(first) => string("turns[0]", first),
            None => problem("`turns` is empty", "give it a question"),
        }
    }

    /// A behaviour below what it is about, as HarmBench puts it to a model.
    fn with_context(&self, behavior: &str) -> Understood<String> {
        let context = self.optional_text(names::CONTEXT)?;
        Ok(if context.is_empty() { behavior.to_string() } else { format!("{context}\n\n---\n\n{behavior}") })
    }

    /// An instruction with its input below it.
    fn with_input(&self, instruction: &str) -> Understood<String> {
        let input = self.optional_text(names::INPUT)?;
        Ok(if input.is_empty() { instruction.to_string() } else { format!("{instruction}\n\n{input}") })
    }

    /// A conversation behind the row's own system prompt, if it has one and the conversation begins with none.
    fn with_system(&self, conversation: Vec<Message>) -> Understood<Vec<Message>> {
        let system = self.optional_text(names::SYSTEM)?;
        if system.is_empty() || conversation.first().is_some_and(|first| first.role == "system") {
            return Ok(conversation);
        }
        Ok(std::iter::once(Message::new("system", system)).chain(conversation).collect())
    }

    fn optional_text(&self, names: Names) -> Understood<&'a str> {
        self.fields.get(names).map_or(Ok(""), |(key, value)| string(key, value))
    }

    /// Earlier turns of an instruction: pairs of what was asked and answered.
    fn history(&mut self) -> Understood<Vec<Message>> {
        let Some(history) = self.value(names::HISTORY) else { return Ok(Vec::new()) };
        let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(answered)]) => {
                Some([Message::new("user", asked.as_str()), Message::new("assistant", answered.as_str())])
            }
            _ => None,
        };
        match history.as_array().and_then(|pairs| pairs.iter().map(pair).collect::<Option<Vec<_>>>()) {
            Some(pairs) => Ok(pairs.concat()),
            None => {
                problem("`history` is no list of pairs of texts", "write [[\"asked\", \"answered\"], …], or remove it")
            }
        }
    }

    /// Understands answers to a prompt, or whole conversations as lists or as "Human: … Assistant: …" text.
    fn preference(&mut self, chosen: &Value, rejected: &Value) -> Understood<Row> {
        let mut before = match self.fields.get(names::ANSWERED) {
            Some((key, Value::String(text))) => {
                transcript(text).map_or_else(|| self.turns.said(key, &text.as_str().into(), "user"), Ok)?
            }
            Some((key, value)) => self.turns.said(key, value, "user")?,
            None => Vec::new(),
        };
        before.pop_if(|last| last.is_assistant() && last.content.is_empty());
        let chosen = self.side("chosen", chosen, &before)?;
        let mut rejected = self.side("rejected", rejected, &before)?;
        // Turns that both sides have are the same whatever either says of learning them.
        for (own, other) in rejected.iter_mut().zip(&chosen) {
            if (own.role, &own.content) != (other.role, &other.content) {
                break;
            }
            own.learned = other.learned;
        }
        Ok(Row::Preference(chosen, rejected))
    }

    fn side(&mut self, key: &str, value: &Value, before: &[Message]) -> Understood<Vec<Message>> {
        if let Some(whole) = value.as_str().and_then(transcript) {
            return self.with_system(whole);
        }
        let said = self.turns.said(key, value, "assistant")?;
        let is_answer = said.first().is_some_and(Message::is_assistant);
        match (is_answer, before.is_empty()) {
            (true, false) => self.with_system(before.iter().cloned().chain(said).collect()),
            (false, _) => self.with_system(said),
            (true, true) => problem(format!("nothing says what `{key}` answers"), "add a `prompt`"),
        }
    }
}
