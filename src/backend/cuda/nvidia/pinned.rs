//! Host memory that the device reads and writes by itself, and the staging of ordinary host memory through it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};

use super::error::during;
use crate::error::Result;

/// Page-locked host memory, zero at first.
pub(super) struct PinnedBuffer {
    context: Arc<CudaContext>,
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: it is plain memory with one owner; access follows Rust's borrows.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        let failed = || during(format!("{bytes} bytes of page-locked host memory (see `ulimit -l`)"));
        context.bind_to_thread().map_err(failed())?;
        // SAFETY: the context is current; the memory is initialized below before anyone reads it.
        let pointer = unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) }.map_err(failed())?;
        let pointer = pointer.cast::<u8>();
        // SAFETY: the driver returned this many writable bytes.
        unsafe { std::ptr::write_bytes(pointer, 0, bytes) };
        Ok(Self { context: Arc::clone(context), pointer, bytes })
    }

    /// Its bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: initialized memory of this length, owned by `self`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    /// Its bytes, to write.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: it came from `malloc_host` and is freed once. The driver waits for transfers from it.
        self.context.record_err(unsafe { result::free_host(self.pointer.cast()) });
    }
}

/// A ring of pinned slots. Ordinary memory is copied into a slot and sent from there, so the caller's memory is free at
/// once and the host waits for the device only when all slots are under way. (What an asynchronous copy straight from
/// ordinary memory does about the caller's memory, the driver leaves open.)
pub(super) struct Staging {
    slots: Vec<(PinnedBuffer, CudaEvent)>,
    next: usize,
}

/// 16 MiB in all: token ids and coefficients fit one slot, and weights keep the bus busy.
const SLOTS: usize = 8;
const SLOT_BYTES: usize = 2 << 20;

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let slot = |_| {
            let sent = context.new_event(None).map_err(during("events of the staging memory"))?;
            Ok((PinnedBuffer::new(context, SLOT_BYTES)?, sent))
        };
        Ok(Self { slots: (0..SLOTS).map(slot).collect::<Result<_>>()?, next: 0 })
    }

    /// Queues a copy to the device.
    ///
    /// # Safety
    /// `to..to + from.len()` is device memory of the stream's context, which is current.
    pub(super) unsafe fn send(&mut self, stream: &CudaStream, to: u64, from: &[u8]) -> Result<()> {
        for (index, chunk) in from.chunks(SLOT_BYTES).enumerate() {
            let (buffer, sent) = &mut self.slots[self.next];
            self.next = (self.next + 1) % SLOTS;
            sent.synchronize().map_err(during("waiting for an upload"))?;
            let slot = &mut buffer.as_mut_slice()[..chunk.len()];
            slot.copy_from_slice(chunk);
            let place = to + (index * SLOT_BYTES) as u64;
            // SAFETY: the caller vouches for the destination; the slot is not written before `sent` says it was read.
            unsafe { result::memcpy_htod_async(place, slot, stream.cu_stream()) }.map_err(during("an upload"))?;
            sent.record(stream).map_err(during("an upload"))?;
        }
        Ok(())
    }
}
