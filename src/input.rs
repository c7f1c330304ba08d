//! Opening files that strangers wrote: nothing that blocks, never ends or does not fit.

use std::fs;
use std::path::Path;

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
