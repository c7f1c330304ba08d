//! The document: what was measured, on what, and what was chosen.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::backend::cuda::{Choices, Cuda, DeviceInfo};
use crate::error::{Error, Result};
use crate::files::{read_capped, write_json};

/// Largest file that is read: a choice takes about 300 bytes.
const LARGEST: u64 = 16 << 20;
/// Version of the fields.
const SCHEMA: u32 = 1;

/// What choices are for. On another device, driver, library or program none of them is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The device's name.
    pub device: String,
    /// "9.0" for Hopper.
    pub compute_capability: String,
    /// CUDA version of the driver; none where a CPU plays the device.
    pub driver: Option<String>,
    /// The library of matrix products, with its version.
    pub library: Option<String>,
    /// "temper 0.1.0".
    pub program: String,
    /// Digest of the GPU code inside the program; empty where there is none.
    pub kernels: String,
}

impl Key {
    /// Of an opened device.
    pub fn of(cuda: &Cuda) -> Self {
        let driver = cuda.driver();
        let version = if driver.is_simulated() { None } else { Cuda::driver_version() };
        Self::new(driver.device(), version, driver.gemm_library())
    }

    /// Of a device that was looked at.
    pub fn new(info: &DeviceInfo, driver: Option<String>, library: Option<String>) -> Self {
        let (major, minor) = info.compute_capability;
        Self {
            device: info.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            driver,
            library,
            program: format!("temper {}", env!("CARGO_PKG_VERSION")),
            kernels: Cuda::kernels_digest().into(),
        }
    }

    /// The first thing that is not the same here, in words; none where the choices can be used.
    pub fn difference(&self, here: &Self) -> Option<String> {
        let none = || "none".to_string();
        let facts = [
            ("device", self.device.clone(), here.device.clone()),
            ("compute capability", self.compute_capability.clone(), here.compute_capability.clone()),
            ("driver", self.driver.clone().unwrap_or_else(none), here.driver.clone().unwrap_or_else(none)),
            ("library", self.library.clone().unwrap_or_else(none), here.library.clone().unwrap_or_else(none)),
            ("program", self.program.clone(), here.program.clone()),
            ("kernels", self.kernels.clone(), here.kernels.clone()),
        ];
        let differs = facts.into_iter().find(|(_, measured, found)| measured != found);
        differs.map(|(what, measured, found)| format!("it was measured with {what} {measured}, and here it is {found}"))
    }
}

/// What costs are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Median device time.
    Milliseconds,
    /// Cycles that a device needs at least, from the simulator's counters: no measurement of a GPU.
    FloorCycles,
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

impl Tuning {
    /// Nothing measured yet.
    pub fn new(key: Key, unit: Unit) -> Self {
        Self { schema: SCHEMA, key, unit, products: BTreeMap::new(), threads: BTreeMap::new() }
    }

    /// From a file.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none, [`Error::Input`] where it is no such document.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, LARGEST)?;
        let remedy = "run `temper tune` again, or name another file";
        let wrong = |problem: String| Error::input(path, problem, remedy);
        let read: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if read.schema != SCHEMA {
            return Err(wrong(format!("its schema is {}, and this program's is {SCHEMA}", read.schema)));
        }
        Ok(read)
    }

    /// From a file, if its choices are for the device of `key`; else what differs, in words.
    ///
    /// # Errors
    /// As [`Tuning::read`].
    pub fn read_for(path: &Path, key: &Key) -> Result<std::result::Result<Self, String>> {
        let tuning = Self::read(path)?;
        Ok(match tuning.key.difference(key) {
            None => Ok(tuning),
            Some(difference) => Err(difference),
        })
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

    /// Each fact alone makes choices unusable, and is named.
    #[test]
    fn whatever_differs_is_named() {
        assert_eq!(key().difference(&key()), None);
        let others = [
            (Key { device: "b".into(), ..key() }, "device a GPU, and here it is b"),
            (Key { compute_capability: "8.0".into(), ..key() }, "compute capability 9.0"),
            (Key { driver: None, ..key() }, "driver 13.0, and here it is none"),
            (Key { library: Some("cuBLASLt 13.1.0".into()), ..key() }, "here it is cuBLASLt 13.1.0"),
            (Key { program: "temper 0.2.0".into(), ..key() }, "program temper 0.1.0"),
            (Key { kernels: "cd".into(), ..key() }, "kernels ab"),
        ];
        for (other, words) in others {
            assert!(key().difference(&other).unwrap().contains(words), "{words}");
        }
    }

    /// What is written is read again; a broken file, an unknown key and another schema are one-line errors with the file.
    #[test]
    fn files_are_read_as_they_were_written_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/tuning.json");
        let mut tuning = Tuning::new(key(), Unit::Milliseconds);
        let costs = vec![Some(1.5), None];
        let refused = vec!["wrong".to_string()];
        let entry = ProductEntry { algorithm: "00".repeat(64), candidate: 0, costs, refused };
        tuning.products.insert("8x8x8 nt bf16 bf16".into(), entry);
        tuning.write(&path).unwrap();
        assert_eq!(Tuning::read(&path).unwrap(), tuning);
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [&text[..text.len() / 2], &text.replacen("schema\": 1", "schema\": 2", 1), "{\"x\": 1}", ""] {
            std::fs::write(&path, broken).unwrap();
            let error = Tuning::read(&path).unwrap_err();
            assert!(matches!(error, Error::Input { .. }), "{error}");
            assert!(!error.to_string().contains('\n') && error.to_string().contains("tuning.json"), "{error}");
        }
    }
}
