//! LoRA: which projections are adapted, with what factors.

use super::{Block, Gradients, ModelConfig, ParameterLayout, Parameters};
use crate::error::Result;
use crate::ops::{Backend, LoraSlice, Matrix};
use crate::random::{Random, Stream};

/// The linear projections of a layer, in the order of their places in a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// `self_attn.q_proj`
    QProj,
    /// `self_attn.k_proj`
    KProj,
    /// `self_attn.v_proj`
    VProj,
    /// `self_attn.o_proj`
    OProj,
    /// `mlp.gate_proj`
    GateProj,
    /// `mlp.up_proj`
    UpProj,
    /// `mlp.down_proj`
    DownProj,
}

impl Projection {
    /// All seven.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// The name that PEFT uses in `target_modules`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// The module path inside a layer: `self_attn.q_proj`.
    pub fn path(self) -> String {
        let block = if self <= Self::OProj { "self_attn" } else { "mlp" };
        format!("{block}.{}", self.name())
    }

    /// (out, in) of its weight.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.attention().query_cols(), config.attention().key_value_cols());
        match self {
            Self::QProj => (q, d),
            Self::KProj | Self::VProj => (kv, d),
            Self::OProj => (d, q),
            Self::GateProj | Self::UpProj => (f, d),
            Self::DownProj => (d, f),
        }
    }
}

/// The hyperparameters of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// r.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// Probability of dropping an input of A during training.
    pub dropout: f64,
    /// Whether the factor is α/√r instead of α/r (PEFT's `use_rslora`).
    pub rank_stabilised: bool,
    /// The adapted projections, in the order of [`Projection::ALL`], without repetition.
    pub targets: Vec<Projection>,
}

impl AdapterConfig {
    /// The factor on B A.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }) as f32
    }
}

/// The four places of a layer where a fused linear layer reads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    Qkv,
    Output,
    GateUp,
    Down,
}

impl Site {
    pub(crate) const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    pub(crate) fn projections(self) -> &'static [Projection] {
        match self {
            Self::Qkv => &Projection::ALL[0..3],
            Self::Output => &Projection::ALL[3..4],
            Self::GateUp => &Projection::ALL[4..6],
            Self::Down => &Projection::ALL[6..7],
        }
    }
}

/// LoRA factors for a model.
pub struct Adapter<B: Backend> {
    /// Its hyperparameters.
    pub config: AdapterConfig,
    /// Its factors, laid out by [`ParameterLayout::for_adapter`].
    pub parameters: Parameters<B>,
    /// For each layer and site: (A, B, first output column) of each adapted projection.
    places: Vec<[Vec<(Block, Block, usize)>; 4]>,
}

impl<B: Backend> Adapter<B> {
    /// An adapter whose factors are all zero.
    pub fn zeros(backend: &B, model: &ModelConfig, config: AdapterConfig) -> Result<Self> {
        let layout = ParameterLayout::for_adapter(model, &config);
        let places = (0..model.num_hidden_layers).map(|l| layer_places(&layout, model, &config, l)).collect();
        let parameters = Parameters::zeros(backend, "adapter", layout)?;
        Ok(Self { config, parameters, places })
    }

    /// A fresh adapter as PEFT initialises it: A uniform in ±1/√in (`kaiming_uniform_(a=√5)`), B zero.
    pub fn initialise(&mut self, backend: &B, seed: u64, draw: u64) -> Result<()> {
        let mut values = vec![0.0f32; self.parameters.layout().len()];
        let mut random = Random::new(seed, Stream::Adapter, draw, 0);
        for entry in self.parameters.layout().entries().iter().filter(|e| e.name.ends_with("lora_A.weight")) {
            let bound = 1.0 / (entry.block.cols as f64).sqrt();
            let place = entry.block.offset..entry.block.offset + entry.block.len();
            values[place].fill_with(|| ((random.uniform() * 2.0 - 1.0) * bound) as f32);
        }
        self.parameters.upload(backend, &values)
    }

    /// Σr of a site: the columns of its `s`.
    pub(crate) fn site_rank(&self, layer: usize, site: Site) -> usize {
        self.places[layer][site as usize].len() * self.config.rank
    }

    /// The slices of a site, for [`crate::ops::lora_forward`].
    pub(crate) fn slices(&self, layer: usize, site: Site) -> Vec<LoraSlice<'_, B>> {
        let matrix = |block: Block| self.parameters.matrix(block);
        self.places[layer][site as usize]
            .iter()
            .map(|&(a, b, start)| LoraSlice { a: matrix(a), b: matrix(b), start, scale: self.config.scale() })
            .collect()
    }

    /// A gradient buffer for the factors.
    pub fn gradients(&self, backend: &B) -> Result<Gradients<B>> {
        Gradients::zeros(backend, "adapter gradient", self.parameters.layout_handle())
    }

    /// A factor as a matrix; used by export and merging.
    pub fn matrix(&self, block: Block) -> Matrix<'_, B> {
        self.parameters.matrix(block)
    }
}

fn layer_places(
    layout: &ParameterLayout,
    model: &ModelConfig,
    config: &AdapterConfig,
    layer: usize,
) -> [Vec<(Block, Block, usize)>; 4] {
    let targets: Vec<Projection> = Projection::ALL.into_iter().filter(|p| config.targets.contains(p)).collect();
    Site::ALL.map(|site| {
        let (mut places, mut start) = (Vec::new(), 0);
        for &projection in site.projections() {
            if let Some(index) = targets.iter().position(|&t| t == projection) {
                let first = 2 * (layer * targets.len() + index);
                places.push((layout.entries()[first].block, layout.entries()[first + 1].block, start));
            }
            start += projection.shape(model).0;
        }
        places
    })
}
