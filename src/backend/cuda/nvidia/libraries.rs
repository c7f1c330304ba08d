//! Which libraries of NVIDIA this machine has. cudarc panics when it loads one that is missing, so this is asked first.
//!
//! cudarc has such a question itself, but only where no other crate of the program chose to link CUDA; this one is
//! always there. The names are among those that cudarc tries.

use libloading::Library;

#[cfg(windows)]
const DRIVER: &[&str] = &["nvcuda.dll"];
#[cfg(not(windows))]
const DRIVER: &[&str] = &["libcuda.so.1", "libcuda.so"];

#[cfg(windows)]
const PRODUCTS: &[&str] = &["cublasLt64_13.dll", "cublasLt64_12.dll"];
#[cfg(not(windows))]
const PRODUCTS: &[&str] = &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// The name of the driver library, for messages.
pub(super) const DRIVER_NAME: &str = DRIVER[0];

/// Whether the driver library can be loaded.
pub(super) fn driver_is_present() -> bool {
    DRIVER.iter().any(|name| loads(name))
}

/// Whether cuBLASLt can be loaded.
pub(super) fn products_are_present() -> bool {
    PRODUCTS.iter().any(|name| loads(name))
}

/// The library stays loaded: it will be used, and unloading a driver is an adventure.
fn loads(name: &str) -> bool {
    // SAFETY: NVIDIA's libraries run no code when they are loaded that depends on our state.
    unsafe { Library::new(name) }.map(std::mem::forget).is_ok()
}
