//! Compiling many files: which files, which of them changed, and several at a time.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One run of a compiler: a source file becomes one output file.
pub struct Unit {
    /// The source, below `kernels/`.
    pub source: PathBuf,
    /// A file that the source includes by a name that is in the arguments.
    pub included: Option<PathBuf>,
    /// Program and every argument but source and output.
    pub compiler: Vec<String>,
    /// Written by the compiler. Beside it: its digest and what the compiler said.
    pub output: PathBuf,
}

impl Unit {
    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.output.clone().into_os_string();
        name.push(extension);
        name.into()
    }

    /// What the compiler said when it made the output.
    pub fn log(&self) -> Result<String, String> {
        read(&self.beside(".log"))
    }

    /// Digest of everything the output depends on, but the system's headers: `version` stands for those.
    fn digest(&self, version: &str) -> Result<String, String> {
        let mut digest = Digest::new();
        digest.add(version.as_bytes());
        for argument in &self.compiler {
            digest.add(argument.as_bytes());
        }
        for file in with_includes(std::iter::once(&self.source).chain(&self.included))? {
            digest.add(file.as_os_str().as_encoded_bytes());
            digest.add(read(&file)?.as_bytes());
        }
        Ok(digest.text())
    }

    /// Compiles, unless the output is there and its digest fits today's sources.
    fn make(&self, version: &str) -> Result<(), String> {
        let digest = self.digest(version)?;
        let stamp = self.beside(".digest");
        if self.output.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == digest) {
            return Ok(());
        }
        let _ = fs::remove_file(&stamp);
        let (program, arguments) = self.compiler.split_first().ok_or("no compiler")?;
        let mut command = Command::new(program);
        command.args(arguments).arg(&self.source).arg("-o").arg(&self.output);
        let output = command.output().map_err(|error| format!("{program} cannot be started: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("{} does not compile with {program}:\n{said}", self.source.display()));
        }
        write(&self.beside(".log"), said.as_bytes())?;
        write(&stamp, digest.as_bytes()) // last: it vouches for the others
    }
}

/// Compiles what changed, as many at a time as cargo allows, or as there are cores where cargo says nothing. All errors are
/// reported, not only the first.
pub fn make_all(units: &[Unit], version: &str) -> Result<(), String> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or_else(cores);
    let jobs = jobs.clamp(1, units.len().max(1));
    let mut largest_first: Vec<&Unit> = units.iter().collect();
    largest_first.sort_by_key(|unit| std::cmp::Reverse(fs::metadata(&unit.source).map_or(0, |data| data.len())));
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(unit) = largest_first.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = unit.make(version) {
                        errors.lock().expect("no thread panics while it holds this").push(error);
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().expect("no thread panics while it holds this");
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

/// The files and, transitively, every file below `kernels/` that they include, in a fixed order.
fn with_includes<'a>(sources: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeSet<PathBuf>, String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<PathBuf> = sources.cloned().collect();
    while let Some(file) = open.pop() {
        if !found.insert(file.clone()) {
            continue;
        }
        let text = read(&file)?;
        let includes =
            text.lines().filter_map(|line| line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include"));
        for name in includes.filter_map(|rest| rest.split(['"', '<', '>']).nth(1)) {
            let folders = [file.parent().unwrap_or(Path::new("")), Path::new("kernels"), Path::new("kernels/sim")];
            open.extend(folders.iter().map(|folder| plain(&folder.join(name))).find(|path| path.is_file()));
        }
    }
    Ok(found)
}

/// The path without `.` and `..`, so that one file has one name.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Files directly in a folder with this extension, by name. A folder that is not there is empty.
pub fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

/// A folder of `OUT_DIR`, made if it is not there.
pub fn out_folder(name: &str) -> Result<PathBuf, String> {
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?).join(name);
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// A variable that is set and not empty. The build script runs again when it changes.
pub fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// What `program --version` prints, if it starts.
pub fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

pub fn write(file: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(file, bytes).map_err(|error| format!("{}: {error}", file.display()))
}

/// FNV-1a of 128 bits: the standard library promises no digest that stays the same from one release to the next.
pub struct Digest(u128);

impl Digest {
    pub fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds a field; its length goes in too, so that the borders between fields count.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }

    pub fn text(&self) -> String {
        format!("{:032x}", self.0)
    }
}
