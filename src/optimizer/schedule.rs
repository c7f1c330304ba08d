//! Learning-rate schedules: a factor on the peak learning rate for each step.

/// What happens after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// Nothing: the peak stays.
    Constant,
    /// Half a cosine down to `floor` (a fraction of the peak) at the last step.
    Cosine {
        /// Final factor.
        floor: f64,
    },
    /// A straight line down to `floor` at the last step.
    Linear {
        /// Final factor.
        floor: f64,
    },
    /// SGDR: half a cosine every `period` steps, then back to the peak.
    Restarts {
        /// Steps of one cycle.
        period: u64,
        /// Factor at the end of a cycle.
        floor: f64,
    },
}

/// Warm-up and decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps of the linear ramp: step k (from 0) has factor (k + 1) / warmup until it reaches 1.
    pub warmup: u64,
    /// What follows.
    pub decay: Decay,
    /// Steps of the whole run, for the decays that end with it.
    pub total: u64,
    /// Reproduce the TAR authors' broken warm-up instead (see `research`: the factor is lr·k/warmup, about 0).
    pub official_warmup: bool,
}

impl Schedule {
    /// The peak at every step.
    pub const fn constant() -> Self {
        Self { warmup: 0, decay: Decay::Constant, total: 0, official_warmup: false }
    }
}
