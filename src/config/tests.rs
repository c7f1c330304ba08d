//! Run files as users write them: what is accepted, what it means, and what each mistake is answered with.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::model::{Projection, Recompute};
use crate::objective::{EntropyOver, HiddenKind, HiddenTerm, TermLoss};
use crate::optimizer::OptimizerKind;
use crate::tar::{AttackLength, LearningRates, RateRange, SignMask};
use crate::training::{MemorySettings, Moments};

const MINIMAL: &str = r#"
[model]
path = "model"

[data.forget]
path = "forget.jsonl"
[data.retain]
path = "retain.jsonl"
[data.meta]
path = "/data/meta.jsonl"

[tar]
inner_steps = 8

[tar.outer]
lr = 1e-3

[[tar.adversary]]
name = "forget"
data = "forget"
lr = 2e-5

[[tar.adversary]]
name = "switch"
data = ["retain", "forget"]
switch = { beta = [6, 3] }
lr = [2e-5, 4e-5]
"#;

pub(super) fn load(text: &str, overrides: &[&str]) -> Result<RunConfig, Error> {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    RunConfig::from_text(text, Path::new("/runs/run.toml"), &overrides)
}

pub(super) fn message(text: &str, overrides: &[&str]) -> String {
    let error = load(text, overrides).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn a_minimal_file_has_the_published_defaults() {
    let config = load(MINIMAL, &[]).unwrap();
    assert_eq!(config.seed, 42);
    assert_eq!((config.tar.inner_steps, config.tar.tr_every, config.tar.tr_scale), (8, 4, 4.0));
    assert_eq!(config.tar.schedule_lambda, Some(0.0625));
    assert_eq!((config.tar.outer.optimizer, config.tar.outer.lr), (OptimizerKind::ScheduleFreeAdamW, 1e-3));
    assert_eq!(config.tar.adversary[0].lr, LearningRates::List(vec![2e-5]));
    assert_eq!(config.tar.adversary[1].switch, Some(SwitchDraw { beta: [6.0, 3.0] }));
    assert_eq!(config.compat, CompatConfig::default());
    let defaults = AdversaryConfig::new("forget", DataNames::One("forget".into()), &[2e-5]);
    assert_eq!(config.tar.adversary[0], defaults);
}

#[test]
fn relative_paths_count_from_the_run_file() {
    let config = load(MINIMAL, &[]).unwrap();
    assert_eq!(config.model.path, PathBuf::from("/runs/model"));
    assert_eq!(config.data["forget"].path, PathBuf::from("/runs/forget.jsonl"));
    assert_eq!(config.data["meta"].path, PathBuf::from("/data/meta.jsonl"));
}

/// What columns are is kept in a resolved file, and a name that no shape of rows has is answered with the nearest.
#[test]
fn columns_are_names_that_shapes_of_rows_have() {
    let columns =
        |names: &str| MINIMAL.replace("path = \"retain.jsonl\"", &format!("path = \"r.csv\"\ncolumns = {names}"));
    let config = load(&columns("{ prompt = \"Behavior\" }"), &[]).unwrap();
    assert_eq!(config.data["retain"].file().columns.to_string(), "prompt=Behavior");
    assert_eq!(load(&config.resolved().unwrap(), &[]).unwrap(), config);
    let wrong = message(&columns("{ prompts = \"Behavior\" }"), &[]);
    assert!(
        wrong.starts_with("data.retain.columns: no shape of rows has `prompts`; did you mean `prompt`?"),
        "{wrong}"
    );
    assert!(message(&columns("\"Behavior\""), &[]).contains("data.retain.columns: expected a table"));
}

#[test]
fn an_unknown_key_is_answered_with_line_and_nearest_key() {
    let text = MINIMAL.replace("inner_steps", "iner_steps");
    assert_eq!(
        message(&text, &[]),
        "tar.iner_steps: unknown key (line 13 of /runs/run.toml); did you mean `inner_steps`?"
    );
    assert_eq!(
        message("prest = \"bio\"", &[]),
        "prest: unknown key (line 1 of /runs/run.toml); did you mean `preset`?"
    );
    let far = message(&MINIMAL.replace("seed", "").replace("[tar.outer]", "[tar.outer]\nzzzzzzzz = 1"), &[]);
    assert!(far.contains("known are optimizer, lr, warmup"), "{far}");
    let stream = message(&MINIMAL.replace("[data.retain]", "[data.retain]\nmax_len = 3"), &[]);
    assert!(stream.starts_with("data.retain.max_len: unknown key (line 8 of"), "{stream}");
    assert!(stream.ends_with("did you mean `max_length`?"), "{stream}");
}

/// Type faults: (what replaces `inner_steps = 8`, start of the message).
#[test]
fn a_wrong_type_is_answered_with_what_was_expected() {
    for (line, expected) in [
        (
            "inner_steps = \"8\"",
            "tar.inner_steps: expected a whole number, 0 or more, found the text \"8\" (line 13 of",
        ),
        ("inner_steps = -8", "tar.inner_steps: expected a whole number, 0 or more, found the number -8 (line 13 of"),
        ("inner_steps = 1.5", "tar.inner_steps: expected a whole number, 0 or more, found the number 1.5 (line 13 of"),
        ("tr_scale = true", "tar.tr_scale: expected a number, found true"),
        ("tr_loss = \"entropy\"", "tar.tr_loss: `entropy` is not a choice (line 13 of /runs/run.toml); "),
        ("tr_loss = 3", "tar.tr_loss: expected one of max_entropy, dpo, found the number 3"),
        ("tr_data = 1979-05-27", "tar.tr_data: expected a text in quotes, found a date"),
        ("retain_representations = 1", "tar.retain_representations: expected true or false, found the number 1"),
        ("schedule_lambda = \"none\"", "tar.schedule_lambda: expected a number or \"equal\", found the text \"none\""),
        ("script = [[\"forget\", 1.0]]", "tar.script.0: expected a table, found a list"),
        ("inner_steps = 99999999999999999999", "/runs/run.toml, line 13: the number 99999999999999999999 is too large"),
        ("inner_steps = = 3", "/runs/run.toml, line 13: "),
    ] {
        let text = message(&MINIMAL.replace("inner_steps = 8", line), &[]);
        assert!(text.starts_with(expected), "{text}\n{expected}");
    }
    let table = message(&MINIMAL.replace("[tar.outer]\nlr = 1e-3", "").replace("[tar]", "[tar]\nouter = [1]"), &[]);
    assert!(table.starts_with("tar.outer: expected a table, found a list (line 13 of"), "{table}");
    let data = message(&MINIMAL.replace("[\"retain\", \"forget\"]", "[\"a\", \"b\", \"c\"]"), &[]);
    assert!(data.starts_with("tar.adversary.1.data: expected the name of a stream, a list of two names"), "{data}");
    let rate = message(&MINIMAL.replace("lr = 2e-5", "lr = [2e-5, \"x\"]"), &[]);
    assert!(rate.starts_with("tar.adversary.0.lr.1: expected a number, found the text \"x\" (line 21 of"), "{rate}");
}

#[test]
fn a_missing_key_is_named() {
    let text = message(&MINIMAL.replace("path = \"model\"", ""), &[]);
    assert_eq!(text, "model.path: missing (line 2 of /runs/run.toml); add `path = …`");
    let stream = message("preset = \"bio\"\nmodel.path = \"m\"", &[]);
    assert!(stream.starts_with("data.adv_retain.path: missing (from the preset); add"), "{stream}");
}

/// Settings that contradict each other: (an override, start of the message).
#[test]
fn contradictions_are_answered_with_key_and_remedy() {
    for (assignment, expected) in [
        ("tar.tr_every=9", "tar.tr_every: is 9, more than inner_steps = 8"),
        ("tar.tr_every=0", "tar.tr_every: is 0 (from an override); use at least 1"),
        ("tar.tr_data=mta", "tar.tr_data: there is no [data.mta] (from an override); did you mean `meta`?"),
        (
            "tar.retain_data=x",
            "tar.retain_data: there is no [data.x] (from an override); known are forget, meta, retain",
        ),
        ("tar.outer.lr=0", "tar.outer.lr: is 0 (from an override); use a finite number above 0"),
        ("tar.outer.lr=nan", "tar.outer.lr: is NaN"),
        ("tar.outer.betas=[0.9, 1.0]", "tar.outer.betas: is [0.9, 1.0]"),
        ("tar.adversary.0.lr=[]", "tar.adversary.0.lr: has no entry"),
        ("tar.adversary.0.lr=-1e-5", "tar.adversary.0.lr: is -0.00001 (from an override); use a finite number above 0"),
        ("tar.adversary.0.weight=inf", "tar.adversary.0.weight: is inf"),
        ("tar.adversary.0.name=switch", "tar.adversary.1.name: `switch` is the name of two adversaries"),
        ("tar.adversary.0.data=forgte", "tar.adversary.0.data: there is no [data.forgte]"),
        ("tar.adversary.0.data={forget=0.0}", "tar.adversary.0.data: the weights add up to 0"),
        ("tar.adversary.0.switch={beta=[1,1]}", "tar.adversary.0.switch: needs two streams"),
        ("tar.adversary.0.rank=4", "tar.adversary.0.rank: has no effect with params = \"full\""),
        ("tar.adversary.0.lr={from=1e-3,to=1e-4}", "tar.adversary.0.lr: 0.001 is above 0.0001"),
        ("tar.adversary.0.lr={from=0,to=1e-4}", "tar.adversary.0.lr.from: is 0"),
        ("tar.adversary.0.lr={from=1e-4}", "tar.adversary.0.lr.to: missing"),
        ("tar.adversary.0.share={of=\"forget\",from=0,to=1}", "tar.adversary.0.share: needs a mixture"),
        ("tar.adversary.0.schedule=[]", "tar.adversary.0.schedule: has no entry"),
        ("tar.adversary.0.schedule=cosin", "tar.adversary.0.schedule: "),
        ("tar.adversary.0.inner_steps=3", "tar.adversary.0.inner_steps: a gradient after every 4 of 3 inner steps"),
        ("tar.adversary.0.tr_every=9", "tar.adversary.0.tr_every: a gradient after every 9 of 8 inner steps"),
        ("tar.adversary.0.batch=0", "tar.adversary.0.batch: is 0"),
        ("tar.adversary.0.tr_data=mta", "tar.adversary.0.tr_data: there is no [data.mta]"),
        ("tar.outer.schedule=sgdr", "tar.outer.schedule: "),
        ("tar.pool={size=0,share=0.5}", "tar.pool.size: is 0"),
        ("tar.pool={size=4,share=1.5}", "tar.pool.share: is 1.5"),
        ("tar.curriculum={from=0,steps=3}", "tar.curriculum.from: is 0"),
        ("tar.adversary=[]", "tar.adversary: there is none (from an override); add a table [[tar.adversary]]"),
        ("tar.schedule_lambda=-100", "tar.schedule_lambda: -100 gives the first inner step a weight that is no finite"),
        ("tar.script=[{adversary=\"forgot\",lr=1.0}]", "tar.script.0.adversary: there is no adversary `forgot`"),
        (
            "tar.script=[{adversary=\"switch\",lr=1.0}]",
            "tar.script.0.switch_at: missing for an adversary of two streams",
        ),
        ("tar.script=[{adversary=\"forget\",lr=1.0,switch_at=1}]", "tar.script.0.switch_at: `forget` has one stage"),
        ("tar.script=[{adversary=\"switch\",lr=1.0,switch_at=9}]", "tar.script.0.switch_at: is 9"),
        ("data.forget.batch=0", "data.forget.batch: is 0"),
        ("data.forget.max_length=1", "data.forget.max_length: is 1"),
        ("data.forget.batch=4611686018427387904", "data.forget.batch: batch · max_length is 2^32 tokens or more"),
        ("model.dtype=float32", "model.dtype: `float32` is not a choice (from an override); known are f32, bf16, f16"),
        ("tar.adversary.0.rows=3", "tar.adversary.0.rows: unknown key (from an override)"),
        (
            "tar.adversary.0={name=\"a\",data=\"forget\",lr=1.0,params=\"lora\",rank=1000000000}",
            "tar.adversary.0.rank: is 1000000000 (from an override); use at most 65536",
        ),
        (
            "tar.adversary.0={name=\"a\",data=\"forget\",lr=1.0,optimizer=\"schedulefree_adamw\",betas=[0.0,0.9]}",
            "tar.adversary.0.betas: 0 is not possible",
        ),
        ("checkpoint.keep=0", "checkpoint.keep: is 0"),
        ("memory.states=bf61", "memory.states: `bf61` is not a choice (from an override); did you mean `bf16`?"),
        ("memory.recompute=all", "memory.recompute: `all` is not a choice"),
        ("memory.step_in_backward=2", "memory.step_in_backward: expected true, false or \"auto\", found the number 2"),
        ("memory.step_in_backward=aut", "memory.step_in_backward: expected true, false or \"auto\", found the text"),
        ("memory.recomptue=cheap", "memory.recomptue: unknown key (from an override); did you mean `recompute`?"),
        ("checkpoint.evry=0", "checkpoint.evry: unknown key (from an override); did you mean `every`?"),
        ("no assignment", "override: `no assignment` has no `=`"),
        ("tar..lr=1", "override: `tar..lr` has an empty key"),
        ("tar.adversary.2.lr=1", "tar.adversary.2.lr: `2` is no index of a list of 2"),
        ("tar.inner_steps.x=1", "tar.inner_steps.x: there is no table or list above `x`"),
    ] {
        let text = message(MINIMAL, &[assignment]);
        assert!(text.starts_with(expected), "{assignment}: {text}");
    }
    let lost = message(&MINIMAL.replace("switch = { beta = [6, 3] }", ""), &[]);
    assert!(
        lost.starts_with("tar.adversary.1.switch: missing for an adversary of two streams; add switch ="),
        "{lost}"
    );
    let point = message(MINIMAL, &["tar.outer.optimizer=adamw", "compat.schedulefree_point=train"]);
    assert!(point.starts_with("compat.schedulefree_point: has no effect"), "{point}");
}

/// What a file is refused for, a configuration that was built in code is refused for too.
#[test]
fn configurations_built_in_code_are_checked_as_files_are() {
    let good = load(MINIMAL, &[]).unwrap();
    good.check().unwrap();
    let wrong = |change: fn(&mut RunConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(wrong(|c| c.tar.tr_every = 0).starts_with("tar.tr_every: is 0"));
    assert!(wrong(|c| c.tar.adversary[0].rank = Choices(vec![4])).starts_with("tar.adversary.0.rank: has no effect"));
    assert!(wrong(|c| c.data.clear()).starts_with("tar.tr_data: there is no"));
    let huge = wrong(|c| {
        c.tar.adversary[0].params = ParameterChoice::Lora;
        c.tar.adversary[0].rank = Choices(vec![1_000_000_000]);
    });
    assert!(huge.starts_with("tar.adversary.0.rank: is 1000000000; use at most"), "{huge}");
}

/// A mixture with a range of shares, and ranges and lists of everything, is read, kept by a resolved file, and checked.
#[test]
fn adversaries_may_draw_from_ranges() {
    let mixed = "tar.adversary=[{name=\"m\",data={forget=1,retain=3},lr={from=1e-5,to=1e-3},\
                 share={of=\"forget\",from=0.25,to=0.5},schedule=[\"constant\",\"cosine:0.1\"],params=\"lora\",\
                 rank=[8,2],alpha=16,inner_steps=40,tr_every=10,batch=2,tr_data=\"retain\"}]";
    let config = load(MINIMAL, &[mixed, "tar.pool={size=4,share=0.5}", "tar.curriculum={from=8,steps=20}"]).unwrap();
    assert_eq!(load(&config.resolved().unwrap(), &[]).unwrap(), config);
    let adversary = &config.tar.adversary[0];
    assert_eq!(adversary.lr, LearningRates::Range(RateRange { from: 1e-5, to: 1e-3 }));
    assert!(adversary.adapter_configs().iter().map(|a| (a.rank, a.scale())).eq([(8, 2.0), (2, 2.0)]));
    assert_eq!(adversary.whole_length(config.tar.length()), AttackLength { inner_steps: 40, tr_every: 10 });
    assert!(config.used_streams().contains("retain"));
    for (change, expected) in [
        ("tar.adversary.0.share.of=meta", "tar.adversary.0.share.of: `meta` is no stream of the mixture"),
        ("tar.adversary.0.share.to=1.5", "tar.adversary.0.share.to: is 1.5"),
        ("tar.adversary.0.share.from=0.75", "tar.adversary.0.share: 0.75 is above 0.5"),
        ("tar.adversary.0.data.retain=0", "tar.adversary.0.share: the other streams have no weight"),
        ("tar.adversary.0.rank=[8,0]", "tar.adversary.0.rank: is 0"),
        ("tar.adversary.0.rank=[]", "tar.adversary.0.rank: has no entry"),
        ("tar.adversary.0.warmup=40", "tar.adversary.0.schedule: 40 warm-up steps leave nothing"),
    ] {
        let text = message(MINIMAL, &[mixed, change]);
        assert!(text.starts_with(expected), "{change}: {text}");
    }
}

#[test]
fn a_fully_scripted_run_needs_no_draw_of_the_switch() {
    let text = MINIMAL.replace("switch = { beta = [6, 3] }", "");
    let script = "tar.script=[{adversary=\"switch\",lr=1e-3,switch_at=5},{adversary=\"forget\",lr=1e-3}]";
    load(&text, &["tar.outer_steps=2", script]).unwrap();
    assert!(message(&text, &["tar.outer_steps=3", script]).starts_with("tar.adversary.1.switch: missing"));
}

#[test]
fn overrides_reach_every_place_and_win() {
    let overrides = [
        "seed=7",
        "tar.adversary.0.lr=[1e-4, 1]",
        "tar.adversary.1.params=lora",
        "tar.adversary.1.targets=[\"q_proj\"]",
        "tar.schedule_lambda=equal",
        "checkpoint.every = 3",
        "compat.entropy_over=\"all\"",
        "data.meta.path=other.jsonl",
        "memory.states=bf16",
        "memory.step_in_backward=true",
    ];
    let config = load(MINIMAL, &overrides).unwrap();
    assert_eq!((config.seed, config.checkpoint.every), (7, 3));
    assert_eq!(config.tar.adversary[0].lr, LearningRates::List(vec![1e-4, 1.0]));
    assert_eq!(config.tar.adversary[0].adapter_config(), None);
    let adapter = config.tar.adversary[1].adapter_config().unwrap();
    assert_eq!((adapter.rank, adapter.alpha, adapter.targets.len()), (16, 32.0, 1));
    assert_eq!(config.tar.schedule_lambda, None);
    let otherwise = MemorySettings { recompute: Recompute::Cheap, ..MemorySettings::default() };
    let pinned = MemorySettings { states: Moments::Bf16, step_in_backward: true, ..otherwise };
    assert_eq!(config.memory.settings(otherwise), pinned);
    assert_eq!(config.compat.entropy_over, EntropyOver::All);
    assert_eq!(config.data["meta"].path, PathBuf::from("/runs/other.jsonl"));
}

/// The published values: (preset, N, outer lr, scale, loss, learning rates of each adversary, batches).
#[test]
fn presets_hold_the_published_hyperparameters() {
    let three = [2e-6, 2e-5, 4e-5];
    let two = [2e-5, 4e-5];
    for (name, outer_steps, lr, scale, loss, rates, adversaries) in [
        ("bio", 750, 2e-5, 4.0, TrLoss::MaxEntropy, &three[..], 3),
        ("cyber", 750, 2e-5, 4.0, TrLoss::MaxEntropy, &two[..], 2),
        ("chem", 750, 2e-5, 3.0, TrLoss::MaxEntropy, &two[..], 3),
        ("refusal", 100, 6e-5, 0.1, TrLoss::Dpo, &three[..], 1),
    ] {
        let streams = match name {
            "bio" => &["forget", "camel", "adv_retain", "meta", "retain"][..],
            "refusal" => &["harmful", "meta", "retain"],
            _ => &["forget", "adv_retain", "meta", "retain"],
        };
        let paths: String = streams.iter().map(|s| format!("data.{s}.path = \"{s}.jsonl\"\n")).collect();
        let config = load(&format!("preset = \"{name}\"\nmodel.path = \"m\"\n{paths}"), &[]).unwrap();
        let tar = &config.tar;
        assert_eq!((tar.outer_steps, tar.inner_steps, tar.tr_every), (outer_steps, 64, 4), "{name}");
        assert_eq!((tar.outer.lr, tar.outer.warmup, tar.tr_scale, tar.tr_loss), (lr, 32, scale, loss), "{name}");
        assert_eq!((tar.schedule_lambda, tar.retain_scale), (Some(0.0625), 1.0), "{name}");
        assert_eq!(tar.outer.optimizer, OptimizerKind::ScheduleFreeAdamW);
        assert_eq!(tar.adversary.len(), adversaries, "{name}");
        assert!(
            tar.adversary
                .iter()
                .all(|a| a.lr.ends() == rates && a.weight == 1.0 && a.optimizer == OptimizerKind::AdamW)
        );
        let batch = |stream: &str| config.data[stream].batch;
        let adversary_batch = if name == "refusal" { batch("harmful") } else { batch("forget") };
        assert_eq!(adversary_batch, if name == "refusal" { 64 } else { 32 });
        assert_eq!((batch("meta"), batch("retain")), (64, 64));
        assert_eq!(config.data["retain"].max_length, if name == "refusal" { 1024 } else { 256 });
        assert_eq!(config.compat, CompatConfig::default(), "{name}");
    }
}

#[test]
fn the_own_keys_of_a_file_win_over_its_preset() {
    let text = "preset = \"refusal\"\nmodel.path = \"m\"\ndata.harmful = { path = \"h\", batch = 3 }\n\
                data.meta.path = \"x\"\ndata.retain.path = \"r\"\ntar.tr_scale = 0.2";
    let config = load(text, &["tar.outer.warmup=5"]).unwrap();
    assert_eq!((config.tar.tr_scale, config.tar.outer.warmup, config.tar.outer.lr), (0.2, 5, 6e-5));
    assert_eq!((config.data["harmful"].batch, config.data["harmful"].max_length), (3, 512));
    let wrong = message(&text.replace("refusal", "refusl"), &[]);
    assert_eq!(wrong, "preset: there is no preset `refusl` (line 1 of /runs/run.toml); did you mean `refusal`?");
}

#[test]
fn a_resolved_file_gives_the_same_configuration_anywhere() {
    let pins = ["memory.states=f32", "memory.recompute=layers", "memory.step_in_backward=false"];
    let other = ["tar.schedule_lambda=equal", "tar.adversary.0.data={forget=1,retain=2}", "seed=9"];
    for overrides in [&[][..], &pins, &other] {
        let config = load(MINIMAL, overrides).unwrap();
        let resolved = config.resolved().unwrap();
        let again = RunConfig::from_text(&resolved, Path::new("/elsewhere/resolved.toml"), &[]).unwrap();
        assert_eq!(again, config, "{resolved}");
        assert_eq!(again.config_hash().unwrap(), config.config_hash().unwrap());
    }
}

/// The commented example names every key that there is, with its default where it has one.
#[test]
fn the_example_is_complete() {
    let text = include_str!("../../examples/harden.toml");
    let config = load(text, &[]).unwrap();
    let example: toml::Table = text.parse().unwrap();
    let resolved: toml::Table = config.resolved().unwrap().parse().unwrap();
    let mut named = Vec::new();
    let mut known = Vec::new();
    keys("", &toml::Value::Table(example), &mut named);
    keys("", &toml::Value::Table(resolved), &mut known);
    assert_eq!(known, named);
    // What the resolved file of a configuration cannot show, because it is absent by default.
    for key in ["model.reference", "tar.lower_bound", "tar.outer.weight_decay", "tar.script.switch_at"] {
        assert!(named.contains(&key.to_string()), "{key}");
    }
    let defaults = load(MINIMAL, &["tar.inner_steps=64", "tar.outer.lr=2e-5"]).unwrap();
    let plain = DataConfig { path: config.data["forget"].path.clone(), ..defaults.data["forget"].clone() };
    assert_eq!(config.data["forget"], plain);
    assert_eq!((config.seed, config.checkpoint, config.compat), (defaults.seed, defaults.checkpoint, defaults.compat));
    assert_eq!(config.memory, defaults.memory);
    let outer = OuterConfig { weight_decay: Some(0.0), ..defaults.tar.outer };
    assert_eq!(config.tar.outer, outer);
}

/// The dotted paths of all keys; entries of lists of tables, and streams, count as one.
pub(super) fn keys(path: &str, value: &toml::Value, all: &mut Vec<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let key = if path == "data" { "STREAM" } else { key };
                keys(format!("{path}.{key}").trim_start_matches('.'), value, all);
            }
        }
        toml::Value::Array(list) if list.iter().all(toml::Value::is_table) => {
            list.iter().for_each(|value| keys(path, value, all));
        }
        _ => all.push(path.to_string()),
    }
    all.sort();
    all.dedup();
}

#[test]
fn the_hash_sees_what_changes_steps_and_only_that() {
    let hash = |overrides: &[&str]| load(MINIMAL, overrides).unwrap().config_hash().unwrap();
    let plain = hash(&[]);
    for same in ["tar.outer_steps=3", "checkpoint.every=1", "model.dtype=bf16", "compat.schedulefree_point=train"] {
        assert_eq!(hash(&[same]), plain, "{same}");
    }
    for same in ["memory.recompute=layers", "memory.step_in_backward=true", "tuning=off", "tuning=tuned.json"] {
        assert_eq!(hash(&[same]), plain, "{same}");
    }
    assert_ne!(hash(&["memory.states=bf16"]), plain);
    // A learning rate that decays until the last outer step is another with another number of them.
    let decaying = |steps: &str| hash(&["tar.outer.schedule=cosine", steps]);
    assert_ne!(decaying("tar.outer_steps=40"), decaying("tar.outer_steps=41"));
    assert_eq!(hash(&["data.meta.path=/moved/meta.jsonl"]), plain);
    let changes = ["seed=1", "tar.outer.lr=1e-4", "tar.adversary.0.weight=2", "data.meta.path=other.jsonl"];
    let others = ["compat.entropy_over=all", "data.forget.shuffle=false", "data.forget.columns={prompt=\"x\"}"];
    for change in changes.into_iter().chain(others) {
        assert_ne!(hash(&[change]), plain, "{change}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any text, and any text in the place of part of a good file, is answered with a configuration or an error; a
    /// configuration can be written and read again.
    #[test]
    fn no_text_panics(junk in "\\PC{0,40}", start in 0..MINIMAL.len(), length in 0usize..60, key in "[a-z.0-9]{0,12}") {
        let mut mutated = MINIMAL.as_bytes().to_vec();
        mutated.splice(start..(start + length).min(MINIMAL.len()), junk.bytes());
        for text in [junk.clone(), String::from_utf8_lossy(&mutated).into_owned()] {
            if let Ok(config) = load(&text, &[]) {
                prop_assert_eq!(load(&config.resolved().unwrap(), &[]).unwrap(), config);
            }
        }
        let _ = load(MINIMAL, &[&format!("{key}={junk}")]);
    }

    /// The same with one value of a good file replaced by another TOML value.
    #[test]
    fn no_value_panics(line in 0usize..40, value in prop_oneof![
        any::<i64>().prop_map(|v| v.to_string()), any::<f64>().prop_map(|v| format!("{v:e}")),
        Just("[]".to_string()), Just("{}".to_string()), Just("[[[]]]".to_string()), Just("true".to_string()),
        Just("\"\"".to_string()), Just("nan".to_string()), Just("1979-05-27".to_string()),
    ]) {
        let replace = |(at, text): (usize, &str)| match text.split_once(" = ") {
            Some((key, _)) if at == line => format!("{key} = {value}\n"),
            _ => format!("{text}\n"),
        };
        let text: String = MINIMAL.lines().enumerate().map(replace).collect();
        if let Ok(config) = load(&text, &[]) {
            prop_assert_eq!(load(&config.resolved().unwrap(), &[]).unwrap(), config);
        }
    }
}

/// The published numbers of RMU and MUDMAN; see docs/defences.md.
#[test]
fn the_presets_of_unlearning_hold_the_published_hyperparameters() {
    let settings = |name: &str| {
        let paths = "data.forget.path = \"f\"\ndata.retain.path = \"r\"";
        let config = load(&format!("preset = \"{name}\"\nmodel.path = \"m\"\n{paths}"), &[]).unwrap();
        assert_eq!(load(&config.resolved().unwrap(), &[]).unwrap(), RunConfig { preset: None, ..config.clone() });
        config.composition()
    };
    let rmu = settings("rmu");
    let at = |kind| TermLoss::HiddenStates(HiddenTerm { kind, depths: vec![8], over: EntropyOver::Valid });
    let steered = HiddenKind::ControlVector { coefficient: 6.5, seed: 42 };
    assert_eq!((&rmu.term[0].loss, rmu.term[0].weight), (&at(steered), 1.0));
    assert_eq!((&rmu.term[1].loss, rmu.term[1].weight), (&at(HiddenKind::SquaredDistance), 1200.0));
    let trained = rmu.trained.unwrap();
    assert_eq!(trained.layers.unwrap(), [5, 6, 7]);
    assert_eq!(trained.modules.unwrap(), [Projection::DownProj]);
    assert_eq!((rmu.outer_steps, rmu.outer.optimizer, rmu.outer.lr), (Some(150), OptimizerKind::AdamW, 5e-5));
    let mudman = settings("mudman");
    assert_eq!(mudman.combine, CombineChoice::SignMask(SignMask { decay: 0.95, norm: 0.1 }));
    let adversary = PersistentPoint { data: "forget".into(), lr: 1e-3, fork_every: 48 };
    assert_eq!(mudman.point["adversary"], PointConfig::Persistent(adversary));
    assert_eq!(mudman.trained.unwrap().modules.unwrap(), [Projection::GateProj]);
    assert_eq!((mudman.outer_steps, mudman.outer.optimizer, mudman.outer.lr), (Some(480), OptimizerKind::Sgd, 1.0));
    assert_eq!((mudman.term[0].at.as_str(), mudman.term[1].weight), ("adversary", 1e-3));
}
