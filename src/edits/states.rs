//! The hidden states that two kinds of prompts are told apart by: those at the last token of each prompt, where a chat model is about to answer.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::{Batch, Parameters};
use crate::objective::{Evaluator, LossBatch, Subject};
use crate::ops::{self, Backend, Tensor};

/// One of the two kinds of prompts, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    /// The setting that names its data.
    pub key: &'static str,
    /// What it is called.
    pub name: &'static str,
}

/// The hidden states at the last tokens of prompts, of the levels 1 (the output of the first layer) to L.
pub(crate) struct States {
    /// Their means.
    pub means: Vec<Vec<f64>>,
    /// Row by row, those of each prompt; empty unless they were asked for.
    pub rows: Vec<Vec<f32>>,
    /// Tokens that went forward.
    pub tokens: u64,
}

impl States {
    /// Reads the states at the prompts of `rows`. Errors name the `side`; `keep` keeps each prompt's states
    /// beside the means.
    pub(crate) fn read<B: Backend>(
        evaluator: &mut Evaluator<B>,
        weights: &Parameters<B>,
        rows: &[Batch],
        side: Side,
        keep: bool,
    ) -> Result<Self> {
        let model = Arc::clone(evaluator.model());
        let width = model.config.hidden_size;
        let layers = model.config.num_hidden_layers;
        let mut means = vec![vec![0.0f64; width]; layers];
        let mut kept = vec![Vec::new(); layers];
        let mut count = 0u64;
        let mut tokens = 0;
        for batch in rows.iter().map(prompts).filter(|batch| !batch.is_empty()) {
            let last = last_tokens(&batch);
            let batch = LossBatch::new(&model, batch)?;
            evaluator.forward(Subject::plain(weights), &batch)?;
            let indices = Tensor::from_u32(&model.backend, "last tokens", &last)?;
            let mut states = Tensor::zeros(&model.backend, "states", last.len(), width, model.backend.compute_dtype())?;
            for ((level, sum), kept) in (1..=layers).zip(&mut means).zip(&mut kept) {
                let hidden = evaluator.workspace().residual(level, batch.host().len());
                model.backend.run(ops::GatherRows { from: hidden, indices: indices.view(), out: states.view_mut() })?;
                let read = states.to_vec(&model.backend)?;
                for row in read.chunks_exact(width) {
                    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
                }
                if keep {
                    kept.extend(read);
                }
            }
            count += last.len() as u64;
            tokens += batch.host().len() as u64;
        }
        if count == 0 {
            let Side { key, name } = side;
            return Err(Error::config(key, format!("there are no {name} rows"), "give it both sides"));
        }
        means.iter_mut().flatten().for_each(|sum| *sum /= count as f64);
        Ok(Self { means, rows: kept, tokens })
    }
}

/// The rows of a batch at which its sequences end.
pub(crate) fn last_tokens(batch: &Batch) -> Vec<u32> {
    batch.segments.iter().map(|s| (s.start + s.length - 1) as u32).collect()
}

/// The prompts of a batch's rows: all before the first learned token, or the whole row where it learns from the start.
pub(crate) fn prompts(batch: &Batch) -> Batch {
    let mut prompts = Batch::default();
    for s in &batch.segments {
        let row = s.start..s.start + s.valid;
        let learned = batch.labels[row.clone()].iter().skip(1).position(|&label| label != ops::IGNORE_INDEX);
        let length = match learned.map(|index| index + 1) {
            Some(first) if first > 1 => first,
            _ => s.valid,
        };
        let tokens = &batch.tokens[row][..length];
        if !tokens.is_empty() {
            prompts.push(tokens, &vec![ops::IGNORE_INDEX; length], length);
        }
    }
    prompts
}
