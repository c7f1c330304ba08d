//! temper hardens open-weight language models against the fine-tuning that strips their safeguards, and measures how
//! hard they are to break.
//!
//! The method is TAR (tampering attack resistance, arXiv 2408.00761): K steps of a simulated fine-tuning attack inside,
//! a first-order meta-gradient outside. See `docs/` in the repository for the guided tour.
//!
//! The way of data through the crate goes down only:
//!
//! ```text
//! cli → run → tar, safeguard, redteam, eval → objective, optimizer → model → ops → backend
//!                 data, config, checkpoint, report
//! ```

#![warn(missing_docs)]

pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod demo;
pub mod error;
pub mod eval;
mod input;
pub mod model;
pub mod objective;
pub mod ops;
pub mod optimizer;
pub mod plan;
pub mod random;
pub mod redteam;
pub mod report;
pub mod run;
pub mod safeguard;
pub mod selftest;
pub mod tar;
pub mod training;

pub use error::{Error, Result};
