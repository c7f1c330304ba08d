//! The matrix unit that x86-64 servers have since 2023 (AMX): several times as fast as vectors of f32.
//!
//! It multiplies tiles of bf16 numbers and adds up in f32. An f32 number is the exact sum of three bf16 parts, and six products
//! of parts make the product of two numbers: the three that are left out are at most 2⁻²⁴ of it, as much as f32 rounds off.
//! Sums are closer to the exact ones than one fused multiplication and addition after the other gives. Two differences
//! remain: an infinite operand makes a NaN, and what is below 2⁻¹²⁶ of a part or a sum is 0.
//!
//! A tile of the left operand holds 16 rows of 16 pairs, one of the right operand 16 pairs of 16 columns. Which depths make a
//! pair is free as long as both operands agree: here `i` and `i + 16` of each 32, so that no number crosses a register.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use super::load::{WIDTH, Whole, load};
use super::{Line, Orientation, PANEL, Panels, Side, Unit};

/// Depths of a step: a row of a tile holds as many.
const DEPTHS: usize = 32;
/// Lines of one panel and step: three parts, two tiles, sixteen rows.
const LINES: usize = 3 * PANEL;
/// What the unit saves of a multiplication goes into packing unless every packed number is multiplied about as often.
const GAIN: usize = 28;
/// Multiplications below which a product takes no noticeable time in registers either. Models of a few hundred thousand weights
/// then give the same bits on every processor.
const LEAST_WORK: usize = 1 << 27;

/// Number of the system call `arch_prctl`, of its request for a feature of the processor, and of the feature: the tiles' data.
const ARCH_PRCTL: usize = 158;
const REQUEST_PERMISSION: usize = 0x1023;
const TILE_DATA: usize = 18;

fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES
}

fn permitted() -> bool {
    let result: isize;
    // SAFETY: the call has these arguments, changes no memory of this process, and overwrites the two registers named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// The layout of the operand of `ldtilecfg`.
#[repr(C, align(64))]
struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles have 16 rows of 64 bytes.
static WHOLE_TILES: TileConfiguration = TileConfiguration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The tiles of this thread, from their configuration until their release.
pub(super) struct Tiles(());

impl Unit for Tiles {
    const DEPTHS: usize = DEPTHS;
    const LINES: usize = LINES;
    /// The panels of a block stay in a second-level cache. Where blocks end changes no bit: the output is where sums begin.
    const MOST_DEPTHS: usize = 640;
    const SCALES_ROWS: bool = true;

    /// Linux asks for a request before the first use, since tiles add 8 KiB to what it saves of a thread.
    fn available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            cfg!(target_os = "linux") && is_x86_feature_detected!("avx512f") && has_tiles() && permitted()
        })
    }

    fn suits(m: usize, n: usize, k: usize) -> bool {
        k >= DEPTHS && m * n >= GAIN * (m + n) && m * n * k >= LEAST_WORK
    }

    fn pack(side: &Side, panel: usize, depths: Range<usize>, out: &mut [Line]) {
        assert!(Self::available());
        for (start, step) in depths.clone().step_by(DEPTHS).zip(out.chunks_exact_mut(LINES)) {
            for half in 0..2 {
                let depths = start..depths.end.min(start + DEPTHS);
                // SAFETY: the processor has AVX-512 where it has the unit.
                unsafe { pack_tiles(side, side.vectors(panel, half), depths, &mut step[half * WIDTH..]) };
            }
        }
    }

    fn begin() -> Self {
        assert!(Self::available(), "this processor has no matrix unit");
        // SAFETY: the unit is there, and the operand has its layout.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE_TILES, options(nostack, readonly)) };
        Self(())
    }

    unsafe fn multiply(&self, panels: Panels, out: *mut f32, stride: usize, add: bool) {
        let Panels { rows, columns, .. } = panels;
        assert!(rows.len() == columns.len() && !rows.is_empty() && rows.len().is_multiple_of(LINES));
        let steps = rows.len() / LINES;
        let bytes = stride * size_of::<f32>();
        // SAFETY: `self` proves the configuration. The loop reads `steps` times what `LINES` lines have, which both
        // panels hold; the caller vouches for the output.
        unsafe {
            asm!(
                "test {add}, {add}",
                "jz 2f",
                "tileloadd tmm0, [{c} + {stride}]",
                "tileloadd tmm1, [{c} + {stride} + 64]",
                "tileloadd tmm2, [{d} + {stride}]",
                "tileloadd tmm3, [{d} + {stride} + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                // First parts of the rows with third parts of the columns.
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b} + {row} + 4096]",
                "tileloadd tmm7, [{b} + {row} + 5120]",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // First and second.
                "tileloadd tmm6, [{b} + {row} + 2048]",
                "tileloadd tmm7, [{b} + {row} + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // Second and second.
                "tileloadd tmm4, [{a} + {row} + 2048]",
                "tileloadd tmm5, [{a} + {row} + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // Second and first.
                "tileloadd tmm6, [{b} + {row}]",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // Third and first.
                "tileloadd tmm4, [{a} + {row} + 4096]",
                "tileloadd tmm5, [{a} + {row} + 5120]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // First and first.
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                "add {a}, 6144",
                "add {b}, 6144",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{c} + {stride}], tmm0",
                "tilestored [{c} + {stride} + 64], tmm1",
                "tilestored [{d} + {stride}], tmm2",
                "tilestored [{d} + {stride} + 64], tmm3",
                add = in(reg) usize::from(add),
                a = inout(reg) rows.as_ptr() => _,
                b = inout(reg) columns.as_ptr() => _,
                steps = inout(reg) steps => _,
                c = in(reg) out,
                d = in(reg) out.add(PANEL / 2 * stride),
                stride = in(reg) bytes,
                row = in(reg) 64usize,
                out("tmm0") _,
                out("tmm1") _,
                out("tmm2") _,
                out("tmm3") _,
                out("tmm4") _,
                out("tmm5") _,
                out("tmm6") _,
                out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    /// Without a release the system would go on saving the tiles at every switch of threads.
    fn drop(&mut self) {
        // SAFETY: the unit is there, since the tiles were configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Writes the three tiles of up to 16 vectors and up to 32 depths, one for each part of their numbers, two tiles apart.
#[target_feature(enable = "avx512f")]
fn pack_tiles(side: &Side, vectors: Range<usize>, depths: Range<usize>, out: &mut [Line]) {
    let out = &mut out[..5 * WIDTH];
    let whole =
        if depths.len() == DEPTHS { Whole::of(side, vectors.clone(), depths.clone(), side.in_tiles) } else { None };
    if let Some(whole) = whole {
        for row in 0..WIDTH {
            // SAFETY: 32 depths are 32 numbers of a vector, or 32 registers of sixteen vectors.
            let [low, high] = unsafe {
                match side.in_tiles {
                    Orientation::Vector => [whole.register(row, 0), whole.register(row, WIDTH)],
                    Orientation::Depth => [whole.register(row, 0), whole.register(row + WIDTH, 0)],
                }
            };
            write_pairs(low, high, row, out);
        }
        return;
    }
    let middle = depths.end.min(depths.start + WIDTH);
    let low = load(side, vectors.clone(), depths.start..middle, side.in_tiles);
    let high = load(side, vectors, middle..depths.end, side.in_tiles);
    for (row, (low, high)) in low.into_iter().zip(high).enumerate() {
        write_pairs(low, high, row, out);
    }
}

/// Writes a row of the three tiles: the pairs of `low` and `high`, in parts.
#[inline]
#[target_feature(enable = "avx512f")]
fn write_pairs(low: __m512, high: __m512, row: usize, out: &mut [Line]) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let low = parts(low);
    let high = parts(high);
    for part in 0..3 {
        // The parts are in the upper half of each lane: (low >> 16) | (high & upper).
        let pair = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(low[part]), high[part], upper);
        let line = &mut out[part * 2 * WIDTH + row];
        // SAFETY: a line is what a register holds, and is aligned.
        unsafe { _mm512_store_si512((&raw mut *line).cast(), pair) };
    }
}

/// Three bf16 numbers whose sum is x, each in the upper half of its lane. The lower half is 0, or of no account in a NaN.
///
/// Each is the nearest to what the ones before it left over. Eight bits of significand each make 24, as many as f32 has, so
/// the third is exact.
#[inline]
#[target_feature(enable = "avx512f")]
fn parts(x: __m512) -> [__m512i; 3] {
    let half = _mm512_set1_epi32(0x8000);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let nearest = |x: __m512| _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper);
    let first = nearest(x);
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(first));
    let second = nearest(rest);
    // A NaN whose significand is all ones becomes another number by rounding. The third part, which is not rounded, is NaN then.
    let third = _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(second)));
    [first, second, third]
}
