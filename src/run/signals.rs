//! The request to stop: set by SIGTERM, SIGINT, SIGUSR1 or the caller, polled by every loop of a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::error::{Error, Result};

/// Whether the run was asked to stop. Cheap to clone and to poll; all clones share one state.
#[derive(Clone, Debug, Default)]
pub struct StopFlag {
    requested: Arc<AtomicBool>,
    signalled: Arc<AtomicBool>,
}

impl StopFlag {
    /// A flag that SIGTERM, SIGINT and SIGUSR1 set. A second signal ends the process at once with status 128 + its number.
    pub fn install() -> Result<Self> {
        let stop = Self::never();
        for signal in [SIGTERM, SIGINT, SIGUSR1] {
            // The order matters: at the first signal the shutdown finds the flag clear, at the second one it finds it set.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop.signalled))
                .and_then(|_| flag::register(signal, Arc::clone(&stop.signalled)))
                .map_err(Error::system(format!("handle signal {signal}")))?;
        }
        Ok(stop)
    }

    /// A flag that no signal sets, for library users and tests; [`StopFlag::request`] still does.
    pub fn never() -> Self {
        Self::default()
    }

    /// Asks the run to stop, as a first signal does. A signal after it does not yet end the process.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Whether to stop.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed) || self.signalled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use signal_hook::low_level::raise;

    use super::*;

    /// Set in the child process of [`a_second_signal_ends_the_process`]: the signal that it raises twice.
    const CHILD: &str = "TEMPER_TEST_SIGNAL";

    #[test]
    fn clones_share_a_request() {
        let stop = StopFlag::never();
        let clone = stop.clone();
        assert!(!clone.requested());
        stop.request();
        assert!(clone.requested());
        assert!(!StopFlag::never().requested());
    }

    /// The child's part; without the variable it has none.
    #[test]
    fn raise_twice_in_the_child() {
        let Ok(signal) = std::env::var(CHILD) else { return };
        let signal = signal.parse().unwrap();
        let stop = StopFlag::install().unwrap();
        stop.request();
        assert!(stop.requested() && !stop.signalled.load(Ordering::Relaxed));
        raise(signal).unwrap();
        assert!(stop.signalled.load(Ordering::Relaxed), "the first signal must set the flag");
        raise(signal).unwrap();
        unreachable!("the second signal must end the process");
    }

    /// The first signal only sets the flag, even after a request; the second exits with 128 + n, for each signal.
    #[test]
    fn a_second_signal_ends_the_process() {
        for signal in [SIGTERM, SIGINT, SIGUSR1] {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "run::signals::tests::raise_twice_in_the_child", "--nocapture"])
                .env(CHILD, signal.to_string())
                .output()
                .unwrap();
            assert_eq!(child.status.code(), Some(128 + signal), "{child:?}");
            assert_eq!(child.status.signal(), None);
        }
    }
}
