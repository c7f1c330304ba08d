//! The matrix product in its three layouts, by our own kernels and by the device's library.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{
    Backend, DType, LinearBackwardInput, LinearBackwardWeight, LinearForward, Matrix, MatrixMut, Tensor,
};
use temper::random::Random;

use crate::support::{Pair, bound, modes, normals, random, relative_error};

/// What surrounds a matrix in its buffer; no kernel may change it.
const MARGIN: f32 = 7.0;

/// A matrix that begins at element `offset` of a buffer and does not end with it.
struct Placed {
    pair: Pair,
    offset: usize,
    rows: usize,
    cols: usize,
}

impl Placed {
    fn new(cuda: &Cuda, dtype: DType, offset: usize, (rows, cols): (usize, usize), values: &[f32]) -> Self {
        let mut all = vec![MARGIN; offset];
        all.extend_from_slice(values);
        all.extend([MARGIN; 5]);
        Self { pair: Pair::new(cuda, dtype, 1, all.len(), &all), offset, rows, cols }
    }

    fn random(cuda: &Cuda, random: &mut Random, offset: usize, shape: (usize, usize)) -> Self {
        let values = normals(random, shape.0 * shape.1, 1.0);
        Self::new(cuda, cuda.compute_dtype(), offset, shape, &values)
    }

    fn cpu(&self) -> Matrix<'_, Cpu> {
        Matrix { buffer: self.pair.cpu.buffer(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    fn cuda(&self) -> Matrix<'_, Cuda> {
        Matrix { buffer: self.pair.cuda.buffer(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    fn cpu_mut(&mut self) -> MatrixMut<'_, Cpu> {
        MatrixMut { buffer: self.pair.cpu.buffer_mut(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    fn cuda_mut(&mut self) -> MatrixMut<'_, Cuda> {
        MatrixMut { buffer: self.pair.cuda.buffer_mut(), offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// Fails unless the matrix is close to the oracle's and what surrounds it is as it was.
    fn assert_close(&self, cuda: &Cuda, bound: f64, what: &str) {
        let found = self.pair.cuda.to_vec(cuda).expect("a download");
        let expected = self.pair.cpu.to_vec(&Cpu).expect("values");
        let end = self.offset + self.rows * self.cols;
        assert!(found[..self.offset].iter().chain(&found[end..]).all(|&x| x == MARGIN), "{what}: wrote beside it");
        let error = relative_error(&found[self.offset..end], &expected[self.offset..end]);
        println!("{what}: {error:.1e}");
        assert!(error <= bound, "{what}: relative error {error:.2e}, bound {bound:.0e}");
    }
}

/// All four products of a layer with `tokens` tokens, `input` inputs and `output` outputs against the oracle; every
/// matrix begins `offset` elements behind the start of its buffer.
fn check(cuda: &Cuda, (tokens, output, input): (usize, usize, usize), offset: usize) {
    let dtype = cuda.compute_dtype();
    let what = |name: &str| format!("{name} of {tokens} x {output} x {input} at {offset} in {dtype:?}");
    let mut random = random((tokens * 1_000_000 + output * 1000 + input) as u64);
    let x = Placed::random(cuda, &mut random, offset, (tokens, input));
    let w = Placed::random(cuda, &mut random, offset, (output, input));
    let dy = Placed::random(cuda, &mut random, offset, (tokens, output));

    let mut y = Placed::new(cuda, dtype, offset, (tokens, output), &vec![f32::NAN; tokens * output]);
    Cpu.run(LinearForward { x: x.cpu(), w: w.cpu(), y: y.cpu_mut() }).expect("the oracle");
    cuda.run(LinearForward { x: x.cuda(), w: w.cuda(), y: y.cuda_mut() }).expect("a launch");
    y.assert_close(cuda, bound(dtype), &what("forward"));

    for accumulate in [false, true] {
        let start = if accumulate { normals(&mut random, tokens * input, 3.0) } else { vec![f32::NAN; tokens * input] };
        let mut dx = Placed::new(cuda, dtype, offset, (tokens, input), &start);
        Cpu.run(LinearBackwardInput { dy: dy.cpu(), w: w.cpu(), dx: dx.cpu_mut(), accumulate }).expect("the oracle");
        cuda.run(LinearBackwardInput { dy: dy.cuda(), w: w.cuda(), dx: dx.cuda_mut(), accumulate }).expect("a launch");
        dx.assert_close(cuda, bound(dtype), &what(if accumulate { "dx +=" } else { "dx =" }));
    }

    // Sums of exact products of bf16 into f32: as close as f32 in both modes.
    let start = normals(&mut random, output * input, 3.0);
    let mut dw = Placed::new(cuda, DType::F32, offset, (output, input), &start);
    Cpu.run(LinearBackwardWeight { dy: dy.cpu(), x: x.cpu(), dw: dw.cpu_mut() }).expect("the oracle");
    cuda.run(LinearBackwardWeight { dy: dy.cuda(), x: x.cuda(), dw: dw.cuda_mut() }).expect("a launch");
    dw.assert_close(cuda, bound(DType::F32), &what("dw +="));
}

/// One element, one row, one column, one summand, sizes at and around the edges of tiles of 128 and steps of 32 and 8.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (1, 40, 24),
    (33, 1, 17),
    (19, 23, 1),
    (3, 5, 7),
    (16, 136, 264),
    (127, 129, 33),
    (128, 128, 32),
    (130, 65, 100),
    (65, 256, 96),
];

#[test]
fn our_own_products_agree_with_the_oracle_at_any_shape() {
    for cuda in modes().map(Cuda::with_own_products) {
        SHAPES.iter().for_each(|&shape| check(&cuda, shape, 0));
    }
}

/// Rows that begin anywhere: the kernel's other way of loading, and for one dtype only one of the operands.
#[test]
fn our_own_products_take_matrices_that_begin_anywhere() {
    for cuda in modes().map(Cuda::with_own_products) {
        for offset in [1, 2, 4, 8] {
            check(&cuda, (37, 48, 40), offset);
        }
    }
}

#[test]
fn products_of_the_library_agree_with_the_oracle() {
    for cuda in modes() {
        check(&cuda, (3, 5, 7), 0);
        check(&cuda, (130, 65, 100), 1);
    }
}

/// The bits of a product do not depend on the order in which threads run.
#[test]
fn our_own_products_are_deterministic() {
    for dtype in [DType::Bf16, DType::F32] {
        let run = |seed| {
            let cuda = Cuda::simulated_as(dtype, (8, 0), seed).expect("a simulated device").with_own_products();
            let mut random = random(5);
            let dy = Pair::random(&cuda, &mut random, 150, 36, 1.0);
            let x = Pair::random(&cuda, &mut random, 150, 129, 1.0);
            let mut dw = Pair::random_f32(&cuda, &mut random, 36, 129, 1.0);
            cuda.run(LinearBackwardWeight { dy: dy.cuda.view(), x: x.cuda.view(), dw: dw.cuda.view_mut() })
                .expect("a launch");
            dw.cuda.to_vec(&cuda).expect("a download").iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let expected = run(0);
        for seed in [1, 2, 3] {
            assert_eq!(run(seed), expected, "{dtype:?}, schedule {seed}");
        }
    }
}

/// A product whose dtypes have no kernel is refused, never computed in another one.
#[test]
fn factors_of_two_dtypes_are_refused() {
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device").with_own_products();
    let tensor = |dtype| Tensor::<Cuda>::zeros(&cuda, "operand", 4, 4, dtype).expect("memory");
    for (x, w, y) in [
        (DType::Bf16, DType::F32, DType::Bf16),
        (DType::F32, DType::Bf16, DType::F32),
        (DType::F32, DType::F32, DType::Bf16),
    ] {
        let mut out = tensor(y);
        let result = cuda.run(LinearForward { x: tensor(x).view(), w: tensor(w).view(), y: out.view_mut() });
        assert!(result.is_err(), "{x:?} times {w:?} into {y:?}");
    }
}
