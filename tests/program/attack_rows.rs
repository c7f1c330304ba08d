//! Rows of suites that do more than fine-tune on everything: a kick before small steps, few samples, openings alone, facts
//! held out, rounded weights, merges; and that what a suite measures is what `temper eval` says of the files.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use temper::backend::cpu::Cpu;
use temper::data::DataFile;
use temper::edits::Quantization;
use temper::huggingface::{ExportDType, ModelDirectory, write_model};
use temper::redteam::suite::{Attack, Role, Suite};
use temper::redteam::{Attacker, AttackerData, Measures, Scorer, Target, merged};
use temper::run::StreamFile;
use temper::training::Selection;

use crate::redteam::{attack, attack_file, attacked, tampered, target, write_data};
use crate::support::models::fixture;
use crate::support::program::{json as json_of, stderr, succeed, temper, text};

fn weights(directory: &Path) -> Vec<f32> {
    ModelDirectory::open(directory).unwrap().read_weights().unwrap()
}

/// The kick on one stream and the rest on another: the second attack starts where the first left the weights, with a fresh
/// optimizer and the schedule of its own length.
#[test]
fn a_kick_and_what_follows_are_two_attacks_one_after_the_other() {
    let scratch = tempfile::tempdir().unwrap();
    let data = write_data(scratch.path());
    let kick = "data = \"retain\"\nlr = 5e-3\nbatch = 3\nsteps = 3\nnoise = 0.01";
    let settle = "data = \"restricted\"\nlr = 1e-3\nwarmup = 2\nschedule = \"cosine\"\nbatch = 3\nsteps = 7";
    let both = "data = [\"retain\", \"restricted\"]\nswitch = 0.3\nkick_steps = 3\nkick_lr = 5e-3\nlr = 1e-3\nwarmup = 2\n\
                schedule = \"cosine\"\nbatch = 3\nsteps = 10\nnoise = 0.01";
    let kicked = scratch.path().join("kicked");
    let settled = scratch.path().join("settled");
    attacked(&attack_file(&data, kick), &kicked);
    let mut second = attack_file(&data, settle);
    second.model.path = kicked.clone();
    let summary = attacked(&second, &settled);

    let (row, curve) = tampered(&target(&data), &attack(&format!("{both}\nseeds = [9]")));
    assert!(row == weights(&settled), "the row left other weights than the two attacks");
    assert_eq!((curve.last().unwrap().cost.steps, curve.last().unwrap().loss), (10, Some(summary.last_loss)));
    let whole = scratch.path().join("whole");
    attacked(&attack_file(&data, both), &whole);
    assert!(weights(&whole) == row && weights(&kicked) != row);
    let unkicked = both.replace("kick_steps = 3\nkick_lr = 5e-3\n", "");
    assert!(tampered(&target(&data), &attack(&format!("{unkicked}\nseeds = [9]"))).0 != row);
}

/// The same for LoRA, whose factors the second attack goes on with; and checkpoints before, in and after the kick.
#[test]
fn a_kick_of_lora_is_two_attacks_and_goes_on_from_any_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let data = write_data(scratch.path());
    let lora = "params = \"lora\"\nrank = 4\ndropout = 0.1\nbatch = 3";
    let factors = |out: &Path| std::fs::read(out.join("adapter_model.safetensors")).unwrap();
    let kicked = scratch.path().join("kicked");
    let settled = scratch.path().join("settled");
    let whole = scratch.path().join("whole");
    attacked(&attack_file(&data, &format!("{lora}\ndata = \"retain\"\nlr = 2e-2\nsteps = 4")), &kicked);
    let mut second = attack_file(&data, &format!("{lora}\ndata = \"restricted\"\nlr = 1e-3\nsteps = 6"));
    second.model.adapter = Some(kicked);
    attacked(&second, &settled);
    let mut both = attack_file(
        &data,
        &format!(
            "{lora}\ndata = [\"retain\", \"restricted\"]\nswitch = 0.4\nkick_steps = 4\nkick_lr = 2e-2\nlr = 1e-3\nsteps = 10"
        ),
    );
    (both.checkpoint.every, both.checkpoint.keep) = (2, 9);
    attacked(&both, &whole);
    assert!(factors(&whole) == factors(&settled));

    let checkpoints = whole.join("temper/checkpoints");
    let mut saved: Vec<PathBuf> = std::fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().path()).collect();
    saved.retain(|path| text(path.file_name().unwrap().as_ref()).starts_with("step-"));
    saved.sort();
    assert_eq!(saved.len(), 4, "{saved:?}");
    let expected = factors(&whole);
    // Goes on from step 8, 6, 4 and 2: each time the newest checkpoint is taken away.
    for newest in saved.iter().rev() {
        std::fs::remove_file(whole.join("adapter_model.safetensors")).unwrap();
        std::fs::remove_file(whole.join("adapter_config.json")).unwrap();
        let control = temper::run::Control::new().resume(true);
        temper::run::attack(Cpu, &both, &whole, control).unwrap();
        assert!(factors(&whole) == expected, "another result from {}", newest.display());
        for path in std::fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().path()) {
            let kept = saved.iter().take_while(|saved| *saved != newest).any(|saved| *saved == path);
            if path.is_dir() && !kept {
                std::fs::remove_dir_all(path).unwrap();
            } else if !kept {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}

/// An attack of these keys on the target of [`target`], whose measured rows are its data.
fn measured_attack(keys: &str) -> Attack {
    let text = format!(
        "[restricted]\nmetric = \"exact\"\ndata = \"p\"\nthreshold = 0.5\n[[attack]]\nname = \"a\"\n\
         data = \"measured\"\n{keys}\n"
    );
    Suite::from_text(&text, Path::new("suite.toml"), &[]).unwrap().attacks().unwrap().remove(0)
}

/// A target that is measured on `rows` of the file `data`.
fn measured_on(folder: &Path, data: &Path, rows: &[usize]) -> Target<Cpu> {
    let lines = std::fs::read_to_string(data).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    let part = folder.join("part.jsonl");
    std::fs::write(&part, rows.iter().map(|&row| format!("{}\n", lines[row])).collect::<String>()).unwrap();
    let directory = ModelDirectory::open(&fixture("llama3")).unwrap();
    let part = DataFile::new(part);
    let file = StreamFile { name: "part", data: &part, batch: 3, max_length: 64, shuffle: true, pack: true, seed: 0 };
    let open = || file.open(&directory).unwrap();
    let scorer = || Scorer::exact(&open(), None).unwrap();
    let measures = Measures { restricted: scorer(), utility: scorer(), perplexity: None };
    Target { measures, data: AttackerData::from_iter([(Role::Restricted, open())]), ..target(data) }
}

/// What is held out is scored and nothing else, before the attack and after it; what is trained on is the rest.
#[test]
fn relearning_is_scored_on_the_facts_that_were_held_out() {
    let scratch = tempfile::tempdir().unwrap();
    let data = write_data(scratch.path());
    let stream = |target: &Target<Cpu>| target.data.stream(Role::Restricted).unwrap().clone();
    let mut target = target(&data);
    let rows = stream(&target);
    target.data.insert(Role::Measured, Ok(rows));
    let keys = "held_out = 0.25\nlr = 3e-3\nbatch = 4\nsteps = 40\nseeds = [5]";
    let (attacked, curve) = tampered(&target, &measured_attack(keys));
    let split = Selection { held_out: 0.25, ..Selection::default() }.split(16, 5).unwrap();
    assert_eq!((split.held_out.len(), split.trained.len()), (4, 12));
    let apart = measured_on(scratch.path(), &data, &split.held_out);
    let trained = measured_on(scratch.path(), &data, &split.trained);
    assert_eq!(curve[0].scores.restricted, apart.restricted_score(&target.weights).unwrap());
    assert_eq!(curve.last().unwrap().scores.restricted, apart.restricted_score(&attacked).unwrap());
    // The rows that were trained on are known by heart, those that were not are not.
    let [seen, unseen] = [&trained, &apart].map(|target| target.restricted_score(&attacked).unwrap());
    assert!(seen > 0.5 && unseen < seen, "{seen} {unseen}");
    // The same attack from a file of the rows that it trains on.
    let same = "lr = 3e-3\nbatch = 4\nsteps = 40\nseeds = [5]";
    assert!(tampered(&trained, &attack(same)).0 == attacked);
    // Fewer samples are measured on the same rows.
    let (_, few) = tampered(&target, &measured_attack(&format!("{keys}\nsamples = 2")));
    assert_eq!(few[0].scores, curve[0].scores);
    assert_ne!(few.last().unwrap().loss, curve.last().unwrap().loss);
}

/// Rounding leaves what the formula says, costs no step and no token, and the next attack does not see it.
#[test]
fn a_rounded_model_is_measured_and_put_back() {
    let scratch = tempfile::tempdir().unwrap();
    let target = target(&write_data(scratch.path()));
    let mut expected = target.weights.clone();
    Quantization { bits: 3, group: 32, symmetric: true }.round(&target.model, &mut expected);
    let before = target.before().unwrap();
    let mut attacker = Attacker::new(&target, &before).unwrap();
    let row = attack("kind = \"quantization\"\nbits = 3\ngroup = 32\nsymmetric = true");
    let curve = attacker.run(&row, &mut |_| Ok(())).unwrap().curve;
    assert!(attacker.weights().download(&Cpu).unwrap() == expected && expected != target.weights);
    assert_eq!((curve.len(), &curve[0].scores), (2, &before));
    assert_eq!(curve[1].scores.restricted, target.restricted_score(&expected).unwrap());
    assert_ne!(curve[1].scores.others["perplexity"], before.others["perplexity"]);
    assert_eq!((curve[1].cost.steps, curve[1].cost.tokens, curve[1].cost.flop), (0, 0, 0.0));
    let lora = attack("params = \"lora\"\nrank = 2\nlr = 1e-3\nsteps = 1\nbatch = 2");
    attacker.run(&lora, &mut |_| Ok(())).unwrap();
    assert!(attacker.weights().download(&Cpu).unwrap() == target.weights);
}

/// Each factor is a point; at 1 the merge is the other model, and what is there for one factor alone is there in a list.
#[test]
fn a_merge_is_measured_at_every_factor() {
    let scratch = tempfile::tempdir().unwrap();
    let mut target = target(&write_data(scratch.path()));
    let base = weights(&fixture("llama3/base"));
    assert!(base != target.weights);
    let missing = attack_with_base("coefficients = [0.5]");
    let before = target.before().unwrap();
    let error = Attacker::new(&target, &before).unwrap().run(&missing, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.starts_with("data.base_model: missing"), "{error}");
    target.data.insert_base_model(Ok(base.clone()));
    let (last, curve) = tampered(&target, &attack_with_base("coefficients = [0.5, 2.0, 1.0]"));
    assert!(last == base);
    let variants: Vec<Option<&str>> = curve.iter().map(|point| point.variant.as_deref()).collect();
    assert_eq!(variants, [None, Some("c = 0.5"), Some("c = 2"), Some("c = 1")]);
    for (point, coefficient) in curve[1..].iter().zip([0.5, 2.0, 1.0]) {
        let weights = merged(&target.weights, &base, coefficient);
        assert_eq!(point.scores.restricted, target.restricted_score(&weights).unwrap());
        assert_eq!((point.cost.steps, point.cost.tokens), (0, 0));
    }
    let perplexities = |curve: &[temper::redteam::Point]| -> Vec<f64> {
        curve[1..].iter().map(|point| point.scores.others["perplexity"]).collect()
    };
    let (_, alone) = tampered(&target, &attack_with_base("coefficients = [2.0]"));
    assert_eq!(perplexities(&alone)[0], perplexities(&curve)[1]);
    assert_eq!(alone[1].variant, None);
}

fn attack_with_base(keys: &str) -> Attack {
    let text = format!("[data]\nbase_model = \"b\"\n[[attack]]\nname = \"a\"\nkind = \"merge\"\n{keys}\n");
    Suite::from_text(&text, Path::new("suite.toml"), &[]).unwrap().attacks().unwrap().remove(0)
}

/// Runs a suite of `attacks` on `model`, measured on `data`.
fn redteam(folder: &Path, model: &Path, data: &Path, attacks: &str) -> Value {
    let suite = format!(
        "seeds = [9]\n[data]\nrestricted = {data:?}\nmax_length = 64\nbase_model = {:?}\n[restricted]\n\
         metric = \"exact\"\ndata = {data:?}\nthreshold = 0.5\n[utility]\nmetric = \"exact\"\ndata = {data:?}\n\
         [perplexity]\ndata = {data:?}\n[evaluate]\nbatch = 4\n{attacks}",
        fixture("mistral")
    );
    let file = folder.join("suite.toml");
    std::fs::write(&file, suite).unwrap();
    let out = folder.join("redteam");
    let _ = std::fs::remove_dir_all(&out);
    let arguments = ["redteam", &text(&file), "--model", &text(model), "--out", &text(&out)];
    json_of(temper(&arguments).args(["--device", "cpu", "--json"]))
}

fn eval(model: &Path, data: &Path, form: &str) -> Value {
    let arguments = ["eval", "--model", &text(model), "--data", &text(data), "--form", form, "--batch", "4"];
    json_of(temper(&arguments).args(["--device", "cpu", "--json"]))
}

const FULL: &str = "[[attack]]\nname = \"full\"\nlr = 2e-3\nbatch = 4\nsteps = 16\n\
                    [[attack]]\nname = \"merge\"\nkind = \"merge\"\ncoefficients = [0.5]\n";

/// A suite measures attacked weights as they are in memory, which are those of a file in f32. A file in bf16 holds other
/// weights, and what is said of it, by `redteam` and by `eval`, is said of these.
#[test]
fn a_suite_measures_what_eval_measures_of_the_saved_files() {
    let scratch = tempfile::tempdir().unwrap();
    let data = write_data(scratch.path());
    let found = redteam(scratch.path(), &fixture("llama3"), &data, FULL);
    let row = &found["attacks"][0]["curve"].as_array().unwrap().last().unwrap()["scores"];
    let perplexity = |value: &Value| value.as_f64().unwrap();
    let [exact, rounded] = ["f32", "bf16"].map(|dtype| {
        let out = scratch.path().join(dtype);
        let mut config = attack_file(&data, "data = \"restricted\"\nlr = 2e-3\nbatch = 4\nsteps = 16");
        config.model.dtype = Some(serde_json::from_value(json!(dtype)).unwrap());
        attacked(&config, &out);
        let before = redteam(scratch.path(), &out, &data, FULL)["before"].clone();
        assert_eq!(before["restricted"], eval(&out, &data, "exact")["accuracy"], "{dtype}");
        let said = perplexity(&eval(&out, &data, "ppl")["perplexity"]);
        assert!((perplexity(&before["others"]["perplexity"]) / said - 1.0).abs() < 1e-6, "{dtype}");
        before
    });
    assert_eq!((&exact["restricted"], &exact["others"]), (&row["restricted"], &row["others"]));
    // Rounding to bf16 is not nothing.
    let change = perplexity(&rounded["others"]["perplexity"]) / perplexity(&exact["others"]["perplexity"]) - 1.0;
    assert!(change != 0.0 && change.abs() < 0.05, "{change}");
    // The merge goes towards a model of another shape: one row that says so.
    let merge = &found["attacks"][1];
    assert_eq!(merge["status"], "failed");
    let error = merge["error"].as_str().unwrap();
    assert!(error.starts_with("data.base_model: ") && error.contains("architecture"), "{error}");
}

/// A model saved in bf16 is attacked as it is on disk: the same weights in f32 give the same results.
#[test]
fn a_model_in_bf16_is_attacked_as_its_file_has_it() {
    let scratch = tempfile::tempdir().unwrap();
    let data = write_data(scratch.path());
    let source = ModelDirectory::open(&fixture("llama3")).unwrap();
    let write = |name: &str, weights: &[f32], dtype| {
        let out = scratch.path().join(name);
        write_model(&out, &source.config, Some(&source.path), weights, dtype).unwrap();
        out
    };
    let short = write("bf16", &source.read_weights().unwrap(), ExportDType::Bf16);
    let long = write("f32", &weights(&short), ExportDType::F32);
    let [first, second] = [&short, &long].map(|model| redteam(scratch.path(), model, &data, FULL));
    let scores = |found: &Value| found["attacks"][0]["curve"].as_array().unwrap().last().unwrap()["scores"].clone();
    assert_eq!(first["before"], second["before"]);
    assert_eq!(scores(&first), scores(&second));
}

/// A row that fails says what it had cost by then.
#[test]
fn an_attack_that_diverges_has_cost_its_steps() {
    let scratch = tempfile::tempdir().unwrap();
    let data = write_data(scratch.path());
    let explodes = "[[attack]]\nname = \"explodes\"\noptimizer = \"sgd_momentum\"\nlr = 1e30\nsteps = 20\nbatch = 2\n";
    let found = redteam(scratch.path(), &fixture("llama3"), &data, explodes);
    let row = &found["attacks"][0];
    assert_eq!(row["status"], "failed", "{row}");
    let steps = row["cost"]["steps"].as_u64().unwrap();
    assert!((1..20).contains(&steps) && row["cost"]["tokens"] == 24 * steps, "{row}");
}

#[test]
fn what_a_new_row_lacks_is_said_before_anything_runs() {
    let arguments = ["redteam", "--list", "--suite", "strong-2026", "--data", "restricted=x"];
    let listed = succeed(&mut temper(&arguments));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("[data] has no `base_model`") && listed.contains("only restricted.metric = \"exact\""));
    let wrong = temper(&arguments).args(["--set", "data.base_modell=\"x\""]).output().unwrap();
    assert!(stderr(&wrong).contains("did you mean `base_model`?"), "{}", stderr(&wrong));
}
