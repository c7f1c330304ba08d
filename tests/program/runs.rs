//! `temper attack` and `temper harden` as users and other tools start them: parity with the reference folders through the
//! command line, and runs that are stopped or killed and go on bit for bit.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use temper::huggingface::{ModelDirectory, TensorFile};
use temper::model::ModelLayout;

use crate::support::models::fixture;
use crate::support::numbers::{integers, relative_to_update};
use crate::support::program::{run, stderr, succeed, temper, text};

/// Rows of token tensors as JSONL, in order.
pub fn write_rows(tensors: &TensorFile, names: &[String], path: &Path) {
    let mut text = String::new();
    for name in names {
        let length = tensors.info(name).unwrap().shape[1];
        for row in integers(tensors, name).chunks(length) {
            writeln!(text, "{}", json!({ "input_ids": row })).unwrap();
        }
    }
    std::fs::write(path, text).unwrap();
}

/// `attack.batch.0` to `7` of `llama3` as a data file.
fn attack_data(directory: &Path) -> String {
    let tensors = TensorFile::open(&fixture("llama3/reference.safetensors")).unwrap();
    let names: Vec<String> = (0..8).map(|i| format!("attack.batch.{i}")).collect();
    let path = directory.join("attack.jsonl");
    write_rows(&tensors, &names, &path);
    text(&path)
}

#[test]
fn a_full_attack_from_the_command_line_follows_pytorch() {
    let scratch = tempfile::tempdir().unwrap();
    let data = attack_data(scratch.path());
    let model = text(&fixture("llama3"));
    let kinds = [("adamw", "1e-3", "0"), ("schedulefree_adamw", "1e-3", "4"), ("sgd_nesterov", "1e-2", "0")];
    for (name, lr, warmup) in kinds {
        let out = scratch.path().join(name);
        let mut command =
            temper(&["attack", "--model", &model, "--data", &data, "--out", &text(&out), "--params", "full"]);
        command.args(["--optimizer", name, "--lr", lr, "--warmup", warmup, "--steps", "8", "--batch", "4"]);
        command.args(["--no-shuffle", "--no-pack", "--dtype", "f32"]);
        succeed(command.args(["--set", "compat.schedulefree_point=train"]));
        let reference = TensorFile::open(&fixture("llama3/reference.safetensors")).unwrap();
        let tensor = "model.layers.1.mlp.down_proj.weight";
        let theirs = reference.read_f32(&format!("attack.full.{name}.{tensor}")).unwrap();
        let of = |directory: &Path| {
            let directory = ModelDirectory::open(directory).unwrap();
            let block = ModelLayout::new(&directory.config).unwrap().find(tensor).unwrap().block;
            directory.read_weights().unwrap()[block.range()].to_vec()
        };
        let error = relative_to_update(&of(&out), &theirs, &of(&fixture("llama3")));
        assert!(error <= 1e-4, "{name}: {error:.2e}");
    }
}

#[test]
fn a_lora_attack_from_the_command_line_follows_peft() {
    let scratch = tempfile::tempdir().unwrap();
    let data = attack_data(scratch.path());
    let out = scratch.path().join("out");
    let mut command = temper(&["attack", "--model", &text(&fixture("llama3")), "--data", &data, "--out", &text(&out)]);
    command.args(["--params", "lora", "--rank", "8", "--alpha", "16", "--adapter", &text(&fixture("llama3/adapter"))]);
    command.args(["--optimizer", "adamw", "--lr", "1e-3", "--steps", "8", "--batch", "4", "--no-shuffle", "--no-pack"]);
    succeed(&mut command);
    let open = |path: PathBuf| TensorFile::open(&path).unwrap();
    let ours = open(out.join("adapter_model.safetensors"));
    let start = open(fixture("llama3/adapter/adapter_model.safetensors"));
    let reference = open(fixture("llama3/reference.safetensors"));
    assert_eq!(ours.names(), start.names());
    for name in ours.names() {
        let theirs = reference.read_f32(&format!("lora.after.{}", name.replace(".weight", ".default.weight"))).unwrap();
        let error = relative_to_update(&ours.read_f32(name).unwrap(), &theirs, &start.read_f32(name).unwrap());
        assert!(error <= 1e-4, "{name}: {error:.2e}");
    }
}

/// The settings of the reference trajectory, without model and data.
const TAR: &str = r#"
[tar]
outer_steps = 3
inner_steps = 8
tr_every = 4
tr_scale = 4.0
schedule_lambda = 0.0625
retain_scale = 1.0
retain_representations = true
tr_loss = "max_entropy"
tr_data = "meta"
retain_data = "retain"
[tar.outer]
optimizer = "schedulefree_adamw"
lr = 2e-3
warmup = 2
[[tar.adversary]]
name = "pile"
data = "pile"
lr = [1e-3]
[[tar.adversary]]
name = "camel"
data = "camel"
lr = [1e-3]
[[tar.adversary]]
name = "switch"
data = ["adv_retain", "forget_train"]
switch = { beta = [6, 3] }
lr = [3e-4]
[[tar.script]]
adversary = "pile"
lr = 1e-3
[[tar.script]]
adversary = "switch"
lr = 3e-4
switch_at = 5
[[tar.script]]
adversary = "camel"
lr = 1e-3
[checkpoint]
every = 1
[compat]
entropy_over = "all"
schedulefree_point = "train"
skip_first_retain_batch = true
"#;

/// The reference trajectory of the TAR authors' loop as a run file, with its data in file order.
pub fn tar_run(directory: &Path) -> PathBuf {
    let tensors = TensorFile::open(&fixture("llama3/tar.safetensors")).unwrap();
    let model = text(&fixture("llama3"));
    let base = text(&fixture("llama3/base"));
    let mut run = format!("[model]\npath = {model:?}\nreference = {base:?}\ndtype = \"f32\"\n");
    for stream in ["pile", "camel", "adv_retain", "forget_train", "meta", "retain"] {
        let count = (0..).take_while(|i| tensors.info(&format!("batch.{stream}.{i}")).is_some()).count();
        let names: Vec<String> = (0..count).map(|i| format!("batch.{stream}.{i}")).collect();
        let rows = tensors.info(&names[0]).unwrap().shape[0];
        write_rows(&tensors, &names, &directory.join(format!("{stream}.jsonl")));
        writeln!(run, "[data.{stream}]\npath = \"{stream}.jsonl\"\nshuffle = false\nbatch = {rows}").unwrap();
    }
    let path = directory.join("run.toml");
    std::fs::write(&path, run + TAR).unwrap();
    path
}

#[test]
fn a_scripted_run_file_follows_the_authors_loop() {
    let scratch = tempfile::tempdir().unwrap();
    let run = tar_run(scratch.path());
    let out = scratch.path().join("out");
    // Rows may be longer than the model reads, as long as none is: the cost counts what was there.
    let longer = "data.retain.max_length=100000";
    succeed(&mut temper(&["harden", &text(&run), "--out", &text(&out), "--set", longer]));
    let cost: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("temper/cost.json")).unwrap()).unwrap();
    assert!(cost["flop"].as_f64().unwrap() > 1e6 && cost["seconds"].as_f64().unwrap() > 0.0, "{cost}");
    let start = ModelDirectory::open(&fixture("llama3")).unwrap();
    let after = ModelDirectory::open(&out).unwrap();
    let start_values = start.read_weights().unwrap();
    let values = after.read_weights().unwrap();
    let tensors = TensorFile::open(&fixture("llama3/tar.safetensors")).unwrap();
    for entry in ModelLayout::new(&start.config).unwrap().entries() {
        let place = entry.block.range();
        let theirs = tensors.read_f32(&format!("after.{}", entry.name)).unwrap();
        let error = relative_to_update(&values[place.clone()], &theirs, &start_values[place]);
        assert!(error <= 2e-3, "{}: {error:.2e}", entry.name);
    }
}

/// A GPU's memory decides how attacks run, and [memory] pins it: what changes no result changes no byte, bf16 moments do.
#[test]
fn a_gpu_run_says_what_it_trades_for_memory_and_takes_orders() {
    let scratch = tempfile::tempdir().unwrap();
    let run = text(&tar_run(scratch.path()));
    let harden = |name: &str, device: &str, pins: &[&str]| {
        let out = scratch.path().join(name);
        let mut command = temper(&["harden", &run, "--out", &text(&out), "--device", device]);
        for stream in ["pile", "camel", "adv_retain", "forget_train", "meta", "retain"] {
            command.args([
                "--set",
                &format!("data.{stream}.batch=1"),
                "--set",
                &format!("data.{stream}.max_length=12"),
            ]);
        }
        let short = ["tar.outer_steps=1", "tar.inner_steps=2", "tar.tr_every=2", "tar.script=[]"];
        command.args(short.iter().chain(pins).flat_map(|set| ["--set", set]));
        let output = command.output().unwrap();
        (output.status.code(), stderr(&output), out.join("model.safetensors"))
    };
    let finished = |name, pins: &[&str], note: &str| {
        let (code, messages, model) = harden(name, "sim", pins);
        assert_eq!(code, Some(0), "{messages}");
        assert!(messages.contains("GB on the device; ") && messages.contains(note), "{messages}");
        std::fs::read(model).unwrap()
    };
    let chosen = finished("auto", &[], "moments in f32, steps within the backward pass, no activation computed again");
    let pins = ["memory.recompute=layers", "memory.step_in_backward=false"];
    assert!(finished("pinned", &pins, "moments in f32, whole gradients, layers run forward again") == chosen);
    assert!(finished("bf16", &["memory.states=bf16"], "moments in bf16") != chosen);
    let (code, message, _) = harden("cpu", "cpu", &["memory.states=bf16"]);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("memory.states: bf16 goes with bf16 weights"), "{message}");
}

/// A batch that is too large for the 16 GiB of the simulated GPU is refused before anything is written.
#[test]
fn a_run_that_does_not_fit_its_gpu_is_refused_before_it_starts() {
    let scratch = tempfile::tempdir().unwrap();
    let run_file = text(&tar_run(scratch.path()));
    let out = text(&scratch.path().join("out"));
    let arguments = ["harden", &run_file, "--out", &out, "--device", "sim", "--set", "data.meta.batch=1000000"];
    let output = run(&mut temper(&arguments));
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(5), "{message}");
    assert!(message.contains("the run on this GPU needs") && message.contains("set data.meta.batch = "), "{message}");
    assert!(!Path::new(&out).exists());
}

/// All files of a finished run that must not depend on how often it was stopped.
pub fn result(out: &Path) -> Vec<(String, Vec<u8>)> {
    let names = ["config.json", "model.safetensors", "adapter_model.safetensors", "temper/metrics.jsonl"];
    let read = |name: &&str| std::fs::read(out.join(name)).ok().map(|bytes| (name.to_string(), bytes));
    let files: Vec<_> = names.iter().filter_map(read).collect();
    assert!(files.len() >= 2, "the run has written its result");
    files
}

/// Starts a run again and again and ends it by `signal` until it finishes: as soon as it has its directory, and then
/// whenever it has saved another checkpoint, a little later each time. What it waits for is progress, so that neither a
/// fast machine nor a slow one decides how often that is; a run of several checkpoints is ended at least twice.
pub fn interrupt(arguments: &[&str], out: &Path, signal: &str) {
    for attempt in 0..200 {
        let before = newest_checkpoint(out);
        let mut command = temper(arguments);
        command.args(["--out", &text(out), "--resume"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            let progress = if attempt == 0 { out.exists() } else { newest_checkpoint(out) > before };
            if progress {
                std::thread::sleep(Duration::from_millis(attempt % 4));
                assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
                break child.wait().unwrap();
            }
            std::thread::sleep(Duration::from_micros(300));
        };
        if status.success() {
            assert!(attempt >= 2, "{signal}: the run was ended only {attempt} times");
            return;
        }
        // A stop by request has an exit code of its own, unless the signal came before the program listened for it.
        assert!(matches!(status.code(), None | Some(75)), "attempt {attempt}: {status}");
    }
    panic!("the run never finished");
}

/// The name of the newest checkpoint of a run; names are in the order of their steps.
fn newest_checkpoint(out: &Path) -> Option<OsString> {
    let names = std::fs::read_dir(out.join("temper/checkpoints")).ok()?.flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("step-")).max()
}

#[test]
fn a_hardening_run_that_is_killed_or_stopped_ends_with_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let run = text(&tar_run(scratch.path()));
    let longer = ["--set", "tar.outer_steps=12"];
    let whole = scratch.path().join("whole");
    succeed(temper(&["harden", &run, "--out", &text(&whole)]).args(longer));
    let expected = result(&whole);
    for signal in ["-KILL", "-TERM"] {
        let out = scratch.path().join(signal);
        interrupt(&[&["harden", &run][..], &longer].concat(), &out, signal);
        assert!(result(&out) == expected, "{signal}: the result differs");
        assert_eq!(cost(&out).flop, cost(&whole).flop);
    }
    // 12 outer steps; what they cost is in the plan. Their seconds are in the metrics of no run, but they are some.
    let mut config = temper::config::RunConfig::load(Path::new(&run), &["tar.outer_steps=12".into()]).unwrap();
    let length = TensorFile::open(&fixture("llama3/tar.safetensors")).unwrap().info("batch.pile.0").unwrap().shape[1];
    config.data.values_mut().for_each(|stream| stream.max_length = length);
    let model = ModelDirectory::open(&fixture("llama3")).unwrap().config;
    let plan = temper::plan::Plan::new(&config, &model, temper::plan::PlannedDevice::Cpu { available: None }).unwrap();
    assert_eq!((cost(&whole).flop, plan.safeguard_flop), (plan.flop, 0.0));
    assert!(cost(&whole).seconds > 0.0);
}

/// Adversaries that draw everything from ranges, a pool and a curriculum: a run that is killed ends with the same bytes, and its
/// metrics tell which attack each step had. A second run from its model adds the cost of the first.
#[test]
fn a_run_that_searches_goes_on_with_its_pool_and_adds_up_its_cost() {
    let scratch = tempfile::tempdir().unwrap();
    let run = tar_run(scratch.path());
    let plain = std::fs::read_to_string(&run).unwrap();
    let start = plain.find("[[tar.adversary]]").unwrap();
    let end = plain.find("[checkpoint]").unwrap();
    let adversaries = r#"
[[tar.adversary]]
name = "mixed"
data = { pile = 0.5, camel = 0.5 }
share = { of = "pile", from = 0.1, to = 0.9 }
lr = { from = 3e-4, to = 3e-3 }
schedule = ["constant", "cosine"]
batch = 3
[[tar.adversary]]
name = "LoRA"
data = "pile"
tr_data = "adv_retain"
lr = { from = 1e-3, to = 1e-2 }
params = "lora"
rank = [4, 2]
inner_steps = 6
tr_every = 3
[tar.pool]
size = 3
share = 0.5
[tar.curriculum]
from = 2
steps = 9
"#;
    std::fs::write(&run, format!("{}{adversaries}{}", &plain[..start], &plain[end..])).unwrap();
    let run = text(&run);
    let longer = ["--set", "tar.outer_steps=16", "--set", "tar.outer.schedule=cosine"];
    let whole = scratch.path().join("whole");
    succeed(temper(&["harden", &run, "--out", &text(&whole)]).args(longer));
    let expected = result(&whole);
    let out = scratch.path().join("killed");
    interrupt(&[&["harden", &run][..], &longer].concat(), &out, "-KILL");
    assert!(result(&out) == expected, "the result differs");

    let metrics = std::fs::read_to_string(whole.join("temper/metrics.jsonl")).unwrap();
    let attacks = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let attacks: Vec<serde_json::Value> = attacks.map(|record| record["attacks"][0].clone()).collect();
    let lengths: Vec<u64> = attacks.iter().map(|attack| attack["steps"].as_u64().unwrap()).collect();
    assert!(lengths[0] < 6 && lengths[9..].iter().all(|steps| [6, 8].contains(steps)), "{lengths:?}");
    let drawn = |key: &str| attacks.iter().filter(|attack| !attack[key].is_null()).count();
    assert!(drawn("share") > 0 && drawn("rank") > 0 && drawn("share") + drawn("rank") == 16, "{attacks:?}");
    let rates: Vec<f64> = attacks.iter().map(|attack| attack["lr"].as_f64().unwrap()).collect();
    let again = (0..16).filter(|&step| rates[..step].contains(&rates[step])).count();
    assert!(again > 0, "no attack was met again: {rates:?}");

    let second = scratch.path().join("second");
    let from_first = format!("model.path={}", text(&whole));
    succeed(temper(&["harden", &run, "--out", &text(&second)]).args(longer).args(["--set", &from_first]));
    assert_eq!(cost(&second).flop, 2.0 * cost(&whole).flop);
    assert!(cost(&second).seconds > cost(&whole).seconds);
}

/// What a hardened model says of its defence.
fn cost(out: &Path) -> temper::plan::DefenderCost {
    temper::plan::DefenderCost::read(out).unwrap().unwrap()
}

#[test]
fn an_attack_that_is_killed_or_stopped_ends_with_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let data = attack_data(scratch.path());
    let model = text(&fixture("llama3"));
    let parameters: [(&str, &[&str]); 2] =
        [("full", &["--params", "full"]), ("lora", &["--params", "lora", "--dropout", "0.1"])];
    for (kind, parameters) in parameters {
        let common = ["attack", "--model", &model, "--data", &data, "--lr", "1e-3"];
        let steps = ["--steps", "60", "--batch", "4", "--checkpoint-every", "7"];
        let common = [&common[..], parameters, &steps].concat();
        let whole = scratch.path().join(kind);
        succeed(temper(&common).args(["--out", &text(&whole)]));
        let expected = result(&whole);
        for signal in ["-KILL", "-TERM"] {
            let out = scratch.path().join(format!("{kind}{signal}"));
            interrupt(&common, &out, signal);
            assert!(result(&out) == expected, "{kind} {signal}: the result differs");
        }
    }
}

/// A safeguard of the run file runs first, and a run that is killed after it does not pay for it again.
#[test]
fn a_safeguard_of_the_run_file_is_trained_first_and_survives_a_kill() {
    let scratch = tempfile::tempdir().unwrap();
    let run = tar_run(scratch.path());
    let safeguard = "[safeguard]\nmethod = \"max_entropy\"\ndata = \"pile\"\nsteps = 40\nlr = 5e-3\nwarmup = 0\n";
    let text_of_run = std::fs::read_to_string(&run).unwrap();
    std::fs::write(&run, format!("{text_of_run}{safeguard}")).unwrap();
    let run = text(&run);
    let whole = scratch.path().join("whole");
    succeed(&mut temper(&["harden", &run, "--out", &text(&whole)]));
    let expected = result(&whole);
    let metrics = std::fs::read_to_string(whole.join("temper/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|record| record["phase"] == "safeguard")
        .map(|record| record["removal_loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses.len(), 40);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let first = mean(&losses[..5]);
    let last = mean(&losses[35..]);
    assert!(last < first - 0.05, "the entropy of restricted text rises: {first} {last}");
    let out = scratch.path().join("killed");
    interrupt(&["harden", &run], &out, "-KILL");
    assert!(result(&out) == expected);
    assert_eq!(cost(&out).flop, cost(&whole).flop);
}

/// An exploding attack stops with its own exit code, and its checkpoints still hold finite weights.
#[test]
fn numbers_that_are_not_finite_never_reach_the_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let data = attack_data(scratch.path());
    let out = scratch.path().join("out");
    let mut command = temper(&["attack", "--model", &text(&fixture("llama3")), "--data", &data, "--out", &text(&out)]);
    command.args(["--optimizer", "sgd_momentum", "--lr", "1e30", "--steps", "20", "--batch", "4"]);
    let output = run(command.args(["--checkpoint-every", "1"]));
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let latest = temper::checkpoint::latest(&out.join("temper/checkpoints")).unwrap().unwrap();
    for tensor in temper::checkpoint::load(&latest).unwrap().tensors {
        assert!(tensor.values.iter().all(|v| v.is_finite()), "{}", tensor.name);
    }
}
