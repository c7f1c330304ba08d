//! Measures models: perplexity, exact match, accuracy on multiple-choice questions, and generated texts (refusals,
//! repetition, the scores of a judge). Reads no files and writes none.

mod choice;
mod continuations;
mod exact;
mod generate;
mod judge;
mod perplexity;
mod prompt;
mod refusal;
mod repetition;
mod sample;

pub use choice::{
    ChoiceReport, Encode, NUM_SHOTS, Prediction, WRITTEN_TOKENS, multiple_choice, multiple_choice_written,
};
pub use exact::{ExactMatch, exact_match};
pub use generate::{GenerateOptions, PASS_TOKENS, generate};
pub use judge::judge;
pub use perplexity::{Perplexity, perplexity};
pub use prompt::PromptForm;
pub use refusal::refuses;
pub use repetition::{Repetition, is_gibberish, repetition};
pub use sample::Sampling;

pub use crate::data::{LETTERS, Question};
