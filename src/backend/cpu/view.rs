//! Matrices as slices.

use super::Cpu;
use crate::ops::{Matrix, MatrixMut};

/// The elements of a float matrix.
pub(super) fn floats<'a>(matrix: Matrix<'a, Cpu>) -> &'a [f32] {
    &matrix.buffer.floats()[matrix.offset..matrix.offset + matrix.len()]
}

/// The elements of a float matrix, to write.
pub(super) fn floats_mut<'a>(matrix: MatrixMut<'a, Cpu>) -> &'a mut [f32] {
    let range = matrix.offset..matrix.offset + matrix.len();
    &mut matrix.buffer.floats_mut()[range]
}

/// The elements of an integer matrix.
pub(super) fn integers<'a>(matrix: Matrix<'a, Cpu>) -> &'a [u32] {
    &matrix.buffer.integers()[matrix.offset..matrix.offset + matrix.len()]
}

/// The elements of a matrix of any dtype.
pub(super) fn words<'a>(matrix: Matrix<'a, Cpu>) -> &'a [f32] {
    &matrix.buffer.words()[matrix.offset..matrix.offset + matrix.len()]
}

/// The elements of a matrix of any dtype, to write.
pub(super) fn words_mut<'a>(matrix: MatrixMut<'a, Cpu>) -> &'a mut [f32] {
    let range = matrix.offset..matrix.offset + matrix.len();
    &mut matrix.buffer.words_mut()[range]
}

/// Rows of one task, for rows of `cols` elements: about 16 Ki elements, so that a task outlasts its scheduling. It is a
/// function of the shape alone, so that results do not depend on the number of threads.
pub(super) fn rows_per_task(cols: usize) -> usize {
    (16_384 / cols.max(1)).max(1)
}
