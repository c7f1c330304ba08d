//! Measures models: perplexity, and accuracy on four-choice questions. Reads no files and writes none.

mod choice;
mod perplexity;
mod prompt;
mod question;

pub use choice::{ChoiceReport, Prediction, four_choice};
pub use perplexity::{Perplexity, perplexity};
pub use prompt::PromptForm;
pub use question::{LETTERS, Question};
