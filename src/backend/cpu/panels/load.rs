//! Blocks of an operand in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Orientation, Side};

/// Numbers of a register, and registers of a block.
pub(super) const WIDTH: usize = 16;

/// A whole block of an operand in memory, for loads without a mask.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    first: *const f32,
    /// Elements from one register to the next.
    step: usize,
}

impl Whole {
    /// 16 vectors and `depths` as they lie in memory, whatever is contiguous there being a register's numbers; `None` where
    /// there are fewer vectors, where they must be scaled, or where registers are to hold `wanted` and memory has the other.
    pub(super) fn of(side: &Side, vectors: Range<usize>, depths: Range<usize>, wanted: Orientation) -> Option<Self> {
        if vectors.len() < WIDTH || depths.is_empty() || side.scale != 1.0 || side.contiguous() != wanted {
            return None;
        }
        let place = |vector: usize, depth: usize| vector * side.vector_stride + depth * side.depth_stride;
        assert!(place(vectors.end - 1, depths.end - 1) < side.values.len());
        let step = match wanted {
            Orientation::Vector => side.vector_stride,
            Orientation::Depth => side.depth_stride,
        };
        Some(Self { first: &raw const side.values[place(vectors.start, depths.start)], step })
    }

    /// The register `i`, from its element `from` on.
    ///
    /// # Safety
    /// The block has 16 numbers there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn register(self, i: usize, from: usize) -> __m512 {
        // SAFETY: as the caller vouches.
        unsafe { _mm512_loadu_ps(self.first.add(i * self.step + from)) }
    }
}

/// Up to 16 vectors and up to 16 depths of an operand, one vector or one depth in a register; what is beyond is 0.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(side: &Side, vectors: Range<usize>, depths: Range<usize>, wanted: Orientation) -> [__m512; WIDTH] {
    let contiguous = side.contiguous();
    let (count, width) = match contiguous {
        Orientation::Vector => (vectors.len(), depths.len()),
        Orientation::Depth => (depths.len(), vectors.len()),
    };
    let step = if contiguous == Orientation::Vector { side.vector_stride } else { side.depth_stride };
    let start = vectors.start * side.vector_stride + depths.start * side.depth_stride;
    let mut registers = [_mm512_setzero_ps(); WIDTH];
    if count == 0 || width == 0 {
        return registers;
    }
    let numbers = side.values[start..][..(count - 1) * step + width].as_ptr();
    if count == WIDTH && width == WIDTH {
        for (i, register) in registers.iter_mut().enumerate() {
            // SAFETY: `numbers` has the sixteen that begin at each of sixteen steps.
            *register = unsafe { _mm512_loadu_ps(numbers.add(i * step)) };
        }
    } else {
        let mask = ((1u32 << width) - 1) as u16;
        for (i, register) in registers.iter_mut().enumerate().take(count) {
            // SAFETY: as above for `count` steps; the mask leaves out what is beyond `width`.
            *register = unsafe { _mm512_maskz_loadu_ps(mask, numbers.add(i * step)) };
        }
    }
    if side.scale != 1.0 {
        for register in &mut registers {
            *register = _mm512_mul_ps(*register, _mm512_set1_ps(side.scale));
        }
    }
    if contiguous != wanted {
        transpose(&mut registers);
    }
    registers
}

/// Transposes 16 × 16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512; WIDTH]) {
    let wide = |x| _mm512_castps_pd(x);
    let narrow = |x| _mm512_castpd_ps(x);
    let mut turned = *rows;
    for i in (0..WIDTH).step_by(2) {
        turned[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        turned[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for i in (0..WIDTH).step_by(4) {
        rows[i] = narrow(_mm512_unpacklo_pd(wide(turned[i]), wide(turned[i + 2])));
        rows[i + 1] = narrow(_mm512_unpackhi_pd(wide(turned[i]), wide(turned[i + 2])));
        rows[i + 2] = narrow(_mm512_unpacklo_pd(wide(turned[i + 1]), wide(turned[i + 3])));
        rows[i + 3] = narrow(_mm512_unpackhi_pd(wide(turned[i + 1]), wide(turned[i + 3])));
    }
    // Blocks of four are transposed now; what follows moves whole blocks.
    for i in 0..4 {
        turned[i] = _mm512_shuffle_f32x4::<0x88>(rows[i], rows[i + 4]);
        turned[i + 4] = _mm512_shuffle_f32x4::<0xdd>(rows[i], rows[i + 4]);
        turned[i + 8] = _mm512_shuffle_f32x4::<0x88>(rows[i + 8], rows[i + 12]);
        turned[i + 12] = _mm512_shuffle_f32x4::<0xdd>(rows[i + 8], rows[i + 12]);
    }
    for i in 0..4 {
        rows[i] = _mm512_shuffle_f32x4::<0x88>(turned[i], turned[i + 8]);
        rows[i + 4] = _mm512_shuffle_f32x4::<0x88>(turned[i + 4], turned[i + 12]);
        rows[i + 8] = _mm512_shuffle_f32x4::<0xdd>(turned[i], turned[i + 8]);
        rows[i + 12] = _mm512_shuffle_f32x4::<0xdd>(turned[i + 4], turned[i + 12]);
    }
}
