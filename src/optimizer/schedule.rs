//! Learning-rate schedules: a factor on the peak learning rate for each step.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The course of the learning rate after the warm-up.
///
/// Written as `constant`, `cosine`, `linear` or `sgdr:PERIOD`; the last three take a final factor after one more colon
/// (`cosine:0.1`, `sgdr:100:0.1`), which is 0 otherwise.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Decay {
    /// Nothing: the peak stays.
    Constant,
    /// Half a cosine that reaches `floor` (a fraction of the peak) when the run is over, as PyTorch's CosineAnnealingLR.
    Cosine {
        /// Final factor.
        floor: f64,
    },
    /// A straight line that reaches `floor` when the run is over, as Transformers' linear schedule.
    Linear {
        /// Final factor.
        floor: f64,
    },
    /// SGDR: half a cosine every `period` steps, then back to the peak (PyTorch's CosineAnnealingWarmRestarts).
    Restarts {
        /// Steps of one cycle.
        period: u64,
        /// Factor at the end of a cycle.
        floor: f64,
    },
}

impl Decay {
    /// Whether the first steps of a longer run would have other factors.
    pub const fn depends_on_length(self) -> bool {
        matches!(self, Self::Cosine { .. } | Self::Linear { .. })
    }
}

/// Warm-up and decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps of the linear ramp: step k (from 0) has factor (k + 1) / warmup until it reaches 1.
    pub warmup: u64,
    /// The course after it.
    pub decay: Decay,
    /// Steps of the whole run, for the decays that end with it.
    pub total: u64,
    /// Reproduce the TAR authors' broken warm-up instead: they hand a learning rate to something that expects a factor,
    /// so that step k has factor peak · k / warmup, which is about 0, and then the peak at once.
    pub official_warmup: bool,
}

impl Schedule {
    /// The peak at every step.
    pub const fn constant() -> Self {
        Self { warmup: 0, decay: Decay::Constant, total: 0, official_warmup: false }
    }

    /// The factor on `peak` at `step`, counted from 0. (`peak` itself matters to `official_warmup` only.)
    pub fn factor(&self, peak: f64, step: u64) -> f64 {
        if step < self.warmup {
            let warmup = self.warmup as f64;
            return if self.official_warmup { peak * (step as f64 / warmup) } else { (step + 1) as f64 / warmup };
        }
        let position = step - self.warmup;
        let length = self.total.saturating_sub(self.warmup);
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine { floor } => above(floor, half_cosine(position, length)),
            Decay::Linear { floor } => above(floor, 1.0 - fraction(position, length)),
            Decay::Restarts { period, floor } => {
                above(floor, half_cosine(position.checked_rem(period).unwrap_or(0), period))
            }
        }
    }

    /// Fails where the schedule makes no sense; `key` is the setting that the error names.
    pub fn validate(&self, key: &str) -> Result<()> {
        let floor = match self.decay {
            Decay::Constant => return Ok(()),
            Decay::Restarts { period: 0, .. } => {
                return Err(Error::config(key, "the period of the restarts is 0", "give it at least one step"));
            }
            Decay::Cosine { .. } | Decay::Linear { .. } if self.total <= self.warmup => {
                let problem =
                    format!("{} warm-up steps leave nothing of a run of {} steps to decay", self.warmup, self.total);
                return Err(Error::config(key, problem, "use fewer warm-up steps or the constant schedule"));
            }
            Decay::Cosine { floor } | Decay::Linear { floor } | Decay::Restarts { floor, .. } => floor,
        };
        if (0.0..=1.0).contains(&floor) {
            return Ok(());
        }
        Err(Error::config(key, format!("the final factor is {floor}"), "use a number from 0 to 1"))
    }
}

/// The part of a way of `length` steps that lies before `position`, from 0 to 1.
fn fraction(position: u64, length: u64) -> f64 {
    if position >= length { 1.0 } else { position as f64 / length as f64 }
}

/// From 1 down to 0 along half a cosine.
fn half_cosine(position: u64, length: u64) -> f64 {
    0.5 * (1.0 + (PI * fraction(position, length)).cos())
}

/// `x` in [0, 1] mapped to [floor, 1].
fn above(floor: f64, x: f64) -> f64 {
    floor + (1.0 - floor) * x
}

impl fmt::Display for Decay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let floor = match *self {
            Self::Constant => return f.write_str("constant"),
            Self::Cosine { floor } => {
                f.write_str("cosine")?;
                floor
            }
            Self::Linear { floor } => {
                f.write_str("linear")?;
                floor
            }
            Self::Restarts { period, floor } => {
                write!(f, "sgdr:{period}")?;
                floor
            }
        };
        if floor == 0.0 { Ok(()) } else { write!(f, ":{floor}") }
    }
}

impl FromStr for Decay {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::config(
                "schedule",
                format!("`{text}` is not a schedule"),
                "use constant, cosine, linear or sgdr:PERIOD; a final factor from 0 to 1 may follow, as in cosine:0.1",
            )
        })
    }
}

fn parse(text: &str) -> Option<Decay> {
    let mut parts = text.split(':');
    let name = parts.next()?;
    let period = match name {
        "sgdr" => parts.next()?.parse().ok().filter(|&period| period > 0)?,
        _ => 0,
    };
    let floor = parts.next();
    if parts.next().is_some() || (name == "constant" && floor.is_some()) {
        return None;
    }
    let floor = floor.map_or(Some(0.0), |floor| floor.parse().ok()).filter(|floor| (0.0..=1.0).contains(floor))?;
    match name {
        "constant" => Some(Decay::Constant),
        "cosine" => Some(Decay::Cosine { floor }),
        "linear" => Some(Decay::Linear { floor }),
        "sgdr" => Some(Decay::Restarts { period, floor }),
        _ => None,
    }
}

impl TryFrom<String> for Decay {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Decay> for String {
    fn from(decay: Decay) -> Self {
        decay.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(warmup: u64, decay: &str, total: u64) -> Schedule {
        Schedule { warmup, decay: decay.parse().unwrap(), total, official_warmup: false }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-15, "{found} is not {expected}");
    }

    /// The ramp starts above 0, ends at the peak, and the peak stays.
    #[test]
    fn warm_up_is_linear_and_ends_at_the_peak() {
        let schedule = schedule(4, "constant", 0);
        let factors: Vec<f64> = (0..6).map(|step| schedule.factor(3e-4, step)).collect();
        assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        assert_eq!(Schedule::constant().factor(1.0, 0), 1.0);
    }

    /// Against the closed forms of PyTorch and Transformers at the start, the middle, the end and beyond.
    #[test]
    fn decays_follow_their_closed_forms() {
        let cosine = schedule(10, "cosine:0.1", 110);
        close(cosine.factor(1.0, 10), 1.0);
        close(cosine.factor(1.0, 35), 0.1 + 0.9 * (0.5 + 0.125f64.sqrt()));
        close(cosine.factor(1.0, 60), 0.55);
        close(cosine.factor(1.0, 110), 0.1);
        close(cosine.factor(1.0, 1000), 0.1);
        let linear = schedule(10, "linear", 110);
        close(linear.factor(1.0, 35), 0.75);
        close(linear.factor(1.0, 109), 0.01);
        close(linear.factor(1.0, 110), 0.0);
        close(linear.factor(1.0, u64::MAX), 0.0);
    }

    /// Each cycle is the same, and its first step has the peak.
    #[test]
    fn restarts_repeat_the_cycle() {
        let sgdr = schedule(5, "sgdr:100:0.2", 0);
        for cycle in 0..3 {
            let start = 5 + 100 * cycle;
            close(sgdr.factor(1.0, start), 1.0);
            close(sgdr.factor(1.0, start + 50), 0.6);
            close(sgdr.factor(1.0, start + 99), 0.2 + 0.4 * (1.0 + (PI * 0.99).cos()));
        }
    }

    /// The authors' factor is a learning rate times a ramp from 0, then 1.
    #[test]
    fn official_warm_up_is_the_authors_defect() {
        let schedule = Schedule { warmup: 4, official_warmup: true, ..Schedule::constant() };
        let factors: Vec<f64> = (0..6).map(|step| schedule.factor(0.5, step)).collect();
        assert_eq!(factors, [0.0, 0.125, 0.25, 0.375, 1.0, 1.0]);
    }

    /// The displayed text parses to the same value, in serde too, and every other text is refused.
    #[test]
    fn names_round_trip_and_nonsense_is_refused() {
        for text in ["constant", "cosine", "cosine:0.1", "linear", "linear:1", "sgdr:100", "sgdr:7:0.25"] {
            let decay: Decay = text.parse().unwrap();
            assert_eq!(decay.to_string(), text);
            let json = serde_json::to_string(&decay).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Decay>(&json).unwrap(), decay);
        }
        for text in [
            "",
            "Cosine",
            "cosine:",
            "cosine:2",
            "cosine:nan",
            "cosine:-0.1",
            "constant:0",
            "sgdr",
            "sgdr:0",
            "sgdr:-1",
            "sgdr:1:0:0",
            "linear:0:1",
            "poly",
        ] {
            let error = text.parse::<Decay>().unwrap_err().to_string();
            assert!(error.contains(text) && !error.contains('\n'), "{error}");
        }
    }

    /// Settings under which the schedule could not do what it says are refused.
    #[test]
    fn validation_refuses_schedules_without_room() {
        assert!(schedule(10, "cosine", 110).validate("lr").is_ok());
        assert!(schedule(10, "constant", 0).validate("lr").is_ok());
        assert!(schedule(10, "sgdr:3", 0).validate("lr").is_ok());
        assert!(schedule(10, "cosine", 10).validate("lr").is_err());
        assert!(schedule(0, "linear", 0).validate("lr").is_err());
        let zero = Decay::Restarts { period: 0, floor: 0.0 };
        assert!(Schedule { decay: zero, ..Schedule::constant() }.validate("lr").is_err());
        assert_eq!(Schedule { decay: zero, ..Schedule::constant() }.factor(1.0, 9), 0.0);
    }
}
