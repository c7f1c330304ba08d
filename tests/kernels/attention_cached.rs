//! Attention to a cache: texts that grow by pieces of any size, with scattered slots and shared beginnings, against attention
//! over the whole sequences and against f64.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{
    AttentionCached, AttentionForward, AttentionShape, Backend, CachedSegments, Segment, Segments, Tensor,
};
use temper::random::Random;

use crate::operand::{Operand, assert_schedule_does_not_show};
use crate::support::{bound, modes, normals, random, relative_error};

fn shape(
    (num_attention_heads, num_key_value_heads, head_dim): (usize, usize, usize),
    window: Option<usize>,
) -> AttentionShape {
    AttentionShape { num_attention_heads, num_key_value_heads, head_dim, sliding_window: window }
}

/// Heads as (H, G, D), and the window.
const SHAPES: [((usize, usize, usize), Option<usize>); 6] = [
    ((4, 2, 16), None),
    ((2, 1, 128), None),
    ((3, 3, 24), Some(9)),
    ((2, 1, 7), Some(40)),
    ((4, 1, 64), Some(2)),
    ((1, 1, 256), None),
];

/// qkv rows of whole sequences, and the slots of their tokens.
struct Texts {
    shape: AttentionShape,
    /// Rows of each sequence.
    qkv: Vec<Vec<f32>>,
    slots: Vec<Vec<u32>>,
    capacity: usize,
}

impl Texts {
    /// Sequences of `lengths` tokens with slots in random order, some of the cache's slots unused. The first `shared` tokens
    /// of all are those of the first sequence, in its slots.
    fn new(random: &mut Random, shape: AttentionShape, lengths: &[usize], shared: usize) -> Self {
        let capacity = lengths.iter().sum::<usize>() + 5;
        let mut free: Vec<u32> = (0..capacity as u32).collect();
        random.shuffle(&mut free);
        let mut texts = Self { shape, qkv: Vec::new(), slots: Vec::new(), capacity };
        for (index, &length) in lengths.iter().enumerate() {
            let mut rows = normals(random, length * shape.qkv_cols(), 1.0);
            let mut slots: Vec<u32> = free.split_off(free.len() - length);
            if index > 0 {
                rows[..shared * shape.qkv_cols()].copy_from_slice(&texts.qkv[0][..shared * shape.qkv_cols()]);
                slots[..shared].copy_from_slice(&texts.slots[0][..shared]);
            }
            texts.qkv.push(rows);
            texts.slots.push(slots);
        }
        texts
    }

    /// The same numbers as the device stores them.
    fn stored(mut self, cuda: &Cuda) -> Self {
        for rows in &mut self.qkv {
            let mut tensor = Tensor::zeros(cuda, "qkv", 1, rows.len(), cuda.compute_dtype()).expect("memory");
            cuda.upload_f32(tensor.buffer_mut(), 0, rows).expect("an upload");
            *rows = tensor.to_vec(cuda).expect("a download");
        }
        self
    }

    /// Attention over each whole sequence by the uncached operation.
    fn whole(&self) -> Vec<Vec<f32>> {
        let cols = self.shape.qkv_cols();
        let one = |rows: &Vec<f32>| {
            let length = rows.len() / cols;
            let segments = Segments::new(&Cpu, vec![Segment { start: 0, length, valid: length }]).expect("segments");
            let qkv = Tensor::from_f32(&Cpu, "qkv", length, cols, rows).expect("memory");
            let zeros =
                |cols| Tensor::from_f32(&Cpu, "zeros", length, cols, &vec![0.0; length * cols]).expect("memory");
            let mut out = zeros(self.shape.query_cols());
            let mut sums = zeros(self.shape.num_attention_heads);
            Cpu.run(AttentionForward {
                qkv: qkv.view(),
                segments: &segments,
                shape: self.shape,
                out: out.view_mut(),
                log_sum_exp: sums.view_mut(),
            })
            .expect("attention");
            out.to_vec(&Cpu).expect("values")
        };
        self.qkv.iter().map(one).collect()
    }

    /// The same by the formula in f64.
    fn in_f64(&self) -> Vec<Vec<f32>> {
        let cols = self.shape.qkv_cols();
        let d = self.shape.head_dim;
        let share = self.shape.num_attention_heads / self.shape.num_key_value_heads;
        let head = |rows: &[f32], query: usize, head: usize| -> Vec<f32> {
            let part = |row: usize, column: usize| rows[row * cols + column..][..d].iter().map(|&x| f64::from(x));
            let key = self.shape.query_cols() + head / share * d;
            let first = self.shape.sliding_window.map_or(0, |window| (query + 1).saturating_sub(window));
            let score =
                |row| part(query, head * d).zip(part(row, key)).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt();
            let weights: Vec<f64> = (first..=query).map(|row| score(row).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut out = vec![0.0; d];
            for (row, weight) in (first..=query).zip(weights) {
                let value = part(row, key + self.shape.key_value_cols());
                out.iter_mut().zip(value).for_each(|(out, v)| *out += weight / total * v);
            }
            out.into_iter().map(|x| x as f32).collect()
        };
        let whole = |rows: &Vec<f32>| {
            let heads = 0..self.shape.num_attention_heads;
            (0..rows.len() / cols).flat_map(|row| heads.clone().flat_map(move |h| head(rows, row, h))).collect()
        };
        self.qkv.iter().map(whole).collect()
    }
}

/// Feeds the sequences in pieces of random sizes, several sequences a call, and returns each sequence's outputs. Tokens that
/// an earlier sequence has stored (a shared beginning) are not computed again: their rows stay empty.
fn in_pieces<B: Backend>(backend: &B, texts: &Texts, random: &mut Random, shared: usize) -> Vec<Vec<f32>> {
    let shape = texts.shape;
    let dtype = backend.compute_dtype();
    let width = 2 * shape.key_value_cols();
    let mut cache = Tensor::zeros(backend, "cache", texts.capacity, width, dtype).expect("memory");
    // NaN in every slot that nobody has written: a read of one shows.
    backend.upload_f32(cache.buffer_mut(), 0, &vec![f32::NAN; texts.capacity * width]).expect("an upload");
    let mut done: Vec<usize> = (0..texts.qkv.len()).map(|index| if index == 0 { 0 } else { shared }).collect();
    let mut outputs: Vec<Vec<f32>> = done.iter().map(|&skipped| vec![f32::NAN; skipped * shape.query_cols()]).collect();
    let length = |index: usize| texts.slots[index].len();
    while (0..done.len()).any(|index| done[index] < length(index)) {
        let ready = |index: usize| index == 0 || done[0] >= shared;
        let pieces: Vec<(usize, usize)> = (0..done.len())
            .filter(|&index| ready(index))
            .map(|index| (index, random.below(40).min(length(index) - done[index])))
            .filter(|&(_, count)| count > 0)
            .collect();
        let cols = shape.qkv_cols();
        let rows: Vec<f32> = pieces
            .iter()
            .flat_map(|&(index, count)| texts.qkv[index][done[index] * cols..(done[index] + count) * cols].to_vec())
            .collect();
        let table: Vec<(usize, &[u32])> =
            pieces.iter().map(|&(index, count)| (count, &texts.slots[index][..done[index] + count])).collect();
        let segments = CachedSegments::new(backend, shape, &table).expect("segments");
        let tokens = segments.tokens();
        let mut qkv = Tensor::zeros(backend, "qkv", tokens, cols, dtype).expect("memory");
        backend.upload_f32(qkv.buffer_mut(), 0, &rows).expect("an upload");
        let mut out = Tensor::zeros(backend, "out", tokens, shape.query_cols(), dtype).expect("memory");
        backend.upload_f32(out.buffer_mut(), 0, &vec![f32::NAN; tokens * shape.query_cols()]).expect("an upload");
        backend
            .run(AttentionCached { qkv: qkv.view(), segments: &segments, cache: cache.view_mut(), out: out.view_mut() })
            .expect("attention");
        let values = out.to_vec(backend).expect("values");
        let mut row = 0;
        for (index, count) in pieces {
            outputs[index].extend(&values[row * shape.query_cols()..(row + count) * shape.query_cols()]);
            done[index] += count;
            row += count;
        }
    }
    outputs
}

/// Every sequence's rows that were computed, against the whole sequence's.
fn check(found: &[Vec<f32>], expected: &[Vec<f32>], skipped: usize, bound: f64, what: &str) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let start = if index == 0 { 0 } else { skipped };
        let error = relative_error(&found[start..], &expected[start..]);
        assert!(error <= bound, "{what}, sequence {index}: relative error {error:.2e}, bound {bound:.0e}");
    }
}

const LENGTHS: [usize; 4] = [70, 1, 33, 150];

/// The oracle itself: pieces on the CPU against the uncached operation and against f64.
#[test]
fn the_cpu_gives_the_rows_of_whole_sequences() {
    for (case, (heads, window)) in SHAPES.into_iter().enumerate() {
        let mut random = random(case as u64);
        let texts = Texts::new(&mut random, shape(heads, window), &LENGTHS, 0);
        let found = in_pieces(&Cpu, &texts, &mut random, 0);
        check(&found, &texts.whole(), 0, 2e-6, &format!("{heads:?} against attention_forward"));
        check(&found, &texts.in_f64(), 0, 2e-6, &format!("{heads:?} against f64"));
    }
}

/// Pieces on a simulated device, of both dtypes.
#[test]
fn the_kernels_give_the_rows_of_whole_sequences() {
    for cuda in modes() {
        for (case, (heads, window)) in SHAPES.into_iter().enumerate() {
            let mut random = random(100 + case as u64);
            let texts = Texts::new(&mut random, shape(heads, window), &LENGTHS, 0).stored(&cuda);
            let found = in_pieces(&cuda, &texts, &mut random, 0);
            let dtype = cuda.compute_dtype();
            check(&found, &texts.in_f64(), 0, bound(dtype), &format!("{heads:?} {window:?} {dtype:?}"));
        }
    }
}

/// Three sequences read the beginning that the first one has stored; a window reaches into it and past it.
#[test]
fn a_shared_beginning_is_stored_once() {
    for (case, window) in [None, Some(30)].into_iter().enumerate() {
        let mut random = random(200 + case as u64);
        let texts = Texts::new(&mut random, shape((4, 2, 16), window), &[60, 45, 90], 40);
        let skipped = 40 * texts.shape.query_cols();
        check(&in_pieces(&Cpu, &texts, &mut random, 40), &texts.whole(), skipped, 2e-6, "cpu");
        for cuda in modes() {
            let texts = Texts { qkv: texts.qkv.clone(), slots: texts.slots.clone(), ..texts }.stored(&cuda);
            let found = in_pieces(&cuda, &texts, &mut random, 40);
            check(&found, &texts.in_f64(), skipped, bound(cuda.compute_dtype()), "simulated");
        }
    }
}

/// Rows that do not begin at 16-byte addresses: the store goes by single elements, and nothing around a matrix is touched.
#[test]
fn operands_at_odd_addresses_agree_with_the_cpu() {
    for cuda in modes() {
        for offset in [0, 1, 8] {
            let shape = shape((2, 1, 16), None);
            let dtype = cuda.compute_dtype();
            let mut random = random(7);
            let table: [(usize, &[u32]); 2] = [(2, &[4, 0, 6, 2]), (3, &[1, 5, 3])];
            let cpu_segments = CachedSegments::new(&Cpu, shape, &table).expect("segments");
            let segments = CachedSegments::new(&cuda, shape, &table);
            let qkv = Operand::random(&cuda, &mut random, dtype, (5, shape.qkv_cols()), offset, 1.0);
            let mut cache = Operand::random(&cuda, &mut random, dtype, (7, 32), offset, 1.0);
            let mut out = Operand::poisoned(&cuda, dtype, (5, shape.query_cols()), offset);
            Cpu.run(AttentionCached {
                qkv: qkv.cpu(),
                segments: &cpu_segments,
                cache: cache.cpu_mut(),
                out: out.cpu_mut(),
            })
            .expect("the oracle");
            cuda.run(AttentionCached {
                qkv: qkv.cuda(),
                segments: &segments.expect("segments"),
                cache: cache.cuda_mut(),
                out: out.cuda_mut(),
            })
            .expect("attention");
            cache.assert_same(&cuda, "cache");
            out.assert_close(&cuda, bound(dtype), "out");
        }
    }
}

/// Tables that would write one slot twice, or one that is not there, are refused.
#[test]
fn tables_that_do_not_fit_are_refused() {
    let shape = shape((2, 1, 4), None);
    let refused =
        |table: &[(usize, &[u32])]| CachedSegments::new(&Cpu, shape, table).err().expect("an error").to_string();
    assert!(refused(&[(2, &[3, 3])]).contains("slot 3"));
    assert!(refused(&[(1, &[0]), (1, &[1, 0])]).contains("slot 0"));
    assert!(refused(&[(2, &[0])]).contains("2 new rows"));
    let zeros = |rows, cols| Tensor::from_f32(&Cpu, "zeros", rows, cols, &vec![0.0; rows * cols]).expect("memory");
    let segments = CachedSegments::new(&Cpu, shape, &[(1, &[5])]).expect("segments");
    let qkv = zeros(1, 16);
    let mut cache = zeros(5, 8);
    let mut out = zeros(1, 8);
    let result =
        Cpu.run(AttentionCached { qkv: qkv.view(), segments: &segments, cache: cache.view_mut(), out: out.view_mut() });
    assert!(result.is_err_and(|error| error.to_string().contains("slot 5")));
}

/// The bits do not depend on the order in which threads and blocks run.
#[test]
fn every_schedule_gives_the_same_bits() {
    for dtype in modes().map(|cuda| cuda.compute_dtype()) {
        assert_schedule_does_not_show(dtype, |cuda| {
            let mut random = random(9);
            let texts = Texts::new(&mut random, shape((2, 1, 24), Some(100)), &[150, 20], 0);
            in_pieces(cuda, &texts, &mut random, 0).concat()
        });
    }
}
