//! A device that executes nothing: every launch, product, copy and clear is entered in the ledger, with the bytes and FLOP
//! of its closed form, so that steps at any size are counted in seconds and without their memory.
//!
//! Addresses lie in no memory. What is uploaded is kept where it is small (tables of sequences, positions, tokens), because
//! closed forms read it; everything that is read back is zero.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use super::closed_forms;
use super::counters::{Ledger, PeakRates};
use super::counting::Counting;
use super::driver::{Argument, DeviceInfo, Driver, Event, Gemm, Graph, Launch, TensorMap, Tiles};
use super::lock;
use crate::error::{Error, Result};

/// Largest upload whose content is kept, in bytes.
const KEPT: usize = 1 << 20;
/// Where addresses begin, and what they are multiples of.
const FIRST_ADDRESS: u64 = 1 << 40;
const ALIGNMENT: u64 = 256;

/// See the head of the file.
pub(super) struct DryDevice {
    info: DeviceInfo,
    counting: Counting,
    memory: Mutex<Memory>,
}

struct Memory {
    next: u64,
    /// Words that were uploaded, by their address.
    content: BTreeMap<u64, Vec<u8>>,
}

impl DryDevice {
    /// An H200 as NVIDIA specifies it.
    pub(super) fn new() -> Self {
        let info = DeviceInfo {
            name: "H200, dry run".into(),
            compute_capability: (9, 0),
            multiprocessors: PeakRates::h200().multiprocessors,
            shared_bytes_per_block: 232_448,
            memory: 141_000_000_000,
        };
        let memory = Memory { next: FIRST_ADDRESS, content: BTreeMap::new() };
        Self { info, counting: Counting::default(), memory: Mutex::new(memory) }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Words that lie in one upload.
    fn read(&self, address: u64, count: usize) -> Option<Vec<u32>> {
        let memory = self.memory();
        let (start, bytes) = memory.content.range(..=address).next_back()?;
        let first = (address - start) as usize;
        let words = bytes.get(first..first + 4 * count)?;
        Some(words.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
    }
}

impl Driver for DryDevice {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn allocate(&self, _: &str, bytes: usize) -> Result<u64> {
        let mut memory = self.memory();
        let address = memory.next;
        memory.next += (bytes as u64).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        Ok(address)
    }

    unsafe fn release(&self, pointer: u64, bytes: usize) {
        let mut memory = self.memory();
        let gone: Vec<u64> = memory.content.range(pointer..pointer + bytes as u64).map(|(start, _)| *start).collect();
        for start in gone {
            memory.content.remove(&start);
        }
    }

    fn allocate_host(&self, name: &str, bytes: usize) -> Result<u64> {
        self.allocate(name, bytes)
    }

    unsafe fn release_host(&self, _: u64, _: usize) {}

    unsafe fn park(&self, from: u64, _: u64, bytes: usize) -> Result<()> {
        self.counting.note(|count| count.download(from, bytes));
        Ok(())
    }

    unsafe fn fetch(&self, _: u64, to: u64, bytes: usize) -> Result<()> {
        self.counting.note(|count| count.upload(to, bytes));
        Ok(())
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.counting.note(|count| count.upload(to, from.len()));
        if from.len() <= KEPT {
            self.memory().content.insert(to, from.to_vec());
        }
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.counting.note(|count| count.download(from, to.len()));
        to.fill(0);
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.counting.note(|count| count.copy(from, to, bytes));
        Ok(())
    }

    unsafe fn clear(&self, to: u64, bytes: usize) -> Result<()> {
        self.counting.note(|count| count.clear(to, bytes));
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        let form = closed_forms::of_launch(launch, arguments, &|address, count| self.read(address, count));
        self.counting.note(|count| count.dry_launch(launch, form));
        Ok(())
    }

    /// What the closed forms need of an operand, they take from the sizes: the map says nothing.
    fn tensor_map(&self, _: &Tiles) -> Result<TensorMap> {
        Ok(TensorMap([0; 16]))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        self.counting.note(|count| count.product(gemm));
        Ok(true)
    }

    fn gemm_library(&self) -> Option<String> {
        Some("none, counted".into())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn can_record(&self) -> bool {
        false
    }

    fn begin_recording(&self) -> Result<()> {
        Err(no_graphs())
    }

    fn end_recording(&self) -> Result<Graph> {
        Err(no_graphs())
    }

    fn replay(&self, _: Graph) -> Result<()> {
        Err(no_graphs())
    }

    fn forget(&self, _: Graph) {}

    fn record_event(&self) -> Result<Event> {
        Ok(Event(0))
    }

    fn elapsed_milliseconds(&self, _: Event, _: Event) -> Result<f32> {
        Err(Error::Device("a dry run takes no time".into()))
    }

    fn start_counting(&self) -> bool {
        self.counting.start();
        true
    }

    fn stop_counting(&self) -> Option<Ledger> {
        self.counting.stop()
    }
}

fn no_graphs() -> Error {
    Error::Device("a dry run records no graphs".into())
}
