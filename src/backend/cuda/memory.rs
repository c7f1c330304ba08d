//! Device memory of one dtype, and the conversions between host numbers and what the device stores.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;

use super::driver::Driver;
use crate::error::Result;
use crate::ops::{Buffer, DType};

/// A device buffer. Its memory is given back when it is dropped, after all queued work.
pub struct CudaBuffer {
    driver: Arc<dyn Driver>,
    pointer: u64,
    len: usize,
    dtype: DType,
    number: u64,
}

/// Buffers made so far.
static BUFFERS: AtomicU64 = AtomicU64::new(0);

impl CudaBuffer {
    /// `len` elements of undefined content.
    pub(super) fn uninitialized(driver: &Arc<dyn Driver>, name: &str, len: usize, dtype: DType) -> Result<Self> {
        // An empty buffer still has an address of its own, so that kernels never see null by accident.
        let pointer = driver.allocate(name, byte_count(len, dtype))?;
        let number = BUFFERS.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Self { driver: Arc::clone(driver), pointer, len, dtype, number })
    }

    /// The address of element `offset`.
    pub(super) fn address(&self, offset: usize) -> u64 {
        self.pointer + (offset * self.dtype.bytes()) as u64
    }
}

impl Buffer for CudaBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of the buffer among all that were made: addresses come back, numbers do not.
    fn identity(&self) -> u64 {
        self.number
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from this driver with this size, and nobody else holds it.
        unsafe { self.driver.release(self.pointer, byte_count(self.len, self.dtype)) }
    }
}

/// Page-locked main memory of one dtype. Given back when it is dropped, after all queued copies.
pub struct ParkedBuffer {
    driver: Arc<dyn Driver>,
    pointer: u64,
    len: usize,
    dtype: DType,
}

impl ParkedBuffer {
    /// `len` zeros.
    pub(super) fn zeros(driver: &Arc<dyn Driver>, name: &str, len: usize, dtype: DType) -> Result<Self> {
        let pointer = driver.allocate_host(name, byte_count(len, dtype))?;
        Ok(Self { driver: Arc::clone(driver), pointer, len, dtype })
    }

    /// The address of element `offset`.
    pub(super) fn address(&self, offset: usize) -> u64 {
        self.pointer + (offset * self.dtype.bytes()) as u64
    }
}

impl Buffer for ParkedBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Drop for ParkedBuffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from this driver with this size, and nobody else holds it.
        unsafe { self.driver.release_host(self.pointer, byte_count(self.len, self.dtype)) }
    }
}

/// Buffers of undefined content that operations lend from each other, by name.
#[derive(Default)]
pub(super) struct Scratch {
    buffers: HashMap<&'static str, CudaBuffer>,
    /// Grows with every allocation: recorded work refers to the buffers of its generation.
    generation: u64,
}

impl Scratch {
    /// A buffer of at least `len` elements: the one that was put back under this name, if it is large enough.
    pub(super) fn take(
        &mut self,
        driver: &Arc<dyn Driver>,
        name: &'static str,
        len: usize,
        dtype: DType,
    ) -> Result<CudaBuffer> {
        match self.buffers.remove(name) {
            Some(buffer) if buffer.len() >= len && buffer.dtype() == dtype => Ok(buffer),
            _ => {
                self.generation += 1;
                CudaBuffer::uninitialized(driver, name, len, dtype)
            }
        }
    }

    pub(super) fn put_back(&mut self, name: &'static str, buffer: CudaBuffer) {
        self.buffers.insert(name, buffer);
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }
}

fn byte_count(len: usize, dtype: DType) -> usize {
    (len * dtype.bytes()).max(16)
}

/// The bf16 number nearest to `value`, ties away from zero.
///
/// Ties away rather than to even, because then the remainder of every finite f32 fits 16 bits: bits = (bf16 << 16) + remainder.
fn high_half(value: f32) -> u16 {
    if value.is_nan() { bf16::NAN.to_bits() } else { (value.to_bits().wrapping_add(0x8000) >> 16) as u16 }
}

/// What [`high_half`] leaves over.
fn low_half(value: f32) -> u16 {
    if value.is_nan() { 0 } else { value.to_bits() as u16 }
}

/// Host values in the device's representation.
pub(super) fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::Bf16 => values.iter().flat_map(|&v| high_half(v).to_le_bytes()).collect(),
        DType::Remainder16 => values.iter().flat_map(|&v| low_half(v).to_le_bytes()).collect(),
        DType::U32 => values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
    }
}

/// The device's representation as host values; a remainder reads as its integer.
pub(super) fn decode(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let words = || bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    match dtype {
        DType::F32 => words().map(f32::from_bits).collect(),
        DType::Bf16 => halves().map(|h| bf16::from_bits(h).to_f32()).collect(),
        DType::Remainder16 => halves().map(|h| f32::from(h as i16)).collect(),
        DType::U32 => words().map(|w| w as f32).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bf16 and remainder together are the f32 number, whatever its last bits: exact halves, subnormals, the largest.
    #[test]
    fn a_weight_and_its_remainder_are_one_f32() {
        let mut values = vec![0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1)];
        for high in [0x3f80u32, 0x3f81, 0xc2c7, 0x0000, 0x7f7f, 0x8001] {
            values.extend([0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(high << 16 | low)));
        }
        let high = decode(&encode(&values, DType::Bf16), DType::Bf16);
        let low = decode(&encode(&values, DType::Remainder16), DType::Remainder16);
        for ((value, high), low) in values.iter().zip(high).zip(low) {
            assert_eq!(high.to_bits().wrapping_add_signed(low as i32), value.to_bits(), "{value}");
        }
    }

    #[test]
    fn not_a_number_stays_one() {
        let values = [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_ffff), f32::INFINITY];
        let back = decode(&encode(&values, DType::Bf16), DType::Bf16);
        assert!(back[..3].iter().all(|v| v.is_nan()) && back[3] == f32::INFINITY);
    }
}
