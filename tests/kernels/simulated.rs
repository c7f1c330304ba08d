//! The simulator's list of kernels, and that tests watch them.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};

// `kernels/sim/interface.h`; the library comes with the crate.
unsafe extern "C" {
    safe fn temper_sim_kernel_count() -> u32;
    safe fn temper_sim_kernel_name(index: u32) -> *const c_char;
    safe fn temper_sim_kernel_is_watched(index: u32) -> bool;
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

/// Without its watched code, a race in a kernel would go unseen; without its plain code, every launch would pay for the watch.
#[test]
fn every_kernel_is_there_plain_and_watched() {
    let count = temper_sim_kernel_count();
    assert!(count > 0);
    let other: Vec<u32> = (0..count).filter(|index| !temper_sim_kernel_is_watched(*index)).collect();
    assert!(other.is_empty(), "kernels {other:?} of {count}");
}
