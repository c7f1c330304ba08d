//! `temper tune` on the simulator, which chooses by counters: the same on every machine and every run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use temper::api::{self, Control, Device, Error, Event, Precision, RunConfig, TuningPin, toy};
use temper::backend::cuda::Cuda;
use temper::ops::{Backend, DType};
use temper::tuning::{Key, ThreadsEntry, Tuning, Unit, follow_cuda};

use crate::program;

/// The program, for a user whose cache is `cache`.
fn temper(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = program::temper(arguments);
    command.env("XDG_CACHE_HOME", cache).env_remove("TEMPER");
    command
}

const TUNE: [&str; 5] = ["tune", "--device", "sim", "--shapes", "tiny"];

fn cached(cache: &Path) -> PathBuf {
    cache.join("temper/tuning/simulated-sm-80.json")
}

/// One file from beginning to end: it has every kernel and product, chosen as its costs say; a second run measures nothing, and
/// one after a kill measures what is missing and ends with the same file.
#[test]
fn a_tuner_goes_on_where_another_was_killed() {
    let cache = tempfile::tempdir().expect("a folder");
    let whole = program::succeed(&mut temper(cache.path(), &TUNE));
    let said = program::stderr(&whole);
    assert!(said.contains("say nothing about the speed of a GPU"), "{said}");
    let path = cached(cache.path());
    let bytes = std::fs::read(&path).expect("the file");
    let tuning = Tuning::read(&path).expect("a tuning");
    assert_eq!((tuning.unit, tuning.key.device.as_str()), (Unit::FloorCycles, "simulated sm_80"));
    // The products of a step on 3 × 8 tokens and of one on 5 × 8: forward, input and weight of four layers, and three of the head.
    for tokens in [24, 40] {
        for product in ["x256x128 nt bf16 bf16", "x320x128 nt bf16 bf16", "x128x160 nt bf16 bf16"] {
            assert!(tuning.products.contains_key(&format!("{tokens}{product}")), "{tokens}{product}: {tuning:#?}");
        }
        assert!(tuning.products.contains_key(&format!("320x128x{tokens} tn bf16 f32 +=")), "{tuning:#?}");
    }
    for (rows, ThreadsEntry { threads, costs }) in &tuning.threads {
        assert!(costs.len() == 2 && costs.values().all(|cost| *cost > 0.0), "{rows}: {costs:?}");
        assert!(costs.values().all(|cost| costs[threads] <= cost * 1.01), "{rows}: {threads} of {costs:?}");
    }
    assert_eq!(tuning.threads.len(), 2);

    let again = program::stdout(&program::succeed(&mut temper(cache.path(), &TUNE)));
    assert!(again.contains("; 0 measured now"), "{again}");
    assert_eq!(std::fs::read(&path).expect("the file"), bytes);

    // What a kill leaves: the shapes so far.
    let mut partial = tuning.clone();
    partial.threads.clear();
    partial.products.retain(|product, _| product.starts_with("24x"));
    let missing = tuning.products.len() - partial.products.len() + 2;
    partial.write(&path).expect("the file");
    let rest = program::stdout(&program::succeed(&mut temper(cache.path(), &TUNE)));
    assert!(rest.contains(&format!("; {missing} measured now")), "{missing}: {rest}");
    assert_eq!(std::fs::read(&path).expect("the file"), bytes);
}

/// A tuner that is killed as soon as it has written anything leaves a whole file.
#[test]
fn a_killed_tuner_leaves_a_whole_file() {
    let cache = tempfile::tempdir().expect("a folder");
    let mut tuner = temper(cache.path(), &TUNE).stderr(std::process::Stdio::null()).spawn().expect("the program");
    while !cached(cache.path()).exists() && tuner.try_wait().expect("a state").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    tuner.kill().expect("a kill");
    tuner.wait().expect("an end");
    let kept = Tuning::read(&cached(cache.path())).expect("a whole file");
    assert!(!kept.products.is_empty());
}

/// Every command says what it follows; a file for another device is not used, and a command says so; a run can pin and forbid.
#[test]
fn commands_follow_the_file_and_say_so() {
    let cache = tempfile::tempdir().expect("a folder");
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let mut tuning = Tuning::new(Key::of(&cuda), Unit::FloorCycles);
    let entry = ThreadsEntry { threads: 128, costs: BTreeMap::from([(128, 1.0), (256, 2.0)]) };
    tuning.threads.insert("rms_norm_forward 128 bf16".into(), entry);
    let bench = |cache: &Path, more: &[&str]| -> (String, Value) {
        let arguments = ["bench", "kernels", "--device", "sim", "--shapes", "tiny", "--filter", "rope", "--json"];
        let output = program::succeed(temper(cache, &arguments).args(more));
        (program::stderr(&output), serde_json::from_slice(&output.stdout).expect("JSON"))
    };
    let (said, report) = bench(cache.path(), &[]);
    assert!(said.contains("tuning: none; `temper tune`") && report["tuning"].is_null(), "{said}");
    let path = cached(cache.path());
    tuning.write(&path).expect("the file");
    let fingerprint = tuning.choices().fingerprint().expect("a fingerprint").expect("choices").to_string();
    let (said, report) = bench(cache.path(), &[]);
    assert!(said.contains(&format!("tuning: {} (0 products, 1 kernels, {fingerprint})", path.display())), "{said}");
    assert_eq!(report["tuning"], Value::from(fingerprint.as_str()));
    let (said, report) = bench(cache.path(), &["--tuning", "off"]);
    assert!(said.contains("tuning: off") && report["tuning"].is_null(), "{said}");
    let moved = cache.path().join("pinned.json");
    std::fs::rename(&path, &moved).expect("a move");
    let (_, report) = bench(cache.path(), &["--tuning", &program::text(&moved)]);
    assert_eq!(report["tuning"], Value::from(fingerprint.as_str()));

    let other = Tuning { key: Key { driver: Some("12.9".into()), ..tuning.key.clone() }, ..tuning.clone() };
    other.write(&path).expect("the file");
    let (said, report) = bench(cache.path(), &[]);
    assert!(said.contains("is not used: it was measured with driver 12.9, and here it is none"), "{said}");
    assert!(report["tuning"].is_null());
    let said = program::stderr(&program::succeed(&mut temper(cache.path(), &TUNE)));
    assert!(said.contains("begins anew: it was measured with driver 12.9"), "{said}");
    assert_eq!(Tuning::read(&path).expect("a tuning").key, tuning.key);

    let missing =
        temper(cache.path(), &["bench", "kernels", "--device", "sim", "--shapes", "tiny", "--tuning", "x.json"])
            .output()
            .expect("the program");
    assert!(!missing.status.success() && program::stderr(&missing).contains("x.json"), "a pinned file must exist");
}

/// Choices that are none of ours are refused before anything runs by them.
#[test]
fn hostile_choices_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tuning.json");
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    for (rows, threads, words) in [
        ("rms_norm_forward 128 bf16", 96, "96 threads"),
        ("gemm 128 bf16", 128, "no kernel has that choice"),
        ("rms_norm_forward 128 bf16", 0, "0 threads"),
    ] {
        let mut tuning = Tuning::new(Key::of(&cuda), Unit::FloorCycles);
        tuning.threads.insert(rows.into(), ThreadsEntry { threads, costs: BTreeMap::new() });
        tuning.write(&path).expect("the file");
        let error =
            follow_cuda(cuda.clone(), Some(&TuningPin::File(path.clone()))).err().expect("a refusal").to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// A hardening run of the toy model that follows `tuning`, to its end or to the first outer step.
fn harden(folder: &Path, out: &str, tuning: Option<TuningPin>, resume: bool, stop: bool) -> Result<Vec<u8>, Error> {
    let text = r#"
        model = { path = "model" }
        data.restricted = { path = "restricted.jsonl", batch = 2 }
        data.retain = { path = "retain.jsonl", batch = 2 }
        [tar]
        outer_steps = 2
        inner_steps = 2
        tr_every = 2
        tr_data = "restricted"
        retain_data = "retain"
        adversary = [{ name = "full", data = "restricted", lr = [1e-2] }]
    "#;
    let run = RunConfig { tuning, ..RunConfig::from_text(text, &folder.join("run.toml"), &[])? };
    let device = Device::open("sim", Precision::Bf16)?;
    let mut steps = 0;
    let control = Control::new().resume(resume).observe(|event| {
        steps += u32::from(matches!(event, Event::Step { .. }));
        if stop && steps == 1 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    });
    api::harden(&device, &run, folder.join(out), control)?;
    Ok(std::fs::read(folder.join(out).join("model.safetensors")).expect("a model"))
}

/// A tuned run gives the same bits twice, stopped and resumed or not; one that resumes with other choices is refused.
#[test]
fn a_tuned_run_keeps_its_choices() {
    let folder = tempfile::tempdir().expect("a folder");
    toy::write(folder.path(), 1).expect("the toy model");
    let device = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let file = |name: &str, threads| {
        let path = folder.path().join(name);
        let mut tuning = Tuning::new(Key::of(&device), Unit::FloorCycles);
        let entry = ThreadsEntry { threads, costs: BTreeMap::new() };
        tuning.threads.insert("rms_norm_forward 16 bf16".into(), entry);
        tuning.write(&path).expect("the file");
        Some(TuningPin::File(path))
    };
    let [tuned, other] = [file("tuned.json", 128), file("other.json", 256)];
    let run = |out: &str, pin: &Option<TuningPin>, resume, stop| harden(folder.path(), out, pin.clone(), resume, stop);
    let whole = run("whole", &tuned, false, false).expect("a run");
    assert!(matches!(run("stopped", &tuned, false, true), Err(Error::Interrupted { .. })));
    for refused in [&other, &Some(TuningPin::Off), &None] {
        let error = run("stopped", refused, true, false).expect_err("other choices");
        assert!(matches!(&error, Error::Config { key, .. } if key == "tuning"), "{error}");
        assert!(error.to_string().contains("other bits"), "{error}");
    }
    assert_eq!(run("stopped", &tuned, true, false).expect("a run"), whole);
    let followed = follow_cuda(device, tuned.as_ref()).expect("choices").0;
    assert!(followed.description().contains(&followed.tuning().expect("choices").to_string()));
    let kept = std::fs::read_to_string(folder.path().join("whole/temper/cost.json")).expect("the run's cost");
    assert!(kept.contains("tuned ("), "the run says what it followed: {kept}");
}
