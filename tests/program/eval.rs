//! `temper eval` as users start it, in the forms that generate, on a model directory with text.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use temper::backend::cpu::Cpu;
use temper::data::{Message, PromptEncoder};
use temper::eval::{GenerateOptions, generate, refuses};
use temper::huggingface::{ExportDType, ModelDirectory, write_model};
use temper::model::{Model, ModelConfig, ModelLayout, Parameters};
use temper::objective::Subject;
use temper::random::{Random, Stream};

use crate::support::chat_model;
use crate::support::program::{run, stderr, temper, text};

/// A model directory with random weights that are large enough for texts to differ, and data beside it.
struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        chat_model::write(&source, Some(chat_model::LLAMA3));
        let mut config = ModelConfig::from_directory(&source).unwrap();
        config.max_position_embeddings = 512;
        let mut random = Random::new(5, Stream::Weights, 0, 0);
        let count = ModelLayout::new(&config).unwrap().len();
        let weights: Vec<f32> = (0..count).map(|_| (0.3 * random.normal()) as f32).collect();
        let model = directory.path().join("model");
        write_model(&model, &config, None, &weights, ExportDType::F32).unwrap();
        chat_model::write(&model, Some(chat_model::LLAMA3));
        let text = std::fs::read_to_string(model.join("config.json")).unwrap();
        let longer = text.replace("\"max_position_embeddings\":128", "\"max_position_embeddings\":512");
        assert_ne!(longer, text);
        std::fs::write(model.join("config.json"), longer).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, rows: &[Value]) -> PathBuf {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        chat_model::data(self.directory.path(), name, text)
    }

    fn eval(&self, data: &Path, arguments: &[&str]) -> Output {
        let mut command = temper(&["eval", "--device", "cpu", "--model"]);
        run(command.arg(self.path("model")).arg("--data").arg(data).args(arguments))
    }

    /// The JSON of a run that succeeds.
    fn json(&self, data: &Path, arguments: &[&str]) -> Value {
        let output = self.eval(data, &[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The rows of a predictions file.
    fn rows(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Answers are what the library generates from the chat template with the prefill behind it; the judge reads them from the
/// prefill on; shares and means are those of the rows.
#[test]
fn answers_are_generated_judged_and_written_down() {
    let home = Home::new();
    let prompts = ["hello there", "How is bread made?", "Where does the sun rise?"];
    let data = home.write("prompts.jsonl", &prompts.map(|prompt| json!({"prompt": prompt})));
    let judge = home.path("judge.sh");
    // The score of a row is the number of its bytes.
    std::fs::write(&judge, "tee judged | while IFS= read -r line; do echo ${#line}; done").unwrap();
    let out = home.path("answers.jsonl");
    let command = format!("sh {}", judge.display());
    let arguments = ["--form", "refusal", "--prefill", "Sure, ", "--judge", &command, "--predictions", &text(&out)];
    let output = {
        let mut command = temper(&["eval", "--device", "cpu", "--json", "--max-new-tokens", "12", "--model"]);
        command.current_dir(home.directory.path()).env("LC_ALL", "C").arg(home.path("model"));
        run(command.arg("--data").arg(&data).args(arguments))
    };
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    let directory = ModelDirectory::open(&home.path("model")).unwrap();
    let model = Model::new(Cpu, directory.config.clone(), 512).unwrap();
    let weights = Parameters::from_host(&Cpu, "w", model.layout(), &directory.read_weights().unwrap()).unwrap();
    let encoder = PromptEncoder::open(&directory.path, model.config.vocab_size).unwrap();
    let chat = |prompt: &str| encoder.chat(&[Message::new("user", prompt)], "Sure, ").unwrap();
    let stop = model.config.stop_tokens(&directory.path).unwrap();
    assert_eq!(stop, [268]);
    let options = GenerateOptions { max_new_tokens: 12, stop, ..GenerateOptions::default() };
    let generated = generate(&model, Subject::plain(&weights), &prompts.map(chat), &options).unwrap();
    let rows = home.rows("answers.jsonl");
    let judged = home.rows("judged");
    assert_eq!((rows.len(), judged.len()), (3, 3));
    let mut total = 0.0;
    for (index, row) in rows.iter().enumerate() {
        let response = encoder.decode(&generated[index]).unwrap();
        let whole = format!("Sure, {response}");
        assert_eq!(judged[index], json!({"prompt": prompts[index], "response": whole}));
        let score = row["score"].as_f64().unwrap();
        assert_eq!(score, judged[index].to_string().len() as f64);
        total += score;
        let expected = json!({"prompt": prompts[index], "prefill": "Sure, ", "response": response,
                              "refused": refuses(&response), "score": score});
        assert_eq!(row, &expected);
    }
    assert_eq!(report["prompts"], 3);
    assert_eq!(report["score"], json!(total / 3.0));
    assert_eq!(report["tokens"], json!(generated.iter().map(Vec::len).sum::<usize>()));
    assert_eq!(report["texts"], 3);
    let refused = rows.iter().filter(|row| row["refused"] == true).count();
    assert_eq!(report["refused"], json!(refused as f64 / 3.0));
}

/// The same seed draws the same answers, in batches of any size; another seed draws others.
#[test]
fn draws_are_repeatable() {
    let home = Home::new();
    let data = home.write("prompts.jsonl", &[json!({"prompt": "hello"}), json!({"text": "hello"})]);
    let draw = |arguments: &[&str]| {
        let options = ["--form", "generate", "--max-new-tokens", "10", "--temperature", "1.5", "--top-p", "0.9"];
        let output = home.eval(&data, &[&options, arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    let first = draw(&["--seed", "1"]);
    assert!(String::from_utf8_lossy(&first).starts_with("> hello\n"));
    assert_eq!(draw(&["--seed", "1", "--batch", "1"]), first);
    assert_ne!(draw(&["--seed", "2"]), first);
}

/// What greedy decoding writes after a prompt is an exact match; with one token changed it is none.
#[test]
fn exact_match_of_what_the_model_writes_is_one() {
    let home = Home::new();
    let prompt = json!({"input_ids": [265, 5, 9, 70]});
    let prompts = home.write("prompts.jsonl", &[prompt]);
    let out = text(&home.path("written.jsonl"));
    std::fs::rename(home.path("model/tokenizer.json"), home.path("tokenizer.json")).unwrap();
    home.json(&prompts, &["--form", "generate", "--max-new-tokens", "6", "--predictions", &out]);
    let rows = home.rows("written.jsonl");
    let written: Vec<u32> = serde_json::from_str(rows[0]["response"].as_str().unwrap()).unwrap();
    assert_eq!(written.len(), 6);
    let row = |answer: &[u32]| {
        let labels: Vec<i64> = [-100; 4].into_iter().chain(answer.iter().map(|&id| i64::from(id))).collect();
        let tokens = [&[265, 5, 9, 70], answer].concat();
        json!({"input_ids": tokens, "labels": labels})
    };
    let mut other = written.clone();
    other[5] = (other[5] + 1) % 270;
    let data = home.write("data.jsonl", &[row(&written), row(&other), row(&written[..3])]);
    let out = text(&home.path("matches.jsonl"));
    let report = home.json(&data, &["--form", "exact", "--predictions", &out, "--batch", "2"]);
    assert_eq!(report, json!({"rows_read": 3, "accuracy": 2.0 / 3.0, "rows": 3}));
    let matches: Vec<bool> = home.rows("matches.jsonl").iter().map(|row| row["matches"] == true).collect();
    assert_eq!(matches, [true, false, true]);
}

/// Questions in all three forms: reports and rows belong together.
#[test]
fn questions_are_asked_in_three_forms() {
    let home = Home::new();
    let question = |index: usize| {
        json!({"question": format!("Which of the four is number {index}?"), "choices": ["a", "b", "c", "d"],
               "answer": index % 4, "subject": "counting"})
    };
    let data = home.write("questions.jsonl", &(0..9).map(question).collect::<Vec<_>>());
    let shots = text(&home.write("shots.jsonl", &[question(20), question(21)]));
    let out = text(&home.path("predictions.jsonl"));
    for (form, more) in [("mmlu", vec!["--shots", &shots, "--num-shots", "1"]), ("lm-eval", vec![]), ("qi", vec![])] {
        let report = home.json(&data, &[&["--form", form, "--predictions", &out], more.as_slice()].concat());
        let rows = home.rows("predictions.jsonl");
        assert_eq!((rows.len(), &report["questions"], &report["form"]), (9, &json!(9), &json!(form)));
        let right = rows.iter().filter(|row| row["predicted"] == row["answer"]).count();
        assert_eq!(report["accuracy"], json!(right as f64 / 9.0));
        assert_eq!(report["subjects"], json!({"counting": [right as f64 / 9.0, 9]}));
        assert_eq!(report["shots"], json!(more.len() / 4));
        assert_eq!(rows[0].get("response").is_some(), form == "qi");
        assert_eq!(report["computed_tokens"].is_u64(), form != "qi");
    }
}

#[test]
fn options_that_a_form_does_not_read_are_refused() {
    let home = Home::new();
    let data = home.write("prompts.jsonl", &[json!({"prompt": "hello"})]);
    for (arguments, words) in [
        (
            vec!["--judge", "cat"],
            "--judge: it means nothing to the form perplexity; leave it out, or use --form generate or refusal",
        ),
        (vec!["--form", "qi", "--shots", "x"], "--shots: it means nothing to the form qi"),
        (vec!["--form", "mmlu", "--prefill", "Sure"], "--prefill: it means nothing to the form mmlu"),
        (vec!["--predictions", "x"], "--predictions: it means nothing to the form perplexity"),
        (vec!["--form", "generate", "--top-p", "0.5"], "--top-p: it means nothing where"),
        (vec!["--form", "generate", "--temperature", "1", "--top-p", "2"], "--top-p: 2 is no share"),
        (vec!["--form", "refusal", "--temperature", "0"], "above 0"),
    ] {
        let output = home.eval(&data, &arguments);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(words), "{words}: {message}");
    }
    let output = home.eval(&data, &["--form", "generate", "--max-length", "5"]);
    assert!(stderr(&output).contains("prompt 0 has"), "{output:?}");
}
