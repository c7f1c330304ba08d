//! Attacks on finished models: suites of them as data, what each costs, and when a model counts as breached. Files,
//! progress and reports are those of `crate::run` and `crate::report`.

mod abliteration;
mod noise;
mod results;

pub use abliteration::{Abliteration, AbliterationData, abliterate, project_out};
pub use noise::add_noise;
pub use results::{
    AttackKind, AttackResult, BestSoFar, Cost, CostToBreach, DefenderCost, Goal, Least, Metric, Outcome, Point,
    Results, SCHEMA, Scores, Spread, Summary,
};
