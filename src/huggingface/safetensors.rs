//! Safetensors files: read memory-mapped and distrusted, written whole.
//!
//! The `safetensors` crate checks offsets, overlaps and sizes. It accepts duplicate names, huge ranks and misaligned
//! data, so those are checked or handled here. Names are never used as paths.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::strict_json;
use crate::error::{Error, Result};
use crate::files::open_regular;

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype, as the file spells it ("F32", "BF16", …).
    pub dtype: String,
}

/// A validated safetensors file.
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

/// Longest header that is read, the limit of the format's reference implementation.
const MAX_HEADER: u64 = 100_000_000;
/// Dimensions of a tensor; weights have two.
const MAX_RANK: usize = 8;

impl TensorInfo {
    /// Whether [`TensorFile::read_f32`] reads this dtype.
    pub(super) fn is_float(&self) -> bool {
        ["F32", "BF16", "F16", "F64"].contains(&self.dtype.as_str())
    }
}

impl TensorFile {
    /// Maps `path` and checks its header: no duplicate names, no overflow, ranks of at most 8.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        // SAFETY: the mapping is private and read-only. A file that another process truncates meanwhile makes reads
        // fault; model directories are not changed during a run, and this is documented in README's limits.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let entries = entries(&map, path)?;
        Ok(Self { path: path.to_path_buf(), map, entries })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok().map(|index| &self.entries[index])
    }

    /// Shape and dtype of a tensor.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entry(name).map(|entry| TensorInfo { shape: entry.shape.clone(), dtype: format!("{:?}", entry.dtype) })
    }

    fn refuse(&self, problem: String) -> Error {
        Error::input(&self.path, problem, "use the files that came with the model")
    }

    fn data(&self, name: &str) -> Result<(&Entry, &[u8])> {
        let entry = self.entry(name).ok_or_else(|| self.refuse(format!("there is no tensor `{name}`")))?;
        Ok((entry, &self.map[entry.range.clone()]))
    }

    /// A floating-point tensor converted to f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, _) = self.data(name)?;
        let mut values = vec![0.0; entry.shape.iter().product()];
        self.read_f32_into(name, &mut values)?;
        Ok(values)
    }

    /// As [`TensorFile::read_f32`], into a slice of the tensor's length.
    pub fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let (entry, bytes) = self.data(name)?;
        if out.len() != entry.shape.iter().product::<usize>() {
            return Err(self.refuse(format!(
                "tensor `{name}` has shape {:?}, not {} elements",
                entry.shape,
                out.len()
            )));
        }
        // Element by element from bytes: data need not be aligned.
        match entry.dtype {
            Dtype::F32 => convert(bytes, out, f32::from_le_bytes),
            Dtype::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
            other => return Err(self.refuse(format!("tensor `{name}` is {other:?}, not f32, bf16 or f16"))),
        }
        Ok(())
    }

    /// Whether a tensor of this file has the bytes and the dtype of another one.
    pub(super) fn is_same(&self, name: &str, other: &Self, other_name: &str) -> Result<bool> {
        let (entry, bytes) = self.data(name)?;
        let (other_entry, other_bytes) = other.data(other_name)?;
        Ok(entry.dtype == other_entry.dtype && entry.shape == other_entry.shape && bytes == other_bytes)
    }

    /// The dtype of the largest tensor.
    pub(super) fn main_dtype(&self) -> Option<Dtype> {
        self.entries.iter().max_by_key(|entry| entry.shape.iter().product::<usize>()).map(|entry| entry.dtype)
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], from: impl Fn([u8; N]) -> f32 + Sync) {
    const CHUNK: usize = 1 << 16;
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).for_each(|(out, bytes)| {
        for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(N)) {
            let mut word = [0; N];
            word.copy_from_slice(bytes);
            *value = from(word);
        }
    });
}

/// Checks a whole file and lists its tensors, sorted by name.
fn entries(bytes: &[u8], path: &Path) -> Result<Vec<Entry>> {
    let refuse = |problem: String| Error::input(path, problem, "download the file again");
    let header = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    let Some(header) = header.filter(|&h| h <= MAX_HEADER && h <= bytes.len() as u64 - 8) else {
        return Err(refuse("it is not a safetensors file: the header's length does not fit the file".into()));
    };
    let text =
        std::str::from_utf8(&bytes[8..8 + header as usize]).map_err(|_| refuse("its header is not UTF-8".into()))?;
    // The crate below keeps the last of two tensors of one name; this finds them.
    strict_json::distinct_keys(text.trim_end(), path)?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| refuse(format!("not a safetensors file: {error}")))?;
    let mut entries = Vec::new();
    for (name, view) in file.iter() {
        if view.shape().len() > MAX_RANK {
            return Err(refuse(format!("tensor `{name}` has {} dimensions", view.shape().len())));
        }
        if view.shape().contains(&0) {
            return Err(refuse(format!("tensor `{name}` has shape {:?}, which is empty", view.shape())));
        }
        let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        let range = start..start + view.data().len();
        entries.push(Entry { name: name.to_string(), dtype: view.dtype(), shape: view.shape().to_vec(), range });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}
