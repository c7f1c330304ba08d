//! Files that others wrote, and files that others will read: what is right is read exactly, what is damaged or hostile
//! is refused in one line.

/// Checkpoints come back bit for bit, and no damaged one is loaded.
mod checkpoint;
/// Data streams have the promised order, cursors, packing, truncation and loss masks.
mod data;
/// What the documents name is there.
mod documents;
/// Models, adapters and merged weights that are written are what was meant.
mod export;
/// Formats and shapes that others publish are read as what they mean.
mod formats;
/// Damaged or hostile data, tokenizers and templates are refused, or read as what they are.
mod hostile_data;
/// Damaged or hostile tables, arrays and compressed files are refused.
mod hostile_formats;
/// Damaged or hostile weights, indexes, configurations and adapters are refused.
mod hostile_weights;
/// The configurations of published models give their published parameter counts.
mod model_config;
/// Rows of every shape become the prompts that a model continues.
mod prompts;
/// No change to a valid file makes a reader panic, whatever the change.
mod properties;
/// The keys of published models' configurations are read, harmless, or refused.
mod published_models;
/// The crate's own source has the structure that its map shows.
mod structure;
/// Chat templates say what Jinja2 makes of them, and of each answer is learned what the template writes of it.
mod templates;

#[path = "../support/mod.rs"]
mod support;
