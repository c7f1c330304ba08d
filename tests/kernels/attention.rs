//! Attention: forward and backward against the CPU backend, on packed sequences of awkward lengths.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{AttentionBackward, AttentionForward, AttentionShape, Backend, DType, Matrix, Segment, Segments};

use crate::support::{Pair, bound, modes, normals, random, relative_error};

/// One batch.
struct Case {
    /// (length, valid) of each sequence.
    lengths: &'static [(usize, usize)],
    /// H, G, D.
    heads: (usize, usize, usize),
    window: Option<usize>,
    /// Standard deviation of the queries; the scores have the same.
    scale: f64,
}

const fn case(lengths: &'static [(usize, usize)], heads: (usize, usize, usize)) -> Case {
    Case { lengths, heads, window: None, scale: 1.0 }
}

impl Case {
    fn shape(&self) -> AttentionShape {
        let (num_attention_heads, num_key_value_heads, head_dim) = self.heads;
        AttentionShape { num_attention_heads, num_key_value_heads, head_dim, sliding_window: self.window }
    }

    fn segments(&self) -> Vec<Segment> {
        let mut start = 0;
        let place = |&(length, valid): &(usize, usize)| {
            start += length;
            Segment { start: start - length, length, valid }
        };
        self.lengths.iter().map(place).collect()
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().map(|(length, _)| length).sum()
    }

    /// qkv with queries of the case's scale and keys and values of scale 1.
    fn qkv(&self, seed: u64) -> Vec<f32> {
        let shape = self.shape();
        let mut random = random(seed);
        let mut values = normals(&mut random, self.tokens() * shape.qkv_cols(), 1.0);
        for row in values.chunks_mut(shape.qkv_cols()) {
            row[..shape.query_cols()].iter_mut().for_each(|q| *q *= self.scale as f32);
        }
        values
    }

    fn describe(&self, cuda: &Cuda) -> String {
        format!(
            "{:?}, H G D {:?}, window {:?}, scale {}, {:?} on {}",
            self.lengths,
            self.heads,
            self.window,
            self.scale,
            cuda.compute_dtype(),
            cuda.driver().device().name
        )
    }
}

/// What one forward and one backward pass give, on both backends.
struct Results {
    out: Pair,
    log_sum_exp: Pair,
    d_qkv: Pair,
}

/// Both passes. The backward pass of both backends reads the output of the CPU's forward pass, rounded to what the device
/// stores, so that each pass is judged alone.
fn run(cuda: &Cuda, case: &Case, qkv: &[f32]) -> Results {
    let shape = case.shape();
    let tokens = case.tokens();
    let dtype = cuda.compute_dtype();
    let cpu_segments = Segments::new(&Cpu, case.segments()).expect("segments");
    let segments = Segments::new(cuda, case.segments()).expect("segments");
    let qkv = Pair::new(cuda, dtype, tokens, shape.qkv_cols(), qkv);
    let mut out = Pair::poisoned(cuda, dtype, tokens, shape.query_cols());
    let mut log_sum_exp = Pair::poisoned(cuda, DType::F32, tokens, shape.num_attention_heads);
    Cpu.run(AttentionForward {
        qkv: qkv.cpu.view(),
        segments: &cpu_segments,
        shape,
        out: out.cpu.view_mut(),
        log_sum_exp: log_sum_exp.cpu.view_mut(),
    })
    .expect("the oracle");
    cuda.run(AttentionForward {
        qkv: qkv.cuda.view(),
        segments: &segments,
        shape,
        out: out.cuda.view_mut(),
        log_sum_exp: log_sum_exp.cuda.view_mut(),
    })
    .expect("forward");

    let values = |pair: &Pair| pair.cpu.to_vec(&Cpu).expect("values");
    let saved_out = Pair::new(cuda, dtype, tokens, shape.query_cols(), &values(&out));
    let saved = Pair::new(cuda, DType::F32, tokens, shape.num_attention_heads, &values(&log_sum_exp));
    // NaN where the output is NaN, so that a bad sequence is bad in everything that the backward pass reads.
    let mut d_out = normals(&mut random(99), tokens * shape.query_cols(), 1.0);
    for (d_out, out) in d_out.iter_mut().zip(values(&out)).filter(|(_, out)| out.is_nan()) {
        *d_out = out;
    }
    let d_out = Pair::new(cuda, dtype, tokens, shape.query_cols(), &d_out);
    let mut d_qkv = Pair::poisoned(cuda, dtype, tokens, shape.qkv_cols());
    Cpu.run(AttentionBackward {
        d_out: d_out.cpu.view(),
        qkv: qkv.cpu.view(),
        out: saved_out.cpu.view(),
        log_sum_exp: saved.cpu.view(),
        segments: &cpu_segments,
        shape,
        d_qkv: d_qkv.cpu.view_mut(),
    })
    .expect("the oracle");
    cuda.run(AttentionBackward {
        d_out: d_out.cuda.view(),
        qkv: qkv.cuda.view(),
        out: saved_out.cuda.view(),
        log_sum_exp: saved.cuda.view(),
        segments: &segments,
        shape,
        d_qkv: d_qkv.cuda.view_mut(),
    })
    .expect("backward");
    Results { out, log_sum_exp, d_qkv }
}

/// Both backends' values of some columns of a matrix.
fn columns(cuda: &Cuda, pair: &Pair, cols: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
    let cut = |values: Vec<f32>| values.chunks(pair.cpu.cols()).flat_map(|row| row[cols.clone()].to_vec()).collect();
    (cut(pair.cuda.to_vec(cuda).expect("a download")), cut(pair.cpu.to_vec(&Cpu).expect("values")))
}

/// Replaces the −∞ of rows without a visible key, which both backends must agree on, by 0.
fn without_empty_rows((mut found, mut expected): (Vec<f32>, Vec<f32>), what: &str) -> (Vec<f32>, Vec<f32>) {
    for (found, expected) in found.iter_mut().zip(&mut expected) {
        assert_eq!(*found == f32::NEG_INFINITY, *expected == f32::NEG_INFINITY, "log_sum_exp −∞, {what}");
        if *expected == f32::NEG_INFINITY {
            (*found, *expected) = (0.0, 0.0);
        }
    }
    (found, expected)
}

/// Fails unless every result of both passes is within the bound of the mode.
fn check(cuda: &Cuda, case: &Case, qkv: &[f32]) {
    let shape = case.shape();
    let what = case.describe(cuda);
    let results = run(cuda, case, qkv);
    let q = shape.query_cols();
    let k = shape.query_cols() + shape.key_value_cols();
    let parts = [
        ("out", columns(cuda, &results.out, 0..q)),
        ("log_sum_exp", without_empty_rows(columns(cuda, &results.log_sum_exp, 0..shape.num_attention_heads), &what)),
        ("d_q", columns(cuda, &results.d_qkv, 0..q)),
        ("d_k", columns(cuda, &results.d_qkv, q..k)),
        ("d_v", columns(cuda, &results.d_qkv, k..shape.qkv_cols())),
    ];
    for (name, (found, expected)) in parts {
        let error = relative_error(&found, &expected);
        // log_sum_exp is f32 in both modes; ex2.approx keeps it well below the bound of bf16 operands.
        let bound = if name == "log_sum_exp" { 1e-5 } else { bound(cuda.compute_dtype()) };
        if std::env::var_os("TEMPER_PRINT_ERRORS").is_some() {
            println!("{error:.1e} {name} {what}");
        }
        assert!(error <= bound, "{name}: relative error {error:.2e}, bound {bound:.0e}, {what}");
    }
}

/// The devices of all kernels: both modes, and the bf16 kernels of Hopper.
fn devices() -> Vec<Cuda> {
    let hopper = Cuda::simulated_as(DType::Bf16, (9, 0), 0).expect("a simulated device");
    modes().into_iter().chain([hopper]).collect()
}

fn check_all(cases: &[Case]) {
    for cuda in devices() {
        for (seed, case) in cases.iter().enumerate() {
            check(&cuda, case, &case.qkv(seed as u64));
        }
    }
}

/// Head size 128: lengths around the edges of tiles, a single token, padding, nothing but padding, an empty sequence;
/// grouped, single and equal key/value heads.
#[test]
fn head_size_128_agrees_with_the_cpu() {
    check_all(&[
        case(&[(1, 1), (65, 63), (129, 129), (0, 0), (64, 0)], (4, 2, 128)),
        case(&[(127, 127), (130, 31)], (2, 1, 128)),
        case(&[(390, 389)], (2, 1, 128)),
        Case { window: Some(33), ..case(&[(200, 200), (63, 64 - 1)], (1, 1, 128)) },
    ]);
}

/// Head size 64, likewise.
#[test]
fn head_size_64_agrees_with_the_cpu() {
    check_all(&[
        case(&[(64, 64), (129, 128), (63, 1), (1, 0)], (4, 4, 64)),
        case(&[(300, 270)], (4, 1, 64)),
        Case { window: Some(50), ..case(&[(260, 129), (65, 65)], (2, 1, 64)) },
        Case { window: Some(2), ..case(&[(70, 66)], (2, 2, 64)) },
    ]);
}

/// Head sizes of the general kernels, from smaller than a warp to the largest.
#[test]
fn other_head_sizes_agree_with_the_cpu() {
    check_all(&[
        case(&[(1, 1), (65, 63), (33, 0), (31, 31)], (4, 2, 16)),
        Case { window: Some(20), ..case(&[(63, 63), (64, 50)], (3, 3, 24)) },
        case(&[(40, 40)], (2, 1, 80)),
        case(&[(17, 16)], (2, 2, 7)),
        case(&[(35, 33)], (1, 1, 256)),
    ]);
}

/// Scores of standard deviation 30: every probability is almost 0 or almost 1, and exp of a score itself would overflow.
#[test]
fn saturated_probabilities_agree_with_the_cpu() {
    let large = |heads| Case { scale: 30.0, ..case(&[(129, 129), (65, 60)], heads) };
    check_all(&[large((2, 1, 128)), large((2, 2, 64)), large((2, 1, 16))]);
}

/// Keys and values of padding are NaN: nothing of them may reach a result, since no query sees them.
#[test]
fn padding_is_not_read_as_keys() {
    for cuda in devices() {
        for heads in [(2, 1, 128), (2, 2, 64), (2, 1, 16)] {
            let case = case(&[(70, 65), (130, 0), (67, 30)], heads);
            let shape = case.shape();
            let mut qkv = case.qkv(5);
            for segment in case.segments() {
                for row in segment.start + segment.valid..segment.start + segment.length {
                    qkv[row * shape.qkv_cols() + shape.query_cols()..(row + 1) * shape.qkv_cols()].fill(f32::NAN);
                }
            }
            check(&cuda, &case, &qkv);
        }
    }
}

/// A sequence of NaN between two others: tiles that reach over the end of a sequence must not carry anything of the next
/// one into its results, nor anything of the one before.
#[test]
fn sequences_do_not_mix() {
    for cuda in devices() {
        for heads in [(2, 1, 128), (2, 2, 64), (2, 1, 16)] {
            let case = case(&[(70, 65), (130, 130), (67, 30)], heads);
            let cols = case.shape().qkv_cols();
            let mut qkv = case.qkv(6);
            qkv[70 * cols..200 * cols].fill(f32::NAN);
            let results = run(&cuda, &case, &qkv);
            for (name, pair) in [("out", &results.out), ("d_qkv", &results.d_qkv)] {
                let (mut found, mut expected) = columns(&cuda, pair, 0..pair.cpu.cols());
                for values in [&mut found, &mut expected] {
                    values.drain(70 * pair.cpu.cols()..200 * pair.cpu.cols());
                }
                let error = relative_error(&found, &expected);
                assert!(error <= bound(cuda.compute_dtype()), "{name}: {error:.2e}, {}", case.describe(&cuda));
            }
        }
    }
}

/// Rows that do not begin at 16-byte addresses: no vectors there, so the general kernels take over.
#[test]
fn operands_at_odd_addresses_agree_with_the_cpu() {
    for cuda in devices() {
        let case = case(&[(37, 30)], (2, 1, 64));
        let dtype = cuda.compute_dtype();
        let shape = case.shape();
        let tokens = case.tokens();
        let qkv = case.qkv(7);
        let expected = run(&cuda, &case, &qkv).out.cpu.to_vec(&Cpu).expect("values");
        let shifted = Pair::new(&cuda, dtype, 1, qkv.len() + 1, &[&[0.0], &qkv[..]].concat());
        let segments = Segments::new(&cuda, case.segments()).expect("segments");
        let mut out = Pair::poisoned(&cuda, dtype, tokens, shape.query_cols());
        let mut sums = Pair::poisoned(&cuda, DType::F32, tokens, shape.num_attention_heads);
        let qkv = Matrix { buffer: shifted.cuda.buffer(), offset: 1, rows: tokens, cols: shape.qkv_cols() };
        cuda.run(AttentionForward {
            qkv,
            segments: &segments,
            shape,
            out: out.cuda.view_mut(),
            log_sum_exp: sums.cuda.view_mut(),
        })
        .expect("forward");
        let error = relative_error(&out.cuda.to_vec(&cuda).expect("a download"), &expected);
        assert!(error <= bound(dtype), "{error:.2e}");
    }
}

/// A head size that is refused is an error, not a wrong result.
#[test]
fn too_large_heads_are_refused() {
    for cuda in modes() {
        let case = case(&[(2, 2)], (1, 1, 257));
        let segments = Segments::new(&cuda, case.segments()).expect("segments");
        let qkv = Pair::random(&cuda, &mut random(0), 2, 3 * 257, 1.0);
        let mut out = Pair::poisoned(&cuda, cuda.compute_dtype(), 2, 257);
        let mut sums = Pair::poisoned(&cuda, DType::F32, 2, 1);
        let result = cuda.run(AttentionForward {
            qkv: qkv.cuda.view(),
            segments: &segments,
            shape: case.shape(),
            out: out.cuda.view_mut(),
            log_sum_exp: sums.cuda.view_mut(),
        });
        assert!(result.is_err_and(|error| error.to_string().contains("257")));
    }
}

/// The bits do not depend on the order in which threads and blocks run.
#[test]
fn every_schedule_gives_the_same_bits() {
    let cases = [case(&[(129, 129), (70, 50)], (2, 1, 128)), case(&[(40, 33)], (2, 1, 16))];
    for (case, capability) in cases.iter().flat_map(|case| [(case, (8, 0)), (case, (9, 0))]) {
        let bits = |seed| {
            let cuda = Cuda::simulated_as(DType::Bf16, capability, seed).expect("a simulated device");
            let results = run(&cuda, case, &case.qkv(3));
            [results.out, results.log_sum_exp, results.d_qkv].map(|pair| {
                pair.cuda.to_vec(&cuda).expect("a download").into_iter().map(f32::to_bits).collect::<Vec<_>>()
            })
        };
        let expected = bits(0);
        for seed in [1, 2, 3] {
            assert!(bits(seed) == expected, "schedule {seed}");
        }
    }
}
