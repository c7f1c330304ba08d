//! Writing a checkpoint: into a temporary directory beside it, every file flushed to the disk, the manifest last; then
//! renamed. Only after that are older checkpoints deleted.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::manifest::{ELEMENT_BYTES, FileEntry, MANIFEST, Manifest, STATE, TENSORS, TensorEntry};
use super::read::{REPLACED, candidates};
use super::{Snapshot, Tensor};
use crate::error::{Error, Result};

/// Elements written at a time.
const PIECE: usize = 1 << 18;
/// The suffix of a directory that is not, or no longer, a checkpoint.
const TEMPORARY: &str = ".tmp";

/// Writes `snapshot` as `root/step-NNNNNNNN`. Once it is safe on the disk, older checkpoints are deleted until `keep` (at
/// least 1) are left. Checkpoints of later steps are left alone; one of the same step is replaced.
///
/// Returns the new directory. A failed deletion is a warning. After an error the older checkpoints are as they were.
pub fn save(root: &Path, snapshot: &Snapshot, keep: usize) -> Result<PathBuf> {
    save_watched(root, snapshot, keep, &mut |_| Ok(()))
}

/// A function that is told each change of the file system just after it was made, and may fail in its place. Tests stop
/// a save here.
pub(super) type Watch<'a> = &'a mut dyn FnMut(&str) -> io::Result<()>;

/// [`save`] under the eyes of `watch`.
pub(super) fn save_watched(root: &Path, snapshot: &Snapshot, keep: usize, watch: Watch) -> Result<PathBuf> {
    check(snapshot)?;
    create_root(root)?;
    remove_leftovers(root)?;
    let directory = super::directory(root, snapshot.step);
    let temporary = with_suffix(&directory, TEMPORARY);
    let written = write_all(&temporary, snapshot, watch).and_then(|()| put(root, &temporary, &directory, watch));
    if let Err(error) = written {
        // The space may be needed; if this fails too, the next save tries again.
        let _ = remove(&temporary);
        return Err(error);
    }
    delete_older(root, snapshot.step, keep, watch);
    Ok(directory)
}

fn defect(problem: String) -> Error {
    Error::Shape { operation: "checkpoint::save", problem }
}

/// Refuses tensors that could be written but not read back.
fn check(snapshot: &Snapshot) -> Result<()> {
    let mut names = HashSet::new();
    for Tensor { name, .. } in &snapshot.tensors {
        if name.is_empty() || name == "__metadata__" || name.chars().any(char::is_control) {
            return Err(defect(format!("a tensor cannot be called {name:?}")));
        }
        if !names.insert(name) {
            return Err(defect(format!("two tensors are called {name:?}")));
        }
    }
    Ok(())
}

/// The state as JSON, which must read back as the same value.
fn state_bytes(state: &serde_json::Value) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(state).map_err(|error| defect(format!("the state is not JSON: {error}")))?;
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(read) if read == *state => Ok(bytes),
        _ => Err(defect("the state does not read back as it was written".into())),
    }
}

fn create_root(root: &Path) -> Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(root).map_err(Error::io("create", root))?;
    match root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_directory(parent),
        None => sync_directory(Path::new(".")),
    }
}

/// Removes the leftovers of an interrupted save.
fn remove_leftovers(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).map_err(Error::io("read", root))? {
        let path = entry.map_err(Error::io("read", root))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("step-") && name.ends_with(TEMPORARY) {
            remove(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Makes the names in a directory durable.
fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("flush", path))
}

/// Writes all three files, each flushed, and flushes the directory.
fn write_all(temporary: &Path, snapshot: &Snapshot, watch: Watch) -> Result<()> {
    fs::create_dir(temporary).map_err(Error::io("create", temporary))?;
    let state = state_bytes(&snapshot.state)?;
    let header = header(&snapshot.tensors)?;
    let elements: usize = snapshot.tensors.iter().map(|tensor| tensor.values.len()).sum();
    let needed = (state.len() + header.len()) as u64 + elements as u64 * ELEMENT_BYTES;
    step(watch, "created the directory", temporary, needed)?;

    let mut file = Writer::create(temporary, STATE, needed, watch)?;
    file.write(&state)?;
    let state = file.finish()?;

    let mut file = Writer::create(temporary, TENSORS, needed, watch)?;
    file.write(&header)?;
    let tensors = snapshot.tensors.iter().map(|tensor| file.write_tensor(tensor)).collect::<Result<Vec<_>>>()?;
    let files = [state, file.finish()?];

    let manifest = Manifest::new(snapshot.step, snapshot.config_hash, files, tensors);
    let text = manifest.to_file().map_err(|error| defect(format!("the manifest is not JSON: {error}")))?;
    let mut file = Writer::create(temporary, MANIFEST, needed, watch)?;
    // In two pieces, so that tests can stop in the middle.
    let (front, back) = text.split_at(text.len() / 2);
    file.write(front)?;
    file.write(back)?;
    file.finish()?;
    sync_directory(temporary)?;
    step(watch, "flushed the directory", temporary, needed)
}

/// The safetensors header of `tensors`, one after another, with its length in front and padded to 8 bytes.
fn header(tensors: &[Tensor]) -> Result<Vec<u8>> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        let elements = tensor.values.len();
        end += elements * ELEMENT_BYTES as usize;
        let info = TensorInfo { dtype: Dtype::F32, shape: vec![elements], data_offsets: (start, end) };
        (tensor.name.clone(), info)
    });
    let json = Metadata::new(None, infos.collect())
        .map_err(|error| error.to_string())
        .and_then(|metadata| serde_json::to_vec(&metadata).map_err(|error| error.to_string()))
        .map_err(|error| defect(format!("no safetensors header can hold these tensors: {error}")))?;
    let length = json.len().next_multiple_of(8);
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend(json);
    header.resize(8 + length, b' ');
    Ok(header)
}

/// Tells `watch`; an error is one of writing to `path`.
fn step(watch: Watch, what: &str, path: &Path, needed: u64) -> Result<()> {
    watch(what).map_err(write_error(path, needed))
}

/// An error of writing to `path`; a full disk is told how much the checkpoint needs.
fn write_error(path: &Path, needed: u64) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let source = if full {
            io::Error::new(error.kind(), format!("{error}; the checkpoint needs {needed} bytes, free them"))
        } else {
            error
        };
        Error::Io { action: "write", path: path.to_path_buf(), source }
    }
}

/// A new file that knows its checksum.
struct Writer<'a, 'b> {
    file: File,
    path: PathBuf,
    entry: FileEntry,
    needed: u64,
    watch: &'a mut (dyn FnMut(&str) -> io::Result<()> + 'b),
}

impl<'a, 'b> Writer<'a, 'b> {
    fn create(
        directory: &Path,
        name: &str,
        needed: u64,
        watch: &'a mut (dyn FnMut(&str) -> io::Result<()> + 'b),
    ) -> Result<Self> {
        let path = directory.join(name);
        let file = File::create_new(&path).map_err(write_error(&path, needed))?;
        step(watch, "created a file", &path, needed)?;
        Ok(Self { file, path, entry: FileEntry { name: name.to_owned(), bytes: 0, crc32c: 0 }, needed, watch })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(write_error(&self.path, self.needed))?;
        self.entry.bytes += bytes.len() as u64;
        self.entry.crc32c = crc32c::crc32c_append(self.entry.crc32c, bytes);
        step(self.watch, "wrote to a file", &self.path, self.needed)
    }

    fn write_tensor(&mut self, tensor: &Tensor) -> Result<TensorEntry> {
        let Tensor { name, values } = tensor;
        let mut crc = 0;
        let mut piece = Vec::with_capacity(PIECE.min(values.len()) * ELEMENT_BYTES as usize);
        for values in values.chunks(PIECE) {
            piece.clear();
            piece.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            crc = crc32c::crc32c_append(crc, &piece);
            self.write(&piece)?;
        }
        Ok(TensorEntry { name: name.clone(), elements: values.len() as u64, crc32c: crc })
    }

    fn finish(self) -> Result<FileEntry> {
        self.file.sync_all().map_err(write_error(&self.path, self.needed))?;
        step(self.watch, "flushed a file", &self.path, self.needed)?;
        Ok(self.entry)
    }
}

/// Gives the temporary directory its name. A checkpoint of that name steps aside first; until the new one has its
/// place, it is found under its other name.
fn put(root: &Path, temporary: &Path, directory: &Path, watch: Watch) -> Result<()> {
    let aside = with_suffix(directory, REPLACED);
    let replaces = fs::symlink_metadata(directory).is_ok();
    if replaces {
        if fs::symlink_metadata(&aside).is_ok() {
            remove(&aside).map_err(Error::io("remove", &aside))?;
        }
        fs::rename(directory, &aside).map_err(Error::io("rename", directory))?;
    }
    let renamed = watch("moved the replaced one aside").and_then(|()| fs::rename(temporary, directory));
    if let Err(source) = renamed {
        if replaces {
            // Under its other name it would be found as well.
            let _ = fs::rename(&aside, directory);
        }
        return Err(Error::Io { action: "rename", path: temporary.to_path_buf(), source });
    }
    watch("renamed the directory").map_err(Error::io("rename", directory))?;
    sync_directory(root)?;
    watch("flushed the root").map_err(Error::io("flush", root))
}

/// Deletes checkpoints older than `step`, all but the `keep` − 1 newest, and one of the same step that was replaced.
fn delete_older(root: &Path, step: u64, keep: usize, watch: Watch) {
    let candidates = match candidates(root) {
        Ok(candidates) => candidates,
        Err(error) => return tracing::warn!("old checkpoints stay: {error}"),
    };
    let current = super::directory(root, step);
    let replaced = candidates.iter().filter(|candidate| candidate.step == step && candidate.path != current);
    let older = candidates.iter().rev().filter(|candidate| candidate.step < step).skip(keep.saturating_sub(1));
    for path in replaced.chain(older).map(|candidate| &candidate.path) {
        // First out of the checkpoints' names, so that a half-deleted one is none.
        let temporary = with_suffix(path, TEMPORARY);
        let deleted = fs::rename(path, &temporary)
            .and_then(|()| watch("moved an old one away"))
            .and_then(|()| remove(&temporary))
            .and_then(|()| watch("deleted an old one"));
        if let Err(error) = deleted {
            tracing::warn!("cannot delete the old checkpoint {}: {error}", path.display());
        }
    }
}
