//! What tells one family of models from another, as data. Everything else about them is one transformer.

/// The architecture class that a model directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum ModelFamily {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`: Qwen 2 and Qwen 2.5.
    Qwen2,
    /// `Qwen3ForCausalLM`: the dense models of Qwen 3.
    Qwen3,
}

/// The differences of a family from Llama.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of its `config.json`.
    pub model_type: &'static str,
    /// Its class in Transformers, which `architectures` names.
    pub class: &'static str,
    /// Whether q_proj, k_proj and v_proj have biases.
    pub query_key_value_bias: bool,
    /// Whether each query head and each key head has an RMS norm before it is rotated.
    pub head_norms: bool,
    /// What holds where `config.json` does not have a key.
    pub absent: Absent,
    /// The keys of the sliding window.
    pub window: WindowKeys,
}

/// What a family's class in Transformers takes where `config.json` does not have a key. Sizes that have no place here must
/// be stated.
#[derive(Debug)]
pub struct Absent {
    /// `num_key_value_heads`; without a number, as many as there are attention heads.
    pub num_key_value_heads: Option<usize>,
    /// `head_dim`; without a number, hidden size / attention heads.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`.
    pub max_position_embeddings: usize,
}

/// The keys of `config.json` that give a family's layers a sliding window.
#[derive(Debug)]
pub enum WindowKeys {
    /// None: its layers have no window.
    None,
    /// `sliding_window`, for all layers; null is no window.
    ForAllLayers {
        /// The window where the key is absent.
        absent: usize,
    },
    /// `sliding_window`, where `use_sliding_window` is true, for the layers from `max_window_layers` on.
    BehindLayers {
        /// The window where its key is absent.
        absent: usize,
        /// `max_window_layers` where it is absent.
        absent_layers: usize,
    },
}

impl ModelFamily {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// How it differs from Llama.
    pub fn description(self) -> &'static Family {
        match self {
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
        }
    }
}

const LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    query_key_value_bias: false,
    head_norms: false,
    absent: Absent { num_key_value_heads: None, head_dim: None, max_position_embeddings: 2048 },
    window: WindowKeys::None,
};

const MISTRAL: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    absent: Absent { num_key_value_heads: Some(8), head_dim: None, max_position_embeddings: 131_072 },
    window: WindowKeys::ForAllLayers { absent: 4096 },
    ..LLAMA
};

const QWEN2: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    query_key_value_bias: true,
    absent: Absent { num_key_value_heads: Some(32), head_dim: None, max_position_embeddings: 32_768 },
    window: WindowKeys::BehindLayers { absent: 4096, absent_layers: 28 },
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    query_key_value_bias: false,
    head_norms: true,
    absent: Absent { num_key_value_heads: Some(32), head_dim: Some(128), max_position_embeddings: 32_768 },
    ..QWEN2
};
