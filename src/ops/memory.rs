//! The memory of a device: what an element is, what a buffer is, and the operations that move elements.

use super::{Check, Matrix, MatrixMut, Operation};
use crate::error::Result;

/// How a buffer's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit remainder: with the bf16 weight above it, exactly one f32.
    Remainder16,
    /// 32-bit unsigned integer: token ids, positions, targets.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 | Self::Remainder16 => 2,
        }
    }

    /// "f32", "bf16", "remainder16" or "u32".
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Remainder16 => "remainder16",
            Self::U32 => "u32",
        }
    }
}

/// Memory that holds elements of one dtype. It is freed when it is dropped.
pub trait Buffer: Send + Sync + 'static {
    /// Number of elements.
    fn len(&self) -> usize;
    /// How the elements are stored.
    fn dtype(&self) -> DType;

    /// Whether it has no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that no other buffer of this process has or will have, where recordings depend on which buffers they use;
    /// otherwise 0. See [`RecordingKey`](super::RecordingKey).
    fn identity(&self) -> u64 {
        0
    }
}

/// Where a device's operands live. It is apart from [`Backend`](super::Backend) because the argument structs of the
/// operations name its buffers, and `Backend` names those structs.
pub trait Memory: Clone + Send + Sync + Sized + 'static {
    /// Memory of the device, which operations take.
    type Buffer: Buffer;
    /// Main memory that the device copies to and from; tensors that the outer step alone touches wait there. [`Park`] and
    /// [`Fetch`] are the only operations that take it.
    type Parked: Buffer;

    /// Allocates `len` zeros on the device. `name` appears in memory reports.
    fn zeros(&self, name: &str, len: usize, dtype: DType) -> Result<Self::Buffer>;
    /// Allocates `len` zeros in main memory. `name` appears in memory reports.
    fn parked(&self, name: &str, len: usize, dtype: DType) -> Result<Self::Parked>;
}

/// `to[offset..] = values`. A bf16 buffer takes the nearest bf16, ties away from zero (so that the rest of every f32 fits a
/// remainder buffer), and a remainder buffer what that leaves over.
pub struct UploadF32<'a, B: Memory> {
    /// The numbers, on the host.
    pub values: &'a [f32],
    /// A buffer of any dtype but u32.
    pub to: &'a mut B::Buffer,
    /// The element of `to` that takes the first number.
    pub offset: usize,
}

impl<B: Memory> Operation for UploadF32<'_, B> {
    const NAME: &'static str = "upload_f32";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        check.range("to", self.to, self.offset, self.values.len())?;
        check.real("to", self.to.dtype())
    }
}

/// `to[offset..] = values`.
pub struct UploadU32<'a, B: Memory> {
    /// The numbers, on the host.
    pub values: &'a [u32],
    /// A buffer of u32.
    pub to: &'a mut B::Buffer,
    /// The element of `to` that takes the first number.
    pub offset: usize,
}

impl<B: Memory> Operation for UploadU32<'_, B> {
    const NAME: &'static str = "upload_u32";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        check.range("to", self.to, self.offset, self.values.len())?;
        check.dtype("to", self.to.dtype(), DType::U32)
    }
}

/// `from[offset..offset + len]` as f32, on the host; a remainder reads as its integer. Waits for the device.
pub struct DownloadF32<'a, B: Memory> {
    /// A buffer of any dtype but u32.
    pub from: &'a B::Buffer,
    /// The first element that is read.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl<B: Memory> Operation for DownloadF32<'_, B> {
    const NAME: &'static str = "download_f32";
    type Output = Vec<f32>;

    fn check(&self, check: &Check) -> Result<()> {
        check.range("from", self.from, self.offset, self.len)?;
        check.real("from", self.from.dtype())
    }
}

/// to = from, element by element; both of one dtype, and as many elements.
pub struct CopyValues<'a, B: Memory> {
    /// What is read.
    pub from: Matrix<'a, B>,
    /// What is overwritten.
    pub to: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for CopyValues<'_, B> {
    const NAME: &'static str = "copy";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        check.elements(self.from.len(), &[("to", &self.to)])?;
        check.stored(self.from.dtype(), &[("from", &self.from), ("to", &self.to)])
    }
}

/// `to[to_offset..]` = from; both of one dtype.
pub struct Park<'a, B: Memory> {
    /// What is read, on the device.
    pub from: Matrix<'a, B>,
    /// Main memory.
    pub to: &'a mut B::Parked,
    /// The element of `to` that takes the first one of `from`.
    pub to_offset: usize,
}

impl<B: Memory> Operation for Park<'_, B> {
    const NAME: &'static str = "park";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        check.stored(self.to.dtype(), &[("from", &self.from)])?;
        check.range("to", self.to, self.to_offset, self.from.len())
    }
}

/// to = `from[from_offset..]`; both of one dtype.
pub struct Fetch<'a, B: Memory> {
    /// Main memory.
    pub from: &'a B::Parked,
    /// The first element of `from` that is read.
    pub from_offset: usize,
    /// What is overwritten, on the device.
    pub to: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for Fetch<'_, B> {
    const NAME: &'static str = "fetch";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        check.stored(self.from.dtype(), &[("to", &self.to)])?;
        check.range("from", self.from, self.from_offset, self.to.len())
    }
}

/// Every element of `to` becomes zero, whatever its dtype.
pub struct Clear<'a, B: Memory> {
    /// What is overwritten.
    pub to: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for Clear<'_, B> {
    const NAME: &'static str = "clear";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        check.stored(self.to.dtype(), &[("to", &self.to)])
    }
}
