//! The transformer: its configuration, weights in and out, forward and backward, and LoRA.
//!
//! There is no autograd. [`Model::forward`] keeps named activations in a [`Workspace`], and [`Model::backward`] walks
//! them in reverse; both are written once, for every backend.

mod activations;
mod adapter;
mod backward;
mod batch;
mod cache;
mod config;
mod export;
mod extend;
mod forward;
mod hub;
mod layout;
mod merge;
mod parameters;
mod peft;
mod per_layer;
mod rope;
mod safetensors;
mod stepping;
mod strict_json;

pub use activations::{Activations, HiddenStates, Recompute, Workspace};
pub use adapter::{Adapter, AdapterConfig, Projection};
pub use backward::{GradientTargets, HiddenGradient};
pub use batch::{Batch, DeviceBatch};
pub use cache::{CachedSequence, KeyValueCache};
pub use config::{DeclaredDType, ModelConfig, ModelFamily, RopeScaling};
pub use export::{ExportDType, write_model};
pub use extend::{ExtendWorkspace, Extension};
pub use forward::Model;
pub use hub::ModelDirectory;
pub use layout::{Block, ParameterEntry, ParameterLayout};
pub use merge::merge_adapter;
pub use parameters::{Gradients, Parameters, ParkedParameters};
pub use peft::{read_adapter, write_adapter};
pub use per_layer::{PerLayer, kept_layers};
pub use safetensors::{TensorFile, TensorInfo};
pub use stepping::{PartGradients, PartStep};
