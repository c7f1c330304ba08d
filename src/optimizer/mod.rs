//! Optimizers and learning-rate schedules: what they are, their coefficients at a step, and their states.

mod coefficients;
mod kind;
mod schedule;
mod shift;
mod stepper;

pub use kind::{OptimizerConfig, OptimizerKind};
pub use schedule::{Decay, Schedule};
pub use shift::{SHIFT_WINDOW, Shift};
pub use stepper::{Optimizer, OptimizerProgress, StepUnderWay};
