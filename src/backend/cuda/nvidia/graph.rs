//! Graphs: work that is recorded once and replayed with one call.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode_enum as Mode};

use super::device::Nvidia;
use super::error::during;
use crate::error::{Error, Result};

/// Recorded work. It refers to the memory that it was recorded with, and repeats what the host passed by value.
pub struct Graph {
    graph: CudaGraph,
    device: Arc<Nvidia>,
}

// SAFETY: the driver forbids two threads in one graph at a time; `replay` needs it mutably, and nothing else uses it.
unsafe impl Send for Graph {}

impl Nvidia {
    /// Records what `work` queues, without executing it.
    ///
    /// Run the same work once before, so that kernels are loaded and buffers allocated: allocations, uploads and
    /// downloads are refused inside. Every buffer that it uses must outlive the graph. No other thread may use this
    /// stream meanwhile.
    ///
    /// # Errors
    /// When `work` fails, or does what cannot be recorded.
    pub fn capture(self: &Arc<Self>, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(during("capture of a graph"))?;
        self.capturing.store(true, Ordering::Release);
        let mut capture = Capture { device: self, graph: None, ended: false };
        let worked = work();
        let ended = capture.end();
        worked?;
        ended?;
        let graph = capture.graph.take();
        let graph = graph.ok_or_else(|| Error::Device("the captured work is not a graph".into()))?;
        graph.upload().map_err(during("a graph"))?;
        Ok(Graph { graph, device: Arc::clone(self) })
    }
}

impl Graph {
    /// Queues the recorded work once more.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn replay(&mut self) -> Result<()> {
        self.device.bind()?;
        self.graph.launch().map_err(during("replay of a graph"))
    }
}

/// A capture under way: ended in any case, also when the work panics.
struct Capture<'a> {
    device: &'a Nvidia,
    graph: Option<CudaGraph>,
    ended: bool,
}

impl Capture<'_> {
    fn end(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        let graph = self.device.stream.end_capture(CUgraphInstantiate_flags(0));
        self.device.capturing.store(false, Ordering::Release);
        self.device.release_now();
        self.graph = graph.map_err(during("capture of a graph"))?;
        Ok(())
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // An error was returned by the call that came first, or there is a panic to go on with.
        let _ = self.end();
    }
}
