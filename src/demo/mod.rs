//! The built-in demonstration: a small Llama learns made-up facts, a plain safeguard removes the restricted ones, TAR
//! hardens the result, and both are attacked. Everything is trained and attacked in front of the user.

mod experiment;
mod facts;
mod handover;
mod hardening;
pub mod toy;

pub use experiment::{AttackCurve, Course, DemoAttack, Experiment, Outcome};
pub use facts::{Domain, Facts, Pool};
pub use handover::write_handover;
