//! `scripts/measure-gpu` and `scripts/pack-gpu` from beginning to end, on the simulator.
//!
//! The program under test is the real one behind a shell script that shortens what takes minutes there: one operation of the
//! self-test, some rows of reports that nothing filters, and no demonstration.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program;

/// The shell script in the place of the program; `$real` is the program.
const SHORTENED: &str = r#"
case "$*" in
    selftest*) exec "$real" selftest --device sim --only rope ;;
    demo*) for last; do :; done; mkdir -p "$last/hardened"; echo same > "$last/hardened/model.safetensors"; exit ;;
esac
rows=
case "$*" in
    "bench kernels"*x8*) rows=attention_forward/3x8 ;;
    "bench kernels"*) rows=swiglu ;;
    "bench step"*x8*) rows=tr_gradient/5x8 ;;
esac
if [ -n "$rows" ]; then
    kept= skip=
    for argument; do
        if [ -n "$skip" ]; then skip=; elif [ "$argument" = --filter ]; then skip=1; else kept="$kept $argument"; fi
    done
    # No argument has a space in it.
    exec "$real" $kept --filter "$rows"
fi
exec "$real" "$@"
"#;

/// python3 that has a torch: peers of two rows, at once; other scripts run.
const PYTHON: &str = r#"
[ "$1" != -c ] || exit 0
for last; do [ "$previous" != --out ] || out="$last"; previous="$last"; done
case "$1" in
    */peers/*)
        rates='{"matmul_teraflops_per_second": 1, "copy_gigabytes_per_second": 1}'
        row='{"name": "swiglu_forward", "milliseconds": 12345, "variant": "compiled"}'
        slow='{"name": "swiglu_forward", "milliseconds": 99999, "variant": "eager"}'
        echo "{\"rows\": [$slow, $row], \"steps\": [], \"not_run\": [], \"rates\": $rates}" > "$out" ;;
    *) exec "$python" "$@" ;;
esac
"#;

/// A folder with the shortened program and, first in the path, the other python3.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new(more: &str) -> Self {
        let stage = Self(tempfile::tempdir().expect("a folder"));
        let real = env!("CARGO_BIN_EXE_temper");
        stage.script("temper", &format!("real='{real}'\n{more}\n{SHORTENED}"));
        let found = Command::new("sh").args(["-c", "command -v python3"]).output().expect("a shell");
        let python = String::from_utf8(found.stdout).expect("a path");
        stage.script("python3", &format!("python='{}'\n{PYTHON}", python.trim()));
        stage
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}")).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a script");
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("measured")
    }

    fn measure(&self, seconds: &str) -> Command {
        let mut command = Command::new(repository("scripts/measure-gpu"));
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").expect("a path"));
        command.arg(self.out()).args(["--seconds", seconds, "--device", "sim", "--shapes", "tiny"]);
        command.env("TEMPER", self.0.path().join("temper")).env("PATH", path).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.0.path());
        command
    }

    fn results(&self) -> Value {
        let text = std::fs::read(self.out().join("results.json")).expect("results");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// The outcome of a step.
    fn outcome(&self, step: &str) -> String {
        let results = self.results();
        let steps = results["steps"].as_array().expect("steps");
        let found = steps.iter().find(|found| found["name"] == step);
        found.unwrap_or_else(|| panic!("no {step} in {steps:#?}"))["outcome"].as_str().expect("a text").into()
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every step is done, in the order of what is worth most, and the table has the rows of TAR with and without choices, and the
/// best variant of PyTorch.
#[test]
fn everything_is_measured_and_ends_in_a_table() {
    let stage = Stage::new("");
    let said = program::stdout(&program::succeed(&mut stage.measure("300")));
    let results = stage.results();
    let steps: Vec<&str> =
        results["steps"].as_array().expect("steps").iter().map(|step| step["name"].as_str().expect("a name")).collect();
    let order = [
        "doctor",
        "selftest",
        "kernels-tar",
        "steps-tar",
        "tune",
        "steps-tar-tuned",
        "kernels-tuned",
        "steps-tuned",
        "pytorch-kernel-tar",
        "pytorch-step-tar",
        "demo-first",
        "demo-second",
        "same-bits",
        "pytorch-step",
        "pytorch-kernel",
        "kernels",
    ];
    assert_eq!(steps[..order.len()], order);
    for step in order {
        assert!(stage.outcome(step).starts_with("done"), "{step}: {}", stage.outcome(step));
    }
    let row = |name: &str, tuned: bool| {
        let rows = results["rows"].as_array().expect("rows");
        let found = rows.iter().find(|row| row["name"] == name && row["tuned"] == tuned);
        found.unwrap_or_else(|| panic!("no {name}, tuned {tuned}, in {rows:#?}")).clone()
    };
    for (name, tuned) in [
        ("attention_forward/3x8", false),
        ("tr_gradient/5x8", false),
        ("tr_gradient/5x8", true),
        ("lora_attack_step", true),
    ] {
        let found = row(name, tuned);
        assert!(found["milliseconds"].as_f64() > Some(0.0) && found["peer"].is_null(), "{found:#}");
    }
    let swiglu = row("swiglu_forward", true);
    let time = swiglu["milliseconds"].as_f64().expect("a time");
    assert_eq!(swiglu["peer"], "compiled");
    assert!((swiglu["factor"].as_f64().expect("a factor") * time / 12345.0 - 1.0).abs() < 1e-9, "{swiglu:#}");
    assert!(said.contains("| swiglu_forward | tuned |") && said.contains("no figure here is a measurement"), "{said}");
    let report = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(stage.out().join(name)).expect("a report")).expect("JSON")
    };
    let mut tuned = report("kernels-tuned.json");
    assert!(tuned["tuning"].is_string(), "the tuned rows followed the choices");

    // A report says itself whether it followed choices: its name does not.
    let other = stage.0.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    tuned["tuning"] = Value::Null;
    std::fs::write(other.join("kernels-tuned.json"), tuned.to_string()).expect("a report");
    let table =
        |folder: &Path| Command::new(repository("scripts/measure-table")).arg(folder).output().expect("a table");
    let untuned = program::stdout(&table(&other));
    assert!(untuned.contains("| swiglu_forward | – |") && !untuned.contains("tuned |"), "{untuned}");
    std::fs::write(other.join("kernels-tuned.json"), "{\"rows\": [1]}").expect("a report");
    for (folder, words) in [(other.clone(), "none of this program's"), (other.join("nosuch"), "there is no directory")]
    {
        let output = table(&folder);
        let said = program::stderr(&output);
        assert!(!output.status.success() && said.contains(words) && said.lines().count() == 1, "{said}");
    }

    // A folder with results is left as it is.
    let again = stage.measure("300").output().expect("the script");
    assert!(!again.status.success() && program::stderr(&again).contains("is not empty"));
    assert_eq!(stage.results(), results);
}

/// Success means that the self-test passed and that there is a table. A kill is told from the limit, which is kept by everything
/// that runs.
#[test]
fn success_is_a_passed_self_test_and_a_table() {
    // What one step does, with python3 as it is or broken, the seconds, and what must be said.
    let cases = [
        ("", "", "300", true, "selftest: done"),
        ("[ \"$1\" != selftest ] || kill -9 $$", "", "300", false, "selftest: failed: killed by signal 9"),
        ("[ \"$1\" != selftest ] || exit 3", "", "300", false, "selftest: failed with exit code 3"),
        ("[ \"$1\" != selftest ] || exec sleep 600", "", "10", false, "selftest: cut after"),
        ("[ \"$1\" != bench ] || kill -9 $$", "", "300", false, "kernels-tar: failed: killed by signal 9"),
        ("", "case \"$1\" in */measure-table) exit 1 ;; esac", "300", false, "the table was not made"),
        ("", "case \"$1\" in */measure-table) exec sleep 600 ;; esac", "300", false, "the table was not made"),
        ("", "[ \"$1\" != -c ] || exec sleep 600", "10", true, "pytorch: not run"),
    ];
    std::thread::scope(|scope| {
        for (step, python, seconds, succeeds, words) in cases {
            scope.spawn(move || {
                let stage = Stage::new(&format!("{step}\ncase \"$1\" in demo) ;; *) exit 0 ;; esac"));
                let real = std::fs::read_to_string(stage.0.path().join("python3")).expect("a script");
                stage.script(
                    "python3",
                    &real.replace("[ \"$1\" != -c ] || exit 0", &format!("{python}\n[ \"$1\" != -c ] || exit 1")),
                );
                let start = Instant::now();
                let output = stage.measure(seconds).output().expect("the script");
                let said = program::stdout(&output) + &program::stderr(&output);
                assert!(said.contains(words), "{words}: {said}");
                assert_eq!(output.status.success(), succeeds, "{words}: {said}");
                assert!(start.elapsed() < Duration::from_secs(14), "{words}: {:?}", start.elapsed());
            });
        }
    });
}

/// Wrong arguments are said before anything is made; numbers are decimal; help is no error.
#[test]
fn wrong_arguments_are_said_before_anything_is_made() {
    let stage = Stage::new("exit 0");
    let script = |arguments: &[&str], temper: &str| {
        let mut command = Command::new(repository("scripts/measure-gpu"));
        command.args(arguments).env("TEMPER", stage.0.path().join(temper));
        let output = command.output().expect("the script");
        (output.status.code(), program::stdout(&output) + &program::stderr(&output))
    };
    let [made, occupied] = [stage.out(), stage.0.path().join("temper")].map(|path| program::text(&path));
    let [out, file] = [made.as_str(), occupied.as_str()];
    for (arguments, temper, code, words) in [
        (&["--help"][..], "temper", 0, "scripts/measure-gpu DIR"),
        (&[][..], "temper", 2, "the first argument is the directory"),
        (&[out, "--nosuch", "1"][..], "temper", 2, "there is no option --nosuch"),
        (&[out, "--seconds"][..], "temper", 2, "--seconds needs a value"),
        (&[out, "--seconds", "soon"][..], "temper", 2, "--seconds soon is no number"),
        (&[out, "--seconds", "0"][..], "temper", 2, "--seconds 0 is too short"),
        (&[out, "--seconds", "08"][..], "temper", 2, "--seconds 8 is too short"),
        (&[out][..], "nosuch", 1, "nosuch is no program"),
        (&[out][..], ".", 1, "is no program"),
        (&[file][..], "temper", 1, "is no directory"),
    ] {
        let (status, said) = script(arguments, temper);
        assert!(status == Some(code) && said.contains(words), "{arguments:?}: {status:?}: {said}");
        assert!(!stage.out().exists());
    }
    let (_, said) = script(&[out, "--seconds", "010", "--device", "sim"], "temper");
    assert!(said.contains("doctor: done"), "010 are ten seconds: {said}");
}

/// The commit is the checkout's own: no project around it, and no clean one where files have changed.
#[test]
fn a_program_comes_from_a_commit_of_its_own_checkout() {
    let place = tempfile::tempdir().expect("a folder");
    let git = |folder: &Path, arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(folder).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(arguments);
        program::stdout(&program::succeed(&mut command)).trim().to_string()
    };
    let checkout = place.path().join("checkout");
    std::fs::create_dir_all(checkout.join("scripts")).expect("a folder");
    std::fs::create_dir_all(checkout.join("src")).expect("a folder");
    std::fs::copy(repository("scripts/provenance"), checkout.join("scripts/provenance")).expect("a script");
    std::fs::write(checkout.join("src/lib.rs"), "").expect("a file");
    let built = place.path().join("built");
    std::fs::write(&built, "").expect("a file");
    let said = || program::stdout(&program::succeed(Command::new(checkout.join("scripts/provenance")).arg(&built)));
    // The SHA-256 of nothing, as it is published.
    const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    git(place.path(), &["init", "-q"]);
    git(place.path(), &["commit", "-q", "--allow-empty", "-m", "of another project"]);
    assert_eq!(said(), format!("commit: unknown\nprogram: sha256 {NOTHING}\n"));
    git(&checkout, &["init", "-q"]);
    git(&checkout, &["add", "."]);
    git(&checkout, &["commit", "-q", "-m", "its own"]);
    let own = git(&checkout, &["rev-parse", "HEAD"]);
    assert_eq!(said(), format!("commit: {own}\nprogram: sha256 {NOTHING}\n"));
    let past = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::open(&built).and_then(|file| file.set_modified(past)).expect("a time");
    std::fs::write(checkout.join("src/lib.rs"), "changed").expect("a file");
    let changed = said();
    assert!(
        changed.contains(&format!("commit: {own}, with changes")) && changed.contains("older than src/lib.rs"),
        "{changed}"
    );
}

/// A step that takes too long is cut at the limit, the ones behind it are not begun, and both are said. The rows that a step
/// had when it was cut are in the table.
#[test]
fn the_limit_cuts_a_step_and_keeps_its_rows() {
    // A report that never ends after its rows.
    let more = r#"
        [ "$1" != selftest ] || exit 0
        for argument; do [ "$before" != --out ] || out="$argument"; before="$argument"; done
        [ "$1" != bench ] || "$real" bench kernels --device sim --shapes tiny --filter swiglu --json --out "$out"
        [ "$1" != bench ] || exec sleep 600
    "#;
    let stage = Stage::new(more);
    let start = Instant::now();
    let said = program::stdout(&program::succeed(&mut stage.measure("13")));
    assert!(start.elapsed() < Duration::from_secs(16), "{:?}", start.elapsed());
    assert!(stage.outcome("kernels-tar").starts_with("cut after"), "{said}");
    assert!(stage.outcome("tune").starts_with("not run: no time left"), "{said}");
    assert!(said.contains("| swiglu_forward | – |"), "{said}");
}

/// A signal in the middle: what was measured is in the table, which can be made again.
#[test]
fn a_stop_keeps_what_was_measured() {
    let stage = Stage::new(r#"[ "$1" != selftest ] || exit 0; [ "$1" != tune ] || exec sleep 600"#);
    let mut script = stage.measure("300").stdout(Stdio::piped()).spawn().expect("the script");
    let log = stage.out().join("steps.tsv");
    let start = Instant::now();
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("steps-tar\tdone")) {
        assert!(start.elapsed() < Duration::from_secs(60) && script.try_wait().expect("a state").is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-TERM", &script.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let output = script.wait_with_output().expect("an end");
    assert!(!output.status.success(), "a run that was stopped is no success");
    assert!(stage.outcome("the step under way").contains("stopped"));
    let table = std::fs::read_to_string(stage.out().join("results.md")).expect("a table");
    assert!(table.contains("| tr_gradient/5x8 |") && table.contains("| attention_forward/3x8 |"), "{table}");
    std::fs::remove_file(stage.out().join("results.md")).expect("a table");
    let again = Command::new(repository("scripts/measure-table")).arg(stage.out()).output().expect("the table");
    assert_eq!(String::from_utf8(again.stdout).expect("text"), table);
}

/// The folder has what a machine without Rust needs: measure-gpu finds the program in it and runs it. One that is too large is
/// refused.
#[test]
fn a_packed_folder_runs_elsewhere() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("packed");
    let pack = |folder: &Path| {
        let mut command = Command::new(repository("scripts/pack-gpu"));
        command.arg(folder).env("TEMPER", env!("CARGO_BIN_EXE_temper"));
        command
    };
    let packed = program::succeed(&mut pack(&folder));
    assert!(program::stdout(&packed).contains("MiB; there, run scripts/measure-gpu"), "{packed:?}");
    assert_eq!(program::stderr(&packed).contains("is a debug build"), cfg!(debug_assertions), "{packed:?}");
    let size = std::fs::metadata(folder.join("bin/temper")).expect("the program").len();
    assert!(size < std::fs::metadata(env!("CARGO_BIN_EXE_temper")).expect("the program").len(), "it is stripped");
    let mut measure = Command::new(folder.join("scripts/measure-gpu"));
    measure.arg(place.path().join("out")).args(["--seconds", "10", "--device", "sim", "--shapes", "tiny"]);
    measure.env_remove("TEMPER").env("XDG_CACHE_HOME", place.path());
    let output = measure.output().expect("the script");
    let said = program::stdout(&output);
    assert!(said.contains("doctor: done") && said.contains("| selftest | cut after"), "{said}");
    assert!(!output.status.success(), "a self-test that was cut proves nothing");
    let commit = |folder: &Path| std::fs::read_to_string(folder.join("commit.txt")).expect("a commit");
    assert_eq!(commit(&place.path().join("out")), commit(&folder));
    let selftest = std::fs::read_to_string(place.path().join("out/selftest.txt")).expect("rows");
    assert!(selftest.contains("linear_forward"), "the rows before the cut are kept");
    for peer in ["kernel_rows.py", "step.py", "losses.py", "measure.py"] {
        assert!(folder.join("benches/peers").join(peer).exists(), "{peer}");
    }

    let full = pack(&folder).output().expect("the script");
    assert!(!full.status.success() && program::stderr(&full).contains("not empty"));
    let large = pack(&place.path().join("large")).env("TEMPER_PACK_MIB", "1").output().expect("the script");
    assert!(!large.status.success() && program::stderr(&large).contains("more than 1"));
    let no_program = pack(&place.path().join("none")).env("TEMPER", place.path()).output().expect("the script");
    assert!(!no_program.status.success() && program::stderr(&no_program).contains("is no program"));
    let left: Vec<_> =
        std::fs::read_dir(place.path()).expect("a folder").map(|entry| entry.expect("a name").file_name()).collect();
    assert!(
        left.iter().all(|name| *name == "packed" || *name == "out" || *name == "temper"),
        "nothing half made is left: {left:?}"
    );
}
