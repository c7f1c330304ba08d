//! What becomes of a step whose loss or gradient is not finite.

use crate::error::{Error, Result};

/// Steps that may be left out one after another before the run gives up.
const MOST_SKIPS: u64 = 3;

/// The one policy for numbers that are not finite: the step is left out, with the weights as they were, and the third such
/// step in a row ends the run.
#[derive(Clone, Copy, Debug)]
pub struct StepGuard {
    what: &'static str,
    remedy: &'static str,
    skipped_in_a_row: u64,
}

impl StepGuard {
    /// No step left out yet. An error says that `what` was not finite and to do `remedy`.
    pub fn new(what: &'static str, remedy: &'static str) -> Self {
        Self { what, remedy, skipped_in_a_row: 0 }
    }

    /// Steps left out in a row, for a checkpoint.
    pub fn skipped_in_a_row(&self) -> u64 {
        self.skipped_in_a_row
    }

    /// Puts a checkpoint's count back.
    pub fn restore(&mut self, skipped_in_a_row: u64) {
        self.skipped_in_a_row = skipped_in_a_row;
    }

    /// Whether `step` is to be left out, given whether all its numbers are finite.
    ///
    /// # Errors
    /// [`Error::NonFinite`] at the third step in a row.
    pub fn skips(&mut self, finite: bool, step: u64) -> Result<bool> {
        self.skipped_in_a_row = if finite { 0 } else { self.skipped_in_a_row + 1 };
        if self.skipped_in_a_row >= MOST_SKIPS {
            let what = format!("{}, {MOST_SKIPS} steps in a row,", self.what);
            return Err(Error::NonFinite { what, step, remedy: self.remedy.into() });
        }
        Ok(!finite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_bad_step_in_a_row_ends_the_run_and_a_good_one_starts_the_count_again() {
        let mut guard = StepGuard::new("the loss", "lower its lr");
        for (step, finite) in [false, false, true, false, false].into_iter().enumerate() {
            assert_eq!(guard.skips(finite, step as u64).unwrap(), !finite);
        }
        let mut resumed = StepGuard::new("the loss", "lower its lr");
        resumed.restore(guard.skipped_in_a_row());
        assert!(matches!(resumed.skips(false, 5), Err(Error::NonFinite { step: 5, .. })));
    }
}
