//! From compiled kernels to the text of their machine code: the code for sm_90a is taken out of a fatbin, and nvdisasm
//! reads it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use temper::backend::cuda::nvidia::EMBEDDED;

use super::program::{Kernel, parse};

/// Whether there is a compiler and a disassembler to look with. Where not, it says so; CI does not accept that.
pub fn can_look() -> bool {
    let missing = match nvcc() {
        None => "this build holds no GPU kernels",
        Some(_) if nvdisasm().is_none() => "there is no nvdisasm beside nvcc, in .cuda/bin or in PATH",
        Some(_) if !EMBEDDED.architectures.contains(&"90a") => "this build holds no code for sm_90a",
        Some(_) => return true,
    };
    let required = std::env::var("TEMPER_REQUIRE_CUDA").is_ok_and(|value| !value.is_empty() && value != "0");
    assert!(!required, "TEMPER_REQUIRE_CUDA is set, but {missing}: run scripts/cuda-toolkit");
    println!("{missing}: no machine code was read (run scripts/cuda-toolkit, and build again)");
    false
}

/// The compiler that made the kernels.
pub fn nvcc() -> Option<&'static str> {
    option_env!("TEMPER_BUILT_BY_NVCC")
}

fn nvdisasm() -> Option<&'static PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let starts =
        |program: &PathBuf| Command::new(program).arg("--version").output().is_ok_and(|said| said.status.success());
    let find = || {
        let beside = Path::new(nvcc()?).with_file_name("nvdisasm");
        [beside, ".cuda/bin/nvdisasm".into(), "nvdisasm".into()].into_iter().find(starts)
    };
    FOUND.get_or_init(find).as_ref()
}

/// The kernels of a file of `kernels/`, as they were built for sm_90a. Read once a process.
pub fn built(module: &str) -> &'static BTreeMap<String, Kernel> {
    static READ: Mutex<BTreeMap<&'static str, &'static BTreeMap<String, Kernel>>> = Mutex::new(BTreeMap::new());
    let module = EMBEDDED.modules.iter().find(|found| found.name == module).expect("a file of kernels/");
    let mut read = READ.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    read.entry(module.name).or_insert_with(|| {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&code(module.image)).expect("write the code");
        Box::leak(Box::new(disassemble(file.path())))
    })
}

/// The kernels of a cubin.
pub fn disassemble(cubin: &Path) -> BTreeMap<String, Kernel> {
    let program = nvdisasm().expect("the caller has asked whether it can look");
    let output = Command::new(program).arg("-c").arg(cubin).output().expect("nvdisasm starts");
    assert!(output.status.success(), "nvdisasm: {}", String::from_utf8_lossy(&output.stderr));
    let kernels = parse(&String::from_utf8_lossy(&output.stdout));
    assert!(!kernels.is_empty(), "nvdisasm printed no kernel of {}", cubin.display());
    kernels
}

/// The code for sm_90a in a fatbin. After a header of 16 bytes comes one entry after the other, each with its kind (2 is
/// ready code), the length of its own header, that of its content, and at 28 the architecture. The content may be packed
/// by zstd.
fn code(fatbin: &[u8]) -> Vec<u8> {
    let number = |at: usize, bytes: usize| {
        let read = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
        fatbin[at..at + bytes].iter().rev().fold(0, read)
    };
    let mut entry = 16;
    while entry < fatbin.len() {
        let (header, length) = (number(entry + 4, 4), number(entry + 8, 8));
        if (number(entry, 2), number(entry + 28, 4)) == (2, 90) {
            let content = &fatbin[entry + header..entry + header + length];
            let packed = content.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            let frame = &content[..number(entry + 16, 4).min(length)]; // without what fills the entry up
            return if packed { zstd::decode_all(frame).expect("a frame of zstd") } else { content.to_vec() };
        }
        entry += header + length;
    }
    panic!("the fatbin holds no code for sm_90a");
}

/// Compiles CUDA for sm_90a as the build does. The answer is the cubin, or what the compiler said.
pub fn compile(source: &Path, cubin: &Path) -> Result<(), String> {
    let program = nvcc().expect("the caller has asked whether it can look");
    let mut command = Command::new(program);
    command.args(["-cubin", "-arch=sm_90a", "-std=c++17", "-O3", "-Ikernels", "-allow-unsupported-compiler"]);
    let output = command.arg(source).arg("-o").arg(cubin).output().expect("nvcc starts");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    if output.status.success() { Ok(()) } else { Err(said.into_owned()) }
}
