//! The nested loop: gradients taken at points beside the weights, among them simulated attacks, and one step of the weights.
//!
//! It is TAR's (arXiv 2408.00761, algorithm 1), taken apart: `composition` says what a defence consists of, `points` goes to
//! where gradients are taken, `terms` takes them, `outer` makes a step of them. `adversary` draws simulated attacks (`ranges`:
//! what from; `curriculum`: how long they are; `pool`: which are met again), and `trajectory` runs one. Files, checkpoints and progress are `crate::run`'s.

mod adversary;
mod combine;
mod composition;
mod curriculum;
mod outer;
mod points;
mod pool;
mod ranges;
mod reports;
mod streams;
mod terms;
mod trainers;
mod trajectory;

pub use adversary::{Adversary, AdversarySource, Draw};
pub use composition::{
    Ablation, Attack, BASE, Combine, Direction, Displacement, FrozenAttack, Noise, Persistent, Point, Round, Settings,
    SignMask, Simulation, Step, Term, Trained,
};
pub use curriculum::{AttackLength, Curriculum};
pub(crate) use outer::OUTER_WINDOW;
pub use outer::{Hardener, HardenerState, HardenerTensors};
pub use points::InnerStep;
pub use pool::{HardAttack, PoolSettings};
pub use ranges::{LearningRates, RateRange, ShareRange};
pub use reports::{OuterReport, RESISTANCE, RETAIN, TermReport};
pub use streams::Streams;
pub use trajectory::TrajectoryReport;
