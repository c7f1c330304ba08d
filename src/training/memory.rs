//! What a full-parameter run trades for memory.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::Recompute;

/// How the states of an attack's optimizer are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// In f32.
    #[default]
    F32,
    /// Moments in bf16, rounded at random, where the backend keeps its weights in bf16; see [`crate::ops::StateRounding`].
    Bf16,
}

/// What a full-parameter run trades for memory. The default trades nothing. `step_in_backward` and `recompute` change no
/// bit of the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemorySettings {
    /// How the optimizer's states are stored.
    pub states: Moments,
    /// Whether each part of the weights steps within the backward pass, so that no whole gradient is kept.
    pub step_in_backward: bool,
    /// What the backward pass computes a second time.
    pub recompute: Recompute,
}

impl fmt::Display for MemorySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.states == Moments::F32 { "moments in f32" } else { "moments in bf16" })?;
        f.write_str(if self.step_in_backward { ", steps within the backward pass" } else { ", whole gradients" })?;
        match self.recompute {
            Recompute::Nothing => f.write_str(", no activation computed again"),
            Recompute::Cheap => f.write_str(", activations without a matrix product computed again"),
            Recompute::Layers { kept } => write!(f, ", layers run forward again, but for {kept} on the largest batch"),
        }
    }
}
