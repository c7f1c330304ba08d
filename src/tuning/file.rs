//! The document: what was measured, on what, and what was chosen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::cuda::{Choices, Key};
use crate::error::{Error, Result};
use crate::files::{read_capped, write_json};

/// Largest file that is read: a choice takes about 300 bytes.
const LARGEST: u64 = 16 << 20;
/// Version of the fields.
const SCHEMA: u32 = 1;

/// What costs are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Median device time.
    Milliseconds,
    /// Cycles that a device needs at least, from the simulator's counters: no measurement of a GPU.
    FloorCycles,
}

impl Unit {
    /// What costs are counted in on a device.
    pub fn of(key: &Key) -> Self {
        if key.driver.is_some() { Self::Milliseconds } else { Self::FloorCycles }
    }

    /// For people.
    fn words(self) -> &'static str {
        match self {
            Self::Milliseconds => "milliseconds",
            Self::FloorCycles => "cycles of a simulator",
        }
    }
}

/// What was found out about a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductEntry {
    /// The algorithm that was chosen, in the library's own bytes.
    pub algorithm: String,
    /// Its place among the library's proposals, from 0.
    pub candidate: usize,
    /// What each proposal costs; none for one that was refused.
    pub costs: Vec<Option<f64>>,
    /// Why proposals were refused.
    pub refused: Vec<String>,
}

/// What was found out about a kernel with a block for each row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadsEntry {
    /// Most threads of a block, as chosen.
    pub threads: u32,
    /// What each number of threads costs.
    pub costs: BTreeMap<u32, f64>,
}

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Version of these fields.
    pub schema: u32,
    /// What the choices are for.
    pub key: Key,
    /// What costs are counted in.
    pub unit: Unit,
    /// Products, by their text.
    pub products: BTreeMap<String, ProductEntry>,
    /// Kernels with a block for each row, by their text.
    pub threads: BTreeMap<String, ThreadsEntry>,
}

/// What a user can do about a file that cannot be read.
const REMEDY: &str = "run `temper tune` again, which sets it aside, or name another file";

impl Tuning {
    /// Nothing measured yet.
    pub fn new(key: Key) -> Self {
        let unit = Unit::of(&key);
        Self { schema: SCHEMA, key, unit, products: BTreeMap::new(), threads: BTreeMap::new() }
    }

    /// From a file.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none, [`Error::Input`] where it is no such document or an entry of it is none of ours.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, LARGEST)?;
        let wrong = |problem: String| Error::input(path, problem, REMEDY);
        let read: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if read.schema != SCHEMA {
            return Err(wrong(format!("its schema is {}, and this program's is {SCHEMA}", read.schema)));
        }
        read.check().map_err(wrong)?;
        Ok(read)
    }

    /// Fails where an entry is for nothing that a device does, or its choice is none of those that were measured.
    fn check(&self) -> std::result::Result<(), String> {
        self.choices().parsed().map_err(|error| match error {
            Error::Device(problem) => problem,
            other => other.to_string(),
        })?;
        let priced = |cost: Option<&f64>| cost.is_some_and(|cost| cost.is_finite() && *cost >= 0.0);
        for (shape, entry) in &self.products {
            if !priced(entry.costs.get(entry.candidate).and_then(Option::as_ref)) {
                return Err(format!("`{shape}`: its candidate {} has no cost", entry.candidate));
            }
        }
        match self.threads.iter().find(|(_, entry)| !priced(entry.costs.get(&entry.threads))) {
            Some((rows, entry)) => Err(format!("`{rows}`: its {} threads have no cost", entry.threads)),
            None => Ok(()),
        }
    }

    /// From a file, if its choices are for the device of `key`; else what differs, in words.
    ///
    /// # Errors
    /// As [`Tuning::read`].
    pub fn read_for(path: &Path, key: &Key) -> Result<std::result::Result<Self, String>> {
        let tuning = Self::read(path)?;
        let [measured, here] = [tuning.unit, Unit::of(key)];
        Ok(match tuning.key.difference(key) {
            None if measured == here => Ok(tuning),
            None => Err(format!("its costs are {}, and here they are {}", measured.words(), here.words())),
            Some(difference) => Err(difference),
        })
    }

    /// Renames a file that cannot be gone on with, so that nothing of it is lost; its new name is returned.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_aside(path: &Path) -> Result<PathBuf> {
        let numbered = |number: u32| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".aside-{number}"));
            PathBuf::from(name)
        };
        let free = (1..).map(numbered).find(|name| !name.exists());
        let aside = free.ok_or_else(|| Error::Defect(format!("no free name beside {}", path.display())))?;
        std::fs::rename(path, &aside).map_err(Error::io("rename", path))?;
        Ok(aside)
    }

    /// How much was measured, for people: "12 products, 2 kernels".
    pub fn summary(&self) -> String {
        format!("{} products, {} kernels", self.products.len(), self.threads.len())
    }

    /// Into a file, all of it or nothing. Its folder is made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        write_json(path, self)
    }

    /// What was chosen.
    pub fn choices(&self) -> Choices {
        Choices {
            products: self.products.iter().map(|(shape, entry)| (shape.clone(), entry.algorithm.clone())).collect(),
            threads: self.threads.iter().map(|(rows, entry)| (rows.clone(), entry.threads)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            device: "a GPU".into(),
            compute_capability: "9.0".into(),
            driver: Some("13.0".into()),
            library: Some("cuBLASLt 13.0.2".into()),
            program: "temper 0.1.0".into(),
            kernels: "ab".into(),
        }
    }

    /// One product and one kernel.
    fn tuning() -> Tuning {
        let mut tuning = Tuning::new(key());
        let costs = vec![Some(1.5), None];
        let refused = vec!["wrong".to_string()];
        let entry = ProductEntry { algorithm: "00".repeat(64), candidate: 0, costs, refused };
        tuning.products.insert("8x8x8 nt bf16 bf16".into(), entry);
        let entry = ThreadsEntry { threads: 128, costs: BTreeMap::from([(128, 1.0), (256, 2.0)]) };
        tuning.threads.insert("rms_norm_forward 64 bf16".into(), entry);
        tuning
    }

    /// What is written is read again; a broken file, an unknown key, another schema and an entry that is none of ours are
    /// one-line errors with the file, the entry and the remedy.
    #[test]
    fn files_are_read_as_they_were_written_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/tuning.json");
        tuning().write(&path).unwrap();
        assert_eq!(Tuning::read(&path).unwrap(), tuning());
        let text = std::fs::read_to_string(&path).unwrap();
        let zeros = "00".repeat(64);
        let replaced = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}: {text}");
            text.replacen(from, to, 1)
        };
        for (broken, words) in [
            (text[..text.len() / 2].to_string(), "EOF"),
            (String::new(), "EOF"),
            ("{\"x\": 1}".into(), "unknown field"),
            (replaced("schema\": 1", "schema\": 2"), "schema is 2"),
            (replaced("8x8x8", "0x0x0"), "`0x0x0 nt bf16 bf16`"),
            (replaced("8x8x8 nt bf16 bf16", "hello world"), "`hello world`"),
            (replaced("nt bf16 bf16", "nt fp8 bf16"), "`8x8x8 nt fp8 bf16`"),
            (replaced(&zeros, "zz"), "`8x8x8 nt bf16 bf16`: `zz`"),
            (replaced("candidate\": 0", "candidate\": 99999"), "`8x8x8 nt bf16 bf16`: its candidate 99999"),
            (replaced("candidate\": 0", "candidate\": 1"), "`8x8x8 nt bf16 bf16`: its candidate 1"),
            (replaced("threads\": 128", "threads\": 0"), "`rms_norm_forward 64 bf16` in blocks of 0 threads"),
            (replaced("\"128\": 1.0", "\"64\": 1.0"), "`rms_norm_forward 64 bf16`: its 128 threads"),
            (replaced("64 bf16", "64 u8"), "`rms_norm_forward 64 u8`"),
            (replaced("1.5", "-1.5"), "its candidate 0 has no cost"),
        ] {
            std::fs::write(&path, broken).unwrap();
            let error = Tuning::read(&path).unwrap_err();
            assert!(matches!(error, Error::Input { .. }), "{error}");
            let line = error.to_string();
            assert!(!line.contains('\n') && line.contains(words) && line.ends_with(REMEDY), "{words}: {line}");
            assert!(line.contains("tuning.json"), "{line}");
        }
    }

    /// A GPU counts in milliseconds and the simulator in cycles: choices that were made by the other are not used.
    #[test]
    fn choices_by_another_unit_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        let simulated = Key { driver: None, ..key() };
        Tuning { key: simulated.clone(), ..tuning() }.write(&path).unwrap();
        let difference = Tuning::read_for(&path, &simulated).unwrap().unwrap_err();
        assert_eq!(difference, "its costs are milliseconds, and here they are cycles of a simulator");
    }

    /// Nothing is overwritten by what is set aside.
    #[test]
    fn each_file_that_is_set_aside_has_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        for text in ["first", "second"] {
            std::fs::write(&path, text).unwrap();
            let aside = Tuning::set_aside(&path).unwrap();
            assert!(!path.exists() && std::fs::read_to_string(aside).unwrap() == text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
