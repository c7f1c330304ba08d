//! The preference losses of sequences and of pairs of them; formulas in [`Preference`] and [`NegativePreference`].

use super::Cpu;
use super::view::{floats, floats_mut};
use crate::error::Result;
use crate::ops::{Checked, Execute, NegativePreference, Preference, Segment};

fn sum(values: &[f32], segment: &Segment) -> f64 {
    values[segment.start..segment.start + segment.length].iter().map(|&v| f64::from(v)).sum()
}

/// log(1 + eˣ) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Execute<Preference<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<Preference<Cpu>>) -> Result<()> {
        let Preference { values, segments, reference_margins, beta, scale, weights, losses } = checked.operands();
        let values = floats(values);
        let margins = floats(reference_margins);
        let weights = floats_mut(weights);
        let losses = floats_mut(losses);
        let pairs = losses.len();
        for (i, pair) in segments.host.chunks_exact(2).enumerate() {
            let [chosen, rejected] = pair else { continue };
            let delta = f64::from(beta) * (sum(values, rejected) - sum(values, chosen) - f64::from(margins[i]));
            losses[i] = softplus(-delta) as f32;
            let sigma = 1.0 / (1.0 + delta.exp());
            let factor = (f64::from(scale) * f64::from(beta) * sigma / pairs as f64) as f32;
            for (segment, factor) in [(chosen, factor), (rejected, -factor)] {
                for weight in &mut weights[segment.start..segment.start + segment.length] {
                    *weight *= factor;
                }
            }
        }
        Ok(())
    }
}

impl Execute<NegativePreference<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<NegativePreference<Cpu>>) -> Result<()> {
        let NegativePreference { values, segments, lengths, references, beta, scale, weights, losses } =
            checked.operands();
        let values = floats(values);
        let lengths = floats(lengths);
        let references = floats(references);
        let weights = floats_mut(weights);
        let losses = floats_mut(losses);
        let beta = f64::from(beta);
        let sequences = losses.len();
        for (i, segment) in segments.host.iter().enumerate() {
            let length = f64::from(lengths[i]);
            let x = beta * (-sum(values, segment) / length - f64::from(references[i]));
            losses[i] = (2.0 / beta * softplus(x)) as f32;
            let sigma = 1.0 / (1.0 + (-x).exp());
            let factor = (-2.0 * f64::from(scale) * sigma / length / sequences as f64) as f32;
            for weight in &mut weights[segment.start..segment.start + segment.length] {
                *weight *= factor;
            }
        }
        Ok(())
    }
}
