//! Defences composed in run files: TAR written as a composition gives TAR's bytes, runs that are stopped or killed go on bit
//! for bit, and what is not trained does not move.

use std::path::{Path, PathBuf};

use temper::backend::cpu::Cpu;
use temper::edits::Quantization;
use temper::huggingface::{ExportDType, ModelDirectory, TensorFile, write_model};
use temper::model::{Model, ModelLayout};

use crate::runs::{interrupt, result, tar_run, write_rows};
use crate::support::models::fixture;
use crate::support::numbers::{relative, relative_to_update};
use crate::support::program::{succeed, temper, text};

/// The composition that the `[tar]` of the reference trajectory stands for.
const COMPOSED: &str = r#"
[defence]
outer_steps = 3
[defence.outer]
optimizer = "schedulefree_adamw"
lr = 2e-3
warmup = 2
[defence.point.attacked]
attack = { steps = 8, every = 4, schedule_lambda = 0.0625 }
[[defence.term]]
name = "tr"
loss = { max_entropy = { over = "all" } }
data = "meta"
weight = 4.0
at = "attacked"
[[defence.term]]
name = "retain"
loss = "retain"
data = "retain"
[[defence.adversary]]
name = "pile"
data = "pile"
lr = [1e-3]
[[defence.adversary]]
name = "camel"
data = "camel"
lr = [1e-3]
[[defence.adversary]]
name = "switch"
data = ["adv_retain", "forget_train"]
switch = { beta = [6, 3] }
lr = [3e-4]
[[defence.script]]
adversary = "pile"
lr = 1e-3
[[defence.script]]
adversary = "switch"
lr = 3e-4
switch_at = 5
[[defence.script]]
adversary = "camel"
lr = 1e-3
[checkpoint]
every = 1
[compat]
schedulefree_point = "train"
"#;

#[test]
fn tar_written_as_a_composition_gives_its_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let tar = tar_run(scratch.path());
    let written = std::fs::read_to_string(&tar).unwrap();
    let composed = scratch.path().join("composed.toml");
    std::fs::write(&composed, format!("{}{COMPOSED}", written.split("[tar]").next().unwrap())).unwrap();
    let end = |run: &Path, name: &str, overrides: &[&str]| {
        let out = scratch.path().join(name);
        succeed(temper(&["harden", &text(run), "--out", &text(&out)]).args(overrides));
        result(&out)
    };
    // `[defence]` leaves no batch out at the start.
    let plain = ["--set", "compat.skip_first_retain_batch=false"];
    assert!(end(&tar, "tar", &plain) == end(&composed, "composed", &[]));
}

/// A run file with random rows for each stream of `streams`, and `rest`.
fn run_file(directory: &Path, streams: &[&str], rest: &str) -> PathBuf {
    let tensors = TensorFile::open(&fixture("llama3/reference.safetensors")).unwrap();
    let mut run = format!("[model]\npath = {:?}\ndtype = \"f32\"\n", text(&fixture("llama3")));
    for (index, stream) in streams.iter().enumerate() {
        let name = format!("attack.batch.{index}");
        write_rows(&tensors, &[name], &directory.join(format!("{stream}.jsonl")));
        run += &format!("[data.{stream}]\npath = \"{stream}.jsonl\"\nbatch = 2\n");
    }
    let path = directory.join("run.toml");
    std::fs::write(&path, run + rest).unwrap();
    path
}

/// Booster, small.
const ONE_STEP: &str = r#"
[defence]
outer_steps = 12
outer = { optimizer = "adamw", lr = 1e-3, warmup = 0, weight_decay = 0.1 }
[defence.point.after-step]
step = { data = "harmful", size = 0.1 }
[[defence.term]]
loss = "cross_entropy"
data = "aligned"
[[defence.term]]
loss = "cross_entropy"
data = "harmful"
weight = 5.0
[[defence.term]]
loss = "cross_entropy"
data = "harmful"
weight = -5.0
at = "after-step"
[checkpoint]
every = 1
"#;

/// Points that keep something between outer steps, draws, and rounds.
const KEEPING: &str = r#"
[defence]
outer = { optimizer = "schedulefree_adamw", lr = 1e-3, warmup = 0 }
[defence.point.ablated]
ablation = { restricted = "harmful", harmless = "aligned", depth = 0.5, refresh = 3 }
[defence.point.frozen]
frozen_attack = { steps = 3, refresh = 4, first = 2 }
[defence.point.noisy]
noise = { relative = 0.01, tasks = 2 }
[defence.point.rounded]
rounding = { bits = 4, group = 32 }
[[defence.term]]
loss = "cross_entropy"
data = "aligned"
[[defence.term]]
name = "ablated"
loss = "cross_entropy"
data = "aligned"
at = "ablated"
[[defence.term]]
name = "frozen"
loss = { max_entropy = { over = "learned" } }
data = "harmful"
at = "frozen"
[[defence.term]]
name = "noisy"
loss = "cross_entropy"
data = "aligned"
at = "noisy"
[[defence.term]]
name = "rounded"
loss = "retain"
data = "aligned"
weight = 0.5
at = "rounded"
[[defence.adversary]]
name = "full"
data = "harmful"
lr = [1e-3, 3e-3]
[[defence.round]]
outer_steps = 5
weights = { frozen = 0.0 }
[[defence.round]]
outer_steps = 5
outer = { optimizer = "schedulefree_adamw", lr = 5e-4, warmup = 2 }
trained = { layers = [1] }
[checkpoint]
every = 1
"#;

#[test]
fn what_points_and_rounds_keep_survives_a_kill() {
    let scratch = tempfile::tempdir().unwrap();
    let run = text(&run_file(scratch.path(), &["harmful", "aligned"], KEEPING));
    let whole = scratch.path().join("whole");
    succeed(&mut temper(&["harden", &run, "--out", &text(&whole)]));
    let expected = result(&whole);
    let metrics = std::fs::read_to_string(whole.join("temper/metrics.jsonl")).unwrap();
    let attacks: Vec<u64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|record| record.get("attack_loss").is_some())
        .map(|record| record["step"].as_u64().unwrap())
        .collect();
    // The steps of the metrics stream are counted from 1: attacks begin outer steps 2 and 6.
    assert_eq!(attacks, [3, 7]);
    for signal in ["-KILL", "-TERM"] {
        let out = scratch.path().join(signal);
        interrupt(&["harden", &run], &out, signal);
        assert!(result(&out) == expected, "{signal}: the result differs");
    }
}

/// The gradient at rounded weights is the gradient of a model that has these weights.
#[test]
fn a_gradient_at_a_point_is_that_of_the_model_there() {
    let scratch = tempfile::tempdir().unwrap();
    let start = ModelDirectory::open(&fixture("llama3")).unwrap();
    let before = start.read_weights().unwrap();
    let model = Model::new(Cpu, start.config.clone(), 64).unwrap();
    let mut rounded = before.clone();
    Quantization { bits: 4, group: 32, symmetric: false }.round(&model, &mut rounded);
    let there = scratch.path().join("rounded");
    write_model(&there, &start.config, None, &rounded, ExportDType::F32).unwrap();
    let term = "[[defence.term]]\nloss = \"cross_entropy\"\ndata = \"aligned\"\n";
    let outer = "[defence]\nouter_steps = 1\nouter = { optimizer = \"sgd_momentum\", lr = 0.1, warmup = 0 }\n";
    let rounding = "[defence.point.rounded]\nrounding = { bits = 4, group = 32 }\n";
    let update = |name: &str, rest: String, model: &Path, from: &[f32]| {
        let run = text(&run_file(scratch.path(), &["aligned"], &rest));
        let out = scratch.path().join(name);
        let model = format!("model.path={}", text(model));
        succeed(&mut temper(&["harden", &run, "--out", &text(&out), "--set", &model]));
        let after = ModelDirectory::open(&out).unwrap().read_weights().unwrap();
        after.iter().zip(from).map(|(a, b)| a - b).collect::<Vec<f32>>()
    };
    let at_point = format!("{outer}{rounding}{term}at = \"rounded\"\n");
    let ours = update("point", at_point, &fixture("llama3"), &before);
    let theirs = update("base", format!("{outer}{term}"), &there, &rounded);
    let error = relative(&ours, &theirs);
    // What is left is the rounding of weights by their update: 6e-8 of 0.1 in updates of 1e-3 and less.
    assert!(error <= 1e-4, "{error:.2e}");
    let elsewhere = update("elsewhere", format!("{outer}{term}"), &fixture("llama3"), &before);
    assert!(relative(&ours, &elsewhere) > 1e-2, "{:.2e}", relative(&ours, &elsewhere));
}

#[test]
fn a_composed_run_that_is_killed_or_stopped_ends_with_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let run = text(&run_file(scratch.path(), &["harmful", "aligned"], ONE_STEP));
    let whole = scratch.path().join("whole");
    succeed(&mut temper(&["harden", &run, "--out", &text(&whole)]));
    let expected = result(&whole);
    let metrics = std::fs::read_to_string(whole.join("temper/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    // The point lies down the gradient of the harmful loss, and both were taken on one batch.
    let loss = |name: &str| last[name].as_f64().unwrap();
    assert!(loss("harmful after-step_loss") < loss("harmful_loss") && loss("aligned_loss") > 0.0, "{last}");
    for signal in ["-KILL", "-TERM"] {
        let out = scratch.path().join(signal);
        interrupt(&["harden", &run], &out, signal);
        assert!(result(&out) == expected, "{signal}: the result differs");
    }
}

/// What is not trained keeps every bit, under weight decay too; what is trained moves.
#[test]
fn nothing_moves_but_what_is_trained() {
    let scratch = tempfile::tempdir().unwrap();
    let run = text(&run_file(scratch.path(), &["harmful", "aligned"], ONE_STEP));
    let start = ModelDirectory::open(&fixture("llama3")).unwrap();
    let before = start.read_weights().unwrap();
    for optimizer in ["adamw", "schedulefree_adamw"] {
        let out = scratch.path().join(optimizer);
        let mut command = temper(&["harden", &run, "--out", &text(&out), "--set", "defence.outer_steps=3"]);
        command.args(["--set", &format!("defence.outer.optimizer={optimizer}")]);
        succeed(command.args(["--set", "defence.trained={layers=[1], modules=[\"down_proj\", \"q_proj\"]}"]));
        let after = ModelDirectory::open(&out).unwrap().read_weights().unwrap();
        for entry in ModelLayout::new(&start.config).unwrap().entries() {
            let place = entry.block.range();
            let same =
                before[place.clone()].iter().zip(&after[place]).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
            let trained = ["model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"];
            if trained.contains(&entry.name.as_str()) {
                assert!(same < entry.block.len() / 2, "{optimizer}: {} has moved in {same} places less", entry.name);
            } else {
                assert_eq!(same, entry.block.len(), "{optimizer}: {}", entry.name);
            }
        }
    }
}

/// The update of each preset is that of the formulas of its paper, computed by PyTorch; see `tests/fixtures/defences.py`.
#[test]
fn presets_take_the_steps_of_their_papers() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = fixture("llama31");
    let reference = TensorFile::open(&folder.join("defences.safetensors")).unwrap();
    let start = ModelDirectory::open(&folder).unwrap();
    let before = start.read_weights().unwrap();
    let layout = ModelLayout::new(&start.config).unwrap();
    let frozen = "defence.point.attacked={frozen_attack={steps=3, refresh=2, first=1}}";
    let rounds = "defence.round=[{outer_steps=1, weights={refusals=1.0, attacked=0.0}}, {outer_steps=2, repeat=2}]";
    let ablation = "{ablation={restricted=\"refusals\", harmless=\"harmless\", depth=0.6, refresh=2}}";
    let ablation = format!("defence.point.ablated={ablation}");
    let of_patcher = [frozen, rounds, "defence.adversary.0.lr=1e-3"];
    for (preset, streams, overrides) in [
        ("booster", &["aligned", "harmful"][..], &["defence.outer_steps=2"][..]),
        ("ctrap", &["aligned", "harmful", "general"], &["defence.outer_steps=2"]),
        ("patcher", &["refusals", "harmful"], &of_patcher),
        ("ablation-resistant", &["refusals", "harmless", "retain"], &["defence.outer_steps=3", &ablation]),
    ] {
        let mut run = format!("preset = {preset:?}\n[model]\npath = {:?}\ndtype = \"f32\"\n", text(&folder));
        run += &format!("reference = {:?}\n", text(&folder.join("base")));
        for stream in streams {
            let count = (0..).take_while(|i| reference.info(&format!("batch.{stream}.{i}")).is_some()).count();
            let names: Vec<String> = (0..count).map(|i| format!("batch.{stream}.{i}")).collect();
            write_rows(&reference, &names, &scratch.path().join(format!("{stream}.jsonl")));
            run += &format!("[data.{stream}]\npath = \"{stream}.jsonl\"\nshuffle = false\nbatch = 2\n");
        }
        // The update of SGD is the gradient; warm-up and weight decay are other tests' subject.
        run += "[defence.outer]\noptimizer = \"sgd_momentum\"\nlr = 1e-2\nwarmup = 0\nweight_decay = 0.0\n";
        let path = scratch.path().join(format!("{preset}.toml"));
        std::fs::write(&path, run).unwrap();
        let out = scratch.path().join(preset);
        let mut command = temper(&["harden", &text(&path), "--out", &text(&out)]);
        succeed(command.args(overrides.iter().flat_map(|set| ["--set", set])));
        let after = ModelDirectory::open(&out).unwrap().read_weights().unwrap();
        let mut compared = 0;
        for entry in layout.entries() {
            let name = format!("update.{preset}.{}", entry.name);
            if reference.info(&name).is_none() {
                continue;
            }
            compared += 1;
            let theirs = reference.read_f32(&name).unwrap();
            let place = entry.block.range();
            let expected: Vec<f32> =
                before[place.clone()].iter().zip(&theirs).map(|(start, update)| start + update).collect();
            let error = relative_to_update(&after[place.clone()], &expected, &before[place]);
            assert!(error <= 1e-4, "{preset}, {}: {error:.2e}", entry.name);
        }
        assert_eq!(compared, 6, "{preset}");
    }
}
