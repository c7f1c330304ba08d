//! Launches: what a kernel is given, checked against what it declares.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::super::driver::{Argument, Launch, TensorMap};
use super::device::Nvidia;
use super::error::during;
use crate::error::{Error, Result};

impl Nvidia {
    /// Launches a kernel in clusters of blocks; a `cluster` of ones: without.
    ///
    /// # Safety
    /// As `Driver::launch`.
    pub unsafe fn launch_with(&self, launch: &Launch, cluster: [u32; 3], arguments: &[Argument]) -> Result<()> {
        self.bind()?;
        let kernel = self.kernels.get(launch.kernel)?;
        check_arguments(launch.kernel, &kernel.parameter_bytes, arguments)?;
        if launch.shared_bytes > self.info.shared_bytes_per_block {
            let asked = launch.shared_bytes;
            let most = self.info.shared_bytes_per_block;
            return Err(Error::Device(format!("{}: {asked} shared bytes, but a block has {most}", launch.kernel)));
        }
        let mut attribute = cluster_attribute(cluster);
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: u32::from(cluster.iter().any(|&extent| extent > 1)),
        };
        let mut values: Vec<*mut c_void> = arguments.iter().map(address_of).collect();
        // SAFETY: configuration, values and kernel live through the call, and the driver copies values before it
        // returns; number and sizes of the parameters were checked, the caller vouches for the rest.
        unsafe { sys::cuLaunchKernelEx(&config, kernel.function, values.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(during(format_args!("launch of `{}` ({:?} × {})", launch.kernel, launch.grid, launch.block)))
    }
}

/// Where the value of an argument lies.
fn address_of(argument: &Argument) -> *mut c_void {
    let address: *const c_void = match argument {
        Argument::Pointer(value) | Argument::U64(value) => std::ptr::from_ref(value).cast(),
        Argument::U32(value) => std::ptr::from_ref(value).cast(),
        Argument::F32(value) => std::ptr::from_ref(value).cast(),
        Argument::TensorMap(map) => std::ptr::from_ref(map).cast(),
    };
    address.cast_mut() // the driver only reads it
}

fn bytes_of(argument: &Argument) -> usize {
    match argument {
        Argument::Pointer(_) | Argument::U64(_) => 8,
        Argument::U32(_) | Argument::F32(_) => 4,
        Argument::TensorMap(_) => size_of::<TensorMap>(),
    }
}

/// A launcher and its kernel that do not agree are an error here, and not garbage in memory.
fn check_arguments(kernel: &str, declared: &[usize], arguments: &[Argument]) -> Result<()> {
    let given: Vec<usize> = arguments.iter().map(bytes_of).collect();
    if declared.is_empty() || *declared == *given {
        return Ok(());
    }
    Err(Error::Device(format!("`{kernel}` has parameters of {declared:?} bytes, but was given {given:?}: a defect")))
}

fn cluster_attribute([x, y, z]: [u32; 3]) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z } },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_whose_arguments_do_not_fit_the_kernel_is_refused() {
        let given = [Argument::Pointer(1), Argument::U32(2), Argument::F32(3.0), Argument::U64(4)];
        assert!(check_arguments("k", &[8, 4, 4, 8], &given).is_ok());
        assert!(check_arguments("k", &[], &given).is_ok(), "a driver that does not say");
        for declared in [&[8, 4, 4][..], &[8, 4, 4, 8, 8], &[8, 8, 4, 8]] {
            let error = check_arguments("k", declared, &given).expect_err("a misfit").to_string();
            assert!(error.contains(&format!("{declared:?}")) && error.contains("[8, 4, 4, 8]"), "{error}");
        }
    }

    /// An argument's address shows its value, of the size that is claimed for it.
    #[test]
    fn arguments_are_passed_by_address() {
        let [pointer, float] = [Argument::Pointer(0x1234_5678_9abc_def0), Argument::F32(-1.5)];
        // SAFETY: each points to a value of that type inside the argument.
        unsafe {
            assert_eq!(*address_of(&pointer).cast::<u64>(), 0x1234_5678_9abc_def0);
            assert_eq!(*address_of(&float).cast::<f32>(), -1.5);
        }
        assert_eq!((bytes_of(&pointer), bytes_of(&float)), (8, 4));
    }
}
