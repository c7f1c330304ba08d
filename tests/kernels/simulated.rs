//! The simulator's list of kernels.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};

// `kernels/sim/interface.h`; the library comes with the crate.
unsafe extern "C" {
    safe fn temper_sim_kernel_count() -> u32;
    safe fn temper_sim_kernel_name(index: u32) -> *const c_char;
}

/// The name of every kernel in `kernels/`. Those of the machine's own tests begin with `simulator_` and are left out.
pub fn simulated_kernels() -> BTreeSet<String> {
    let name = |index| {
        let name = temper_sim_kernel_name(index);
        assert!(!name.is_null(), "no name for kernel {index}");
        // SAFETY: not null, so it is a C string that lives as long as the process.
        unsafe { CStr::from_ptr(name) }.to_str().expect("a name in ASCII").to_string()
    };
    (0..temper_sim_kernel_count()).map(name).filter(|name| !name.starts_with("simulator_")).collect()
}
