//! [`Driver`]: what the backend needs of a device's runtime. Two implementations: NVIDIA's driver, and the simulator,
//! which executes the same kernels on the CPU. Everything above this trait is the same code on both.
//!
//! One stream: operations run in the order of the calls, and only [`Driver::download`], [`Driver::synchronize`] and
//! [`Driver::elapsed_milliseconds`] wait for the device.

use super::choices::{Algorithm, ProductShape};
use super::counters::Ledger;
use crate::error::Result;
use crate::ops::DType;

/// Facts about a device that launches depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Its name, for people.
    pub name: String,
    /// Compute capability: (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most dynamic shared memory of one block, in bytes.
    pub shared_bytes_per_block: u32,
    /// Bytes of device memory.
    pub memory: u64,
}

/// The value of one kernel parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A device address, possibly null.
    Pointer(u64),
    /// `uint32_t`.
    U32(u32),
    /// `uint64_t`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// A description of tiles, by value.
    TensorMap(TensorMap),
}

/// A tensor and its tiles, as Hopper's copy engine moves them. Dimension 0 is the innermost, with stride 1.
#[derive(Clone, Copy, Debug)]
pub struct Tiles<'a> {
    /// How elements are stored.
    pub dtype: DType,
    /// Device address of the first element.
    pub address: u64,
    /// Elements in each dimension.
    pub sizes: &'a [u64],
    /// Bytes from one element to the next in dimensions 1, 2, …
    pub strides: &'a [u64],
    /// Elements of a tile in each dimension.
    pub tile: &'a [u32],
    /// Bytes over which 16-byte chunks are permuted in shared memory: 0 (not at all), 32, 64 or 128.
    pub swizzle: u32,
}

/// [`Tiles`] in the form of a kernel parameter, which [`Driver::tensor_map`] makes. Elements beyond the bounds of the tensor
/// read as zero and are not written.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// A kernel and the shape of its launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in `kernels/`.
    pub kernel: &'a str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block; blocks are one-dimensional.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

/// A row-major operand of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Address of its first element.
    pub pointer: u64,
    /// Elements from one row in memory to the next.
    pub leading: usize,
    /// Whether memory holds its transpose.
    pub transposed: bool,
}

/// C = alpha · op(A) op(B) + beta · C, all row-major: op(A) \[m, k\], op(B) \[k, n\], C \[m, n\]; products are summed in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Columns of op(A).
    pub k: usize,
    /// A: memory holds \[m, k\], or \[k, m\] where `transposed`.
    pub a: Operand,
    /// B: memory holds \[k, n\], or \[n, k\] where `transposed`.
    pub b: Operand,
    /// Address of C.
    pub c: u64,
    /// Elements from one row of C to the next.
    pub c_leading: usize,
    /// How A and B are stored: bf16 or f32.
    pub input: DType,
    /// How C is stored: bf16 or f32.
    pub output: DType,
    /// Factor on the product.
    pub alpha: f32,
    /// Factor on what C holds: 0 (C is not read) or 1.
    pub beta: f32,
}

/// A point in the stream whose time can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// Recorded work, which [`Driver::replay`] queues as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// A device's runtime.
///
/// Addresses are plain integers, so the methods that use them are `unsafe`: the caller vouches that every range lies in
/// memory that [`Driver::allocate`] returned and that was not released.
pub trait Driver: Send + Sync {
    /// What device it is.
    fn device(&self) -> &DeviceInfo;

    /// Whether a CPU plays the device, so that times mean nothing.
    fn is_simulated(&self) -> bool {
        false
    }

    /// Allocates `bytes` of device memory, at least 16-byte aligned, with undefined content. `name` is for the message
    /// when memory is short.
    fn allocate(&self, name: &str, bytes: usize) -> Result<u64>;

    /// Gives memory back, after all queued work.
    ///
    /// # Safety
    /// `pointer` came from [`Driver::allocate`] with the same `bytes` and is not used again.
    unsafe fn release(&self, pointer: u64, bytes: usize);

    /// Allocates `bytes` of page-locked main memory, zero at first. `name` is for the message when memory is short.
    fn allocate_host(&self, name: &str, bytes: usize) -> Result<u64>;

    /// Gives page-locked memory back, after all queued copies.
    ///
    /// # Safety
    /// `pointer` came from [`Driver::allocate_host`] with the same `bytes` and is not used again.
    unsafe fn release_host(&self, pointer: u64, bytes: usize);

    /// Copies from the device to page-locked memory, in the order of the stream.
    ///
    /// # Safety
    /// `from` is allocated device memory and `to` page-locked memory of this driver, of at least `bytes`.
    unsafe fn park(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Copies from page-locked memory to the device, in the order of the stream.
    ///
    /// # Safety
    /// As for [`Driver::park`], the other way.
    unsafe fn fetch(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Copies host bytes to the device. `from` may be reused as soon as the call returns.
    ///
    /// # Safety
    /// `to..to + from.len()` is allocated device memory.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Copies device bytes to the host. Waits for all queued work.
    ///
    /// # Safety
    /// `from..from + to.len()` is allocated device memory.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Copies within the device; the ranges do not overlap.
    ///
    /// # Safety
    /// Both ranges are allocated device memory.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// The range is allocated device memory.
    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()>;

    /// Launches a kernel.
    ///
    /// # Safety
    /// `arguments` are the kernel's parameters in number, order and type, and what it reads and writes through them is
    /// allocated device memory.
    unsafe fn launch(&self, launch: &Launch, arguments: &[Argument]) -> Result<()>;

    /// The kernel parameter that describes these tiles. An error names the rule of the copy engine that they break.
    fn tensor_map(&self, tiles: &Tiles) -> Result<TensorMap>;

    /// A matrix product by the device's library; `false` where there is no such library, and nothing was done.
    ///
    /// # Safety
    /// All three operands are allocated device memory; C does not overlap A or B.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<bool>;

    /// Whether [`Driver::gemm`] has a library, and which: for descriptions.
    fn gemm_library(&self) -> Option<String>;

    /// The algorithms by which the library can do such a product under the rules of [`Driver::gemm`], in the order in which
    /// it proposes them: the first is the one that it takes by itself. Empty where it has none, or there is no library.
    fn product_candidates(&self, _: &ProductShape) -> Result<Vec<Algorithm>> {
        Ok(Vec::new())
    }

    /// From now on such products go to this algorithm; to the library's own choice again where there is none.
    ///
    /// # Errors
    /// When the library cannot do the product by it under our rules.
    fn choose_product(&self, shape: &ProductShape, _: Option<Algorithm>) -> Result<()> {
        Err(crate::Error::Device(format!("{shape}: this device's library has no algorithms to choose from")))
    }

    /// The products, each once, that the library could not do since this was asked last, so that our own kernels took them.
    /// Of those whose rows are whole vectors of 16 bytes, as every product of a model is; others it may refuse.
    fn take_fallbacks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Waits for all queued work.
    fn synchronize(&self) -> Result<()>;

    /// Whether work can be recorded. A caller's default stream cannot.
    fn can_record(&self) -> bool {
        true
    }

    /// From now on copies, clears, launches and products are recorded and not executed, until [`Driver::end_recording`].
    /// Allocations, uploads, downloads, events and waiting are errors meanwhile; memory that is released goes when the
    /// recording ends. No other thread may use this driver meanwhile.
    fn begin_recording(&self) -> Result<()>;

    /// Ends the recording, in any case. A graph refers to the memory that it was recorded with, which must outlive it.
    fn end_recording(&self) -> Result<Graph>;

    /// Queues recorded work once more.
    fn replay(&self, graph: Graph) -> Result<()>;

    /// Drops a graph, after all its queued replays.
    fn forget(&self, graph: Graph);

    /// What is not the same in two graphs, where the driver can tell.
    fn difference(&self, _: Graph, _: Graph) -> Option<String> {
        None
    }

    /// Marks the present end of the stream.
    fn record_event(&self) -> Result<Event>;

    /// Device time between two events, which are given back. Waits for the second.
    fn elapsed_milliseconds(&self, start: Event, end: Event) -> Result<f32>;

    /// Begins to count what this driver is told, from zero; says whether it can. Results keep their bits; launches may take
    /// longer. No other thread may use this driver until [`Driver::stop_counting`].
    fn start_counting(&self) -> bool {
        false
    }

    /// Ends the counting: what was done since; nothing where it was never begun.
    fn stop_counting(&self) -> Option<Ledger> {
        None
    }
}
