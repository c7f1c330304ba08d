//! The manifest of a checkpoint: what its files must hold. Nothing that a manifest says is believed before it has been
//! checked against its own checksum, against the format, and against the files.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::TensorData;
use super::read::{RESTORE, open, read_whole};
use crate::error::{Error, Result};

/// The format that this version writes and reads.
const FORMAT: u64 = 1;
/// Longest manifest that is read: far more than the tensors of any model need.
const MAX_BYTES: u64 = 64 << 20;

/// The manifest's file name.
pub(super) const MANIFEST: &str = "manifest.json";
/// The file of the run's scalars.
pub(super) const STATE: &str = "state.json";
/// The file of the tensors.
pub(super) const TENSORS: &str = "tensors.safetensors";

/// What is known of a checkpoint without reading its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u64,
    pub step: u64,
    #[serde(serialize_with = "hexadecimal", deserialize_with = "from_hexadecimal")]
    pub config_hash: u64,
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
    pub dtype: TensorType,
    pub elements: u64,
    pub crc32c: u32,
}

/// The dtype of a tensor, spelled as in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TensorType {
    F32,
    U32,
}

impl TensorType {
    pub const BYTES: u64 = 4;

    pub fn of(data: &TensorData) -> Self {
        match data {
            TensorData::F32(_) => Self::F32,
            TensorData::U32(_) => Self::U32,
        }
    }

    pub fn safetensors(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::U32 => safetensors::Dtype::U32,
        }
    }
}

/// The content of the manifest's file: the manifest and the CRC-32C of its compact JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    crc32c: u32,
}

/// As much as every format has, to tell a newer one from a damaged one.
#[derive(Deserialize)]
struct Probe {
    manifest: FormatProbe,
}

#[derive(Deserialize)]
struct FormatProbe {
    format: u64,
}

fn hexadecimal<S: Serializer>(hash: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{hash:016x}"))
}

fn from_hexadecimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    match u64::from_str_radix(&text, 16) {
        Ok(hash) if format!("{hash:016x}") == text => Ok(hash),
        _ => Err(serde::de::Error::custom("config_hash is not 16 hexadecimal digits")),
    }
}

/// The CRC-32C of a manifest's compact JSON.
fn seal(manifest: &Manifest) -> serde_json::Result<u32> {
    Ok(crc32c::crc32c(&serde_json::to_vec(manifest)?))
}

impl Manifest {
    /// A manifest of this version's format.
    pub fn new(step: u64, config_hash: u64, files: [FileEntry; 2], tensors: Vec<TensorEntry>) -> Self {
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
        if format < FORMAT {
            return Err(bad(format!("there is no checkpoint format {format}")));
        }
        let sealed: Sealed = serde_json::from_slice(text).map_err(|error| bad(format!("not a manifest: {error}")))?;
        if seal(&sealed.manifest).ok() != Some(sealed.crc32c) {
            return Err(bad("the manifest's own checksum does not fit: it was damaged or edited".into()));
        }
        sealed.manifest.check().map_err(bad)?;
        Ok(sealed.manifest)
    }

    /// What no checksum can show: whether the manifest makes sense.
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
        let bytes = |tensor: &TensorEntry| tensor.elements.checked_mul(TensorType::BYTES);
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
