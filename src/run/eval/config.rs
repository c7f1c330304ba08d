//! The options of a measurement, and which of them go with which form.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::DataFile;
use crate::error::{Error, Result};
use crate::settings::{add_place, parse, read_text, typed};

/// A measurement as a user asks for it.
///
/// ```
/// use temper::api::{EvalConfig, EvalForm};
///
/// let mut config = EvalConfig::new("model", "prompts.jsonl", EvalForm::Refusal);
/// config.temperature = Some(0.7);
/// assert!(config.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EvalConfig {
    /// The model: a Hugging Face directory.
    pub model: PathBuf,
    /// The data: a file, or a directory of them.
    pub data: DataFile,
    /// LoRA adapter on the model: a PEFT directory.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    /// Sequences of one batch; 8 unless set.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Longest sequence in tokens, 2048 unless set. Longer ones are cut (text), left out (questions) or refused (prompts).
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// The form of the measurement.
    #[serde(default)]
    pub form: EvalForm,
    /// Questions with answers to show as examples, of the same subject where they have one.
    #[serde(default)]
    pub shots: Option<DataFile>,
    /// How many examples; 5 unless set.
    #[serde(default)]
    pub num_shots: Option<usize>,
    /// Longest answer in tokens; 256 unless set, and 4 for [`EvalForm::Qi`].
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
    /// Draws tokens, with logits divided by this, instead of taking the most probable one.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Draws from the most probable tokens that have this probability together.
    #[serde(default)]
    pub top_p: Option<f64>,
    /// Draws from so many of the most probable tokens.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Seed of the draws; 0 unless set.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Beginning of every answer, put into the model's mouth.
    #[serde(default)]
    pub prefill: Option<String>,
    /// Program with arguments that scores answers: {"prompt", "response"} a line in, a number a line out.
    #[serde(default)]
    pub judge: Option<String>,
    /// How many seconds the judge may take; 3600 unless set.
    #[serde(default)]
    pub judge_seconds: Option<f64>,
    /// Where every prediction or answer is written, as JSONL.
    #[serde(default)]
    pub predictions: Option<PathBuf>,
}

fn default_batch() -> usize {
    8
}

fn default_max_length() -> usize {
    2048
}

/// A form of measurement: what is measured, and how it is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EvalForm {
    /// `perplexity` (or `ppl`): perplexity of the text.
    #[default]
    #[serde(alias = "ppl")]
    Perplexity,
    /// `exact`: share of the sequences whose learned tokens greedy decoding writes.
    Exact,
    /// `mmlu`: multiple choice as the TAR authors ask it, the letter without a space before it.
    Mmlu,
    /// `lm-eval`: multiple choice as lm-evaluation-harness asks it, the letter after a space.
    LmEval,
    /// `qi`: multiple choice as Qi et al. ask it: no examples, the answer is written and has to be the letter.
    Qi,
    /// `generate`: answers to prompts.
    Generate,
    /// `refusal`: share of prompts that the model refuses.
    Refusal,
}

impl EvalForm {
    /// The name that files and the command line use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Exact => "exact",
            Self::Mmlu => "mmlu",
            Self::LmEval => "lm-eval",
            Self::Qi => "qi",
            Self::Generate => "generate",
            Self::Refusal => "refusal",
        }
    }
}

/// Forms that compare the probabilities of answers after examples.
const COMPARES: &[EvalForm] = &[EvalForm::Mmlu, EvalForm::LmEval];
/// Forms whose model writes.
const WRITES: &[EvalForm] = &[EvalForm::Qi, EvalForm::Generate, EvalForm::Refusal];
/// Forms that answer prompts.
const ANSWERS: &[EvalForm] = &[EvalForm::Generate, EvalForm::Refusal];
/// Forms that predict row by row.
const PREDICTS: &[EvalForm] =
    &[EvalForm::Exact, EvalForm::Mmlu, EvalForm::LmEval, EvalForm::Qi, EvalForm::Generate, EvalForm::Refusal];

impl EvalConfig {
    /// The measurement of `form` on `data`, with every option as it is unless set.
    pub fn new(model: impl Into<PathBuf>, data: impl Into<DataFile>, form: EvalForm) -> Self {
        Self {
            model: model.into(),
            data: data.into(),
            adapter: None,
            batch: default_batch(),
            max_length: default_max_length(),
            form,
            shots: None,
            num_shots: None,
            max_new_tokens: None,
            temperature: None,
            top_p: None,
            top_k: None,
            seed: None,
            prefill: None,
            judge: None,
            judge_seconds: None,
            predictions: None,
        }
    }

    /// Reads the settings from the TOML file at `path`, one key an option, with `overrides` (`temperature=0.7`) over it, and
    /// checks them. Relative paths count from the folder of the file.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::from_text(&read_text(path, "pass a TOML file")?, path, overrides)
    }

    /// As [`EvalConfig::load`], from the text of a file that lies (or would lie) at `path`.
    pub fn from_text(text: &str, path: &Path, overrides: &[String]) -> Result<Self> {
        let mut tree = parse(text, path)?;
        for assignment in overrides {
            tree.set(assignment)?;
        }
        let mut config: Self = typed(&tree, path)?;
        config.check().map_err(|error| add_place(error, &tree, path))?;
        let path = std::path::absolute(path).map_err(Error::io("find", path))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let shots = config.shots.iter_mut().map(|shots| &mut shots.path);
        let optional = [&mut config.adapter, &mut config.predictions];
        let needed = [&mut config.model, &mut config.data.path];
        for path in optional.into_iter().flatten().chain(shots).chain(needed) {
            *path = folder.join(&*path);
        }
        Ok(config)
    }

    /// Fails if a value is out of its range, or if an option is set that the form does not read: silence would let it seem
    /// to count.
    pub fn check(&self) -> Result<()> {
        self.check_form()?;
        if self.batch == 0 {
            return Err(Error::config("batch", "is 0", "use at least 1"));
        }
        if self.max_length == 0 {
            return Err(Error::config("max_length", "is 0", "use at least 1"));
        }
        let drawn = [("top_p", self.top_p.is_some()), ("top_k", self.top_k.is_some()), ("seed", self.seed.is_some())];
        match drawn.iter().find(|(_, given)| *given && self.temperature.is_none()) {
            None => Ok(()),
            Some((option, _)) => {
                let problem = "it means nothing where the most probable token is taken";
                Err(Error::config(*option, problem, "leave it out, or draw with `temperature`"))
            }
        }
    }

    fn check_form(&self) -> Result<()> {
        for (option, given, forms) in [
            ("shots", self.shots.is_some(), COMPARES),
            ("num_shots", self.num_shots.is_some(), COMPARES),
            ("max_new_tokens", self.max_new_tokens.is_some(), WRITES),
            ("temperature", self.temperature.is_some(), WRITES),
            ("top_p", self.top_p.is_some(), WRITES),
            ("top_k", self.top_k.is_some(), WRITES),
            ("seed", self.seed.is_some(), WRITES),
            ("prefill", self.prefill.is_some(), ANSWERS),
            ("judge", self.judge.is_some(), ANSWERS),
            ("judge_seconds", self.judge_seconds.is_some(), ANSWERS),
            ("predictions", self.predictions.is_some(), PREDICTS),
        ] {
            if given && !forms.contains(&self.form) {
                let problem = format!("it means nothing to the form {}", self.form.name());
                let known: Vec<&str> = forms.iter().map(|form| form.name()).collect();
                let remedy = format!("leave it out, or use `form` {}", known.join(" or "));
                return Err(Error::config(option, problem, remedy));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_as_settings_built_in_code() {
        let text = "model = \"m\"\ndata = \"d.jsonl\"\nform = \"qi\"\nmax_new_tokens = 2\n";
        let read = EvalConfig::from_text(text, Path::new("/settings/eval.toml"), &["batch=3".into()]).unwrap();
        let mut built = EvalConfig::new("/settings/m", "/settings/d.jsonl", EvalForm::Qi);
        built.max_new_tokens = Some(2);
        built.batch = 3;
        assert_eq!(read, built);
    }

    #[test]
    fn a_wrong_option_is_named_with_its_line() {
        let text = "model = \"m\"\ndata = \"d\"\ntemperature = 1.0\n";
        let error = EvalConfig::from_text(text, Path::new("eval.toml"), &[]).unwrap_err();
        let expected = "temperature: it means nothing to the form perplexity (line 3 of eval.toml); leave it out, or use `form` qi \
                        or generate or refusal";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn zero_batches_and_lone_filters_are_refused() {
        let mut config = EvalConfig::new("m", "d", EvalForm::Generate);
        config.batch = 0;
        assert!(matches!(config.check(), Err(Error::Config { key, .. }) if key == "batch"));
        config.batch = 1;
        config.top_k = Some(3);
        assert!(matches!(config.check(), Err(Error::Config { key, .. }) if key == "top_k"));
        config.temperature = Some(0.5);
        assert!(config.check().is_ok());
    }
}
