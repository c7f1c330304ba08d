//! Training data: readers, row shapes, tokenizer, chat templates, loss masks, batches, deterministic cursors.
//!
//! A file becomes rows (`reader`, `jsonl`, `parquet`), rows get a meaning (`row`) and become tokens and labels (`encode`,
//! `tokenizer`, `template`), samples become an endless sequence of batches (`stream`).
//! For generation, a row becomes a prompt instead (`prompts`).

mod encode;
mod growth;
mod inspect;
mod jsonl;
mod parquet;
mod prompts;
mod python;
mod reader;
mod row;
mod samples;
mod sandbox;
mod stream;
mod template;
mod tokenizer;

pub use inspect::{InspectedSequence, InspectedToken, Inspection, inspect};
pub use jsonl::{JsonLines, MAXIMUM_LINE};
pub use prompts::{Prompt, PromptEncoder, read_prompts};
pub use reader::{Place, RawRow, Rows, rows};
pub use row::{Message, Problem, Row};
pub use samples::Sequence;
pub use stream::{Cursor, DataStream, StreamOptions};
pub(crate) use stream::{MAX_TOKENS, check_batch};
pub use template::ChatTemplate;
pub use tokenizer::{Token, Tokenizer};
