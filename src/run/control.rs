//! How a run is resumed, watched and stopped.

use std::ops::ControlFlow;

use super::Event;
use super::signals::StopFlag;

/// A control is handed to a run beside its settings. It says whether the run goes on with an earlier one, who watches it, and
/// who can stop it.
///
/// A run that is stopped ends with [`Error::Interrupted`](crate::Error::Interrupted), at a safe point and with a checkpoint
/// where the run keeps any.
///
/// ```
/// use std::ops::ControlFlow;
/// use temper::api::{Control, Event};
///
/// let control = Control::new().resume(true).observe(|event| match event {
///     Event::Step { step: 100, .. } => ControlFlow::Break(()),
///     _ => ControlFlow::Continue(()),
/// });
/// # drop(control);
/// ```
#[derive(Default)]
pub struct Control<'a> {
    resume: bool,
    stop: StopFlag,
    observer: Option<Box<Observer<'a>>>,
    /// Whether the observer has asked for a stop.
    broken: bool,
}

/// Receives a run's events, and says whether it goes on.
type Observer<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

impl<'a> Control<'a> {
    /// A run from its beginning that nobody watches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the run goes on with the one whose output directory it is given; without one there, it begins.
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Has `observer` told of every event, in the thread that runs. [`ControlFlow::Break`] stops the run.
    pub fn observe(mut self, observer: impl FnMut(Event) -> ControlFlow<()> + 'a) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Lets `stop` stop the run, from a signal handler or another thread.
    pub fn stop_by(mut self, stop: &StopFlag) -> Self {
        self.stop = stop.clone();
        self
    }

    /// Whether to go on with an earlier run.
    pub(crate) fn resumes(&self) -> bool {
        self.resume
    }

    /// Tells the observer. Its answer counts at the next safe point, which asks [`Control::stop_requested`].
    pub(crate) fn tell(&mut self, event: Event) {
        let Some(observer) = &mut self.observer else { return };
        self.broken |= observer(event).is_break();
    }

    /// Whether the run is to stop.
    pub(crate) fn stop_requested(&self) -> bool {
        self.broken || self.stop.requested()
    }

    /// A control for a part of this run: its observer and its stop are this run's, and it goes on with what is there.
    pub(crate) fn for_part(&mut self) -> Control<'_> {
        let stop = self.stop.clone();
        let part = Control::new().resume(true).stop_by(&stop);
        match &mut self.observer {
            Some(observer) => part.observe(observer),
            None => part,
        }
    }

    /// The flag, for threads that cannot tell the observer.
    pub(crate) fn stop_flag(&self) -> StopFlag {
        self.stop.clone()
    }
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Control").field("resume", &self.resume).field("stop", &self.stop).finish_non_exhaustive()
    }
}
