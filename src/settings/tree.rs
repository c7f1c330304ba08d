//! The tree of values that a run file, a preset and `--set` overrides are merged into, each value with its origin.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// Where a value was written, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Line of the run file, counted from 1.
    Line(usize),
    /// A preset that comes with temper.
    Preset,
    /// `--set` on the command line.
    Override,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Preset => f.write_str("the preset"),
            Self::Override => f.write_str("an override"),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// The kinds of TOML value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// No setting is a date; it is kept as a kind so that the message can say so.
    Date,
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    /// Reads a whole TOML document. `origin` says where the byte at an offset of the text was written.
    pub(crate) fn parse(text: &str, origin: impl Fn(usize) -> Origin) -> Result<Self, SyntaxError> {
        let table = DeTable::parse(text).map_err(|error| SyntaxError {
            origin: origin(error.span().map_or(0, |span| span.start)),
            problem: error.message().replace('\n', ", "),
        })?;
        let start = origin(0);
        Ok(Self { value: Value::Table(read_table(table.get_ref(), &origin)?), origin: start })
    }

    /// Lays `self` over `base`: tables are merged, everything else is replaced.
    pub(crate) fn over(self, base: Self) -> Self {
        match (self.value, base.value) {
            (Value::Table(own), Value::Table(mut merged)) => {
                for (key, node) in own {
                    let node = match merged.remove(&key) {
                        Some(below) => node.over(below),
                        None => node,
                    };
                    merged.insert(key, node);
                }
                Self { value: Value::Table(merged), origin: self.origin }
            }
            (value, _) => Self { value, origin: self.origin },
        }
    }

    /// The value at a dotted path (`tar.adversary.0.lr`).
    pub(crate) fn find(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |node, key| match &node.value {
            Value::Table(table) => table.get(key),
            Value::List(list) => key.parse::<usize>().ok().and_then(|index| list.get(index)),
            _ => None,
        })
    }

    /// Applies one `--set KEY=VALUE`. The value is TOML; what is not TOML is taken as text.
    pub(crate) fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((path, text)) = assignment.split_once('=') else {
            return Err(Error::config("override", format!("`{assignment}` has no `=`"), "write KEY=VALUE"));
        };
        let path = path.trim();
        let text = text.trim();
        let node = match DeValue::parse(text) {
            Ok(value) => read_node(value.get_ref(), Origin::Override, &|_| Origin::Override)
                .map_err(|error| Error::config(path, error.problem, "write a TOML value"))?,
            Err(_) => Self { value: Value::Text(text.to_string()), origin: Origin::Override },
        };
        self.place(path, path, node)
    }

    fn place(&mut self, whole: &str, rest: &str, node: Self) -> Result<()> {
        let (key, rest) = rest.split_once('.').map_or((rest, None), |(key, rest)| (key, Some(rest)));
        if key.is_empty() {
            return Err(Error::config("override", format!("`{whole}` has an empty key"), "write KEY=VALUE"));
        }
        let target = match &mut self.value {
            Value::Table(table) => table
                .entry(key.to_string())
                .or_insert_with(|| Self { value: Value::Table(BTreeMap::new()), origin: Origin::Override }),
            Value::List(list) => {
                let count = list.len();
                let place = key.parse::<usize>().ok().and_then(|index| list.get_mut(index));
                place.ok_or_else(|| {
                    let problem = format!("`{key}` is no index of a list of {count}");
                    Error::config(whole, problem, "count entries from 0")
                })?
            }
            _ => {
                let problem = format!("there is no table or list above `{key}`");
                return Err(Error::config(whole, problem, "check the spelling of the override"));
            }
        };
        match rest {
            Some(rest) => target.place(whole, rest, node),
            None => {
                *target = node;
                Ok(())
            }
        }
    }
}

/// Why a text is no TOML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) origin: Origin,
    pub(crate) problem: String,
}

fn read_table(table: &DeTable, origin: &impl Fn(usize) -> Origin) -> Result<BTreeMap<String, Node>, SyntaxError> {
    let mut nodes = BTreeMap::new();
    for (key, value) in table {
        nodes.insert(key.get_ref().to_string(), read_node(value.get_ref(), origin(key.span().start), origin)?);
    }
    Ok(nodes)
}

fn read_node(value: &DeValue, written: Origin, origin: &impl Fn(usize) -> Origin) -> Result<Node, SyntaxError> {
    let refuse = |problem: String| SyntaxError { origin: written, problem };
    let value = match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Integer(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| refuse(format!("the number {number} is too large")))?,
        ),
        DeValue::Float(number) => {
            Value::Float(number.as_str().parse().map_err(|_| refuse(format!("{number} is not a number")))?)
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(list) => {
            let entries = list.iter().map(|item| read_node(item.get_ref(), origin(item.span().start), origin));
            Value::List(entries.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Value::Table(read_table(table, origin)?),
    };
    Ok(Node { value, origin: written })
}

/// A function from byte offsets of `text` to lines.
pub(crate) fn lines_of(text: &str) -> impl Fn(usize) -> Origin {
    let breaks: Vec<usize> = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at).collect();
    move |offset| Origin::Line(breaks.partition_point(|&at| at < offset) + 1)
}
