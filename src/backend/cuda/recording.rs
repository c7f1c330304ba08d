//! Work that is the same operations every time: executed once, then recorded as a graph, then replayed.
//!
//! The first execution loads kernels, finds algorithms and allocates scratch memory, none of which may happen while a
//! graph is recorded. A simulated device calls the work at every replay and compares what it would queue with what was
//! recorded, so that a step that is not the same every time fails in the tests.

use std::sync::Arc;

use super::Cuda;
use super::driver::{Driver, Graph};
use crate::error::{Error, Result};

/// Recorded work. Nothing is recorded yet in a new one.
#[derive(Default)]
pub struct Recording {
    state: State,
    /// The generation of scratch buffers that the work ran with.
    generation: u64,
}

#[derive(Default)]
enum State {
    #[default]
    New,
    Executed,
    Recorded(OwnedGraph),
}

/// A graph that is dropped with its owner.
struct OwnedGraph {
    driver: Arc<dyn Driver>,
    graph: Graph,
}

impl Drop for OwnedGraph {
    fn drop(&mut self) {
        self.driver.forget(self.graph);
    }
}

/// See [`crate::ops::Backend::record`].
pub(super) fn run(cuda: &Cuda, recording: &mut Recording, work: impl FnOnce() -> Result<()>) -> Result<()> {
    if !cuda.driver.can_record() {
        return work();
    }
    if recording.generation != cuda.scratch().generation() {
        recording.state = State::New;
    }
    match &recording.state {
        State::New => {
            work()?;
            *recording = Recording { state: State::Executed, generation: cuda.scratch().generation() };
            return Ok(());
        }
        State::Executed => recording.state = State::Recorded(record(cuda, work)?),
        State::Recorded(recorded) if cuda.driver.is_simulated() => {
            let again = record(cuda, work)?;
            if let Some(difference) = cuda.driver.difference(recorded.graph, again.graph) {
                return Err(Error::Device(format!("a recorded step is not the same any more: {difference}")));
            }
        }
        State::Recorded(_) => {}
    }
    match &recording.state {
        State::Recorded(recorded) => cuda.driver.replay(recorded.graph),
        State::New | State::Executed => Ok(()),
    }
}

fn record(cuda: &Cuda, work: impl FnOnce() -> Result<()>) -> Result<OwnedGraph> {
    /// Ends the recording also when the work panics.
    struct Open<'a>(Option<&'a Arc<dyn Driver>>);
    impl Drop for Open<'_> {
        fn drop(&mut self) {
            if let Some(Ok(graph)) = self.0.map(|driver| driver.end_recording()) {
                self.0.into_iter().for_each(|driver| driver.forget(graph));
            }
        }
    }
    cuda.driver.begin_recording()?;
    let mut open = Open(Some(&cuda.driver));
    work()?;
    open.0 = None;
    Ok(OwnedGraph { graph: cuda.driver.end_recording()?, driver: Arc::clone(&cuda.driver) })
}
