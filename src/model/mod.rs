//! The transformer: its architecture, weights, forward and backward passes, and LoRA.
//!
//! There is no autograd. [`Model::forward`] keeps named activations in a [`Workspace`], and [`Model::backward`] walks
//! them in reverse. [`Model::extend`] is a second forward pass, for generation: it reads keys and values of earlier tokens
//! from a cache and keeps nothing for a backward pass, so that the two share the linear layers and little else. Each pass
//! is written once for all backends.

mod adapter;
mod backward;
mod batch;
mod cache;
mod config;
mod extend;
mod family;
mod forward;
mod gradients;
mod layout;
mod merge;
mod parameters;
mod per_layer;
mod rope;
mod shapes;
mod stepping;
mod subject;
mod workspace;

pub(crate) use adapter::MAX_RANK;
pub use adapter::{Adapter, AdapterConfig, Projection};
pub use backward::{GradientDestinations, HiddenGradient};
pub use batch::{Batch, DeviceBatch};
pub use cache::{CachedSequence, KeyValueCache};
pub use config::{DeclaredDType, ModelConfig, RopeScaling};
pub use extend::{ExtendWorkspace, Extension};
pub use family::{Absent, Family, ModelFamily, WindowKeys};
pub use forward::Model;
pub use gradients::{GradientView, GradientViewMut, Gradients, PartGradient};
pub use layout::{AdapterLayout, Block, FactorBlocks, LayerBlocks, ModelLayout, ParameterEntry, ParameterLayout};
pub use merge::merge_adapter;
pub use parameters::{Parameters, ParkedParameters};
pub use per_layer::LayerMemory;
pub use shapes::WorkspaceShapes;
pub use stepping::{PartGradients, PartStep};
pub use subject::Subject;
use workspace::Activations;
pub use workspace::{HeadOperands, HiddenStates, LayerSlots, Recompute, Workspace, hidden_states_bytes};
