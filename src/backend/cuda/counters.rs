//! What a span of work did, in counts that are the same on every machine and on every run: [`Counters`] of kernels, and
//! the [`Ledger`] of everything that a driver was told.
//!
//! A driver counts between [`Driver::start_counting`](super::Driver::start_counting) and
//! [`Driver::stop_counting`](super::Driver::stop_counting), which changes no result; [`super::Cuda::counted`] calls both.
//! The simulator counts kernels from within; a GPU counts nothing.

use std::collections::BTreeMap;

use serde::Serialize;

/// Bytes of a sector, the unit in which global memory moves.
pub const SECTOR_BYTES: u64 = 32;
/// FLOP of the tensor cores of a multiprocessor in a cycle, bf16 with f32 sums: m64nNk16 takes N / 2 cycles.
pub const TENSOR_FLOP_PER_CYCLE: u64 = 4096;

/// Counts of kernel launches, added up. A request is one instruction of one warp.
///
/// Accesses of the simulated code are those of the host's compiler, which may have merged two of the same element; how
/// many bytes, sectors and banks each touches is exact.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// Launches.
    pub launches: u64,
    /// Blocks of all launches.
    pub blocks: u64,
    /// Loads from global memory, by threads or by `cp.async`.
    pub load_requests: u64,
    /// Sectors of 32 bytes that the loads touched, each request on its own.
    pub load_sectors: u64,
    /// Sectors that their bytes would fill.
    pub load_sectors_ideal: u64,
    /// Stores to global memory, and atomic updates.
    pub store_requests: u64,
    /// Sectors of 32 bytes that the stores touched, each request on its own.
    pub store_sectors: u64,
    /// Sectors that their bytes would fill.
    pub store_sectors_ideal: u64,
    /// Bytes of global memory that threads and the copy engine asked for.
    pub bytes_read: u64,
    /// Bytes of global memory that threads and the copy engine wrote.
    pub bytes_written: u64,
    /// Different bytes of global memory that each launch read: at least these come from memory where no cache holds them.
    pub unique_bytes_read: u64,
    /// Different bytes of global memory that each launch wrote.
    pub unique_bytes_written: u64,
    /// Requests to shared memory by threads, `cp.async` and `ldmatrix`.
    pub shared_requests: u64,
    /// Cycles in which the banks of shared memory serve these requests.
    pub shared_wavefronts: u64,
    /// The same if no two addresses of a request met in a bank; the difference is bank conflicts.
    pub shared_wavefronts_ideal: u64,
    /// Products of a warpgroup, m64nNk16.
    pub wgmma_instructions: u64,
    /// Bytes of shared memory that these read.
    pub wgmma_shared_bytes: u64,
    /// Products of a warp, m16n8k16.
    pub mma_instructions: u64,
    /// FLOP executed by the tensor cores, multiplications with zeros and masked scores included.
    pub tensor_flop: u64,
    /// Bytes that the copy engine moved between global and shared memory, those beyond a tensor's bounds included.
    pub copy_engine_bytes: u64,
    /// Exponentials of single threads, by the instruction for them.
    pub exponentials: u64,
}

impl Counters {
    /// Counts of one launch, in the order of the fields from `blocks` on.
    #[cfg(feature = "simulator")]
    pub(super) const OF_A_LAUNCH: usize = 20;

    /// One launch.
    #[cfg(feature = "simulator")]
    pub(super) fn of_launch(counts: [u64; Self::OF_A_LAUNCH]) -> Self {
        let mut launch = Self::default();
        for (field, count) in launch.fields_mut().into_iter().zip([1].into_iter().chain(counts)) {
            *field = count;
        }
        launch
    }

    /// Adds the counts of more work.
    pub fn add(&mut self, other: &Self) {
        let more = other.fields();
        for (sum, value) in self.fields_mut().into_iter().zip(more) {
            *sum += value;
        }
    }

    /// Bytes that each launch has to move to or from memory at least once.
    pub fn unique_bytes(&self) -> u64 {
        self.unique_bytes_read + self.unique_bytes_written
    }

    /// Cycles of the tensor cores of one multiprocessor, at the rate of Hopper.
    pub fn tensor_cycles(&self) -> u64 {
        self.tensor_flop / TENSOR_FLOP_PER_CYCLE
    }

    /// Cycles that this work takes at least on `rates`: the slowest of its resources, each at its published peak, with
    /// work spread evenly over as many multiprocessors as there are blocks of a launch. A bound and not a time: latency,
    /// waiting, issue and the start of blocks are not in it. Two ways to compute the same are compared by it on a device
    /// that has no clock.
    pub fn floor_cycles(&self, rates: &PeakRates) -> f64 {
        let multiprocessors = f64::from(rates.multiprocessors);
        let per_launch = self.blocks as f64 / (self.launches as f64).max(1.0);
        let busy = per_launch.clamp(1.0, multiprocessors);
        let sectors = (self.load_sectors + self.store_sectors) * SECTOR_BYTES + self.copy_engine_bytes;
        let shared = self.shared_wavefronts as f64 + self.wgmma_shared_bytes as f64 / rates.shared_bytes_per_cycle;
        [
            self.unique_bytes() as f64 / rates.memory_bytes_per_cycle,
            sectors as f64 / rates.sector_bytes_per_cycle / busy,
            shared / busy,
            self.tensor_flop as f64 / TENSOR_FLOP_PER_CYCLE as f64 / busy,
            self.exponentials as f64 / rates.exponentials_per_cycle / busy,
        ]
        .into_iter()
        .fold(0.0, f64::max)
    }

    fn fields(&self) -> [u64; 21] {
        self.clone().fields_mut().map(|field| *field)
    }

    fn fields_mut(&mut self) -> [&mut u64; 21] {
        [
            &mut self.launches,
            &mut self.blocks,
            &mut self.load_requests,
            &mut self.load_sectors,
            &mut self.load_sectors_ideal,
            &mut self.store_requests,
            &mut self.store_sectors,
            &mut self.store_sectors_ideal,
            &mut self.bytes_read,
            &mut self.bytes_written,
            &mut self.unique_bytes_read,
            &mut self.unique_bytes_written,
            &mut self.shared_requests,
            &mut self.shared_wavefronts,
            &mut self.shared_wavefronts_ideal,
            &mut self.wgmma_instructions,
            &mut self.wgmma_shared_bytes,
            &mut self.mma_instructions,
            &mut self.tensor_flop,
            &mut self.copy_engine_bytes,
            &mut self.exponentials,
        ]
    }
}

/// Rates that a device's resources cannot exceed, a cycle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeakRates {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory, for the whole device.
    pub memory_bytes_per_cycle: f64,
    /// Bytes between the second-level cache and a multiprocessor.
    pub sector_bytes_per_cycle: f64,
    /// Bytes of shared memory of a multiprocessor: one from each bank is four.
    pub shared_bytes_per_cycle: f64,
    /// Exponentials of a multiprocessor.
    pub exponentials_per_cycle: f64,
}

impl PeakRates {
    /// An H200 as NVIDIA specifies it: 132 multiprocessors at 1.98 GHz, 4.8 TB/s, 16 special functions a cycle.
    pub fn h200() -> Self {
        Self {
            multiprocessors: 132,
            memory_bytes_per_cycle: 4.8e12 / 1.98e9,
            sector_bytes_per_cycle: 64.0,
            shared_bytes_per_cycle: 128.0,
            exponentials_per_cycle: 16.0,
        }
    }

    /// FLOP that the tensor cores do while memory moves a byte: work with fewer waits for memory.
    pub fn flop_per_byte(&self) -> f64 {
        TENSOR_FLOP_PER_CYCLE as f64 * f64::from(self.multiprocessors) / self.memory_bytes_per_cycle
    }
}

/// Matrix products that the device's library was asked for, added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Products {
    /// Calls.
    pub count: u64,
    /// A multiplication and an addition are two.
    pub flop: f64,
    /// Each operand once; C twice where it is added to.
    pub bytes: u64,
    /// Of these, bytes that fit beside the arithmetic: at the device's peak rates they arrive before it is done.
    pub hidden_bytes: f64,
}

/// Copies or clears, added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Moves {
    /// Calls.
    pub count: u64,
    /// Bytes of the range, once.
    pub bytes: u64,
}

impl Moves {
    pub(super) fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes as u64;
    }
}

/// Clears of device memory, and what became of the zeros.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Clears {
    /// All of them.
    pub all: Moves,
    /// Bytes that were written, or cleared again, before anything read the zeros.
    pub overwritten_bytes: u64,
    /// Bytes to whose zeros a product was added, which could have been written without them.
    pub added_to_bytes: u64,
}

/// The launches of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LaunchCounters {
    /// Its name in `kernels/`.
    pub kernel: String,
    /// Counted in its execution. In a dry run only `launches` and `blocks` are.
    pub counters: Counters,
    /// Different bytes that each launch reads and writes, by the kernel's closed form.
    pub floor_bytes: f64,
    /// FLOP of matrix products that its operation needs, by closed form.
    pub useful_flop: f64,
    /// FLOP that the tensor cores execute for it, by closed form.
    pub executed_flop: f64,
    /// Of `floor_bytes`, those that fit beside `executed_flop` at the device's peak rates.
    pub hidden_bytes: f64,
    /// Launches that have no closed form and are missing in the four figures above.
    pub without_closed_form: u64,
    /// Launches whose counted different bytes, or FLOP of tensor cores, are not those of the closed form. None in a dry run,
    /// which counts neither.
    pub beside_closed_form: u64,
}

/// Everything that a driver was told between two calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ledger {
    /// Kernels, by name.
    pub kernels: BTreeMap<String, LaunchCounters>,
    /// Products of the device's library.
    pub products: Products,
    /// Clears.
    pub clears: Clears,
    /// Copies within the device.
    pub copies: Moves,
    /// Copies from main memory to the device: uploads, and fetches from page-locked memory.
    pub to_device: Moves,
    /// Copies from the device to main memory: downloads, and parking in page-locked memory.
    pub to_host: Moves,
}

impl Ledger {
    /// Counters of all kernels together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.kernels.values().for_each(|kernel| sum.add(&kernel.counters));
        sum
    }

    /// Launches of kernels and products.
    pub fn launches(&self) -> u64 {
        self.counters().launches + self.products.count
    }

    /// FLOP of products that were executed.
    pub fn executed_flop(&self) -> f64 {
        self.products.flop + self.kernels.values().map(|kernel| kernel.executed_flop).sum::<f64>()
    }

    /// Bytes of device memory that move: of products, kernels, clears and copies within the device.
    pub fn bytes(&self) -> f64 {
        let kernels: f64 = self.kernels.values().map(|kernel| kernel.floor_bytes).sum();
        let moved = self.products.bytes + self.clears.all.bytes + 2 * self.copies.bytes;
        kernels + moved as f64
    }

    /// Of these, bytes that fit beside the arithmetic of the same product or kernel.
    pub fn hidden_bytes(&self) -> f64 {
        self.products.hidden_bytes + self.kernels.values().map(|kernel| kernel.hidden_bytes).sum::<f64>()
    }

    /// Cycles that everything takes at least, kernels one after another: see [`Counters::floor_cycles`]. Products, clears
    /// and copies are there with their arithmetic and bytes.
    pub fn floor_cycles(&self, rates: &PeakRates) -> f64 {
        let kernels: f64 = self.kernels.values().map(|kernel| kernel.counters.floor_cycles(rates)).sum();
        let tensor = TENSOR_FLOP_PER_CYCLE as f64 * f64::from(rates.multiprocessors);
        let products = (self.products.flop / tensor).max(self.products.bytes as f64 / rates.memory_bytes_per_cycle);
        let moved = self.clears.all.bytes + 2 * self.copies.bytes;
        kernels + products + moved as f64 / rates.memory_bytes_per_cycle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound is the slowest resource, spread over the blocks there are.
    #[test]
    fn the_floor_is_the_slowest_resource() {
        let rates = PeakRates { multiprocessors: 4, memory_bytes_per_cycle: 100.0, ..PeakRates::h200() };
        let mut work = Counters { launches: 1, blocks: 2, unique_bytes_read: 1000, ..Counters::default() };
        assert_eq!(work.floor_cycles(&rates), 10.0);
        work.shared_wavefronts = 60;
        assert_eq!(work.floor_cycles(&rates), 30.0);
        work.tensor_flop = 80 * TENSOR_FLOP_PER_CYCLE;
        assert_eq!(work.floor_cycles(&rates), 40.0);
        work.blocks = 8;
        assert_eq!(work.floor_cycles(&rates), 20.0);
        assert_eq!(work.tensor_cycles(), 80);
    }

    #[test]
    fn counts_add_up_field_by_field() {
        let mut sum = Counters { launches: 1, exponentials: 5, ..Counters::default() };
        sum.add(&Counters { launches: 2, blocks: 7, exponentials: 1, ..Counters::default() });
        assert_eq!(sum, Counters { launches: 3, blocks: 7, exponentials: 6, ..Counters::default() });
    }
}
