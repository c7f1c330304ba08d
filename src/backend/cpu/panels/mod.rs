//! Matrix products in panels: both operands are packed in the order in which they are multiplied, the smaller one once for all
//! threads, the larger one by the thread that multiplies it.
//!
//! An element's sum is taken in an order that depends on the depth alone, not on its place or the threads.

mod load;
mod registers;
mod tiles;

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::thread::LocalKey;

use rayon::prelude::*;

use self::registers::Registers;
use self::tiles::Tiles;
use super::product::{Output, Product, Threads};

/// Vectors of a panel. A vector is a row of the left operand or a column of the right one.
const PANEL: usize = 32;
/// The most panels that a thread packs for itself at a time.
const BLOCK_PANELS: usize = 8;
/// The most depths of all panels that are packed once for all threads.
const SHARED_DEPTHS: usize = 64 * 640;

/// Sixteen f32 numbers or 32 bf16 numbers: a register, a row of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// What a register of a block holds.
#[derive(Clone, Copy, PartialEq)]
enum Orientation {
    /// Sixteen depths of one vector.
    Vector,
    /// One depth of sixteen vectors.
    Depth,
}

/// What multiplies panels.
trait Unit: Sized {
    /// Depths of a step.
    const DEPTHS: usize;
    /// Lines that a panel has for each step.
    const LINES: usize;
    /// The most depths that are added up before the output is written.
    const MOST_DEPTHS: usize;
    /// Whether the product's factor is on the packed rows instead of on the sums.
    const SCALES_ROWS: bool;

    /// Whether this processor has the unit.
    fn available() -> bool;

    /// Whether a product of this shape gains by the unit.
    fn suits(m: usize, n: usize, k: usize) -> bool;

    /// Packs the vectors of a panel over some depths; what is beyond the operand becomes 0.
    fn pack(side: &Side, panel: usize, depths: Range<usize>, out: &mut [Line]);

    /// Prepares this thread. Panics where the processor does not have the unit.
    fn begin() -> Self;

    /// Writes the product of two packed panels to the 32 × 32 numbers at `out`, whose rows are `stride` numbers apart, or adds
    /// it to them. What becomes of padding there is open.
    ///
    /// # Safety
    /// The numbers at `out` are valid for writes, and for reads where the product is added, and no other thread uses them.
    unsafe fn multiply(&self, panels: Panels, out: *mut f32, stride: usize, add: bool);
}

/// Two packed panels to multiply.
#[derive(Clone, Copy)]
struct Panels<'a> {
    rows: &'a [Line],
    columns: &'a [Line],
    /// Rows and columns that count; the others are padding.
    height: usize,
    width: usize,
    /// The factor of the product, unless the rows have it.
    alpha: f32,
}

/// The unit of large products on this processor.
pub(super) fn instructions() -> &'static str {
    match (Tiles::available(), Registers::available()) {
        (true, _) => " by AMX",
        (_, true) => " by AVX-512",
        _ => "",
    }
}

/// Writes the product and returns true, where a unit of this processor suits it.
pub(super) fn write(product: &Product, output: Output, threads: Threads) -> bool {
    let Product { m, n, k, .. } = *product;
    if Tiles::available() && Tiles::suits(m, n, k) {
        write_by::<Tiles>(product, output, threads);
    } else if Registers::available() && Registers::suits(m, n, k) {
        write_by::<Registers>(product, output, threads);
    } else {
        return false;
    }
    true
}

/// One operand as vectors.
struct Side<'a> {
    values: &'a [f32],
    /// Elements from one vector to the next.
    vector_stride: usize,
    /// Elements from one depth to the next.
    depth_stride: usize,
    count: usize,
    /// How tiles hold it; the two operands differ.
    in_tiles: Orientation,
    scale: f32,
}

impl Side<'_> {
    /// What a register holds that is loaded from numbers in a row.
    fn contiguous(&self) -> Orientation {
        if self.depth_stride == 1 { Orientation::Vector } else { Orientation::Depth }
    }

    fn panels(&self) -> usize {
        self.count.div_ceil(PANEL)
    }

    /// The vectors of the first or second half of a panel, as far as there are as many.
    fn vectors(&self, panel: usize, half: usize) -> Range<usize> {
        let start = self.count.min(panel * PANEL + half * PANEL / 2);
        start..self.count.min(start + PANEL / 2)
    }
}

struct Multiplication<'a, U> {
    rows: Side<'a>,
    columns: Side<'a>,
    alpha: f32,
    output: Output,
    threads: Threads,
    unit: PhantomData<fn() -> U>,
}

fn write_by<U: Unit>(product: &Product, output: Output, threads: Threads) {
    let Product { m, n, k, a, b, alpha, accumulate } = *product;
    let multiplication = Multiplication::<U> {
        rows: Side {
            values: a.values,
            vector_stride: a.strides.0,
            depth_stride: a.strides.1,
            count: m,
            in_tiles: Orientation::Vector,
            scale: if U::SCALES_ROWS { alpha } else { 1.0 },
        },
        columns: Side {
            values: b.values,
            vector_stride: b.strides.1,
            depth_stride: b.strides.0,
            count: n,
            in_tiles: Orientation::Depth,
            scale: 1.0,
        },
        alpha,
        output,
        threads,
        unit: PhantomData,
    };
    // Blocks of about the same size.
    let blocks = k.div_ceil(U::MOST_DEPTHS);
    let size = k.div_ceil(blocks).next_multiple_of(U::DEPTHS);
    for start in (0..k).step_by(size) {
        multiplication.add_depths(start..k.min(start + size), accumulate || start > 0);
    }
}

thread_local! {
    /// The panels that all threads read, of the thread that began the product.
    static SHARED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    /// The panels of a thread's own block.
    static OWN: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Lends `work` some lines, whatever they hold. They are kept for the next product.
fn with_lines(place: &'static LocalKey<Cell<Vec<Line>>>, count: usize, work: impl FnOnce(&mut [Line])) {
    // Taken, not borrowed: a thread that waits for others may run another product meanwhile.
    let mut lines = place.take();
    if lines.len() < count {
        lines = vec![Line([0; 16]); count];
    }
    work(&mut lines[..count]);
    place.set(lines);
}

impl<U: Unit> Multiplication<'_, U> {
    /// Whether rows are the larger side.
    fn cuts_rows(&self) -> bool {
        self.rows.count >= self.columns.count
    }

    /// The larger side is cut into blocks, each packed by the thread that multiplies it.
    fn cut(&self) -> &Side<'_> {
        if self.cuts_rows() { &self.rows } else { &self.columns }
    }

    /// The smaller side is packed once.
    fn shared(&self) -> &Side<'_> {
        if self.cuts_rows() { &self.columns } else { &self.rows }
    }

    /// Panels of a block: many blocks for each thread, so that none waits for long.
    fn block_panels(&self) -> usize {
        let blocks = match self.threads {
            Threads::This => 1,
            Threads::All => 4 * rayon::current_num_threads(),
        };
        (self.cut().panels() / blocks).clamp(1, BLOCK_PANELS)
    }

    fn add_depths(&self, depths: Range<usize>, add: bool) {
        let panel_lines = depths.len().div_ceil(U::DEPTHS) * U::LINES;
        let all = 0..self.shared().panels();
        let most = (SHARED_DEPTHS / depths.len()).max(1);
        for start in all.clone().step_by(most) {
            let panels = start..all.end.min(start + most);
            with_lines(&SHARED, panels.len() * panel_lines, |shared| {
                let pack =
                    |(panel, out): (usize, &mut [Line])| U::pack(self.shared(), start + panel, depths.clone(), out);
                match self.threads {
                    Threads::This => shared.chunks_exact_mut(panel_lines).enumerate().for_each(pack),
                    Threads::All => shared.par_chunks_exact_mut(panel_lines).enumerate().for_each(pack),
                }
                self.add_blocks(start, shared, depths.clone(), add);
            });
        }
    }

    /// Multiplies packed panels, of which `first` is the first, with every block of the other side.
    fn add_blocks(&self, first: usize, shared: &[Line], depths: Range<usize>, add: bool) {
        let size = self.block_panels();
        let panels = self.cut().panels();
        let block = |block: usize| {
            let block = block * size..panels.min((block + 1) * size);
            self.add_block(first, shared, block, depths.clone(), add);
        };
        match self.threads {
            Threads::This => (0..panels.div_ceil(size)).for_each(block),
            Threads::All => (0..panels.div_ceil(size)).into_par_iter().for_each(block),
        }
    }

    fn add_block(&self, first: usize, shared: &[Line], block: Range<usize>, depths: Range<usize>, add: bool) {
        let panel_lines = depths.len().div_ceil(U::DEPTHS) * U::LINES;
        with_lines(&OWN, block.len() * panel_lines, |own| {
            for (panel, out) in block.clone().zip(own.chunks_exact_mut(panel_lines)) {
                U::pack(self.cut(), panel, depths.clone(), out);
            }
            let unit = U::begin();
            for (other, shared) in (first..).zip(shared.chunks_exact(panel_lines)) {
                for (panel, own) in block.clone().zip(own.chunks_exact(panel_lines)) {
                    if self.cuts_rows() {
                        self.cross(&unit, [panel, other], [own, shared], add);
                    } else {
                        self.cross(&unit, [other, panel], [shared, own], add);
                    }
                }
            }
        });
    }

    /// Writes the 32 × 32 numbers at the crossing of a panel of rows and a panel of columns, as far as there are as many.
    /// Every crossing has one thread, the one whose block it is in.
    fn cross(&self, unit: &U, [row, column]: [usize; 2], [rows, columns]: [&[Line]; 2], add: bool) {
        let Output { first, stride } = self.output;
        let height = (self.rows.count - row * PANEL).min(PANEL);
        let width = (self.columns.count - column * PANEL).min(PANEL);
        let panels = Panels { rows, columns, height, width, alpha: self.alpha };
        // SAFETY: the place is inside the output, whose last row and column the product's caller has checked.
        let out = unsafe { first.add(row * PANEL * stride + column * PANEL) };
        if height == PANEL && width == PANEL {
            // SAFETY: all 32 × 32 numbers are inside the output, and no other thread has this crossing.
            unsafe { unit.multiply(panels, out, stride, add) };
            return;
        }
        let mut whole = [0.0f32; PANEL * PANEL];
        // SAFETY: these parts of rows are inside the output, and no other thread has this crossing.
        let part = |i: usize| unsafe { std::slice::from_raw_parts_mut(out.add(i * stride), width) };
        if add {
            // Added to before the first product as in a whole crossing, so that the order of a sum is the same everywhere.
            (0..height).for_each(|i| whole[i * PANEL..][..width].copy_from_slice(part(i)));
        }
        // SAFETY: the numbers are this array.
        unsafe { unit.multiply(panels, whole.as_mut_ptr(), PANEL, add) };
        (0..height).for_each(|i| part(i).copy_from_slice(&whole[i * PANEL..][..width]));
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::Operand;
    use super::*;
    use crate::random::{Random, Stream};

    /// Numbers of both signs whose sizes span eight powers of two, so that a lost part would show.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, Stream::Weights, 0, 0);
        let mut unit = || random.below(1 << 24) as f32 / 16_777_216.0;
        (0..count).map(|_| (unit() - 0.5) * (unit() * 8.0).floor().exp2()).collect()
    }

    /// The stored matrix and whether it is read as its transpose.
    fn operand(values: &[f32], rows: usize, cols: usize, transposed: bool) -> Operand<'_> {
        if transposed { Operand::rows(values, rows).transposed() } else { Operand::rows(values, cols) }
    }

    /// ‖a − b‖ / ‖b‖.
    fn distance(a: &[f32], b: &[f64]) -> f64 {
        let difference: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        (difference / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
    }

    const SHAPES: [[usize; 3]; 6] =
        [[32, 32, 32], [64, 96, 640], [33, 65, 31], [1, 40, 7], [70, 3, 1300], [300, 129, 45]];

    fn all_bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    /// The product by a unit against the exact one, for odd shapes, every way that the operands may lie, gaps between the rows
    /// of the output, which is poisoned where it is not added to, and one thread or all.
    fn is_at_least_as_close_as_fused_multiplications<U: Unit>() {
        if !U::available() {
            eprintln!("left out: this processor does not have the unit");
            return;
        }
        for [m, n, k] in SHAPES {
            let a = numbers(m * k, 1);
            let b = numbers(k * n, 2);
            let stride = n + 5;
            let before = numbers(m * stride, 3);
            for variant in 0..8 {
                let [left, right, accumulate] = [1, 2, 4].map(|bit| variant & bit != 0);
                let a = operand(&a, m, k, left);
                let b = operand(&b, k, n, right);
                let product = Product { m, n, k, a, b, alpha: 0.75, accumulate };
                let start = if accumulate { before.clone() } else { vec![f32::NAN; m * stride] };
                let [this, all] = [Threads::This, Threads::All].map(|threads| {
                    let mut out = start.clone();
                    let output = Output::new(&mut out[..(m - 1) * stride + n], stride);
                    write_by::<U>(&product, output, threads);
                    out
                });
                assert_eq!(all_bits(&this), all_bits(&all), "threads change bits");
                let gaps =
                    |values: &[f32]| all_bits(values).chunks(stride).flat_map(|r| r[n..].to_vec()).collect::<Vec<_>>();
                assert_eq!(gaps(&this), gaps(&start), "a gap between rows was written");
                let written: Vec<f32> = this.chunks(stride).flat_map(|row| &row[..n]).copied().collect();
                let starts = |row: usize, column: usize| if accumulate { before[row * stride + column] } else { 0.0 };
                let (exact, fused) = references(&product, U::SCALES_ROWS, starts);
                let error = distance(&written, &exact);
                let bound = distance(&fused, &exact).max(6e-8);
                assert!(error <= bound, "{m} x {n} x {k}, variant {variant}: {error:e} against {bound:e}");
            }
        }
    }

    /// The product in f64, and in f32 by fused multiplications and additions in the order of a unit.
    fn references(product: &Product, scales_rows: bool, start: impl Fn(usize, usize) -> f32) -> (Vec<f64>, Vec<f32>) {
        let places = (0..product.m).flat_map(|row| (0..product.n).map(move |column| (row, column)));
        let factors = |row: usize, column: usize, depth: usize| {
            let Product { a, b, .. } = product;
            [a.values[row * a.strides.0 + depth * a.strides.1], b.values[depth * b.strides.0 + column * b.strides.1]]
        };
        places
            .map(|(row, column)| {
                let first = start(row, column);
                let terms = (0..product.k).map(|depth| factors(row, column, depth));
                let sum: f64 = terms.clone().map(|[x, y]| f64::from(x) * f64::from(y)).sum();
                let exact = f64::from(first) + f64::from(product.alpha) * sum;
                let fused = if scales_rows {
                    terms.fold(first, |sum, [x, y]| (product.alpha * x).mul_add(y, sum))
                } else {
                    product.alpha.mul_add(terms.fold(0.0, |sum, [x, y]| x.mul_add(y, sum)), first)
                };
                (exact, fused)
            })
            .unzip()
    }

    #[test]
    fn products_in_tiles_are_at_least_as_close_as_fused_multiplications() {
        is_at_least_as_close_as_fused_multiplications::<Tiles>();
    }

    #[test]
    fn products_in_registers_are_at_least_as_close_as_fused_multiplications() {
        is_at_least_as_close_as_fused_multiplications::<Registers>();
    }

    /// What a processor without AVX-512 computes: depths within a block, and more than one.
    #[test]
    fn products_in_registers_have_the_bits_of_the_gemm_crate() {
        if !Registers::available() || !is_x86_feature_detected!("fma") {
            eprintln!("left out: this processor does not have the unit");
            return;
        }
        for [m, n, k] in [[32, 32, 32], [17, 100, 512], [272, 128, 768], [70, 65, 1301]] {
            let a = numbers(m * k, 8);
            let b = numbers(k * n, 9);
            for variant in 0..8 {
                let [left, right, accumulate] = [1, 2, 4].map(|bit| variant & bit != 0);
                let a = operand(&a, m, k, left);
                let b = operand(&b, k, n, right);
                let product = Product { m, n, k, a, b, alpha: 0.7, accumulate };
                let [mut registers, mut gemm] = [(); 2].map(|()| numbers(m * n, 10));
                write_by::<Registers>(&product, Output::new(&mut registers, n), Threads::All);
                product.write_by_vectors(Output::new(&mut gemm, n), Threads::This);
                assert_eq!(all_bits(&registers), all_bits(&gemm), "{m} x {n} x {k}, variant {variant}");
            }
        }
    }

    /// The order of a sum depends on the depth alone: rows give the same bits in any company.
    fn gives_a_row_the_same_bits_anywhere<U: Unit>() {
        if !U::available() {
            eprintln!("left out: this processor does not have the unit");
            return;
        }
        let [m, n, k] = [67, 50, 700];
        let a = numbers(m * k, 4);
        let b = numbers(k * n, 5);
        let rows = |first: usize, count: usize| {
            let mut out = vec![1.0; count * n];
            let a = Operand::rows(&a[first * k..], k);
            let b = Operand::rows(&b, n);
            let product = Product { m: count, n, k, a, b, alpha: 1.0, accumulate: true };
            write_by::<U>(&product, Output::new(&mut out, n), Threads::This);
            all_bits(&out)
        };
        let all = rows(0, m);
        for (first, count) in [(0, 1), (1, 33), (13, 54), (66, 1)] {
            assert_eq!(rows(first, count), all[first * n..][..count * n]);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_anywhere() {
        gives_a_row_the_same_bits_anywhere::<Tiles>();
        gives_a_row_the_same_bits_anywhere::<Registers>();
    }

    /// Tiles round the parts of a number; no NaN may become a number by it.
    #[test]
    fn what_is_not_finite_spoils_its_own_row_alone() {
        if !Tiles::available() {
            eprintln!("left out: this processor does not have the unit");
            return;
        }
        for bad in [f32::NAN, f32::INFINITY, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_ffff)] {
            let mut a = numbers(32 * 32, 6);
            a[5 * 32 + 3] = bad;
            let b = numbers(32 * 32, 7);
            let mut out = vec![0.0; 32 * 32];
            let a = Operand::rows(&a, 32);
            let b = Operand::rows(&b, 32);
            let product = Product { m: 32, n: 32, k: 32, a, b, alpha: 1.0, accumulate: false };
            write_by::<Tiles>(&product, Output::new(&mut out, 32), Threads::This);
            for (row, numbers) in out.chunks(32).enumerate() {
                assert!(
                    numbers.iter().all(|x| x.is_nan() == (row == 5)),
                    "{bad} in row 5, but row {row} is {numbers:?}"
                );
            }
        }
    }
}
