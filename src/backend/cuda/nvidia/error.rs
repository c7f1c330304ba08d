//! Why an NVIDIA device cannot be used, and what to do about it; and errors of its driver in words.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::Error;

/// Why there is no usable device. Every message ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// No driver library.
    #[error(
        "no NVIDIA driver ({library}) was found: install one, or in a container pass the GPU through (--gpus all); \
         runs on the CPU need none"
    )]
    NoDriver {
        /// The name that the loader was asked for.
        library: &'static str,
    },
    /// The driver library does not start.
    #[error(
        "the NVIDIA driver does not start: {reason}; `nvidia-smi` should list a device: reload or reinstall the driver"
    )]
    DriverFails {
        /// What it said.
        reason: String,
    },
    /// The driver sees no device, or fewer than were asked for.
    #[error(
        "there is no GPU {ordinal}: the driver sees {count}; choose another, or look at CUDA_VISIBLE_DEVICES and at what \
         the container may use"
    )]
    NoDevice {
        /// The device asked for, counted from 0.
        ordinal: usize,
        /// Number of devices.
        count: usize,
    },
    /// This binary holds no GPU code.
    #[error(
        "this temper was built without nvcc and holds no GPU kernels: run scripts/cuda-toolkit, or install CUDA 13 and set \
         CUDA_HOME, and build again"
    )]
    NoKernels,
    /// The device is older than the kernels allow.
    #[error(
        "the GPU has compute capability {}.{}, but bf16 arithmetic begins with {}.{}: use an A100, H100 or newer",
        capability.0, capability.1, oldest.0, oldest.1
    )]
    OldDevice {
        /// The device's.
        capability: (u32, u32),
        /// The oldest that works.
        oldest: (u32, u32),
    },
    /// The driver is older than what compiled the kernels.
    #[error(
        "the driver supports CUDA {}.{}, but the kernels were compiled by CUDA {}.{} and need a driver for {}.{} or newer: \
         update the driver, or build temper with an older toolkit (TEMPER_NVCC)",
        driver.0, driver.1, toolkit.0, toolkit.1, needed.0, needed.1
    )]
    OldDriver {
        /// The CUDA version that the driver supports.
        driver: (u32, u32),
        /// The least that is needed.
        needed: (u32, u32),
        /// What compiled the kernels.
        toolkit: (u32, u32),
    },
    /// There is no ready code for the device, and the driver is too old to compile the generic code.
    #[error(
        "there are kernels for sm {built_for}, none for compute capability {}.{}, and the driver (CUDA {}.{}) cannot compile \
         PTX of CUDA {}.{}: update the driver, or build temper with TEMPER_CUDA_ARCHS={}{}",
        capability.0, capability.1, driver.0, driver.1, toolkit.0, toolkit.1, capability.0, capability.1
    )]
    NoCode {
        /// The device's.
        capability: (u32, u32),
        /// The CUDA version that the driver supports.
        driver: (u32, u32),
        /// What compiled the kernels.
        toolkit: (u32, u32),
        /// The architectures in this binary.
        built_for: String,
    },
    /// A stream to be adopted belongs to a context that is not the device's primary one.
    #[error(
        "the stream belongs to {what}, not to the primary context of GPU {ordinal}: make it in the primary context \
         (cudaSetDevice, cuDevicePrimaryCtxRetain, or cust's `Context::new`, not its `legacy` contexts)"
    )]
    ForeignContext {
        /// Whose it is.
        what: &'static str,
        /// The device.
        ordinal: usize,
    },
}

impl From<Unavailable> for Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::NoDevice(unavailable.to_string())
    }
}

/// A function that makes an error of the driver ours, with what was attempted. Use with `map_err`.
pub(super) fn during(what: impl std::fmt::Display) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Device(format!("{what}: {}", describe(error)))
}

/// The driver's name for an error, its text, and a remedy where one is known.
pub(super) fn describe(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| text.map(|text| text.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|_| format!("error {}", error.0 as u32));
    let words = text(error.error_string()).unwrap_or_default();
    format!("{name} ({words}){}", remedy(error.0))
}

fn remedy(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION => {
            "; an earlier kernel is the cause and this process cannot go on: run it under `compute-sanitizer`, and report it"
        }
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_INVALID_PTX => "; `temper doctor` compares the kernels with the device and its driver",
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => "; the GPU's memory is defective: use another",
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "; the loader found the toolkit's stub: take the stubs folder out of LD_LIBRARY_PATH"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "; driver library and kernel module differ: reload the module, or restart"
        }
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => {
            "; run the same work once before it is captured, so that nothing is loaded or allocated inside"
        }
        _ => "",
    }
}
