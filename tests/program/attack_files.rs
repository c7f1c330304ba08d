//! Attack files through the program: what `temper attack` leaves can be run again, goes on elsewhere and with more steps, and
//! a setting that makes no sense is one line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::models::fixture;
use crate::support::program::{run, stderr, succeed, temper, text};

/// A data file of 12 rows of 10 tokens, which `first` tells from others.
fn rows(folder: &Path, name: &str, first: usize) -> PathBuf {
    let mut lines = String::new();
    for row in 0..12 {
        let tokens: Vec<usize> = (0..10).map(|position| 1 + (first + 7 * row + 3 * position) % 60).collect();
        writeln!(lines, "{}", json!({ "input_ids": tokens })).unwrap();
    }
    let path = folder.join(name);
    std::fs::write(&path, lines).unwrap();
    path
}

/// Two data files, as `--data` takes them.
fn data(folder: &Path) -> [String; 4] {
    let restricted = rows(folder, "restricted.jsonl", 0);
    let retain = rows(folder, "retain.jsonl", 31);
    ["--data".into(), format!("restricted={}", text(&restricted)), "--data".into(), format!("retain={}", text(&retain))]
}

/// An attack on the reference model, by flags.
fn attack(out: &Path, data: &[String], flags: &[&str]) -> std::process::Command {
    let mut command = temper(&["attack", "--model", &text(&fixture("llama3")), "--out", &text(out), "--device", "cpu"]);
    command.args(data).args(["--lr", "1e-3", "--batch", "3", "--steps", "7"]).args(flags);
    command
}

/// The files of a finished attack, without its own folder.
fn result(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files.map(|path| (text(path.file_name().unwrap().as_ref()), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn what_an_attack_leaves_can_be_run_again_with_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let data = data(scratch.path());
    let mut seen = Vec::new();
    for (index, flags) in [
        &["--mixture", "restricted=0.25,retain=0.75", "--schedule", "cosine:0.1", "--warmup", "2"][..],
        &["--switch", "0.6", "--noise", "0.01", "--weight-decay", "0.3", "--betas", "0.8,0.95"],
        &["--mixture", "retain=1", "--negated-steps", "3", "--official-warmup", "--warmup", "2"],
        &[
            "--switch",
            "0.5",
            "--params",
            "lora",
            "--rank",
            "2",
            "--dropout",
            "0.1",
            "--optimizer",
            "schedulefree_adamw",
        ],
        &["--switch", "0.5", "--params", "lora", "--rank", "2", "--noise", "0.02", "--targets", "q_proj,down_proj"],
    ]
    .into_iter()
    .enumerate()
    {
        let first = scratch.path().join(format!("first{index}"));
        let again = scratch.path().join(format!("again{index}"));
        succeed(&mut attack(&first, &data, flags));
        let file = first.join("temper/run.toml");
        succeed(&mut temper(&["attack", &text(&file), "--out", &text(&again), "--device", "cpu"]));
        let expected = result(&first);
        assert!(result(&again) == expected, "{flags:?}: the second run differs");
        assert_eq!(std::fs::read(again.join("temper/run.toml")).unwrap(), std::fs::read(file).unwrap());
        // Factors that were trained on disturbed weights are merged into them.
        let is_adapter = flags.contains(&"lora") && !flags.contains(&"--noise");
        assert_eq!(expected.contains_key("adapter_model.safetensors"), is_adapter, "{flags:?}");
        assert!(!seen.contains(&expected), "{flags:?}: the same as another attack");
        seen.push(expected);
    }
}

#[test]
fn an_attack_goes_on_in_another_folder_and_with_more_steps() {
    let scratch = tempfile::tempdir().unwrap();
    let data = data(scratch.path());
    let mixture = ["--mixture", "restricted=0.5,retain=0.5", "--checkpoint-every", "3"];
    let longer = [&mixture[..], &["--set", "attack.steps=11"]].concat();
    let whole = scratch.path().join("whole");
    succeed(&mut attack(&whole, &data, &longer));
    let begun = scratch.path().join("begun");
    succeed(&mut attack(&begun, &data, &mixture));
    assert!(result(&begun) != result(&whole));
    let moved = scratch.path().join("elsewhere/moved");
    std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
    std::fs::rename(&begun, &moved).unwrap();
    let output = succeed(&mut attack(&moved, &data, &[&longer[..], &["--resume"]].concat()));
    assert!(stderr(&output).contains("resumed from"), "{}", stderr(&output));
    assert!(result(&moved) == result(&whole), "it went on to other weights");
}

/// A decay that ends with the run, and a switch at a fraction of it, make a longer run another one from its first step.
#[test]
fn an_attack_whose_course_depends_on_its_length_does_not_go_on_with_another() {
    let scratch = tempfile::tempdir().unwrap();
    let data = data(scratch.path());
    for (name, flags) in
        [("cosine", &["--mixture", "restricted=1", "--schedule", "cosine"][..]), ("switch", &["--switch", "0.5"])]
    {
        let out = scratch.path().join(name);
        let flags = [flags, &["--checkpoint-every", "3"]].concat();
        succeed(&mut attack(&out, &data, &flags));
        let output = run(&mut attack(&out, &data, &[&flags[..], &["--resume", "--set", "attack.steps=11"]].concat()));
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("attack.steps: is 11") && message.contains("resume it with 7"), "{message}");
        let shorter = run(&mut attack(&out, &data, &[&flags[..], &["--resume", "--set", "attack.steps=5"]].concat()));
        assert!(stderr(&shorter).contains("the checkpoint has 6 steps"), "{}", stderr(&shorter));
        succeed(&mut attack(&out, &data, &[&flags[..], &["--resume"]].concat()));
        let other = run(&mut attack(&out, &data, &[&flags[..], &["--resume", "--seed", "9"]].concat()));
        assert_eq!(other.status.code(), Some(3), "{}", stderr(&other));
    }
}

/// A rank of a thousand million is one line wherever it is written.
#[test]
fn a_rank_that_nobody_means_is_one_line_everywhere() {
    let scratch = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).unwrap();
        crate::support::program::text(&path)
    };
    let lora = "params = \"lora\"\nrank = 1000000000\nlr = 1e-3\n";
    let attack_file = write("attack.toml", &format!("[model]\npath = \"m\"\n[data.a]\npath = \"a\"\n[attack]\n{lora}"));
    let suite = write("suite.toml", &format!("[data]\nrestricted = \"r\"\n[[attack]]\nname = \"a\"\n{lora}"));
    let streams = "[data.a]\npath = \"a\"\n[tar]\ntr_data = \"a\"\nretain_data = \"a\"\n";
    let run_file = write(
        "run.toml",
        &format!("[model]\npath = \"m\"\n{streams}[[tar.adversary]]\nname = \"a\"\ndata = \"a\"\n{lora}"),
    );
    for arguments in [
        vec!["attack", &attack_file, "--out", "o"],
        vec!["attack", "--model", "m", "--data", "d", "--out", "o", "--params", "lora", "--rank", "1000000000"],
        vec!["redteam", &suite, "--model", "m", "--out", "o"],
        vec!["harden", &run_file, "--out", "o"],
        vec!["plan", &run_file],
    ] {
        let output = run(&mut temper(&arguments));
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains("rank: is 1000000000") && message.contains("use at most 65536"), "{message}");
        assert_eq!(message.trim().lines().count(), 1, "{message}");
    }
}
