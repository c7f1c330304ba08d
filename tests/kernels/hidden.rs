//! Losses on hidden states, and preferences.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, Backend, DType, DistanceKind, Matrix, MatrixMut, Segment, Segments};
use temper::random::Random;

use crate::operand::{OFFSETS, Operand, SHAPES, assert_schedule_does_not_show, bits, integers};
use crate::support::{bound, modes, normals, random};

const F32: DType = DType::F32;

/// What hidden states are compared with: a state for each token, or one for all.
fn targets(cuda: &Cuda, random: &mut Random, shape: (usize, usize), one: bool, offset: usize) -> Operand {
    let rows = if one { 1 } else { shape.0 };
    Operand::random(cuda, random, cuda.compute_dtype(), (rows, shape.1), offset, 1.0)
}

/// Distances and their squares (f32 sums of stored operands) to a state for each token or to one for all, and their gradients,
/// which are added; values alone are the same values.
#[test]
fn representation_distance() {
    for cuda in modes() {
        for (case, shape) in SHAPES.into_iter().enumerate() {
            for (offset, kind, one) in [
                (0, DistanceKind::Euclidean, false),
                (0, DistanceKind::Squared, true),
                (8, DistanceKind::Euclidean, true),
                (4, DistanceKind::Squared, false),
                (4, DistanceKind::Euclidean, false),
                (1, DistanceKind::Squared, true),
                (1, DistanceKind::Euclidean, false),
            ] {
                check_distance(&cuda, case, shape, offset, kind, one);
            }
        }
    }
}

fn check_distance(cuda: &Cuda, case: usize, shape: (usize, usize), offset: usize, kind: DistanceKind, one: bool) {
    let dtype = cuda.compute_dtype();
    let mut random = random(case as u64);
    let hidden = Operand::random(cuda, &mut random, dtype, shape, offset, 1.0);
    let reference = targets(cuda, &mut random, shape, one, 0);
    let weights = Operand::random(cuda, &mut random, F32, (shape.0, 1), 1, 1.0);
    let mut gradient = Operand::random(cuda, &mut random, dtype, shape, offset, 1e-2);
    let [mut values, mut alone] = [1, 0].map(|at| Operand::poisoned(cuda, F32, (shape.0, 1), at));
    let on_cpu = [hidden.cpu(), reference.cpu(), weights.cpu()];
    run_distance(&Cpu, kind, on_cpu, values.cpu_mut(), Some(gradient.cpu_mut()));
    let on_cuda = [hidden.cuda(), reference.cuda(), weights.cuda()];
    run_distance(cuda, kind, on_cuda, values.cuda_mut(), Some(gradient.cuda_mut()));
    run_distance(cuda, kind, on_cuda, alone.cuda_mut(), None);
    values.assert_close(cuda, 1e-5, "distance");
    gradient.assert_close(cuda, bound(dtype), "gradient of the distance");
    assert_eq!(alone.found(cuda), values.found(cuda));
}

fn run_distance<B: Backend>(
    backend: &B,
    kind: DistanceKind,
    [hidden, reference, weights]: [Matrix<B>; 3],
    values: MatrixMut<B>,
    d_hidden: Option<MatrixMut<B>>,
) {
    let call = ops::RepresentationDistance { kind, hidden, reference, weights, values, d_hidden };
    backend.run(call).expect("a distance");
}

/// Cosines with one state and with two, each a state for each token or one for all, on both sides of the margin, and their
/// gradients, which are added; values alone are the same values.
#[test]
fn cosine_margin() {
    for cuda in modes() {
        for (case, shape) in SHAPES.into_iter().enumerate() {
            for (offset, one, two) in [
                (0, false, None),
                (0, true, Some(false)),
                (8, true, None),
                (8, false, Some(true)),
                (4, false, Some(false)),
                (1, false, None),
                (1, true, Some(true)),
            ] {
                check_cosines(&cuda, case, shape, offset, one, two);
            }
        }
    }
}

fn run_cosines<B: Backend>(
    backend: &B,
    [hidden, away, weights]: [Matrix<B>; 3],
    toward: Option<Matrix<B>>,
    margin: f32,
    values: MatrixMut<B>,
    d_hidden: Option<MatrixMut<B>>,
) {
    backend.run(ops::CosineMargin { hidden, away, toward, margin, weights, values, d_hidden }).expect("cosines");
}

fn check_cosines(cuda: &Cuda, case: usize, shape: (usize, usize), offset: usize, one: bool, two: Option<bool>) {
    // Cosines of random states are about 1/√d: a margin of half of that leaves values on both sides of 0.
    let margin = 0.5 / (shape.1 as f32).sqrt();
    let dtype = cuda.compute_dtype();
    let mut random = random(case as u64);
    let hidden = Operand::random(cuda, &mut random, dtype, shape, offset, 3.0);
    let away = targets(cuda, &mut random, shape, one, offset);
    let toward = two.map(|one| targets(cuda, &mut random, shape, one, 0));
    let weights = Operand::random(cuda, &mut random, F32, (shape.0, 1), 1, 1.0);
    let mut gradient = Operand::random(cuda, &mut random, dtype, shape, offset, 1e-2);
    let [mut values, mut alone] = [1, 0].map(|at| Operand::poisoned(cuda, F32, (shape.0, 1), at));
    let on_cpu = [hidden.cpu(), away.cpu(), weights.cpu()];
    let toward_on_cpu = toward.as_ref().map(Operand::cpu);
    run_cosines(&Cpu, on_cpu, toward_on_cpu, margin, values.cpu_mut(), Some(gradient.cpu_mut()));
    let on_cuda = [hidden.cuda(), away.cuda(), weights.cuda()];
    let toward_on_cuda = toward.as_ref().map(Operand::cuda);
    run_cosines(cuda, on_cuda, toward_on_cuda, margin, values.cuda_mut(), Some(gradient.cuda_mut()));
    run_cosines(cuda, on_cuda, toward_on_cuda, margin, alone.cuda_mut(), None);
    values.assert_close(cuda, 1e-5, "cosines and margin");
    // One column: the gradient of a cosine is 0 up to rounding.
    gradient.assert_close(cuda, bound(dtype), "gradient of the cosines");
    assert_eq!(alone.found(cuda), values.found(cuda));
}

/// Behind the margin there is no loss and no gradient, and a state that is no number is not hidden by the 0 there.
#[test]
fn a_cosine_behind_its_margin_has_no_gradient_and_nan_stays_nan() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let away = Operand::new(&cuda, dtype, (1, 4), 0, [1.0, 0.0, 0.0, 0.0]);
        let states = [[-1.0, 2.0, 0.0, 0.0], [0.0; 4], [2.0, 0.0, 0.0, 0.0], [f32::NAN, 1.0, 0.0, 0.0]].concat();
        let hidden = Operand::new(&cuda, dtype, (4, 4), 0, states);
        let weights = Operand::new(&cuda, F32, (4, 1), 0, [3.0; 4]);
        let mut gradient = Operand::new(&cuda, dtype, (4, 4), 0, [0.5; 16]);
        let mut values = Operand::poisoned(&cuda, F32, (4, 1), 0);
        cuda.run(ops::CosineMargin {
            hidden: hidden.cuda(),
            away: away.cuda(),
            toward: None,
            margin: 0.0,
            weights: weights.cuda(),
            values: values.cuda_mut(),
            d_hidden: Some(gradient.cuda_mut()),
        })
        .expect("cuda");
        let values = values.found(&cuda);
        let gradient = gradient.found(&cuda);
        assert_eq!(values[..3], [0.0, 0.0, 1.0]);
        assert!(values[3].is_nan() && gradient[12..].iter().any(|g| g.is_nan()));
        assert_eq!(gradient[..12], [0.5; 12]);
    }
}

/// The distance has no derivative where it is 0: nothing may be added there, not even a rounding error or a NaN.
#[test]
fn a_distance_of_zero_has_no_gradient() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let mut random = random(0);
        let mut values = normals(&mut random, 3 * 40, 1.0);
        let reference = Operand::new(&cuda, dtype, (3, 40), 0, &values);
        values[40] += 1.0;
        let hidden = Operand::new(&cuda, dtype, (3, 40), 0, &values);
        let weights = Operand::new(&cuda, F32, (3, 1), 0, [2.0; 3]);
        let mut gradient = Operand::random(&cuda, &mut random, dtype, (3, 40), 0, 1.0);
        let before = gradient.found(&cuda);
        let mut distances = Operand::poisoned(&cuda, F32, (3, 1), 0);
        let d_hidden = Some(gradient.cuda_mut());
        cuda.run(ops::RepresentationDistance {
            kind: DistanceKind::Euclidean,
            hidden: hidden.cuda(),
            reference: reference.cuda(),
            weights: weights.cuda(),
            values: distances.cuda_mut(),
            d_hidden,
        })
        .expect("cuda");
        let found = distances.found(&cuda);
        let after = gradient.found(&cuda);
        assert_eq!((found[0], found[2]), (0.0, 0.0));
        assert_eq!(bits(&after[..40]), bits(&before[..40]));
        assert_eq!(bits(&after[80..]), bits(&before[80..]));
        assert!(found[1] > 0.9 && (after[40] - before[40] - 2.0).abs() < 2e-2, "the row that differs");
    }
}

#[test]
fn random_mapping() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, shape) in SHAPES.into_iter().enumerate() {
            for offset in OFFSETS {
                let mut random = random(case as u64);
                let hidden = Operand::random(&cuda, &mut random, dtype, shape, offset, 3.0);
                let table = Operand::random(&cuda, &mut random, F32, (6, shape.1), offset, 1.0);
                let ids: Vec<u32> = (0..shape.0).map(|_| random.below(6) as u32).collect();
                let (cpu_ids, cuda_ids) = integers(&cuda, &ids);
                let weights = Operand::random(&cuda, &mut random, F32, (shape.0, 1), 1, 1.0);
                let mut gradient = Operand::random(&cuda, &mut random, dtype, shape, 0, 1e-2);
                let [mut values, mut alone] = [1, 0].map(|at| Operand::poisoned(&cuda, F32, (shape.0, 1), at));
                let h = hidden.cpu();
                let t = table.cpu();
                let w = weights.cpu();
                let d = Some(gradient.cpu_mut());
                Cpu.run(ops::RandomMapping {
                    hidden: h,
                    table: t,
                    ids: cpu_ids.view(),
                    weights: w,
                    values: values.cpu_mut(),
                    d_hidden: d,
                })
                .expect("cpu");
                let h = hidden.cuda();
                let t = table.cuda();
                let w = weights.cuda();
                let d = Some(gradient.cuda_mut());
                cuda.run(ops::RandomMapping {
                    hidden: h,
                    table: t,
                    ids: cuda_ids.view(),
                    weights: w,
                    values: values.cuda_mut(),
                    d_hidden: d,
                })
                .expect("cuda");
                cuda.run(ops::RandomMapping {
                    hidden: h,
                    table: t,
                    ids: cuda_ids.view(),
                    weights: w,
                    values: alone.cuda_mut(),
                    d_hidden: None,
                })
                .expect("cuda");
                // One column: the cosine is 1 up to rounding, and so is the error of the value.
                if shape.1 > 1 {
                    values.assert_close(&cuda, 1e-5, "1 - |cosine|");
                }
                gradient.assert_close(&cuda, bound(dtype), "gradient of the cosine");
                assert_eq!(alone.found(&cuda), values.found(&cuda));
            }
        }
    }
}

/// A state of zero (the floor of the norms), an orthogonal one, which has no sign, and a direction itself.
#[test]
fn a_cosine_of_zero_has_no_gradient_and_a_cosine_of_one_has_little() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let table = Operand::new(&cuda, F32, (1, 4), 0, [1.0, -2.0, 2.0, 4.0]);
        let states = [[0.0; 4], [2.0, 1.0, 0.0, 0.0], [-0.5, 1.0, -1.0, -2.0]].concat();
        let hidden = Operand::new(&cuda, dtype, (3, 4), 0, states);
        let (_, ids) = integers(&cuda, &[0, 0, 0]);
        let weights = Operand::new(&cuda, F32, (3, 1), 0, [3.0; 3]);
        let mut gradient = Operand::new(&cuda, dtype, (3, 4), 0, [0.5; 12]);
        let mut values = Operand::poisoned(&cuda, F32, (3, 1), 0);
        let d_hidden = Some(gradient.cuda_mut());
        cuda.run(ops::RandomMapping {
            hidden: hidden.cuda(),
            table: table.cuda(),
            ids: ids.view(),
            weights: weights.cuda(),
            values: values.cuda_mut(),
            d_hidden,
        })
        .expect("cuda");
        let values = values.found(&cuda);
        let gradient = gradient.found(&cuda);
        assert_eq!(values[..2], [1.0, 1.0]);
        assert!(values[2].abs() < 1e-6, "{}", values[2]);
        assert_eq!(gradient[..8], [0.5; 8]);
        assert!(gradient[8..].iter().all(|g| (g - 0.5).abs() < 1e-5), "{gradient:?}");
    }
}

/// Consecutive segments of these lengths.
fn segments<B: Backend>(backend: &B, lengths: &[usize]) -> Segments<B> {
    let mut start = 0;
    let segment = |&length: &usize| {
        start += length;
        Segment { start: start - length, length, valid: length }
    };
    Segments::new(backend, lengths.iter().map(segment).collect()).expect("memory")
}

/// Pairs of unequal sequences, with margins from even to hopeless, where the exponential overflows.
#[test]
fn preference() {
    let cuda = Cuda::simulated(F32).expect("a simulated device");
    for lengths in [vec![1, 1], vec![3, 700, 300, 1, 5, 5, 2, 4], vec![]] {
        let tokens = lengths.iter().sum();
        let pairs = lengths.len() / 2;
        let mut random = random(pairs as u64);
        let values = Operand::random(&cuda, &mut random, F32, (tokens, 1), 1, 1.0);
        let margins = (0..pairs).map(|i| [0.3, -900.0, 900.0, -2.0][i % 4]).collect::<Vec<_>>();
        let margins = Operand::new(&cuda, F32, (pairs, 1), 1, margins);
        let learned = (0..tokens).map(|i| (i % 3 != 1) as u8 as f32).collect::<Vec<_>>();
        let mut weights = Operand::new(&cuda, F32, (tokens, 1), 0, learned);
        let mut losses = Operand::poisoned(&cuda, F32, (pairs, 1), 1);
        let v = values.cpu();
        let m = margins.cpu();
        let w = weights.cpu_mut();
        let l = losses.cpu_mut();
        Cpu.run(ops::Preference {
            values: v,
            segments: &segments(&Cpu, &lengths),
            reference_margins: m,
            beta: 0.5,
            scale: 4.0,
            weights: w,
            losses: l,
        })
        .expect("cpu");
        cuda.run(ops::Preference {
            values: values.cuda(),
            segments: &segments(&cuda, &lengths),
            reference_margins: margins.cuda(),
            beta: 0.5,
            scale: 4.0,
            weights: weights.cuda_mut(),
            losses: losses.cuda_mut(),
        })
        .expect("cuda");
        weights.assert_close(&cuda, 1e-6, "preference weights");
        losses.assert_close(&cuda, 1e-6, "preference losses");
    }
}

/// Sequences of unequal lengths, with references from even to hopeless, where the exponential overflows.
#[test]
fn negative_preference() {
    let cuda = Cuda::simulated(F32).expect("a simulated device");
    for lengths in [vec![1], vec![3, 700, 300, 1, 5], vec![]] {
        let tokens = lengths.iter().sum();
        let count = lengths.len();
        let mut random = random(count as u64);
        let values = Operand::random(&cuda, &mut random, F32, (tokens, 1), 1, 1.0);
        let references = (0..count).map(|i| [0.3, -5000.0, 5000.0, -2.0][i % 4]).collect::<Vec<_>>();
        let references = Operand::new(&cuda, F32, (count, 1), 1, references);
        let divisors = (0..count).map(|i| [1.0, 17.0, 3.0][i % 3]).collect::<Vec<_>>();
        let divisors = Operand::new(&cuda, F32, (count, 1), 2, divisors);
        let learned = (0..tokens).map(|i| (i % 3 != 1) as u8 as f32).collect::<Vec<_>>();
        let mut weights = Operand::new(&cuda, F32, (tokens, 1), 0, learned);
        let mut losses = Operand::poisoned(&cuda, F32, (count, 1), 1);
        Cpu.run(ops::NegativePreference {
            values: values.cpu(),
            segments: &segments(&Cpu, &lengths),
            lengths: divisors.cpu(),
            references: references.cpu(),
            beta: 0.5,
            scale: 4.0,
            weights: weights.cpu_mut(),
            losses: losses.cpu_mut(),
        })
        .expect("cpu");
        cuda.run(ops::NegativePreference {
            values: values.cuda(),
            segments: &segments(&cuda, &lengths),
            lengths: divisors.cuda(),
            references: references.cuda(),
            beta: 0.5,
            scale: 4.0,
            weights: weights.cuda_mut(),
            losses: losses.cuda_mut(),
        })
        .expect("cuda");
        weights.assert_close(&cuda, 1e-6, "negative preference weights");
        losses.assert_close(&cuda, 1e-6, "negative preference losses");
    }
}

#[test]
fn sums_of_sequences_do_not_depend_on_the_schedule() {
    assert_schedule_does_not_show(F32, |cuda| {
        let mut random = random(5);
        let values = Operand::random(cuda, &mut random, F32, (900, 1), 0, 1.0);
        let ones = Operand::new(cuda, F32, (2, 1), 0, vec![1.0; 2]);
        let mut weights = Operand::new(cuda, F32, (900, 1), 0, vec![1.0; 900]);
        let mut losses = Operand::poisoned(cuda, F32, (2, 1), 0);
        cuda.run(ops::NegativePreference {
            values: values.cuda(),
            segments: &segments(cuda, &[300, 600]),
            lengths: ones.cuda(),
            references: ones.cuda(),
            beta: 0.1,
            scale: 1.0,
            weights: weights.cuda_mut(),
            losses: losses.cuda_mut(),
        })
        .expect("cuda");
        [weights.found(cuda), losses.found(cuda)].concat()
    });
}

#[test]
fn losses_do_not_depend_on_the_schedule() {
    for dtype in [DType::Bf16, F32] {
        assert_schedule_does_not_show(dtype, |cuda| {
            let mut random = random(3);
            let hidden = Operand::random(cuda, &mut random, dtype, (3, 600), 0, 1.0);
            let reference = Operand::random(cuda, &mut random, dtype, (3, 600), 0, 1.0);
            let table = Operand::random(cuda, &mut random, F32, (2, 600), 0, 1.0);
            let weights = Operand::random(cuda, &mut random, F32, (3, 1), 0, 1.0);
            let (_, ids) = integers(cuda, &[1, 0, 1]);
            let mut gradient = Operand::random(cuda, &mut random, dtype, (3, 600), 0, 1.0);
            let [mut distances, mut cosines, mut margins] = [0; 3].map(|at| Operand::poisoned(cuda, F32, (3, 1), at));
            let h = hidden.cuda();
            let w = weights.cuda();
            let values = distances.cuda_mut();
            let d = Some(gradient.cuda_mut());
            cuda.run(ops::RepresentationDistance {
                kind: DistanceKind::Euclidean,
                hidden: h,
                reference: reference.cuda(),
                weights: w,
                values,
                d_hidden: d,
            })
            .expect("cuda");
            cuda.run(ops::RandomMapping {
                hidden: h,
                table: table.cuda(),
                ids: ids.view(),
                weights: w,
                values: cosines.cuda_mut(),
                d_hidden: Some(gradient.cuda_mut()),
            })
            .expect("cuda");
            let operands = [h, reference.cuda(), w];
            run_cosines(cuda, operands, Some(h), 1.5, margins.cuda_mut(), Some(gradient.cuda_mut()));
            [distances.found(cuda), cosines.found(cuda), margins.found(cuda), gradient.found(cuda)].concat()
        });
    }
}
