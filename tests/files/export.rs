//! What is written is what was meant: dtypes rounded to nearest even, configurations carried over key by key, companions
//! copied, adapters and merged weights exact, and nothing left behind by a failure.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use temper::huggingface::{ExportDType, ModelDirectory, TensorFile, read_adapter, write_adapter, write_model};
use temper::model::{AdapterConfig, AdapterLayout, DeclaredDType, ModelConfig, ModelLayout, Projection, merge_adapter};

use crate::support::models::{FOLDERS, fixture, tiny};

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The weights of a fixture are exact in bf16, so that every dtype but f16 must give back every bit.
#[test]
fn models_survive_writing_and_reading_in_every_dtype() {
    for folder in FOLDERS {
        let home = tempfile::tempdir().unwrap();
        let source = ModelDirectory::open(&fixture(folder)).unwrap();
        let weights = source.read_weights().unwrap();
        for (dtype, declared, exact) in [
            (ExportDType::F32, DeclaredDType::Float32, true),
            (ExportDType::Bf16, DeclaredDType::BFloat16, true),
            (ExportDType::F16, DeclaredDType::Float16, false),
        ] {
            for (with_source, name) in [(Some(source.path.as_path()), "carried"), (None, "fresh")] {
                let path = home.path().join(format!("{name}-{dtype:?}"));
                write_model(&path, &source.config, with_source, &weights, dtype).unwrap();
                let copy = ModelDirectory::open(&path).unwrap();
                let expected = ModelConfig { dtype: Some(declared), ..source.config.clone() };
                assert_eq!((copy.config.clone(), copy.weights_dtype()), (expected, dtype), "{folder} {name}");
                let read = copy.read_weights().unwrap();
                if exact {
                    assert!(read == weights, "{folder} {name} {dtype:?}")
                } else {
                    assert!(read.iter().zip(&weights).all(|(a, b)| (a - b).abs() <= b.abs() / 2048.0 + 3e-8))
                }
            }
        }
    }
}

/// Halfway cases of both parities, by hand: bf16 has 8 bits of mantissa with the hidden one, f16 has 11.
#[test]
fn halves_round_to_even() {
    let home = tempfile::tempdir().unwrap();
    let mut weights = vec![0.0; ModelLayout::new(&tiny()).unwrap().len()];
    let step = |bits: i32| f32::powi(2.0, -bits);
    for (dtype, bits) in [(ExportDType::Bf16, 8), (ExportDType::F16, 11)] {
        let half = step(bits);
        let cases = [
            (1.0 + half, 1.0),
            (1.0 + 3.0 * half, 1.0 + 4.0 * half),
            (1.0 + half * 1.25, 1.0 + 2.0 * half),
            (-1.0 - half, -1.0),
            (-1.0 - 3.0 * half, -1.0 - 4.0 * half),
            (1.0 + half * 0.75, 1.0),
        ];
        weights.iter_mut().zip(cases).for_each(|(weight, (value, _))| *weight = value);
        let path = home.path().join(dtype.name());
        write_model(&path, &tiny(), None, &weights, dtype).unwrap();
        let read = ModelDirectory::open(&path).unwrap().read_weights().unwrap();
        for (found, (value, rounded)) in read.iter().zip(cases) {
            assert_eq!(*found, rounded, "{dtype:?} of {value:e}");
        }
    }
}

#[test]
fn numbers_that_half_precision_cannot_hold_are_refused_and_leave_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut weights = vec![1.0; ModelLayout::new(&tiny()).unwrap().len()];
    let last = weights.len() - 1;
    weights[last] = -65_520.0;
    let error = write_model(&home.path().join("out"), &tiny(), None, &weights, ExportDType::F16).unwrap_err();
    assert!(error.to_string().contains("`lm_head.weight`") && error.to_string().contains("float16"), "{error}");
    assert!(names(home.path()).is_empty(), "{:?}", names(home.path()));
    weights[last] = -65_504.0;
    write_model(&home.path().join("out"), &tiny(), None, &weights, ExportDType::F16).unwrap();
    assert_eq!(names(home.path()), ["out"]);
}

#[test]
fn a_number_of_weights_that_does_not_fit_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    assert!(write_model(&home.path().join("out"), &tiny(), None, &[1.0; 7], ExportDType::F32).is_err());
    let adapter = AdapterConfig {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        rank_stabilised: false,
        targets: [Projection::QProj].into(),
    };
    assert!(write_adapter(&home.path().join("out"), &tiny(), &adapter, &[1.0; 7], Path::new("base")).is_err());
    assert!(names(home.path()).is_empty());
}

/// A source with keys of other programs, both spellings of the dtype, and tokenizer files.
#[test]
fn the_source_is_carried_over_and_only_the_dtype_changes() {
    let home = tempfile::tempdir().unwrap();
    let source = home.path().join("source");
    let out = home.path().join("out");
    let weights = vec![0.5; ModelLayout::new(&tiny()).unwrap().len()];
    for spelling in [&["dtype"][..], &["torch_dtype"], &["torch_dtype", "dtype"], &[]] {
        write_model(&source, &tiny(), None, &weights, ExportDType::F32).unwrap();
        let mut config = read_json(&source.join("config.json"));
        let map = config.as_object_mut().unwrap();
        map.retain(|key, _| !key.ends_with("dtype"));
        map.extend(spelling.iter().map(|key| (key.to_string(), json!("float32"))));
        map.extend([("use_cache".to_string(), json!(false)), ("made_up".to_string(), json!({"a": [1, 2.5, null]}))]);
        fs::write(source.join("config.json"), config.to_string()).unwrap();
        for (name, text) in [("tokenizer.json", "{}"), ("chat_template.jinja", "a\r\nb"), ("merges.txt", "x")] {
            fs::write(source.join(name), text).unwrap();
        }
        fs::write(source.join("pytorch_model.bin"), "pickle").unwrap();
        fs::write(source.join("modeling_evil.py"), "code").unwrap();

        write_model(&out, &tiny(), Some(&source), &weights, ExportDType::Bf16).unwrap();
        let expected = ["chat_template.jinja", "config.json", "merges.txt", "model.safetensors", "tokenizer.json"];
        assert_eq!(names(&out), expected);
        assert_eq!(fs::read(out.join("chat_template.jinja")).unwrap(), b"a\r\nb");
        let written = if spelling.is_empty() { &["torch_dtype"][..] } else { spelling };
        config.as_object_mut().unwrap().extend(written.iter().map(|key| (key.to_string(), json!("bfloat16"))));
        assert_eq!(read_json(&out.join("config.json")), config, "{spelling:?}");
        fs::remove_dir_all(&source).unwrap();
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_exists_is_never_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let weights = vec![0.5; ModelLayout::new(&tiny()).unwrap().len()];
    let out = home.path().join("a/b/out");
    fs::create_dir_all(&out).unwrap();
    write_model(&out, &tiny(), None, &weights, ExportDType::F32).unwrap();
    let before = fs::read(out.join("model.safetensors")).unwrap();
    let error = write_model(&out, &tiny(), None, &weights, ExportDType::Bf16).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert!(fs::read(out.join("model.safetensors")).unwrap() == before);
    let file = home.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(write_model(&file, &tiny(), None, &weights, ExportDType::F32).is_err());
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // A source that cannot be read is found after the weights were written; the half-made directory goes.
    let missing = home.path().join("missing");
    assert!(write_model(&home.path().join("x"), &tiny(), Some(&missing), &weights, ExportDType::F32).is_err());
    assert_eq!(names(home.path()), ["a", "file"]);
}

/// PEFT wrote the fixture's adapters: the same tensors under the same names, and settings that mean the same.
#[test]
fn adapters_are_written_as_peft_writes_them() {
    let home = tempfile::tempdir().unwrap();
    for folder in FOLDERS {
        let model = ModelConfig::from_directory(&fixture(folder)).unwrap();
        let theirs = fixture(folder).join("adapter");
        let (config, factors) = read_adapter(&theirs, &model).unwrap();
        assert_eq!((config.rank, config.alpha, config.scale()), (8, 16.0, 2.0));
        assert_eq!(config.targets, Projection::ALL.into());
        let ours = home.path().join(folder);
        write_adapter(&ours, &model, &config, &factors, &fixture(folder)).unwrap();
        let files = [&ours, &theirs].map(|path| TensorFile::open(&path.join("adapter_model.safetensors")).unwrap());
        assert_eq!(files[0].names(), files[1].names());
        for name in files[0].names() {
            assert_eq!(files[0].info(name), files[1].info(name));
            assert_eq!(files[0].read_f32(name).unwrap(), files[1].read_f32(name).unwrap());
        }
        let [ours, theirs] = [&ours, &theirs].map(|path| read_json(&path.join("adapter_config.json")));
        for (key, value) in ours.as_object().unwrap() {
            match key.as_str() {
                "base_model_name_or_path" => assert_eq!(value, fixture(folder).to_str().unwrap()),
                "target_modules" => assert_eq!(value.as_array().unwrap().len(), theirs[key].as_array().unwrap().len()),
                _ => assert_eq!(value, &theirs[key], "{key}"),
            }
        }
    }
}

/// An adapter of a fixture with other settings, of which the file has the factors of some modules only.
fn partial_adapter(home: &Path, settings: Value, keep: impl Fn(&str) -> bool) -> std::path::PathBuf {
    let source = fixture("llama3").join("adapter");
    let file = TensorFile::open(&source.join("adapter_model.safetensors")).unwrap();
    let kept: Vec<&str> = file.names().into_iter().filter(|name| keep(name)).collect();
    let bytes: Vec<Vec<u8>> =
        kept.iter().map(|name| file.read_f32(name).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = kept.iter().zip(&bytes).map(|(name, bytes)| {
        let shape = file.info(name).unwrap().shape;
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap())
    });
    fs::create_dir_all(home).unwrap();
    safetensors::serialize_to_file(views, None, &home.join("adapter_model.safetensors")).unwrap();
    let mut config = read_json(&source.join("adapter_config.json"));
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    fs::write(home.join("adapter_config.json"), config.to_string()).unwrap();
    home.to_path_buf()
}

/// Excluded modules, full names, patterns and lists of layers: the factors that the file has are where they belong, those of
/// modules that are not adapted are zero, and one factor too many or too few is refused.
/// Which modules are adapted, by name.
type Keep<'a> = &'a dyn Fn(&str) -> bool;

#[test]
fn adapters_of_some_modules_are_read_as_peft_reads_them() {
    let home = tempfile::tempdir().unwrap();
    let model = ModelConfig::from_directory(&fixture("llama3")).unwrap();
    let whole = read_adapter(&fixture("llama3").join("adapter"), &model).unwrap();
    let whole_layout = AdapterLayout::new(&model, &whole.0).unwrap();
    let q_and_o = |name: &str| name.contains("q_proj") || name.contains("o_proj");
    let first = |name: &str| q_and_o(name) && name.contains("layers.0.");
    let others = ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"];
    let full = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"];
    let cases: [(Value, Keep); 5] = [
        (json!({"target_modules": "all-linear", "exclude_modules": others}), &q_and_o),
        (json!({"target_modules": full}), &first),
        (json!({"target_modules": r"model\.layers\.0\..*\.[qo]_proj"}), &first),
        (json!({"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0]}), &first),
        (json!({"target_modules": ["self_attn.q_proj", "o_proj"]}), &q_and_o),
    ];
    for (number, (settings, keep)) in cases.into_iter().enumerate() {
        let at = |name: &str| home.path().join(format!("{number}-{name}"));
        let (config, factors) = read_adapter(&partial_adapter(&at("right"), settings.clone(), keep), &model).unwrap();
        assert_eq!(config.targets, [Projection::QProj, Projection::OProj].into(), "{settings}");
        for entry in AdapterLayout::new(&model, &config).unwrap().entries() {
            let original = whole_layout.find(&entry.name).unwrap();
            let read = &factors[entry.block.range()];
            let expected = &whole.1[original.block.range()];
            assert!(
                if keep(&entry.name) { read == expected } else { read.iter().all(|&x| x == 0.0) },
                "{}",
                entry.name
            );
        }
        let missing = |name: &str| keep(name) && !name.contains("layers.0.self_attn.o_proj.lora_B");
        let extra = |name: &str| keep(name) || name.contains("layers.1.mlp.up_proj.lora_A");
        for (name, says, keep) in
            [("missing", "there is no tensor", &missing as &dyn Fn(&str) -> bool), ("extra", "no adapted", &extra)]
        {
            let message = read_adapter(&partial_adapter(&at(name), settings.clone(), keep), &model).unwrap_err();
            assert!(message.to_string().contains(says), "{settings}: {message}");
        }
    }
}

/// A second oracle for the product: a plain triple loop in f64, for plain and rank-stabilised scales and a part of the
/// projections; the rest must keep every bit.
#[test]
fn merging_adds_the_scaled_product_to_the_adapted_projections_alone() {
    for folder in FOLDERS {
        let directory = ModelDirectory::open(&fixture(folder)).unwrap();
        let before = directory.read_weights().unwrap();
        for (rank_stabilised, rank, targets) in
            [(false, 5, [Projection::KProj, Projection::DownProj].into()), (true, 3, Projection::ALL.into())]
        {
            let adapter = AdapterConfig { rank, alpha: 7.0, dropout: 0.0, rank_stabilised, targets };
            let layout = AdapterLayout::new(&directory.config, &adapter).unwrap();
            let factors: Vec<f32> = (0..layout.len()).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 997.0).collect();
            let mut merged = before.clone();
            merge_adapter(&directory.config, &mut merged, &adapter, &factors).unwrap();

            let scale = if rank_stabilised { 7.0 / 3f64.sqrt() } else { 7.0 / 5.0 };
            let mut difference = 0f64;
            let mut norm = 0f64;
            for entry in ModelLayout::new(&directory.config).unwrap().entries() {
                let stem = format!("base_model.model.{}", entry.name.trim_end_matches(".weight"));
                let factor =
                    |side| layout.find(&format!("{stem}.lora_{side}.weight")).map(|e| &factors[e.block.offset..]);
                for row in 0..entry.block.rows {
                    for column in 0..entry.block.cols {
                        let at = entry.block.offset + row * entry.block.cols + column;
                        let (Some(a), Some(b)) = (factor("A"), factor("B")) else {
                            assert_eq!(merged[at].to_bits(), before[at].to_bits(), "{}", entry.name);
                            continue;
                        };
                        let product = (0..rank)
                            .map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * entry.block.cols + column]));
                        let update = scale * product.sum::<f64>();
                        difference += (f64::from(merged[at]) - f64::from(before[at]) - update).powi(2);
                        norm += update.powi(2);
                    }
                }
            }
            assert!(norm > 1.0 && (difference / norm).sqrt() < 1e-6, "{folder}: {:e}", (difference / norm).sqrt());
        }
    }
}
