//! Measures models: perplexity, and accuracy on four-choice questions. Reads no files and writes none.

mod choice;
mod exact;
mod generate;
mod perplexity;
mod prompt;
mod question;
mod sample;

pub use choice::{ChoiceReport, Prediction, four_choice};
pub use exact::{ExactMatch, exact_match};
pub use generate::{GenerateOptions, generate};
pub use perplexity::{Perplexity, perplexity};
pub use prompt::PromptForm;
pub use question::{LETTERS, Question};
pub use sample::Sampling;
