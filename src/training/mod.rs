//! Fine-tuning: what a run does ([`FineTune`], [`Source`]), the loop of its steps ([`FineTuneRun`]), how a step is taken
//! ([`Learner`]), and what a run keeps besides the model's weights ([`Trainer`]).
//!
//! A user's attack, a row of a suite, a simulated attack of the nested loop, a safeguard and the demonstration's
//! pre-training are uses of it.

mod fine_tune;
mod guard;
mod learner;
mod memory;
mod noise;
mod run;
mod selection;
mod source;
mod stepping;
mod streams;
mod trainer;

pub use fine_tune::{FineTune, Kick, MAX_STEPS, check_optimizer, switch_step};
pub use guard::StepGuard;
pub use learner::{GuardedTrainer, Learner, StepReport, UnwatchedTrainer};
pub use memory::{MemorySettings, Moments};
pub use noise::{NoiseDraw, add_attack_noise, add_noise};
pub use run::{FineTuneRun, Step, Work};
pub use selection::{Selection, Split};
pub use source::{Source, StreamDraws};
pub use stepping::{AnyTrainer, SteppingTrainer};
pub use streams::OpenStreams;
pub use trainer::Trainer;
