//! Low-rank adapters: forward, backward, and the dropout mask.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{Backend, DType, Dropout, LoraBackward, LoraForward, LoraSlice, Matrix, Tensor};

use crate::support::{Pair, bound, modes, random};

/// One adapted projection: rank, outputs, first column of y.
type Projection = (usize, usize, usize);

struct Layer {
    tokens: usize,
    input: usize,
    output: usize,
    projections: &'static [Projection],
    /// What stands before and between factors in their buffer: decides their alignment.
    gap: usize,
}

/// Ranks that are no multiple of anything, layers whose rows are and are not aligned, one token, tokens and columns
/// around the edges of tiles, tokens for several rows of tiles in a block, more ranks than a tile has, and more slices
/// than any model.
const LAYERS: [Layer; 12] = [
    Layer { tokens: 37, input: 40, output: 50, projections: &[(8, 24, 0), (3, 9, 30)], gap: 8 },
    Layer { tokens: 130, input: 128, output: 128, projections: &[(16, 64, 0), (16, 32, 64), (16, 32, 96)], gap: 0 },
    Layer { tokens: 1, input: 8, output: 8, projections: &[(1, 8, 0)], gap: 0 },
    Layer { tokens: 65, input: 33, output: 21, projections: &[(5, 21, 0)], gap: 3 },
    Layer { tokens: 33, input: 72, output: 40, projections: &[(5, 17, 1), (3, 8, 24)], gap: 8 },
    Layer { tokens: 20, input: 48, output: 40, projections: &[(256, 40, 0)], gap: 0 },
    Layer { tokens: 70, input: 64, output: 144, projections: &[(70, 72, 0), (70, 72, 72)], gap: 16 },
    Layer { tokens: 300, input: 136, output: 264, projections: &[(64, 200, 8), (8, 56, 208)], gap: 8 },
    Layer { tokens: 90, input: 72, output: 40, projections: &[(3, 24, 0), (5, 16, 24)], gap: 8 },
    Layer { tokens: 40, input: 200, output: 600, projections: &[(11, 600, 0)], gap: 8 },
    Layer { tokens: 1550, input: 136, output: 264, projections: &[(16, 264, 0)], gap: 0 },
    Layer {
        tokens: 18,
        input: 16,
        output: 24,
        projections: &[(2, 4, 0), (2, 4, 4), (2, 4, 8), (2, 4, 12), (2, 4, 16)],
        gap: 2,
    },
];

const DROPOUT: Dropout = Dropout { probability: 0.3, seed: 0x1234_5678_9abc_def0, site: 5, step: 17 };

impl Layer {
    fn ranks(&self) -> usize {
        self.projections.iter().map(|&(rank, ..)| rank).sum()
    }

    fn factor_elements(&self) -> usize {
        self.projections.iter().map(|&(rank, out, _)| 2 * self.gap + rank * (self.input + out)).sum()
    }

    fn slices<'a, B: Backend>(&self, factors: &'a Tensor<B>) -> Vec<LoraSlice<'a, B>> {
        let mut end = 0;
        let mut next = |rows, cols| {
            let offset = end + self.gap;
            end = offset + rows * cols;
            Matrix { buffer: factors.buffer(), offset, rows, cols }
        };
        let slice = |(i, &(rank, out, start)): (usize, &Projection)| {
            let a = next(rank, self.input);
            let b = next(out, rank);
            LoraSlice { a, b, start, scale: 0.5 + i as f32 }
        };
        self.projections.iter().enumerate().map(slice).collect()
    }

    fn name(&self, cuda: &Cuda, dropout: Option<Dropout>) -> String {
        let Self { tokens, input, output, projections, gap } = self;
        let dropout = if dropout.is_some() { "dropout" } else { "no dropout" };
        format!("{tokens} x {input} to {output}, {projections:?}, gap {gap}, {dropout}, {}", cuda.description())
    }
}

/// What a layer reads, and what forward and backward write; sums begin with the same random numbers on both backends.
struct Run {
    s: Pair,
    y: Pair,
    ds: Pair,
    dx: Pair,
    gradients: Pair,
}

fn run(cuda: &Cuda, layer: &Layer, dropout: Option<Dropout>, with_gradients: bool) -> Run {
    let mut random = random((layer.tokens * 1000 + layer.input) as u64);
    let mut pair = |rows: usize, cols: usize, scale: f64| Pair::random(cuda, &mut random, rows, cols, scale);
    let x = pair(layer.tokens, layer.input, 1.0);
    let dy = pair(layer.tokens, layer.output, 1.0);
    let factors = pair(1, layer.factor_elements(), 0.3);
    let mut y = pair(layer.tokens, layer.output, 1.0);
    let mut dx = pair(layer.tokens, layer.input, 1.0);
    let kept_s = pair(layer.tokens, layer.ranks(), 1.0);
    let mut gradients = Pair::random_f32(cuda, &mut random, 1, layer.factor_elements(), 1.0);
    let mut s = Pair::poisoned(cuda, cuda.compute_dtype(), layer.tokens, layer.ranks());
    let mut ds = Pair::poisoned(cuda, cuda.compute_dtype(), layer.tokens, layer.ranks());

    macro_rules! both {
        ($backend:expr, $side:ident) => {{
            let slices = layer.slices(&factors.$side);
            $backend
                .run(LoraForward {
                    x: x.$side.view(),
                    slices: &slices,
                    dropout,
                    s: s.$side.view_mut(),
                    y: y.$side.view_mut(),
                })
                .expect("forward");
            let gradients = with_gradients.then(|| gradients.$side.buffer_mut());
            $backend
                .run(LoraBackward {
                    dy: dy.$side.view(),
                    x: x.$side.view(),
                    s: kept_s.$side.view(),
                    slices: &slices,
                    dropout,
                    gradients,
                    ds: ds.$side.view_mut(),
                    dx: dx.$side.view_mut(),
                })
                .expect("backward");
        }};
    }
    both!(&Cpu, cpu);
    both!(cuda, cuda);
    Run { s, y, ds, dx, gradients }
}

fn check(cuda: &Cuda, layer: &Layer, dropout: Option<Dropout>) {
    let name = layer.name(cuda, dropout);
    let run = run(cuda, layer, dropout, true);
    let outputs = [("s", &run.s), ("y", &run.y), ("ds", &run.ds), ("dx", &run.dx), ("gradients", &run.gradients)];
    for (what, pair) in outputs {
        println!("{what}: {:.1e} ({name})", pair.error(cuda));
        pair.assert_close(cuda, bound(cuda.compute_dtype()), &format!("{what} of {name}"));
    }
}

#[test]
fn adapters_agree_with_the_oracle() {
    for cuda in modes() {
        for layer in &LAYERS {
            for dropout in [None, Some(DROPOUT)] {
                check(&cuda, layer, dropout);
            }
        }
    }
}

#[test]
fn adapters_agree_with_the_oracle_on_our_own_products() {
    for cuda in modes().map(Cuda::with_own_products) {
        for layer in &LAYERS[..5] {
            check(&cuda, layer, Some(DROPOUT));
        }
    }
}

/// With A the identity, s is the masked input: an element is zero on the device exactly where it is on the CPU.
#[test]
fn the_dropout_mask_is_the_cpus_bit_by_bit() {
    for cuda in modes() {
        for input in [15, 48] {
            let x = Pair::new(&cuda, cuda.compute_dtype(), 50, input, &vec![1.0; 50 * input]);
            let identity: Vec<f32> = (0..input * input).map(|i| if i % (input + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let a = Pair::new(&cuda, cuda.compute_dtype(), input, input, &identity);
            let b = Pair::random(&cuda, &mut random(1), 4, input, 1.0);
            let mut s = Pair::poisoned(&cuda, cuda.compute_dtype(), 50, input);
            let mut y = Pair::random(&cuda, &mut random(2), 50, 4, 1.0);
            for probability in [0.0, 0.05, 0.9] {
                let dropout = Some(Dropout { probability, ..DROPOUT });
                let slice = [LoraSlice { a: a.cpu.view(), b: b.cpu.view(), start: 0, scale: 1.0 }];
                Cpu.run(LoraForward {
                    x: x.cpu.view(),
                    slices: &slice,
                    dropout,
                    s: s.cpu.view_mut(),
                    y: y.cpu.view_mut(),
                })
                .expect("forward");
                let slice = [LoraSlice { a: a.cuda.view(), b: b.cuda.view(), start: 0, scale: 1.0 }];
                cuda.run(LoraForward {
                    x: x.cuda.view(),
                    slices: &slice,
                    dropout,
                    s: s.cuda.view_mut(),
                    y: y.cuda.view_mut(),
                })
                .expect("forward");
                let zeros = |values: Vec<f32>| values.iter().map(|&x| x == 0.0).collect::<Vec<_>>();
                let found = s.cuda.to_vec(&cuda).expect("values");
                let expected = s.cpu.to_vec(&Cpu).expect("values");
                assert!(zeros(found) == zeros(expected), "probability {probability}, {input} inputs");
                s.assert_close(&cuda, bound(cuda.compute_dtype()), "kept elements");
            }
        }
    }
}

/// Where only dx is wanted the gradients of the factors are left alone, and dx has the same bits.
#[test]
fn absent_gradients_change_nothing_else() {
    for cuda in modes() {
        for layer in &LAYERS[..2] {
            let with = run(&cuda, layer, Some(DROPOUT), true);
            let without = run(&cuda, layer, Some(DROPOUT), false);
            let values = |pair: &Pair| pair.cuda.to_vec(&cuda).expect("a download");
            assert_eq!(values(&with.dx), values(&without.dx));
            assert_eq!(values(&without.gradients), without.gradients.cpu.to_vec(&Cpu).expect("values"));
        }
    }
}

/// The bits do not depend on the order in which threads run.
#[test]
fn adapters_are_deterministic() {
    for dtype in [DType::Bf16, DType::F32] {
        let bits = |seed| {
            let cuda = Cuda::simulated_as(dtype, (8, 0), seed).expect("a simulated device").with_own_products();
            [1, 10].map(|layer| {
                let run = run(&cuda, &LAYERS[layer], Some(DROPOUT), true);
                [run.s, run.y, run.ds, run.dx, run.gradients].map(|pair| {
                    pair.cuda.to_vec(&cuda).expect("a download").iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                })
            })
        };
        let expected = bits(0);
        for seed in [1, 2] {
            assert!(bits(seed) == expected, "{dtype:?}, schedule {seed}");
        }
    }
}
