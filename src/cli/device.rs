//! `--device`, `--precision` and `--tuning`: which device a command runs on, and how.

use std::path::Path;

use clap::{Args, ValueEnum};
use temper::Result;
use temper::backend::any::{self, Device, DeviceName};
use temper::backend::cuda::Cuda;
use temper::run::RunDirectory;
use temper::tuning::{self, Followed, TuningPin};

#[derive(Args, Clone, Debug)]
pub struct DeviceArguments {
    /// Where it runs: auto (a GPU if there is one, else the CPU), cpu, cuda, or cuda:N for GPU number N; for developers, a
    /// simulated GPU: sim, sim:sm_90
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse)]
    pub device: DeviceName,
    /// How a GPU keeps weights and activations; the CPU always computes in f32
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
    /// Measured choices for a GPU to follow: a file of `temper tune`, or off [default: the run file's where it names one, else the user's own]
    #[arg(long, value_name = "FILE", value_parser = pin)]
    pub tuning: Option<TuningPin>,
}

/// What a command follows.
pub(super) fn pin(text: &str) -> Result<TuningPin, String> {
    match text {
        "" => Err("expected a file, or off".into()),
        "off" => Ok(TuningPin::Off),
        other if ["off", "none", "no"].contains(&other.to_lowercase().as_str()) => {
            Err(format!("did you mean off? A file of this name is ./{other}"))
        }
        file => Ok(TuningPin::File(file.into())),
    }
}

/// How a GPU keeps weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// bf16, with f32 accumulation and exact f32 weights in training
    Bf16,
    /// f32 throughout: slow, for comparisons
    F32,
}

impl From<Precision> for any::Precision {
    fn from(argument: Precision) -> Self {
        match argument {
            Precision::Bf16 => Self::Bf16,
            Precision::F32 => Self::F32,
        }
    }
}

/// A device's name; clap says which option was wrong.
pub(super) fn parse(name: &str) -> Result<DeviceName, &'static str> {
    name.parse().map_err(|_| "expected auto, cpu, cuda, cuda:N, sim or sim:sm_90")
}

/// The device, after saying on stderr which one it is, and what it follows.
fn said(device: Device, followed: Option<Followed>) -> Device {
    eprintln!("temper: on {}", device.description());
    if let Some(followed) = followed {
        eprintln!("temper: tuning: {}", followed.text);
    }
    device
}

impl DeviceArguments {
    /// Opens the device and says on stderr which one it is, and what it follows.
    pub fn open(&self) -> Result<Device> {
        self.open_pinned(None)
    }

    /// As [`DeviceArguments::open`]; without the option, it follows what `pinned` says.
    pub fn open_pinned(&self, pinned: Option<&TuningPin>) -> Result<Device> {
        let plain = Device::open_named(self.device, self.precision.into())?;
        let (device, followed) = tuning::follow(&plain, self.tuning.as_ref().or(pinned))?;
        if let (true, Some(TuningPin::File(path))) = (device.is_cpu(), &self.tuning) {
            eprintln!("temper: tuning: a CPU has one way to compute: {} is not read", path.display());
        }
        Ok(said(device, followed))
    }

    /// As [`DeviceArguments::open_pinned`], for a run in `out`: one that is resumed follows the choices that it began with.
    pub fn open_for_run(&self, pinned: Option<&TuningPin>, out: &Path, resume: bool) -> Result<Device> {
        let kept = RunDirectory::kept_choices(out);
        if !resume || !kept.exists() {
            return self.open_pinned(pinned);
        }
        let plain = Device::open_named(self.device, self.precision.into())?;
        match tuning::follow_resumed(&plain, self.tuning.as_ref().or(pinned), &kept)? {
            Some((device, followed)) => Ok(said(device, followed)),
            None => Ok(said(plain, None)),
        }
    }

    /// Opens a GPU (or its simulator), for commands that make no sense without one, and says on stderr what it follows.
    pub fn open_cuda(&self) -> Result<Cuda> {
        let (cuda, followed) = tuning::follow_cuda(self.open_untuned()?, self.tuning.as_ref())?;
        eprintln!("temper: tuning: {}", followed.text);
        Ok(cuda)
    }

    /// Opens a GPU (or its simulator) that follows no choices.
    pub fn open_untuned(&self) -> Result<Cuda> {
        any::open_cuda(self.device, self.precision.into())
    }
}
