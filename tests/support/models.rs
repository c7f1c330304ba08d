//! Models to test on: the reference folders of `tests/fixtures`, and smaller ones that are made up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use temper::huggingface::{ModelDirectory, read_adapter};
use temper::model::{Adapter, Model, ModelConfig, ModelFamily, Parameters, RopeScaling};
use temper::objective::{Evaluator, Subject};
use temper::ops::Backend;

/// The reference folders, one for each kind of model.
pub const FOLDERS: [&str; 7] = ["llama3", "llama31", "llama32-tied", "mistral", "qwen2", "qwen3", "qwen3-yarn"];

/// A path below `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The `config.json` of a model of 20 tokens and two layers.
pub const TINY_CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
  "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "max_position_embeddings": 64, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
}"#;

/// A Llama of two layers and 37 tokens, whose sizes share few factors.
pub fn tiny() -> ModelConfig {
    ModelConfig {
        family: ModelFamily::Llama,
        vocab_size: 37,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Default,
        sliding_window: None,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
        dtype: None,
    }
}

/// A reference folder's model with its adapter, on a device.
pub struct Adapted<B: Backend> {
    pub path: PathBuf,
    pub model: Arc<Model<B>>,
    pub weights: Parameters<B>,
    pub adapter: Adapter<B>,
}

impl<B: Backend> Adapted<B> {
    /// Opens a folder; `positions` is how long a text may be, `window` the width of sliding attention.
    pub fn open(backend: &B, folder: &str, positions: usize, window: Option<usize>) -> Self {
        let path = fixture(folder);
        let directory = ModelDirectory::open(&path).unwrap();
        let config = ModelConfig { sliding_window: window, ..directory.config.clone() };
        let (adapter_config, factors) = read_adapter(&path.join("adapter"), &config).unwrap();
        let model = Arc::new(Model::new(backend.clone(), config, positions).unwrap());
        let values = directory.read_weights().unwrap();
        let weights = Parameters::from_host(backend, "weights", model.layout(), &values).unwrap();
        let mut adapter = Adapter::zeros(backend, &model.config, adapter_config).unwrap();
        adapter.parameters.upload(backend, &factors).unwrap();
        Self { path, model, weights, adapter }
    }

    /// The model without its adapter.
    pub fn plain(&self) -> Subject<'_, B> {
        Subject::plain(&self.weights)
    }

    /// The model with its adapter.
    pub fn adapted(&self) -> Subject<'_, B> {
        Subject { adapter: Some(&self.adapter), ..self.plain() }
    }

    /// Passes over batches of up to 256 tokens.
    pub fn evaluator(&self) -> Evaluator<B> {
        Evaluator::new(Arc::clone(&self.model), 256, &[&self.adapter]).unwrap()
    }
}
