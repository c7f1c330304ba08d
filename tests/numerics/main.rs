//! What models compute, on the CPU and on a simulated GPU, held against formulas, finite differences and other ways to
//! the same numbers.

/// Questions that share a beginning score as if each stood alone, and written answers are matched to the letter.
mod choice;
/// Text that goes through the cache in pieces gets the logits of the whole; greedy texts are those of Transformers.
mod generation;
/// What a run does to need less memory changes no bit.
mod memory;
/// Every gradient is the slope of its loss, and packing changes neither.
mod objectives;
/// Every optimizer and every schedule follows its published rule.
mod optimizers;
/// A step that is recorded gives the bits of one that is queued.
mod recording;
/// Every loss that a defence is composed of is the one that it names.
mod terms;

#[path = "../support/mod.rs"]
mod support;
