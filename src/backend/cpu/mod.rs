//! The CPU backend: f32 throughout, rayon, products in panels or by the `gemm` crate. The oracle for every other backend.

mod attention;
mod attention_cached;
mod bias;
mod buffer;
#[cfg(target_arch = "x86_64")]
mod dots;
mod element;
mod head_norm;
mod linear;
mod lora;
mod loss;
mod memory;
mod norm;
mod optimizer;
#[cfg(target_arch = "x86_64")]
mod panels;
mod preference;
mod product;
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
        format!("cpu, {} threads, f32{}", rayon::current_num_threads(), product::instructions())
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
