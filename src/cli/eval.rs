//! `temper eval`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use temper::api::{
    self, Answers, ChoiceReport, Columns, DataFile, EvalConfig, EvalForm, EvalReport, ExactMatch, Perplexity,
};

use super::device::DeviceArguments;
use super::{parse, print};

#[derive(Args, Debug)]
pub struct Arguments {
    /// The model: a Hugging Face directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The data set
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// What the columns of the data and of the examples are, where they have names of their own
    #[arg(long, value_name = "NAME=COLUMN,…")]
    pub columns: Option<Columns>,
    /// LoRA adapter on the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Sequences of one batch
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = parse::count)]
    pub batch: usize,
    /// Longest sequence in tokens; longer ones are cut (text), left out (questions) or refused (prompts)
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = parse::count)]
    pub max_length: usize,
    /// What is measured
    #[arg(long, value_enum, default_value_t = Form::Perplexity)]
    pub form: Form,
    /// Questions with answers to show as examples, of the same subject where they have one
    #[arg(long, value_name = "FILE")]
    pub shots: Option<PathBuf>,
    /// How many examples [default: 5]
    #[arg(long, value_name = "N")]
    pub num_shots: Option<usize>,
    /// Longest answer in tokens [default: 256; qi: 4]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    pub max_new_tokens: Option<usize>,
    /// Draw tokens, with logits divided by T, instead of taking the most probable one
    #[arg(long, value_name = "T", value_parser = parse::positive)]
    pub temperature: Option<f64>,
    /// Draw from the most probable tokens that have this probability together
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Draw from the K most probable tokens
    #[arg(long, value_name = "K", value_parser = parse::count)]
    pub top_k: Option<usize>,
    /// Seed of the draws [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Beginning of every answer, put into the model's mouth
    #[arg(long, value_name = "TEXT")]
    pub prefill: Option<String>,
    /// Program with arguments that scores answers: {"prompt", "response"} a line in, a number a line out
    #[arg(long, value_name = "COMMAND")]
    pub judge: Option<String>,
    /// How long the judge may take [default: 3600]
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    pub judge_seconds: Option<f64>,
    /// Write every answer to this file, as JSONL
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Perplexity of the text
    #[value(alias = "ppl")]
    Perplexity,
    /// Share of the sequences whose learned tokens greedy decoding writes
    Exact,
    /// Multiple choice as the TAR authors ask it: the letter without a space before it
    Mmlu,
    /// Multiple choice as lm-evaluation-harness asks it: the letter after a space
    LmEval,
    /// Multiple choice as Qi et al. ask it: no examples, the answer is written and has to be the letter
    Qi,
    /// Answers to prompts
    Generate,
    /// Share of prompts that the model refuses
    Refusal,
}

impl From<Form> for EvalForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Perplexity => Self::Perplexity,
            Form::Exact => Self::Exact,
            Form::Mmlu => Self::Mmlu,
            Form::LmEval => Self::LmEval,
            Form::Qi => Self::Qi,
            Form::Generate => Self::Generate,
            Form::Refusal => Self::Refusal,
        }
    }
}

impl Arguments {
    fn config(&self) -> EvalConfig {
        let columns = self.columns.clone().unwrap_or_default();
        let file = |path: &PathBuf| DataFile { path: path.clone(), columns: columns.clone() };
        let mut config = EvalConfig::new(&self.model, file(&self.data), self.form.into());
        config.adapter.clone_from(&self.adapter);
        config.batch = self.batch;
        config.max_length = self.max_length;
        config.shots = self.shots.as_ref().map(file);
        config.num_shots = self.num_shots;
        config.max_new_tokens = self.max_new_tokens;
        config.temperature = self.temperature;
        config.top_p = self.top_p;
        config.top_k = self.top_k;
        config.seed = self.seed;
        config.prefill.clone_from(&self.prefill);
        config.judge.clone_from(&self.judge);
        config.judge_seconds = self.judge_seconds;
        config.predictions.clone_from(&self.predictions);
        config
    }
}

/// Measures a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config();
    config.check()?;
    let evaluation = api::eval(&arguments.device.open()?, &config)?;
    if arguments.json {
        return print::json(&evaluation);
    }
    let report = match &evaluation.report {
        EvalReport::Perplexity(measured) => perplexity(measured),
        EvalReport::Exact(measured) => exact(measured),
        EvalReport::Choice(report) => choice(report),
        EvalReport::Answers(answers) if arguments.form == Form::Generate => texts(answers),
        EvalReport::Answers(answers) => shares(answers),
        other => format!("{other:?}\n"),
    };
    print::text(&format!("{report}{} rows read from {}\n", evaluation.rows_read, config.data))
}

fn perplexity(measured: &Perplexity) -> String {
    let Perplexity { loss, perplexity, tokens } = measured;
    format!("loss {loss:.6}  perplexity {perplexity:.4}  tokens {tokens}\n")
}

fn exact(measured: &ExactMatch) -> String {
    format!("exact match {:.4}  sequences {}\n", measured.accuracy, measured.rows)
}

/// A row for each subject, and one for all.
fn choice(report: &ChoiceReport) -> String {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for (name, (accuracy, count)) in &report.subjects {
        let name = if name.is_empty() { "(no subject)" } else { name };
        rows.push([name.to_string(), format!("{accuracy:.4}"), count.to_string()]);
    }
    rows.push(["all".into(), format!("{:.4}", report.accuracy), report.questions.to_string()]);
    let mut text = print::table(["subject", "accuracy", "questions"], rows);
    if report.too_long > 0 {
        text += &format!("{} questions are longer than --max-length and were not asked\n", report.too_long);
    }
    text
}

/// Every prompt with its answer.
fn texts(answers: &Answers) -> String {
    answers.answers.iter().map(|a| format!("> {}\n{}{}\n\n", a.prompt, a.prefill, a.response)).collect()
}

/// Shares and means over all answers.
fn shares(answers: &Answers) -> String {
    let [one, two, three] = answers.repetition.distinct;
    let mut rows = vec![["refused".to_string(), format!("{:.4}", answers.refused)]];
    rows.extend(answers.score.map(|score| ["judge's score, mean".into(), format!("{score:.4}")]));
    rows.push(["distinct 1-, 2-, 3-grams".into(), format!("{one:.3} {two:.3} {three:.3}")]);
    rows.push(["repeated 4-grams".into(), format!("{:.3}", answers.repetition.repeated)]);
    rows.push(["gibberish".into(), format!("{:.4}", answers.repetition.gibberish)]);
    rows.push(["prompts".into(), answers.prompts.to_string()]);
    print::table(["answers", "share"], rows)
}
