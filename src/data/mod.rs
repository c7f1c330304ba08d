//! Training data: readers, row shapes, tokenizer, chat templates, loss masks, batches, deterministic cursors.

mod encode;
mod jsonl;
mod parquet;
mod reader;
mod row;
mod samples;
mod sandbox;
mod stream;

pub use jsonl::{JsonLines, MAXIMUM_LINE};
pub use row::{Message, Row};
pub use stream::{Cursor, DataStream, StreamOptions};
