//! Opens files of strangers (nothing that blocks, never ends or does not fit), and writes ours so that a reader sees all of
//! one or nothing of it.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};

/// Opens a file that is neither a directory, a pipe nor a device: those could block for ever or never end.
pub fn open_regular(path: &Path) -> Result<fs::File> {
    let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a directory" } else { "a pipe, socket or device" };
        return Err(Error::input(path, format!("this is {what}, not a file"), "name a regular file"));
    }
    fs::File::open(path).map_err(Error::io("read", path))
}

/// Reads a whole file of at most `limit` bytes.
pub fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        let problem = format!("larger than {} MiB, which no such file is", limit >> 20);
        return Err(Error::input(path, problem, "get the file again from where the model comes from"));
    }
    Ok(bytes)
}

/// Writes indented JSON as [`write_atomically`] does.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value).map_err(Error::encode(path))?;
    write_atomically(path, (json + "\n").as_bytes())
}

/// Writes a file beside its name and renames it, so that a reader sees the old one or the new one.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let folder = folder_of(path);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io("create a file in", folder))?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(Error::io("write", path))?;
    make_readable(file.path(), 0o644)?;
    file.persist(path).map_err(|error| Error::Io { action: "write", path: path.to_path_buf(), source: error.error })?;
    Ok(())
}

/// Fills a directory beside `path` and gives it that name once everything is on disk. `path` must not exist, or be an
/// empty directory.
pub fn write_directory(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let occupied = fs::read_dir(path).map(|mut entries| entries.next().is_some());
    if occupied.unwrap_or(path.exists()) {
        let problem = format!("{} exists already", path.display());
        return Err(Error::config("out", problem, "choose another directory, or remove it"));
    }
    let parent = folder_of(path);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    let staging = tempfile::Builder::new()
        .prefix(".temper-")
        .tempdir_in(parent)
        .map_err(Error::io("create a directory in", parent))?;
    fill(staging.path())?;
    sync(staging.path())?;
    make_readable(staging.path(), 0o755)?;
    let staging = staging.keep();
    fs::rename(&staging, path).map_err(|source| {
        fs::remove_dir_all(&staging).ok();
        Error::Io { action: "create", path: path.to_path_buf(), source }
    })?;
    sync(parent)
}

/// Waits until a file or a directory is on disk.
pub fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Gives a temporary file or directory, which is private, the permissions of what users create.
#[cfg(unix)]
fn make_readable(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("change", path))
}

#[cfg(not(unix))]
fn make_readable(_: &Path, _: u32) -> Result<()> {
    Ok(())
}
