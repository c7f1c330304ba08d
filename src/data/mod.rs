//! Training data: readers, row shapes, tokenizer, chat templates, loss masks, batches, deterministic cursors.
//!
//! A file becomes rows (`reader`, with `jsonl`, `json_values`, `csv`, `parquet` and `compressed`), rows get a meaning (`row`,
//! by the table in `shapes`) and become tokens and labels (`encode`, `tokenizer`, `template`), samples become an endless
//! sequence of batches (`stream`). For generation a row becomes a prompt instead (`prompts`), for multiple choice a
//! `question`.

mod answers;
mod columns;
mod compressed;
mod csv;
mod encode;
mod growth;
mod inspect;
mod jinja;
mod json_values;
mod jsonl;
mod messages;
mod notes;
mod parquet;
mod prompts;
mod python;
mod python_methods;
mod question;
mod reader;
mod row;
mod samples;
mod sandbox;
mod shapes;
mod stream;
mod template;
mod tokenizer;
mod unread;

pub use answers::{Answers, Note};
pub use columns::{Columns, DataFile};
pub use inspect::{InspectedSequence, InspectedToken, Inspection, inspect};
pub use jsonl::{JsonLines, MAXIMUM_LINE};
pub use messages::Message;
pub use prompts::{Prompt, PromptEncoder, RawText, read_prompts, read_prompts_with};
pub use question::{LETTERS, Question, read_questions};
pub use reader::{Place, RawRow, Rows};
pub use row::{Problem, Row, UnderstoodRow};
pub use samples::Sequence;
pub use shapes::{SHAPES, Shape, markdown as shapes_table};
pub use stream::{Cursor, DataStream, StreamOptions};
pub(crate) use stream::{MAX_TOKENS, check_batch};
pub use template::ChatTemplate;
pub use tokenizer::{Token, Tokenizer};
