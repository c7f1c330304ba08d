//! Keeps the [`Ledger`] while a driver counts: what launches, products, copies and clears add to it, and which memory
//! holds zeros of a clear that nothing has read yet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use super::closed_forms::ClosedForm;
use super::counters::{Counters, Ledger, PeakRates};
use super::driver::{Gemm, Launch};
use super::lock;
use crate::ops::DType;

/// `TEMPER_READ_FIRST` of `kernels/sim/interface.h`: a byte was read before the launch wrote it, if it did.
#[cfg(feature = "simulator")]
const READ_FIRST: u8 = 4;

/// A driver's counting, under way or not.
#[derive(Default)]
pub(super) struct Counting(Mutex<Option<Count>>);

/// What was counted so far.
#[derive(Default)]
pub(super) struct Count {
    pub ledger: Ledger,
    pub zeros: Zeros,
}

impl Counting {
    /// Begins, from zero.
    pub fn start(&self) {
        *lock(&self.0) = Some(Count::default());
    }

    /// Ends; nothing where it was not begun.
    pub fn stop(&self) -> Option<Ledger> {
        lock(&self.0).take().map(|count| count.ledger)
    }

    /// Whether it was begun and not ended.
    #[cfg(feature = "simulator")]
    pub fn is_under_way(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Adds to what is counted, if anything is.
    pub fn note(&self, note: impl FnOnce(&mut Count)) {
        if let Some(count) = &mut *lock(&self.0) {
            note(count);
        }
    }
}

impl Count {
    pub fn copy(&mut self, from: u64, to: u64, bytes: usize) {
        self.ledger.copies.add(bytes);
        self.zeros.take(from..from + bytes as u64);
        self.write(to, bytes);
    }

    pub fn clear(&mut self, to: u64, bytes: usize) {
        self.ledger.clears.all.add(bytes);
        self.write(to, bytes);
        self.zeros.add(to..to + bytes as u64);
    }

    pub fn upload(&mut self, to: u64, bytes: usize) {
        self.ledger.to_device.add(bytes);
        self.write(to, bytes);
    }

    pub fn download(&mut self, from: u64, bytes: usize) {
        self.ledger.to_host.add(bytes);
        self.zeros.take(from..from + bytes as u64);
    }

    pub fn product(&mut self, gemm: &Gemm) {
        let Gemm { m, n, k, .. } = *gemm;
        let [input, output] = [gemm.input, gemm.output].map(DType::bytes);
        let passes = if gemm.beta == 0.0 { 1 } else { 2 };
        let bytes = (input * (m * k + k * n) + passes * output * m * n) as u64;
        let flop = 2.0 * m as f64 * n as f64 * k as f64;
        let products = &mut self.ledger.products;
        products.count += 1;
        products.flop += flop;
        products.bytes += bytes;
        products.hidden_bytes += hidden(bytes as f64, flop);
        for (operand, rows, cols) in [(gemm.a, m, k), (gemm.b, k, n)] {
            let (lines, length) = if operand.transposed { (cols, rows) } else { (rows, cols) };
            for range in lines_of(operand.pointer, lines, length, operand.leading, input) {
                self.zeros.take(range);
            }
        }
        for range in lines_of(gemm.c, m, n, gemm.c_leading, output) {
            let zeros = self.zeros.take(range);
            let clears = &mut self.ledger.clears;
            let fate = if gemm.beta == 0.0 { &mut clears.overwritten_bytes } else { &mut clears.added_to_bytes };
            *fate += zeros;
        }
    }

    /// A launch that is not executed.
    pub fn dry_launch(&mut self, launch: &Launch, form: Option<ClosedForm>) {
        let blocks = launch.grid.iter().map(|side| u64::from(*side)).product();
        self.add_launch(launch.kernel, &Counters { launches: 1, blocks, ..Counters::default() }, form);
    }

    fn add_launch(&mut self, kernel: &str, counters: &Counters, form: Option<ClosedForm>) {
        let entry = self.ledger.kernels.entry(kernel.to_string()).or_default();
        entry.kernel = kernel.to_string();
        entry.counters.add(counters);
        let Some(form) = form else {
            entry.without_closed_form += 1;
            return;
        };
        entry.floor_bytes += form.bytes;
        entry.useful_flop += form.useful_flop;
        entry.executed_flop += form.executed_flop;
        entry.hidden_bytes += hidden(form.bytes, form.executed_flop);
    }

    /// `touches` says what the launch did with each byte of a range: flags of `kernels/sim/interface.h`.
    #[cfg(feature = "simulator")]
    pub fn launch(
        &mut self,
        kernel: &str,
        counters: &Counters,
        form: Option<ClosedForm>,
        touches: impl Fn(Range<u64>) -> Vec<u8>,
    ) {
        let differs = |form: &ClosedForm| {
            counters.unique_bytes() as f64 != form.bytes || counters.tensor_flop as f64 != form.executed_flop
        };
        let beside_its_form = form.as_ref().is_some_and(differs);
        self.add_launch(kernel, counters, form);
        if let Some(entry) = self.ledger.kernels.get_mut(kernel) {
            entry.beside_closed_form += u64::from(beside_its_form);
        }
        let ranges: Vec<(u64, u64)> = self.zeros.0.iter().map(|(start, end)| (*start, *end)).collect();
        for (start, end) in ranges {
            let touched = touches(start..end);
            let mut at = start;
            for run in touched.chunk_by(|a, b| a == b) {
                let range = at..at + run.len() as u64;
                at = range.end;
                if run[0] != 0 {
                    let zeros = self.zeros.take(range);
                    self.ledger.clears.overwritten_bytes += if run[0] & READ_FIRST == 0 { zeros } else { 0 };
                }
            }
        }
    }

    fn write(&mut self, to: u64, bytes: usize) {
        self.ledger.clears.overwritten_bytes += self.zeros.take(to..to + bytes as u64);
    }
}

/// Of `bytes` that work moves, those that arrive while it computes `flop`, at the peak rates of an H200.
pub(super) fn hidden(bytes: f64, flop: f64) -> f64 {
    bytes.min(flop / PeakRates::h200().flop_per_byte())
}

/// The lines of a matrix in memory; one range where nothing lies between them.
fn lines_of(
    start: u64,
    lines: usize,
    length: usize,
    leading: usize,
    element: usize,
) -> impl Iterator<Item = Range<u64>> {
    let [count, elements] = if leading == length { [lines.min(1), lines * length] } else { [lines, length] };
    (0..count).map(move |line| {
        let first = start + (line * leading * element) as u64;
        first..first + (elements * element) as u64
    })
}

/// Memory that a clear set to zero and nothing has touched since: disjoint ranges, by their start.
#[derive(Default)]
pub(super) struct Zeros(BTreeMap<u64, u64>);

impl Zeros {
    fn add(&mut self, range: Range<u64>) {
        self.take(range.clone());
        if !range.is_empty() {
            self.0.insert(range.start, range.end);
        }
    }

    /// Takes a range out; says how many of its bytes were in.
    pub fn take(&mut self, range: Range<u64>) -> u64 {
        let overlapping: Vec<(u64, u64)> = self
            .0
            .range(..range.end)
            .rev()
            .take_while(|(_, end)| **end > range.start)
            .map(|(start, end)| (*start, *end))
            .collect();
        let mut taken = 0;
        for (start, end) in overlapping {
            self.0.remove(&start);
            for rest in [start..range.start.min(end), range.end.max(start)..end] {
                if !rest.is_empty() {
                    self.0.insert(rest.start, rest.end);
                }
            }
            taken += end.min(range.end) - start.max(range.start);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::Operand;

    #[test]
    fn zeros_are_taken_once() {
        let mut zeros = Zeros::default();
        zeros.add(10..20);
        zeros.add(30..40);
        assert_eq!(zeros.take(15..35), 10);
        assert_eq!(zeros.take(0..100), 10);
        assert_eq!(zeros.take(0..100), 0);
        zeros.add(10..20);
        assert_eq!(zeros.take(12..14), 2);
        assert_eq!(zeros.take(0..100), 8);
    }

    /// A clear whose zeros are overwritten, and one that a product is added to, show; one that is read does not.
    #[test]
    fn the_fate_of_zeros_is_told() {
        let operand = |pointer, leading| Operand { pointer, leading, transposed: false };
        let gemm = |c, beta| Gemm {
            m: 4,
            n: 3,
            k: 2,
            a: operand(1000, 2),
            b: operand(2000, 3),
            c,
            c_leading: 5,
            input: DType::Bf16,
            output: DType::F32,
            alpha: 1.0,
            beta,
        };
        let mut count = Count::default();
        count.clear(0, 100);
        count.clear(200, 100);
        count.clear(400, 100);
        count.clear(1000, 16);
        count.product(&gemm(0, 0.0));
        count.product(&gemm(200, 1.0));
        count.copy(400, 600, 100);
        count.copy(600, 400, 100);
        let clears = &count.ledger.clears;
        assert_eq!((clears.all.count, clears.all.bytes), (4, 316));
        assert_eq!((clears.overwritten_bytes, clears.added_to_bytes), (48, 48));
        let products = &count.ledger.products;
        assert_eq!((products.count, products.flop), (2, 96.0));
        assert_eq!(products.bytes, 2 * (16 + 12) + 3 * 48);
        assert!(products.hidden_bytes < 1.0, "{}", products.hidden_bytes);
    }
}
