//! Which of several ways a device computes by, kept in a file: read by every command, written by `temper tune`.
//!
//! `file` is the document and what it is for: a device, a driver, a library and a program. `place` is where it lies unless
//! somebody says otherwise; `resumed` reads what a run has kept. Here a device is made to follow one. What was measured
//! elsewhere is never used: an algorithm's bytes mean something to one version of the library alone.

mod file;
mod place;
mod resumed;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use crate::backend::cuda::Key;
pub use file::{ProductEntry, ThreadsEntry, Tuning, Unit};
pub use place::standard_path;
pub use resumed::follow_resumed;

use crate::backend::any::{Device, Opened};
use crate::backend::cuda::{Choices, Cuda};
use crate::error::{Error, Result};

/// What a run says about tuning: `"off"`, or the file that it follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TuningPin {
    /// No choices.
    Off,
    /// The choices of this file, if they are for the device.
    File(PathBuf),
}

impl From<String> for TuningPin {
    fn from(text: String) -> Self {
        if text == "off" { Self::Off } else { Self::File(text.into()) }
    }
}

impl From<TuningPin> for String {
    fn from(pin: TuningPin) -> Self {
        match pin {
            TuningPin::Off => "off".into(),
            TuningPin::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// What a device follows, and why, in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Whether it follows a file.
    pub tuned: bool,
    /// For people.
    pub text: String,
}

impl Followed {
    fn nothing(text: impl Into<String>) -> Self {
        Self { tuned: false, text: text.into() }
    }
}

/// The device with the choices that `pin` names or, where it names none, those of the standard place. None for the CPU, for
/// which there is nothing to choose.
///
/// A file that is for another device, driver, library or program is not used, and the text says what differs.
///
/// # Errors
/// Where a file that is named does not exist, a file cannot be read, or the library refuses one of its algorithms:
/// [`Error::Io`] and [`Error::Input`].
pub fn follow(device: &Device, pin: Option<&TuningPin>) -> Result<(Device, Option<Followed>)> {
    match &device.0 {
        Opened::Cpu(_) => Ok((device.clone(), None)),
        Opened::Cuda(cuda) => {
            let (tuned, followed) = follow_cuda(cuda.clone(), pin)?;
            Ok((Device(Opened::Cuda(tuned)), Some(followed)))
        }
    }
}

/// As [`follow`], for a GPU.
///
/// # Errors
/// As [`follow`].
pub fn follow_cuda(cuda: Cuda, pin: Option<&TuningPin>) -> Result<(Cuda, Followed)> {
    let key = Key::of(&cuda);
    let (path, named) = match pin {
        Some(TuningPin::Off) => return Ok((cuda.with_choices(Choices::default())?, Followed::nothing("off"))),
        Some(TuningPin::File(path)) => (Some(path.clone()), true),
        None => (standard_path(&key.device), false),
    };
    let Some(path) = path.filter(|path| named || path.exists()) else {
        return Ok((cuda, Followed::nothing("none; `temper tune` measures what is fastest here")));
    };
    let (choices, followed) = choices_of(&path, &key)?;
    Ok((chosen(cuda, choices, &path)?, followed))
}

/// The device with the choices of a file.
fn chosen(cuda: Cuda, choices: Choices, path: &Path) -> Result<Cuda> {
    cuda.with_choices(choices).map_err(|error| match error {
        Error::Device(problem) => Error::input(path, problem, "remove it and run `temper tune` again"),
        other => other,
    })
}

/// Choices for people: "1a2b…", or "nothing".
fn fingerprint_of(choices: &Choices) -> Result<String> {
    Ok(choices.fingerprint()?.map_or("nothing".to_string(), |fingerprint| fingerprint.to_string()))
}

/// The choices of a file for a device; none where it is for another.
fn choices_of(path: &Path, key: &Key) -> Result<(Choices, Followed)> {
    let tuning = match Tuning::read_for(path, key)? {
        Ok(tuning) => tuning,
        Err(difference) => {
            let text = format!("none; {} is not used: {difference}", path.display());
            return Ok((Choices::default(), Followed::nothing(text)));
        }
    };
    let choices = tuning.choices();
    let text = format!("{} ({}, {})", path.display(), tuning.summary(), fingerprint_of(&choices)?);
    Ok((choices, Followed { tuned: true, text }))
}
