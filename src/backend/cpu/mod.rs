//! The CPU backend: f32 throughout, rayon and the `gemm` crate. The oracle for every other backend.

mod attention;
mod attention_cached;
mod bias;
mod buffer;
mod element;
mod head_norm;
mod linear;
mod loss;
mod memory;
mod norm;
mod optimizer;
mod preference;
mod vector;
mod view;

pub use buffer::CpuBuffer;
pub(crate) use loss::CHUNK as LOSS_HEAD_CHUNK;

use crate::error::Result;
use crate::ops::{Backend, DType};

/// The CPU. Work is spread over rayon's current thread pool; results do not depend on the number of threads.
#[derive(Clone, Debug, Default)]
pub struct Cpu;

impl Backend for Cpu {
    /// Calls cost nothing here.
    type Recording = ();

    fn description(&self) -> String {
        format!("cpu, {} threads, f32", rayon::current_num_threads())
    }

    fn device_memory(&self) -> Option<u64> {
        None
    }

    fn compute_dtype(&self) -> DType {
        DType::F32
    }

    fn record(&self, _: &mut (), work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }
}
