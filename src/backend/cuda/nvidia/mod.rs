//! NVIDIA devices: the driver, cuBLASLt, and the kernels that are inside this binary.
//!
//! Both libraries are loaded when they are needed, so one binary runs with and without a GPU. Every way to a device goes
//! through [`survey()`] or [`Nvidia::new`], which ask whether there is a driver before they call it: cudarc panics where
//! a library is missing.

mod cublaslt;
mod device;
mod embedded;
mod error;
mod graph;
mod kernels;
mod launch;
mod libraries;
mod pinned;
mod product;
mod survey;
mod tensor_map;

use std::ffi::c_void;
use std::sync::Arc;

pub use device::Nvidia;
pub use embedded::{Code, EMBEDDED, Embedded, Module, Resources};
pub use error::Unavailable;
pub use survey::{Survey, survey};

use super::{Cuda, lock};
use crate::error::Result;
use crate::ops::DType;

impl Cuda {
    /// An NVIDIA device, counted from 0.
    ///
    /// # Errors
    /// When there is no driver, no such device, or no code for it: each with its remedy.
    pub fn nvidia(ordinal: usize, compute_dtype: DType) -> Result<Self> {
        Self::new(Arc::new(Nvidia::new(ordinal)?), compute_dtype)
    }

    /// A caller's stream. See [`Nvidia::adopt_stream`].
    ///
    /// # Errors
    /// As [`Cuda::nvidia`], and when the stream's context is not its device's primary one.
    ///
    /// # Safety
    /// As [`Nvidia::adopt_stream`].
    pub unsafe fn adopt_stream(stream: *mut c_void, context: *mut c_void, compute_dtype: DType) -> Result<Self> {
        // SAFETY: passed on to the caller.
        let device = unsafe { Nvidia::adopt_stream(stream, context)? };
        Self::new(Arc::new(device), compute_dtype)
    }

    /// A stream that was made with the cust crate, in a context of `cust::context::Context`.
    ///
    /// # Errors
    /// As [`Cuda::adopt_stream`].
    ///
    /// # Safety
    /// Stream and context outlive the result, and the caller orders its own work in the stream with ours.
    #[cfg(feature = "cust")]
    pub unsafe fn adopt_cust(
        stream: &cust::stream::Stream,
        context: &cust::context::Context,
        compute_dtype: DType,
    ) -> Result<Self> {
        use cust::context::ContextHandle;
        // SAFETY: both are alive, and the caller keeps them so.
        unsafe { Self::adopt_stream(stream.as_inner().cast(), context.get_inner().cast(), compute_dtype) }
    }
}
