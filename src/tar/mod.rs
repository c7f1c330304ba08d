//! TAR, the nested loop (arXiv 2408.00761, algorithm 1): simulated attacks inside, a first-order meta-gradient outside.
//!
//! `adversary` draws attacks, `trajectory` runs one of them and collects tamper-resistance gradients, `outer` turns them
//! and the retain gradient into a step on the unattacked weights. Files, checkpoints and progress are `crate::run`'s.

mod adversary;
mod outer;
mod streams;
mod trajectory;

pub use adversary::{Adversary, AdversarySource, Draw};
pub(crate) use outer::OUTER_WINDOW;
pub use outer::{Hardener, HardenerState, OuterReport, ResistanceLoss, Settings};
pub use streams::Streams;
pub use trajectory::TrajectoryReport;
