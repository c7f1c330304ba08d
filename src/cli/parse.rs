//! Argument values that clap has no parser for.

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};
use temper::huggingface::ExportDType;
use temper::model::Projection;
use temper::optimizer::{Decay, OptimizerKind, Schedule};

/// An optimizer, by the name that run files use.
pub fn optimizer(name: &str) -> Result<OptimizerKind, Error> {
    let deserializer: StrDeserializer<Error> = name.into_deserializer();
    OptimizerKind::deserialize(deserializer)
}

/// A projection that LoRA adapts.
pub fn projection(name: &str) -> Result<Projection, Error> {
    let deserializer: StrDeserializer<Error> = name.into_deserializer();
    Projection::deserialize(deserializer)
}

/// A dtype of written weights.
pub fn dtype(name: &str) -> Result<ExportDType, String> {
    match name {
        "f32" => Ok(ExportDType::F32),
        "bf16" => Ok(ExportDType::Bf16),
        "f16" => Ok(ExportDType::F16),
        _ => Err("expected f32, bf16 or f16".into()),
    }
}

/// What the learning rate does after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecayArgument(Decay);

impl DecayArgument {
    /// The schedule of a run of `total` steps.
    pub fn schedule(self, warmup: u64, total: u64) -> Schedule {
        Schedule { warmup, decay: self.0, total, official_warmup: false }
    }
}

/// `constant`, `cosine`, `linear` or `sgdr:N` (a restart every N steps); all but the first fall to 0.
pub fn decay(text: &str) -> Result<DecayArgument, String> {
    let decay = match text.split_once(':') {
        None if text == "constant" => Decay::Constant,
        None if text == "cosine" => Decay::Cosine { floor: 0.0 },
        None if text == "linear" => Decay::Linear { floor: 0.0 },
        Some(("sgdr", period)) => match period.parse() {
            Ok(period) if period > 0 => Decay::Restarts { period, floor: 0.0 },
            _ => return Err(format!("`{period}` is no number of steps above 0")),
        },
        _ => return Err("expected constant, cosine, linear or sgdr:N".into()),
    };
    Ok(DecayArgument(decay))
}

/// A finite number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && f64::is_finite(value) => Ok(value),
        _ => Err("expected a finite number above 0".into()),
    }
}

/// A probability below 1.
pub fn dropout(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("expected 0 or more and less than 1".into()),
    }
}

/// A whole number of at least 1.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if value > 0 => Ok(value),
        _ => Err("expected a whole number of at least 1".into()),
    }
}
