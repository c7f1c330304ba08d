//! Edits of weights without training: the directions that tell two kinds of prompts apart, and their removal; rounding to a
//! few bits. Attacks on finished models make them, and defences take gradients where they lead.

mod directions;
mod quantization;
mod removal;
mod states;

pub(crate) use directions::{DirectionOptions, Directions};
pub use quantization::Quantization;
pub use removal::{Removal, project_out};
pub(crate) use states::{Side, States, last_tokens, prompts};
