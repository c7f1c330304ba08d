//! A run that is resumed follows the choices that it began with, whatever became of the file that they came from: a run keeps
//! them beside its checkpoints.

use std::path::Path;

use super::{Followed, Key, TuningPin, choices_of, chosen, fingerprint_of};
use crate::backend::any::{Device, Opened};
use crate::backend::cuda::{Choices, Cuda, KeptChoices};
use crate::error::{Error, Result};
use crate::files::read_capped;

/// Largest file that is read: a choice takes about 200 bytes.
const LARGEST: u64 = 16 << 20;

/// The device with the choices that a run has kept in the file `kept`. None where there is no such file, and on the CPU.
///
/// `pin` is what is asked for besides. A file that has all of the run's choices and more is how `temper tune` goes on, and
/// the run's own are followed all the same, which the text says.
///
/// # Errors
/// [`Error::Config`] where `pin` asks for choices that contradict the run's; [`Error::Input`] where the file cannot be read, or
/// its choices are not for this device.
pub fn follow_resumed(
    device: &Device,
    pin: Option<&TuningPin>,
    kept: &Path,
) -> Result<Option<(Device, Option<Followed>)>> {
    let Opened::Cuda(cuda) = &device.0 else { return Ok(None) };
    if !kept.exists() {
        return Ok(None);
    }
    let key = Key::of(cuda);
    let choices = read(kept, &key)?;
    let mut text = format!("the choices that the run began with, {} ({})", kept.display(), fingerprint_of(&choices)?);
    if let Some(pin) = pin {
        expect_no_other(pin, &choices, &key, kept)?;
        if let TuningPin::File(path) = pin {
            text += &format!("; {} is not read again", path.display());
        }
    }
    let followed = Followed { tuned: choices != Choices::default(), text };
    let tuned: Cuda = chosen(cuda.clone(), choices, kept)?;
    Ok(Some((Device(Opened::Cuda(tuned)), Some(followed))))
}

/// The choices of a run for the device of `key`.
fn read(path: &Path, key: &Key) -> Result<Choices> {
    let wrong = |problem: String, remedy: &str| Error::input(path, problem, remedy);
    let KeptChoices { key: began, choices } = serde_json::from_slice(&read_capped(path, LARGEST)?)
        .map_err(|error| wrong(error.to_string(), "restore the run's folder from a copy, or begin a new run"))?;
    // A run without choices is bound to no device.
    match began.difference(key).filter(|_| choices != Choices::default()) {
        None => Ok(choices),
        Some(difference) => Err(wrong(
            format!("the run began with these choices, and they are not for this device: {difference}"),
            "resume it where it began, or begin a new run",
        )),
    }
}

/// Fails where `pin` asks for choices with which the run would have other bits. A file that is gone, broken or for another device
/// asks for nothing.
fn expect_no_other(pin: &TuningPin, began: &Choices, key: &Key, kept: &Path) -> Result<()> {
    let asked = match pin {
        TuningPin::Off => Some(Choices::default()),
        TuningPin::File(path) => choices_of(path, key).ok().filter(|(_, followed)| followed.tuned).map(|found| found.0),
    };
    if asked.is_none_or(|asked| asked.extend(began)) {
        return Ok(());
    }
    let problem = format!("the run began with other choices, those of {}, and these give other bits", kept.display());
    Err(Error::config(
        "tuning",
        problem,
        "leave it out, since a run that is resumed follows its own, or begin a new run",
    ))
}
