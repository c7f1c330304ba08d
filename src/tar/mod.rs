//! TAR, the nested loop (arXiv 2408.00761, algorithm 1): simulated attacks inside, a first-order meta-gradient outside.
//!
//! `adversary` draws attacks (`ranges`: what from; `curriculum`: how long they are; `pool`: which are met again),
//! `trajectory` runs one of them and collects tamper-resistance gradients, `outer` turns them and the retain gradient into a
//! step on the unattacked weights. Files, checkpoints and progress are `crate::run`'s.

mod adversary;
mod curriculum;
mod outer;
mod pool;
mod ranges;
mod streams;
mod trainers;
mod trajectory;

pub use adversary::{Adversary, AdversarySource, Draw};
pub use curriculum::{AttackLength, Curriculum};
pub(crate) use outer::OUTER_WINDOW;
pub use outer::{Hardener, HardenerState, OuterReport, ResistanceLoss, Settings};
pub use pool::{HardAttack, PoolSettings};
pub use ranges::{LearningRates, RateRange, ShareRange};
pub use streams::Streams;
pub use trajectory::TrajectoryReport;
