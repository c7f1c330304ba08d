//! Kernels by name: modules are loaded when their first kernel is launched, and functions are looked up once.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use cudarc::driver::{CudaContext, result};

use super::embedded::EMBEDDED;
use super::error::during;
use crate::error::{Error, Result};

/// A kernel that can be launched.
#[derive(Clone)]
pub(super) struct Kernel {
    pub function: sys::CUfunction,
    /// Bytes of each parameter; empty where the driver does not say.
    pub parameter_bytes: Arc<[usize]>,
}

/// The kernels of one context.
pub(super) struct Kernels {
    context: Arc<CudaContext>,
    shared_bytes_per_block: u32,
    known: RwLock<HashMap<&'static str, Kernel>>,
    modules: RwLock<HashMap<&'static str, sys::CUmodule>>,
}

// SAFETY: the driver may be called with these handles from any thread in which their context is current, and every use
// of them binds the context first.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    pub(super) fn new(context: Arc<CudaContext>, shared_bytes_per_block: u32) -> Self {
        Self { context, shared_bytes_per_block, known: RwLock::default(), modules: RwLock::default() }
    }

    /// The kernel of this name. The context is current.
    pub(super) fn get(&self, name: &str) -> Result<Kernel> {
        if let Some(kernel) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(kernel.clone());
        }
        let missing = || {
            let count: usize = EMBEDDED.modules.len();
            Error::Device(format!("kernel `{name}` is not in this binary ({count} modules): a defect, or an old build"))
        };
        let module = EMBEDDED.module_of(name).ok_or_else(missing)?;
        let resources = module.kernels.iter().find(|resources| resources.kernel == name).ok_or_else(missing)?;
        let kernel = self.load(module.name, module.image, resources.kernel)?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(resources.kernel, kernel.clone());
        Ok(kernel)
    }

    fn load(&self, module_name: &'static str, image: &'static [u8], name: &'static str) -> Result<Kernel> {
        let mut modules = self.modules.write().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(module_name) {
            Some(&module) => module,
            None => {
                // SAFETY: the image is a whole fatbin, aligned, that lives as long as the process.
                let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) }
                    .map_err(during(format_args!("kernels of `{module_name}` cannot be loaded")))?;
                modules.insert(module_name, module);
                module
            }
        };
        let c_name = CString::new(name).map_err(|_| Error::Device(format!("`{name}` is not a kernel's name")))?;
        // SAFETY: the module was loaded in this context and is unloaded only when `self` goes.
        let function = unsafe { result::module::get_function(module, c_name) }
            .map_err(during(format_args!("kernel `{name}` has no code for this device")))?;
        // Kernels have no static shared memory, so all of a block's may be dynamic.
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is valid.
        unsafe { result::function::set_function_attribute(function, attribute, self.shared_bytes_per_block as i32) }
            .map_err(during(format_args!(
                "kernel `{name}` cannot have {} bytes shared",
                self.shared_bytes_per_block
            )))?;
        Ok(Kernel { function, parameter_bytes: parameter_bytes(function) })
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        for (_, module) in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            // SAFETY: nobody holds a function of it any more: drivers hold `self`, and wait for their work before they go.
            self.context.record_err(unsafe { result::module::unload(module) });
        }
    }
}

/// Asks until the driver refuses an index, which is how it says that there are no more.
fn parameter_bytes(function: sys::CUfunction) -> Arc<[usize]> {
    let mut found = Vec::new();
    loop {
        let mut offset = 0;
        let mut bytes = 0;
        // SAFETY: the function is valid, and both results are written to variables of the right type.
        let status = unsafe { sys::cuFuncGetParamInfo(function, found.len(), &mut offset, &mut bytes) };
        if status != sys::CUresult::CUDA_SUCCESS {
            return found.into();
        }
        found.push(bytes);
    }
}
