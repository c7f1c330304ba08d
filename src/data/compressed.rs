//! Unpacks gzip and Zstandard files while they are read. What comes out of a file is bounded: a few kilobytes can hold
//! endless text.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};

/// Bytes that may come out for each byte of the file; real data sets stay below a tenth of it.
const MOST_GROWTH: u64 = 200;
/// Bytes that may come out of any file.
const ALLOWANCE: u64 = 256 << 20;
/// Logarithm of the window in bytes that a Zstandard file may ask memory for; what `zstd` itself unpacks unless it is told.
const WINDOW: u32 = 27;

/// The name of the compression that a file beginning with `start` uses, and the program that undoes it.
pub fn compression(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let known: [(&[u8], _); 5] = [
        (b"\x1f\x8b", ("gzip", "gunzip")),
        (b"PK\x03\x04", ("zip", "unzip")),
        (b"\x28\xb5\x2f\xfd", ("zstd", "unzstd")),
        (b"BZh", ("bzip2", "bunzip2")),
        (b"\xfd7zXZ\0", ("xz", "unxz")),
    ];
    known.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, answer)| *answer)
}

/// What a file holds that beginning with `start` is compressed; `None` where this is not a compression that is undone here.
pub fn unpack(file: File, start: &[u8]) -> Result<Option<Box<dyn Read>>> {
    let length = file.metadata()?.len();
    let most = length.saturating_mul(MOST_GROWTH).saturating_add(ALLOWANCE);
    let left = most;
    let inner: Box<dyn Read> = match compression(start) {
        Some(("gzip", _)) => Box::new(flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file))),
        Some(("zstd", _)) => {
            let mut decoder = zstd::stream::read::Decoder::new(file)?;
            decoder.window_log_max(WINDOW)?;
            Box::new(decoder)
        }
        _ => return Ok(None),
    };
    Ok(Some(Box::new(Bounded { inner, length, most, left })))
}

/// A decoder that may give so many bytes. Its errors are of the kind [`ErrorKind::InvalidData`]: the file is at fault.
struct Bounded {
    inner: Box<dyn Read>,
    length: u64,
    most: u64,
    left: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let invalid = |problem: String| Error::new(ErrorKind::InvalidData, problem);
        let count = self.inner.read(buffer).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => error,
            _ => invalid(format!("cannot be unpacked: {error}")),
        })?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| invalid(format!("its {} bytes unpack to more than {} MiB", self.length, self.most >> 20)))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn unpacked(content: &[u8]) -> Result<u64> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let mut reader = unpack(file.reopen().unwrap(), content)?.unwrap();
        std::io::copy(&mut reader, &mut std::io::sink())
    }

    /// A third of a gigabyte of zeros in a few kilobytes is given up on; pieces one after another are all read.
    #[test]
    fn what_comes_out_is_bounded() {
        let bomb = zstd::bulk::compress(&vec![0; 300 << 20], 1).unwrap();
        assert!(bomb.len() < 100_000, "{}", bomb.len());
        let error = unpacked(&bomb).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("unpack to more than 2"), "{error}");
        let piece = zstd::bulk::compress(b"hello", 1).unwrap();
        assert_eq!(unpacked(&piece.repeat(3)).unwrap(), 15);
        let broken = unpacked(&piece[..piece.len() - 2]).unwrap_err();
        assert_eq!(broken.kind(), ErrorKind::InvalidData);
    }
}
