//! The kernels as code for GPUs, and the table of what was compiled.
//!
//! Each `.cu` becomes one fatbin: SASS for every architecture of `TEMPER_CUDA_ARCHS` and one generic PTX for devices
//! that are newer than the list. One fatbin per file rather than one for all, because a changed kernel then compiles
//! alone, files compile side by side, and a run loads only the modules whose kernels it launches. A file named
//! `sm90_*.cu` uses instructions that only sm_90a has: it is compiled for that alone, without PTX.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::compile::{self, Digest, Unit};
use super::ptxas;

/// Oldest architecture: bf16 arithmetic and asynchronous copies begin there. The generic PTX is for it.
const OLDEST: u32 = 80;
/// Oldest toolkit: the first that knows sm_90a.
const OLDEST_TOOLKIT: (u32, u32) = (12, 0);
/// First toolkit that packs images tightly. Line tables make them five times as big otherwise, and they are in every
/// program that links temper; a driver of that version, which is the oldest that we accept, unpacks them.
const COMPRESSING_TOOLKIT: (u32, u32) = (12, 8);

pub fn build() -> Result<(), String> {
    let table = match find_nvcc() {
        Ok(nvcc) => {
            // Tests compile small pieces with it, and find the disassembler beside it.
            println!("cargo::rustc-env=TEMPER_BUILT_BY_NVCC={}", nvcc.program);
            compile_all(&nvcc)?
        }
        Err(missing) if compile::variable("TEMPER_REQUIRE_CUDA").is_some_and(|value| value != "0") => {
            return Err(format!("TEMPER_REQUIRE_CUDA is set, but {missing}"));
        }
        Err(missing) => {
            println!("cargo::warning=no GPU kernels in this build: {missing}");
            Table::default()
        }
    };
    let out = compile::out_folder("cuda")?;
    compile::write(&out.join("table.rs"), table.rust().as_bytes())
}

struct Nvcc {
    program: String,
    /// Everything `nvcc --version` says.
    version: String,
    release: (u32, u32),
}

fn find_nvcc() -> Result<Nvcc, String> {
    let remedy = "run scripts/cuda-toolkit (no GPU needed), or install CUDA 13 and set CUDA_HOME";
    let named = compile::variable("TEMPER_NVCC");
    let in_folder = |folder: &str| Path::new(folder).join("bin/nvcc").display().to_string();
    let mut candidates: Vec<String> = named.iter().cloned().collect();
    if named.is_none() {
        let homes = ["CUDA_HOME", "CUDA_PATH"].map(compile::variable);
        candidates.extend(homes.iter().flatten().map(|folder| in_folder(folder)));
        candidates.extend(["nvcc".into(), in_folder("/usr/local/cuda"), in_folder(".cuda")]);
    }
    let mut too_old = String::new();
    for program in &candidates {
        let Some(version) = compile::version(program) else { continue };
        let release = release(&version).ok_or_else(|| format!("{program} does not say its version: {remedy}"))?;
        if release >= OLDEST_TOOLKIT {
            return Ok(Nvcc { program: program.clone(), version, release });
        }
        too_old = format!(" of CUDA {} or newer ({program} is {}.{})", OLDEST_TOOLKIT.0, release.0, release.1);
    }
    println!("cargo::rerun-if-env-changed=PATH");
    Err(format!("no nvcc{too_old} was found in {}: {remedy}", candidates.join(", ")))
}

/// From "Cuda compilation tools, release 13.0, V13.0.88".
fn release(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once("release ")?.1.split_once(',')?.0.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// "80,90a" as a list. Refuses what the kernels cannot run on.
fn architectures() -> Result<Vec<String>, String> {
    let text = compile::variable("TEMPER_CUDA_ARCHS").unwrap_or_else(|| "80,90a".into());
    let names: Vec<String> = text.split([',', ';', ' ']).filter(|name| !name.is_empty()).map(String::from).collect();
    for name in &names {
        match name.trim_end_matches(['a', 'f']).parse::<u32>() {
            Ok(number) if number >= OLDEST => {}
            Ok(_) => return Err(format!("TEMPER_CUDA_ARCHS: {name} is older than {OLDEST}, the first with bf16")),
            Err(_) => return Err(format!("TEMPER_CUDA_ARCHS: {name:?} is no architecture; write it like \"80,90a\"")),
        }
    }
    if names.is_empty() { Err("TEMPER_CUDA_ARCHS names no architecture".into()) } else { Ok(names) }
}

fn compile_all(nvcc: &Nvcc) -> Result<Table, String> {
    let architectures = architectures()?;
    let folder = compile::out_folder("cuda")?;
    let mut units = Vec::new();
    for source in compile::files("kernels", "cu") {
        let stem = source.file_stem().unwrap_or_default().display().to_string();
        let special = stem.starts_with("sm90_");
        let chosen: Vec<&String> = architectures.iter().filter(|name| !special || *name == "90a").collect();
        if !chosen.is_empty() {
            let compiler = command(nvcc, &chosen, !special);
            units.push(Unit { source, included: None, compiler, output: folder.join(format!("{stem}.fatbin")) });
        }
    }
    compile::make_all(&units, &nvcc.version)?;
    let toolkit = Some(nvcc.release);
    let mut table = Table { toolkit, architectures, modules: Vec::new(), ..Table::default() };
    let mut digest = Digest::new();
    for unit in &units {
        let image = &unit.output;
        digest.add(&std::fs::read(image).map_err(|error| format!("{}: {error}", image.display()))?);
        let report = ptxas::read(&unit.log()?);
        for warning in &report.warnings {
            println!("cargo::warning={}: {warning}", unit.source.display());
        }
        table.modules.push((image.clone(), report));
    }
    table.digest = digest.text();
    Ok(table)
}

/// `-allow-unsupported-compiler`: nvcc refuses host compilers newer than itself, but no host code is made here.
fn command(nvcc: &Nvcc, architectures: &[&String], generic: bool) -> Vec<String> {
    let mut command = vec![nvcc.program.clone()];
    command.extend(["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v", "-Ikernels"].map(String::from));
    command.push("-allow-unsupported-compiler".into());
    if nvcc.release >= COMPRESSING_TOOLKIT {
        command.push("--compress-mode=size".into());
    }
    if let Some(host) = compile::variable("NVCC_CCBIN").or_else(|| compile::variable("CXX")) {
        command.push(format!("-ccbin={host}"));
    }
    for name in architectures {
        command.push(format!("-gencode=arch=compute_{name},code=sm_{name}"));
    }
    if generic {
        command.push(format!("-gencode=arch=compute_{OLDEST},code=compute_{OLDEST}"));
    }
    command
}

/// What `src/backend/cuda/nvidia/embedded.rs` includes.
#[derive(Default)]
struct Table {
    toolkit: Option<(u32, u32)>,
    architectures: Vec<String>,
    modules: Vec<(PathBuf, ptxas::Report)>,
    digest: String,
}

impl Table {
    /// An expression of type `Embedded`.
    fn rust(&self) -> String {
        let mut text = format!(
            "Embedded {{\n    toolkit: {:?},\n    architectures: &{:?},\n    digest: {:?},\n    modules: &[\n",
            self.toolkit, self.architectures, self.digest
        );
        for (image, report) in &self.modules {
            let name = image.file_stem().unwrap_or_default().display().to_string();
            let path = image.display().to_string();
            let _ = writeln!(text, "        Module {{\n            name: {name:?},");
            let _ = writeln!(text, "            image: aligned_bytes!({path:?}),");
            let _ = writeln!(text, "            warnings: &{:?},", report.warnings);
            let _ = writeln!(text, "            kernels: &{:#?},\n        }},", report.resources);
        }
        text + "    ],\n}\n"
    }
}
