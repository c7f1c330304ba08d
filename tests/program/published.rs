//! `temper eval`, `temper redteam` and `temper data inspect` on files as others publish them, without a step in between.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::chat_model;
use crate::support::program::{json, stderr, stdout, succeed, temper, text};

/// A file of `tests/fixtures/data`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

/// A model with room for the questions.
fn model(folder: &Path) -> PathBuf {
    let model = chat_model::with_weights(folder);
    let config = model.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut longer: Value = serde_json::from_str(&text).unwrap();
    longer["max_position_embeddings"] = 512.into();
    std::fs::write(&config, longer.to_string()).unwrap();
    model
}

fn eval(model: &Path, file: &str, form: &str, more: &[&str]) -> Value {
    let mut command = temper(&["eval", "--device", "cpu", "--json", "--form", form, "--model"]);
    json(command.arg(model).arg("--data").arg(fixture(file)).args(more))
}

#[test]
fn eval_reads_published_files_and_says_how_many_rows() {
    let scratch = tempfile::tempdir().unwrap();
    let model = model(scratch.path());
    for (file, count, subjects) in
        [("wmdp.parquet", 3, 1), ("wmdp.json", 3, 1), ("mmlu", 3, 2), ("mmlu-pro.parquet", 3, 2)]
    {
        for form in ["lm-eval", "qi"] {
            let found = eval(&model, file, form, &[]);
            assert_eq!((&found["rows_read"], &found["questions"]), (&count.into(), &count.into()), "{file}");
            assert_eq!(found["subjects"].as_object().unwrap().len(), subjects, "{file}");
        }
    }
    for file in ["harmbench.csv", "mt-bench.jsonl", "prompts.txt", "ifeval.parquet", "prompts.jsonl.zst"] {
        let found = eval(&model, file, "refusal", &["--max-new-tokens", "1"]);
        assert_eq!((&found["rows_read"], &found["prompts"]), (&3.into(), &3.into()), "{file}");
    }
    let named = eval(&model, "excel.csv", "refusal", &["--columns", "prompt=Request", "--max-new-tokens", "1"]);
    assert_eq!(named["prompts"], 3);
    assert_eq!(eval(&model, "shards", "perplexity", &[])["rows_read"], 4);
    let mut shown = temper(&["eval", "--device", "cpu", "--form", "mmlu", "--model"]);
    let shown = stdout(&succeed(shown.arg(&model).arg("--data").arg(fixture("wmdp.parquet"))));
    assert!(shown.contains("3 rows read from ") && shown.contains("wmdp.parquet"), "{shown}");
}

#[test]
fn inspect_counts_rows_and_shows_questions_and_prompts() {
    let scratch = tempfile::tempdir().unwrap();
    chat_model::write(scratch.path(), Some(chat_model::LLAMA3));
    let inspect = |file: &str, more: &[&str]| {
        let mut command = temper(&["data", "inspect", "--model"]);
        stdout(&succeed(command.arg(scratch.path()).arg("--data").arg(fixture(file)).args(more)))
    };
    let question = inspect("wmdp.parquet", &["--index", "2"]);
    assert!(question.starts_with("3 rows in 1 files: question 3\n"), "{question}");
    assert!(
        question.contains("What does yeast make of sugar?\n  A. salt\n  B. ash\n  C. sand\n+ D. gas"),
        "{question}"
    );
    let prompt = inspect("xstest.csv", &[]);
    assert!(prompt.contains("prompt 3") && prompt.contains("for generation; training does not read it"), "{prompt}");
    let turns = inspect("mt-bench.jsonl", &[]);
    assert!(turns.contains("`turns` is not used (3 times): only the first turn is asked"), "{turns}");
    assert!(inspect("null-filled.parquet", &["--index", "3"]).starts_with("4 rows in 1 files: conversation 4\n"));
    assert!(inspect("mmlu", &[]).starts_with("3 rows in 2 files: question 3\n"));
    assert!(inspect("excel.csv", &["--columns", "prompt=Request"]).contains("prompt 3"));
}

#[test]
fn redteam_reads_published_files_and_says_how_many_rows() {
    let scratch = tempfile::tempdir().unwrap();
    let model = model(scratch.path());
    let suite = format!(
        "[data]\nrestricted = {:?}\n[restricted]\nmetric = \"choice\"\ndata = {:?}\nthreshold = 1.0\n\
         [utility]\nmetric = \"choice\"\ndata = {{ path = {:?}, columns = {{ subject = \"src\" }} }}\n\
         [[attack]]\nname = \"a\"\nlr = 1e-3\nsteps = 1\nbatch = 2\n",
        fixture("advbench.csv"),
        fixture("wmdp.parquet"),
        fixture("mmlu-pro.parquet"),
    );
    let file = scratch.path().join("suite.toml");
    std::fs::write(&file, suite).unwrap();
    let mut command = temper(&["redteam", "--device", "cpu", "--json", "--model", &text(&model)]);
    let output = succeed(command.arg(&file).arg("--out").arg(scratch.path().join("out")));
    let said = stderr(&output);
    for line in ["restricted: 3 rows of ", "utility: 3 rows of ", "[data] restricted: 3 rows of "] {
        assert!(said.contains(line), "{said}");
    }
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["summary"]["done"], 1);
    assert_eq!(found["goal"]["restricted"]["chance"], 0.25);
    let chance = found["goal"]["utility"]["chance"].as_f64().unwrap();
    assert!((chance - (0.1 + 1.0 / 3.0 + 0.25) / 3.0).abs() < 1e-15, "{chance}");
}
