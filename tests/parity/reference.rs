//! What the parity tests share: the reference folders, and what each backend is held to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use temper::huggingface::{ModelDirectory, TensorFile};
use temper::model::{Batch, Model, Parameters};
use temper::objective::Evaluator;
use temper::ops::{Backend, IGNORE_INDEX};

use crate::support::models::fixture;
use crate::support::numbers::integers;

/// The largest errors that a backend may make, as relative norms.
pub struct Bounds {
    /// Logits and hidden states.
    pub forward: f64,
    /// A loss: |a / b − 1|.
    pub loss: f64,
    /// A gradient tensor.
    pub gradient: f64,
    /// A gradient tensor of random mapping: of unit size for each token, with a sign that turns where its cosine is near 0.
    pub mapping_gradient: f64,
    /// Preference margins, which are differences of sums.
    pub margins: f64,
    /// The weights that eight steps of an attack end at, as a fraction of how far they moved.
    pub update: f64,
    /// The same of three outer steps of the nested loop; e keeps the cosine of the two updates above √(1 − e²).
    pub nested: f64,
    /// The norm of an outer gradient: |a / b − 1|.
    pub outer_norm: f64,
    /// Folders on which rounding weighs more.
    pub rough: &'static [Rough],
}

/// What a backend is held to on one folder, where PyTorch itself goes beyond the other folders' bounds.
pub struct Rough {
    pub folder: &'static str,
    /// In place of [`Bounds::margins`].
    pub margins: f64,
    /// In place of [`Bounds::mapping_gradient`].
    pub mapping_gradient: f64,
}

impl Bounds {
    pub fn margins_of(&self, folder: &str) -> f64 {
        self.rough.iter().find(|rough| rough.folder == folder).map_or(self.margins, |rough| rough.margins)
    }

    pub fn mapping_gradient_of(&self, folder: &str) -> f64 {
        let rough = self.rough.iter().find(|rough| rough.folder == folder);
        rough.map_or(self.mapping_gradient, |rough| rough.mapping_gradient)
    }
}

/// f32 on any device. Two attention implementations of PyTorch differ by 2e-6 (forward) and 1e-5 (gradients) here, and
/// PyTorch against itself by 4e-4 after the nested loop.
pub const F32: Bounds = Bounds {
    forward: 1e-5,
    loss: 1e-5,
    gradient: 2e-5,
    mapping_gradient: 2e-5,
    margins: 1e-4,
    update: 1e-4,
    nested: 2e-3,
    outer_norm: 1e-3,
    rough: &[],
};

/// bf16 weights and activations (2⁻⁸ apart) against a reference in f32: an error of 2⁻⁹ in every operand, which adds up
/// over two layers to about 1e-2 in the forward pass and twice that in gradients. An update divides gradients by their
/// own size (Adam, Adagrad), so that an element that is small against its tensor's error counts as much as any other.
/// 0.14 after the nested loop is a cosine of at least 0.99 between our update and the authors'. Three margins
/// are few: of 200 random draws of such pairs PyTorch in bf16 is for 195 at most 3.4e-2 (`qwen3`) and 4.8e-2 (`qwen3-yarn`)
/// from its own f32. On `qwen3-yarn` its worst gradient of random mapping is 0.36 and 0.24 from f32, by its two attentions.
pub const BF16: Bounds = Bounds {
    forward: 1.5e-2,
    loss: 2.5e-3,
    gradient: 4e-2,
    mapping_gradient: 0.12,
    margins: 2.5e-2,
    update: 0.2,
    nested: 0.14,
    outer_norm: 5e-3,
    rough: &[
        Rough { folder: "qwen3", margins: 3.4e-2, mapping_gradient: 0.12 },
        Rough { folder: "qwen3-yarn", margins: 4.8e-2, mapping_gradient: 0.3 },
    ],
};

/// A folder of `tests/fixtures`: a tiny model, and what PyTorch, Transformers and PEFT compute with it.
pub struct Reference<B: Backend> {
    pub folder: String,
    pub path: PathBuf,
    pub tensors: TensorFile,
    pub scalars: serde_json::Value,
    pub model: Arc<Model<B>>,
    pub weights: Parameters<B>,
}

impl<B: Backend> Reference<B> {
    pub fn open(backend: &B, name: &str) -> Self {
        let path = fixture(name);
        let directory = ModelDirectory::open(&path).unwrap();
        let model = Arc::new(Model::new(backend.clone(), directory.config.clone(), 256).unwrap());
        let weights = load(&model, &path);
        let scalars = std::fs::read_to_string(path.join("reference.json")).unwrap();
        Self {
            tensors: TensorFile::open(&path.join("reference.safetensors")).unwrap(),
            scalars: serde_json::from_str(&scalars).unwrap(),
            model,
            weights,
            path,
            folder: name.into(),
        }
    }

    pub fn backend(&self) -> &B {
        &self.model.backend
    }

    /// The model of the `base` folder: the frozen reference of the retain loss.
    pub fn base(&self) -> Parameters<B> {
        load(&self.model, &self.path.join("base"))
    }

    pub fn evaluator(&self) -> Evaluator<B> {
        Evaluator::new(Arc::clone(&self.model), 256, &[]).unwrap()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.tensors.read_f32(name).unwrap()
    }

    pub fn scalar(&self, name: &str) -> f64 {
        self.scalars[name].as_f64().unwrap_or_else(|| panic!("no number {name} in reference.json"))
    }

    pub fn losses(&self, name: &str) -> Vec<f64> {
        self.scalars[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    /// A tensor of ids [rows, length] as a batch of whole rows, all of it to be learned.
    pub fn batch(&self, name: &str) -> Batch {
        rows(&self.tensors, name)
    }
}

/// See [`Reference::batch`].
pub fn rows(tensors: &TensorFile, name: &str) -> Batch {
    let ids: Vec<u32> = integers(tensors, name).iter().map(|&id| id as u32).collect();
    let length = tensors.info(name).unwrap().shape[1];
    let mut batch = Batch::default();
    for row in ids.chunks(length) {
        batch.push(row, row, length);
    }
    batch
}

pub fn load<B: Backend>(model: &Model<B>, path: &Path) -> Parameters<B> {
    let values = ModelDirectory::open(path).unwrap().read_weights().unwrap();
    Parameters::from_host(&model.backend, "weights", model.layout(), &values).unwrap()
}

/// The right-padded batch `input_ids` with its `attention_mask` and `labels`.
pub fn padded_batch<B: Backend>(reference: &Reference<B>) -> Batch {
    let read = |name: &str| integers(&reference.tensors, name);
    let ids = read("input_ids");
    let mask = read("attention_mask");
    let labels = read("labels");
    let length = reference.tensors.info("input_ids").unwrap().shape[1];
    let mut batch = Batch::default();
    for row in 0..ids.len() / length {
        let at = row * length..(row + 1) * length;
        let tokens: Vec<u32> = ids[at.clone()].iter().map(|&id| id as u32).collect();
        let labels: Vec<u32> =
            labels[at.clone()].iter().map(|&l| if l < 0 { IGNORE_INDEX } else { l as u32 }).collect();
        let valid = mask[at].iter().filter(|&&m| m == 1).count();
        batch.push(&tokens, &labels, valid);
    }
    batch
}

/// Fails with the quantity's name where `error` is above `bound` or not a number.
pub fn within(what: &str, error: f64, bound: f64) {
    assert!(error <= bound, "{what}: {error:.3e} is above {bound:.1e}");
}
