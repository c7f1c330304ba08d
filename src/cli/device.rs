//! `--device` and `--precision`: which backend a command runs on.

use clap::{Args, ValueEnum};
use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{Backend, DType};
use temper::{Error, Result};

#[derive(Args, Clone, Debug)]
pub struct DeviceArguments {
    /// Where it runs: auto (a GPU if there is one, else the CPU), cpu, cuda, or cuda:N for GPU number N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse)]
    pub device: Choice,
    /// How a GPU keeps weights and activations; the CPU always computes in f32
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
}

/// A device as the user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Auto,
    Cpu,
    Cuda(usize),
    /// The simulator of a GPU: for developers, so no help text names it.
    Simulator,
}

/// How a GPU keeps weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// bf16, with f32 accumulation and exact f32 weights in training
    Bf16,
    /// f32 throughout: slow, for comparisons
    F32,
}

/// An opened device.
pub enum Device {
    Cpu(Cpu),
    Cuda(Cuda),
}

/// Evaluates an expression with `$backend` bound to the opened device, whichever it is.
macro_rules! on_device {
    ($device:expr, $backend:ident => $body:expr) => {
        match $device {
            $crate::cli::device::Device::Cpu($backend) => $body,
            $crate::cli::device::Device::Cuda($backend) => $body,
        }
    };
}
pub(super) use on_device;

pub(super) fn parse(text: &str) -> Result<Choice, String> {
    match text {
        "auto" => Ok(Choice::Auto),
        "cpu" => Ok(Choice::Cpu),
        "cuda" => Ok(Choice::Cuda(0)),
        "sim" => Ok(Choice::Simulator),
        _ => match text.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => Ok(Choice::Cuda(ordinal)),
            _ => Err("expected auto, cpu, cuda or cuda:N".into()),
        },
    }
}

impl DeviceArguments {
    /// Opens the device and says on stderr which one it is.
    pub fn open(&self) -> Result<Device> {
        let device = match self.device {
            Choice::Cpu => Device::Cpu(Cpu),
            Choice::Auto if !has_gpu()? => Device::Cpu(Cpu),
            _ => Device::Cuda(self.open_cuda()?),
        };
        eprintln!("temper: on {}", on_device!(&device, backend => backend.description()));
        Ok(device)
    }

    /// Opens a GPU (or its simulator), for commands that make no sense without one.
    pub fn open_cuda(&self) -> Result<Cuda> {
        let dtype = match self.precision {
            Precision::Bf16 => DType::Bf16,
            Precision::F32 => DType::F32,
        };
        match self.device {
            Choice::Auto => open_gpu(0, dtype),
            Choice::Cuda(ordinal) => open_gpu(ordinal, dtype),
            Choice::Simulator => open_simulator(dtype),
            Choice::Cpu => Err(Error::config("--device", "this command is about GPUs", "name cuda or cuda:N")),
        }
    }
}

/// Whether the driver is there and knows a device. A driver that fails is an error: with `auto` nobody should end up on
/// the CPU because something is broken.
#[cfg(feature = "cuda")]
fn has_gpu() -> Result<bool> {
    use temper::backend::cuda::nvidia::{Unavailable, survey};
    match survey()? {
        found if !found.devices.is_empty() => Ok(true),
        found => match found.driver {
            Ok(_) | Err(Unavailable::NoDriver { .. } | Unavailable::NoDevice { .. }) => Ok(false),
            Err(broken) => Err(Error::Device(broken.to_string())),
        },
    }
}

#[cfg(not(feature = "cuda"))]
fn has_gpu() -> Result<bool> {
    Ok(false)
}

#[cfg(feature = "cuda")]
fn open_gpu(ordinal: usize, dtype: DType) -> Result<Cuda> {
    Cuda::nvidia(ordinal, dtype)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_: usize, _: DType) -> Result<Cuda> {
    Err(Error::config("--device", "this temper was built without the feature `cuda`", "build it with that feature"))
}

#[cfg(feature = "simulator")]
fn open_simulator(dtype: DType) -> Result<Cuda> {
    Cuda::simulated(dtype)
}

#[cfg(not(feature = "simulator"))]
fn open_simulator(_: DType) -> Result<Cuda> {
    Err(Error::config("--device", "this temper was built without the simulator", "build it with that feature"))
}
