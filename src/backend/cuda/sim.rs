//! The simulator as a [`Driver`]: device memory is host memory between guard pages, kernels run on a host SIMT machine
//! that punishes misuse (`kernels/sim/`), and matrix products are the CPU's.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::choices::{Algorithm, ProductShape};
use super::closed_forms;
use super::counters::{Counters, Ledger};
use super::counting::Counting;
use super::driver::{Argument, DeviceInfo, Driver, Event, Gemm, Graph, Launch, TensorMap, Tiles};
use super::lock;
use crate::error::{Error, Result};
use crate::ops::DType;

mod product;

/// `temper_launch` of `kernels/sim/interface.h`.
#[repr(C)]
struct RawLaunch {
    grid: [u32; 3],
    cluster: [u32; 3],
    block: u32,
    shared_bytes: u32,
    schedule_seed: u64,
}

/// `temper_counters` of the same file.
type RawCounters = [u64; Counters::OF_A_LAUNCH];

unsafe extern "C" {
    fn temper_sim_launch(
        kernel: *const c_char,
        launch: *const RawLaunch,
        arguments: *const *const c_void,
        argument_count: u32,
    ) -> *const c_char;
    fn temper_sim_launch_counted(
        kernel: *const c_char,
        launch: *const RawLaunch,
        arguments: *const *const c_void,
        argument_count: u32,
        counters: *mut RawCounters,
    ) -> *const c_char;
    fn temper_sim_touches(from: *const c_void, bytes: usize, touches: *mut u8);
    fn temper_sim_kernel_is_watched(index: u32) -> bool;
    fn temper_sim_allocate(bytes: usize) -> *mut c_void;
    fn temper_sim_release(pointer: *mut c_void, bytes: usize);
    fn temper_sim_encode_tensor_map(
        map: *mut c_void,
        element_type: c_int,
        rank: u32,
        base: *mut c_void,
        sizes: *const u64,
        strides_bytes: *const u64,
        tile: *const u32,
        swizzle_bytes: u32,
    ) -> *const c_char;
}

/// A simulated device.
pub(super) struct Simulator {
    info: DeviceInfo,
    schedule_seed: u64,
    events: Mutex<Vec<Instant>>,
    graphs: Mutex<Graphs>,
    counting: Counting,
}

/// What is being recorded, and what was.
#[derive(Default)]
struct Graphs {
    recording: Option<Vec<Work>>,
    /// Memory that was released meanwhile.
    released: Vec<(u64, usize)>,
    recorded: HashMap<u64, Arc<Vec<Work>>>,
    count: u64,
}

/// A recorded call.
#[derive(Clone, Debug, PartialEq)]
enum Work {
    Copy { from: u64, to: u64, bytes: usize },
    Park { from: u64, to: u64, bytes: usize },
    Fetch { from: u64, to: u64, bytes: usize },
    Clear { to: u64, bytes: usize },
    Launch { kernel: String, grid: [u32; 3], block: u32, shared_bytes: u32, arguments: Vec<Argument> },
    Product(Gemm),
}

impl Simulator {
    /// A device of a compute capability, whose threads run in round-robin order, or in an order drawn from a seed
    /// that is not 0.
    pub(super) fn new(compute_capability: (u32, u32), schedule_seed: u64) -> Self {
        let info = DeviceInfo {
            name: format!("simulated sm_{}{}", compute_capability.0, compute_capability.1),
            compute_capability,
            // Few, so that persistent kernels loop over their work even on small shapes.
            multiprocessors: 3,
            shared_bytes_per_block: if compute_capability.0 >= 9 { 232_448 } else { 166_912 },
            memory: 16 << 30,
        };
        Self { info, schedule_seed, events: Mutex::default(), graphs: Mutex::default(), counting: Counting::default() }
    }

    fn graphs(&self) -> MutexGuard<'_, Graphs> {
        lock(&self.graphs)
    }

    /// Records a call instead of executing it; says whether it did.
    fn recorded(&self, work: impl FnOnce() -> Work) -> bool {
        match &mut self.graphs().recording {
            Some(recording) => {
                recording.push(work());
                true
            }
            None => false,
        }
    }

    /// Refuses what NVIDIA's driver refuses inside a graph.
    fn not_recording(&self, what: &str) -> Result<()> {
        match self.graphs().recording {
            Some(_) => Err(Error::Device(format!("{what} inside a recorded graph: do it before"))),
            None => Ok(()),
        }
    }

    fn execute(&self, work: &Work) -> Result<()> {
        // SAFETY: whoever recorded it vouched for its memory as long as the graph lives.
        unsafe {
            match work {
                Work::Copy { from, to, bytes } => self.copy(*from, *to, *bytes),
                Work::Park { from, to, bytes } => self.park(*from, *to, *bytes),
                Work::Fetch { from, to, bytes } => self.fetch(*from, *to, *bytes),
                Work::Clear { to, bytes } => self.clear(*to, *bytes),
                Work::Product(gemm) => self.gemm(gemm).map(|_| ()),
                Work::Launch { kernel, grid, block, shared_bytes, arguments } => {
                    let grid = *grid;
                    let block = *block;
                    let shared_bytes = *shared_bytes;
                    self.launch(&Launch { kernel, grid, block, shared_bytes }, arguments)
                }
            }
        }
    }
}

impl Driver for Simulator {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn allocate(&self, name: &str, bytes: usize) -> Result<u64> {
        self.not_recording("an allocation")?;
        // SAFETY: any size may be asked for; null means that there is no memory.
        let pointer = unsafe { temper_sim_allocate(bytes) };
        if pointer.is_null() {
            return Err(Error::Device(format!("{name}: the simulator has no {bytes} bytes left")));
        }
        Ok(pointer as u64)
    }

    unsafe fn release(&self, pointer: u64, bytes: usize) {
        let mut graphs = self.graphs();
        if graphs.recording.is_some() {
            graphs.released.push((pointer, bytes));
            return;
        }
        drop(graphs);
        // SAFETY: passed on to the caller.
        unsafe { temper_sim_release(pointer as *mut c_void, bytes) }
    }

    fn allocate_host(&self, name: &str, bytes: usize) -> Result<u64> {
        let pointer = self.allocate(name, bytes)?;
        // SAFETY: just allocated with this size.
        unsafe { std::ptr::write_bytes(pointer as *mut u8, 0, bytes) };
        Ok(pointer)
    }

    unsafe fn release_host(&self, pointer: u64, bytes: usize) {
        // SAFETY: passed on to the caller.
        unsafe { self.release(pointer, bytes) }
    }

    unsafe fn park(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if self.recorded(|| Work::Park { from, to, bytes }) {
            return Ok(());
        }
        self.counting.note(|count| count.download(from, bytes));
        // SAFETY: the caller vouches for both ranges.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn fetch(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if self.recorded(|| Work::Fetch { from, to, bytes }) {
            return Ok(());
        }
        self.counting.note(|count| count.upload(to, bytes));
        // SAFETY: the caller vouches for both ranges.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.not_recording("an upload")?;
        self.counting.note(|count| count.upload(to, from.len()));
        // SAFETY: the caller vouches for the destination; host and simulated device memory do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.not_recording("a download")?;
        self.counting.note(|count| count.download(from, to.len()));
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if self.recorded(|| Work::Copy { from, to, bytes }) {
            return Ok(());
        }
        self.counting.note(|count| count.copy(from, to, bytes));
        // SAFETY: the caller vouches for both ranges.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        if self.recorded(|| Work::Clear { to, bytes }) {
            return Ok(());
        }
        self.counting.note(|count| count.clear(to, bytes));
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::write_bytes(to as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        let Launch { kernel, grid, block, shared_bytes } = *launch;
        if self.recorded(|| {
            let kernel = kernel.to_string();
            let arguments = arguments.to_vec();
            Work::Launch { kernel, grid, block, shared_bytes, arguments }
        }) {
            return Ok(());
        }
        let name = std::ffi::CString::new(launch.kernel)
            .map_err(|_| Error::Device(format!("`{}` is not a kernel's name", launch.kernel)))?;
        let raw = RawLaunch {
            grid: launch.grid,
            cluster: [1; 3],
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            schedule_seed: self.schedule_seed,
        };
        let values: Vec<*const c_void> = arguments.iter().map(address_of).collect();
        let mut counts = RawCounters::default();
        let counting = self.counting.is_under_way();
        // SAFETY: the values live until the call returns; the caller vouches for their types and what they point to.
        let problem = unsafe {
            let count = values.len() as u32;
            if counting {
                temper_sim_launch_counted(name.as_ptr(), &raw, values.as_ptr(), count, &mut counts)
            } else {
                temper_sim_launch(name.as_ptr(), &raw, values.as_ptr(), count)
            }
        };
        if problem.is_null() {
            let form = if counting { closed_forms::of_launch(launch, arguments, &words) } else { None };
            self.counting.note(|count| count.launch(kernel, &Counters::of_launch(counts), form, touches));
            return Ok(());
        }
        // SAFETY: not null, so it is a C string that stays valid until this thread's next launch.
        Err(Error::Device(unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned()))
    }

    fn tensor_map(&self, tiles: &Tiles) -> Result<TensorMap> {
        let rank = tiles.sizes.len();
        if tiles.tile.len() != rank || tiles.strides.len() + 1 != rank {
            return Err(Error::Device(format!("tensor map: as many tiles as sizes, one stride less, but: {tiles:?}")));
        }
        let mut map = TensorMap([0; 16]);
        // SAFETY: the arrays have the lengths that the rank says, and the map has its 128 bytes. No tensor memory is read.
        let problem = unsafe {
            temper_sim_encode_tensor_map(
                map.0.as_mut_ptr().cast(),
                if tiles.dtype == DType::F32 { 1 } else { 0 },
                rank as u32,
                tiles.address as *mut c_void,
                tiles.sizes.as_ptr(),
                tiles.strides.as_ptr(),
                tiles.tile.as_ptr(),
                tiles.swizzle,
            )
        };
        if problem.is_null() {
            return Ok(map);
        }
        // SAFETY: not null, so it is a static C string.
        let rule = unsafe { CStr::from_ptr(problem) }.to_string_lossy();
        Err(Error::Device(format!("{rule}: {tiles:?}")))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        if self.recorded(|| Work::Product(*gemm)) {
            return Ok(true);
        }
        self.counting.note(|count| count.product(gemm));
        // SAFETY: passed on to the caller.
        unsafe { product::host_product(gemm) };
        Ok(true)
    }

    /// The CPU's one way.
    fn product_candidates(&self, _: &ProductShape) -> Result<Vec<Algorithm>> {
        Ok(vec![Algorithm([0; 64])])
    }

    fn choose_product(&self, shape: &ProductShape, algorithm: Option<Algorithm>) -> Result<()> {
        match algorithm {
            Some(algorithm) if algorithm != Algorithm([0; 64]) => {
                Err(Error::Device(format!("{shape}: the CPU has no such algorithm")))
            }
            _ => Ok(()),
        }
    }

    fn gemm_library(&self) -> Option<String> {
        Some("the CPU's".into())
    }

    fn synchronize(&self) -> Result<()> {
        self.not_recording("waiting")
    }

    fn begin_recording(&self) -> Result<()> {
        self.not_recording("a graph")?;
        self.graphs().recording = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<Graph> {
        let mut graphs = self.graphs();
        let work = graphs.recording.take();
        let released = std::mem::take(&mut graphs.released);
        let work = work.ok_or_else(|| Error::Device("the end of a recording that was never begun".into()))?;
        graphs.count += 1;
        let number = graphs.count;
        graphs.recorded.insert(number, Arc::new(work));
        drop(graphs);
        for (pointer, bytes) in released {
            // SAFETY: whoever released it vouched for it.
            unsafe { self.release(pointer, bytes) };
        }
        Ok(Graph(number))
    }

    fn replay(&self, graph: Graph) -> Result<()> {
        let work = self.graphs().recorded.get(&graph.0).cloned();
        let work =
            work.ok_or_else(|| Error::Device("replay of a graph that was never recorded, or was dropped".into()))?;
        work.iter().try_for_each(|work| self.execute(work))
    }

    fn forget(&self, graph: Graph) {
        self.graphs().recorded.remove(&graph.0);
    }

    fn difference(&self, first: Graph, second: Graph) -> Option<String> {
        let graphs = self.graphs();
        let first = graphs.recorded.get(&first.0)?;
        let second = graphs.recorded.get(&second.0)?;
        let apart = first.iter().zip(second.iter()).find(|(a, b)| a != b);
        match apart {
            Some((was, is)) => Some(format!("it was {was:?} and is {is:?}")),
            None if first.len() != second.len() => {
                Some(format!("it was {} calls and is {}", first.len(), second.len()))
            }
            None => None,
        }
    }

    fn record_event(&self) -> Result<Event> {
        self.not_recording("an event")?;
        let mut events = lock(&self.events);
        events.push(Instant::now());
        Ok(Event(events.len() as u64 - 1))
    }

    fn elapsed_milliseconds(&self, start: Event, end: Event) -> Result<f32> {
        let events = lock(&self.events);
        match (events.get(start.0 as usize), events.get(end.0 as usize)) {
            (Some(&start), Some(&end)) => Ok(end.duration_since(start).as_secs_f32() * 1e3),
            _ => Err(Error::Device("an event that was never recorded".into())),
        }
    }

    /// Where kernels are compiled with the calls that counts are made from: in debug builds.
    fn start_counting(&self) -> bool {
        // SAFETY: asks about any index.
        let can = unsafe { temper_sim_kernel_is_watched(0) };
        if can {
            self.counting.start();
        }
        can
    }

    fn stop_counting(&self) -> Option<Ledger> {
        self.counting.stop()
    }
}

/// Where the value of an argument lies.
fn address_of(argument: &Argument) -> *const c_void {
    match argument {
        Argument::Pointer(value) | Argument::U64(value) => std::ptr::from_ref(value).cast(),
        Argument::U32(value) => std::ptr::from_ref(value).cast(),
        Argument::F32(value) => std::ptr::from_ref(value).cast(),
        Argument::TensorMap(map) => std::ptr::from_ref(map).cast(),
    }
}

/// Words of an allocation.
fn words(address: u64, count: usize) -> Option<Vec<u32>> {
    // SAFETY: closed forms read what the kernel itself has just read.
    Some((0..count).map(|i| unsafe { (address as *const u32).add(i).read_unaligned() }).collect())
}

/// What this thread's latest counted launch did with the bytes of a range.
fn touches(range: Range<u64>) -> Vec<u8> {
    let mut touches = vec![0; (range.end - range.start) as usize];
    // SAFETY: as many bytes are written as there are; the range itself is not read.
    unsafe { temper_sim_touches(range.start as *const c_void, touches.len(), touches.as_mut_ptr()) };
    touches
}
