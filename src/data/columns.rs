//! Data files as settings name them: a path, and what its columns are where they have names of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::shapes;
use crate::settings::suggestion;

/// What the columns of a data file are: from the names that the shapes of rows know to the file's own.
///
/// ```
/// use temper::api::Columns;
///
/// let columns: Columns = "prompt=Behavior".parse().unwrap();
/// assert_eq!(columns.to_string(), "prompt=Behavior");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Columns(BTreeMap<String, String>);

impl Columns {
    /// Whether columns keep their own names.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file's own names that are mapped.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(String::as_str)
    }

    /// Renames the columns of a row; fails where one is not there.
    pub fn apply(&self, row: &mut Map<String, Value>) -> Result<(), String> {
        let mut renamed = Vec::with_capacity(self.0.len());
        for (name, source) in &self.0 {
            let value =
                row.get(source).ok_or_else(|| format!("it has no `{source}`, which `columns` says is `{name}`"))?;
            renamed.push((name, value.clone()));
        }
        for source in self.sources() {
            row.shift_remove(source);
        }
        for (name, value) in renamed {
            row.insert(name.clone(), value);
        }
        Ok(())
    }
}

impl TryFrom<BTreeMap<String, String>> for Columns {
    type Error = String;

    fn try_from(columns: BTreeMap<String, String>) -> Result<Self, String> {
        let known = shapes::canonical();
        match columns.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(Self(columns)),
            Some(name) => Err(format!("no shape of rows has `{name}`; {}", suggestion(name, known.into_iter()))),
        }
    }
}

impl FromStr for Columns {
    type Err = String;

    /// `NAME=COLUMN,…`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (name, source) = part.split_once('=').ok_or_else(|| format!("`{part}` is not NAME=COLUMN"))?;
            if columns.insert(name.trim().to_string(), source.trim().to_string()).is_some() {
                return Err(format!("`{}` is named twice", name.trim()));
            }
        }
        columns.try_into()
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(name, source)| format!("{name}={source}")).collect();
        f.write_str(&parts.join(","))
    }
}

/// A data file or a directory of them, and what its columns are. Settings write a path, or
/// `{ path = "…", columns = { prompt = "Behavior" } }`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataFile {
    /// The file or directory.
    pub path: PathBuf,
    /// What its columns are.
    pub columns: Columns,
}

impl DataFile {
    /// The file at `path`, whose columns have names that are known.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), columns: Columns::default() }
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for DataFile {
    fn from(path: &P) -> Self {
        Self::new(path.as_ref())
    }
}

impl From<&Self> for DataFile {
    fn from(file: &Self) -> Self {
        file.clone()
    }
}

impl From<PathBuf> for DataFile {
    fn from(path: PathBuf) -> Self {
        Self::new(path)
    }
}

impl fmt::Display for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

/// The long form in settings.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    path: PathBuf,
    #[serde(default)]
    columns: Columns,
}

impl Serialize for DataFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.columns.is_empty() {
            return self.path.serialize(serializer);
        }
        Table { path: self.path.clone(), columns: self.columns.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DataFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrTable;

        impl<'de> Visitor<'de> for PathOrTable {
            type Value = DataFile;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a path in quotes or a table of `path` and `columns`")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<DataFile, E> {
                Ok(DataFile::new(path))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataFile, A::Error> {
                let Table { path, columns } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(DataFile { path, columns })
            }
        }

        deserializer.deserialize_any(PathOrTable)
    }
}
