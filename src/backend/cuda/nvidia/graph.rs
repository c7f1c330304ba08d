//! Graphs: work that is recorded once and replayed with one call.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode_enum as Mode};

use super::super::driver::Graph;
use super::device::Nvidia;
use super::error::during;
use super::lock;
use crate::error::{Error, Result};

/// The graphs of a stream, by number.
#[derive(Default)]
pub(super) struct Graphs {
    recorded: HashMap<u64, CudaGraph>,
    count: u64,
}

// SAFETY: the driver forbids two threads in one graph at a time; the lock that `Graphs` lives behind sees to that.
unsafe impl Send for Graphs {}

impl Nvidia {
    pub(super) fn begin_capture(&self) -> Result<()> {
        self.bind()?;
        if self.capturing.load(Ordering::Acquire) {
            return Err(Error::Device("a graph inside a graph".into()));
        }
        self.stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(during("capture of a graph"))?;
        self.capturing.store(true, Ordering::Release);
        Ok(())
    }

    pub(super) fn end_capture(&self) -> Result<Graph> {
        let ended = self.stream.end_capture(CUgraphInstantiate_flags(0));
        self.capturing.store(false, Ordering::Release);
        self.release_now();
        let graph = ended.map_err(during("capture of a graph"))?;
        let graph = graph.ok_or_else(|| Error::Device("the captured work is not a graph".into()))?;
        graph.upload().map_err(during("a graph"))?;
        let mut graphs = lock(&self.graphs);
        graphs.count += 1;
        let number = graphs.count;
        graphs.recorded.insert(number, graph);
        Ok(Graph(number))
    }

    pub(super) fn replay_graph(&self, graph: Graph) -> Result<()> {
        self.bind()?;
        match lock(&self.graphs).recorded.get(&graph.0) {
            Some(graph) => graph.launch().map_err(during("replay of a graph")),
            None => Err(Error::Device("replay of a graph that was never recorded, or was dropped".into())),
        }
    }

    pub(super) fn drop_graph(&self, graph: Graph) {
        // A graph's execution may outlive its handle: the driver keeps what is in flight.
        lock(&self.graphs).recorded.remove(&graph.0);
    }
}
