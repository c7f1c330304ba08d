//! Proves the simulator: small kernels with planted bugs, each of which it has to report in the right words, each beside
//! a correct twin that has to pass; and the matrix and copy instructions against loops over their definition.
//!
//! The C++ files here are compiled at test time with the machine in `kernels/sim`, so that no planted bug is in the
//! library. Three builds run: plain; watched, where the compiler's hooks let the machine see every access; and under the
//! address and undefined-behaviour sanitizers, which judge the machine itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use compile::{Unit, make_all, version};

/// The build script's way to compile what changed and nothing else.
#[allow(dead_code)]
#[path = "../../build/compile.rs"]
mod compile;

const FLAGS: [&str; 10] = [
    "-std=gnu++20",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
    "-DTEMPER_SIMULATOR",
    "-Ikernels",
    "-Itests/simulator",
    "-c",
];

/// Not recoverable: a report of the undefined-behaviour sanitizer fails the test.
const SANITIZERS: [&str; 4] =
    ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"];

fn compiler() -> String {
    std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into())
}

/// Sources of one extension in a folder, in order.
fn sources(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder is part of the package")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// Runs a program. Panics with its words when it fails.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}; set CXX"));
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles the files that changed since the last run into objects of a folder, and returns the objects of all.
fn compile(folder: &Path, files: &[PathBuf], flags: &[&str]) -> Vec<PathBuf> {
    std::fs::create_dir_all(folder).expect("the target folder is writable");
    let unit = |source: &PathBuf| {
        let mut command = vec![compiler()];
        command.extend(FLAGS.iter().chain(flags).map(|flag| flag.to_string()));
        if source.extension().is_some_and(|extension| extension == "cu") {
            command.extend(["-x", "c++"].map(String::from));
        }
        let output = folder.join(format!("{}.o", source.file_name().expect("a file").display()));
        Unit { source: source.clone(), included: None, compiler: command, output }
    };
    let units: Vec<Unit> = files.iter().map(unit).collect();
    let version = version(&compiler()).unwrap_or_else(|| panic!("{} cannot be started; set CXX", compiler()));
    make_all(&units, &version).unwrap_or_else(|error| panic!("{error}"));
    units.into_iter().map(|unit| unit.output).collect()
}

fn link(executable: &Path, objects: &[PathBuf], flags: &[&str]) {
    run(Command::new(compiler()).args(flags).args(objects).arg("-o").arg(executable).args(["-lpthread", "-ldl"]));
}

/// Runs the cases and panics with what they print when one fails.
fn judge(executable: &Path) {
    let output = Command::new(executable).output().expect("the executable was just linked");
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{words}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert!(words.contains("planted bugs"), "{words}");
    println!("{words}");
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("simulator")
}

/// The machine, shared by the plain and the watched build: only kernels differ.
fn machine() -> &'static [PathBuf] {
    static OBJECTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    OBJECTS.get_or_init(|| compile(&folder().join("machine"), &sources("kernels/sim", "cpp"), &["-O2"]))
}

/// The cases: their judge, and the kernels with the flags of the build.
fn build(name: &str, kernel_flags: &[&str]) -> PathBuf {
    let folder = folder().join(name);
    let defines: Vec<&str> = kernel_flags.iter().copied().filter(|flag| flag.starts_with("-D")).collect();
    let mut objects = machine().to_vec();
    objects.extend(compile(&folder, &sources("tests/simulator", "cpp"), &[&["-O1"][..], &defines].concat()));
    objects.extend(compile(&folder, &sources("tests/simulator", "cu"), kernel_flags));
    let executable = folder.join("cases");
    link(&executable, &objects, &[]);
    executable
}

#[test]
fn planted_bugs_are_reported() {
    judge(&build("plain", &["-O1"]));
}

#[test]
fn planted_bugs_are_reported_with_every_access_watched() {
    judge(&build("watched", &["-O1", "-fsanitize=thread", "-DTEMPER_WATCHED"]));
}

/// Whether the sanitizers' runtime is installed.
fn sanitizers_work(folder: &Path) -> bool {
    std::fs::create_dir_all(folder).expect("the target folder is writable");
    let source = folder.join("empty.cpp");
    let executable = folder.join("empty");
    std::fs::write(&source, "int main() { return 0; }\n").expect("writable");
    let compiled = Command::new(compiler()).args(SANITIZERS).arg(&source).arg("-o").arg(&executable).output();
    compiled.is_ok_and(|output| output.status.success())
        && Command::new(&executable).output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_machine_is_clean_under_sanitizers() {
    let folder = folder().join("sanitized");
    if !sanitizers_work(&folder) {
        let required = std::env::var_os("TEMPER_REQUIRE_SANITIZERS").is_some();
        assert!(!required, "{} has no runtime for the address and undefined-behaviour sanitizers", compiler());
        eprintln!("not run: {} has no runtime for the address and undefined-behaviour sanitizers", compiler());
        return;
    }
    let mut files = sources("kernels/sim", "cpp");
    files.extend(sources("tests/simulator", "cpp"));
    files.extend(sources("tests/simulator", "cu"));
    let objects = compile(&folder, &files, &SANITIZERS);
    let executable = folder.join("cases");
    link(&executable, &objects, &SANITIZERS);
    judge(&executable);
}
