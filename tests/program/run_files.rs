//! Run files through the program: `temper plan` reads one, its model's `config.json`, and the data where it is there.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::program::{run, stderr, stdout, temper};

const RUN_FILE: &str = r#"
[model]
path = "model"

[data.forget]
path = "forget.jsonl"
batch = 4
[data.retain]
path = "retain.jsonl"
[data.meta]
path = "meta.jsonl"

[tar]
outer_steps = 10
inner_steps = 8

[[tar.adversary]]
name = "forget"
data = "forget"
lr = [2e-5]
"#;

const MODEL: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "max_position_embeddings": 512, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
}"#;

/// A folder with a run file and a model's configuration.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(run_file: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        std::fs::write(folder.path().join("model/config.json"), MODEL).unwrap();
        std::fs::write(folder.path().join("run.toml"), run_file).unwrap();
        Self(folder)
    }

    fn run_file(&self) -> PathBuf {
        self.0.path().join("run.toml")
    }

    fn plan(&self, more: &[&str]) -> Output {
        plan(&self.run_file(), more)
    }
}

fn plan(run_file: &Path, more: &[&str]) -> Output {
    run(temper(&["plan"]).arg(run_file).args(more))
}

/// The exit code and the message, which is one line.
fn failure(output: &Output) -> (i32, String) {
    let message = stderr(output);
    assert_eq!(message.lines().count(), 1, "{message}");
    (output.status.code().unwrap(), message.trim_end().to_string())
}

#[test]
fn a_typo_is_answered_with_line_and_suggestion() {
    let folder = Folder::new(&RUN_FILE.replace("inner_steps", "inner_stps"));
    let place = format!("(line 15 of {})", folder.run_file().display());
    let expected = format!("temper: tar.inner_stps: unknown key {place}; did you mean `inner_steps`?");
    assert_eq!(failure(&folder.plan(&[])), (2, expected));
}

#[test]
fn a_wrong_dtype_is_answered_with_the_choices() {
    let folder = Folder::new(&RUN_FILE.replace("path = \"model\"", "path = \"model\"\ndtype = \"bfloat16\""));
    let place = format!("(line 4 of {})", folder.run_file().display());
    let expected = format!("temper: model.dtype: `bfloat16` is not a choice {place}; known are f32, bf16, f16");
    assert_eq!(failure(&folder.plan(&[])), (2, expected));
}

#[test]
fn an_override_is_checked_and_named() {
    let folder = Folder::new(RUN_FILE);
    let (code, message) = failure(&folder.plan(&["--set", "tar.adversary.0.lr=[0.0]"]));
    let expected = "temper: tar.adversary.0.lr: is 0 (from an override); use a finite number above 0";
    assert_eq!((code, message.as_str()), (2, expected));
    let (code, message) = failure(&folder.plan(&["--set", "tar.outr.lr=1"]));
    assert_eq!(
        (code, message.as_str()),
        (2, "temper: tar.outr: unknown key (from an override); did you mean `outer`?")
    );
}

#[test]
fn missing_files_are_named() {
    let (code, message) = failure(&plan(Path::new("/nonexistent/run.toml"), &[]));
    assert_eq!(code, 1);
    assert!(message.starts_with("temper: cannot read /nonexistent/run.toml: No such file"), "{message}");

    let folder = Folder::new(RUN_FILE);
    std::fs::remove_file(folder.0.path().join("model/config.json")).unwrap();
    let (code, message) = failure(&folder.plan(&[]));
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("/model: there is no config.json here; name a Hugging Face model directory"), "{message}");
}

#[test]
fn a_folder_or_a_binary_file_is_no_run_file() {
    let folder = Folder::new(RUN_FILE);
    let (code, _) = failure(&plan(folder.0.path(), &[]));
    assert_eq!(code, 1);
    std::fs::write(folder.run_file(), [0xff, 0xfe, 0x00]).unwrap();
    let (code, message) = failure(&folder.plan(&[]));
    assert_eq!(code, 2);
    assert!(message.ends_with("is not UTF-8 text; pass a TOML run file"), "{message}");
    std::fs::write(folder.run_file(), vec![b'\n'; (1 << 20) + 1]).unwrap();
    let (_, message) = failure(&folder.plan(&[]));
    assert!(message.ends_with("is longer than 1 MiB; pass a TOML run file"), "{message}");
}

#[test]
fn a_plan_says_memory_and_arithmetic_as_text_and_as_json() {
    let folder = Folder::new(RUN_FILE);
    let output = folder.plan(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for words in ["meta-gradient", "activations", "attack `forget`", "the run of 10 outer steps"] {
        assert!(text.contains(words), "{text}");
    }
    let json: serde_json::Value = serde_json::from_slice(&folder.plan(&["--json"]).stdout).unwrap();
    // Embedding and head 2·300·64, final norm 64, and per layer q, o 2·64², k, v 2·64·32, MLP 3·64·128, norms 2·64.
    let parameters = 2 * 300 * 64 + 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64);
    assert_eq!(json["parameters"], parameters);
    let sizes = json["buffers"].as_array().unwrap().iter().map(|buffer| buffer["bytes"].as_u64().unwrap());
    assert_eq!(json["device_bytes"].as_u64().unwrap(), sizes.sum::<u64>());
    let longer: serde_json::Value =
        serde_json::from_slice(&folder.plan(&["--json", "--set", "tar.outer_steps=30"]).stdout).unwrap();
    assert_eq!(longer["flop"].as_f64().unwrap(), 3.0 * json["flop"].as_f64().unwrap());
}

/// A plan counts the sequences that the data has, as the run will; of data that is not there it says so and counts
/// `max_length`.
#[test]
fn a_plan_counts_the_lengths_of_the_data_that_it_can_read() {
    let folder = Folder::new(RUN_FILE);
    let json = |more: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&folder.plan(&[&["--json"], more].concat()).stdout).unwrap()
    };
    let unread = |plan: &serde_json::Value| plan["unread"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let longest = json(&[]);
    assert_eq!(unread(&longest), ["forget", "meta", "retain"]);
    assert!(stdout(&folder.plan(&[])).contains("data.meta: counted as max_length, as it could not be read: "));
    for name in ["forget", "meta"] {
        std::fs::write(folder.0.path().join(format!("{name}.jsonl")), "{\"input_ids\": [1, 5, 6, 7, 8]}\n").unwrap();
    }
    let read = json(&[]);
    assert_eq!(unread(&read), ["retain"]);
    let said = json(&["--set", "data.forget.max_length=5", "--set", "data.meta.max_length=5"]);
    assert_eq!((&read["flop"], &read["buffers"]), (&said["flop"], &said["buffers"]));
    assert!(read["flop"].as_f64().unwrap() < 0.5 * longest["flop"].as_f64().unwrap());
}

#[test]
fn a_gpu_is_planned_for_by_name_and_says_that_nothing_was_measured() {
    let folder = Folder::new(RUN_FILE);
    let output = folder.plan(&["--gpu", "H200"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for words in ["141.00\u{a0}GB available", "989 TFLOP/s, which no run reaches", "nothing here was measured"] {
        assert!(text.contains(words), "{text}");
    }
    let (code, message) = failure(&folder.plan(&["--gpu", "h300"]));
    assert_eq!(code, 2);
    assert!(message.starts_with("temper: --gpu: `h300` is not a GPU that temper knows"), "{message}");
}

/// A model of Llama-3-8B's shape does not fit an H100 with full-parameter attacks: the plan is printed, and the error
/// names the setting.
#[test]
fn a_run_that_cannot_fit_exits_with_5_and_names_the_setting() {
    let folder = Folder::new(RUN_FILE);
    let large = MODEL
        .replace("\"vocab_size\": 300", "\"vocab_size\": 128256")
        .replace("\"hidden_size\": 64", "\"hidden_size\": 4096")
        .replace("\"intermediate_size\": 128", "\"intermediate_size\": 14336")
        .replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 32")
        .replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 32")
        .replace("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 8");
    std::fs::write(folder.0.path().join("model/config.json"), large).unwrap();
    let output = folder.plan(&["--gpu", "h100"]);
    let (code, message) = failure(&output);
    assert_eq!(code, 5);
    assert!(message.ends_with("set params = \"lora\" for every [[tar.adversary]]"), "{message}");
    assert!(stdout(&output).contains("meta-gradient"));
    let lora = folder.plan(&["--gpu", "h100", "--set", "tar.adversary.0.params=lora"]);
    assert_eq!(lora.status.code(), Some(0), "{}", stderr(&lora));
}
