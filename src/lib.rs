//! temper hardens open-weight language models against the fine-tuning that strips their safeguards, and measures how
//! hard they are to break.
//!
//! The method is TAR (tampering attack resistance, arXiv 2408.00761): K steps of a simulated fine-tuning attack inside,
//! a first-order meta-gradient outside. See `docs/` in the repository for the guided tour.
//!
//! Hardening a model and attacking the result, here one of a few thousand weights:
//!
//! ```
//! use temper::api::{self, Control, Device, Precision, RedteamConfig, RunConfig, Suite, toy};
//!
//! # fn main() -> temper::Result<()> {
//! # let scratch = tempfile::tempdir().unwrap();
//! # let folder = scratch.path();
//! toy::write(folder, 1)?;
//! let device = Device::open("cpu", Precision::F32)?;
//!
//! let run = r#"
//!     model = { path = "model" }
//!     data.restricted = { path = "restricted.jsonl", batch = 4 }
//!     data.retain = { path = "retain.jsonl", batch = 4 }
//!
//!     [tar]
//!     outer_steps = 2
//!     inner_steps = 4
//!     tr_data = "restricted"
//!     retain_data = "retain"
//!     adversary = [{ name = "full", data = "restricted", lr = [1e-3] }]
//! "#;
//! let run = RunConfig::from_text(run, &folder.join("run.toml"), &[])?;
//! let hardened = folder.join("hardened");
//! let summary = api::harden(&device, &run, &hardened, Control::new())?;
//! assert_eq!(summary.steps, 2);
//!
//! let suite = r#"
//!     data = { restricted = "restricted.jsonl" }
//!     restricted = { metric = "exact", data = "restricted.jsonl", threshold = 0.5 }
//!     utility = { metric = "exact", data = "retain.jsonl" }
//!     attack = [{ name = "full", about = "every weight", steps = 4, batch = 8, lr = 1e-2 }]
//! "#;
//! let suite = Suite::from_text(suite, &folder.join("suite.toml"), &[])?;
//! let results = api::redteam(&device, &RedteamConfig::new(suite, hardened, folder.join("results")), Control::new())?;
//! assert_eq!(results.summary.done, 1);
//! # Ok(())
//! # }
//! ```
//!
//! [`api`] and [`Error`] are the library's promise: they change with the version. The other modules are open to the program,
//! its tests and its benchmarks, and change at any time.
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
//! config                                         run files and attack files
//! tar, safeguard                                 the nested loop; the plain safeguard before it
//! training, eval                                 fine-tuning steps; measurements
//! edits                                          directions removed from weights, weights rounded
//! objective, optimizer, data, huggingface        losses; updates; rows to batches; model directories
//! tuning                                         which of several measured ways a device computes by
//! model, backend                                 the transformer; what implements its operations (CPU, CUDA)
//! ops, checkpoint                                the operations by name; snapshots of a run
//! settings, files, fingerprint, random           settings files; files in general; what tells runs apart; random numbers
//! error
//! ```

#![warn(missing_docs)]

pub mod api;
#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod checkpoint;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod data;
#[doc(hidden)]
pub mod demo;
#[doc(hidden)]
pub mod edits;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod eval;
#[doc(hidden)]
pub mod events;
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod fingerprint;
#[doc(hidden)]
pub mod huggingface;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod objective;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod optimizer;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod random;
#[doc(hidden)]
pub mod redteam;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod run;
#[doc(hidden)]
pub mod safeguard;
#[doc(hidden)]
pub mod selftest;
mod settings;
#[doc(hidden)]
pub mod tar;
#[doc(hidden)]
pub mod training;
#[doc(hidden)]
pub mod tuning;

pub use error::{Error, Result};
