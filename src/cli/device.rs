//! `--device` and `--precision`: which device a command runs on.

use clap::{Args, ValueEnum};
use temper::Result;
use temper::backend::any::{self, Device, DeviceName};
use temper::backend::cuda::Cuda;

#[derive(Args, Clone, Debug)]
pub struct DeviceArguments {
    /// Where it runs: auto (a GPU if there is one, else the CPU), cpu, cuda, or cuda:N for GPU number N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse)]
    pub device: DeviceName,
    /// How a GPU keeps weights and activations; the CPU always computes in f32
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
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
    name.parse().map_err(|_| "expected auto, cpu, cuda or cuda:N")
}

impl DeviceArguments {
    /// Opens the device and says on stderr which one it is.
    pub fn open(&self) -> Result<Device> {
        let device = Device::open_named(self.device, self.precision.into())?;
        eprintln!("temper: on {}", device.description());
        Ok(device)
    }

    /// Opens a GPU (or its simulator), for commands that make no sense without one.
    pub fn open_cuda(&self) -> Result<Cuda> {
        any::open_cuda(self.device, self.precision.into())
    }
}
