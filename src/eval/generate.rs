//! Generation: continues many texts at a time through a cache. A text that ends leaves the batch at once, and the next one
//! takes its place.

use rayon::prelude::*;

use super::perplexity::not_finite;
use super::sample::{Sampling, argmax};
use crate::error::{Error, Result};
use crate::model::{CachedSequence, ExtendWorkspace, Extension, KeyValueCache, Model};
use crate::objective::Subject;
use crate::ops::Backend;
use crate::random::{Random, Stream};

/// The most tokens of a forward pass that suit any device: enough to keep a large one busy, and little memory.
pub const PASS_TOKENS: usize = 2048;

/// How texts are continued.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct GenerateOptions {
    /// The most tokens that are added to a prompt.
    pub max_new_tokens: usize,
    /// Tokens that end a text, for example [`crate::model::ModelConfig::stop_tokens`].
    pub stop: Vec<u32>,
    /// How tokens are drawn; `None` takes the most probable one (greedy decoding).
    pub sampling: Option<Sampling>,
    /// Seed of the draws. The draw for a token is a function of seed, index of the prompt and position.
    pub seed: u64,
    /// Texts at a time.
    pub batch: usize,
    /// The most tokens that one forward pass computes; longer prompts are read in pieces.
    pub pass_tokens: usize,
}

impl Default for GenerateOptions {
    /// Greedy, 256 tokens, no stop token, 32 texts at a time, [`PASS_TOKENS`] a pass.
    fn default() -> Self {
        Self { max_new_tokens: 256, stop: Vec::new(), sampling: None, seed: 0, batch: 32, pass_tokens: PASS_TOKENS }
    }
}

impl GenerateOptions {
    fn check(&self) -> Result<()> {
        let refuse = |key: &str, problem: String, remedy: &str| Err(Error::config(key, problem, remedy));
        if self.batch == 0 || self.pass_tokens == 0 {
            return refuse("batch", "nothing can be generated for 0 texts at a time".into(), "set it to 1 or more");
        }
        let Some(Sampling { temperature, top_k, top_p }) = self.sampling else { return Ok(()) };
        if !(temperature.is_finite() && temperature > 0.0) {
            let remedy = "give a number above 0, or leave it out for the most probable tokens";
            return refuse("temperature", format!("{temperature} is no temperature"), remedy);
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p", format!("{top_p} is no share"), "give a number above 0 and up to 1");
        }
        match top_k {
            Some(0) => refuse("top_k", "no token is left of 0".into(), "set it to 1 or more, or leave it out"),
            _ => Ok(()),
        }
    }
}

/// Continues every prompt, and returns what was added to each, in order, without the token that ended it. A text also ends
/// at the last of the model's positions.
///
/// The size of the batch changes no draw. It changes the order of sums in a logit, so that between tokens that are equally
/// probable to the last bits another one may win.
///
/// Fails if a prompt is empty or leaves no position for a token, and if a logit is NaN.
pub fn generate<B: Backend>(
    model: &Model<B>,
    subject: Subject<B>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> Result<Vec<Vec<u32>>> {
    options.check()?;
    for (index, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() || prompt.len() >= model.positions() {
            let problem = format!("prompt {index} has {} of the model's {} positions", prompt.len(), model.positions());
            return Err(Error::config("data", problem, "leave room for an answer, and give every prompt a token"));
        }
    }
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return Ok(vec![Vec::new(); prompts.len()]);
    }
    let mut generator = Generator::new(model, subject, prompts, options)?;
    while generator.pass()? {}
    Ok(generator.answers)
}

/// A text that is being continued.
struct Text {
    /// Index of its prompt.
    prompt: usize,
    /// The prompt and what was added; the cache holds the first of them.
    tokens: Vec<u32>,
    sequence: CachedSequence,
}

impl Text {
    /// The next token; `None` if there is none for a NaN among the logits.
    fn draw(&self, logits: &[f32], options: &GenerateOptions) -> Option<u32> {
        let Some(sampling) = options.sampling else { return argmax(logits) };
        let prompt = self.prompt as u64;
        let position = self.tokens.len() as u64;
        sampling.draw(logits, &mut Random::new(options.seed, Stream::Generation, prompt, position))
    }
}

struct Generator<'a, B: Backend> {
    model: &'a Model<B>,
    subject: Subject<'a, B>,
    prompts: &'a [Vec<u32>],
    options: &'a GenerateOptions,
    cache: KeyValueCache<B>,
    workspace: ExtendWorkspace<B>,
    active: Vec<Text>,
    /// The first prompt that nobody has begun with.
    next: usize,
    answers: Vec<Vec<u32>>,
}

impl<'a, B: Backend> Generator<'a, B> {
    fn new(
        model: &'a Model<B>,
        subject: Subject<'a, B>,
        prompts: &'a [Vec<u32>],
        options: &'a GenerateOptions,
    ) -> Result<Self> {
        let longest = |prompt: &Vec<u32>| prompt.len().saturating_add(options.max_new_tokens).min(model.positions());
        let mut lengths: Vec<usize> = prompts.iter().map(longest).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let slots: usize = lengths.iter().take(options.batch).sum();
        let tokens: usize = lengths.iter().sum();
        let capacity = options.pass_tokens.max(options.batch.min(prompts.len())).min(tokens);
        Ok(Self {
            cache: KeyValueCache::new(model, slots)?,
            workspace: ExtendWorkspace::new(&model.backend, &model.config, capacity, subject.adapter)?,
            model,
            subject,
            prompts,
            options,
            active: Vec::new(),
            next: 0,
            answers: vec![Vec::new(); prompts.len()],
        })
    }

    /// One forward pass: reads prompts and new tokens, and draws the next token of every text that is read to its end. Says
    /// whether there was anything to do.
    fn pass(&mut self) -> Result<bool> {
        self.admit();
        let ends = self.read()?;
        if ends.is_empty() {
            return Ok(!self.active.is_empty());
        }
        let rows: Vec<u32> = ends.iter().map(|&(_, row)| row).collect();
        let logits = self.model.extended_logits(self.subject.weights, &self.workspace, &rows)?;
        let rows = logits.par_chunks(self.model.config.vocab_size);
        let active = &self.active;
        let options = self.options;
        let draw = |(&(index, _), logits): (&(usize, u32), &[f32])| active[index].draw(logits, options);
        let drawn: Vec<Option<u32>> = ends.par_iter().zip(rows).map(draw).collect();
        let mut ended = vec![false; self.active.len()];
        for (&(index, _), token) in ends.iter().zip(drawn) {
            ended[index] = self.add_token(index, token)?;
        }
        for (text, ended) in std::mem::take(&mut self.active).into_iter().zip(ended) {
            if ended {
                self.finish(text);
            } else {
                self.active.push(text);
            }
        }
        Ok(true)
    }

    /// Begins with as many prompts as there is room for.
    fn admit(&mut self) {
        while self.active.len() < self.options.batch && self.next < self.prompts.len() {
            let prompt = self.next;
            let tokens = self.prompts[prompt].clone();
            self.active.push(Text { prompt, tokens, sequence: CachedSequence::default() });
            self.next += 1;
        }
    }

    /// Computes what the cache does not hold yet, as much as one pass takes, and returns (index, row of its last token) of
    /// each text that is complete with it.
    fn read(&mut self) -> Result<Vec<(usize, u32)>> {
        let mut left = self.workspace.capacity();
        let mut row = 0;
        let mut extensions = Vec::new();
        let mut ends = Vec::new();
        for (index, Text { tokens, sequence, .. }) in self.active.iter_mut().enumerate() {
            let new = &tokens[sequence.len()..];
            let taken = &new[..new.len().min(left)];
            left -= taken.len();
            row += taken.len();
            if taken.len() == new.len() {
                ends.push((index, row as u32 - 1));
            }
            extensions.push(Extension { sequence, tokens: taken });
        }
        let Subject { weights, adapter, .. } = self.subject;
        self.model.extend(weights, adapter, &mut self.cache, &mut extensions, &mut self.workspace)?;
        Ok(ends)
    }

    /// Adds the token that was drawn to a text; says whether it has ended.
    fn add_token(&mut self, index: usize, token: Option<u32>) -> Result<bool> {
        let Text { prompt, tokens, .. } = &mut self.active[index];
        let token = token.ok_or_else(|| not_finite(format!("a logit after prompt {prompt}")))?;
        if self.options.stop.contains(&token) {
            return Ok(true);
        }
        tokens.push(token);
        let added = tokens.len() - self.prompts[*prompt].len();
        Ok(added == self.options.max_new_tokens || tokens.len() == self.model.positions())
    }

    fn finish(&mut self, mut text: Text) {
        self.cache.release(text.sequence);
        self.answers[text.prompt] = text.tokens.split_off(self.prompts[text.prompt].len());
    }
}
