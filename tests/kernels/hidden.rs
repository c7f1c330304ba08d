//! Losses on hidden states, and preferences.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, Backend, DType, Segment, Segments};

use crate::operand::{OFFSETS, Operand, SHAPES, assert_schedule_does_not_show, bits, integers};
use crate::support::{bound, modes, normals, random};

const F32: DType = DType::F32;

/// Distances (f32 sums of stored operands) and their gradients, which are added; values alone are the same values.
#[test]
fn representation_distance() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, shape) in SHAPES.into_iter().enumerate() {
            for offset in OFFSETS {
                let mut random = random(case as u64);
                let hidden = Operand::random(&cuda, &mut random, dtype, shape, offset, 1.0);
                let reference = Operand::random(&cuda, &mut random, dtype, shape, 0, 1.0);
                let weights = Operand::random(&cuda, &mut random, F32, (shape.0, 1), 1, 1.0);
                let mut gradient = Operand::random(&cuda, &mut random, dtype, shape, offset, 1e-2);
                let [mut values, mut alone] = [1, 0].map(|at| Operand::poisoned(&cuda, F32, (shape.0, 1), at));
                let h = hidden.cpu();
                let r = reference.cpu();
                let w = weights.cpu();
                Cpu.run(ops::RepresentationDistance {
                    hidden: h,
                    reference: r,
                    weights: w,
                    values: values.cpu_mut(),
                    d_hidden: Some(gradient.cpu_mut()),
                })
                .expect("cpu");
                let h = hidden.cuda();
                let r = reference.cuda();
                let w = weights.cuda();
                cuda.run(ops::RepresentationDistance {
                    hidden: h,
                    reference: r,
                    weights: w,
                    values: values.cuda_mut(),
                    d_hidden: Some(gradient.cuda_mut()),
                })
                .expect("cuda");
                cuda.run(ops::RepresentationDistance {
                    hidden: h,
                    reference: r,
                    weights: w,
                    values: alone.cuda_mut(),
                    d_hidden: None,
                })
                .expect("cuda");
                values.assert_close(&cuda, 1e-5, "distance");
                gradient.assert_close(&cuda, bound(dtype), "gradient of the distance");
                assert_eq!(alone.found(&cuda), values.found(&cuda));
            }
        }
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
            let [mut distances, mut cosines] = [0, 0].map(|at| Operand::poisoned(cuda, F32, (3, 1), at));
            let h = hidden.cuda();
            let w = weights.cuda();
            let values = distances.cuda_mut();
            let d = Some(gradient.cuda_mut());
            cuda.run(ops::RepresentationDistance {
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
            [distances.found(cuda), cosines.found(cuda), gradient.found(cuda)].concat()
        });
    }
}
