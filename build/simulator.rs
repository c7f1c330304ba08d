//! The kernels and the machine in `kernels/sim` as a static library of this crate.

use std::path::Path;
use std::process::Command;

use super::compile::{self, Unit};

/// Why these: gnu++20 for the machine's own code; -O2 because tests run whole training steps on it; line tables so that
/// a sanitizer names the line; no type-based aliasing, as nvcc has none and kernels view shared memory as several types;
/// a product and a sum are fused where the source says so and nowhere else, on every machine.
const FLAGS: [&str; 7] =
    ["-std=gnu++20", "-O2", "-g1", "-fno-strict-aliasing", "-ffp-contract=off", "-fPIC", "-Ikernels"];

pub fn build() -> Result<(), String> {
    let kernels = compile::files("kernels", "cu");
    let mut machine = compile::files("kernels/sim", "cpp");
    machine.retain(|file| !file.ends_with("unit.cpp"));
    if machine.is_empty() {
        return Ok(());
    }
    let (compiler, version) = compiler()?;
    let folder = compile::out_folder("simulator")?;
    let mut command: Vec<String> = std::iter::once(compiler.as_str()).chain(FLAGS).map(String::from).collect();
    command.extend(compile::variable("CXXFLAGS").iter().flat_map(|flags| flags.split_whitespace()).map(String::from));
    command.push("-c".into());
    command.push("-DTEMPER_SIMULATOR".into());
    let watched = std::env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    command.extend((watched && has_fma()).then(|| "-mfma".into()));
    let object = |file: &Path| folder.join(format!("{}.o", file.file_name().unwrap_or_default().display()));
    let mut units: Vec<Unit> = Vec::new();
    for source in machine {
        units.push(Unit { output: object(&source), source, included: None, compiler: command.clone() });
    }
    // Each kernel is compiled as it is, and for tests a second time with calls before every access to shared memory, which
    // show races (kernels/sim/watch.h). A call costs even a launch that is not watched, so those run the plain code. No
    // sanitizer runtime is linked; the simulator answers the compiler's hooks.
    for kernel in kernels {
        let stem = kernel.file_stem().unwrap_or_default().display().to_string();
        units.push(unit(&command, &kernel, &folder, &stem, &[]));
        if watched {
            units.push(unit(&command, &kernel, &folder, &format!("{stem}_watched"), &["-fsanitize=thread"]));
        }
    }
    compile::make_all(&units, &version)?;
    archive(&folder.join("libtemper_simulator.a"), &units)?;

    println!("cargo::rustc-link-search=native={}", folder.display());
    // Whole archive: a kernel is found by name in a table that it enters itself, so nothing else refers to it.
    println!("cargo::rustc-link-lib=static:+whole-archive=temper_simulator");
    if let Some(library) = runtime_library() {
        println!("cargo::rustc-link-lib={library}");
    }
    Ok(())
}

/// Whether what tests run can contain this machine's instruction for a fused multiply-add, which kernels use everywhere: it
/// has the bits of the library's function, without a call.
fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    let here = std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let here = false;
    here && std::env::var("HOST") == std::env::var("TARGET")
}

/// A kernel file, compiled in a namespace of its own: templates of one name in two kernel files would be merged by the
/// linker.
fn unit(command: &[String], kernel: &Path, folder: &Path, name: &str, flags: &[&str]) -> Unit {
    let mut compiler = command.to_vec();
    compiler.extend(flags.iter().map(|flag| flag.to_string()));
    compiler.push(format!("-DTEMPER_UNIT=unit_{name}"));
    compiler.push(format!("-DTEMPER_UNIT_FILE=\"../{}\"", kernel.file_name().unwrap_or_default().display()));
    Unit {
        source: Path::new("kernels/sim/unit.cpp").into(),
        output: folder.join(format!("{name}.o")),
        included: Some(kernel.into()),
        compiler,
    }
}

/// `CXX`, else the first usual name that starts, and what it says of its version.
fn compiler() -> Result<(String, String), String> {
    let wanted = compile::variable("CXX");
    let names = wanted.map_or_else(|| ["c++", "g++", "clang++"].map(String::from).to_vec(), |name| vec![name]);
    let found = names.iter().find_map(|name| compile::version(name).map(|version| (name.clone(), version)));
    found.ok_or_else(|| {
        format!(
            "the kernel simulator, which tests, benchmarks and examples are built with, needs a C++ compiler, and none of {} \
             starts: install one or set CXX (the program itself needs none: cargo build)",
            names.join(", ")
        )
    })
}

/// Writes the archive anew, so that it holds no object of a file that is gone.
fn archive(library: &Path, units: &[Unit]) -> Result<(), String> {
    let archiver = compile::variable("AR").unwrap_or_else(|| "ar".into());
    let _ = std::fs::remove_file(library);
    let mut command = Command::new(&archiver);
    command.arg("crs").arg(library).args(units.iter().map(|unit| &unit.output));
    let output = command.output().map_err(|error| format!("{archiver} cannot be started: {error}; set AR"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{archiver} failed: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The C++ runtime of the target, or `CXXSTDLIB`.
fn runtime_library() -> Option<String> {
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let llvm = ["macos", "ios", "freebsd", "openbsd", "android"].contains(&system.as_str());
    let msvc = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|environment| environment == "msvc");
    let usual = if msvc { None } else { Some(if llvm { "c++" } else { "stdc++" }.to_string()) };
    compile::variable("CXXSTDLIB").or(usual)
}
