//! Attacks on finished models: suites of them as data, what each costs, and when a model counts as breached. Files,
//! `crate::run` and `crate::report` do progress and reports.

mod abliteration;
mod attacker;
mod choice;
mod compliance;
mod data;
mod merge;
mod results;
mod scorer;
mod search;
pub mod suite;
mod summary;

pub use abliteration::{Abliteration, AbliterationData, AbliterationEdit, AnswerReader, WeightCurve, abliterate};
pub use attacker::{Attacked, Attacker, Target, Tick};
pub use choice::Choice;
pub use compliance::{Compliance, Judge, KEYWORDS};
pub use data::AttackerData;
pub use merge::merged;
pub use results::{
    AbliterationTrial, AttackKind, AttackResult, BestSoFar, Cost, CostToBreach, Goal, Least, Metric, Outcome, Point,
    READABLE, Results, SCHEMA, Scores, SearchCost, SearchedAbliteration, Spread, Succeeded, Summary,
};
pub use scorer::{Measures, Prefix, Scorer};
pub(crate) use search::largest;
pub use search::{Trial, propose};
