//! Training data: readers, chat templates, tokenizers, batches, deterministic cursors.
//!
//! A file becomes rows (`jsonl`, `parquet`), rows become samples of tokens and labels (`shape`, `text`), samples become an
//! endless sequence of batches (`stream`).

mod inspect;
mod jsonl;
mod parquet;
mod samples;
mod shape;
mod source;
mod stream;
mod template;
mod text;

pub use inspect::{Inspection, Token, inspect};
pub use stream::{Cursor, DataStream, StreamOptions};
