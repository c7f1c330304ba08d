//! Attack files as users write them: what is accepted, what it means, and what each mistake is answered with.

use std::path::{Path, PathBuf};

use super::*;
use crate::error::Error;
use crate::training::Source;

const MINIMAL: &str = r#"
[model]
path = "model"

[data.restricted]
path = "restricted.jsonl"
[data.retain]
path = "/data/retain.jsonl"

[attack]
data = "restricted"
lr = 1e-4
"#;

fn load(text: &str, overrides: &[&str]) -> Result<AttackConfig, Error> {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    AttackConfig::from_text(text, Path::new("/attacks/attack.toml"), &overrides)
}

#[test]
fn a_minimal_file_has_the_defaults_of_the_command() {
    let config = load(MINIMAL, &[]).unwrap();
    assert_eq!((config.seed, config.checkpoint.every), (42, 100));
    assert_eq!(config.model.path, PathBuf::from("/attacks/model"));
    assert_eq!(config.data["retain"].path, PathBuf::from("/data/retain.jsonl"));
    let fine_tune = config.fine_tune().unwrap();
    assert_eq!((fine_tune.steps, fine_tune.batch, fine_tune.adapter), (500, Some(32), None));
    assert_eq!((fine_tune.optimizer.lr, fine_tune.optimizer.weight_decay), (1e-4, Some(0.01)));
    // Where there is one stream, nobody has to name it.
    let plain = AttackConfig::new("model", "rows.jsonl");
    plain.check().unwrap();
    assert_eq!(plain.fine_tune().unwrap().source, Source::One("data".into()));
}

#[test]
fn mistakes_are_answered_with_key_place_and_remedy() {
    for (assignment, expected) in [
        ("attack.lrr=1", "attack.lrr: unknown key (from an override); did you mean `lr`?"),
        ("model.pth=\"x\"", "model.pth: unknown key (from an override); did you mean `path`?"),
        ("attack.lr=0", "attack.lr: is 0 (from an override); use a finite number above 0"),
        ("attack.lr=nan", "attack.lr: is NaN"),
        ("attack.steps=0", "attack.steps: is 0 (from an override); use at least 1"),
        ("attack.steps=9000000000000000000", "attack.steps: is 9000000000000000000 (from an override); use at most"),
        ("attack.batch=4611686018427387904", "attack.batch: batch · max_length is 2^32 tokens or more"),
        ("attack.rank=8", "attack.rank: has no effect in this attack (from an override); set params = \"lora\""),
        ("attack.data=\"retian\"", "attack.data: there is no [data.retian] (from an override); did you mean `retain`?"),
        ("attack.data={restricted=0.0}", "attack.data: the weights add up to 0"),
        ("attack.data={restricted=-1.0,retain=2.0}", "attack.data.restricted: is -1"),
        ("attack.data=[\"retain\",\"restricted\"]", "attack.switch: missing"),
        ("attack.switch=0.5", "attack.switch: needs two streams to switch between (from an override)"),
        ("attack.noise=-1", "attack.noise: is -1"),
        ("attack.kick_steps=3", "attack.kick_lr: missing"),
        ("attack.held_out=1", "attack.held_out: is 1"),
        ("attack.opening=0", "attack.opening: is 0"),
        ("attack.bits=4", "attack.bits: has no effect"),
        ("attack.negated_steps=501", "attack.negated_steps: is 501 (from an override); use at most 500"),
        ("attack.schedule=\"cosin\"", "attack.schedule: schedule: `cosin` is not a schedule"),
        ("attack.kind=\"prefill\"", "attack.kind: an attack file describes fine-tuning"),
        ("attack.seeds=[1]", "attack.seeds: an attack file has one seed"),
        ("attack.text=\"Sure\"", "attack.text: has no effect"),
        ("model.adapter=\"a\"", "model.adapter: a full-parameter attack trains no adapter"),
        ("model.dtype=\"float32\"", "model.dtype: `float32` is not a choice"),
        ("data.retain.max_length=1", "data.retain.max_length: is 1"),
        ("data.retain.batch=1", "data.retain.batch: unknown key"),
        ("checkpoint.keep=0", "checkpoint.keep: is 0"),
        ("compat.entropy_over=\"all\"", "compat.entropy_over: unknown key"),
    ] {
        let error = load(MINIMAL, &[assignment]).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(expected) && !message.contains('\n'), "{assignment}: {message}");
        assert_eq!(error.exit_code(), 2, "{message}");
    }
    let huge = load(MINIMAL, &["attack.params=\"lora\"", "attack.rank=1000000000"]).unwrap_err().to_string();
    assert!(huge.starts_with("attack.rank: is 1000000000 (from an override); use at most 65536"), "{huge}");
    let unnamed = load(&MINIMAL.replace("data = \"restricted\"\n", ""), &[]).unwrap_err().to_string();
    assert!(unnamed.starts_with("attack.data: missing: there are 2 streams; name a stream"), "{unnamed}");
}

/// What is written beside a result describes the same attack, wherever it lies.
#[test]
fn a_resolved_file_gives_the_same_attack_anywhere() {
    let switch = ["attack.data=[\"retain\",\"restricted\"]", "attack.switch=0.4", "attack.noise=0.01"];
    let mixture = ["attack.data={retain=0.25,restricted=0.75}", "attack.schedule=\"cosine:0.1\"", "seed=7"];
    let lora = ["attack.params=\"lora\"", "attack.rank=4", "compat.official_warmup=true", "model.dtype=\"bf16\""];
    for overrides in [&[][..], &switch, &mixture, &lora] {
        let config = load(MINIMAL, overrides).unwrap();
        let resolved = config.resolved().unwrap();
        let again = AttackConfig::from_text(&resolved, Path::new("/elsewhere/run.toml"), &[]).unwrap();
        assert_eq!(again.fine_tune().unwrap(), config.fine_tune().unwrap(), "{resolved}");
        assert_eq!((again.seed, &again.model, &again.data), (config.seed, &config.model, &config.data));
        assert_eq!(again.resolved().unwrap(), resolved);
        assert_eq!(again.config_hash().unwrap(), config.config_hash().unwrap());
        assert!(!resolved.contains("name =") && !resolved.contains("about ="), "{resolved}");
    }
}

#[test]
fn overrides_reach_an_attack_that_was_built_in_code() {
    let plain = AttackConfig::new("model", "/data/rows.jsonl");
    let changed = plain.with_overrides(&["attack.lr=3e-4".into(), "attack.data={data=1.0}".into()]).unwrap();
    let fine_tune = changed.fine_tune().unwrap();
    assert_eq!((fine_tune.optimizer.lr, fine_tune.source), (3e-4, Source::Mixture(vec![("data".into(), 1.0)])));
    // An adapter names its base model as the attacker wrote it; the file that can be run again does not depend on a folder.
    assert_eq!(changed.model.path, PathBuf::from("model"));
    assert!(changed.resolved().unwrap().contains(&format!("{:?}", std::path::absolute("model").unwrap())));
    let error = plain.with_overrides(&["attack.lr=0".into()]).unwrap_err().to_string();
    assert!(error.starts_with("attack.lr: is 0"), "{error}");
}

/// An attack can be resumed elsewhere and with more steps, and not with other data or another seed.
#[test]
fn the_hash_sees_what_changes_steps_and_only_that() {
    let hash = |overrides: &[&str]| load(MINIMAL, overrides).unwrap().config_hash().unwrap();
    let plain = hash(&[]);
    for same in [
        "attack.steps=9",
        "attack.name=\"x\"",
        "checkpoint.every=1",
        "model.dtype=\"bf16\"",
        "compat.schedulefree_point=\"train\"",
        "model.path=\"/moved/model\"",
        "data.restricted.path=\"/moved/restricted.jsonl\"",
        "attack.batch=32",
    ] {
        assert_eq!(hash(&[same]), plain, "{same}");
    }
    for change in [
        "seed=1",
        "attack.lr=1e-5",
        "attack.noise=0.1",
        "attack.params=\"lora\"",
        "compat.official_warmup=true",
        "data.restricted.path=\"other.jsonl\"",
        "data.restricted.shuffle=false",
    ] {
        assert_ne!(hash(&[change]), plain, "{change}");
    }
}

/// The commented example names every key that there is.
#[test]
fn the_example_is_complete() {
    let config = load(include_str!("../../examples/attack.toml"), &[]).unwrap();
    let example: toml::Table = include_str!("../../examples/attack.toml").parse().unwrap();
    let resolved: toml::Table = config.resolved().unwrap().parse().unwrap();
    for table in ["model", "attack", "checkpoint", "compat"] {
        let names = |file: &toml::Table| {
            let mut names: Vec<String> = file[table].as_table().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        let mut known = names(&resolved);
        // The kind of an attack file is always fine-tuning.
        known.retain(|key| key != "kind");
        assert_eq!(names(&example), known, "[{table}]");
    }
    // All keys of a row but those of other kinds of attack, and its labels.
    let row = serde_json::to_value(&config.attack).unwrap();
    assert_eq!(row.as_object().unwrap().len(), example["attack"].as_table().unwrap().len() + 3);
    let stream = AttackData::new(config.data["restricted"].path.clone());
    assert_eq!(config.data["restricted"], stream);
    assert_eq!(example["data"]["restricted"].as_table().unwrap().len(), 4);
    assert_eq!((config.checkpoint, config.compat), (AttackCheckpoints::default(), AttackCompat::default()));
}
