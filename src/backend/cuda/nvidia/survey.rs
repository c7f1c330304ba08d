//! What this machine has of NVIDIA: driver, devices, libraries. Nothing is started on a device.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use super::super::driver::DeviceInfo;
use super::embedded::{Code, EMBEDDED};
use super::error::{Unavailable, describe, during};
use super::{cublaslt, libraries};
use crate::error::Result;

/// What a machine has.
#[derive(Debug)]
pub struct Survey {
    /// The CUDA version that the driver supports, or why there is none.
    pub driver: std::result::Result<(u32, u32), Unavailable>,
    /// Every device, and the code in this binary that it would run.
    pub devices: Vec<(DeviceInfo, std::result::Result<Code, Unavailable>)>,
    /// The library of matrix products, with its version.
    pub products: Option<String>,
}

/// Looks at this machine.
///
/// # Errors
/// When the driver works but fails to describe a device.
pub fn survey() -> Result<Survey> {
    let driver = start();
    let mut devices = Vec::new();
    if let Ok(version) = driver {
        for ordinal in 0..device_count()? {
            let info = device_info(device(ordinal)?)?;
            let code = EMBEDDED.code_for(info.compute_capability, version);
            devices.push((info, code));
        }
    }
    Ok(Survey { driver, devices, products: cublaslt::version() })
}

/// Starts the driver, once a process; its CUDA version. Must come before any other call of the driver.
pub(super) fn start() -> std::result::Result<(u32, u32), Unavailable> {
    if !libraries::driver_is_present() {
        return Err(Unavailable::NoDriver { library: libraries::DRIVER_NAME });
    }
    let fails = |error: DriverError| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Unavailable::NoDevice { ordinal: 0, count: 0 },
        _ => Unavailable::DriverFails { reason: describe(error) },
    };
    result::init().map_err(fails)?;
    let mut version = 0;
    // SAFETY: the result is written to a variable of the right type.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(fails)?;
    Ok(two_numbers(version))
}

/// 13010 is 13.1.
fn two_numbers(version: i32) -> (u32, u32) {
    let version = u32::try_from(version).unwrap_or(0);
    (version / 1000, version % 1000 / 10)
}

pub(super) fn device_count() -> Result<usize> {
    let count = result::device::get_count().map_err(during("number of GPUs"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The driver's handle of a device. The driver was started.
pub(super) fn device(ordinal: usize) -> Result<sys::CUdevice> {
    let count = device_count()?;
    if ordinal >= count {
        return Err(Unavailable::NoDevice { ordinal, count }.into());
    }
    result::device::get(ordinal as i32).map_err(during(format_args!("GPU {ordinal}")))
}

/// Facts about a device.
pub(super) fn device_info(device: sys::CUdevice) -> Result<DeviceInfo> {
    let number = |attribute| -> Result<u32> {
        // SAFETY: the handle came from the driver.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        Ok(u32::try_from(value.map_err(during(format_args!("{attribute:?}")))?).unwrap_or(0))
    };
    Ok(DeviceInfo {
        name: result::device::get_name(device).map_err(during("name of a GPU"))?,
        compute_capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: the handle came from the driver.
        memory: unsafe { result::device::total_mem(device) }.map_err(during("memory of a GPU"))? as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_version_is_two_numbers() {
        assert_eq!([12080, 13000, 13010, -1].map(two_numbers), [(12, 8), (13, 0), (13, 1), (0, 0)]);
    }

    /// On every machine, with and without a GPU: an answer, never a panic.
    #[test]
    fn looking_at_a_machine_does_not_panic() {
        let survey = survey().expect("a survey");
        match &survey.driver {
            Ok(version) => assert!(*version > (0, 0)),
            Err(reason) => {
                assert!(survey.devices.is_empty());
                assert!(!reason.to_string().contains('\n'));
            }
        }
    }
}
