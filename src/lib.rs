//! temper hardens open-weight language models against the fine-tuning that strips their safeguards, and measures how
//! hard they are to break.
//!
//! The method is TAR (tampering attack resistance, arXiv 2408.00761): K steps of a simulated fine-tuning attack inside,
//! a first-order meta-gradient outside. See `docs/` in the repository for the guided tour.
//!
//! # The house
//!
//! Each module is a room with one job, which its first lines say. A room uses rooms on lower lines only; a test keeps that
//! (`tests/files/structure.rs`). Data goes from the top down; gradients and results come back as return values.
//!
//! ```text
//! cli                                            arguments in, exit code out (the program)
//! api                                            the door for other programs
//! run, selftest, bench                           runs from files to files; proofs and measurements of a device
//! report                                         tables, pages and metrics for people and programs
//! demo                                           the whole method on a small made-up model
//! events                                         what a run tells whoever started it
//! redteam                                        attacks on finished models, and what they cost
//! plan                                           memory and arithmetic, before anything starts
//! config                                         run files
//! tar, safeguard                                 the nested loop; the plain safeguard before it
//! training, eval                                 fine-tuning steps; measurements
//! objective, optimizer, data, huggingface        losses; updates; rows to batches; model directories
//! model, backend                                 the transformer; what implements its operations (CPU, CUDA)
//! ops, checkpoint                                the operations by name; snapshots of a run
//! settings, files, fingerprint, random           settings files; files in general; what tells runs apart; random numbers
//! error
//! ```

#![warn(missing_docs)]

pub mod api;
pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod demo;
pub mod error;
pub mod eval;
pub mod events;
#[doc(hidden)]
pub mod files;
pub mod fingerprint;
pub mod huggingface;
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
mod settings;
pub mod tar;
pub mod training;

pub use error::{Error, Result};
