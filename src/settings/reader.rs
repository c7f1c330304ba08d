//! A serde deserializer over [`Node`] whose errors say which key, where it was written, what was expected and which
//! known name is nearest.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::tree::{Node, Origin, Value};

/// What is wrong with a key.
#[derive(Debug)]
pub(crate) struct ReadError {
    /// Keys from the innermost to the outermost.
    path: Vec<String>,
    /// Where the innermost key was written.
    pub(crate) origin: Option<Origin>,
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl ReadError {
    fn new(problem: String, remedy: String) -> Self {
        Self { path: Vec::new(), origin: None, problem, remedy }
    }

    fn within(mut self, key: &str, origin: Origin) -> Self {
        self.path.push(key.to_string());
        self.origin.get_or_insert(origin);
        self
    }

    /// The dotted path of the key.
    pub(crate) fn key(&self) -> String {
        self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key(), self.problem, self.remedy)
    }
}

impl std::error::Error for ReadError {}

impl serde::de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string(), "correct the value".into())
    }

    fn invalid_type(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}, found {}", plain(expected), describe(found)), "correct the value".into())
    }

    fn invalid_value(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let problem = format!("expected {}, found {length} entries", plain(expected));
        Self::new(problem, "correct the number of entries".into())
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self::new("unknown key".into(), known.join(", "))
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(format!("`{name}` is not a choice"), suggestion(name, known.iter().copied()))
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error = Self::new("missing".into(), format!("add `{field} = …`"));
        error.path.push(field.to_string());
        error
    }
}

/// "did you mean …?" with the nearest of `known`, or the list of them where none is near.
pub(crate) fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase());
    let nearest = known.clone().map(|candidate| (distance(candidate), candidate)).min();
    match nearest {
        None => "there are none yet".into(),
        Some((distance, candidate)) if distance <= 1 + candidate.len() / 3 => format!("did you mean `{candidate}`?"),
        Some(_) => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// Serde's name of an expected type in the words of a run file.
fn plain(expected: &dyn Expected) -> String {
    let name = expected.to_string();
    match name.as_str() {
        "u64" | "usize" | "u32" => "a whole number, 0 or more".into(),
        "f64" | "f32" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a string" | "path string" => "a text in quotes".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table".into(),
        _ if name.starts_with("struct ") => "a table".into(),
        _ => name,
    }
}

fn describe(found: Unexpected) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a table".into(),
        other => other.to_string(),
    }
}

impl Node {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.value {
            Value::Text(text) => Unexpected::Str(text),
            Value::Integer(value) => Unexpected::Signed(*value),
            Value::Float(value) => Unexpected::Float(*value),
            Value::Boolean(value) => Unexpected::Bool(*value),
            Value::Date => Unexpected::Other("a date"),
            Value::List(_) => Unexpected::Seq,
            Value::Table(_) => Unexpected::Map,
        }
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.value {
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Date => Err(ReadError::invalid_type(self.unexpected(), &visitor)),
            Value::List(list) => {
                let mut entries = Entries { all: list.iter().enumerate() };
                let value = visitor.visit_seq(&mut entries)?;
                match entries.all.next() {
                    None => Ok(value),
                    Some(_) => Err(ReadError::custom(format!("{} entries are too many", list.len()))),
                }
            }
            Value::Table(table) => visitor.visit_map(Keys { rest: table.iter(), current: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        // A derived struct would also take a list of its values by position; a run file has names only.
        match &self.value {
            Value::Table(_) => self.deserialize_any(visitor),
            _ => Err(ReadError::invalid_type(self.unexpected(), &visitor)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let expected = format!("one of {}", variants.join(", "));
        match &self.value {
            Value::Text(name) => visitor.visit_enum(Choice { name, origin: self.origin, settings: None }),
            // A choice with settings of its own: `{ name = { key = value } }`.
            Value::Table(table) => match table.iter().next() {
                Some((name, node)) if table.len() == 1 => {
                    visitor.visit_enum(Choice { name, origin: node.origin, settings: Some(node) })
                }
                _ => {
                    let problem = format!("expected {expected}, found a table of {} keys", table.len());
                    Err(ReadError::new(problem, "keep one key, the choice".into()))
                }
            },
            _ => Err(ReadError::invalid_type(self.unexpected(), &expected.as_str())),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

/// One of several choices, with its settings where it was written with a table of them.
struct Choice<'de> {
    name: &'de str,
    origin: Origin,
    settings: Option<&'de Node>,
}

impl Choice<'_> {
    fn within(&self, error: ReadError) -> ReadError {
        if self.settings.is_some() { error.within(self.name, self.origin) } else { error }
    }
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let name: serde::de::value::StrDeserializer<ReadError> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'de> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.settings {
            Some(Node { value: Value::Table(table), .. }) if table.is_empty() => Ok(()),
            Some(_) => Err(self.within(ReadError::new("has no settings".into(), format!("write \"{}\"", self.name)))),
            None => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        match self.settings {
            Some(node) => seed.deserialize(node).map_err(|error| self.within(error)),
            None => seed.deserialize(&NO_SETTINGS),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        Err(self.within(ReadError::invalid_type(Unexpected::TupleVariant, &visitor)))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, ReadError> {
        match self.settings {
            Some(node) => node.deserialize_struct("", &[], visitor).map_err(|error| self.within(error)),
            None => (&NO_SETTINGS).deserialize_any(visitor),
        }
    }
}

/// The settings of a choice that is written as its name alone: each has its default.
static NO_SETTINGS: Node = Node { value: Value::Table(BTreeMap::new()), origin: Origin::Preset };

struct Entries<'de> {
    all: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for &mut Entries<'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some((index, node)) = self.all.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|error| error.within(&index.to_string(), node.origin))
    }
}

struct Keys<'de> {
    rest: std::collections::btree_map::Iter<'de, String, Node>,
    current: Option<(&'de str, &'de Node)>,
}

impl<'de> MapAccess<'de> for Keys<'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        self.current = Some((key, node));
        let deserializer: serde::de::value::StrDeserializer<ReadError> = key.as_str().into_deserializer();
        seed.deserialize(deserializer).map(Some).map_err(|mut error| {
            // The only key that is refused is an unknown one; `unknown_field` has left the known keys as the remedy.
            error.remedy = suggestion(key, error.remedy.split(", "));
            error.within(key, node.origin)
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some((key, node)) = self.current.take() else {
            return Err(ReadError::custom("a value was asked for before its key"));
        };
        seed.deserialize(node).map_err(|error| error.within(key, node.origin))
    }
}
