//! [`Check`]: how the operations check their operands, with one message for each kind of mistake.

use super::{Buffer, DType, Matrix, MatrixMut, Memory, Segments, expect, shape_error};
use crate::error::{Error, Result};

/// What an operation's checks need to know besides its operands.
pub struct Check {
    /// The operation's name, for messages.
    pub operation: &'static str,
    /// How the device stores weights and activations.
    pub compute: DType,
}

/// An operand and its name in messages.
pub type Named<'a> = (&'a str, &'a dyn Operand);

/// A matrix that can be checked, or one that may be absent, which passes every check where it is.
pub trait Operand {
    /// What there is to check.
    fn extent(&self) -> Option<Extent>;
}

/// The place of a matrix in its buffer.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    rows: usize,
    cols: usize,
    offset: usize,
    room: usize,
    dtype: DType,
}

impl<B: Memory> Operand for Matrix<'_, B> {
    fn extent(&self) -> Option<Extent> {
        let Self { rows, cols, offset, buffer } = *self;
        Some(Extent { rows, cols, offset, room: buffer.len(), dtype: buffer.dtype() })
    }
}

impl<B: Memory> Operand for MatrixMut<'_, B> {
    fn extent(&self) -> Option<Extent> {
        self.as_matrix().extent()
    }
}

impl<O: Operand> Operand for Option<O> {
    fn extent(&self) -> Option<Extent> {
        self.as_ref()?.extent()
    }
}

fn present<'a>(operands: &'a [Named<'a>]) -> impl Iterator<Item = (&'a str, Extent)> {
    operands.iter().filter_map(|(what, operand)| Some((*what, operand.extent()?)))
}

impl Check {
    /// The error of this operation for `problem`.
    pub fn error(&self, problem: String) -> Error {
        shape_error(self.operation, problem)
    }

    /// Fails unless every operand lies inside its buffer, which is stored as `dtype`.
    pub fn stored(&self, dtype: DType, operands: &[Named]) -> Result<()> {
        present(operands).try_for_each(|(what, extent)| {
            let len = extent.rows.saturating_mul(extent.cols);
            self.inside(what, extent.room, extent.offset, len)?;
            self.dtype(what, extent.dtype, dtype)
        })
    }

    /// Fails unless the inputs of a matrix product are floats of one dtype, and the output of that or of f32; and unless all
    /// lie inside their buffers.
    pub fn product(&self, inputs: [Named; 2], output: Named) -> Result<()> {
        let Some(first) = inputs[0].1.extent() else { return Ok(()) };
        if !matches!(first.dtype, DType::F32 | DType::Bf16) {
            return Err(self.error(format!("{} is stored as {:?}, expected floats", inputs[0].0, first.dtype)));
        }
        self.stored(first.dtype, &inputs)?;
        let wide = output.1.extent().is_some_and(|extent| extent.dtype == DType::F32);
        self.stored(if wide { DType::F32 } else { first.dtype }, &[output])
    }

    /// Fails unless `len` elements from `offset` on lie inside a buffer.
    pub fn range(&self, what: &str, buffer: &impl Buffer, offset: usize, len: usize) -> Result<()> {
        self.inside(what, buffer.len(), offset, len)
    }

    fn inside(&self, what: &str, room: usize, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= room => Ok(()),
            _ => Err(self.error(format!("{what} is {len} elements from {offset} on, in a buffer of {room}"))),
        }
    }

    /// Fails unless `found` equals `expected`.
    pub fn dtype(&self, what: &str, found: DType, expected: DType) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(self.error(format!("{what} is stored as {found:?}, expected {expected:?}")))
    }

    /// Fails for integers, which the host exchanges as u32 and not as f32.
    pub fn real(&self, what: &str, found: DType) -> Result<()> {
        match found {
            DType::U32 => Err(self.error(format!("{what} is stored as {found:?}, expected floats"))),
            DType::F32 | DType::Bf16 | DType::Remainder16 => Ok(()),
        }
    }

    /// Fails unless `found` equals `expected`; `what` is the quantity.
    pub fn equal(&self, what: &str, found: usize, expected: usize) -> Result<()> {
        expect(self.operation, what, found, expected)
    }

    /// Fails unless every operand has `expected` rows.
    pub fn rows(&self, expected: usize, operands: &[Named]) -> Result<()> {
        self.each("rows", expected, operands, |extent| extent.rows)
    }

    /// Fails unless every operand has `expected` columns.
    pub fn columns(&self, expected: usize, operands: &[Named]) -> Result<()> {
        self.each("columns", expected, operands, |extent| extent.cols)
    }

    /// Fails unless every operand has `expected` elements, in whatever shape.
    pub fn elements(&self, expected: usize, operands: &[Named]) -> Result<()> {
        self.each("elements", expected, operands, |extent| extent.rows.saturating_mul(extent.cols))
    }

    fn each(&self, unit: &str, expected: usize, all: &[Named], found: impl Fn(Extent) -> usize) -> Result<()> {
        match present(all).find(|(_, extent)| found(*extent) != expected) {
            None => Ok(()),
            Some((what, extent)) => {
                Err(self.error(format!("{unit} of {what} is {}, expected {expected}", found(extent))))
            }
        }
    }

    /// Fails unless the sequences are `rows` rows, in order and without gaps, and their table on the device is of u32.
    pub fn segments<B: Memory>(&self, segments: &Segments<B>, rows: usize) -> Result<()> {
        let mut end = 0;
        for (index, segment) in segments.host.iter().enumerate() {
            self.equal(&format!("first row of sequence {index}"), segment.start, end)?;
            end += segment.length;
        }
        self.equal("tokens of the segments", end, rows)?;
        let table = segments.device.view();
        self.elements(3 * segments.host.len(), &[("the table of segments", &table)])?;
        self.stored(DType::U32, &[("the table of segments", &table)])
    }
}
