//! Products of f32 in the registers of AVX-512.
//!
//! Every element is added up as the `gemm` crate does on any processor with fused multiplications: from 0, depth after depth, and
//! up to 512 depths before the output is written. The bits are the same.

use std::arch::x86_64::*;
use std::ops::Range;

use super::load::{WIDTH, Whole, load};
use super::{Line, Orientation, PANEL, Panels, Side, Unit};

/// Lines of one panel and depth.
const LINES: usize = PANEL / WIDTH;

/// A thread that multiplies in registers; it needs no preparation.
pub(super) struct Registers(());

impl Unit for Registers {
    const DEPTHS: usize = 1;
    const LINES: usize = LINES;
    const MOST_DEPTHS: usize = 512;
    const SCALES_ROWS: bool = false;

    fn available() -> bool {
        is_x86_feature_detected!("avx512f")
    }

    fn suits(m: usize, n: usize, k: usize) -> bool {
        k >= WIDTH && m >= WIDTH && n >= WIDTH
    }

    fn pack(side: &Side, panel: usize, depths: Range<usize>, out: &mut [Line]) {
        assert!(Self::available());
        for half in 0..2 {
            // SAFETY: the processor has AVX-512.
            unsafe { pack_half(side, side.vectors(panel, half), depths.clone(), &mut out[half..]) };
        }
    }

    fn begin() -> Self {
        assert!(Self::available(), "this processor has no AVX-512");
        Self(())
    }

    unsafe fn multiply(&self, panels: Panels, out: *mut f32, stride: usize, add: bool) {
        let Panels { rows, columns, height, width, alpha } = panels;
        assert!(rows.len() == columns.len());
        // Sixteen registers of sums are enough to hide the latency of an addition: 8 rows of 32 columns, or 16 rows of 16.
        let step = if width > WIDTH { 8 } else { 16 };
        for first in (0..height).step_by(step) {
            // SAFETY: `self` proves that the processor has AVX-512; the caller vouches for the output.
            unsafe {
                let out = out.add(first * stride);
                if width > WIDTH {
                    multiply_rows::<8, 2>([rows, columns], first, Destination { out, stride, alpha, add });
                } else {
                    multiply_rows::<16, 1>([rows, columns], first, Destination { out, stride, alpha, add });
                }
            }
        }
    }
}

/// Writes up to 16 vectors, a depth in every second line.
#[target_feature(enable = "avx512f")]
fn pack_half(side: &Side, vectors: Range<usize>, depths: Range<usize>, out: &mut [Line]) {
    if let Some(whole) = Whole::of(side, vectors.clone(), depths.clone(), Orientation::Depth) {
        for (depth, line) in (0..depths.len()).zip(out.iter_mut().step_by(LINES)) {
            // SAFETY: every depth is a register of sixteen vectors.
            store(unsafe { whole.register(depth, 0) }, line);
        }
        return;
    }
    for (start, out) in depths.clone().step_by(WIDTH).zip(out.chunks_mut(WIDTH * LINES)) {
        let depths = start..depths.end.min(start + WIDTH);
        let block = load(side, vectors.clone(), depths.clone(), Orientation::Depth);
        for (line, depth) in out.iter_mut().step_by(LINES).zip(&block[..depths.len()]) {
            store(*depth, line);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(register: __m512, line: &mut Line) {
    // SAFETY: a line is what a register holds, and is aligned.
    unsafe { _mm512_store_ps((&raw mut *line).cast(), register) };
}

/// Where sums go: `out = alpha · sum`, or added to what is there.
struct Destination {
    out: *mut f32,
    stride: usize,
    alpha: f32,
    add: bool,
}

/// `ROWS` rows from `first` on of one panel times `HALVES` · 16 columns of the other.
///
/// Loops count, since iterators over pairs are calls where the compiler does not optimise across crates.
///
/// # Safety
/// The numbers of the destination are valid for writes, and for reads where the product is added.
#[target_feature(enable = "avx512f")]
#[expect(clippy::needless_range_loop, reason = "see above")]
unsafe fn multiply_rows<const ROWS: usize, const HALVES: usize>(
    [rows, columns]: [&[Line]; 2],
    first: usize,
    destination: Destination,
) {
    let depths = rows.len() / LINES;
    let mut sums = [[_mm512_setzero_ps(); HALVES]; ROWS];
    // SAFETY: both panels have 32 numbers for each depth.
    unsafe {
        let mut row = rows.as_ptr().cast::<f32>().add(first);
        let mut column = columns.as_ptr().cast::<f32>();
        for _ in 0..depths {
            let mut numbers = [_mm512_setzero_ps(); HALVES];
            for half in 0..HALVES {
                numbers[half] = _mm512_load_ps(column.add(half * WIDTH));
            }
            for i in 0..ROWS {
                let x = _mm512_set1_ps(*row.add(i));
                for half in 0..HALVES {
                    sums[i][half] = _mm512_fmadd_ps(x, numbers[half], sums[i][half]);
                }
            }
            row = row.add(PANEL);
            column = column.add(PANEL);
        }
    }
    let Destination { out, stride, alpha, add } = destination;
    let factor = _mm512_set1_ps(alpha);
    for i in 0..ROWS {
        for half in 0..HALVES {
            // SAFETY: the caller vouches for the place.
            unsafe {
                let place = out.add(i * stride + half * WIDTH);
                let sum = sums[i][half];
                let value =
                    if add { _mm512_fmadd_ps(factor, sum, _mm512_loadu_ps(place)) } else { _mm512_mul_ps(factor, sum) };
                _mm512_storeu_ps(place, value);
            }
        }
    }
}
