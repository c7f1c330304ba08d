//! The manifest of a checkpoint: what its files must hold. Nothing that a manifest says is believed before it has been
//! checked against its own checksum, against the format, and against the files.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::read::{RESTORE, open, read_whole};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// The format that this version writes and reads. In format 1, `config_hash` was another hash of another text.
const FORMAT: u64 = 2;
/// Bytes of an element: all tensors are f32.
pub(super) const ELEMENT_BYTES: u64 = 4;
/// Longest manifest that is read: far more than the tensors of any model need.
const MAX_BYTES: u64 = 64 << 20;

/// The manifest's file name.
pub(super) const MANIFEST: &str = "manifest.json";
/// The file of the run's scalars.
pub(super) const STATE: &str = "state.json";
/// The file of the tensors.
pub(super) const TENSORS: &str = "tensors.safetensors";

/// The description of a checkpoint, which is read before any of its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u64,
    pub step: u64,
    pub config_hash: Fingerprint,
    pub temper_version: String,
    /// [`STATE`] and [`TENSORS`].
    pub files: [FileEntry; 2],
    /// In the order of their bytes.
    pub tensors: Vec<TensorEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub name: String,
    pub bytes: u64,
    pub crc32c: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorEntry {
    pub name: String,
    pub elements: u64,
    pub crc32c: u32,
}

/// The content of the manifest's file: the manifest and the CRC-32C of its compact JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    crc32c: u32,
}

/// The part that every format has, to tell another format from a damaged file.
#[derive(Deserialize)]
struct Probe {
    manifest: FormatProbe,
}

#[derive(Deserialize)]
struct FormatProbe {
    format: u64,
}

/// The CRC-32C of a manifest's compact JSON.
fn seal(manifest: &Manifest) -> serde_json::Result<u32> {
    Ok(crc32c::crc32c(&serde_json::to_vec(manifest)?))
}

impl Manifest {
    /// A manifest of this version's format.
    pub fn new(step: u64, config_hash: Fingerprint, files: [FileEntry; 2], tensors: Vec<TensorEntry>) -> Self {
        let temper_version = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, step, config_hash, temper_version, files, tensors }
    }

    /// The bytes of the manifest's file.
    pub fn to_file(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(&Sealed { manifest: self.clone(), crc32c: seal(self)? })
    }

    /// Reads and checks the manifest of the checkpoint `dir`; its data files are not looked at.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let (file, bytes) = open(&path)?;
        if bytes > MAX_BYTES {
            return Err(Error::input(path, format!("{bytes} bytes are too many for a manifest"), RESTORE));
        }
        Self::parse(&path, &read_whole(file, &path, bytes)?)
    }

    /// The manifest in the bytes of the file `path`.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let bad = |problem: String| Error::input(path, problem, RESTORE);
        let probe: Probe = serde_json::from_slice(text).map_err(|error| bad(format!("not a manifest: {error}")))?;
        let format = probe.manifest.format;
        if format > FORMAT {
            let problem = format!("checkpoint format {format} is newer than this version of temper reads ({FORMAT})");
            return Err(Error::input(path, problem, "use the version of temper that wrote it"));
        }
        if format == 0 {
            return Err(bad("there is no checkpoint format 0".into()));
        }
        if format < FORMAT {
            let problem =
                format!("checkpoint format {format} is of an older version of temper, this one reads {FORMAT}");
            return Err(Error::input(
                path,
                problem,
                "finish the run with the version that wrote it, or start a new run",
            ));
        }
        let sealed: Sealed = serde_json::from_slice(text).map_err(|error| bad(format!("not a manifest: {error}")))?;
        if seal(&sealed.manifest).ok() != Some(sealed.crc32c) {
            return Err(bad("the manifest's own checksum does not fit: it was damaged or edited".into()));
        }
        sealed.manifest.check().map_err(bad)?;
        Ok(sealed.manifest)
    }

    /// Checks that the manifest makes sense, which no checksum can show.
    fn check(&self) -> Result<(), String> {
        for (file, name) in self.files.iter().zip([STATE, TENSORS]) {
            if file.name != name {
                return Err(format!("names the file {:?} where only {name} can be", file.name));
            }
        }
        let mut names = HashSet::new();
        if let Some(tensor) = self.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
            return Err(format!("names the tensor {:?} twice", tensor.name));
        }
        match self.data_bytes().filter(|bytes| *bytes < self.tensor_file().bytes) {
            Some(_) => Ok(()),
            None => Err(format!("its tensors do not fit into the {} bytes of {TENSORS}", self.tensor_file().bytes)),
        }
    }

    /// Bytes of all tensors together.
    pub fn data_bytes(&self) -> Option<u64> {
        let bytes = |tensor: &TensorEntry| tensor.elements.checked_mul(ELEMENT_BYTES);
        self.tensors.iter().try_fold(0u64, |sum, tensor| sum.checked_add(bytes(tensor)?))
    }

    /// The entry of [`STATE`].
    pub fn state_file(&self) -> &FileEntry {
        &self.files[0]
    }

    /// The entry of [`TENSORS`].
    pub fn tensor_file(&self) -> &FileEntry {
        &self.files[1]
    }
}
