//! Finding, checking and loading checkpoints. Every byte is compared with the manifest's checksums, sizes are compared
//! before anything is allocated, and only regular files inside the checkpoint's directory are opened.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;

use super::manifest::{ELEMENT_BYTES, Manifest, STATE, TENSORS, TensorEntry};
use super::{Snapshot, Tensor};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// The remedy for a damaged checkpoint.
pub(super) const RESTORE: &str = "resume from an older checkpoint, or restore this one from a copy";
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A checkpoint as its manifest describes it; its data was not read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckpointInfo {
    /// Its directory.
    pub path: PathBuf,
    /// Outer steps taken.
    pub step: u64,
    /// Fingerprint of the run's configuration.
    pub config_hash: Fingerprint,
    /// Size of its data files.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// The version of temper that wrote it.
    pub temper_version: String,
}

/// What [`verify`] found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verification {
    /// The checkpoint.
    pub path: PathBuf,
    /// Outer steps taken, where the manifest can be read.
    pub step: Option<u64>,
    /// Size of the data files that were read, as the manifest has it.
    pub bytes: u64,
    /// One line for each bad file or tensor; none where the checkpoint is intact.
    pub problems: Vec<String>,
}

impl Verification {
    /// Whether every byte is as it was written.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The checkpoints under `root`, oldest first. One whose manifest is bad is left out with a warning that names it.
/// Empty where `root` does not exist.
pub fn list(root: &Path) -> Result<Vec<CheckpointInfo>> {
    let mut infos = Vec::new();
    for candidate in candidates(root)? {
        match manifest_of(&candidate.path) {
            Ok(manifest) => infos.push(CheckpointInfo {
                step: manifest.step,
                config_hash: manifest.config_hash,
                bytes: data_size(&manifest),
                tensors: manifest.tensors.len(),
                temper_version: manifest.temper_version,
                path: candidate.path,
            }),
            Err(error) => tracing::warn!("left out {}: {error}", candidate.path.display()),
        }
    }
    Ok(infos)
}

/// The newest checkpoint under `root` of which every byte verifies. A broken newer one is skipped with a warning.
pub fn latest(root: &Path) -> Result<Option<PathBuf>> {
    for candidate in candidates(root)?.into_iter().rev() {
        let problems = check(&candidate.path, &mut |_, _| Ok(())).1;
        match problems.first() {
            None => return Ok(Some(candidate.path)),
            Some(problem) => tracing::warn!("skipped the broken checkpoint {}: {problem}", candidate.path.display()),
        }
    }
    Ok(None)
}

/// Reads a checkpoint, every byte checked. The error is the first problem that [`verify`] would list.
pub fn load(dir: &Path) -> Result<Snapshot> {
    let mut tensors: Vec<Tensor> = Vec::new();
    let (found, problems) = check(dir, &mut |tensor, bytes| keep(dir, &mut tensors, tensor, bytes));
    if let Some(problem) = problems.into_iter().next() {
        return Err(problem);
    }
    let Some((manifest, state)) = found else {
        return Err(Error::input(dir, "not a checkpoint", RESTORE));
    };
    Ok(Snapshot { step: manifest.step, config_hash: manifest.config_hash, state, tensors })
}

/// Checks every byte of a checkpoint and names all that is wrong. An error only where the directory cannot be read.
pub fn verify(dir: &Path) -> Result<Verification> {
    fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let manifest = manifest_of(dir).ok();
    let problems = check(dir, &mut |_, _| Ok(())).1;
    Ok(Verification {
        path: dir.to_path_buf(),
        step: manifest.as_ref().map(|manifest| manifest.step),
        bytes: manifest.as_ref().map_or(0, data_size),
        problems: problems.iter().map(Error::to_string).collect(),
    })
}

/// A directory whose name is a checkpoint's.
pub(super) struct Candidate {
    pub step: u64,
    pub path: PathBuf,
}

/// The suffix of a checkpoint that is about to be replaced by one of the same step.
pub(super) const REPLACED: &str = ".replaced";

/// The directories under `root` that have a checkpoint's name, oldest first; of the same step, the replaced one first.
pub(super) fn candidates(root: &Path) -> Result<Vec<Candidate>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("read", root))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", root))?.path();
        if let Some((step, replaced)) = step_of(&path) {
            found.push((step, !replaced, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(step, _, path)| Candidate { step, path }).collect())
}

/// The step that a checkpoint's directory name says, and whether it is one that was being replaced.
fn step_of(path: &Path) -> Option<(u64, bool)> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(REPLACED).unwrap_or(name);
    let step = stem.strip_prefix("step-")?.parse().ok()?;
    (super::directory(Path::new(""), step).to_str() == Some(stem)).then_some((step, stem.len() < name.len()))
}

fn data_size(manifest: &Manifest) -> u64 {
    manifest.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
}

/// The manifest of `dir`, which must be of the step that the directory's name says.
fn manifest_of(dir: &Path) -> Result<Manifest> {
    let manifest = Manifest::read(dir)?;
    match step_of(dir) {
        Some((step, _)) if step != manifest.step => {
            let problem = format!("the directory's name says step {step}, its manifest step {}", manifest.step);
            Err(Error::input(dir, problem, "give it back the name that it was written under"))
        }
        _ => Ok(manifest),
    }
}

/// A function that takes the next bytes of a tensor, a whole number of elements.
type Sink<'a> = &'a mut dyn FnMut(&TensorEntry, &[u8]) -> Result<()>;

/// Reads all of a checkpoint: its manifest and state where they are right, its tensors' bytes into `sink`, and
/// everything that is wrong.
fn check(dir: &Path, sink: Sink) -> (Option<(Manifest, serde_json::Value)>, Vec<Error>) {
    let manifest = match manifest_of(dir) {
        Ok(manifest) => manifest,
        Err(problem) => return (None, vec![problem]),
    };
    let mut problems = Vec::new();
    let state = read_state(dir, &manifest);
    if let Err(problem) = read_tensors(dir, &manifest, sink, &mut problems) {
        problems.push(problem);
    }
    match state {
        Ok(state) => (Some((manifest, state)), problems),
        Err(problem) => {
            problems.insert(0, problem);
            (None, problems)
        }
    }
}

/// Opens a regular file: no link, and nothing that could block or never end.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let metadata = fs::symlink_metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::input(path, "not a regular file", RESTORE));
    }
    Ok((File::open(path).map_err(Error::io("read", path))?, metadata.len()))
}

/// The first `bytes` bytes of a file.
pub(super) fn read_whole(file: File, path: &Path, bytes: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    reserve(&mut text, path, bytes)?;
    file.take(bytes).read_to_end(&mut text).map_err(Error::io("read", path))?;
    Ok(text)
}

/// Room for `elements` more elements, or an error where there is no memory for them.
fn reserve<T>(values: &mut Vec<T>, path: &Path, elements: u64) -> Result<()> {
    let fits = usize::try_from(elements).is_ok_and(|elements| values.try_reserve_exact(elements).is_ok());
    if fits {
        return Ok(());
    }
    let bytes = elements.saturating_mul(size_of::<T>() as u64);
    Err(Error::input(path, format!("no memory for {bytes} bytes"), "resume on a machine with more memory"))
}

/// Opens a data file, which must have the size that the manifest says.
fn open_sized(path: &Path, expected: u64) -> Result<File> {
    let (file, bytes) = open(path)?;
    if bytes == expected {
        return Ok(file);
    }
    Err(Error::input(path, format!("{bytes} bytes, {expected} were written"), RESTORE))
}

fn wrong_checksum(path: &Path, what: &str, found: u32, expected: u32) -> Error {
    Error::input(path, format!("{what} has checksum {found:08x}, {expected:08x} was written"), RESTORE)
}

fn read_state(dir: &Path, manifest: &Manifest) -> Result<serde_json::Value> {
    let path = dir.join(STATE);
    let entry = manifest.state_file();
    let text = read_whole(open_sized(&path, entry.bytes)?, &path, entry.bytes)?;
    let found = crc32c::crc32c(&text);
    if found != entry.crc32c {
        return Err(wrong_checksum(&path, "the file", found, entry.crc32c));
    }
    serde_json::from_slice(&text).map_err(|error| Error::input(&path, format!("not JSON: {error}"), RESTORE))
}

/// Reads the tensor file from front to end. The manifest says where each tensor must lie, so that the bad ones can be
/// named even where the file's own header is damaged.
fn read_tensors(dir: &Path, manifest: &Manifest, sink: Sink, problems: &mut Vec<Error>) -> Result<()> {
    let path = dir.join(TENSORS);
    let entry = manifest.tensor_file();
    let mut file = open_sized(&path, entry.bytes)?;
    // The manifest's check has shown that the tensors leave room for a header.
    let header_bytes = entry.bytes.saturating_sub(manifest.data_bytes().unwrap_or(0));
    let mut header = Vec::new();
    reserve(&mut header, &path, header_bytes)?;
    file.by_ref().take(header_bytes).read_to_end(&mut header).map_err(Error::io("read", &path))?;
    let mut crc = crc32c::crc32c(&header);
    if let Err(problem) = check_header(&header, manifest) {
        problems.push(Error::input(&path, problem, RESTORE));
    }
    let mut buffer = vec![0; PIECE];
    for tensor in &manifest.tensors {
        // Also for a tensor without elements, so that it exists.
        sink(tensor, &[])?;
        let mut left = tensor.elements.saturating_mul(ELEMENT_BYTES);
        let mut tensor_crc = 0;
        while left > 0 {
            let piece = &mut buffer[..usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
            file.read_exact(piece).map_err(Error::io("read", &path))?;
            crc = crc32c::crc32c_append(crc, piece);
            tensor_crc = crc32c::crc32c_append(tensor_crc, piece);
            sink(tensor, piece)?;
            left -= piece.len() as u64;
        }
        if tensor_crc != tensor.crc32c {
            let what = format!("tensor `{}`", tensor.name);
            problems.push(wrong_checksum(&path, &what, tensor_crc, tensor.crc32c));
        }
    }
    if crc != entry.crc32c && problems.is_empty() {
        problems.push(wrong_checksum(&path, "the file", crc, entry.crc32c));
    }
    Ok(())
}

/// Whether a safetensors header says of each tensor what the manifest says.
fn check_header(header: &[u8], manifest: &Manifest) -> Result<(), String> {
    let Some((length, json)) = header.split_first_chunk() else {
        return Err("too short for a safetensors header".into());
    };
    if u64::from_le_bytes(*length) != json.len() as u64 {
        return Err(format!("the header says that it has {} bytes, not {}", u64::from_le_bytes(*length), json.len()));
    }
    let metadata: Metadata =
        serde_json::from_slice(json).map_err(|error| format!("not a safetensors header: {error}"))?;
    if metadata.offset_keys().len() != manifest.tensors.len() {
        return Err(format!(
            "the header has {} tensors, {} were written",
            metadata.offset_keys().len(),
            manifest.tensors.len()
        ));
    }
    let mut start = 0usize;
    for tensor in &manifest.tensors {
        let fits = metadata.info(&tensor.name).is_some_and(|info| {
            let end = usize::try_from(tensor.elements * ELEMENT_BYTES).ok().and_then(|len| start.checked_add(len));
            let found = (info.dtype, info.data_offsets.0, Some(info.data_offsets.1));
            let expected = (safetensors::Dtype::F32, start, end);
            start = info.data_offsets.1;
            found == expected
        });
        if !fits {
            return Err(format!("the header has no tensor `{}` at its place", tensor.name));
        }
    }
    Ok(())
}

/// Appends the next bytes of a tensor to its values; no bytes begin the tensor.
fn keep(dir: &Path, tensors: &mut Vec<Tensor>, entry: &TensorEntry, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        let mut values = Vec::new();
        reserve(&mut values, dir, entry.elements)?;
        tensors.push(Tensor::new(entry.name.as_str(), values));
    } else if let Some(tensor) = tensors.last_mut() {
        let (elements, _) = bytes.as_chunks();
        tensor.values.extend(elements.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }
    Ok(())
}
