//! The CUDA backend: hand-written kernels (`kernels/`), launched through a [`Driver`].
//!
//! Two modes: bf16 weights and activations with f32 accumulation, and f32 throughout (for parity). Losses, statistics of
//! norms and softmax, gradients of weights and optimizer states are f32 in both. This file is the handle; each family of
//! kernels has a file of launchers with its name, which implements the operations of that family.

mod attention;
mod attention_cached;
mod bias;
mod choices;
mod closed_forms;
mod counters;
mod counting;
mod driver;
mod dry;
mod element;
mod head_norm;
mod hidden;
mod key;
mod linear;
mod lora;
mod loss_head;
mod memory;
mod moves;
mod norm;
#[cfg(feature = "cuda")]
pub mod nvidia;
mod optimizer;
mod recording;
mod rope;
#[cfg(feature = "simulator")]
mod sim;
mod sizes;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use choices::{Algorithm, Choices, ProductShape, RowKernel, RowShape};
pub use counters::{Clears, Counters, LaunchCounters, Ledger, Moves, PeakRates, Products};
pub use driver::{Argument, DeviceInfo, Driver, Event, Gemm, Graph, Launch, Operand, TensorMap, Tiles};
pub use key::{KeptChoices, Key};
pub(crate) use loss_head::scratch_bytes as loss_head_bytes;
pub use memory::{CudaBuffer, ParkedBuffer};
pub use recording::Recording;

use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::ops::{Backend, Buffer, DType, Matrix, MatrixMut};

/// A CUDA device, or its simulation.
#[derive(Clone)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    compute_dtype: DType,
    /// Whether matrix products go to the device's library where it has one, or always to our own kernels.
    library_products: bool,
    choices: Arc<Choices>,
    /// The products that were asked for, where somebody wants to know.
    asked: Option<Arc<Mutex<Vec<ProductShape>>>>,
    scratch: Arc<Mutex<memory::Scratch>>,
}

impl Cuda {
    /// The backend on `driver`; `compute_dtype` is how weights and activations are stored.
    ///
    /// # Errors
    /// When `compute_dtype` is neither bf16 nor f32.
    pub fn new(driver: Arc<dyn Driver>, compute_dtype: DType) -> Result<Self> {
        if !matches!(compute_dtype, DType::Bf16 | DType::F32) {
            return Err(Error::Device(format!("weights are stored in bf16 or f32, not {compute_dtype:?}")));
        }
        let choices = Arc::default();
        Ok(Self { driver, compute_dtype, library_products: true, choices, asked: None, scratch: Arc::default() })
    }

    /// A simulated device of compute capability 8.0.
    #[cfg(feature = "simulator")]
    pub fn simulated(compute_dtype: DType) -> Result<Self> {
        Self::simulated_as(compute_dtype, (8, 0), 0)
    }

    /// A simulated device; a `schedule_seed` that is not 0 runs the threads in an order drawn from it.
    #[cfg(feature = "simulator")]
    pub fn simulated_as(compute_dtype: DType, capability: (u32, u32), schedule_seed: u64) -> Result<Self> {
        Self::new(Arc::new(sim::Simulator::new(capability, schedule_seed)), compute_dtype)
    }

    /// An H200 that executes nothing and counts everything: [`Cuda::counted`] gives the ledger of work at any size, with the
    /// closed forms of kernels. What is read back is zero.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn dry(compute_dtype: DType) -> Result<Self> {
        Self::new(Arc::new(dry::DryDevice::new()), compute_dtype)
    }

    /// The same device with every matrix product by our own kernels.
    pub fn with_own_products(mut self) -> Self {
        self.library_products = false;
        self
    }

    /// The same device in another mode, with scratch memory of its own.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn with_compute_dtype(&self, compute_dtype: DType) -> Result<Self> {
        let other = Self::new(Arc::clone(&self.driver), compute_dtype)?;
        let choices = Arc::clone(&self.choices);
        Ok(Self { library_products: self.library_products, choices, ..other })
    }

    /// The same device with these choices instead of those that it has. Those of products hold for everybody who shares
    /// the device.
    ///
    /// # Errors
    /// When the library cannot do a product by the algorithm that was chosen for it, or a choice is none of ours.
    pub fn with_choices(self, choices: Choices) -> Result<Self> {
        let products = choices.parsed()?;
        for (shape, _) in self.choices.parsed()? {
            self.driver.choose_product(&shape, None)?;
        }
        for (shape, algorithm) in products {
            self.driver.choose_product(&shape, Some(algorithm))?;
        }
        Ok(Self { choices: Arc::new(choices), ..self })
    }

    /// The products that `work` asks for, each once, in the order in which it does. `work` gets the same device.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn products_of(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Vec<ProductShape>> {
        let asked = Arc::default();
        work(&Self { asked: Some(Arc::clone(&asked)), ..self.clone() })?;
        let found = std::mem::take(&mut *lock(&asked));
        Ok(found)
    }

    /// Notes a product that was asked for.
    fn note(&self, gemm: &Gemm) {
        let Some(asked) = &self.asked else { return };
        let mut asked = lock(asked);
        let shape = ProductShape::of(gemm);
        if !asked.contains(&shape) {
            asked.push(shape);
        }
    }

    /// Digest of the GPU code inside this program; empty where there is none.
    pub fn kernels_digest() -> &'static str {
        #[cfg(feature = "cuda")]
        return nvidia::EMBEDDED.digest;
        #[cfg(not(feature = "cuda"))]
        ""
    }

    /// The CUDA version that this machine's driver supports, where there is one: "13.0".
    pub fn driver_version() -> Option<String> {
        #[cfg(feature = "cuda")]
        return nvidia::survey().ok()?.driver.ok().map(|(major, minor)| format!("{major}.{minor}"));
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// The device's runtime.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Does `work` and says what the device was told meanwhile; no ledger where the device cannot count. Counting changes
    /// no result. One thread at a time, and not within itself.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn counted<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, Option<Ledger>)> {
        self.driver.start_counting();
        let result = work();
        let ledger = self.driver.stop_counting();
        Ok((result?, ledger))
    }

    /// The name of a kernel for this mode: with `_bf16` or `_f32` behind it.
    fn kernel(&self, stem: &str) -> String {
        kernel_name(stem, self.compute_dtype)
    }

    /// Launches a kernel. Arguments come from matrices that `ops` has checked.
    fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: u32,
        shared_bytes: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let launch = Launch { kernel, grid, block, shared_bytes: shared_bytes as u32 };
        // SAFETY: the launchers of this module pass the parameters of the kernel of that name, with addresses from
        // buffers that outlive the queued work, since a buffer is released behind it.
        unsafe { self.driver.launch(&launch, arguments) }
    }

    /// Runs `work` with a buffer of at least `len` elements of undefined content. It is kept for the next call with this
    /// name, so that a step allocates nothing after the first one.
    fn with_scratch<R>(
        &self,
        name: &'static str,
        len: usize,
        dtype: DType,
        work: impl FnOnce(&mut CudaBuffer) -> Result<R>,
    ) -> Result<R> {
        let mut buffer = self.scratch().take(&self.driver, name, len, dtype)?;
        let result = work(&mut buffer);
        self.scratch().put_back(name, buffer);
        result
    }

    fn scratch(&self) -> std::sync::MutexGuard<'_, memory::Scratch> {
        lock(&self.scratch)
    }
}

/// The name of a kernel for operands of `dtype`.
fn kernel_name(stem: &str, dtype: DType) -> String {
    format!("{stem}{}", if dtype == DType::Bf16 { "_bf16" } else { "_f32" })
}

/// The content of a mutex, also after a panic elsewhere: none of them is left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a matrix starts on the device, and how it is stored.
trait Place {
    fn address(&self) -> u64;
    fn dtype(&self) -> DType;

    fn pointer(&self) -> Argument {
        Argument::Pointer(self.address())
    }
}

impl Place for Matrix<'_, Cuda> {
    fn address(&self) -> u64 {
        self.buffer.address(self.offset)
    }

    fn dtype(&self) -> DType {
        self.buffer.dtype()
    }
}

impl Place for MatrixMut<'_, Cuda> {
    fn address(&self) -> u64 {
        self.as_matrix().address()
    }

    fn dtype(&self) -> DType {
        self.buffer.dtype()
    }
}

/// The address of a matrix that may be absent: null where it is.
fn optional<M: Place>(matrix: Option<&M>) -> Argument {
    matrix.map_or(Argument::Pointer(0), Place::pointer)
}

impl Backend for Cuda {
    type Recording = Recording;

    fn description(&self) -> String {
        let mode = if self.compute_dtype == DType::Bf16 { "bf16 with f32 accumulation" } else { "f32" };
        let products = match self.driver.gemm_library() {
            Some(library) if self.library_products => library,
            _ => "temper's own".into(),
        };
        let steps = if self.driver.can_record() { "" } else { ", no graphs in a default stream" };
        let tuned = self.tuning().map_or(String::new(), |fingerprint| format!(", tuned ({fingerprint})"));
        format!("cuda, {}, {mode}, matrix products: {products}{steps}{tuned}", self.driver.device().name)
    }

    fn tuning(&self) -> Option<Fingerprint> {
        self.choices.fingerprint().unwrap_or_default()
    }

    fn kept_choices(&self) -> Result<Option<serde_json::Value>> {
        let kept = KeptChoices { key: Key::of(self), choices: (*self.choices).clone() };
        let written = serde_json::to_value(kept);
        written.map(Some).map_err(|error| Error::Defect(format!("choices that JSON cannot hold: {error}")))
    }

    fn device_memory(&self) -> Option<u64> {
        Some(self.driver.device().memory)
    }

    fn compute_dtype(&self) -> DType {
        self.compute_dtype
    }

    fn record(&self, recording: &mut Recording, work: impl FnOnce() -> Result<()>) -> Result<()> {
        recording::run(self, recording, work)
    }
}
