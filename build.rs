//! Compiles `kernels/`: for the host machine, where they run on the CPU and are tested, and with nvcc for the GPU. Sizes
//! that launchers share with kernels become a Rust module.
//!
//! Only the standard library and the compilers are used. Objects live in `OUT_DIR` under a digest of everything that
//! went into them, so a change compiles what it touches and nothing else. Environment: `CXX`, `CXXFLAGS`, `AR`,
//! `CXXSTDLIB` for the host; `TEMPER_NVCC`, `CUDA_HOME`, `CUDA_PATH`, `TEMPER_CUDA_ARCHS` (default `80,90a`) and
//! `TEMPER_REQUIRE_CUDA=1` (no nvcc is an error) for the GPU. No GPU is asked for, or needed, at build time.

use std::process::ExitCode;

#[path = "build/compile.rs"]
mod compile;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/simulator.rs"]
mod simulator;
#[path = "build/sizes.rs"]
mod sizes;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let header = compile::read(std::path::Path::new("kernels/sizes.cuh"))?;
    compile::write(&compile::out_folder("")?.join("sizes.rs"), sizes::rust(&header)?.as_bytes())?;
    if std::env::var_os("CARGO_FEATURE_SIMULATOR").is_some() {
        simulator::build()?;
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        cuda::build()?;
    }
    Ok(())
}
