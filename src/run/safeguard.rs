//! The plain safeguard of a run file, which runs before the nested loop.

use std::sync::Arc;

use super::{Control, Event, LoadedModel, Measured, Phase};
use crate::config::{RunConfig, SafeguardConfig, SafeguardMethod};
use crate::error::{Error, Result};
use crate::model::{Parameters, Recompute};
use crate::objective::Evaluator;
use crate::ops::Backend;
use crate::report::MetricsWriter;
use crate::safeguard::{RemovalLoss, Safeguard};
use crate::tar::Streams;

/// Trains the safeguard that `config` asks for on the loaded weights, with activations computed again as attacks do it.
///
/// # Errors
/// [`Error::Interrupted`] after a request to stop: it is short and keeps no checkpoints, so it starts over.
pub(super) fn apply<B: Backend>(
    loaded: &mut LoadedModel<B>,
    reference: &Parameters<B>,
    streams: &mut Streams,
    (config, table): (&RunConfig, &SafeguardConfig),
    recompute: Recompute,
    metrics: &mut MetricsWriter,
    control: &mut Control,
) -> Result<()> {
    let model = Arc::clone(&loaded.model);
    let mut evaluator = Evaluator::recomputing(Arc::clone(&model), streams.max_batch_tokens(), &[], recompute)?;
    let over = config.compat.representations_over;
    let mut safeguard = Safeguard::new(&model, removal_loss(config, table), table.optimizer_config(), over)?;
    control.tell(Event::Begin { phase: Phase::Safeguard, from: 0, steps: table.steps });
    for step in 1..=table.steps {
        if control.stop_requested() {
            let remedy = "the safeguard starts over in a run with `resume`".into();
            return Err(Error::Interrupted { at: format!("in step {step} of the safeguard"), remedy });
        }
        let restricted = streams.next_batch(&model, &table.data)?;
        let retain = streams.next_batch(&model, config.safeguard_retain(table))?;
        let losses = safeguard.step(&mut evaluator, &mut loaded.weights, reference, &restricted, &retain)?;
        let measured = Measured::Safeguard(losses);
        metrics.record("safeguard", step, &measured.record())?;
        control.tell(Event::Step { step, measured });
    }
    let point = safeguard.trainer().optimizer().average_point(&model.backend, &loaded.weights)?;
    loaded.weights.upload(&model.backend, &point)
}

fn removal_loss(config: &RunConfig, table: &SafeguardConfig) -> RemovalLoss {
    let over = config.compat.entropy_over;
    match table.method {
        SafeguardMethod::RandomMapping => RemovalLoss::RandomMapping { seed: config.seed, over },
        SafeguardMethod::MaxEntropy => RemovalLoss::MaxEntropy { over },
        SafeguardMethod::Refusal => RemovalLoss::Refusal { beta: config.tar.dpo_beta as f32 },
    }
}
