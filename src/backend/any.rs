//! A device that is chosen by name when the program runs, and the step from it to the code that is generic over backends.

use std::str::FromStr;

use super::cpu::Cpu;
use super::cuda::Cuda;
use crate::error::{Error, Result};
use crate::ops::{Backend, DType};

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceName {
    /// `auto`: the first GPU if there is one, else the CPU.
    Auto,
    /// `cpu`.
    Cpu,
    /// `cuda:N`, counted from 0; `cuda` is the first.
    Cuda(usize),
    /// `sim`: the simulator of a GPU, for developers of kernels. `sim:sm_80` is the same, and `sim:sm_90` is Hopper.
    Simulator(SimulatedGpu),
}

/// Which GPU the simulator plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SimulatedGpu {
    /// Compute capability 8.0.
    #[default]
    Sm80,
    /// Compute capability 9.0, with the kernels for Hopper.
    Sm90,
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown = || {
            Error::config(
                "device",
                format!("`{name}` is no device"),
                "use auto, cpu, cuda or cuda:N; developers, sim or sim:sm_90",
            )
        };
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "sim" | "sim:sm_80" => Ok(Self::Simulator(SimulatedGpu::Sm80)),
            "sim:sm_90" => Ok(Self::Simulator(SimulatedGpu::Sm90)),
            _ => {
                let ordinal = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                ordinal.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

/// How a GPU keeps weights and activations. The CPU always computes in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// bf16, with f32 accumulation, and exact f32 weights in training.
    #[default]
    Bf16,
    /// f32 throughout: slow, for comparisons.
    F32,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::Bf16,
            Self::F32 => DType::F32,
        }
    }
}

/// An opened device: the CPU or a GPU. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Device(pub(crate) Opened);

/// The backend behind a [`Device`].
#[derive(Clone)]
pub(crate) enum Opened {
    Cpu(Cpu),
    Cuda(Cuda),
}

/// Evaluates an expression with `$backend` bound to the backend of a [`Device`], whichever it is.
macro_rules! on_device {
    ($device:expr, $backend:ident => $body:expr) => {
        match &$device.0 {
            $crate::backend::any::Opened::Cpu($backend) => $body,
            $crate::backend::any::Opened::Cuda($backend) => $body,
        }
    };
}
pub(crate) use on_device;

impl Device {
    /// Opens the device called `name`: `auto` (the first GPU if there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, or
    /// `sim` (`sim:sm_90`), a GPU (of the generation Hopper) simulated on the CPU, for developers of kernels.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no such name, or this build lacks the feature that it needs (`cuda`, `simulator`);
    /// [`Error::NoDevice`] where the GPU cannot be used. `auto` fails, too, where a GPU's driver is broken: nobody should
    /// end up on the CPU because of that.
    pub fn open(name: &str, precision: Precision) -> Result<Self> {
        Self::open_named(name.parse()?, precision)
    }

    /// As [`Device::open`], with the name parsed.
    pub fn open_named(name: DeviceName, precision: Precision) -> Result<Self> {
        Ok(Self(match name {
            DeviceName::Cpu => Opened::Cpu(Cpu),
            DeviceName::Auto if !has_gpu()? => Opened::Cpu(Cpu),
            _ => Opened::Cuda(open_cuda(name, precision)?),
        }))
    }

    /// The device in words.
    pub fn description(&self) -> String {
        on_device!(self, backend => backend.description())
    }

    /// Whether this is the CPU: main memory is all the memory, and attacks can run side by side.
    pub fn is_cpu(&self) -> bool {
        matches!(self.0, Opened::Cpu(_))
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.description()).finish()
    }
}

/// Opens a GPU, or its simulator, for work that makes no sense without one; `auto` is the first one.
pub fn open_cuda(name: DeviceName, precision: Precision) -> Result<Cuda> {
    let dtype = precision.dtype();
    match name {
        DeviceName::Auto => open_gpu(0, dtype),
        DeviceName::Cuda(ordinal) => open_gpu(ordinal, dtype),
        DeviceName::Simulator(gpu) => open_simulator(gpu, dtype),
        DeviceName::Cpu => Err(Error::config("device", "this is about GPUs", "name cuda or cuda:N")),
    }
}

/// Whether the driver is there and knows a device. A driver that fails is an error.
#[cfg(feature = "cuda")]
fn has_gpu() -> Result<bool> {
    use super::cuda::nvidia::{Unavailable, survey};
    let found = survey()?;
    if !found.devices.is_empty() {
        return Ok(true);
    }
    match found.driver {
        Ok(_) | Err(Unavailable::NoDriver { .. } | Unavailable::NoDevice { .. }) => Ok(false),
        Err(broken) => Err(broken.into()),
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
    Err(Error::config("device", "this temper was built without the feature `cuda`", "build it with that feature"))
}

#[cfg(feature = "simulator")]
fn open_simulator(gpu: SimulatedGpu, dtype: DType) -> Result<Cuda> {
    let capability = match gpu {
        SimulatedGpu::Sm80 => (8, 0),
        SimulatedGpu::Sm90 => (9, 0),
    };
    Cuda::simulated_as(dtype, capability, 0)
}

#[cfg(not(feature = "simulator"))]
fn open_simulator(_: SimulatedGpu, _: DType) -> Result<Cuda> {
    Err(Error::config("device", "this temper was built without the feature `simulator`", "build it with that feature"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_these_names_and_no_others() {
        let named = |name: &str| name.parse::<DeviceName>();
        assert_eq!(named("auto").unwrap(), DeviceName::Auto);
        assert_eq!(named("cpu").unwrap(), DeviceName::Cpu);
        assert_eq!(named("cuda").unwrap(), DeviceName::Cuda(0));
        assert_eq!(named("cuda:3").unwrap(), DeviceName::Cuda(3));
        assert_eq!(named("sim").unwrap(), DeviceName::Simulator(SimulatedGpu::Sm80));
        assert_eq!(named("sim:sm_80").unwrap(), named("sim").unwrap());
        assert_eq!(named("sim:sm_90").unwrap(), DeviceName::Simulator(SimulatedGpu::Sm90));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "sim:", "sim:90"] {
            assert!(matches!(named(wrong), Err(Error::Config { key, .. }) if key == "device"), "{wrong}");
        }
    }

    #[test]
    fn the_cpu_is_always_there_and_is_no_gpu() {
        let device = Device::open("cpu", Precision::F32).unwrap();
        assert!(device.is_cpu());
        assert!(matches!(open_cuda(DeviceName::Cpu, Precision::F32), Err(Error::Config { .. })));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_the_feature_a_gpu_is_a_wrong_setting() {
        assert!(matches!(Device::open("cuda", Precision::Bf16), Err(Error::Config { .. })));
        assert!(Device::open("auto", Precision::Bf16).unwrap().is_cpu());
    }
}
