//! `temper tune` on the simulator, which chooses by counters: the same on every machine and every run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use temper::api::{self, AttackConfig, Control, Device, Error, Event, Precision, RunConfig, TuningPin, toy};
use temper::backend::cuda::Cuda;
use temper::bench::Tuner;
use temper::ops::{Backend, DType};
use temper::tuning::{Key, ProductEntry, ThreadsEntry, Tuning, Unit, follow_cuda};

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
    let mut tuning = Tuning::new(Key::of(&cuda));
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

/// A file that cannot be read is a one-line error of kind "input" with the file, the entry and the remedy, which works: `temper tune`
/// sets the file aside, says so, and measures.
#[test]
fn a_broken_file_is_named_and_the_tuner_sets_it_aside() {
    let cache = tempfile::tempdir().expect("a folder");
    let path = cached(cache.path());
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let mut entry = Tuning::new(Key::of(&cuda));
    let costs = BTreeMap::from([(96, 1.0)]);
    entry.threads.insert("rms_norm_forward 128 bf16".into(), ThreadsEntry { threads: 96, costs });
    // An algorithm that the device's library does not have: only the library knows.
    let mut algorithm = Tuning::new(Key::of(&cuda));
    let product = ProductEntry { algorithm: "01".repeat(64), candidate: 0, costs: vec![Some(1.0)], refused: vec![] };
    algorithm.products.insert("8x8x8 nt bf16 bf16".into(), product);
    let json = |tuning: &Tuning| serde_json::to_string(tuning).expect("JSON");
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    for (text, words) in [
        ("garbage".to_string(), "expected value"),
        (json(&entry), "`rms_norm_forward 128 bf16` in blocks of 96 threads"),
        (json(&algorithm), "8x8x8 nt bf16 bf16"),
    ] {
        std::fs::write(&path, &text).expect("the file");
        let bench = ["bench", "kernels", "--device", "sim", "--shapes", "tiny", "--filter", "rope"];
        let output = temper(cache.path(), &bench).output().expect("the program");
        let said = program::stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        let whole =
            said.contains(&program::text(&path)) && said.contains(words) && said.contains("`temper tune` again");
        assert!(whole && said.trim_end().lines().count() == 1, "{words}: {said}");
    }
    std::fs::write(&path, "garbage").expect("the file");
    let tuner = Tuner::new(&cuda, &path).expect("a tuner");
    let said = tuner.begins_anew().expect("a reason");
    let aside = path.with_extension("json.aside-1");
    assert!(said.contains("expected value") && said.contains(&program::text(&aside)), "{said}");
    assert!(!path.exists() && std::fs::read_to_string(&aside).expect("the file") == "garbage");
    // What was measured in another unit is no less worth keeping.
    Tuning { unit: Unit::Milliseconds, ..Tuning::new(Key::of(&cuda)) }.write(&path).expect("the file");
    let tuner = Tuner::new(&cuda, &path).expect("a tuner");
    assert!(tuner.begins_anew().is_some_and(|said| said.contains("milliseconds") && said.contains("aside-2")));
    assert_eq!(tuner.tuning().unit, Unit::FloorCycles);
}

/// A run file that pins a file is tuned into that file; one that forbids choices, or follows another file, is said.
#[test]
fn a_run_file_says_where_its_choices_go() {
    let folder = tempfile::tempdir().expect("a folder");
    toy::write(folder.path(), 1).expect("the toy model");
    let run = folder.path().join("run.toml");
    let tune = |pinned: &str, more: &[&str]| {
        std::fs::write(&run, format!("{pinned}\n{RUN}")).expect("a run file");
        let mut command = temper(folder.path(), &["tune", "--device", "sim"]);
        program::stderr(&program::succeed(command.arg(&run).args(more)))
    };
    let tuning = "tuning = \"pinned.json\"";
    tune(tuning, &[]);
    let written = Tuning::read(&folder.path().join("pinned.json")).expect("choices");
    assert!(written.threads.contains_key("rms_norm_forward 16 bf16"), "{written:?}");
    assert!(!cached(folder.path()).exists());
    let other = folder.path().join("other.json");
    written.write(&other).expect("a file");
    let said = tune(tuning, &["--out", &program::text(&other)]);
    assert!(said.contains("pinned.json, and not the file that is written"), "{said}");
    written.write(&cached(folder.path())).expect("a file");
    let said = tune("tuning = \"off\"", &[]);
    assert!(said.contains("it will follow none of these choices"), "{said}");
    std::fs::write(&run, format!("tuning = \"nosuch.json\"\n{RUN}")).expect("a run file");
    let plan = program::stderr(&program::succeed(temper(folder.path(), &["plan"]).arg(&run)));
    assert!(plan.contains("there is no") && plan.contains("nosuch.json"), "{plan}");
}

/// A small hardening run.
const RUN: &str = r#"
    model = { path = "model" }
    data.restricted = { path = "restricted.jsonl", batch = 2, max_length = 32 }
    data.retain = { path = "retain.jsonl", batch = 2, max_length = 32 }
    [tar]
    outer_steps = 2
    inner_steps = 2
    tr_every = 2
    tr_data = "restricted"
    retain_data = "retain"
    adversary = [{ name = "full", data = "restricted", lr = [1e-2] }]
"#;

/// A hardening run of the toy model that follows `tuning`, to its end or to the first outer step.
fn harden(folder: &Path, out: &str, tuning: Option<TuningPin>, resume: bool, stop: bool) -> Result<Vec<u8>, Error> {
    let run = RunConfig { tuning, ..RunConfig::from_text(RUN, &folder.join("run.toml"), &[])? };
    let device = Device::open("sim", Precision::Bf16)?;
    let mut steps = 0;
    let control = Control::new().resume(resume).observe(|event| {
        steps += u32::from(matches!(event, Event::Step { .. }));
        if stop && steps == 1 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    });
    api::harden(&device, &run, folder.join(out), control)?;
    Ok(std::fs::read(folder.join(out).join("model.safetensors")).expect("a model"))
}

/// A tuned run gives the same bits twice, stopped and resumed or not. It goes on with the choices that it began with, though the
/// file that they came from was extended, was overwritten or is gone; a run that began without choices goes on without. Choices
/// that contradict the run's own are refused.
#[test]
fn a_tuned_run_keeps_its_choices() {
    let folder = tempfile::tempdir().expect("a folder");
    toy::write(folder.path(), 1).expect("the toy model");
    let device = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let choose = |tuning: &mut Tuning, columns: usize, threads| {
        let costs = BTreeMap::from([(threads, 1.0)]);
        tuning.threads.insert(format!("rms_norm_forward {columns} bf16"), ThreadsEntry { threads, costs });
    };
    let write = |name: &str, entries: &[(usize, u32)]| {
        let path = folder.path().join(name);
        let mut tuning = Tuning::new(Key::of(&device));
        entries.iter().for_each(|(columns, threads)| choose(&mut tuning, *columns, *threads));
        tuning.write(&path).expect("the file");
        Some(TuningPin::File(path))
    };
    let tuned = write("tuned.json", &[(16, 128)]);
    let other = write("other.json", &[(16, 256)]);
    let run = |out: &str, pin: &Option<TuningPin>, resume, stop| harden(folder.path(), out, pin.clone(), resume, stop);
    let whole = run("whole", &tuned, false, false).expect("a run");
    let kept = std::fs::read_to_string(folder.path().join("whole/temper/cost.json")).expect("the run's cost");
    assert!(kept.contains("tuned ("), "the run says what it followed: {kept}");
    let followed = follow_cuda(device.clone(), tuned.as_ref()).expect("choices").0;
    assert!(followed.description().contains(&followed.tuning().expect("choices").to_string()));

    assert!(matches!(run("stopped", &tuned, false, true), Err(Error::Interrupted { .. })));
    for refused in [&other, &Some(TuningPin::Off)] {
        let error = run("stopped", refused, true, false).expect_err("other choices");
        assert!(matches!(&error, Error::Config { key, .. } if key == "tuning"), "{error}");
        assert!(error.to_string().contains("other bits"), "{error}");
    }
    // What `temper tune` does to the file meanwhile: one more shape, which this run never computes.
    write("tuned.json", &[(16, 128), (24, 128)]);
    copy(folder.path(), "stopped", "gone");
    copy(folder.path(), "stopped", "unnamed");
    assert_eq!(run("stopped", &tuned, true, false).expect("a run"), whole);
    std::fs::remove_file(folder.path().join("tuned.json")).expect("a file");
    assert_eq!(run("gone", &tuned, true, false).expect("a run"), whole);
    // The command line, which nobody tells of choices, says which ones it follows.
    std::fs::write(folder.path().join("run.toml"), RUN).expect("a run file");
    let mut resume = temper(folder.path(), &["harden", "--device", "sim", "--resume"]);
    resume.arg(folder.path().join("run.toml")).arg("--out").arg(folder.path().join("unnamed"));
    let said = program::stderr(&program::succeed(&mut resume));
    assert!(said.contains("tuning: the choices that the run began with") && said.contains("choices.json"), "{said}");
    assert_eq!(std::fs::read(folder.path().join("unnamed/model.safetensors")).expect("a model"), whole);

    let plain = run("plain", &None, false, false).expect("a run");
    assert!(matches!(run("plain-stopped", &None, false, true), Err(Error::Interrupted { .. })));
    assert_eq!(run("plain-stopped", &other, true, false).expect("a run"), plain);
}

/// An attack keeps its choices as a hardening run does, and a run whose choices are for another device is refused.
#[test]
fn an_attack_keeps_its_choices_and_its_device() {
    let folder = tempfile::tempdir().expect("a folder");
    toy::write(folder.path(), 1).expect("the toy model");
    let mut tuning = Tuning::new(Key::of(&Cuda::simulated(DType::Bf16).expect("a simulated device")));
    let costs = BTreeMap::from([(128, 1.0)]);
    tuning.threads.insert("rms_norm_forward 16 bf16".into(), ThreadsEntry { threads: 128, costs });
    let file = folder.path().join("tuned.json");
    tuning.write(&file).expect("the file");
    let config = |steps| {
        let data = folder.path().join("restricted.jsonl");
        let mut config = AttackConfig::new(folder.path().join("model"), data);
        config.attack.steps = Some(steps);
        config.attack.batch = Some(2);
        config.checkpoint.every = 1;
        config
    };
    let plain = Device::open("sim", Precision::Bf16).expect("a simulated device");
    let tuned = api::follow(&plain, Some(&TuningPin::File(file))).expect("choices").0;
    let attack = |device: &Device, out: &str, steps, resume| {
        api::attack(device, &config(steps), folder.path().join(out), Control::new().resume(resume))?;
        Ok::<_, Error>(std::fs::read(folder.path().join(out).join("model.safetensors")).expect("a model"))
    };
    let whole = attack(&tuned, "whole", 3, false).expect("an attack");
    attack(&tuned, "parts", 2, false).expect("an attack");
    copy(folder.path(), "parts", "elsewhere");
    assert_eq!(attack(&plain, "parts", 3, true).expect("an attack"), whole);
    let kept = folder.path().join("elsewhere/temper/choices.json");
    let text = std::fs::read_to_string(&kept).expect("the choices");
    std::fs::write(&kept, text.replace("simulated sm_80", "another GPU")).expect("the choices");
    let error = attack(&plain, "elsewhere", 3, true).expect_err("another device").to_string();
    assert!(error.contains("choices.json") && error.contains("measured with device another GPU"), "{error}");
}

/// Copies a folder of a run.
fn copy(folder: &Path, from: &str, to: &str) {
    let copied = Command::new("cp").arg("-r").args([folder.join(from), folder.join(to)]).status().expect("cp");
    assert!(copied.success());
}
