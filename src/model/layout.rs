//! Where each named weight lies in one flat buffer.
//!
//! All weights of a model (or of an adapter) live in one buffer, gradients and optimizer states in buffers of the same
//! shape, so that restoring weights, accumulating a meta-gradient and stepping an optimizer are one operation each.
//! Weights that share an input are neighbours (q, k, v; gate, up), so that they are one matrix to the model and still
//! separate tensors to a file.

use std::ops::Range;

use super::{AdapterConfig, ModelConfig, Projection};

/// A matrix inside the flat buffer. A vector has one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First element.
    pub offset: usize,
    /// Number of rows (output features).
    pub rows: usize,
    /// Number of columns (input features).
    pub cols: usize,
}

impl Block {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its elements' places in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// A named tensor of a weight file and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterEntry {
    /// The name in Hugging Face files.
    pub name: String,
    /// The shape in Hugging Face files.
    pub shape: Vec<usize>,
    /// The place in the flat buffer.
    pub block: Block,
}

/// The weights of one transformer layer, as the model multiplies with them.
#[derive(Clone, Copy, Debug)]
pub struct LayerBlocks {
    /// [1, d].
    pub input_layernorm: Block,
    /// q, k and v stacked: [(H+2G)·D, d].
    pub qkv: Block,
    /// [d, H·D].
    pub o_proj: Block,
    /// [1, d].
    pub post_attention_layernorm: Block,
    /// gate and up stacked: [2F, d].
    pub gate_up: Block,
    /// [d, F].
    pub down_proj: Block,
}

/// Names, shapes and places of all tensors of a flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterLayout {
    entries: Vec<ParameterEntry>,
    len: usize,
}

impl ParameterLayout {
    fn push(&mut self, name: String, shape: &[usize]) {
        let cols = *shape.last().unwrap_or(&1);
        let block = Block { offset: self.len, rows: shape.iter().product::<usize>() / cols.max(1), cols };
        self.len += block.len();
        self.entries.push(ParameterEntry { name, shape: shape.to_vec(), block });
    }

    /// The layout of a whole model: embedding, layers, final norm, and the head unless it is tied to the embedding.
    pub fn for_model(config: &ModelConfig) -> Self {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.attention().query_cols(), config.attention().key_value_cols());
        let mut layout = Self { entries: Vec::new(), len: 0 };
        layout.push("model.embed_tokens.weight".into(), &[config.vocab_size, d]);
        for layer in 0..config.num_hidden_layers {
            let mut push =
                |name: &str, shape: &[usize]| layout.push(format!("model.layers.{layer}.{name}.weight"), shape);
            push("input_layernorm", &[d]);
            push("self_attn.q_proj", &[q, d]);
            push("self_attn.k_proj", &[kv, d]);
            push("self_attn.v_proj", &[kv, d]);
            push("self_attn.o_proj", &[d, q]);
            push("post_attention_layernorm", &[d]);
            push("mlp.gate_proj", &[f, d]);
            push("mlp.up_proj", &[f, d]);
            push("mlp.down_proj", &[d, f]);
        }
        layout.push("model.norm.weight".into(), &[d]);
        if !config.tie_word_embeddings {
            layout.push("lm_head.weight".into(), &[config.vocab_size, d]);
        }
        layout
    }

    /// The layout of LoRA factors: for each layer and each target, A [r, in] and then B [out, r], under PEFT's names.
    pub fn for_adapter(config: &ModelConfig, adapter: &AdapterConfig) -> Self {
        let mut layout = Self { entries: Vec::new(), len: 0 };
        for layer in 0..config.num_hidden_layers {
            for projection in Projection::ALL.into_iter().filter(|p| adapter.targets.contains(p)) {
                let (out, input) = projection.shape(config);
                let stem = format!("base_model.model.model.layers.{layer}.{}", projection.path());
                layout.push(format!("{stem}.lora_A.weight"), &[adapter.rank, input]);
                layout.push(format!("{stem}.lora_B.weight"), &[out, adapter.rank]);
            }
        }
        layout
    }

    /// All tensors, in the order of their places.
    pub fn entries(&self) -> &[ParameterEntry] {
        &self.entries
    }

    /// Number of elements of the flat buffer, which is the number of parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no parameter at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&ParameterEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// `count` neighbours from entry `first` on as one matrix.
    fn stacked(&self, first: usize, count: usize) -> Block {
        let blocks = &self.entries[first..first + count];
        Block {
            offset: blocks[0].block.offset,
            rows: blocks.iter().map(|e| e.block.rows).sum(),
            cols: blocks[0].block.cols,
        }
    }

    /// [V, d]. Only for layouts made by [`ParameterLayout::for_model`], like all that follow.
    pub fn embed_tokens(&self) -> Block {
        self.entries[0].block
    }

    /// The blocks of one layer.
    pub fn layer(&self, layer: usize) -> LayerBlocks {
        let first = 1 + 9 * layer;
        LayerBlocks {
            input_layernorm: self.stacked(first, 1),
            qkv: self.stacked(first + 1, 3),
            o_proj: self.stacked(first + 4, 1),
            post_attention_layernorm: self.stacked(first + 5, 1),
            gate_up: self.stacked(first + 6, 2),
            down_proj: self.stacked(first + 8, 1),
        }
    }

    /// The places of all weights of one layer.
    pub fn layer_range(&self, layer: usize) -> Range<usize> {
        let blocks = self.layer(layer);
        blocks.input_layernorm.offset..blocks.down_proj.range().end
    }

    /// Elements of the largest part of a backward pass that keeps no whole gradient: a layer, or the embedding.
    pub fn largest_part(&self) -> usize {
        let layer = if self.entries.len() > 2 { self.layer_range(0).len() } else { 0 };
        layer.max(self.embed_tokens().len()).max(self.lm_head().len())
    }

    /// Whether the head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.lm_head() == self.embed_tokens()
    }

    /// The final norm, [1, d].
    pub fn final_norm(&self) -> Block {
        self.entries[1 + 9 * ((self.entries.len() - 2) / 9)].block
    }

    /// The language-model head, [V, d]: the embedding where they are tied.
    pub fn lm_head(&self) -> Block {
        if (self.entries.len() - 2) % 9 == 1 { self.entries[self.entries.len() - 1].block } else { self.embed_tokens() }
    }
}
