//! [`Nvidia`]: one stream of one device, as the backend's [`Driver`].

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{self, CUevent_flags_enum as EventFlags};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::super::choices::{Algorithm, ProductShape};
use super::super::driver::{Argument, DeviceInfo, Driver, Event, Gemm, Graph, Launch, TensorMap, Tiles};
use super::cublaslt::{self, Products};
use super::embedded::{Code, EMBEDDED};
use super::error::{Unavailable, during};
use super::graph::Graphs;
use super::kernels::Kernels;
use super::pinned::{PinnedBuffer, Staging};
use super::{lock, product, survey, tensor_map};
use crate::error::{Error, Result};
use crate::ops::DType;

/// One stream of an NVIDIA device.
pub struct Nvidia {
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) info: DeviceInfo,
    code: Code,
    pub(super) kernels: Arc<Kernels>,
    products: Option<Products>,
    staging: Mutex<Staging>,
    /// Page-locked memory that the backend holds, by address.
    parked: Mutex<HashMap<u64, PinnedBuffer>>,
    events: Mutex<Events>,
    pub(super) graphs: Mutex<Graphs>,
    /// Whether calls are recorded into a graph instead of being executed.
    pub(super) capturing: AtomicBool,
    /// Memory to give back when capturing ends: a release that is recorded would be repeated with every replay.
    released: Mutex<Vec<u64>>,
}

/// Recorded events by number, and spare ones.
#[derive(Default)]
struct Events {
    recorded: HashMap<u64, CudaEvent>,
    spare: Vec<CudaEvent>,
    count: u64,
}

impl Nvidia {
    /// A new stream on a device, in its primary context.
    ///
    /// # Errors
    /// When there is no driver, no such device, or no code for it: each with its remedy.
    pub fn new(ordinal: usize) -> Result<Self> {
        survey::start()?;
        let context = primary_context(ordinal)?;
        let stream = context.new_stream().map_err(during("a stream"))?;
        Self::on(context, stream, None)
    }

    /// Work in a stream that belongs to somebody else, who keeps it alive and orders its own work with ours.
    ///
    /// # Errors
    /// As [`Nvidia::new`], and when the stream's context is not the device's primary one.
    ///
    /// # Safety
    /// `stream` is a `CUstream` (null: the default stream) and `context` its `CUcontext`; both outlive the result.
    pub unsafe fn adopt_stream(stream: *mut c_void, context: *mut c_void) -> Result<Self> {
        survey::start()?;
        let stream = stream.cast::<sys::CUstream_st>();
        let context = context.cast::<sys::CUctx_st>();
        // SAFETY: the caller vouches for the context.
        let ordinal = unsafe { ordinal_of(context)? };
        let primary = primary_context(ordinal)?;
        if primary.cu_ctx() != context {
            return Err(Unavailable::ForeignContext { what: "another context", ordinal }.into());
        }
        let mut owner = std::ptr::null_mut();
        // SAFETY: the caller vouches for the stream, and the context is current.
        unsafe { sys::cuStreamGetCtx(stream, &mut owner) }.result().map_err(during("the adopted stream"))?;
        if owner != context {
            return Err(Unavailable::ForeignContext { what: "a context that was not named", ordinal }.into());
        }
        // SAFETY: the stream belongs to this context, and the caller keeps it alive.
        let stream = unsafe { primary.wrap_borrowed_stream(stream) };
        Self::on(primary, stream, None)
    }

    /// A second stream on the same device, with the same kernels; order the two with [`Nvidia::wait_for`].
    ///
    /// # Errors
    /// When the driver has no more streams, or no memory for a workspace.
    pub fn second_stream(&self) -> Result<Self> {
        let stream = self.context.new_stream().map_err(during("a stream"))?;
        Self::on(Arc::clone(&self.context), stream, Some(Arc::clone(&self.kernels)))
    }

    fn on(context: Arc<CudaContext>, stream: Arc<CudaStream>, kernels: Option<Arc<Kernels>>) -> Result<Self> {
        context.bind_to_thread().map_err(during("a device's context"))?;
        let info = survey::device_info(context.cu_device())?;
        let code = EMBEDDED.code_for(info.compute_capability, survey::start()?)?;
        keep_freed_memory(&context)?;
        let kernels =
            kernels.unwrap_or_else(|| Arc::new(Kernels::new(Arc::clone(&context), info.shared_bytes_per_block)));
        let products = Products::new(&stream)?;
        let staging = Mutex::new(Staging::new(&context)?);
        Ok(Self {
            context,
            stream,
            info,
            code,
            kernels,
            products,
            staging,
            parked: Mutex::default(),
            events: Mutex::default(),
            graphs: Mutex::default(),
            capturing: AtomicBool::new(false),
            released: Mutex::default(),
        })
    }

    /// The code that this device runs.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What is queued here from now on waits for what is queued on `other` now. The host waits for nothing.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn wait_for(&self, other: &Self) -> Result<()> {
        self.stream.join(&other.stream).map_err(during("waiting for another stream"))
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(during("an earlier call"))
    }

    /// Refuses what cannot be part of a graph.
    fn not_captured(&self, what: &str) -> Result<()> {
        if self.capturing.load(Ordering::Acquire) {
            return Err(Error::Device(format!("{what} inside a captured graph: do it before")));
        }
        Ok(())
    }

    /// Gives back the memory whose release was put off while a graph was captured.
    pub(super) fn release_now(&self) {
        for pointer in lock(&self.released).drain(..) {
            // SAFETY: whoever released it does not use it again.
            self.context.record_err(unsafe { result::free_async(pointer, self.stream.cu_stream()) });
        }
    }

    fn memory_error(&self, name: &str, bytes: usize, error: cudarc::driver::DriverError) -> Error {
        if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return during(format!("{bytes} bytes for {name}"))(error);
        }
        let free = self.context.mem_get_info().map_or(0, |(free, _)| free);
        Error::Memory {
            what: format!("{name} on {}", self.info.name),
            needed: bytes as u64,
            available: free as u64,
            remedy: "`temper plan` says which settings need less; `nvidia-smi` shows who else uses the GPU".into(),
        }
    }
}

impl Driver for Nvidia {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    /// From the device's pool, in the order of the stream.
    fn allocate(&self, name: &str, bytes: usize) -> Result<u64> {
        self.bind()?;
        self.not_captured("an allocation")?;
        let stream = self.stream.cu_stream();
        // SAFETY: the context is current; the memory is used in this stream, or in one that waits for it.
        let pointer = unsafe {
            if self.context.has_async_alloc() {
                result::malloc_async(stream, bytes)
            } else {
                result::malloc_sync(bytes)
            }
        };
        pointer.map_err(|error| self.memory_error(name, bytes, error))
    }

    unsafe fn release(&self, pointer: u64, _bytes: usize) {
        if self.capturing.load(Ordering::Acquire) {
            lock(&self.released).push(pointer);
            return;
        }
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: the caller vouches that it is allocated and not used again; without a pool, `free_sync` waits.
        self.context.record_err(unsafe {
            if self.context.has_async_alloc() {
                result::free_async(pointer, self.stream.cu_stream())
            } else {
                result::free_sync(pointer)
            }
        });
    }

    fn allocate_host(&self, name: &str, bytes: usize) -> Result<u64> {
        self.not_captured("an allocation")?;
        let buffer =
            PinnedBuffer::new(&self.context, bytes).map_err(|error| Error::Device(format!("{name}: {error}")))?;
        let mut parked = lock(&self.parked);
        let pointer = buffer.as_slice().as_ptr() as u64;
        parked.insert(pointer, buffer);
        Ok(pointer)
    }

    unsafe fn release_host(&self, pointer: u64, _bytes: usize) {
        // The driver may free page-locked memory under a copy that is still queued.
        self.context.record_err(self.stream.synchronize());
        lock(&self.parked).remove(&pointer);
    }

    unsafe fn park(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller vouches for the range, which this driver allocated and nobody else holds as a slice.
        let to = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
        // SAFETY: the caller vouches for the source; page-locked memory is given back behind the stream's copies.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.map_err(during("a copy to main memory"))
    }

    unsafe fn fetch(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: as in `park`.
        let from = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
        // SAFETY: as in `park`.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }
            .map_err(during("a copy from main memory"))
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        self.not_captured("an upload")?;
        // SAFETY: passed on to the caller.
        unsafe { lock(&self.staging).send(&self.stream, to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.bind()?;
        self.not_captured("a download")?;
        if !to.is_empty() {
            // SAFETY: the caller vouches for the source; the destination is not used before the stream is there.
            unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.map_err(during("a download"))?;
        }
        self.stream.synchronize().map_err(during("a download"))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: passed on to the caller.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(during("a copy"))
    }

    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: passed on to the caller.
        unsafe { result::memset_d8_async(to, 0, bytes, self.stream.cu_stream()) }.map_err(during("clearing memory"))
    }

    unsafe fn launch(&self, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_with(launch, [1; 3], arguments) }
    }

    fn tensor_map(&self, tiles: &Tiles) -> Result<TensorMap> {
        tensor_map::encode(tiles)
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        if gemm.m == 0 || gemm.n == 0 {
            return Ok(true);
        }
        let supported = is_supported(&ProductShape::of(gemm));
        let Some(products) = self.products.as_ref().filter(|_| supported) else { return Ok(false) };
        self.bind()?;
        // SAFETY: passed on to the caller; the context is current.
        unsafe { products.run(&product::column_major(gemm)) }
    }

    fn product_candidates(&self, shape: &ProductShape) -> Result<Vec<Algorithm>> {
        let Some(products) = self.products.as_ref().filter(|_| is_supported(shape)) else { return Ok(Vec::new()) };
        self.bind()?;
        products.candidates(&cublaslt::description_to_choose_for(shape))
    }

    fn choose_product(&self, shape: &ProductShape, algorithm: Option<Algorithm>) -> Result<()> {
        let products = self.products.as_ref().filter(|_| is_supported(shape));
        let products =
            products.ok_or_else(|| Error::Device(format!("{shape}: no library to choose an algorithm of")))?;
        self.bind()?;
        products.choose(&cublaslt::description_to_choose_for(shape), algorithm)
    }

    fn take_fallbacks(&self) -> Vec<String> {
        self.products.as_ref().map(Products::take_fallbacks).unwrap_or_default()
    }

    fn gemm_library(&self) -> Option<String> {
        self.products.as_ref().and_then(|_| cublaslt::version())
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.not_captured("waiting")?;
        self.stream.synchronize().map_err(during("waiting for the device"))
    }

    fn can_record(&self) -> bool {
        !self.stream.cu_stream().is_null()
    }

    fn begin_recording(&self) -> Result<()> {
        self.begin_capture()
    }

    fn end_recording(&self) -> Result<Graph> {
        self.end_capture()
    }

    fn replay(&self, graph: Graph) -> Result<()> {
        self.replay_graph(graph)
    }

    fn forget(&self, graph: Graph) {
        self.drop_graph(graph);
    }

    fn record_event(&self) -> Result<Event> {
        self.bind()?;
        self.not_captured("an event")?;
        let mut events = lock(&self.events);
        let event = match events.spare.pop() {
            Some(event) => event,
            None => self.context.new_event(Some(EventFlags::CU_EVENT_DEFAULT)).map_err(during("an event"))?,
        };
        event.record(&self.stream).map_err(during("an event"))?;
        events.count += 1;
        let number = events.count;
        events.recorded.insert(number, event);
        Ok(Event(number))
    }

    fn elapsed_milliseconds(&self, start: Event, end: Event) -> Result<f32> {
        let mut events = lock(&self.events);
        let from = events.recorded.remove(&start.0);
        let to = events.recorded.remove(&end.0);
        let elapsed = match (&from, &to) {
            (Some(from), Some(to)) => from.elapsed_ms(to).map_err(during("time between two events")),
            (Some(_), None) if start == end => Ok(0.0),
            _ => {
                Err(Error::Device("the time between events of which one was never recorded, or was given back".into()))
            }
        };
        events.spare.extend(from.into_iter().chain(to));
        elapsed
    }
}

impl Drop for Nvidia {
    /// Waits, so that nothing that goes now is in use, and returns unused memory of the pool.
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        self.context.record_err(self.stream.synchronize());
        *lock(&self.graphs) = Graphs::default();
        if let Ok(pool) = default_pool(&self.context) {
            // SAFETY: the pool is the device's own.
            self.context.record_err(unsafe { result::mem_pool::trim_to(pool, 0) });
        }
    }
}

/// Whether a product is the library's. Without summands the result is beta · C, which it leaves open.
fn is_supported(shape: &ProductShape) -> bool {
    let dtypes = (shape.input, shape.output);
    shape.k > 0 && matches!(dtypes, (DType::Bf16, DType::Bf16 | DType::F32) | (DType::F32, DType::F32))
}

/// The context that the CUDA runtime, cust and cudarc share. The driver was started.
fn primary_context(ordinal: usize) -> Result<Arc<CudaContext>> {
    survey::device(ordinal)?;
    let context = CudaContext::new(ordinal).map_err(during(format_args!("context of GPU {ordinal}")))?;
    // Before anything is allocated: we order our streams ourselves, and tracking breaks the capture of graphs.
    // SAFETY: this backend makes no `CudaSlice`, whose order tracking is about.
    unsafe { context.disable_event_tracking() };
    Ok(context)
}

/// The device of a context.
///
/// # Safety
/// `context` is a context.
unsafe fn ordinal_of(context: sys::CUcontext) -> Result<usize> {
    let mut device = 0;
    let mut popped = std::ptr::null_mut();
    // SAFETY: the caller vouches for the context, and what is pushed is popped.
    unsafe {
        sys::cuCtxPushCurrent_v2(context).result().map_err(during("the adopted context"))?;
        let found = sys::cuCtxGetDevice(&mut device).result();
        sys::cuCtxPopCurrent_v2(&mut popped).result().map_err(during("the adopted context"))?;
        found.map_err(during("the adopted context"))?;
    }
    for ordinal in 0..survey::device_count()? {
        if survey::device(ordinal)? == device {
            return Ok(ordinal);
        }
    }
    Err(Error::Device("the adopted context belongs to no device of this process".into()))
}

fn default_pool(context: &CudaContext) -> Result<sys::CUmemoryPool, cudarc::driver::DriverError> {
    // SAFETY: the device is the context's.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }
}

/// The pool gives memory back to the system at every synchronization unless it is told to keep it.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let pool = default_pool(context).map_err(during("the memory pool"))?;
    let mut all = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is valid, and this attribute is a uint64.
    unsafe { result::mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut all).cast()) }
        .map_err(during("the memory pool"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that depends on a driver ends in an error on a machine without one, not in a panic.
    #[test]
    fn without_a_driver_a_device_is_an_error_with_a_remedy() {
        let error = match (survey::start(), Nvidia::new(1_000)) {
            (_, Ok(_)) => panic!("a thousand GPUs"),
            (_, Err(error)) => error.to_string(),
        };
        assert!(error.starts_with("device: ") && !error.contains('\n'), "{error}");
        assert!(error.contains("install") || error.contains("choose") || error.contains("build"), "{error}");
    }
}
