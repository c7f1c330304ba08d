//! `temper compare`: its parts are runs of `harden` and `redteam`, nothing finished is repeated, and what diverges is a row.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use crate::redteam::write_data;
use crate::support::models::fixture;
use crate::support::program::{run, stderr, stdout, succeed, temper, text};

const SUITE: &str = "
[[attack]]
name = \"full\"
lr = 3e-3
batch = 8
steps = 30
[[attack]]
name = \"elsewhere\"
data = \"ood\"
";

/// A run file, a suite file and a comparison of them.
fn write_files(folder: &Path) -> PathBuf {
    let data = write_data(folder);
    let harden = format!(
        "[model]\npath = \"nowhere\"\n[data.rows]\npath = {data:?}\nbatch = 4\n[tar]\nouter_steps = 3\ninner_steps = 2\n\
         tr_every = 1\ntr_data = \"rows\"\nretain_data = \"rows\"\n[tar.outer]\nlr = 1e-3\nwarmup = 0\n\
         [[tar.adversary]]\nname = \"full\"\ndata = \"rows\"\nlr = 1e-3\n"
    );
    std::fs::write(folder.join("harden.toml"), harden).unwrap();
    let suite = format!(
        "[data]\nrestricted = {data:?}\nmax_length = 32\n[restricted]\nmetric = \"exact\"\ndata = {data:?}\n\
         threshold = 0.5\n[utility]\nmetric = \"exact\"\ndata = {data:?}\nmost_loss = 1.0\n[evaluate]\npoints = 2\n{SUITE}"
    );
    std::fs::write(folder.join("suite.toml"), suite).unwrap();
    write_comparison(folder, "")
}

fn write_comparison(folder: &Path, more: &str) -> PathBuf {
    let model = fixture("llama3");
    let comparison = format!(
        "seeds = [3, 4]\n[model]\npath = {model:?}\n[[defence]]\nname = \"none\"\n[[defence]]\nname = \"tar\"\n\
         run = \"harden.toml\"\n[[suite]]\nname = \"small\"\nfile = \"suite.toml\"\n{more}"
    );
    let path = folder.join("compare.toml");
    std::fs::write(&path, comparison).unwrap();
    path
}

fn compare(file: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = temper(&["compare", &text(file), "--out", &text(out), "--device", "cpu"]);
    command.args(more);
    command
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// When each weights file and each result of an attack was written.
fn finished(out: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    let mut folders = vec![out.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "safetensors")
                || path.parent().unwrap().ends_with("attacks")
            {
                found.insert(path, entry.metadata().unwrap().modified().unwrap());
            }
        }
    }
    found
}

/// The weights of `temper harden` and the scores of `temper redteam`, each by hand; then a suite and a defence are added to
/// what is there.
#[test]
fn a_comparison_is_made_of_harden_and_redteam_and_repeats_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let file = write_files(folder);
    let out = folder.join("out");
    let printed = stdout(&succeed(&mut compare(&file, &out, &[])));
    assert!(
        printed.contains("suite small") && printed.contains("seeds 3, 4") && printed.contains("1 not run"),
        "{printed}"
    );

    let by_hand = folder.join("by-hand");
    let model = format!("model.path={:?}", fixture("llama3"));
    let harden = folder.join("harden.toml");
    let own =
        ["harden", &text(&harden), "--out", &text(&by_hand), "--device", "cpu", "--set", &model, "--set", "seed=4"];
    succeed(&mut temper(&own));
    let weights = |top: &Path| std::fs::read(top.join("model.safetensors")).unwrap();
    assert!(weights(&by_hand) == weights(&out.join("models/tar-4")));
    assert!(weights(&by_hand) != weights(&out.join("models/tar-3")));
    let attacked = folder.join("attacked");
    let suite = folder.join("suite.toml");
    let own = ["redteam", &text(&suite), "--model", &text(&by_hand), "--out", &text(&attacked), "--device", "cpu"];
    succeed(&mut temper(&own));
    let worst = read(&attacked.join("results.json"))["summary"]["restricted"]["worst"].clone();

    let comparison = read(&out.join("comparison.json"));
    assert_eq!(comparison["schema"], "temper-defences/1");
    let [none, tar] = [0, 1].map(|index| &comparison["suites"][0]["defences"][index]);
    assert_eq!((&none["name"], &tar["name"]), (&Value::from("none"), &Value::from("tar")));
    assert_eq!(none["models"].as_array().unwrap().len(), 1, "what needs no seed is attacked once");
    let of_tar: Vec<f64> = (0..2).map(|i| tar["models"][i]["run"]["restricted"]["worst"].as_f64().unwrap()).collect();
    assert_eq!(Value::from(of_tar[1]), worst);
    let over = &tar["over_models"];
    assert_eq!(over["worst"]["highest"].as_f64().unwrap(), of_tar[0].max(of_tar[1]));
    assert_eq!(over["worst"]["mean"].as_f64().unwrap(), (of_tar[0] + of_tar[1]) / 2.0);
    assert!(over["defence_flop"]["mean"].as_f64().unwrap() > 0.0);

    let again = run(&mut compare(&file, &out, &[]));
    assert!(stderr(&again).contains("already holds a comparison"), "{}", stderr(&again));
    let before = finished(&out);
    assert_eq!(before.len(), 2 + 3);
    let more = "[[suite]]\nname = \"again\"\nfile = \"suite.toml\"\nset = [\"evaluate.points=1\"]\n\
                [[defence]]\nname = \"finished\"\nmodel = \"out/models/tar-3\"\n";
    succeed(&mut compare(&write_comparison(folder, more), &out, &["--resume"]));
    let after = finished(&out);
    assert!(before.iter().all(|(path, time)| after[path] == *time), "a finished part was repeated");
    assert_eq!(after.len(), before.len() + 3 + 2);
    let page = std::fs::read_to_string(out.join("comparison.html")).unwrap();
    assert!(page.contains("Suite again") && page.contains("comparison-small.html"));
    assert!(out.join("comparison-small.html").exists() && out.join("comparison-again.html").exists());
    let other = run(&mut compare(&write_comparison(folder, ""), &out, &["--resume"]));
    assert!(other.status.success(), "{}", stderr(&other));

    let changed = write_comparison(folder, "").with_file_name("changed.toml");
    let text = std::fs::read_to_string(folder.join("compare.toml")).unwrap();
    std::fs::write(
        &changed,
        text.replace("run = \"harden.toml\"", "run = \"harden.toml\"\nset = [\"tar.tr_scale=9\"]"),
    )
    .unwrap();
    let refused = run(&mut compare(&changed, &out, &["--resume"]));
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("was hardened with other settings"), "{}", stderr(&refused));
}

#[test]
fn a_defence_that_diverges_is_a_row_with_its_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    write_files(folder);
    let more = "[[defence]]\nname = \"wild\"\nrun = \"harden.toml\"\n\
                set = [\"tar.outer.lr=1e30\", \"tar.outer_steps=6\", \"tar.outer.optimizer='adamw'\"]\n";
    let file = write_comparison(folder, more);
    let out = folder.join("out");
    succeed(&mut compare(&file, &out, &[]));
    let comparison = read(&out.join("comparison.json"));
    let wild = &comparison["suites"][0]["defences"][2];
    assert_eq!((&wild["name"], &wild["over_models"]), (&Value::from("wild"), &Value::Null));
    assert!(wild["models"][1]["failed"].as_str().unwrap().contains("not finite"), "{wild}");
    let page = std::fs::read_to_string(out.join("comparison.html")).unwrap();
    assert!(page.contains("wild") && page.contains("not finite"));
}

#[test]
fn contradictions_in_a_comparison_file_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    write_files(folder);
    for (more, said) in [
        ("[[defence]]\nname = \"tar\"\n", "defence.2.name"),
        ("[[defence]]\nname = \"a/b\"\n", "defence.2.name"),
        ("[[defence]]\nname = \"x\"\nrun = \"harden.toml\"\nmodel = \"m\"\n", "defence.2.model"),
        ("[[defence]]\nname = \"x\"\nset = [\"seed=1\"]\n", "defence.2.set"),
        ("[[defence]]\nname = \"x\"\nruns = \"harden.toml\"\n", "did you mean `run`?"),
        (
            "[[defence]]\nname = \"x\"\nrun = \"harden.toml\"\nset = [\"tar.outer_stepz=1\"]\n",
            "did you mean `outer_steps`?",
        ),
        ("[[defence]]\nname = \"x\"\nrun = \"harden.toml\"\nset = [\"tuning='off'\"]\n", "pins measured choices"),
        ("[[suite]]\nname = \"small\"\nfile = \"suite.toml\"\n", "suite.1.name"),
        ("[[suite]]\nname = \"s\"\nfile = \"none.toml\"\n", "none.toml"),
    ] {
        let out = folder.join("out");
        let refused = run(&mut compare(&write_comparison(folder, more), &out, &[]));
        let message = stderr(&refused);
        assert!(!refused.status.success() && message.contains(said), "{more}: {message}");
        assert!(!out.exists(), "nothing is written before everything is checked");
    }
}
