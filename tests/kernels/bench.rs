//! `temper bench` on the simulator: every row runs, its counts are closed forms, and its report says that it is none of a
//! GPU.

use std::collections::BTreeMap;

use serde_json::Value;
use temper::backend::cuda::Cuda;
use temper::bench::{self, Options, Report, ShapesName};
use temper::ops::DType;

use crate::program;

/// The tiny shapes, stated again: T tokens, d, F, V, H, G, D, r, sequences, their length, the short length, elements.
const T: f64 = 48.0;
const D: f64 = 128.0;
const F: f64 = 160.0;
const V: f64 = 203.0;
const HEADS: f64 = 2.0;
const QKV: f64 = 256.0;
const R: f64 = 4.0;
const ELEMENTS: f64 = 5003.0;

fn tiny(dtype: DType) -> (Cuda, Options) {
    let cuda = Cuda::simulated(dtype).expect("a simulated device");
    let options = Options::new(&cuda, ShapesName::Tiny);
    (cuda, options)
}

/// The report as its readers see it. Fails if anything was not run.
fn json(report: &Report) -> Value {
    assert!(report.not_run.is_empty(), "{:#?}", report.not_run);
    serde_json::to_value(report).expect("JSON")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {value:#}"))
}

/// Operations and, for those without a random number of distinct ids, bytes of every kernel row in bf16.
fn expected() -> BTreeMap<String, (f64, Option<f64>)> {
    let mut rows = BTreeMap::new();
    let mut row = |name: &str, flop: f64, bytes: f64| rows.insert(name.to_string(), (flop, Some(bytes)));
    let layers = [("qkv", QKV, D, 3.0), ("output", D, D, 1.0), ("gate_up", 2.0 * F, D, 2.0), ("down", D, F, 1.0)];
    for (layer, output, input, slices) in layers {
        for suffix in ["", "/own"] {
            let flop = 2.0 * T * output * input;
            let bytes = 2.0 * (T * output + T * input + output * input);
            row(&format!("linear_forward/{layer}{suffix}"), flop, bytes);
            row(&format!("linear_backward_input/{layer}{suffix}"), flop, bytes);
            let bytes = 2.0 * (T * output + T * input) + 8.0 * output * input;
            row(&format!("linear_backward_weight/{layer}{suffix}"), flop, bytes);
        }
        let columns = slices * R;
        let factors = R * (slices * input + output);
        let flop = 2.0 * T * factors;
        let bytes = 2.0 * (T * input + factors + T * columns + 2.0 * T * output);
        row(&format!("lora_forward/{layer}"), flop, bytes);
        let bytes = 2.0 * (T * output + 3.0 * T * input + 2.0 * T * columns + factors) + 8.0 * factors;
        row(&format!("lora_backward/{layer}"), 2.0 * flop, bytes);
    }
    for (sequences, length) in [(2, 24), (3, 8), (5, 8)] {
        // Every query of a causal sequence sees itself and what is before it.
        let pairs: usize = (0..length).map(|query| query + 1).sum();
        let flop = (sequences * pairs) as f64 * 4.0 * D;
        let tokens = (sequences * length) as f64;
        let batch = format!("{sequences}x{length}");
        row(&format!("attention_forward/{batch}"), flop, tokens * (2.0 * (QKV + D) + 4.0 * HEADS));
        row(&format!("attention_backward/{batch}"), 2.5 * flop, tokens * (4.0 * (QKV + D) + 4.0 * HEADS));
    }
    for length in [24.0, 8.0] {
        let tokens = 2.0 * length;
        // Keys and values have as many columns as qkv has more than the queries.
        let bytes = 2.0 * (2.0 * (QKV + D + QKV - D) + tokens * (QKV - D)) + 4.0 * (tokens + 6.0);
        row(&format!("attention_cached/2x{length}"), 4.0 * tokens * D, bytes);
    }
    for (suffix, products, head) in [("", 2.0, 0.0), ("/d_head", 3.0, 8.0 * V * D)] {
        let flop = products * 2.0 * T * V * D;
        let bytes = 2.0 * (2.0 * T * D + V * D) + head + 12.0 * T;
        for kind in ["products", "cross_entropy", "negative_entropy"] {
            row(&format!("loss_head/{kind}{suffix}"), flop, bytes);
        }
        // A teacher's logits: one product more, of as many tokens with a head of its own.
        let name = format!("loss_head/teacher_divergence{suffix}");
        row(&name, flop + 2.0 * T * V * D, bytes + 2.0 * (T * D + V * D));
    }
    row("rms_norm_forward", 0.0, 8.0 * T * D + 4.0 * T + 2.0 * D);
    row("rms_norm_backward", 0.0, 8.0 * T * D + 4.0 * T + 2.0 * D);
    row("rms_norm_backward/d_weight", 0.0, 8.0 * T * D + 4.0 * T + 10.0 * D);
    row("rope", 0.0, 4.0 * T * (D + 64.0) + 4.0 * T + 8.0 * 24.0 * 32.0);
    row("add_bias", 0.0, 4.0 * T * QKV + 2.0 * QKV);
    row("bias_backward", 0.0, 2.0 * T * QKV + 8.0 * QKV);
    row("head_norm_forward", 0.0, 4.0 * T * QKV + 4.0 * 64.0);
    row("head_norm_backward", 0.0, 6.0 * T * (D + 64.0) + 4.0 * 64.0);
    row("head_norm_backward/d_weight", 0.0, 6.0 * T * (D + 64.0) + 20.0 * 64.0);
    row("swiglu_forward", 0.0, 6.0 * T * F);
    row("swiglu_backward", 0.0, 10.0 * T * F);
    row("representation_distance", 0.0, 8.0 * T * D + 8.0 * T);
    row("cosine_margin", 0.0, 8.0 * T * D + 8.0 * T);
    row("cosine_margin/two", 0.0, 10.0 * T * D + 8.0 * T);
    for (rule, states) in [("adam", 2.0), ("sgd", 1.0), ("adagrad", 1.0), ("adadelta", 2.0)] {
        row(&format!("optimizer/{rule}"), 0.0, ELEMENTS * (12.0 + 8.0 * states));
        row(&format!("optimizer/{rule}/bf16_moments"), 0.0, ELEMENTS * (12.0 + 4.0 * states));
    }
    for (rule, moments) in [("nadam", 20.0), ("radam", 20.0), ("schedule_free_adamw", 24.0)] {
        row(&format!("optimizer/{rule}"), 0.0, ELEMENTS * 28.0);
        row(&format!("optimizer/{rule}/bf16_moments"), 0.0, ELEMENTS * moments);
    }
    row("weights_copy", 0.0, 8.0 * ELEMENTS);
    row("squared_norm", 0.0, 4.0 * ELEMENTS);
    row("sign_mask", 0.0, 20.0 * ELEMENTS);
    for name in ["gather_rows", "embedding_backward", "random_mapping"] {
        rows.insert(name.to_string(), (0.0, None));
    }
    rows
}

/// Every kernel row is there, with all fields, the arithmetic and bytes of its closed form, and a floor above 0 that
/// follows from them.
#[test]
fn every_kernel_row_runs_and_counts_what_its_closed_form_says() {
    let (cuda, options) = tiny(DType::Bf16);
    let mut observed = Vec::new();
    let report =
        bench::kernels(&cuda, &options, &mut |report| observed.push(report.rows.last().expect("a row").name.clone()))
            .expect("a report");
    let report = json(&report);
    assert_eq!(report["simulated"], true);
    assert_eq!(report["precision"], "bf16");
    assert_eq!(report["shapes"], "tiny");
    for key in ["schema", "engine", "kernels_digest", "device", "library", "steps"] {
        assert!(!report[key].is_null(), "{key}");
    }
    let rates = &report["rates"];
    let rate = number(rates, "matmul_teraflops_per_second");
    let copy = number(rates, "copy_gigabytes_per_second");
    for key in ["matmul_teraflops_per_second_at_end", "own_matmul_teraflops_per_second"] {
        assert!(number(rates, key) > 0.0, "{key}");
    }
    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert_eq!(names, observed, "every row is announced");
    let mut expected = expected();
    for row in rows {
        let name = row["name"].as_str().expect("a name");
        let (flop, bytes) = expected.remove(name).unwrap_or_else(|| panic!("an unexpected or second row {name}"));
        assert_eq!(number(row, "flop"), flop, "flop of {name}");
        assert!(bytes.is_none_or(|bytes| number(row, "bytes") == bytes), "bytes of {name}: {}", number(row, "bytes"));
        assert!(number(row, "bytes") > 0.0 && number(row, "samples") > 0.0, "{name}");
        let floor = number(row, "floor_milliseconds");
        let arithmetic = flop / (rate * 1e9);
        let memory = number(row, "bytes") / (copy * 1e6);
        assert!(floor > 0.0 && (floor / arithmetic.max(memory) - 1.0).abs() < 1e-9, "floor of {name}");
        assert_eq!(row["floor_by"], if arithmetic > memory { "arithmetic" } else { "memory" }, "{name}");
        let time = number(row, "milliseconds");
        assert!(number(row, "fastest_milliseconds") <= time && time <= number(row, "slowest_milliseconds"), "{name}");
        assert!((number(row, "ratio") * floor / time - 1.0).abs() < 1e-9, "ratio of {name}");
        let has_library = name.ends_with("/own") || (name.starts_with("loss_head") && name.contains("entropy"));
        assert_eq!(row["factor_to_library"].is_number(), has_library, "{name}");
    }
    assert!(expected.is_empty(), "rows that are missing: {:?}", expected.keys());
}

/// The training steps run, learn something finite, and count what the model's sizes say.
#[test]
fn every_step_runs() {
    let (cuda, options) = tiny(DType::Bf16);
    let report = json(&bench::steps(&cuda, &options, &mut |_| {}).expect("a report"));
    let steps = report["steps"].as_array().expect("steps");
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().expect("a name")).collect();
    let tar = ["full_attack_step/3x8", "tr_gradient/5x8"];
    let expected = ["lora_attack_step", "full_attack_step", "full_attack_step/lean", tar[0], "tr_gradient", tar[1]];
    assert_eq!(names, expected);
    // A run of TAR steps within the backward pass; what it computes again is the plan's choice for the device.
    let in_backward: Vec<bool> = steps.iter().map(|step| step["memory"]["step_in_backward"] == true).collect();
    assert_eq!(in_backward, [false, false, true, true, false, true]);
    let weights = D * (QKV + D + 3.0 * F) + V * D;
    let adapter = R * ((3.0 * D + QKV) + 2.0 * D + (2.0 * D + 2.0 * F) + (F + D));
    let counts = [
        (2.0, 24.0, 4.0, adapter),
        (1.0, 24.0, 6.0, 0.0),
        (1.0, 24.0, 6.0, 0.0),
        (3.0, 8.0, 6.0, 0.0),
        (2.0, 24.0, 6.0, 0.0),
        (5.0, 8.0, 6.0, 0.0),
    ];
    for (step, (sequences, length, products, factors)) in steps.iter().zip(counts) {
        let tokens = sequences * length;
        let attention = sequences * length * (length + 1.0) / 2.0 * 4.0 * D;
        let flop = tokens * (products * weights + 6.0 * factors) + 3.5 * attention;
        assert_eq!(number(step, "flop"), flop, "{step:#}");
        assert_eq!(number(step, "tokens"), tokens);
        assert_eq!(number(step, "layers"), 1.0);
        for key in [
            "milliseconds",
            "milliseconds_per_layer",
            "device_milliseconds",
            "host_milliseconds",
            "floor_milliseconds",
            "ratio",
            "share_of_matmul_rate",
            "teraflops_per_second",
            "tokens_per_second",
            "parameters",
            "samples",
        ] {
            assert!(number(step, key) > 0.0, "{key} of {step:#}");
        }
        assert!(number(step, "launch_gaps") <= 1.0);
        // A model that knows nothing gives every token 1/V, about: ln 203 is 5.31, and so is the entropy.
        assert!((number(step, "loss").abs() - V.ln()).abs() < 0.5, "{step:#}");
    }
}

/// A filter measures what it names and nothing else, in the other mode too.
#[test]
fn a_filter_chooses_rows() {
    let (cuda, mut options) = tiny(DType::F32);
    options.filter = Some("swiglu".into());
    let report = bench::kernels(&cuda, &options, &mut |_| {}).expect("a report");
    let names: Vec<&str> = report.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["swiglu_forward", "swiglu_backward"]);
    assert_eq!((report.precision.as_str(), report.rows[0].bytes), ("f32", 12.0 * T * F));
    options.filter = Some("linear_forward/down/own".into());
    let report = bench::kernels(&cuda, &options, &mut |_| {}).expect("a report");
    assert!(report.rows.iter().any(|row| row.factor_to_library.is_some()), "its counterpart is measured too");
}

/// The command prints a table that says what it is not, and JSON that other programs read.
#[test]
fn the_command_prints_a_table_and_json() {
    let temper = |more: &[&str]| {
        let arguments = ["bench", "kernels", "--device", "sim", "--shapes", "tiny", "--filter", "rope"];
        program::stdout(&program::succeed(program::temper(&arguments).args(more)))
    };
    let table = temper(&[]);
    assert!(table.contains("no measurement of a GPU") && table.contains("rope"), "{table}");
    let report: Value = serde_json::from_str(&temper(&["--json"])).expect("JSON");
    assert_eq!((&report["simulated"], &report["rows"][0]["name"]), (&Value::from(true), &Value::from("rope")));
}
