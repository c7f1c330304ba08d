//! A loss on the hidden states of chosen depths: what its settings say, and what its states are compared with.

use serde::{Deserialize, Serialize};

use super::EntropyOver;
use crate::error::Result;
use crate::model::{Model, ModelConfig};
use crate::ops::{Backend, Tensor};
use crate::random::{Random, Stream};
use crate::settings::fault;

/// What is asked of a hidden state h. r is the reference model's state of the same token at the same depth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HiddenKind {
    /// ‖h − r‖₂: the representation part of TAR's retain loss.
    Distance,
    /// ‖h − r‖₂²: what RMU retains (arXiv 2403.03218, section 4).
    SquaredDistance,
    /// ‖h − c·u‖₂² with one unit vector u for all tokens: what RMU makes of restricted text (section 4). The entries of u are
    /// uniform in [0, 1) before it is scaled to length 1, as in the paper.
    ControlVector {
        /// c, the length that states are steered to.
        coefficient: f32,
        /// Seed of u.
        #[serde(default)]
        seed: u64,
    },
    /// max(0, cos(h, r)): the rerouting loss of circuit breakers (arXiv 2406.04313, section 3.2).
    Cosine,
    /// max(0, d(h, m) − d(h, r) + margin) with d = 1 − cos and m the mean of r over the positions: the harmful triplet of
    /// contrastive representation learning (arXiv 2506.11938, section 4.1) on normalised states. There m is the mean of h; here
    /// it stays where the reference model has it.
    Triplet {
        /// How much nearer to the mean than to its old place a state has to be.
        margin: f32,
    },
}

/// The mean of a loss on hidden states over depths and positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenTerm {
    /// The loss of a state.
    pub kind: HiddenKind,
    /// Depths, numbered as in [`Workspace::hidden_state`](crate::model::Workspace::hidden_state): n is the output of layer
    /// n − 1, counted from 0, and the last one is behind the final norm. None: all.
    #[serde(default)]
    pub depths: Vec<usize>,
    /// The positions.
    #[serde(default)]
    pub over: EntropyOver,
}

impl HiddenTerm {
    /// Whether its states are compared with a reference model's.
    pub fn needs_reference(&self) -> bool {
        !matches!(self.kind, HiddenKind::ControlVector { .. })
    }

    /// Fails for depths that are named twice, and for numbers that mean nothing.
    ///
    /// # Errors
    /// [`crate::Error::Config`], which names a key of the term at `key`.
    pub fn check(&self, key: &str) -> Result<()> {
        if (1..self.depths.len()).any(|i| self.depths[..i].contains(&self.depths[i])) {
            return Err(fault(format!("{key}.depths"), "a depth is named twice", "name each once"));
        }
        let (name, number) = match self.kind {
            HiddenKind::ControlVector { coefficient, .. } => ("coefficient", coefficient),
            HiddenKind::Triplet { margin } => ("margin", margin),
            HiddenKind::Distance | HiddenKind::SquaredDistance | HiddenKind::Cosine => return Ok(()),
        };
        if number.is_finite() && number > 0.0 {
            return Ok(());
        }
        Err(fault(format!("{key}.{name}"), format!("is {number}"), "take a number above 0"))
    }

    /// The deepest depth.
    ///
    /// # Errors
    /// [`crate::Error::Config`] where the model does not have it.
    pub(super) fn last_level(&self, config: &ModelConfig) -> Result<usize> {
        let layers = config.num_hidden_layers;
        match self.depths.iter().copied().max() {
            None => Ok(layers),
            Some(depth) if depth <= layers => Ok(depth),
            Some(depth) => {
                let problem = format!("there is no depth {depth}, the model has 0 to {layers}");
                Err(fault("hidden_states.depths", problem, "name depths that it has"))
            }
        }
    }

    /// The depths, in ascending order, for a model of `layers` layers.
    pub(super) fn levels(&self, layers: usize) -> Vec<usize> {
        if self.depths.is_empty() {
            return (0..=layers).collect();
        }
        let mut levels = self.depths.clone();
        levels.sort_unstable();
        levels
    }
}

/// c·u, [1, d].
pub(super) fn control_vector<B: Backend>(model: &Model<B>, coefficient: f32, seed: u64) -> Result<Tensor<B>> {
    let mut random = Random::new(seed, Stream::ControlVector, 0, 0);
    let entries: Vec<f64> = (0..model.config.hidden_size).map(|_| random.uniform()).collect();
    let length = entries.iter().map(|x| x * x).sum::<f64>().sqrt();
    let scaled: Vec<f32> = entries.iter().map(|x| (f64::from(coefficient) * x / length) as f32).collect();
    stored(&model.backend, "control vector", &scaled)
}

/// A row of numbers, [1, n], stored as activations are.
pub(super) fn stored<B: Backend>(backend: &B, name: &str, values: &[f32]) -> Result<Tensor<B>> {
    let mut tensor = Tensor::zeros(backend, name, 1, values.len(), backend.compute_dtype())?;
    backend.upload_f32(tensor.buffer_mut(), 0, values)?;
    Ok(tensor)
}
