//! The place of each named weight in one flat buffer.
//!
//! All weights of a model (or of an adapter) live in one buffer, gradients and optimizer states in buffers of the same
//! shape, so that restoring weights, accumulating a meta-gradient and stepping an optimizer are one operation each.
//! Weights that share an input are neighbours (q, k, v; gate, up), so that they are one matrix to the model and still
//! separate tensors to a file.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::adapter::Site;
use super::{AdapterConfig, ModelConfig, Projection};
use crate::error::{Error, Result};

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

    /// This matrix with `below`, which has as many columns and follows it in the buffer, as one matrix.
    fn stacked_on(self, below: Self) -> Self {
        Self { rows: self.rows + below.rows, ..self }
    }

    /// This vector with `behind`, which follows it in the buffer, as one vector.
    fn joined_with(self, behind: Self) -> Self {
        Self { cols: self.cols + behind.cols, ..self }
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

/// Names, shapes and places of all tensors of a flat buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterLayout {
    entries: Vec<ParameterEntry>,
    len: usize,
}

impl ParameterLayout {
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

    /// Appends a tensor; `None` where its end cannot be addressed, in elements or in bytes.
    fn push(&mut self, name: String, shape: &[usize]) -> Option<Block> {
        const BYTES: usize = size_of::<f32>();
        let cols = *shape.last().unwrap_or(&1);
        let len = shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size))?;
        let end = self.len.checked_add(len)?;
        end.checked_mul(BYTES).filter(|&bytes| bytes <= isize::MAX as usize)?;
        let block = Block { offset: self.len, rows: len / cols.max(1), cols };
        self.len = end;
        self.entries.push(ParameterEntry { name, shape: shape.to_vec(), block });
        Some(block)
    }
}

/// The weights of one transformer layer, as the model multiplies with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBlocks {
    /// [1, d].
    pub input_layernorm: Block,
    /// q, k and v stacked: [(H+2G)·D, d].
    pub qkv: Block,
    /// The biases of q, k and v behind one another, [1, (H+2G)·D], in families that have them.
    pub qkv_bias: Option<Block>,
    /// The norm of query heads above the norm of key heads, [2, D], in families that have them.
    pub head_norms: Option<Block>,
    /// [d, H·D].
    pub o_proj: Block,
    /// [1, d].
    pub post_attention_layernorm: Block,
    /// gate and up stacked: [2F, d].
    pub gate_up: Block,
    /// [d, F].
    pub down_proj: Block,
    /// Each projection by itself, in the order of [`Projection::ALL`].
    projections: [Block; 7],
}

impl LayerBlocks {
    /// The weight of one projection, [out, in].
    pub fn projection(&self, projection: Projection) -> Block {
        self.projections[projection as usize]
    }

    /// The bias of the fused linear layer at a site.
    pub(super) fn bias(&self, site: Site) -> Option<Block> {
        match site {
            Site::Qkv => self.qkv_bias,
            Site::Output | Site::GateUp | Site::Down => None,
        }
    }

    /// The places of all weights of the layer.
    pub fn range(&self) -> Range<usize> {
        self.input_layernorm.offset..self.down_proj.range().end
    }
}

/// The layout of a whole model: embedding, layers, final norm, and the head unless it is tied to the embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLayout {
    parameters: Arc<ParameterLayout>,
    embed_tokens: Block,
    layers: Vec<LayerBlocks>,
    final_norm: Block,
    lm_head: Block,
}

impl ModelLayout {
    /// The layout of a model of this architecture.
    ///
    /// # Errors
    /// [`Error::Config`] for an architecture of more weights than a buffer can hold.
    pub fn new(config: &ModelConfig) -> Result<Self> {
        Self::checked(config).ok_or_else(|| {
            let problem = "its sizes describe more weights than a buffer can hold";
            Error::config("model", problem, "correct the sizes in its configuration")
        })
    }

    fn checked(config: &ModelConfig) -> Option<Self> {
        let d = config.hidden_size;
        let mut parameters = ParameterLayout::default();
        let embed_tokens = parameters.push("model.embed_tokens.weight".into(), &[config.vocab_size, d])?;
        let mut layers = Vec::new();
        for layer in 0..config.num_hidden_layers {
            layers.push(push_layer(&mut parameters, config, layer)?);
        }
        let final_norm = parameters.push("model.norm.weight".into(), &[d])?;
        let lm_head = if config.tie_word_embeddings {
            embed_tokens
        } else {
            parameters.push("lm_head.weight".into(), &[config.vocab_size, d])?
        };
        Some(Self { parameters: Arc::new(parameters), embed_tokens, layers, final_norm, lm_head })
    }

    /// [V, d].
    pub fn embed_tokens(&self) -> Block {
        self.embed_tokens
    }

    /// The blocks of one layer.
    pub fn layer(&self, layer: usize) -> &LayerBlocks {
        &self.layers[layer]
    }

    /// The number of layers.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The final norm, [1, d].
    pub fn final_norm(&self) -> Block {
        self.final_norm
    }

    /// The language-model head, [V, d]: the embedding where they are tied.
    pub fn lm_head(&self) -> Block {
        self.lm_head
    }

    /// Whether the head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.lm_head == self.embed_tokens
    }

    /// Elements of the largest part of a backward pass that keeps no whole gradient: a layer, or the embedding.
    pub fn largest_part(&self) -> usize {
        let layer = self.layers.first().map_or(0, |layer| layer.range().len());
        layer.max(self.embed_tokens.len()).max(self.lm_head.len())
    }
}

/// Appends the tensors of a layer: nine, and those that only some families have.
fn push_layer(parameters: &mut ParameterLayout, config: &ModelConfig, layer: usize) -> Option<LayerBlocks> {
    let family = config.family.description();
    let norm = [config.hidden_size];
    let mut push = |name: &str, shape: &[usize]| parameters.push(format!("model.layers.{layer}.{name}"), shape);
    let mut projections = [Block { offset: 0, rows: 0, cols: 0 }; 7];
    let input_layernorm = push("input_layernorm.weight", &norm)?;
    for projection in [Projection::QProj, Projection::KProj, Projection::VProj, Projection::OProj] {
        projections[projection as usize] = push(&projection.weight(), &projection.shape(config))?;
    }
    let qkv_bias = if family.query_key_value_bias {
        let mut bias = |projection: Projection| push(&projection.bias(), &projection.shape(config)[..1]);
        let query = bias(Projection::QProj)?;
        let key = bias(Projection::KProj)?;
        Some(query.joined_with(key).joined_with(bias(Projection::VProj)?))
    } else {
        None
    };
    let head_norms = if family.head_norms {
        let query = push("self_attn.q_norm.weight", &[config.head_dim])?;
        Some(query.stacked_on(push("self_attn.k_norm.weight", &[config.head_dim])?))
    } else {
        None
    };
    let post_attention_layernorm = push("post_attention_layernorm.weight", &norm)?;
    for projection in [Projection::GateProj, Projection::UpProj, Projection::DownProj] {
        projections[projection as usize] = push(&projection.weight(), &projection.shape(config))?;
    }
    let [q, k, v, o_proj, gate, up, down_proj] = projections;
    Some(LayerBlocks {
        input_layernorm,
        qkv: q.stacked_on(k).stacked_on(v),
        qkv_bias,
        head_norms,
        o_proj,
        post_attention_layernorm,
        gate_up: gate.stacked_on(up),
        down_proj,
        projections,
    })
}

/// The two factors of one adapted projection: its weight becomes W + scale · B A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactorBlocks {
    /// A, [r, in].
    pub a: Block,
    /// B, [out, r].
    pub b: Block,
}

/// The layout of LoRA factors: for each layer and each adapted projection A and then B, under PEFT's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterLayout {
    parameters: Arc<ParameterLayout>,
    layers: Vec<BTreeMap<Projection, FactorBlocks>>,
}

impl AdapterLayout {
    /// The layout of an adapter for a model of this architecture.
    ///
    /// # Errors
    /// [`Error::Config`] for a rank whose factors are more than a buffer can hold.
    pub fn new(model: &ModelConfig, adapter: &AdapterConfig) -> Result<Self> {
        Self::checked(model, adapter).ok_or_else(|| {
            let problem = format!("the factors of LoRA with rank {} are more than a buffer can hold", adapter.rank);
            Error::config("rank", problem, "use a smaller rank")
        })
    }

    fn checked(model: &ModelConfig, adapter: &AdapterConfig) -> Option<Self> {
        let mut parameters = ParameterLayout::default();
        let mut layers = Vec::new();
        for layer in 0..model.num_hidden_layers {
            let mut factors = BTreeMap::new();
            for &projection in &adapter.targets {
                let [out, input] = projection.shape(model);
                let stem = format!("base_model.model.model.layers.{layer}.{}", projection.path());
                let a = parameters.push(format!("{stem}.lora_A.weight"), &[adapter.rank, input])?;
                let b = parameters.push(format!("{stem}.lora_B.weight"), &[out, adapter.rank])?;
                factors.insert(projection, FactorBlocks { a, b });
            }
            layers.push(factors);
        }
        Some(Self { parameters: Arc::new(parameters), layers })
    }

    /// The factors of one layer, in the order of [`Projection::ALL`].
    pub fn layer(&self, layer: usize) -> &BTreeMap<Projection, FactorBlocks> {
        &self.layers[layer]
    }

    /// The factors of every layer, from the first to the last.
    pub fn layers(&self) -> &[BTreeMap<Projection, FactorBlocks>] {
        &self.layers
    }
}

impl Deref for ModelLayout {
    type Target = ParameterLayout;

    fn deref(&self) -> &ParameterLayout {
        &self.parameters
    }
}

impl Deref for AdapterLayout {
    type Target = ParameterLayout;

    fn deref(&self) -> &ParameterLayout {
        &self.parameters
    }
}

impl From<&ModelLayout> for Arc<ParameterLayout> {
    fn from(layout: &ModelLayout) -> Self {
        Self::clone(&layout.parameters)
    }
}

impl From<&AdapterLayout> for Arc<ParameterLayout> {
    fn from(layout: &AdapterLayout) -> Self {
        Self::clone(&layout.parameters)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::ModelFamily;

    fn adapter(rank: usize) -> AdapterConfig {
        let targets = BTreeSet::from([Projection::DownProj, Projection::QProj]);
        AdapterConfig { rank, alpha: 1.0, dropout: 0.0, rank_stabilised: false, targets }
    }

    /// The named blocks are the places of the tensors that have these names in a file.
    #[test]
    fn named_blocks_are_the_entries_of_their_names() {
        let model = ModelConfig::llama3_8b();
        let layout = ModelLayout::new(&model).unwrap();
        let block = |name: &str| layout.find(name).unwrap().block;
        for layer in [0, model.num_hidden_layers - 1] {
            let blocks = layout.layer(layer);
            for projection in Projection::ALL {
                let name = format!("model.layers.{layer}.{}.weight", projection.path());
                assert_eq!(blocks.projection(projection), block(&name));
            }
            assert_eq!(blocks.qkv.offset, blocks.projection(Projection::QProj).offset);
            assert_eq!(blocks.qkv.range().end, blocks.projection(Projection::VProj).range().end);
            assert_eq!(blocks.gate_up.range().end, blocks.down_proj.offset);
        }
        assert_eq!(
            (layout.embed_tokens(), layout.final_norm()),
            (block("model.embed_tokens.weight"), block("model.norm.weight"))
        );
        assert_eq!((layout.lm_head(), layout.is_tied()), (block("lm_head.weight"), false));
        assert_eq!(layout.entries().iter().map(|entry| entry.block.len()).sum::<usize>(), layout.len());
    }

    /// The tensors that only some families have are where their names say, side by side in the order in which they are used.
    #[test]
    fn biases_and_head_norms_are_the_entries_of_their_names() {
        for family in ModelFamily::ALL {
            let model = ModelConfig { family, ..ModelConfig::llama3_8b() };
            let layout = ModelLayout::new(&model).unwrap();
            let places = |names: &[&str]| -> Vec<Range<usize>> {
                let place =
                    |name: &&str| layout.find(&format!("model.layers.1.self_attn.{name}")).map(|e| e.block.range());
                names.iter().filter_map(place).collect()
            };
            let check = |block: Option<Block>, shape: (usize, usize), places: Vec<Range<usize>>| {
                let Some(block) = block else { return assert!(places.is_empty(), "{family:?}") };
                assert_eq!((block.rows, block.cols), shape, "{family:?}");
                assert!(places.windows(2).all(|pair| pair[0].end == pair[1].start), "{family:?}");
                assert_eq!((block.range().start, block.range().end), (places[0].start, places[places.len() - 1].end));
            };
            let blocks = layout.layer(1);
            check(blocks.qkv_bias, (1, 6144), places(&["q_proj.bias", "k_proj.bias", "v_proj.bias"]));
            check(blocks.head_norms, (2, 128), places(&["q_norm.weight", "k_norm.weight"]));
            let description = family.description();
            assert_eq!(blocks.qkv_bias.is_some(), description.query_key_value_bias);
            assert_eq!(blocks.head_norms.is_some(), description.head_norms);
            assert_eq!(layout.layer(2).input_layernorm.offset, blocks.range().end, "a layer is one part");
        }
    }

    /// Factors are laid out in the order of the projections, whatever order they were named in.
    #[test]
    fn factors_lie_in_the_order_of_the_projections() {
        let layout = AdapterLayout::new(&ModelConfig::llama3_8b(), &adapter(4)).unwrap();
        let places: Vec<usize> =
            layout.layers().iter().flat_map(|layer| layer.values()).flat_map(|f| [f.a.offset, f.b.offset]).collect();
        let entries: Vec<usize> = layout.entries().iter().map(|entry| entry.block.offset).collect();
        assert_eq!(places, entries);
        assert_eq!(layout.layer(1).keys().copied().collect::<Vec<_>>(), [Projection::QProj, Projection::DownProj]);
    }

    #[test]
    fn sizes_that_cannot_be_addressed_are_refused() {
        let model = ModelConfig::llama3_8b();
        for rank in [usize::MAX, usize::MAX / 4096, 1 << 50] {
            let error = AdapterLayout::new(&model, &adapter(rank)).unwrap_err();
            assert!(matches!(&error, Error::Config { key, .. } if key == "rank"), "{error}");
        }
        let absurd = ModelConfig { vocab_size: usize::MAX / 2, ..model };
        assert!(matches!(ModelLayout::new(&absurd), Err(Error::Config { .. })));
    }
}
