//! Training data: readers, chat templates, tokenizers, batches, deterministic cursors.

mod stream;

pub use stream::{Cursor, DataStream, StreamOptions};
