//! LoRA: which projections are adapted, with what factors.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::{AdapterLayout, FactorBlocks, Gradients, ModelConfig, Parameters};
use crate::error::{Error, Result};
use crate::ops::{Backend, LoraSlice};
use crate::random::{Random, Stream};
use crate::settings::{at_least, at_most, fault, positive, suggestion};

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

    /// The name of its weight inside a layer.
    pub(super) fn weight(self) -> String {
        format!("{}.weight", self.path())
    }

    /// The name of its bias inside a layer, where it has one.
    pub(super) fn bias(self) -> String {
        format!("{}.bias", self.path())
    }

    /// The shape of its weight: [out, in].
    pub fn shape(self, config: &ModelConfig) -> [usize; 2] {
        let d = config.hidden_size;
        let f = config.intermediate_size;
        let q = config.attention().query_cols();
        let kv = config.attention().key_value_cols();
        match self {
            Self::QProj => [q, d],
            Self::KProj | Self::VProj => [kv, d],
            Self::OProj => [d, q],
            Self::GateProj | Self::UpProj => [f, d],
            Self::DownProj => [d, f],
        }
    }
}

impl FromStr for Projection {
    type Err = Error;

    /// The projection of this name.
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == text).ok_or_else(|| {
            let known = suggestion(text, Self::ALL.iter().map(|projection| projection.name()));
            Error::config("targets", format!("`{text}` is no projection"), known)
        })
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
    /// The adapted projections.
    pub targets: BTreeSet<Projection>,
}

/// More than anybody means, and few enough to be counted and allocated.
pub(crate) const MAX_RANK: usize = 1 << 16;

impl AdapterConfig {
    /// All projections at `rank`, with α twice the rank and without dropout.
    pub fn new(rank: usize) -> Self {
        Self { rank, alpha: 2.0 * rank as f64, dropout: 0.0, rank_stabilised: false, targets: Projection::ALL.into() }
    }

    /// The same with another rank and the same factor α/r.
    pub fn with_rank(&self, rank: usize) -> Self {
        Self { rank, alpha: self.alpha * rank as f64 / self.rank as f64, ..self.clone() }
    }

    fn check_rank(&self, key: &str) -> Result<()> {
        let key = format!("{key}.rank");
        at_least(&key, self.rank as u64, 1)?;
        at_most(&key, self.rank as u64, MAX_RANK as u64)
    }

    /// Fails where a hyperparameter is out of its range. `key` is the place of the settings: errors name `KEY.rank`, ….
    pub fn check(&self, key: &str) -> Result<()> {
        let at = |name: &str| format!("{key}.{name}");
        self.check_rank(key)?;
        positive(&at("alpha"), self.alpha)?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(fault(at("dropout"), format!("is {}", self.dropout), "use 0 or more and less than 1"));
        }
        if self.targets.is_empty() {
            return Err(fault(at("targets"), "is empty", "name at least one projection, such as \"q_proj\""));
        }
        Ok(())
    }

    /// The factor on B A.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }) as f32
    }

    /// Number of factors for a model of this architecture, or `u64::MAX` where they are more than a buffer can hold.
    pub fn parameter_count(&self, model: &ModelConfig) -> u64 {
        AdapterLayout::new(model, self).map_or(u64::MAX, |layout| layout.len() as u64)
    }

    /// The columns of x Aᵀ at a site: the rank times the number of projections adapted there.
    pub(crate) fn site_rank(&self, site: Site) -> usize {
        let adapted = site.projections().iter().filter(|projection| self.targets.contains(projection)).count();
        self.rank.saturating_mul(adapted)
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
    /// Its factors, laid out as [`Adapter::layout`] says.
    pub parameters: Parameters<B>,
    layout: AdapterLayout,
    /// The adapted projections of each layer and site.
    sites: Vec<[Vec<AdaptedProjection>; 4]>,
}

/// A projection that has factors.
struct AdaptedProjection {
    factors: FactorBlocks,
    /// Its first column in the output of the fused layer.
    first_column: usize,
}

impl<B: Backend> Adapter<B> {
    /// An adapter whose factors are all zero.
    ///
    /// # Errors
    /// [`Error::Config`] for a rank of 0 or above 65,536.
    pub fn zeros(backend: &B, model: &ModelConfig, config: AdapterConfig) -> Result<Self> {
        config.check_rank("adapter")?;
        let layout = AdapterLayout::new(model, &config)?;
        let sites = (0..model.num_hidden_layers).map(|layer| sites_of_layer(&layout, model, layer)).collect();
        let parameters = Parameters::zeros(backend, "adapter", &layout)?;
        Ok(Self { config, parameters, layout, sites })
    }

    /// A fresh adapter as PEFT initialises it: A uniform in ±1/√in (`kaiming_uniform_(a=√5)`), B zero.
    pub fn initialise(&mut self, backend: &B, seed: u64, draw: u64) -> Result<()> {
        let mut values = vec![0.0f32; self.layout.len()];
        let mut random = Random::new(seed, Stream::Adapter, draw, 0);
        for factors in self.layout.layers().iter().flat_map(|layer| layer.values()) {
            let bound = 1.0 / (factors.a.cols as f64).sqrt();
            values[factors.a.range()].fill_with(|| ((random.uniform() * 2.0 - 1.0) * bound) as f32);
        }
        self.parameters.upload(backend, &values)
    }

    /// The places of the factors in the flat buffer.
    pub fn layout(&self) -> &AdapterLayout {
        &self.layout
    }

    /// The slices of a site, for [`crate::ops::LoraForward`].
    pub(crate) fn slices(&self, layer: usize, site: Site) -> Vec<LoraSlice<'_, B>> {
        let slice = |projection: &AdaptedProjection| LoraSlice {
            a: self.parameters.matrix(projection.factors.a),
            b: self.parameters.matrix(projection.factors.b),
            start: projection.first_column,
            scale: self.config.scale(),
        };
        self.sites[layer][site as usize].iter().map(slice).collect()
    }

    /// A gradient buffer for the factors.
    pub fn gradients(&self, backend: &B) -> Result<Gradients<B>> {
        Gradients::zeros(backend, "adapter gradient", &self.layout)
    }
}

fn sites_of_layer(layout: &AdapterLayout, model: &ModelConfig, layer: usize) -> [Vec<AdaptedProjection>; 4] {
    Site::ALL.map(|site| {
        let mut adapted = Vec::new();
        let mut first_column = 0;
        for projection in site.projections() {
            if let Some(&factors) = layout.layer(layer).get(projection) {
                adapted.push(AdaptedProjection { factors, first_column });
            }
            let [out, _] = projection.shape(model);
            first_column += out;
        }
        adapted
    })
}
