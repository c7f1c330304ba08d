//! The examples for programs that use the library run, and the façade keeps its word about stops and errors.

use std::ops::ControlFlow;

use temper::api::{Control, Device, Error, Event, Hardening, Outcome, Precision, RunConfig, harden, toy};
use temper::huggingface::ModelDirectory;

#[path = "../../examples/harden.rs"]
mod example_harden;
#[path = "../../examples/own_loop.rs"]
mod example_own_loop;
#[path = "../../examples/redteam.rs"]
mod example_redteam;

/// A run of the toy model: (its settings, the folder that must outlive it).
fn toy_run(outer_steps: u64) -> (RunConfig, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    toy::write(folder.path(), 7).unwrap();
    let text = format!(
        "model = {{ path = \"model\" }}\n\
         data.restricted = {{ path = \"restricted.jsonl\", batch = 4 }}\n\
         data.retain = {{ path = \"retain.jsonl\", batch = 4 }}\n\
         [tar]\nouter_steps = {outer_steps}\ninner_steps = 2\ntr_every = 1\ntr_data = \"restricted\"\n\
         retain_data = \"retain\"\nadversary = [{{ name = \"full\", data = \"restricted\", lr = [1e-3] }}]\n"
    );
    (RunConfig::from_text(&text, &folder.path().join("run.toml"), &[]).unwrap(), folder)
}

fn cpu() -> Device {
    Device::open("cpu", Precision::F32).unwrap()
}

#[test]
fn the_harden_example_writes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let summary = example_harden::harden(&folder.path().join("new")).unwrap();
    assert_eq!((summary.steps, summary.skipped), (3, 0));
    let weights = |name: &str| ModelDirectory::open(&folder.path().join("new").join(name)).unwrap().read_weights();
    assert_ne!(weights("model").unwrap(), weights("hardened").unwrap());
}

#[test]
fn the_redteam_example_runs_both_attacks_to_their_end() {
    let folder = tempfile::tempdir().unwrap();
    let results = example_redteam::redteam(folder.path()).unwrap();
    assert_eq!(results.attacks.len(), 2);
    assert!(results.attacks.iter().all(|attack| matches!(attack.outcome, Outcome::Done { .. })), "{results:?}");
    assert!(folder.path().join("results/report.html").exists());
}

#[test]
fn the_example_of_an_own_loop_ends_and_writes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let summary = example_own_loop::harden(folder.path()).unwrap();
    assert!((1..=100).contains(&summary.steps));
    assert!(ModelDirectory::open(&folder.path().join("hardened")).is_ok());
}

/// An own loop over steps, stopped by its observer and resumed, gives the bytes of `harden`.
#[test]
fn a_stepped_run_that_its_observer_stopped_gives_the_weights_of_a_whole_one() {
    let (config, folder) = toy_run(5);
    let whole = folder.path().join("whole");
    harden(&cpu(), &config, &whole, Control::new()).unwrap();

    let out = folder.path().join("stepped");
    let stopping = Control::new().observe(|event| match event {
        Event::Step { step: 2, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let mut run = Hardening::begin(&cpu(), &config, &out, stopping).unwrap();
    run.step().unwrap();
    run.step().unwrap();
    assert!(matches!(run.step(), Err(Error::Interrupted { .. })));
    drop(run);

    let mut run = Hardening::begin(&cpu(), &config, &out, Control::new().resume(true)).unwrap();
    assert_eq!(run.steps_done(), 2);
    while run.step().unwrap().is_some() {}
    run.finish().unwrap();
    let file = |folder: &std::path::Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(file(&whole), file(&out));
}

/// Errors say which setting or file is wrong in fields, not only in words.
#[test]
fn errors_are_matched_by_variant() {
    let unknown = Device::open("gpu", Precision::Bf16).unwrap_err();
    assert!(matches!(unknown, Error::Config { key, .. } if key == "device"));

    let (mut config, folder) = toy_run(1);
    let out = folder.path().join("out");
    config.tar.tr_every = 0;
    let zero = harden(&cpu(), &config, &out, Control::new()).unwrap_err();
    assert!(matches!(&zero, Error::Config { key, .. } if key == "tar.tr_every"), "{zero:?}");
    assert!(!out.exists(), "settings are checked before anything is written");
    config.tar.tr_every = 1;

    std::fs::write(folder.path().join("retain.jsonl"), "{\"input_ids\": [1, 2, 3], \"labels\": \"x\"}\n").unwrap();
    let damaged = harden(&cpu(), &config, &out, Control::new()).unwrap_err();
    assert!(matches!(&damaged, Error::Input { file, .. } if file.ends_with("retain.jsonl")), "{damaged:?}");

    config.model.path = folder.path().join("nowhere");
    let missing = harden(&cpu(), &config, &out, Control::new()).unwrap_err();
    assert!(matches!(&missing, Error::Io { .. } | Error::Input { .. }), "{missing:?}");
}
