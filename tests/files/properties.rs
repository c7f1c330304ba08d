//! Properties of the readers of strangers' files: valid files with any one thing replaced, removed or damaged, and files of
//! any bytes, are read or refused in one line that names a file. Nothing panics, and what is accepted can be used.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use temper::Error;
use temper::huggingface::{ExportDType, ModelDirectory, TensorFile, read_adapter, write_adapter, write_model};
use temper::model::{AdapterConfig, AdapterLayout, ModelConfig, ModelLayout, Projection, merge_adapter};

/// A tiny model in one file, the same one behind an index, and an adapter.
struct Originals {
    _home: tempfile::TempDir,
    config: Value,
    weights: Vec<u8>,
    index: Value,
    adapter: Value,
    factors: Vec<u8>,
}

static ORIGINALS: LazyLock<Originals> = LazyLock::new(|| {
    let home = tempfile::tempdir().unwrap();
    let text = json!({
        "model_type": "mistral", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 16, "eos_token_id": [2, 3],
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    });
    let config = ModelConfig::from_json(&text.to_string(), Path::new("config.json")).unwrap();
    let layout = ModelLayout::new(&config).unwrap();
    let weights: Vec<f32> = (0..layout.len()).map(|i| (i % 7) as f32).collect();
    write_model(&home.path().join("model"), &config, None, &weights, ExportDType::Bf16).unwrap();
    let targets = [Projection::QProj, Projection::UpProj].into();
    let lora = AdapterConfig { rank: 2, alpha: 4.0, dropout: 0.1, rank_stabilised: false, targets };
    let factors = vec![0.5; AdapterLayout::new(&config, &lora).unwrap().len()];
    write_adapter(&home.path().join("adapter"), &config, &lora, &factors, Path::new("base")).unwrap();
    let read = |path: &str| fs::read(home.path().join(path)).unwrap();
    let json = |path: &str| serde_json::from_slice(&read(path)).unwrap();
    let map: Map<String, Value> =
        layout.entries().iter().map(|e| (e.name.clone(), json!("part.safetensors"))).collect();
    Originals {
        config: json("model/config.json"),
        weights: read("model/model.safetensors"),
        index: json!({"metadata": {"total_size": 2 * layout.len()}, "weight_map": map}),
        adapter: json("adapter/adapter_config.json"),
        factors: read("adapter/adapter_model.safetensors"),
        _home: home,
    }
});

/// Values that readers of JSON trip over.
fn any_json() -> impl Strategy<Value = Value> {
    let edges = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(2),
        json!(-1),
        json!(1.5),
        json!(1e18),
        json!(1e308),
        json!(1e-320),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(65_536),
        json!(16_777_216),
        json!([]),
        json!({}),
        json!([[[]]]),
        json!(""),
        json!(".."),
        json!("/"),
        json!("/dev/zero"),
        json!("a\nb"),
        json!("\u{0}"),
        json!("llama"),
        json!("linear"),
        json!("default"),
        json!("F32"),
        json!("BF16"),
        json!("part.safetensors"),
        json!("../part.safetensors"),
    ];
    let leaf = prop_oneof![
        prop::sample::select(edges.to_vec()),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..64).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map(".{0,4}", inner, 0..3).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// What happens to one place of a JSON document.
#[derive(Clone, Debug)]
enum Change {
    Replace(Value),
    Remove,
    Rename(String),
}

fn any_change() -> impl Strategy<Value = (Index, Change)> {
    let change = prop_oneof![4 => any_json().prop_map(Change::Replace), 1 => Just(Change::Remove), 1 => ".{0,6}".prop_map(Change::Rename)];
    (any::<Index>(), change)
}

/// The keys and list places that lead to every value below the top.
fn places(value: &Value, prefix: &str, found: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, child)| (escape(key), child)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, child)| (i.to_string(), child)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let path = format!("{prefix}/{key}");
        found.push(path.clone());
        places(child, &path, found);
    }
}

fn changed(original: &Value, changes: &[(Index, Change)]) -> Value {
    let mut document = original.clone();
    for (index, change) in changes {
        let mut all = Vec::new();
        places(&document, "", &mut all);
        if all.is_empty() {
            continue;
        }
        let path = index.get(&all);
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        match (change, parent) {
            (Change::Replace(value), _) => *document.pointer_mut(path).unwrap() = value.clone(),
            (_, Value::Array(list)) => drop(list.remove(key.parse().unwrap())),
            (Change::Remove, Value::Object(map)) => drop(map.shift_remove(&key)),
            (Change::Rename(name), Value::Object(map)) => {
                let value = map.shift_remove(&key).unwrap();
                map.insert(name.clone(), value);
            }
            _ => {}
        }
    }
    document
}

/// An error must be one line of bounded length that names a file of the directory.
fn is_fit(error: &Error) -> Result<(), TestCaseError> {
    let message = error.to_string();
    prop_assert!(message.lines().count() == 1 && message.len() < 8000, "{}", message);
    prop_assert!(!message.contains(|c: char| c.is_control()), "{:?}", message);
    Ok(())
}

/// Opens, reads and uses a model directory as far as it goes.
fn use_model(path: &Path) -> Result<bool, TestCaseError> {
    let directory = match ModelDirectory::open(path) {
        Ok(directory) => directory,
        Err(error) => return is_fit(&error).map(|()| false),
    };
    prop_assert!(directory.config.rope_frequencies().iter().all(|f| f.is_finite()));
    match directory.read_weights() {
        Ok(weights) => prop_assert_eq!(weights.len() as u64, directory.config.parameter_count()),
        Err(error) => is_fit(&error)?,
    }
    Ok(true)
}

fn use_adapter(path: &Path, model: &ModelConfig) -> Result<bool, TestCaseError> {
    let (config, factors) = match read_adapter(path, model) {
        Ok(adapter) => adapter,
        Err(error) => return is_fit(&error).map(|()| false),
    };
    prop_assert!(config.scale().is_finite());
    let mut weights = vec![0.0; ModelLayout::new(model).unwrap().len()];
    merge_adapter(model, &mut weights, &config, &factors).unwrap();
    Ok(true)
}

/// A scratch directory of these files.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(home.path().join(name), bytes).unwrap();
    }
    home
}

fn model_config() -> ModelConfig {
    ModelConfig::from_json(&ORIGINALS.config.to_string(), Path::new("config.json")).unwrap()
}

/// A safetensors file with this header and the data of `original`.
fn with_header(original: &[u8], header: &Value) -> Vec<u8> {
    let header = header.to_string();
    let (_, data) = split(original);
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn split(file: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + length]).unwrap(), &file[8 + length..])
}

/// Bytes replaced, inserted or cut off.
fn damaged(original: &[u8], at: Index, replacement: &[u8], cut: bool) -> Vec<u8> {
    let at = at.index(original.len());
    let rest = if cut { original.len() } else { (at + replacement.len()).min(original.len()) };
    [&original[..at], replacement, &original[rest..]].concat()
}

/// The unchanged originals are accepted: the properties below begin at valid files.
#[test]
fn the_originals_are_valid() {
    let o = &*ORIGINALS;
    let config = o.config.to_string();
    let home = directory(&[("config.json", config.as_bytes()), ("model.safetensors", &o.weights)]);
    assert!(use_model(home.path()).unwrap());
    let index = o.index.to_string();
    let files: [(&str, &[u8]); 3] = [
        ("config.json", config.as_bytes()),
        ("part.safetensors", &o.weights),
        ("model.safetensors.index.json", index.as_bytes()),
    ];
    assert!(use_model(directory(&files).path()).unwrap());
    let adapter = o.adapter.to_string();
    let files: [(&str, &[u8]); 2] =
        [("adapter_config.json", adapter.as_bytes()), ("adapter_model.safetensors", &o.factors)];
    assert!(use_adapter(directory(&files).path(), &model_config()).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_changed_configuration_is_used_or_refused(changes in prop::collection::vec(any_change(), 1..4)) {
        let config = changed(&ORIGINALS.config, &changes).to_string();
        use_model(directory(&[("config.json", config.as_bytes()), ("model.safetensors", &ORIGINALS.weights)]).path())?;
    }

    #[test]
    fn a_changed_index_is_used_or_refused(changes in prop::collection::vec(any_change(), 1..4)) {
        let config = ORIGINALS.config.to_string();
        let index = changed(&ORIGINALS.index, &changes).to_string();
        let home = directory(&[
            ("config.json", config.as_bytes()),
            ("part.safetensors", &ORIGINALS.weights),
            ("model.safetensors.index.json", index.as_bytes()),
        ]);
        use_model(home.path())?;
    }

    #[test]
    fn a_changed_adapter_configuration_is_used_or_refused(changes in prop::collection::vec(any_change(), 1..4)) {
        let settings = changed(&ORIGINALS.adapter, &changes).to_string();
        let files = [("adapter_config.json", settings.as_bytes()), ("adapter_model.safetensors", &ORIGINALS.factors[..])];
        use_adapter(directory(&files).path(), &model_config())?;
    }

    #[test]
    fn a_changed_header_is_used_or_refused(changes in prop::collection::vec(any_change(), 1..4)) {
        let header = changed(&split(&ORIGINALS.weights).0, &changes);
        let config = ORIGINALS.config.to_string();
        let weights = with_header(&ORIGINALS.weights, &header);
        use_model(directory(&[("config.json", config.as_bytes()), ("model.safetensors", &weights)]).path())?;
        let factors = with_header(&ORIGINALS.factors, &changed(&split(&ORIGINALS.factors).0, &changes));
        let settings = ORIGINALS.adapter.to_string();
        let files = [("adapter_config.json", settings.as_bytes()), ("adapter_model.safetensors", &factors[..])];
        use_adapter(directory(&files).path(), &model_config())?;
    }

    #[test]
    fn damaged_bytes_anywhere_are_used_or_refused(
        at in any::<Index>(), bytes in prop::collection::vec(any::<u8>(), 0..9), cut in any::<bool>(), which in 0usize..5,
    ) {
        let o = &*ORIGINALS;
        let mut files = [
            ("config.json", o.config.to_string().into_bytes()),
            ("part.safetensors", o.weights.clone()),
            ("model.safetensors.index.json", o.index.to_string().into_bytes()),
            ("adapter_config.json", o.adapter.to_string().into_bytes()),
            ("adapter_model.safetensors", o.factors.clone()),
        ];
        files[which].1 = damaged(&files[which].1, at, &bytes, cut);
        let home = directory(&files.each_ref().map(|(name, bytes)| (*name, &bytes[..])));
        use_model(home.path())?;
        use_adapter(home.path(), &model_config())?;
    }

    #[test]
    fn files_of_any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), which in 0usize..4) {
        let o = &*ORIGINALS;
        let names = ["config.json", "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"];
        let home = directory(&[
            ("config.json", o.config.to_string().as_bytes()),
            ("part.safetensors", &o.weights),
            ("model.safetensors.index.json", o.index.to_string().as_bytes()),
            ("adapter_config.json", o.adapter.to_string().as_bytes()),
            ("adapter_model.safetensors", &o.factors),
            (names[which], &bytes),
        ]);
        let model = use_model(home.path())?;
        let adapter = use_adapter(home.path(), &model_config())?;
        prop_assert_eq!((model, adapter), (which > 1, which < 2));
    }

    /// Any shape at any alignment in any dtype; the oracle converts one element at a time from the bytes.
    #[test]
    fn tensors_are_converted_element_by_element(
        rows in 1usize..5, columns in 1usize..40, odd in 0usize..4, seed in any::<u64>(), padding in 0usize..8,
    ) {
        let count = rows * columns;
        let mut state = seed | 1;
        let mut next = || { state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1); (state >> 33) as u32 };
        for (dtype, width) in [("F32", 4), ("BF16", 2), ("F16", 2), ("F64", 8), ("I64", 8), ("I32", 4), ("I16", 2), ("U8", 1)] {
            let data: Vec<u8> = (0..odd + count * width).map(|_| next() as u8).collect();
            let mut header = json!({"t": {"dtype": dtype, "shape": [rows, columns], "data_offsets": [odd, data.len()]}});
            if odd > 0 {
                header["odd"] = json!({"dtype": "U8", "shape": [odd], "data_offsets": [0, odd]});
            }
            let header = format!("{header}{}", " ".repeat(padding));
            let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
            let home = directory(&[("x.safetensors", &file)]);
            let tensors = TensorFile::open(&home.path().join("x.safetensors")).unwrap();
            let elements = data[odd..].chunks_exact(width);
            if dtype.starts_with(['F', 'B']) {
                let expected: Vec<u32> = elements.map(|bytes| oracle_f32(dtype, bytes).to_bits()).collect();
                let found: Vec<u32> = tensors.read_f32("t").unwrap().iter().map(|x| x.to_bits()).collect();
                let same = |(a, b): (&u32, &u32)| a == b || (f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan());
                prop_assert!(found.len() == expected.len() && found.iter().zip(&expected).all(same), "{}", dtype);
            } else {
                prop_assert!(tensors.read_f32("t").is_err());
            }
        }
    }
}

/// IEEE decoding by hand: sign, exponent, fraction.
fn oracle_f32(dtype: &str, bytes: &[u8]) -> f32 {
    let bits = bytes.iter().rev().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
    let (exponent_bits, fraction_bits) = match dtype {
        "F32" => (8, 23),
        "BF16" => (8, 7),
        "F16" => (5, 10),
        _ => (11, 52),
    };
    let sign = if bits >> (exponent_bits + fraction_bits) == 1 { -1.0 } else { 1.0 };
    let exponent = (bits >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
    let fraction = (bits & ((1 << fraction_bits) - 1)) as f64 / 2f64.powi(fraction_bits);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let magnitude = match exponent {
        e if e == 2 * bias + 1 && fraction == 0.0 => f64::INFINITY,
        e if e == 2 * bias + 1 => f64::NAN,
        0 => fraction * 2f64.powi(1 - bias),
        e => (1.0 + fraction) * 2f64.powi(e - bias),
    };
    (sign * magnitude) as f32
}
