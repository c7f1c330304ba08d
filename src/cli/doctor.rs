//! `temper doctor`: what this machine offers, and how to mend what is missing.

use std::path::Path;

use clap::Args;
use serde::Serialize;
use temper::plan::available_memory;
#[cfg(feature = "cuda")]
use temper::tuning::{Key, Tuning, standard_path};

use super::print;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A finding.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// The remedy; none where nothing is wrong.
    remedy: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    /// Works, but not as well as it could.
    Limited,
    /// Must be mended before a run.
    Failed,
}

/// Checks this machine. Fails if something must be mended.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut checks = vec![version(), cpu(), threads(), memory(), temporary_directory(), disk()];
    checks.extend(gpu());
    if arguments.json {
        print::json(&checks)?;
    } else {
        print::text(&describe(&checks))?;
    }
    let failed: Vec<&str> = checks.iter().filter(|c| c.status == Status::Failed).map(|c| c.name).collect();
    anyhow::ensure!(failed.is_empty(), "not ready: {}; follow the remedies above", failed.join(", "));
    Ok(())
}

fn describe(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Limited => "limited",
            Status::Failed => "FAILED",
        };
        text += &format!("{status:<8} {:<20} {}\n", check.name, check.found);
        if let Some(remedy) = &check.remedy {
            text += &format!("{:<29} → {remedy}\n", "");
        }
    }
    text
}

fn well(name: &'static str, found: String) -> Check {
    Check { name, status: Status::Ok, found, remedy: None }
}

fn limited(name: &'static str, found: String, remedy: impl Into<String>) -> Check {
    Check { name, status: Status::Limited, found, remedy: Some(remedy.into()) }
}

fn version() -> Check {
    let os = std::env::consts::OS;
    let architecture = std::env::consts::ARCH;
    let debug = if cfg!(debug_assertions) { ", debug build" } else { "" };
    let simulator = if cfg!(feature = "simulator") { ", with the simulator" } else { "" };
    well("temper", format!("{} on {os} {architecture}{debug}{simulator}", env!("CARGO_PKG_VERSION")))
}

#[cfg(target_arch = "x86_64")]
fn cpu() -> Check {
    let features = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    let present: Vec<&str> = features.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect();
    if present.contains(&"avx2") && present.contains(&"fma") {
        return well("CPU features", present.join(", "));
    }
    let remedy = "matrix products are slow without avx2 and fma: use a newer CPU, or pass them through to this machine";
    limited("CPU features", format!("only {present:?} of avx2, fma, avx512f"), remedy)
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu() -> Check {
    well("CPU features", format!("those of every {}", std::env::consts::ARCH))
}

fn threads() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let used = rayon_threads(cores);
    let found = format!("{used} of {cores}");
    if used < cores {
        return limited("threads", found, "RAYON_NUM_THREADS limits them: unset it to use all cores");
    }
    well("threads", found)
}

/// The threads of rayon's pool: `RAYON_NUM_THREADS` if it is a number above 0, else one for each core.
fn rayon_threads(cores: usize) -> usize {
    let wanted = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    wanted.filter(|&threads| threads > 0).unwrap_or(cores)
}

fn memory() -> Check {
    match available_memory() {
        Some(bytes) if bytes >= 1 << 30 => well("memory", format!("{} available", print::bytes(bytes))),
        Some(bytes) => {
            let remedy = "close other programs, or raise the container's limit; `temper plan` says what a run needs";
            limited("memory", format!("only {} available", print::bytes(bytes)), remedy)
        }
        None => limited("memory", "unknown".into(), "compare `temper plan` with the memory of this machine yourself"),
    }
}

fn temporary_directory() -> Check {
    let directory = std::env::temp_dir();
    match tempfile::tempfile_in(&directory) {
        Ok(_) => well("temporary directory", format!("{} can be written", directory.display())),
        Err(error) => Check {
            name: "temporary directory",
            status: Status::Failed,
            found: format!("{}: {error}", directory.display()),
            remedy: Some("set TMPDIR to a directory that can be written".into()),
        },
    }
}

fn disk() -> Check {
    let remedy = "a checkpoint takes 12 bytes a parameter: write to another disk with --out";
    match free_disk(Path::new(".")) {
        Some(bytes) if bytes >= 10 << 30 => well("free disk here", print::bytes(bytes)),
        Some(bytes) => limited("free disk here", print::bytes(bytes), remedy),
        None => limited("free disk here", "unknown".into(), remedy),
    }
}

/// Bytes that a user without privileges may still write; `None` where the system does not say.
#[cfg(unix)]
fn free_disk(directory: &Path) -> Option<u64> {
    let file_system = rustix::fs::statvfs(directory).ok()?;
    file_system.f_bavail.checked_mul(file_system.f_frsize)
}

#[cfg(not(unix))]
fn free_disk(_: &Path) -> Option<u64> {
    None
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Vec<Check> {
    let remedy = "build temper with its default features to use a GPU";
    vec![limited("GPU", "the CUDA backend is not part of this build: runs use the CPU".into(), remedy)]
}

/// The driver, what is embedded for it, every device, and the library of matrix products.
#[cfg(feature = "cuda")]
fn gpu() -> Vec<Check> {
    use temper::backend::cuda::nvidia::{EMBEDDED, Unavailable, survey};

    let survey = match survey() {
        Ok(survey) => survey,
        Err(error) => return vec![limited("GPU driver", error.to_string(), "runs on the CPU work meanwhile")],
    };
    let driver = match &survey.driver {
        Ok((major, minor)) => well("GPU driver", format!("supports CUDA {major}.{minor}")),
        Err(reason) => split("GPU driver", reason),
    };
    let kernels = match EMBEDDED.toolkit {
        Some((major, minor)) => {
            let architectures = EMBEDDED.architectures.join(", sm_");
            well("GPU kernels", format!("for sm_{architectures} and PTX, by CUDA {major}.{minor}"))
        }
        None => split("GPU kernels", &Unavailable::NoKernels),
    };
    let mut checks = vec![driver, kernels];
    for (info, code) in &survey.devices {
        checks.push(device(info, code));
    }
    let version = survey.driver.as_ref().ok().map(|(major, minor)| format!("{major}.{minor}"));
    for (info, _) in &survey.devices {
        checks.push(tuning(&Key::new(info, version.clone(), survey.products.clone())));
    }
    checks.push(match survey.products {
        Some(library) => well("GPU products", library),
        None => {
            let remedy = "large matrix products then use temper's own kernels, which are slower: install libcublasLt 13 \
                          (part of the CUDA runtime) where the loader finds it (LD_LIBRARY_PATH)";
            limited("GPU products", "no cuBLASLt".into(), remedy)
        }
    });
    checks
}

/// Whether there are measured choices for a device, and whether they still hold.
#[cfg(feature = "cuda")]
fn tuning(key: &Key) -> Check {
    let remedy = "`temper tune` measures which ways of computing are fastest here; runs are right without it";
    let Some(path) = standard_path(&key.device).filter(|path| path.exists()) else {
        return limited("GPU tuning", format!("none for {}", key.device), remedy);
    };
    match Tuning::read_for(&path, key) {
        Err(error) => limited("GPU tuning", error.to_string(), remedy),
        Ok(Err(difference)) => limited("GPU tuning", format!("{} is not used: {difference}", path.display()), remedy),
        Ok(Ok(tuning)) => well("GPU tuning", format!("{}: {}", path.display(), tuning.summary())),
    }
}

#[cfg(feature = "cuda")]
fn device(
    info: &temper::backend::cuda::DeviceInfo,
    code: &Result<temper::backend::cuda::nvidia::Code, temper::backend::cuda::nvidia::Unavailable>,
) -> Check {
    use temper::backend::cuda::nvidia::Code;

    let (major, minor) = info.compute_capability;
    let facts = format!("{}, {}, compute capability {major}.{minor}", info.name, print::bytes(info.memory));
    match code {
        Ok(Code::Ready(architecture)) => well("GPU", format!("{facts}, runs sm_{architecture}")),
        Ok(Code::Generic) => {
            let remedy =
                format!("build temper with TEMPER_CUDA_ARCHS={major}{minor}: the driver now compiles the kernels");
            limited("GPU", format!("{facts}, runs PTX"), remedy)
        }
        Err(reason) => {
            let check = split("GPU", reason);
            Check { found: format!("{facts}: {}", check.found), ..check }
        }
    }
}

/// A message "what is wrong: what to do" as a finding and its remedy.
#[cfg(feature = "cuda")]
fn split(name: &'static str, reason: &temper::backend::cuda::nvidia::Unavailable) -> Check {
    let text = reason.to_string();
    let (found, remedy) = text.split_once(": ").unwrap_or((&text, "see the message"));
    limited(name, found.into(), remedy)
}
