//! What nvcc made of the kernels: every one is there, none spills, and the tensor cores are not held up.
//!
//! `cargo test --test kernels compile_report -- --nocapture` prints the registers of each kernel.
use std::collections::{BTreeMap, BTreeSet};

use temper::backend::cuda::nvidia::{EMBEDDED, Resources};

use crate::simulated::simulated_kernels;

/// The build script's reader of what ptxas says.
#[path = "../../build/ptxas.rs"]
mod ptxas;

/// Kernels that may use a stack frame, local memory or spills, each with the reason. `*` at the end: all that begin so.
const ALLOWED: &[(&str, &str)] = &[];

/// Says so and returns true where there is nothing to look at, which CI does not accept.
pub fn without_nvcc() -> bool {
    if EMBEDDED.toolkit.is_some() {
        return false;
    }
    let required = std::env::var("TEMPER_REQUIRE_CUDA").is_ok_and(|value| !value.is_empty() && value != "0");
    assert!(!required, "TEMPER_REQUIRE_CUDA is set, but this build holds no GPU kernels: run scripts/cuda-toolkit");
    println!("no nvcc when this was built: nothing to report (run scripts/cuda-toolkit, and build again)");
    true
}

fn kernels() -> impl Iterator<Item = &'static Resources> {
    EMBEDDED.modules.iter().flat_map(|module| module.kernels)
}

fn allowed(kernel: &str) -> bool {
    ALLOWED.iter().any(|(name, _)| match name.strip_suffix('*') {
        Some(prefix) => kernel.starts_with(prefix),
        None => kernel == *name,
    })
}

#[test]
fn registers_of_each_kernel() {
    if without_nvcc() {
        return;
    }
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for kernel in kernels() {
        rows.entry(kernel.kernel).or_default().push(format!("sm_{} {:>3}", kernel.architecture, kernel.registers));
        assert!((1..=255).contains(&kernel.registers), "the log of ptxas was misread: {kernel:?}");
    }
    let (major, minor) = EMBEDDED.toolkit.expect("a toolkit");
    println!("registers of each kernel, CUDA {major}.{minor}, digest {}", EMBEDDED.digest);
    for (kernel, registers) in rows {
        println!("{kernel:<48} {}", registers.join("   "));
    }
}

/// Registers that ran out are paid for with memory traffic in the innermost loop.
#[test]
fn no_kernel_spills_or_has_a_stack_frame() {
    if without_nvcc() {
        return;
    }
    let clean = |kernel: &Resources| {
        kernel.stack_bytes + kernel.local_bytes + kernel.spill_store_bytes + kernel.spill_load_bytes == 0
    };
    let problems: Vec<String> = kernels()
        .filter(|kernel| !clean(kernel) && !allowed(kernel.kernel))
        .map(|kernel| format!("{kernel:?}"))
        .collect();
    assert!(problems.is_empty(), "kernels that use local memory:\n{}", problems.join("\n"));
    for (name, reason) in ALLOWED {
        let used = kernels().any(|kernel| !clean(kernel) && kernel.kernel.starts_with(name.trim_end_matches('*')));
        assert!(used, "{name} is allowed ({reason}), but needs no permission any more");
    }
}

/// A log of CUDA 13.0 with a kernel that spills, one whose wgmma instructions are serialized, and a function beside it.
#[test]
fn a_log_of_ptxas_is_read() {
    let report = ptxas::read(
        "w.cu(12): warning #177-D: variable \"x\" was declared but never referenced
ptxas info    : (C7517) warpgroup.wait is injected in around line 64 by compiler to allow use of registers
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient \
         register resources for the wgmma pipeline in the function 'serialized'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spilling' for 'sm_90a'
ptxas info    : Function properties for spilling
    88 bytes stack frame, 84 bytes spill stores, 80 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 88 bytes cumulative stack size
ptxas info    : Compile time = 27.323 ms
ptxas info    : Compiling entry function 'serialized' for 'sm_80'
ptxas info    : Function properties for serialized
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers, 360 bytes cmem[0], 16 bytes lmem
ptxas info    : Function properties for beside
    24 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
",
    );
    let found = |kernel: &str| {
        let r = report.resources.iter().find(|r| r.kernel == kernel).expect("a kernel");
        (&*r.architecture, [r.registers, r.stack_bytes, r.spill_store_bytes, r.spill_load_bytes, r.local_bytes])
    };
    assert_eq!(found("spilling"), ("90a", [64, 88, 84, 80, 0]));
    assert_eq!(found("serialized"), ("80", [30, 24, 8, 8, 16]));
    assert_eq!((report.resources.len(), report.warnings.len()), (2, 3));
}

/// C75xx: ptxas could not leave wgmma instructions in flight, and waits after each.
#[test]
fn ptxas_did_not_serialize_wgmma() {
    if without_nvcc() {
        return;
    }
    let warnings = EMBEDDED.modules.iter().flat_map(|module| module.warnings.iter().map(|text| (module.name, *text)));
    let serialized: Vec<_> = warnings.filter(|(_, text)| text.contains("C75") || text.contains("serialized")).collect();
    assert!(serialized.is_empty(), "{serialized:#?}");
}

/// A file is compiled for every architecture, one with instructions of sm_90a for that alone.
#[test]
fn every_kernel_is_compiled_for_every_architecture() {
    if without_nvcc() {
        return;
    }
    for module in EMBEDDED.modules {
        let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for kernel in module.kernels {
            found.entry(kernel.kernel).or_default().push(kernel.architecture);
        }
        let expected: Vec<&str> =
            if module.name.starts_with("sm90_") { vec!["90a"] } else { EMBEDDED.architectures.to_vec() };
        for (kernel, mut architectures) in found {
            let mut expected = expected.clone();
            architectures.sort_unstable();
            expected.sort_unstable();
            assert_eq!(architectures, expected, "{kernel} in {}", module.name);
        }
    }
}

/// What the tests execute and what a GPU executes are the same list.
#[test]
fn the_simulator_and_the_gpu_have_the_same_kernels() {
    if without_nvcc() {
        return;
    }
    let simulated = simulated_kernels();
    let compiled: BTreeSet<String> = kernels().map(|kernel| kernel.kernel.to_string()).collect();
    let untested: Vec<_> = compiled.difference(&simulated).collect();
    assert!(untested.is_empty(), "kernels that no test can execute: {untested:?}");
    if EMBEDDED.architectures.contains(&"90a") {
        let missing: Vec<_> = simulated.difference(&compiled).collect();
        assert!(missing.is_empty(), "kernels that no GPU can execute: {missing:?}");
    }
}
