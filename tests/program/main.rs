//! The program as users start it.

/// Abliteration, with one direction and searched, on a model whose refusal is known.
mod abliteration;
/// Attack files run again, go on elsewhere and with more steps.
mod attack_files;
/// Rows of suites beyond plain fine-tuning, and what suites and `temper eval` say of the same files.
mod attack_rows;
/// Help, exit codes and streams.
mod cli;
/// Comparisons are made of runs of `harden` and `redteam`.
mod compare;
/// Defences composed in run files: TAR's bytes, resuming, what is trained, and what presets do.
mod defences;
/// The demonstration runs its whole course and leaves the files that others read.
mod demo;
/// The presets without attacks take the steps that PyTorch takes.
mod distilled;
/// `temper eval` in the forms that generate.
mod eval;
/// The examples for other programs run, and what they may rely on holds.
mod examples;
/// Judges: what goes in, what comes back, and every way in which one goes wrong.
#[cfg(unix)]
mod judge;
/// `temper lox`.
mod lox;
/// `temper merge` and `temper checkpoint`.
mod merge_and_checkpoint;
/// Files that others publish are read as they are.
mod published;
/// Weights that the written dtype cannot hold are found before the first step, and lose no run.
mod range;
/// Suites do what `temper attack` does, go on after a kill, and report what fails as a row.
mod redteam;
/// Reports say what the results say.
mod report;
/// `temper plan` reads a run file, its model's `config.json`, and the data where it is there.
mod run_files;
/// `temper attack` and `temper harden` follow the reference folders, and go on bit for bit after a stop or a kill.
mod runs;

#[path = "../support/mod.rs"]
mod support;
